//! Transactions that were replicated to the source from elsewhere: their commit times are whatever the session of the
//! replication origin says, and no sink's business.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio_postgres::Client;
use walcast::source::sql;

use crate::support::world::World;
use crate::support::{env, fresh_name, run, wait_until};

/// What a session may say, and the time that is a record's `commit_ts` then.
const TIMES: [(&str, Option<&str>); 7] = [
    ("now() - interval '58 days'", None),
    ("now() + interval '2 hours'", None),
    ("now() + interval '58 days'", None),
    ("'infinity'", Some("9999-12-31T23:59:59.999999Z")),
    ("'-infinity'", Some("0001-01-01T00:00:00.000000Z")),
    ("'4714-11-24 00:00:00+00 BC'", Some("0001-01-01T00:00:00.000000Z")),
    ("'294276-12-31 23:59:59.999999+00'", Some("9999-12-31T23:59:59.999999Z")),
];

/// A content row, an event of it, and a row that is refused.
const ROWS: &str = "
    INSERT INTO content SELECT gen_random_uuid(), 'slug ' || gen_random_uuid(), 'title', 'podcast', 100, now();
    INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
      SELECT id, 'play', now(), 1000 FROM content ORDER BY id LIMIT 1;
    INSERT INTO engagement_events (event_type, event_ts, duration_ms) VALUES ('play', now(), -1);";

async fn replicated_at(client: &Client, time: &str) {
    let setup = format!("BEGIN; SELECT pg_replication_origin_xact_setup('0/1000', {time}); {ROWS} COMMIT");
    run(client, &setup).await;
}

fn seconds_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed()
}

/// The timestamps of a topic's records, in seconds since 1970, as another client shows them.
fn timestamps(world: &World, topic: &str) -> Vec<i64> {
    let kcat = std::process::Command::new("kcat")
        .args(["-C", "-q", "-e", "-o", "beginning", "-X", "isolation.level=read_committed", "-f", "%T\n"])
        .args(["-b", &env("KAFKA_BROKERS", "127.0.0.1:29092"), "-t"])
        .arg(format!("{}.{topic}", world.topic_prefix))
        .output()
        .expect("kcat runs: install it with apt-get install kcat");
    let text = String::from_utf8(kcat.stdout).unwrap();
    text.lines().map(|millis| millis.parse::<i64>().unwrap() / 1000).collect()
}

/// A metric's value.
fn metric(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

/// Rows that came by way of an origin, at each of the times; the origin's name.
async fn replicated(client: &Client) -> String {
    let origin = fresh_name("origin");
    let set_up = format!(
        "SELECT pg_replication_origin_create('{origin}'); SELECT pg_replication_origin_session_setup('{origin}')"
    );
    run(client, &set_up).await;
    for (time, _) in TIMES {
        replicated_at(client, time).await;
    }
    run(client, "SELECT pg_replication_origin_session_reset()").await;
    origin
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_times_of_other_servers_stop_nothing_and_count_for_nothing() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let began = seconds_now();
    let running = world.start().await;
    // ours, so that all sinks have a latency to show
    run(&client, ROWS).await;
    let origin = replicated(&client).await;
    wait_until("Redis has all", async || world.redis_plays().await == 8).await;
    wait_until("BigQuery has all", async || world.bigquery_count().await == 8).await;
    world.verify().await;

    for (topic, count) in [("events", 8), ("content", 8), ("dlq", 8)] {
        let times = timestamps(&world, topic);
        assert_eq!(times.len(), count, "{topic}");
        assert!(times.iter().all(|time| (began..=seconds_now()).contains(time)), "{topic}: {times:?}");
    }
    let events = world.kafka_events().await;
    for time in TIMES.iter().filter_map(|(_, shown)| *shown) {
        assert!(events.iter().any(|event| event["commit_ts"] == time), "{time} in {events:?}");
    }
    let query =
        format!("SELECT COUNT(*) FROM {}.engagement_events WHERE commit_ts < '2000-01-01'", world.dataset);
    assert_eq!(world.bigquery(&query).await[0][0], "2");
    let letters: i64 =
        client.query_one("SELECT count(*) FROM walcast.dead_letter", &[]).await.unwrap().get(0);
    assert_eq!(letters, 8);

    let metrics = running.metrics().await;
    let lasted = (seconds_now() - began + 1) as f64;
    assert!(metric(&metrics, "walcast_source_commit_to_receive_seconds_sum ") < lasted, "{metrics}");
    for sink in ["kafka", "redis", "bigquery", "content"] {
        for name in ["walcast_end_to_end_latency_seconds_sum", "walcast_sink_lag_seconds"] {
            let value = metric(&metrics, &format!("{name}{{sink=\"{sink}\"}} "));
            assert!((0.0..9.0 * lasted).contains(&value), "{sink}: {name} is {value}");
        }
    }
    running.stop().await;
    run(&client, &format!("SELECT pg_replication_origin_drop('{origin}')")).await;
}

/// What a finished migration leaves: the stream need not name an origin that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_was_dropped_since_counts_for_nothing_either() {
    let world = World::initialised().await.with("PIPELINE_SINKS", "redis");
    let client = sql::connect(&world.postgres).await.unwrap();
    let began = seconds_now();
    run(&client, "SELECT pg_logical_emit_message(true, 'walcast', '')").await;
    let origin = replicated(&client).await;
    run(&client, &format!("SELECT pg_replication_origin_drop('{origin}')")).await;
    let running = world.start().await;
    wait_until("Redis has all", async || world.redis_plays().await == 7).await;
    world.verify().await;
    let metrics = running.metrics().await;
    let lasted = (seconds_now() - began + 1) as f64;
    assert!(metric(&metrics, "walcast_source_commit_to_receive_seconds_sum ") < 9.0 * lasted, "{metrics}");
    let latency = metric(&metrics, "walcast_end_to_end_latency_seconds_sum{sink=\"redis\"} ");
    assert!((0.0..9.0 * lasted).contains(&latency), "{latency}");
    running.stop().await;
}
