//! A sink that has lost its data, or whose data nobody wants, is filled anew while the others go on: every row once.

use std::collections::BTreeSet;

use tokio_postgres::Client;
use walcast::source::sql;

use crate::support::hold::Hold;
use crate::support::running::Running;
use crate::support::world::World;
use crate::support::{fresh_database, postgres, run, wait_until};

/// A world with so many events before `walcast init`, and its client.
pub async fn with_history(events: i64, sinks: &str) -> (World, Client) {
    let world = World::new(fresh_database(postgres()).await).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, include_str!("../../migrations/0001_source.sql")).await;
    world.insert_events(events).await;
    let world = world.with("PIPELINE_SINKS", sinks).with("BIGQUERY_COMMIT_SECONDS", "1");
    world.walcast(["init"]).await.expect(0, &[]);
    (world, client)
}

async fn ids(world: &World) -> Vec<i64> {
    world.kafka_events().await.iter().map(|event| event["event_id"].as_i64().unwrap()).collect()
}

/// Kafka has the events 1 to `events`, each once.
pub async fn kafka_has(world: &World, events: i64) {
    wait_until("Kafka has all", async || ids(world).await.len() as i64 >= events).await;
    let ids = ids(world).await;
    let distinct: BTreeSet<i64> = ids.iter().copied().collect();
    assert_eq!(distinct, (1..=events).collect(), "Kafka has other events");
    assert_eq!(ids.len() as i64, events, "Kafka has an event twice");
}

pub async fn bigquery_has(world: &World, events: i64) {
    wait_until("BigQuery has all", async || world.bigquery_count().await as i64 >= events).await;
    let mut ids = world.bigquery_ids().await;
    ids.sort_unstable();
    assert_eq!(ids, (1..=events).collect::<Vec<_>>(), "BigQuery has other events");
}

pub async fn is_done(client: &Client) {
    let open = "SELECT count(*) FROM walcast.backfill WHERE state IN ('waiting', 'running', 'paused')";
    wait_until("it is done", async || client.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0).await;
}

#[tokio::test]
async fn lost_topics_are_filled_anew_and_the_other_sinks_go_on() {
    let (world, client) = with_history(20, "kafka,redis,bigquery").await;
    let running = world.start().await;
    world.insert_events(20).await;
    run(&client, "UPDATE content SET title = 'new ' || slug WHERE slug = 'slug-1'").await;
    bigquery_has_stream(&world, 20).await;
    for topic in ["events", "content", "progress"] {
        world.delete_topic(topic).await;
    }
    world.insert_events(10).await;
    wait_until("Kafka is told to have lost its data", async || {
        running.sink("kafka").await["last_error_code"] == "WC-402"
    })
    .await;
    world
        .walcast(["rebuild", "kafka"])
        .await
        .expect(2, &["WC-255", "all records of topic", "rows that PostgreSQL has", "--yes"]);
    world
        .walcast(["rebuild", "kafka", "--yes"])
        .await
        .expect(0, &["done", "50 rows sent to kafka, which was emptied"]);
    world.insert_events(10).await;
    kafka_has(&world, 60).await;
    bigquery_has_stream(&world, 40).await;
    // every content is there again, as it is now
    let contents = world.kafka_topic("content").await;
    let contents: Vec<String> = contents.into_iter().map(|one| String::from_utf8(one).unwrap()).collect();
    let count = client.query_one("SELECT count(*) FROM content", &[]).await.unwrap().get::<_, i64>(0);
    assert!(contents.len() as i64 >= count, "{contents:?}");
    assert!(contents.iter().any(|one| one.contains("new slug-1")), "{contents:?}");
    let ops: BTreeSet<String> = world.kafka_headers("events", "op").await.into_iter().collect();
    assert_eq!(ops, ["c", "r"].map(String::from).into());
    assert_eq!(world.redis_plays().await, 40, "Redis has what the stream brought");
    world.no_lane_is_left().await;
    world.verify().await;
    // and what is missing is missed
    world.delete_records("events", 16).await;
    world.walcast(["rebuild", "kafka", "--yes"]).await.expect(0, &["done", "60 rows"]);
    kafka_has(&world, 60).await;
    world.verify().await;
    running.stop().await;
}

/// What the stream brings after `walcast init`.
async fn bigquery_has_stream(world: &World, events: i64) {
    wait_until("BigQuery has all", async || world.bigquery_count().await as i64 == events).await;
}

