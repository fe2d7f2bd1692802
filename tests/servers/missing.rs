//! A sink that keeps what it holds is brought what it lacks, and nothing else: `walcast rebuild … --missing`, and `walcast resync`
//! after a lost slot.

use std::collections::BTreeSet;

use tokio_postgres::Client;
use walcast::source::sql;

use crate::rebuild::{is_done, kafka_has, with_history};
use crate::support::http_server::HttpServer;
use crate::support::world::World;
use crate::support::{fresh_database, postgres, run, wait_until};

/// Kafka and BigQuery have these events, each once.
async fn have(world: &World, ids: impl IntoIterator<Item = i64>) {
    let ids: Vec<i64> = ids.into_iter().collect();
    wait_until("Kafka has all", async || world.kafka_ids().await.len() >= ids.len()).await;
    wait_until("BigQuery has all", async || world.bigquery_count().await >= ids.len()).await;
    let sorted = |mut ids: Vec<i64>| {
        ids.sort_unstable();
        ids
    };
    assert_eq!(sorted(world.kafka_ids().await), ids, "Kafka");
    assert_eq!(sorted(world.bigquery_ids().await), ids, "BigQuery");
}

async fn lose_slot(world: &World, client: &Client) {
    run(client, &format!("SELECT pg_drop_replication_slot('{}')", world.postgres.slot)).await;
}

/// Rows were taken out of a table, and a topic is gone. What was never brought to a sink it does not lack.
#[tokio::test]
async fn what_a_table_or_a_topic_lacks_comes_and_nothing_else() {
    let (world, client) = with_history(10, "kafka,redis,bigquery").await;
    let running = world.start().await;
    world.insert_events(20).await;
    world.walcast(["backfill", "--sinks", "kafka"]).await.expect(0, &["10 rows sent to kafka"]);
    kafka_has(&world, 30).await;
    wait_until("BigQuery has what came", async || world.bigquery_count().await == 20).await;
    let table = format!("{}.engagement_events", world.dataset);
    world.bigquery(&format!("DELETE FROM {table} WHERE event_id IN (15, 22, 30)")).await;
    run(&client, "UPDATE content SET title = 'new ' || title").await;
    world.insert_events(5).await;
    wait_until("BigQuery has what came", async || world.bigquery_count().await == 22).await;
    let missing = ["rebuild", "bigquery", "--missing"];
    world.walcast(missing).await.expect(0, &["3 rows sent to bigquery, which lacked them"]);
    let bigquery = || async {
        wait_until("BigQuery has all", async || world.bigquery_count().await >= 25).await;
        let ids: BTreeSet<i64> = world.bigquery_ids().await.into_iter().collect();
        assert_eq!((ids, world.bigquery_count().await), ((11..=35).collect(), 25));
    };
    bigquery().await;
    kafka_has(&world, 35).await;
    world.verify().await;
    world.delete_topic("events").await;
    wait_until("it is told", async || running.sink("kafka").await["last_error_code"] == "WC-402").await;
    world
        .walcast(["rebuild", "kafka", "--missing"])
        .await
        .expect(0, &["35 rows sent to kafka, which lacked them"]);
    kafka_has(&world, 35).await;
    world.verify().await;
    // somebody has deleted records that its retention would have kept
    world.delete_records("events", 16).await;
    world.insert_events(5).await;
    wait_until("Kafka has what came", async || world.kafka_ids().await.len() == 5).await;
    world.walcast(["rebuild", "kafka", "--missing"]).await.expect(0, &["35 rows sent to kafka"]);
    kafka_has(&world, 40).await;
    world.no_lane_is_left().await;
    world.verify().await;
    running.stop().await;
}

