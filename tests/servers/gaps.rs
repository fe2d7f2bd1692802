//! Where what the sinks hold and what the slot can still deliver do not meet, walcast stops with exit code 4: it
//! says so within ten seconds, with both positions and what mends it, and no event is skipped in silence.

use crate::support::services;
use std::time::{Duration, Instant};

use crate::support::pair::Pair;
use crate::support::running::Running;
use crate::support::world::World;
use crate::support::{self, fresh_database, run, wait_until};
use tokio_postgres::Client;
use walcast::lsn::{Checkpoint, Lsn, ORDINAL_RULE, Position, StoredCheckpoint};
use walcast::source::{PostgresConfig, sql};

/// How soon a fault that can be noticed must have ended the process.
const SOON: Duration = Duration::from_secs(10);

/// The process ends soon with exit code 4, and says these words.
async fn ends_in_a_resync(mut running: Running, words: &[&str]) {
    let begun = Instant::now();
    let code = running.ended().await;
    let took = begun.elapsed();
    let log = running.log.lock().await;
    assert_eq!(code, Some(4), "{log}");
    for word in words {
        assert!(log.contains(word), "no {word:?} in: {log}");
    }
    assert!(took <= SOON, "it took {took:?}");
}

/// A start ends soon with exit code 4, and says these words.
async fn start_ends_in_a_resync(world: &World, words: &[&str]) {
    ends_in_a_resync(world.spawn(), words).await;
}

/// Ends whoever reads the slot, and runs a statement before it can be back.
async fn cut_off_and(client: &Client, world: &World, statement: &str) {
    let slot = &world.postgres.slot;
    let cut = format!(
        "DO $$ BEGIN
           PERFORM pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active;
           {statement};
         END $$"
    );
    // a walcast that was faster than the statement is cut off again
    wait_until("the slot is free for it", async || client.batch_execute(&cut).await.is_ok()).await;
}

/// A world on a database of its own with only these sinks, after `walcast init`.
async fn world_of(server: PostgresConfig, sinks: &str) -> World {
    let world = World::new(fresh_database(server).await).await.with("PIPELINE_SINKS", sinks);
    world.walcast(["init"]).await.expect(0, &[]);
    world
}

/// Waits until Kafka has so many events.
async fn kafka_has(world: &World, events: usize) {
    wait_until("Kafka has all", async || world.kafka_events().await.len() >= events).await;
}

/// Waits until Redis has counted so many events.
async fn redis_has(world: &World, events: i64) {
    wait_until("Redis has all", async || world.redis_plays().await >= events).await;
}

/// Starts walcast, and lets it bring ten events to Redis.
async fn streaming_to_redis(world: &World) -> Running {
    let running = world.start().await;
    let before = world.redis_plays().await;
    world.insert_events(10).await;
    redis_has(world, before + 10).await;
    running
}

/// Starts walcast, and lets it bring ten events to Kafka.
async fn streaming_to_kafka(world: &World) -> Running {
    let running = world.start().await;
    let before = world.kafka_events().await.len();
    world.insert_events(10).await;
    kafka_has(world, before + 10).await;
    running
}

#[tokio::test]
async fn a_slot_dropped_while_down_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    streaming_to_redis(&world).await.stop().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, &format!("SELECT pg_drop_replication_slot('{}')", world.postgres.slot)).await;
    start_ends_in_a_resync(
        &world,
        &["WC-410", "is gone", "it began at", "WAL is at", "DELETE FROM walcast.slot", "walcast init"],
    )
    .await;
    assert!(!world.has_slot().await, "a slot is never made again in silence");
}

#[tokio::test]
async fn a_slot_dropped_while_running_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    let running = streaming_to_redis(&world).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let drop = format!("PERFORM pg_drop_replication_slot('{}')", world.postgres.slot);
    cut_off_and(&client, &world, &drop).await;
    ends_in_a_resync(
        running,
        &["WC-410", "is gone", "it began at", "WAL is at", "DELETE FROM walcast.slot", "walcast init"],
    )
    .await;
    assert!(!world.has_slot().await, "a slot is never made again in silence");
}

