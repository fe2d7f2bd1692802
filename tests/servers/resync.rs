//! Disasters, and the one command that mends what they leave: `walcast resync`.

use tokio_postgres::Client;
use walcast::source::sql;

use crate::rebuild::{bigquery_has, is_done, kafka_has, with_history};
use crate::support::hold::Hold;
use crate::support::world::World;
use crate::support::{fresh_database, run, services, wait_until};

async fn redis_has(world: &World, events: i64) {
    wait_until("Redis has all", async || world.redis_plays().await == events).await;
}

/// All three sinks have the events 1 to `events`, and `verify` agrees.
async fn all_have(world: &World, client: &Client, events: i64) {
    is_done(client).await;
    kafka_has(world, events).await;
    bigquery_has(world, events).await;
    redis_has(world, events).await;
    world.no_lane_is_left().await;
    world.verify().await;
}

/// What was streamed is in all three.
async fn streamed(world: &World, events: i64) {
    let running = world.start().await;
    world.insert_events(events).await;
    world.all_is_confirmed().await;
    running.stop().await;
}

/// The new slot's stream, with three rows more.
async fn goes_on(world: &World, client: &Client, events: i64) {
    let running = world.start().await;
    world.insert_events(3).await;
    all_have(world, client, events + 3).await;
    world.walcast(["resync"]).await.expect(0, &["there is nothing to do"]);
    running.stop().await;
}

/// Nothing of before counts if that is asked for, however often walcast had been started.
#[tokio::test]
async fn with_a_new_slot_that_is_asked_for_every_sink_gets_what_is_there() {
    let (world, client) = with_history(10, "kafka,redis,bigquery").await;
    for _ in 0..3 {
        streamed(&world, 5).await;
    }
    run(&client, &format!("SELECT pg_drop_replication_slot('{}')", world.postgres.slot)).await;
    world.insert_events(5).await;
    world.walcast(["run"]).await.expect(4, &["WC-410", "walcast resync"]);
    let plan = [
        "a new slot",
        "is gone",
        "kafka is filled anew (all records of topic",
        "redis is filled anew",
        "WC-255",
        "--yes",
    ];
    world.walcast(["resync", "--new-slot"]).await.expect(2, &plan);
    assert!(!world.has_slot().await, "nothing was changed");
    world
        .walcast(["resync", "--new-slot", "--yes", "--detach"])
        .await
        .expect(0, &["redis holds 30 events", "rows come to bigquery"]);
    world.walcast(["backfill", "status"]).await.expect(0, &["running", "waiting"]);
    goes_on(&world, &client, 30).await;
}

/// A supervisor has started walcast again before all was asked for: Redis counts the rows that were there all the same.
#[tokio::test]
async fn a_walcast_that_is_back_at_once_counts_all_rows() {
    let (world, client) = with_history(10, "kafka,redis,bigquery").await;
    streamed(&world, 10).await;
    run(&client, &format!("SELECT pg_drop_replication_slot('{}')", world.postgres.slot)).await;
    let hold = Hold::closed();
    let held = world.with("FAILPOINTS", &hold.at("resync_before_ask"));
    let resync =
        tokio::spawn(async move { held.walcast(["resync", "--new-slot", "--yes", "--detach"]).await });
    hold.reached().await;
    let running = world.start().await;
    hold.release();
    resync.await.unwrap().expect(0, &["rows come to redis"]);
    world.insert_events(3).await;
    all_have(&world, &client, 23).await;
    running.stop().await;
}