/// Rows came, changed and went while there was no slot. What each sink held stays, and it gets what came.
#[tokio::test]
async fn after_a_lost_slot_each_sink_is_brought_what_it_lacks() {
    let (world, client) = with_history(10, "kafka,redis,bigquery").await;
    let running = world.start().await;
    world.insert_events(10).await;
    run(&client, "UPDATE engagement_events SET device = 'other' WHERE id = 12").await;
    run(&client, "DELETE FROM engagement_events WHERE id = 13").await;
    have(&world, 11..=20).await;
    world.all_is_confirmed().await;
    running.stop().await;
    lose_slot(&world, &client).await;
    world.insert_events(5).await;
    run(&client, "DELETE FROM engagement_events WHERE id IN (14, 21)").await;
    run(&client, "UPDATE content SET title = 'new ' || title").await;
    world.walcast(["run"]).await.expect(4, &["WC-410", "walcast resync"]);
    let plan = [
        "a new slot",
        "is gone",
        "kafka keeps what it holds, and is brought what it lacks",
        "redis is filled anew (all that it counts is counted anew)",
        "bigquery keeps what it holds",
        "--yes",
    ];
    world.walcast(["resync"]).await.expect(2, &plan);
    assert!(!world.has_slot().await, "nothing was changed");
    let told = ["rows are looked at for kafka", "redis holds 12 events"];
    world.walcast(["resync", "--yes", "--detach"]).await.expect(0, &told);
    let running = world.start().await;
    is_done(&client).await;
    world.insert_events(3).await;
    have(&world, (11..=20).chain(22..=28)).await;
    wait_until("Redis has all", async || world.redis_plays().await == 15).await;
    world.no_lane_is_left().await;
    world.verify().await;
    let sent =
        "SELECT array_agg(row_count ORDER BY created_at) FROM walcast.backfill WHERE rebuild = 'emptied'";
    let sent: Vec<i64> = client.query_one(sent, &[]).await.unwrap().get(0);
    assert_eq!(sent, [4, 4], "each sink was brought what it lacked");
    world.walcast(["resync"]).await.expect(0, &["there is nothing to do"]);
    running.stop().await;
}

/// Whoever is killed at whatever step of it, what was planned comes to its end.
#[tokio::test]
async fn a_crash_at_any_step_of_it_loses_and_doubles_nothing() {
    let (world, client) = with_history(10, "kafka,redis,bigquery").await;
    let running = world.start().await;
    world.insert_events(20).await;
    have(&world, 11..=30).await;
    running.kill().await;
    lose_slot(&world, &client).await;
    world.insert_events(1_000).await;
    let crashes = async |step: &str, command: &[&str]| {
        let ended =
            world.with("FAILPOINTS", &format!("{step}=return")).walcast(command.iter().copied()).await;
        assert_eq!(ended.code, None, "{step} is not reached: {}", ended.output);
    };
    let resync = ["resync", "--yes", "--detach"];
    crashes("resync_before_slot", &resync).await;
    // what was asked for stands: any start makes the slot now
    crashes("history_id_after_slot", &["run"]).await;
    crashes("history_id_before_ready", &["run"]).await;
    let mut events = 1_030;
    for step in [
        "history_id_after_ready",
        "lane_after_copy",
        "rebuild_after_step",
        "kafka_before_empty",
        "kafka_after_empty",
        "anew_before_begun",
        "rebuild_before_step",
        "backfill_after_snapshot",
        "backfill_before_commit",
        "backfill_after_commit",
        "bigquery_after_empty",
        "backfill_before_commit",
    ] {
        let mut crashes = world.with("FAILPOINTS", &format!("{step}=return")).spawn();
        world.insert_events(10).await;
        events += 10;
        assert_eq!(crashes.ended().await, None, "{step} is not reached: {}", crashes.log.lock().await);
    }
    // Redis alone was not asked for yet
    world.walcast(resync).await.expect(0, &["redis holds"]);
    let running = world.start().await;
    is_done(&client).await;
    world.insert_events(10).await;
    have(&world, 11..=events + 10).await;
    wait_until("Redis has all", async || world.redis_plays().await == events).await;
    world.no_lane_is_left().await;
    world.verify().await;
    running.stop().await;
}

/// Nobody can ask an HTTP target what it has: another sink tells what it has acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn an_http_target_is_sent_what_it_lacks() {
    let target = HttpServer::start().await;
    let world = World::new(fresh_database(postgres()).await).await;
    let world = world.with("HTTP_URL", &target.url()).with("PIPELINE_SINKS", "kafka,http");
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    let running = world.start().await;
    world.insert_events(20).await;
    wait_until("the target has all", async || target.event_ids().len() == 20).await;
    world.all_is_confirmed().await;
    running.stop().await;
    lose_slot(&world, &client).await;
    world.insert_events(5).await;
    world.walcast(["resync"]).await.expect(2, &["http keeps what it holds"]);
    world.walcast(["resync", "--yes", "--detach"]).await.expect(0, &[]);
    let running = world.start().await;
    is_done(&client).await;
    world.insert_events(5).await;
    wait_until("the target has all", async || target.event_ids().len() == 30).await;
    assert_eq!(target.events().len(), 30, "each once");
    kafka_has(&world, 30).await;
    target.check();
    world.verify().await;
    running.stop().await;
    world
        .walcast(["rebuild", "http", "--missing"])
        .await
        .expect(2, &["WC-254", "does not tell what it holds"]);
    // where the one that told is lost, nobody does
    let running = world.start().await;
    world.insert_events(5).await;
    wait_until("the target has all", async || target.event_ids().len() == 35).await;
    world.all_is_confirmed().await;
    running.stop().await;
    lose_slot(&world, &client).await;
    world.delete_topic("events").await;
    let plan = ["kafka keeps what it holds", "http is filled anew"];
    world.walcast(["resync"]).await.expect(2, &plan);
}