/// As dump and restore leave it: the state of one cluster in a database of another.
#[tokio::test]
async fn state_of_another_cluster_is_refused() {
    let origin = world_of(support::postgres(), "redis").await;
    streaming_to_redis(&origin).await.stop().await;
    let there = sql::connect(&origin.postgres).await.unwrap();
    let row: String = {
        let history_id = "SELECT to_jsonb(entry)::text FROM walcast.slot AS entry";
        there.query_one(history_id, &[]).await.unwrap().get(0)
    };
    for with_slot in [false, true] {
        let world = world_of(services::postgres("17", &[]), "redis").await;
        let here = sql::connect(&world.postgres).await.unwrap();
        run(&here, "DELETE FROM walcast.slot").await;
        let restore = "INSERT INTO walcast.slot SELECT (jsonb_populate_record(NULL::walcast.slot,
                         jsonb_set($1::text::jsonb, '{slot}', to_jsonb($2::text)))).*";
        here.execute(restore, &[&row, &world.postgres.slot]).await.unwrap();
        if !with_slot {
            run(&here, &format!("SELECT pg_drop_replication_slot('{}')", world.postgres.slot)).await;
        }
        let systems: Vec<String> = {
            let id = "SELECT system_identifier::text FROM pg_control_system()";
            let ask = async |client: &Client| client.query_one(id, &[]).await.unwrap().get(0);
            vec![ask(&there).await, ask(&here).await]
        };
        let words =
            ["WC-414", systems[0].as_str(), &systems[1], "restored from another cluster", "walcast init"];
        start_ends_in_a_resync(&world, &words).await;
    }
}

/// Goes on to the next segment of the WAL, 16 MB each.
async fn next_segment(client: &Client) {
    run(client, "SELECT pg_logical_emit_message(true, 'other', repeat('x', 1000)), pg_switch_wal()").await;
}

/// Writes WAL until the server forgets what slots before it still need.
async fn outrun(client: &Client) {
    for _ in 0..6 {
        next_segment(client).await;
    }
    run(client, "CHECKPOINT").await;
}

#[tokio::test]
async fn a_slot_that_lost_its_wal_is_a_gap() {
    let settings = ["max_slot_wal_keep_size=32MB", "max_wal_size=64MB", "min_wal_size=32MB"];
    let server = services::postgres("18:outrun", &settings);
    let words =
        ["WC-411", "wal_removed", "raise max_slot_wal_keep_size", "pg_drop_replication_slot", "walcast init"];

    let world = world_of(server.clone(), "redis").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    streaming_to_redis(&world).await.stop().await;
    outrun(&client).await;
    start_ends_in_a_resync(&world, &words).await;

    let world = world_of(server, "redis").await;
    let running = streaming_to_redis(&world).await;
    // an open transaction holds the slot back, however much of it is confirmed
    let holding = sql::connect(&world.postgres).await.unwrap();
    run(&holding, "BEGIN; CREATE TABLE held_back (i INT)").await;
    outrun(&client).await;
    ends_in_a_resync(running, &words).await;
    services::command(&["postgres", "18:outrun", "down"]);
}

