//! What is emptied, deleted or made anew at a target, and checkpoints that say something else than is so.

use std::time::Duration;

use walcast::lsn::{Checkpoint, Lsn, ORDINAL_RULE, Position, StoredCheckpoint};
use walcast::source::sql;

use super::{
    ends_in_a_resync, kafka_has, redis_has, start_ends_in_a_resync, streaming_to_kafka, streaming_to_redis,
    world_of,
};
use crate::support::running::Running;
use crate::support::world::World;
use crate::support::{self, fresh_database, run, wait_until};

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

/// Of several sinks one may lose its data, and the others go on: while walcast runs, when it begins again, and when it
/// starts. Only when none is left does it end.
#[tokio::test]
async fn a_gap_of_one_sink_is_its_trouble_alone() {
    let world = world_of(support::postgres(), "kafka,redis").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let mut running = world.start().await;
    world.insert_events(10).await;
    kafka_has(&world, 10).await;
    redis_has(&world, 10).await;
    let mut redis = world.redis().await;
    redis::cmd("FLUSHDB").query_async::<()>(&mut redis).await.unwrap();
    for (events, how) in [(20, "runs"), (30, "begins again"), (40, "starts")] {
        match how {
            "begins again" => {
                let walsenders =
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid > 0";
                run(&client, &format!("{walsenders} AND database = current_database()")).await;
            }
            "starts" => {
                running.stop().await;
                running = world.start().await;
            }
            _ => {}
        }
        world.insert_events(10).await;
        kafka_has(&world, events).await;
        wait_until(&format!("Redis is left alone when walcast {how}"), async || {
            let line = running.sink("redis").await;
            line["breaker"] == "open" && line["last_error_code"] == "WC-402"
        })
        .await;
    }
    running.stop().await;
    assert_eq!(world.redis_plays().await, 0, "nothing is counted from the middle on");
    // as after a look at it
    run(&client, "DELETE FROM walcast.lane").await;
    world.delete_topic("progress").await;
    start_ends_in_a_resync(&world, &["WC-402", "held a checkpoint once and holds none now"]).await;
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
const LOST: [&str; 3] = ["WC-402", "once and holds none now", "walcast rebuild kafka"];

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
    world.insert_events(10).await;
    // the first commit of all only shuts older instances out
    world.with("FAILPOINTS", "kafka_after_commit=1*off->return").spawn().ended().await;
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
    let before = world.bigquery_count().await;
    world.insert_events(10).await;
    wait_until("BigQuery has all", async || world.bigquery_count().await == before + 10).await;
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
    let words = ["WC-402", "held events once", "it was deleted", "bq cp", "walcast rebuild bigquery"];
    world.walcast(["check"]).await.expect(2, &words[..3]);
    world.walcast(["init"]).await.expect(4, &words);
    for _ in 0..2 {
        world.insert_events(1).await;
        start_ends_in_a_resync(&world, &words).await;
    }
    make_table_anew(&world).await;
    let words = ["WC-402", "held events once", "it was made anew", "bq cp", "walcast rebuild bigquery"];
    world.walcast(["check"]).await.expect(2, &words[..3]);
    for _ in 0..2 {
        world.insert_events(1).await;
        start_ends_in_a_resync(&world, &words).await;
    }
    assert_eq!(world.bigquery_count().await, 0, "nothing is written from the middle on");
}

#[tokio::test]
async fn a_table_made_anew_while_running_is_a_gap() {
    let world = bigquery_world().await;
    let mut running = streaming_to_bigquery(&world).await;
    world.bigquery(&format!("DROP TABLE {}.engagement_events", world.dataset)).await;
    make_table_anew(&world).await;
    world.insert_events(10).await;
    assert_eq!(running.ended().await, Some(4), "{}", running.log.lock().await);
    assert_eq!(world.bigquery_count().await, 0, "nothing is written from the middle on");
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
    wait_until("BigQuery has all", async || world.bigquery_count().await == 20).await;
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