#[tokio::test]
async fn a_lost_table_is_filled_anew() {
    let (world, client) = with_history(20, "redis,bigquery").await;
    let running = world.start().await;
    world.insert_events(20).await;
    bigquery_has_stream(&world, 20).await;
    world.bigquery(&format!("DROP TABLE {}.engagement_events", world.dataset)).await;
    world.insert_events(10).await;
    wait_until("BigQuery is told to have lost its data", async || {
        running.sink("bigquery").await["last_error_code"] == "WC-402"
    })
    .await;
    world.walcast(["rebuild", "bigquery", "--yes"]).await.expect(0, &["done", "50 rows sent to bigquery"]);
    world.insert_events(10).await;
    bigquery_has(&world, 60).await;
    world.verify().await;
    world.bigquery(&format!("DELETE FROM {}.engagement_events WHERE event_id = 3", world.dataset)).await;
    world.walcast(["verify"]).await.expect(2, &["bigquery", "event 3"]);
    // rows that are there are taken out, not doubled
    world.walcast(["rebuild", "bigquery", "--yes"]).await.expect(0, &["done", "60 rows sent to bigquery"]);
    bigquery_has(&world, 60).await;
    world.verify().await;
    is_done(&client).await;
    running.stop().await;
}

/// Whoever is killed at whatever step, under load: every row once.
async fn a_crash_at_any_step_loses_and_doubles_nothing(sinks: &str, sink: &str, steps: &[&str]) {
    let (world, client) = with_history(5_000, sinks).await;
    let running = world.start().await;
    world.insert_events(1_000).await;
    let end = world.wal_end().await;
    wait_until("all is confirmed", async || world.confirmed_lsn().await >= end).await;
    running.stop().await;
    world.walcast(["rebuild", sink, "--yes", "--detach"]).await.expect(0, &["walcast backfill status"]);
    let mut events = 6_000;
    for step in steps {
        let mut crashes = world.with("FAILPOINTS", step).spawn();
        world.insert_events(10).await;
        events += 10;
        assert_eq!(crashes.ended().await, None, "{step} is not reached: {}", crashes.log.lock().await);
    }
    let running = world.start().await;
    is_done(&client).await;
    world.insert_events(10).await;
    events += 10;
    match sink {
        "kafka" => kafka_has(&world, events).await,
        _ => bigquery_has(&world, events).await,
    }
    world.no_lane_is_left().await;
    world.verify().await;
    running.stop().await;
}

#[tokio::test]
async fn a_crash_while_kafka_is_filled_anew_loses_and_doubles_nothing() {
    let steps = [
        "lane_before_record=return",
        "lane_after_copy=return",
        "lane_after_open=return",
        "rebuild_before_step=return",
        "rebuild_after_step=return",
        "content_after_commit=return",
        "kafka_before_empty=return",
        "kafka_after_empty=return",
        "anew_before_begun=return",
        "rebuild_before_step=return",
        "rebuild_after_step=return",
        "lane_joining=return",
        "lane_before_drop=return",
        "backfill_after_snapshot=return",
        "backfill_before_commit=return",
        "backfill_after_commit=return",
    ];
    a_crash_at_any_step_loses_and_doubles_nothing("kafka,redis", "kafka", &steps).await;
}

#[tokio::test]
async fn a_crash_while_bigquery_is_filled_anew_loses_and_doubles_nothing() {
    let steps = [
        "bigquery_before_empty=return",
        "bigquery_after_empty=return",
        "anew_before_begun=return",
        "rebuild_before_step=return",
        "backfill_after_commit=return",
    ];
    a_crash_at_any_step_loses_and_doubles_nothing("redis,bigquery", "bigquery", &steps).await;
}