/// As the snapshot of a disk leaves it: the same cluster and timeline, some time ago.
#[tokio::test]
async fn a_server_restored_from_an_older_state_is_told() {
    let server = services::postgres("18:restored", &[]);
    let copy = |to, from| {
        services::command(&["postgres", "18:restored", "down"]);
        services::command(&["postgres", to, "copy", from]);
        services::postgres("18:restored", &[]);
    };
    let kafka = world_of(server.clone(), "kafka").await;
    let redis = world_of(server, "redis").await;
    streaming_to_kafka(&kafka).await.stop().await;
    streaming_to_redis(&redis).await.stop().await;
    copy("18:backup", "18:restored");
    // further than a server's own doings, its autovacuum's above all, could take it
    next_segment(&sql::connect(&kafka.postgres).await.unwrap()).await;
    streaming_to_kafka(&kafka).await.stop().await;
    for _ in 0..2 {
        streaming_to_redis(&redis).await.stop().await;
    }
    copy("18:restored", "18:backup");
    start_ends_in_a_resync(&kafka, &["WC-405", "kafka holds everything up to", "WAL ends at", "older state"])
        .await;
    // its fence remembers an instance that PostgreSQL has forgotten
    start_ends_in_a_resync(&redis, &["WC-408", "older state", "token 3"]).await;
    // Once other rows lie where the lost ones were, and beyond, the stream shows it.
    kafka.insert_events(10).await;
    let client = sql::connect(&kafka.postgres).await.unwrap();
    next_segment(&client).await;
    next_segment(&client).await;
    kafka.insert_events(10).await;
    let events = kafka.kafka_events().await.len();
    for _ in 0..2 {
        start_ends_in_a_resync(&kafka, &["WC-405", "kafka holds a last row at", "WAL has none there"]).await;
    }
    assert_eq!(kafka.kafka_events().await.len(), events, "nothing follows what was lost");
    drop((kafka, redis));
    services::command(&["postgres", "18:restored", "wipe"]);
    services::command(&["postgres", "18:backup", "wipe"]);
}

#[tokio::test]
async fn after_a_failover_to_a_level_standby_walcast_goes_on() {
    let pair = Pair::new("level").await;
    let world = world_of(pair.primary.clone(), "kafka,redis,bigquery").await;
    let running = world.start().await;
    world.insert_events(10).await;
    pair.synced(&world).await;
    world.wait_until_all_hold(10).await;
    running.stop().await;
    pair.level(&world).await;
    pair.kill_primary();
    let world = pair.after(&world);
    let waiting = world.spawn();
    waiting.wait_until_told("WC-302").await;
    pair.promote().await;
    waiting.wait_until_streaming().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(20).await;
    waiting.stop().await;
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(30).await;
    running.stop().await;
    drop(world);
    pair.wipe();
}

#[tokio::test]
async fn a_standby_promoted_while_behind_a_sink_is_a_gap() {
    let pair = Pair::new("behind").await;
    let kafka = world_of(pair.primary.clone(), "kafka").await;
    let bigquery = world_of(pair.primary.clone(), "bigquery").await;
    // BigQuery comes to it when the standby hears no more, not of its first checkpoint either
    let fresh = world_of(pair.primary.clone(), "bigquery").await;
    let without = fresh.with("PIPELINE_SINKS", "null").start().await;
    let running = [streaming_to_kafka(&kafka).await, bigquery.start().await];
    bigquery.insert_events(10).await;
    for world in [&kafka, &bigquery, &fresh] {
        pair.synced(world).await;
    }
    without.stop().await;
    // stopped: one that only pauses replays before its promotion what it has received
    services::command(&["postgres", &pair.labels[1], "down"]);
    kafka.insert_events(10).await;
    bigquery.insert_events(10).await;
    let fresh_running = fresh.start().await;
    fresh.insert_events(10).await;
    kafka_has(&kafka, 20).await;
    wait_until("BigQuery has all", async || bigquery.bigquery_ids().await.len() == 20).await;
    wait_until("BigQuery has all", async || fresh.bigquery_ids().await.len() == 10).await;
    for running in running.into_iter().chain([fresh_running]) {
        running.kill().await;
    }
    pair.kill_primary();
    services::postgres(&pair.labels[1], &[]);
    pair.promote().await;
    for again in [false, true] {
        let words =
            ["WC-404", "kafka holds", "of timeline 1", "on timeline 2, left at", "lost in the failover"];
        start_ends_in_a_resync(&pair.after(&kafka), &words).await;
        let words = ["WC-404", "bigquery holds events up to", "on timeline 2, left at", "DELETE FROM"];
        start_ends_in_a_resync(&pair.after(&bigquery), &words).await;
        start_ends_in_a_resync(&pair.after(&fresh), &words).await;
        assert!(again || pair.after(&kafka).has_slot().await);
    }
    drop((kafka, bigquery, fresh));
    pair.wipe();
}

