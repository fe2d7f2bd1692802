//! Payloads that are valid JSON and more than many readers can read, and rows that are almost too large for Kafka.

use serde_json::Value;
use walcast::source::sql;

use crate::support::world::World;
use crate::support::{run, wait_until};

/// As SQL: each is valid for PostgreSQL, and some reader refuses it or reads something else.
const ODD: [&str; 9] = [
    "(repeat('[', 1500) || '1' || repeat(']', 1500))",
    "repeat('9', 1200)",
    "'1e400'",
    "'9007199254740993'",
    r#"'"1"'"#,
    r#"'"\"1\""'"#,
    "'null'",
    r#"'{"a": "\" \\"}'"#,
    "'[]'",
];

async fn insert_odd(world: &World) {
    let client = sql::connect(&world.postgres).await.unwrap();
    for payload in ODD {
        run(
            &client,
            &format!(
                "INSERT INTO engagement_events (event_type, event_ts, duration_ms, raw_payload)
                 VALUES ('play', now(), 1000, {payload}::jsonb)"
            ),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_as_text_lets_every_reader_read_every_record() {
    let world = World::initialised().await.with("PIPELINE_SINKS", "kafka");
    let text = world.with("KAFKA_RAW_PAYLOAD", "text");
    for world in [&world, &text, &world] {
        let running = world.start().await;
        insert_odd(world).await;
        world.verify().await;
        running.stop().await;
    }
    let records = world.kafka_topic("events").await;
    assert_eq!(records.len(), 3 * ODD.len());
    let client = sql::connect(&world.postgres).await.unwrap();
    let mut texts = 0;
    // one that reads no deeper than 128 levels
    for record in records.iter().filter_map(|record| serde_json::from_slice::<Value>(record).ok()) {
        let Value::String(payload) = &record["raw_payload"] else { continue };
        let query = "SELECT count(*) FROM engagement_events WHERE id = $1 AND raw_payload::text = $2";
        let id = record["event_id"].as_i64().unwrap();
        let same: i64 = client.query_one(query, &[&id, &payload]).await.unwrap().get(0);
        texts += same;
    }
    assert_eq!(texts, ODD.len() as i64, "as texts all of them are read");
    text.walcast(["config", "show"]).await.expect(0, &["raw_payload = \"text\""]);
    world.with("KAFKA_RAW_PAYLOAD", "xml").walcast(["check"]).await.expect(78, &["raw_payload", "text"]);
}

/// What a row's title and escaping add counts as well: the payload is left out before the event is.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fits_without_its_payload_goes_on_without_it() {
    let world = World::initialised().await.with("WALCAST_LOG", "info");
    let client = sql::connect(&world.postgres).await.unwrap();
    let running = world.start().await;
    run(
        &client,
        r#"INSERT INTO content VALUES
             ('00000000-0000-0000-0000-000000000001', 'one', repeat('t', 500000), 'podcast', 100, now()),
             ('00000000-0000-0000-0000-000000000002', 'two', 'two', 'podcast', 100, now());
           INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms, device, raw_payload)
           SELECT ('00000000-0000-0000-0000-00000000000' || content)::uuid, 'play', now(), 1000, device,
             jsonb_build_object('a', repeat('p', size))
           FROM (VALUES (1, 'tv', 700000), (1, 'tv', 100), (2, repeat('"', 450000), 300000), (2, repeat(chr(1), 150000), 400000),
                        (2, repeat('"', 450000), 10), (2, 'tv', 1000000), (2, 'tv', 890000)) AS row (content, device, size)"#,
    )
    .await;
    wait_until("Redis has all", async || world.redis_plays().await == 7).await;
    wait_until("BigQuery has all", async || world.bigquery_count().await == 7).await;
    world.verify().await;
    let mut events = world.kafka_events().await;
    events.sort_by_key(|event| event["event_id"].as_i64());
    let whole: Vec<bool> = events.iter().map(|event| !event["raw_payload"].is_null()).collect();
    assert_eq!(whole, [false, true, false, false, true, false, true]);
    assert!(events.iter().all(|event| event["raw_payload_bytes"].as_i64() > Some(0)));
    assert!(world.kafka_topic("dlq").await.is_empty());
    let running_log = running.log.lock().await.clone();
    assert!(running_log.contains("without its raw_payload"), "{running_log}");
    running.stop().await;
}
