//! Rows that were there before walcast come to Kafka, BigQuery and HTTP once, beside the stream.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;
use walcast::source::sql;

use crate::support::running::Running;
use crate::support::world::World;
use crate::support::{fresh_database, postgres, run, wait_until};

/// A world whose source tables have so many events before `walcast init`.
async fn with_history(events: i64) -> (World, Client) {
    let world = World::new(fresh_database(postgres()).await).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, include_str!("../../migrations/0001_source.sql")).await;
    world.insert_events(events).await;
    (world, client)
}

async fn ids(world: &World) -> Vec<i64> {
    world.kafka_events().await.iter().map(|event| event["event_id"].as_i64().unwrap()).collect()
}

/// Kafka has these events, each once.
async fn kafka_has(world: &World, events: usize) {
    wait_until("Kafka has all", async || ids(world).await.len() >= events).await;
    let ids = ids(world).await;
    assert_eq!(ids.len(), events, "Kafka has another number of events");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), events, "Kafka has an event twice");
}

async fn state(client: &Client) -> (String, i64) {
    let row = client.query_one("SELECT state, row_count FROM walcast.backfill", &[]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn rows_of_before_come_once_and_the_stream_goes_on() {
    let (world, client) = with_history(50).await;
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    world
        .walcast(["backfill", "--dry-run"])
        .await
        .expect(0, &["rows with an id up to 50", "kafka, bigquery"]);
    assert_eq!(client.query("SELECT FROM walcast.backfill", &[]).await.unwrap().len(), 0);
    world.walcast(["backfill"]).await.expect(0, &["done", "50 rows sent to kafka, bigquery"]);
    world.insert_events(10).await;
    kafka_has(&world, 70).await;
    wait_until("BigQuery has all", async || world.bigquery_count().await == 70).await;
    assert_eq!(world.redis_plays().await, 20, "Redis has its own way");
    wait_until("no request is left", async || {
        client.query("SELECT FROM walcast.request", &[]).await.unwrap().is_empty()
    })
    .await;
    world.verify().await;
    // and one that is gone is missed
    world.bigquery(&format!("DELETE FROM {}.engagement_events WHERE event_id = 3", world.dataset)).await;
    world.walcast(["verify"]).await.expect(2, &["bigquery", "event 3"]);
    // the content is there, and the row is what it was
    let events = world.kafka_events().await;
    let first = events.iter().find(|event| event["event_id"] == 1).unwrap();
    assert_eq!(
        (&first["slug"], &first["duration_ms"], &first["raw_payload"]["i"]),
        (&"slug-2".into(), &1000.into(), &1.into())
    );
    world
        .walcast(["backfill"])
        .await
        .expect(2, &["WC-254", "rows up to id 50 were brought to kafka, bigquery before", "--again"]);
    world.walcast(["backfill", "--sinks", "redis"]).await.expect(2, &["WC-254", "walcast rebuild redis"]);
    world.walcast(["backfill", "--sinks", "elsewhere"]).await.expect(2, &["WC-254", "pipeline.sinks"]);
    running.stop().await;
}

/// The records say what they are.
#[tokio::test]
async fn the_records_of_before_say_so() {
    let (world, _client) = with_history(3).await;
    let world = world.with("PIPELINE_SINKS", "kafka");
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    world.insert_events(2).await;
    world.walcast(["backfill"]).await.expect(0, &["3 rows"]);
    kafka_has(&world, 5).await;
    let mut ops = world.kafka_headers("events", "op").await;
    ops.sort();
    assert_eq!(ops, ["c", "c", "r", "r", "r"]);
    running.stop().await;
}

/// Rows with ids of before that came after all are the stream's, and such that went are nobody's.
#[tokio::test]
async fn late_rows_come_by_the_stream_alone() {
    let (world, client) = with_history(50).await;
    let world = world.with("PIPELINE_SINKS", "kafka");
    run(&client, "DELETE FROM engagement_events WHERE id IN (7, 8, 50)").await;
    run(&client, "INSERT INTO engagement_events (id, event_type, event_ts) VALUES (60, 'play', now())").await;
    world.walcast(["init"]).await.expect(0, &[]);
    run(&client, "INSERT INTO engagement_events (id, event_type, event_ts) VALUES (7, 'play', now())").await;
    let running = world.start().await;
    run(&client, "INSERT INTO engagement_events (id, event_type, event_ts) VALUES (8, 'play', now())").await;
    run(&client, "DELETE FROM engagement_events WHERE id = 9").await;
    world.walcast(["backfill"]).await.expect(0, &["done", "47 rows"]);
    kafka_has(&world, 49).await;
    let ids: BTreeSet<i64> = ids(&world).await.into_iter().collect();
    assert!(!ids.contains(&9) && !ids.contains(&50) && ids.contains(&7) && ids.contains(&60), "{ids:?}");
    world.verify().await;
    running.stop().await;
}

/// At every step, whoever is killed: each row once.
#[tokio::test]
async fn a_crash_at_any_step_loses_and_doubles_nothing() {
    let (world, client) = with_history(9_000).await;
    let world = world.with("PIPELINE_SINKS", "kafka");
    world.walcast(["init"]).await.expect(0, &[]);
    world.walcast(["backfill", "--detach"]).await.expect(0, &["walcast backfill status"]);
    for step in ["after_snapshot", "before_send", "before_commit", "after_commit"] {
        let mut crashes = world.with("FAILPOINTS", &format!("backfill_{step}=return")).spawn();
        world.insert_events(10).await;
        assert_eq!(crashes.ended().await, None, "{step} is not reached: {}", crashes.log.lock().await);
    }
    let running = world.start().await;
    wait_until("it is done", async || state(&client).await == ("done".into(), 9_000)).await;
    kafka_has(&world, 9_040).await;
    world.verify().await;
    running.stop().await;
}

#[tokio::test]
async fn it_is_paused_goes_on_and_is_cancelled() {
    let (world, client) = with_history(9_000).await;
    let world = world.with("PIPELINE_SINKS", "kafka");
    world.walcast(["init"]).await.expect(0, &[]);
    let running: Running = world.start().await;
    world.walcast(["backfill", "pause"]).await.expect(0, &["no backfill is open"]);
    world.walcast(["backfill", "--detach", "--rows-per-second", "200"]).await.expect(0, &[]);
    world.walcast(["backfill"]).await.expect(2, &["WC-253", "another backfill is open"]);
    wait_until("some rows are sent", async || state(&client).await.1 > 0).await;
    world.walcast(["backfill", "pause"]).await.expect(0, &["it is paused now"]);
    world.walcast(["backfill", "status"]).await.expect(0, &["paused", "of about", "kafka"]);
    wait_until("the running walcast tells of it", async || {
        running.json("/api/status").await["backfill"]["state"] == "paused"
    })
    .await;
    let sent = state(&client).await.1;
    assert!((1..9_000).contains(&sent), "{sent}");
    kafka_has(&world, sent as usize).await;
    run(&client, "UPDATE walcast.backfill SET rows_per_second = NULL").await;
    world.walcast(["backfill", "resume"]).await.expect(0, &["it is running now"]);
    wait_until("it is done", async || state(&client).await == ("done".into(), 9_000)).await;
    kafka_has(&world, 9_000).await;
    wait_until("and that it is over", async || running.json("/api/status").await["backfill"].is_null()).await;
    world.walcast(["backfill", "cancel"]).await.expect(0, &["no backfill is open"]);
    running.stop().await;
}

/// A right that is taken away meanwhile is named, holds up nothing else, and loses nothing.
#[tokio::test]
async fn a_right_that_goes_meanwhile_is_waited_for() {
    let (world, client) = with_history(9_000).await;
    let world = world.with("PIPELINE_SINKS", "kafka");
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    world.walcast(["backfill", "--detach", "--rows-per-second", "200"]).await.expect(0, &[]);
    wait_until("some rows are sent", async || state(&client).await.1 > 0).await;
    run(&client, "REVOKE SELECT ON engagement_events FROM walcast").await;
    run(&client, "UPDATE walcast.backfill SET rows_per_second = NULL").await;
    wait_until("the missing right is named", async || running.log.lock().await.contains("WC-204")).await;
    let sent = state(&client).await.1;
    assert!(sent < 9_000, "all was sent without the right");
    world.insert_events(10).await;
    wait_until("events come", async || ids(&world).await.contains(&9_010)).await;
    run(&client, "GRANT SELECT ON engagement_events TO walcast").await;
    wait_until("it is done", async || state(&client).await == ("done".into(), 9_000)).await;
    kafka_has(&world, 9_010).await;
    world.verify().await;
    running.stop().await;
}

/// What the stream would refuse is refused, and told with its row.
#[tokio::test]
async fn a_row_against_the_rules_is_a_dead_letter() {
    let (world, client) = with_history(3).await;
    let world = world.with("PIPELINE_SINKS", "kafka");
    run(&client, "UPDATE engagement_events SET duration_ms = -1, device = NULL WHERE id = 2").await;
    run(&client, "UPDATE engagement_events SET event_ts = 'infinity' WHERE id = 3").await;
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    world.walcast(["backfill"]).await.expect(0, &["3 rows"]);
    kafka_has(&world, 1).await;
    let letters = async || -> Vec<(i64, String, Value)> {
        let query = "SELECT event_id, reason, to_jsonb(unread) FROM walcast.dead_letter ORDER BY event_id";
        let rows = client.query(query, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    };
    wait_until("both are told", async || letters().await.len() == 2).await;
    let letters = letters().await;
    assert_eq!((letters[0].0, letters[0].1.as_str()), (2, "negative_duration"));
    assert_eq!((letters[1].0, letters[1].1.as_str()), (3, "event_ts_out_of_range"));
    assert_eq!(letters[1].2, serde_json::json!(["event_ts"]));
    let shown = "SELECT event::jsonb -> 'device' = 'null' AND record::jsonb -> 'device' = 'null' FROM walcast.dead_letter WHERE event_id = 2";
    let shown: Option<bool> = client.query_one(shown, &[]).await.unwrap().get(0);
    assert_eq!(shown, Some(true), "a field that is null is there, as in every record that others read");
    running.stop().await;
}

/// A part of it, by the time of the events.
#[tokio::test]
async fn rows_between_two_times_come_alone() {
    let (world, client) = with_history(30).await;
    let world = world.with("PIPELINE_SINKS", "kafka");
    run(
        &client,
        "UPDATE engagement_events SET event_ts = timestamptz '2026-01-01 00:00:00Z' + id * interval '1 day'",
    )
    .await;
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    let part = ["backfill", "--since", "2026-01-11T00:00:00Z", "--until", "2026-01-21T00:00:00Z"];
    world.walcast(part).await.expect(0, &["done", "10 rows"]);
    kafka_has(&world, 10).await;
    assert_eq!(ids(&world).await.into_iter().collect::<BTreeSet<_>>(), (10..20).collect());
    tokio::time::timeout(Duration::from_secs(60), world.verify()).await.unwrap();
    running.stop().await;
}

/// One command at the first start: the boards, the topics and the table have the rows that are there.
#[tokio::test]
async fn a_first_start_with_history_has_all_everywhere() {
    let (world, client) = with_history(50).await;
    let init = ["init", "--with-history"];
    // broken off just before Redis is whole
    let ended = world.with("FAILPOINTS", "redis_rebuild_before_check=return").walcast(init).await;
    assert_ne!(ended.code, Some(0), "{}", ended.output);
    let told = ["redis holds 50 events, 50 of them from before walcast", "come to kafka, bigquery when"];
    world.walcast(init).await.expect(0, &told);
    let again = world.walcast(init).await;
    again.expect(0, &[]);
    assert!(told.iter().all(|told| !again.output.contains(told)), "{}", again.output);
    assert_eq!(world.redis_plays().await, 50);

    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(60).await;
    assert_eq!(state_of(&client, "kafka").await, ("done".to_owned(), 50));
    world.verify().await;
    let mut redis = world.redis().await;
    let day: Vec<String> = redis::cmd("KEYS").arg("engagement:*:20*").query_async(&mut redis).await.unwrap();
    let _: i64 =
        redis::cmd("HINCRBY").arg(&day[0]).arg("plays").arg(-1).query_async(&mut redis).await.unwrap();
    world.walcast(["verify", "--sinks", "redis"]).await.expect(2, &["redis: different"]);
    running.stop().await;

    // what it has lost comes back whole
    let _: () = redis::cmd("FLUSHDB").query_async(&mut redis).await.unwrap();
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 60 events, 50 of them from before"]);
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(70).await;
    world.verify().await;
    running.stop().await;
}

async fn state_of(client: &Client, sink: &str) -> (String, i64) {
    let query = "SELECT state, row_count FROM walcast.backfill WHERE $1 = ANY (sinks)";
    let row = client.query_one(query, &[&sink]).await.unwrap();
    (row.get(0), row.get(1))
}