#[tokio::test]
async fn a_publication_dropped_while_streaming_is_a_gap() {
    for version in ["16", "18"] {
        for with_rows in [true, false] {
            let world = world_of(services::postgres(version, &[]), "redis").await;
            let running = streaming_to_redis(&world).await;
            let client = sql::connect(&world.postgres).await.unwrap();
            run(&client, &format!("DROP PUBLICATION {}", world.postgres.publication)).await;
            let before = world.wal_end().await;
            if with_rows {
                world.insert_events(1).await;
            }
            ends_in_a_resync(running, &["publication", &world.postgres.publication]).await;
            assert!(!with_rows || world.confirmed_lsn().await <= before, "a row was skipped on {version}");
            start_ends_in_a_resync(&world, &["dropped", "DELETE FROM walcast.slot", "walcast init"]).await;
        }
    }
}

#[tokio::test]
async fn a_table_taken_out_of_the_publication_while_streaming_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    let running = streaming_to_redis(&world).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let publication = &world.postgres.publication;
    run(&client, &format!("ALTER PUBLICATION {publication} DROP TABLE engagement_events")).await;
    ends_in_a_resync(running, &["engagement_events", "may be missing", "ADD TABLE"]).await;
}

/// Between two looks, or while walcast is down: the rows of that while are in no stream.
#[tokio::test]
async fn a_table_taken_out_of_the_publication_for_a_moment_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    let running = streaming_to_redis(&world).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let publication = &world.postgres.publication;
    let moment = async {
        run(&client, &format!("ALTER PUBLICATION {publication} DROP TABLE engagement_events")).await;
        world.insert_events(1).await;
        run(&client, &format!("ALTER PUBLICATION {publication} ADD TABLE engagement_events")).await;
    };
    moment.await;
    // a look may fall into that very moment
    ends_in_a_resync(running, &["publication", publication]).await;
    start_ends_in_a_resync(&world, &["WC-413", "put back", "DELETE FROM walcast.slot", "walcast init"]).await;

    let world = world_of(support::postgres(), "redis").await;
    streaming_to_redis(&world).await.stop().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let publication = &world.postgres.publication;
    run(&client, &format!("ALTER PUBLICATION {publication} DROP TABLE content")).await;
    run(&client, &format!("ALTER PUBLICATION {publication} ADD TABLE content")).await;
    start_ends_in_a_resync(&world, &["WC-413", "put back", "DELETE FROM walcast.slot", "walcast init"]).await;
}

#[tokio::test]
async fn a_redis_emptied_while_running_or_down_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    let running = streaming_to_redis(&world).await;
    let empty = async || {
        let mut redis = world.redis().await;
        redis::cmd("FLUSHDB").query_async::<()>(&mut redis).await.unwrap();
    };
    let words = ["WC-402", "redis held a checkpoint once and holds none now", "confirmed LSN"];
    empty().await;
    ends_in_a_resync(running, &words).await;
    empty().await;
    start_ends_in_a_resync(&world, &words).await;
    assert_eq!(world.redis_plays().await, 0, "nothing is counted from the middle on");
}

#[tokio::test]
async fn a_progress_topic_deleted_while_down_is_a_gap() {
    let world = world_of(support::postgres(), "kafka").await;
    streaming_to_kafka(&world).await.stop().await;
    world.delete_topic("progress").await;
    start_ends_in_a_resync(&world, &["WC-402", "kafka held a checkpoint once and holds none now"]).await;
}

#[tokio::test]
async fn a_progress_topic_deleted_while_running_is_a_gap() {
    let world = world_of(support::postgres(), "kafka").await;
    let running = streaming_to_kafka(&world).await;
    world.delete_topic("progress").await;
    world.insert_events(10).await;
    ends_in_a_resync(running, &["WC-402", "kafka held a checkpoint once and holds none now", "progress"])
        .await;
    assert_eq!(world.kafka_events().await.len(), 10, "no event without its checkpoint");
    start_ends_in_a_resync(&world, &["WC-402", "kafka held a checkpoint once and holds none now"]).await;
}