/// What Redis counts is counted anew while Kafka goes on, with what was there before if that is asked for.
#[tokio::test]
async fn redis_is_counted_anew_and_the_other_sinks_go_on() {
    let (world, client) = with_history(20, "kafka,redis").await;
    let hold = Hold::open();
    let running = world.with("FAILPOINTS", &hold.at("redis_rebuild_after_clear")).start().await;
    world.insert_events(20).await;
    wait_until("Redis has all", async || world.redis_plays().await == 20).await;
    let mut redis = world.redis().await;
    let mine: Vec<String> = redis::cmd("KEYS").arg("engagement:*:20*").query_async(&mut redis).await.unwrap();
    let _: i64 =
        redis::cmd("HINCRBY").arg(&mine[0]).arg("plays").arg(7).query_async(&mut redis).await.unwrap();
    world.walcast(["verify"]).await.expect(2, &["redis: different"]);
    hold.close();
    world.walcast(["rebuild", "redis", "--detach"]).await.expect(0, &["walcast backfill status"]);
    hold.reached().await;
    world.insert_events(10).await;
    wait_until("Kafka goes on", async || ids(&world).await.len() == 30).await;
    world.walcast(["backfill", "status"]).await.expect(0, &["events counted for redis"]);
    world.walcast(["backfill", "cancel"]).await.expect(2, &["WC-254", "is being emptied"]);
    world.walcast(["rebuild", "redis"]).await.expect(2, &["another backfill is open"]);
    world
        .walcast(["verify", "--wait-seconds", "1"])
        .await
        .expect(1, &["WC-341", "redis is being filled anew"]);
    hold.release();
    is_done(&client).await;
    world.walcast(["backfill", "status"]).await.expect(0, &["redis holds 20 events, counted anew"]);
    wait_until("Redis has what came meanwhile", async || world.redis_plays().await == 30).await;
    world.verify().await;
    // the rows of before count from now on, and so they do after whatever comes
    for rebuild in [&["rebuild", "redis", "--with-history"][..], &["rebuild", "redis"]] {
        world.walcast(rebuild.iter().copied()).await.expect(0, &["redis holds 50 events, counted anew"]);
        world.insert_events(1).await;
        run(&client, "DELETE FROM engagement_events WHERE id = (SELECT max(id) FROM engagement_events)")
            .await;
        wait_until("Redis is fed again", async || world.redis_plays().await == 51).await;
    }
    world.no_lane_is_left().await;
    running.stop().await;
}

#[tokio::test]
async fn a_crash_while_redis_is_counted_anew_loses_and_doubles_nothing() {
    let (world, client) = with_history(5_000, "kafka,redis").await;
    let steps = [
        "lane_before_record",
        "lane_after_copy",
        "lane_after_open",
        "redis_rebuild_after_begin",
        "redis_rebuild_after_clear",
        "redis_rebuild_after_write",
        "redis_rebuild_before_checkpoint",
        "redis_rebuild_after_checkpoint",
        "recount_before_commit",
        "lane_joining",
        "lane_before_drop",
    ];
    let running = world.start().await;
    world.insert_events(1_000).await;
    wait_until("Redis has all", async || world.redis_plays().await == 1_000).await;
    world.walcast(["rebuild", "redis", "--with-history", "--detach"]).await.expect(0, &[]);
    // what it has begun is done by the next
    running.kill().await;
    let mut events = 6_000;
    for step in steps {
        let mut crashes = world.with("FAILPOINTS", &format!("{step}=return")).spawn();
        world.insert_events(10).await;
        events += 10;
        assert_eq!(crashes.ended().await, None, "{step} is not reached: {}", crashes.log.lock().await);
    }
    let running = world.start().await;
    is_done(&client).await;
    world.insert_events(10).await;
    wait_until("Redis has all", async || world.redis_plays().await == events + 10).await;
    world.no_lane_is_left().await;
    world.verify().await;
    running.stop().await;
}

/// The walcast that runs is not the one that was meant: it says so, and goes on.
#[tokio::test]
async fn a_sink_that_the_running_walcast_does_not_have_is_told() {
    let (world, client) = with_history(10, "kafka,redis").await;
    let running = world.with("PIPELINE_SINKS", "redis").start().await;
    world.walcast(["rebuild", "kafka", "--yes", "--detach"]).await.expect(0, &[]);
    let told = "kafka is to be filled anew, and this walcast does not have it";
    wait_until("it is told", async || running.log.lock().await.contains(told)).await;
    world.insert_events(10).await;
    wait_until("Redis has all", async || world.redis_plays().await == 10).await;
    assert!(!running.log.lock().await.contains("WC-306"), "it did not begin again");
    running.stop().await;
    let running = world.start().await;
    is_done(&client).await;
    kafka_has(&world, 20).await;
    running.stop().await;
}

/// With no other sink to go on, walcast begins again with it, and one that has ended begins with it.
#[tokio::test]
async fn the_only_sink_is_filled_anew() {
    let (world, client) = with_history(20, "kafka").await;
    let running = world.start().await;
    world.insert_events(20).await;
    wait_until("Kafka has what came", async || ids(&world).await.len() == 20).await;
    world.walcast(["rebuild", "kafka", "--yes"]).await.expect(0, &["done", "40 rows sent to kafka"]);
    assert!(running.log.lock().await.contains("WC-306"), "it began again");
    world.insert_events(10).await;
    kafka_has(&world, 50).await;
    world.verify().await;
    let mut running: Running = running;
    world.delete_topic("events").await;
    world.insert_events(10).await;
    assert_eq!(running.ended().await, Some(4), "{}", running.log.lock().await);
    world.walcast(["rebuild", "kafka", "--yes", "--detach"]).await.expect(0, &[]);
    let running = world.start().await;
    is_done(&client).await;
    kafka_has(&world, 60).await;
    world.verify().await;
    running.stop().await;
}