/// With the schema all is gone that walcast knew; nobody knows whose the slot is.
#[tokio::test]
async fn a_lost_schema_is_made_anew() {
    let (world, client) = with_history(10, "kafka,redis,bigquery").await;
    streamed(&world, 10).await;
    run(&client, "DROP SCHEMA walcast CASCADE").await;
    world.walcast(["run"]).await.expect(2, &["walcast init"]);
    world.walcast(["resync"]).await.expect(2, &["a new slot", "lost with the schema walcast", "WC-255"]);
    world.walcast(["resync", "--yes"]).await.expect(2, &["WC-204", "CREATE SCHEMA walcast"]);
    assert!(world.has_slot().await, "nothing was changed");
    let owner = world.with("POSTGRES_USER", &world.postgres.user);
    owner.walcast(["resync", "--yes", "--detach"]).await.expect(0, &["redis holds 20 events"]);
    goes_on(&world, &client, 20).await;
}

/// The snapshot of a disk is put back: the sinks hold a future that never was, and other events get the ids of those in it.
#[tokio::test]
async fn after_postgresql_was_restored_the_sinks_hold_what_it_has() {
    let server = services::postgres("18:resync", &[]);
    let copy = |to, from| {
        services::command(&["postgres", "18:resync", "down"]);
        services::command(&["postgres", to, "copy", from]);
        services::postgres("18:resync", &[]);
    };
    let world = World::new(fresh_database(server).await).await.with("BIGQUERY_COMMIT_SECONDS", "1");
    world.walcast(["init"]).await.expect(0, &[]);
    streamed(&world, 20).await;
    copy("18:resync-backup", "18:resync");
    let client = sql::connect(&world.postgres).await.unwrap();
    // further than a server's own doings could take it
    run(&client, "SELECT pg_switch_wal()").await;
    streamed(&world, 15).await;
    drop(client);
    copy("18:resync", "18:resync-backup");
    world.walcast(["check"]).await.expect(2, &["WC-405", "kafka holds everything up to", "walcast resync"]);
    world.walcast(["run"]).await.expect(4, &["walcast resync"]);
    world.insert_events(5).await;
    let plan =
        ["a new slot", "this server was restored from an older state", "kafka is filled anew", "WC-255"];
    world.walcast(["resync"]).await.expect(2, &plan);
    world.walcast(["resync", "--yes", "--detach"]).await.expect(0, &["redis holds 25 events"]);
    let client = sql::connect(&world.postgres).await.unwrap();
    goes_on(&world, &client, 25).await;
    drop((world, client));
    services::command(&["postgres", "18:resync", "wipe"]);
    services::command(&["postgres", "18:resync-backup", "wipe"]);
}

/// Two sinks have lost their data while walcast runs: the third goes on, and one command mends both.
#[tokio::test]
async fn several_lost_sinks_are_filled_anew_one_after_the_other() {
    let (world, client) = with_history(10, "kafka,redis,bigquery").await;
    let running = world.start().await;
    world.insert_events(10).await;
    bigquery_has_stream(&world, 10).await;
    let mut redis = world.redis().await;
    let _: () = redis::cmd("FLUSHDB").query_async(&mut redis).await.unwrap();
    world.delete_topic("events").await;
    world.insert_events(5).await;
    for sink in ["kafka", "redis"] {
        wait_until("it is told", async || running.sink(sink).await["last_error_code"] == "WC-402").await;
    }
    let plan = ["kafka keeps what it holds", "redis is filled anew", "WC-255"];
    world.walcast(["resync"]).await.expect(2, &plan);
    let told = ["15 rows sent to kafka, which lacked them", "redis holds 15 events"];
    world.walcast(["resync", "--yes"]).await.expect(0, &told);
    bigquery_has_stream(&world, 15).await;
    is_done(&client).await;
    wait_until("Kafka has all", async || world.kafka_ids().await.len() >= 15).await;
    let mut ids = world.kafka_ids().await;
    ids.sort_unstable();
    assert_eq!(ids, (11..=25).collect::<Vec<_>>(), "what the stream had brought");
    redis_has(&world, 15).await;
    world.no_lane_is_left().await;
    world.verify().await;
    running.stop().await;
}

/// What the stream brings after `walcast init`.
async fn bigquery_has_stream(world: &World, events: i64) {
    wait_until("BigQuery has all", async || world.bigquery_count().await as i64 == events).await;
}