/// What walcast says of a topic that is there and empty, or not there, though it held records.
const LOST: [&str; 3] = ["WC-402", "once and holds none now", "docs/operate/resync.md"];

/// The checkpoint lives in another topic, and has not heard of it.
#[tokio::test]
async fn a_topic_deleted_while_down_is_a_gap() {
    for topic in ["events", "content"] {
        let world = world_of(support::postgres(), "kafka").await;
        streaming_to_kafka(&world).await.stop().await;
        world.delete_topic(topic).await;
        let checked = world.walcast(["check"]).await;
        checked.expect(2, &["position of kafka", "WC-402"]);
        let name = format!("{}.{topic}", world.topic_prefix);
        for _ in 0..2 {
            world.insert_events(10).await;
            start_ends_in_a_resync(&world, &[&LOST[..], &[&name]].concat()).await;
        }
        assert_eq!(world.kafka_topic(topic).await.len(), 0, "nothing is written from the middle on");
        // what the hint says
        let fresh = world.with("KAFKA_TOPIC_PREFIX", &support::fresh_name("t"));
        run(&sql::connect(&world.postgres).await.unwrap(), "DELETE FROM walcast.sink WHERE name = 'kafka'")
            .await;
        let running = fresh.start().await;
        running.stop().await;
    }
}

/// Within the time of one transaction, whatever the first one had.
#[tokio::test]
async fn a_topic_made_anew_after_the_first_transaction_is_a_gap() {
    let world = world_of(support::postgres(), "kafka").await;
    let mut running = world.with("FAILPOINTS", "driver_before_register=return").spawn();
    world.insert_events(10).await;
    running.ended().await;
    assert_eq!(world.kafka_events().await.len(), 10, "the first transaction");
    world.delete_topic("events").await;
    world.create_topic("events", 16).await;
    start_ends_in_a_resync(&world, &LOST).await;
}

#[tokio::test]
async fn a_topic_deleted_while_running_is_a_gap() {
    for topic in ["events", "content"] {
        let world = world_of(support::postgres(), "kafka").await;
        let mut running = streaming_to_kafka(&world).await;
        world.delete_topic(topic).await;
        let client = sql::connect(&world.postgres).await.unwrap();
        run(&client, "UPDATE content SET title = title || '.'").await;
        world.insert_events(10).await;
        assert_eq!(running.ended().await, Some(4), "{}", running.log.lock().await);
        let log = running.log.lock().await;
        assert!(LOST.iter().all(|word| log.contains(word)), "{log}");
        start_ends_in_a_resync(&world, &LOST).await;
    }
}

/// Also when nothing is to be written into it.
#[tokio::test]
async fn a_topic_deleted_while_nothing_happens_is_a_gap() {
    let world = world_of(support::postgres(), "kafka").await;
    let mut running = streaming_to_kafka(&world).await;
    world.delete_topic("events").await;
    assert_eq!(running.ended().await, Some(4), "{}", running.log.lock().await);
}

/// Nothing fails then: Kafka takes what is written into it.
#[tokio::test]
async fn a_topic_made_anew_while_running_is_a_gap() {
    let world = world_of(support::postgres(), "kafka").await;
    let mut running = streaming_to_kafka(&world).await;
    world.delete_topic("events").await;
    world.create_topic("events", 16).await;
    let ended = running.ends_within(Duration::from_secs(60)).await;
    let log = running.log.lock().await;
    assert!(ended && LOST.iter().all(|word| log.contains(word)), "{log}");
}

#[tokio::test]
async fn a_topic_that_never_held_a_record_is_made_again_and_dead_letters_are_told() {
    let world = world_of(support::postgres(), "kafka").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let insert = |duration| {
        format!(
            "INSERT INTO engagement_events (event_type, event_ts, duration_ms) VALUES ('play', now(), {duration})"
        )
    };
    let running = world.start().await;
    run(&client, &insert(1)).await;
    run(&client, &insert(-1)).await;
    wait_until("the letter is there", async || world.kafka_topic("dlq").await.len() == 1).await;
    kafka_has(&world, 1).await;
    running.stop().await;
    world.delete_topic("content").await;
    world.delete_topic("dlq").await;
    let running = world.start().await;
    let words = "walcast.dead_letter has what was refused";
    wait_until("it is told", async || running.log.lock().await.contains(words)).await;
    world.insert_events(10).await;
    run(&client, &insert(-1)).await;
    wait_until("the next letter is there", async || world.kafka_topic("dlq").await.len() == 1).await;
    kafka_has(&world, 11).await;
    running.stop().await;
}