#[tokio::test]
async fn redis_alone_is_counted_anew() {
    let (world, _client) = with_history(20, "redis").await;
    let running = world.start().await;
    world.insert_events(20).await;
    wait_until("Redis has what came", async || world.redis_plays().await == 20).await;
    let redis = ["rebuild", "redis", "--with-history"];
    world.walcast(redis).await.expect(0, &["redis holds 40 events, counted anew"]);
    world.insert_events(10).await;
    wait_until("Redis has all", async || world.redis_plays().await == 50).await;
    world.verify().await;
    running.stop().await;
}

/// So many rows were refused, and are told.
async fn letters(client: &Client, count: i64) {
    let query = "SELECT count(*) FROM walcast.dead_letter";
    wait_until("rows are refused", async || {
        client.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == count
    })
    .await;
}

/// A part of the rows; what is refused stays refused, what was mended comes as it was mended, and it cannot be left halfway.
#[tokio::test]
async fn rows_come_as_they_went_out() {
    let (world, client) = with_history(0, "kafka,redis").await;
    let running = world.start().await;
    world.insert_events(20).await;
    kafka_has(&world, 20).await;
    let bad = "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
               SELECT id, 'play', now(), -1 FROM content LIMIT 1";
    run(&client, bad).await;
    letters(&client, 1).await;
    world
        .walcast(["dead-letters", "replay", "--since", "1d", "--set", "duration_ms=777"])
        .await
        .expect(0, &["1 dead"]);
    kafka_has(&world, 21).await;
    run(&client, bad).await;
    letters(&client, 2).await;
    world.walcast(["rebuild", "kafka", "--yes"]).await.expect(0, &["done", "21 rows"]);
    kafka_has(&world, 21).await;
    let events = world.kafka_events().await;
    let mended = events.iter().find(|event| event["event_id"] == 21).unwrap();
    assert_eq!(mended["duration_ms"], 777);
    world.verify().await;
    letters(&client, 2).await;
    run(
        &client,
        "UPDATE engagement_events SET event_ts = timestamptz '2026-01-01 00:00:00Z' + id * interval '1 day' WHERE id <= 20",
    )
    .await;
    let since = ["rebuild", "kafka", "--since", "2026-01-11T00:00:00Z", "--yes"];
    world.walcast(since).await.expect(0, &["done", "12 rows"]);
    world.insert_events(1).await;
    wait_until("Kafka has all", async || ids(&world).await.len() == 13).await;
    assert!(ids(&world).await.into_iter().all(|id| id >= 10));
    world.verify().await;
    running.stop().await;
    world.walcast(["rebuild", "bigquery", "--yes"]).await.expect(2, &["WC-254", "pipeline.sinks"]);
    world.walcast(["rebuild", "kafka", "--yes", "--detach"]).await.expect(0, &[]);
    world.walcast(["backfill", "cancel"]).await.expect(2, &["WC-254", "is being emptied"]);
    world.walcast(["backfill", "status"]).await.expect(0, &["kafka, which is to be emptied"]);
    world
        .walcast(["verify", "--wait-seconds", "1"])
        .await
        .expect(1, &["WC-341", "kafka is being filled anew"]);
}

/// A commit is in the WAL before others see it: whoever was writing when the sink stopped is waited for, and told.
#[tokio::test]
async fn a_transaction_that_writes_is_waited_for_and_told() {
    let (world, client) = with_history(20, "kafka").await;
    let running = world.start().await;
    world.insert_events(10).await;
    kafka_has_stream(&world, 10).await;
    let mut writes = sql::connect(&world.postgres).await.unwrap();
    let pid: i32 = writes.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let writing = writes.transaction().await.unwrap();
    writing
        .batch_execute("INSERT INTO engagement_events (event_type, event_ts) VALUES ('play', now())")
        .await
        .unwrap();
    world.walcast(["rebuild", "kafka", "--yes", "--detach"]).await.expect(0, &[]);
    let told = async || world.walcast(["backfill", "status"]).await.output;
    wait_until("it is told", async || told().await.contains(&format!("pid {pid} for "))).await;
    assert!(told().await.contains("0 of about"), "nothing was read");
    writing.commit().await.unwrap();
    is_done(&client).await;
    kafka_has(&world, 31).await;
    assert!(!told().await.contains("pid"));
    world.verify().await;
    running.stop().await;
}

/// What the stream brings after `walcast init`.
async fn kafka_has_stream(world: &World, events: usize) {
    wait_until("Kafka has all", async || ids(world).await.len() == events).await;
}