/// The target was restored as it was before: it has another beginning of the same events.
#[tokio::test]
async fn a_table_that_was_restored_from_an_older_state_is_brought_the_rest() {
    let (world, client) = with_history(10, "redis,bigquery").await;
    let running = world.start().await;
    world.insert_events(10).await;
    let table = format!("{}.engagement_events", world.dataset);
    wait_until("BigQuery has what came", async || world.bigquery_count().await == 10).await;
    world.bigquery(&format!("CREATE TABLE {}.older AS SELECT * FROM {table}", world.dataset)).await;
    world.insert_events(10).await;
    wait_until("BigQuery has all", async || world.bigquery_count().await == 20).await;
    world.bigquery(&format!("TRUNCATE TABLE {table}")).await;
    world.bigquery(&format!("INSERT INTO {table} SELECT * FROM {}.older", world.dataset)).await;
    world.walcast(["verify"]).await.expect(2, &["bigquery", "missing"]);
    world.walcast(["rebuild", "bigquery", "--missing"]).await.expect(0, &["10 rows sent to bigquery"]);
    wait_until("BigQuery has all", async || world.bigquery_count().await == 20).await;
    world.verify().await;
    is_done(&client).await;
    running.stop().await;
}

/// Kafka was put back to an older copy of its topics.
#[tokio::test]
async fn kafka_from_an_older_copy_is_brought_the_rest() {
    let (world, client) = with_history(10, "kafka,redis").await;
    let topics = ["events", "content", "progress"];
    let mut copies = Vec::new();
    for round in 0..2 {
        let running = world.start().await;
        world.insert_events(10).await;
        world.all_is_confirmed().await;
        running.stop().await;
        for topic in topics.iter().filter(|_| round == 0) {
            copies.extend(world.copy_of_topic(topic).await);
        }
    }
    for topic in topics {
        world.delete_topic(topic).await;
    }
    world.walcast(["init"]).await.expect(0, &[]);
    world.put_back(&copies).await;
    let running = world.start().await;
    wait_until("it is told", async || running.sink("kafka").await["last_error_code"] == "WC-401").await;
    world.insert_events(5).await;
    wait_until("Redis goes on", async || world.redis_plays().await == 25).await;
    world.walcast(["resync"]).await.expect(2, &["kafka keeps what it holds", "WC-255"]);
    world.walcast(["resync", "--yes"]).await.expect(0, &["rows sent to kafka, which lacked them"]);
    is_done(&client).await;
    wait_until("Kafka has all", async || world.kafka_ids().await.len() >= 25).await;
    let mut ids = world.kafka_ids().await;
    ids.sort_unstable();
    assert_eq!(ids, (11..=35).collect::<Vec<_>>());
    world.no_lane_is_left().await;
    world.verify().await;
    running.stop().await;
}

/// Redis was put back to an older copy of its keys.
#[tokio::test]
async fn redis_from_an_older_copy_is_counted_anew() {
    let (world, client) = with_history(10, "kafka,redis").await;
    let mut redis = world.redis().await;
    let mut copies: Vec<(String, i64, Vec<u8>)> = Vec::new();
    for round in 0..2 {
        let running = world.start().await;
        world.insert_events(10).await;
        world.all_is_confirmed().await;
        running.stop().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
        for key in keys.into_iter().filter(|_| round == 0) {
            let ttl = redis::cmd("PTTL").arg(&key).query_async::<i64>(&mut redis).await.unwrap();
            let value = redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.unwrap();
            copies.push((key, ttl.max(0), value));
        }
    }
    let _: () = redis::cmd("FLUSHDB").query_async(&mut redis).await.unwrap();
    for (key, ttl, value) in copies {
        let restore = redis::cmd("RESTORE").arg(key).arg(ttl).arg(value).query_async(&mut redis).await;
        let _: () = restore.unwrap();
    }
    let running = world.start().await;
    wait_until("it is told", async || running.sink("redis").await["last_error_code"] == "WC-401").await;
    world.insert_events(5).await;
    wait_until("Kafka goes on", async || world.kafka_ids().await.len() == 25).await;
    world.walcast(["resync"]).await.expect(2, &["redis is filled anew (all that it counts", "WC-255"]);
    world.walcast(["resync", "--yes"]).await.expect(0, &["redis holds 25 events, counted anew"]);
    is_done(&client).await;
    wait_until("Redis has all", async || world.redis_plays().await == 25).await;
    world.no_lane_is_left().await;
    world.verify().await;
    running.stop().await;
}