/// Starts walcast, and lets it bring ten events to BigQuery.
async fn streaming_to_bigquery(world: &World) -> Running {
    let running = world.start().await;
    let before = world.bigquery_ids().await.len();
    world.insert_events(10).await;
    wait_until("BigQuery has all", async || world.bigquery_ids().await.len() == before + 10).await;
    running
}

async fn bigquery_world() -> World {
    let world = World::new(fresh_database(support::postgres()).await).await;
    let world = world.with("PIPELINE_SINKS", "bigquery").with("BIGQUERY_COMMIT_SECONDS", "1");
    world.walcast(["init"]).await.expect(0, &[]);
    world
}

/// Makes the table as walcast does, and is not this walcast.
async fn make_table_anew(world: &World) {
    let other = World::new(fresh_database(support::postgres()).await).await;
    let other = other.with("PIPELINE_SINKS", "bigquery").with("BIGQUERY_DATASET", &world.dataset);
    other.walcast(["init"]).await.expect(0, &[]);
}

/// Its checkpoint is in PostgreSQL. A table of its name would end BigQuery's own way back to it.
#[tokio::test]
async fn a_table_deleted_or_made_anew_while_down_is_a_gap() {
    let world = bigquery_world().await;
    let table = format!("{}.engagement_events", world.dataset);
    streaming_to_bigquery(&world).await.stop().await;
    world.bigquery(&format!("DROP TABLE {table}")).await;
    let words = ["WC-402", "held events once", "it was deleted", "bq cp", "resync.md"];
    world.walcast(["check"]).await.expect(2, &words[..3]);
    world.walcast(["init"]).await.expect(4, &words);
    for _ in 0..2 {
        world.insert_events(1).await;
        start_ends_in_a_resync(&world, &words).await;
    }
    make_table_anew(&world).await;
    let words = ["WC-402", "held events once", "it was made anew", "bq cp", "resync.md"];
    world.walcast(["check"]).await.expect(2, &words[..3]);
    for _ in 0..2 {
        world.insert_events(1).await;
        start_ends_in_a_resync(&world, &words).await;
    }
    assert_eq!(world.bigquery_ids().await.len(), 0, "nothing is written from the middle on");
}

#[tokio::test]
async fn a_table_made_anew_while_running_is_a_gap() {
    let world = bigquery_world().await;
    let mut running = streaming_to_bigquery(&world).await;
    world.bigquery(&format!("DROP TABLE {}.engagement_events", world.dataset)).await;
    make_table_anew(&world).await;
    world.insert_events(10).await;
    assert_eq!(running.ended().await, Some(4), "{}", running.log.lock().await);
    assert_eq!(world.bigquery_ids().await.len(), 0, "nothing is written from the middle on");
}

#[tokio::test]
async fn a_table_deleted_while_running_is_a_gap() {
    let world = bigquery_world().await;
    let mut running = streaming_to_bigquery(&world).await;
    world.bigquery(&format!("DROP TABLE {}.engagement_events", world.dataset)).await;
    world.insert_events(10).await;
    assert_eq!(running.ended().await, Some(4), "{}", running.log.lock().await);
    assert!(running.log.lock().await.contains("it was deleted"));
}

/// A restored table has another time of making, and all rows: nothing is lost by what the hint says.
#[tokio::test]
async fn a_table_restored_whole_is_gone_on_with() {
    let world = bigquery_world().await;
    let (table, copy) = (format!("{}.engagement_events", world.dataset), format!("{}.kept", world.dataset));
    streaming_to_bigquery(&world).await.stop().await;
    world.bigquery(&format!("CREATE TABLE {copy} AS SELECT * FROM {table}")).await;
    world.bigquery(&format!("DROP TABLE {table}")).await;
    world.insert_events(10).await;
    start_ends_in_a_resync(&world, &["WC-402", "bq cp"]).await;
    make_table_anew(&world).await;
    world.bigquery(&format!("INSERT INTO {table} SELECT * FROM {copy}")).await;
    let running = world.start().await;
    wait_until("BigQuery has all", async || world.bigquery_ids().await.len() == 20).await;
    world.verify().await;
    running.stop().await;
    streaming_to_bigquery(&world).await.stop().await;
}

#[tokio::test]
async fn a_table_that_held_no_event_is_made_again_and_one_whose_rows_were_deleted_is_gone_on_with() {
    let world = bigquery_world().await;
    let table = format!("{}.engagement_events", world.dataset);
    world.start().await.stop().await;
    world.bigquery(&format!("DROP TABLE {table}")).await;
    streaming_to_bigquery(&world).await.stop().await;
    world.bigquery(&format!("DELETE FROM {table} WHERE true")).await;
    streaming_to_bigquery(&world).await.stop().await;
}

/// As a release stored it that did not know which table it was.
#[tokio::test]
async fn a_checkpoint_that_says_nothing_of_its_table_is_gone_on_from_and_says_it_next() {
    let world = bigquery_world().await;
    streaming_to_bigquery(&world).await.stop().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let forget = "UPDATE walcast.progress SET checkpoint = checkpoint - 'target' WHERE sink = 'bigquery'";
    run(&client, forget).await;
    streaming_to_bigquery(&world).await.stop().await;
    let made = "SELECT checkpoint #>> '{target,made_ms}' IS NOT NULL AND checkpoint #>> '{target,last_event}' IS NOT NULL
                FROM walcast.progress WHERE sink = 'bigquery'";
    assert!(client.query_one(made, &[]).await.unwrap().get::<_, bool>(0));
}

/// Where a partition begins is a matter of its retention.
#[tokio::test]
async fn records_deleted_by_retention_are_no_gap() {
    let world = world_of(support::postgres(), "kafka").await;
    streaming_to_kafka(&world).await.stop().await;
    world.delete_records("events", 16).await;
    assert_eq!(world.kafka_events().await.len(), 0);
    streaming_to_kafka(&world).await.stop().await;
}

/// As a release stored it that did not know where the topics end.
#[tokio::test]
async fn a_checkpoint_that_says_nothing_of_its_topics_is_gone_on_from_and_says_it_next() {
    let world = world_of(support::postgres(), "kafka").await;
    streaming_to_kafka(&world).await.stop().await;
    let newest = async || {
        let records = world.kafka_topic("progress").await;
        let mut stored = records.iter().filter_map(|json| StoredCheckpoint::from_json(json).ok());
        stored.next_back().unwrap()
    };
    let stored = newest().await;
    assert_eq!(stored.target.ends.get("events").map(|ends| ends.iter().sum()), Some(10));
    let former = StoredCheckpoint { target: Default::default(), ..stored };
    assert!(!former.to_json().contains("target"));
    world.produce("progress", &world.postgres.slot, former.to_json().as_bytes()).await;
    streaming_to_kafka(&world).await.stop().await;
    let ends = newest().await.target.ends;
    assert!(ends.get("events").is_some_and(|ends| ends.iter().sum::<i64>() >= 20), "{ends:?}");
    world.delete_topic("events").await;
    start_ends_in_a_resync(&world, &LOST).await;
}

/// Records of transactions that were aborted, markers, and checkpoints that were never committed.
#[tokio::test]
async fn no_kill_makes_a_topic_look_emptied() {
    let world = world_of(support::postgres(), "kafka").await;
    let places = [
        "kafka_after_row=3*off->return",
        "kafka_before_progress=return",
        "kafka_before_commit=1*off->return",
        "kafka_before_commit=2*off->return",
        "kafka_after_commit=1*off->return",
        "kafka_after_commit=2*off->return",
        "kafka_recover_after_init=return",
        "kafka_recover_before_read=return",
        "driver_before_register=return",
    ];
    let mut events = 0;
    for place in places.iter().chain(&places) {
        let mut running = world.with("FAILPOINTS", place).spawn();
        world.insert_events(7).await;
        events += 7;
        if !running.ends_within(Duration::from_secs(5)).await {
            running.kill().await;
        } else {
            assert_ne!(running.ended().await, Some(4), "{place}: {}", running.log.lock().await);
        }
    }
    let running = world.start().await;
    kafka_has(&world, events).await;
    assert_eq!(world.kafka_events().await.len(), events);
    running.stop().await;
}

/// The slot was made again, and the sink is of the one before.
#[tokio::test]
async fn a_sink_of_another_history_is_refused() {
    let world = world_of(support::postgres(), "redis").await;
    streaming_to_redis(&world).await.stop().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let slot = &world.postgres.slot;
    run(&client, &format!("SELECT pg_drop_replication_slot('{slot}'); DELETE FROM walcast.slot")).await;
    world.walcast(["init"]).await.expect(0, &[]);
    start_ends_in_a_resync(&world, &["WC-403", "of another history", "walcast rebuild redis"]).await;
    assert_eq!(world.redis_plays().await, 10, "nothing is added to it");
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_read_is_a_gap() {
    let world = world_of(support::postgres(), "kafka").await;
    streaming_to_kafka(&world).await.stop().await;
    world.produce("progress", &world.postgres.slot, b"{}").await;
    start_ends_in_a_resync(
        &world,
        &["WC-407", "progress holds a checkpoint that cannot be read", "a newer walcast"],
    )
    .await;
}

/// As a version that counts in another way leaves it when it is killed.
#[tokio::test]
async fn a_checkpoint_inside_a_transaction_under_another_rule_is_refused_and_at_a_commit_is_none() {
    let world = world_of(support::postgres(), "redis").await;
    streaming_to_redis(&world).await.stop().await;
    let mut redis = world.redis().await;
    let key = format!("walcast:checkpoint:{}", world.postgres.slot);
    let json: String = redis::cmd("HGET").arg(&key).arg("checkpoint").query_async(&mut redis).await.unwrap();
    let stored = StoredCheckpoint::from_json(json.as_bytes()).unwrap();
    let durable_lsn = stored.checkpoint.durable_lsn;
    let mut leave = async |commit_lsn| {
        let position = Some(Position { commit_lsn, ordinal: 0 });
        let checkpoint = Checkpoint { position, durable_lsn };
        let ordinal_rule = ORDINAL_RULE + 1;
        let other = StoredCheckpoint { ordinal_rule, checkpoint, ..stored.clone() };
        let mut set = redis::cmd("HSET");
        set.arg(&key).arg("checkpoint").arg(other.to_json());
        set.query_async::<i64>(&mut redis).await.unwrap();
    };
    leave(durable_lsn).await;
    let words = ["WC-406", "inside a transaction", "ordinal rule", "run the former version"];
    start_ends_in_a_resync(&world, &words).await;
    leave(Lsn(durable_lsn.0 - 1)).await;
    streaming_to_redis(&world).await.stop().await;
}

/// As one that was left behind by a failover looks to a walcast that has followed it.
#[tokio::test]
async fn a_server_that_did_not_grow_out_of_what_was_read_is_refused() {
    let world = world_of(support::postgres(), "redis").await;
    streaming_to_redis(&world).await.stop().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "UPDATE walcast.slot SET timeline = 9").await;
    let words = ["WC-415", "of timeline 9", "did not grow out of", "set postgres.host"];
    start_ends_in_a_resync(&world, &words).await;
}

#[tokio::test]
async fn a_history_that_is_forgotten_while_running_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    let running = streaming_to_redis(&world).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "DELETE FROM walcast.slot").await;
    world.insert_events(10).await;
    ends_in_a_resync(running, &["WC-416", "no longer knows slot", "walcast init"]).await;
}
