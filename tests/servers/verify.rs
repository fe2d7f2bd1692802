//! `walcast verify` on real servers: clean on a live pipeline, and it finds what was planted.

use std::time::Duration;

use crate::support::hold::Hold;
use crate::support::world::World;
use crate::support::{self, env, run, wait_until};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use walcast::sink::read_back::Sample;
use walcast::source::sql;

const TIMEOUT: Duration = Duration::from_secs(10);

/// What `verify --json` printed, and its exit code.
async fn verify(world: &World) -> (Option<i32>, Value) {
    verify_part(world, &[]).await
}

/// The same, of a part of the events.
async fn verify_part(world: &World, part: &[&str]) -> (Option<i32>, Value) {
    let verify = ["--log", "error", "verify", "--json", "--wait-seconds", "150"];
    let ended = world.walcast(verify.iter().chain(part).copied()).await;
    let json = ended.output.find('{').and_then(|at| serde_json::from_str(&ended.output[at..]).ok());
    (ended.code, json.unwrap_or_else(|| panic!("no JSON: {}", ended.output)))
}

/// It is clean, and has compared so many events in each sink.
async fn expect_clean(world: &World, events: u64) -> Value {
    let (code, report) = verify(world).await;
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(report["total"]["source"], events, "{report:#}");
    for sink in ["kafka", "bigquery"] {
        assert_eq!(report["total"]["sinks"][sink]["held"], events, "{report:#}");
    }
    report
}

/// Redis agrees too, and was compared.
fn expect_redis(report: &Value) {
    let redis = &report["total"]["sinks"]["redis"];
    assert!(redis["held"].as_u64().unwrap() > 0, "{report:#}");
}

/// It finds this many of one kind in one sink, and names the fields.
async fn expect_found(world: &World, sink: &str, kind: &str, count: u64, fields: &[&str]) {
    let (code, report) = verify(world).await;
    assert_eq!(code, Some(2), "{report:#}");
    assert_eq!(report["total"]["sinks"][sink][kind], count, "{sink} {kind}: {report:#}");
    let examples = report["examples"].as_array().unwrap();
    let example = examples.iter().find(|one| one["sink"] == sink && one["difference"] == kind).unwrap();
    for field in fields {
        assert!(example["fields"].as_array().unwrap().contains(&(*field).into()), "{field}: {example}");
    }
}

#[tokio::test]
async fn a_live_pipeline_is_clean_and_planted_faults_are_found_in_kafka_and_bigquery() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(300).await;
    world.wait_until_all_hold(300).await;
    expect_clean(&world, 300).await;
    let table = format!("{}.engagement_events", world.dataset);

    world.bigquery(&format!("UPDATE {table} SET device = 'radio' WHERE event_id = 7")).await;
    expect_found(&world, "bigquery", "different", 1, &["device"]).await;
    world.bigquery(&format!("UPDATE {table} SET device = 'tv' WHERE event_id = 7")).await;
    world.bigquery(&format!("UPDATE {table} SET title = 'x' WHERE event_id = 8")).await;
    expect_found(&world, "bigquery", "different", 1, &["title"]).await;
    world.bigquery(&format!("DELETE FROM {table} WHERE event_id = 8")).await;
    expect_found(&world, "bigquery", "missing", 1, &[]).await;
    world.bigquery(&format!("INSERT INTO {table} SELECT * FROM {table} WHERE event_id = 9")).await;
    expect_found(&world, "bigquery", "doubled", 1, &[]).await;
    world.bigquery(&format!("UPDATE {table} SET event_id = 1000000 WHERE event_id = 10")).await;
    expect_found(&world, "bigquery", "unexpected", 1, &[]).await;

    produce_again(&world, 11).await;
    expect_found(&world, "kafka", "doubled", 1, &[]).await;
    let text = world.walcast(["--log", "error", "verify"]).await;
    text.expect(
        2,
        &["kafka: doubled: event 11 at", "kafka: out of order", "bigquery: unexpected: event 1000000"],
    );
    running.stop().await;
}

#[tokio::test]
async fn planted_faults_are_found_in_redis() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(300).await;
    world.wait_until_all_hold(300).await;
    expect_redis(&expect_clean(&world, 300).await);
    let mut redis = world.redis().await;
    let id = "00000000-0000-0000-0000-000000000001";
    let day = {
        let keys: Vec<String> =
            redis::cmd("KEYS").arg(format!("engagement:{id}:*")).query_async(&mut redis).await.unwrap();
        keys[0].clone()
    };
    let mut run = async |words: &str| -> redis::Value {
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut redis).await.unwrap()
    };
    run(&format!("HINCRBY {day} engagement_ms 1")).await;
    expect_found(&world, "redis", "different", 1, &["engagement_ms"]).await;
    run(&format!("HINCRBY {day} engagement_ms -1")).await;
    run(&format!("HINCRBY {day} pct_micro_sum 1")).await;
    expect_found(&world, "redis", "different", 1, &["pct_micro_sum"]).await;
    run(&format!("HINCRBY {day} pct_micro_sum -1")).await;
    run(&format!("ZINCRBY top_engagement:all 5 {id}")).await;
    expect_found(&world, "redis", "different", 1, &[]).await;
    run(&format!("ZINCRBY top_engagement:all -5 {id}")).await;
    run(&format!("ZINCRBY top_engagement:24h 5 {id}")).await;
    expect_found(&world, "redis", "different", 1, &[]).await;
    run(&format!("ZINCRBY top_engagement:24h -5 {id}")).await;
    run("HSET engagement:00000000-0000-0000-0000-00000000000a:2999-01-01 plays 1").await;
    expect_found(&world, "redis", "unexpected", 1, &[]).await;
    run("DEL engagement:00000000-0000-0000-0000-00000000000a:2999-01-01").await;
    expect_redis(&expect_clean(&world, 300).await);
    run(&format!("DEL {day}")).await;
    expect_found(&world, "redis", "missing", 1, &[]).await;
    running.stop().await;
}

#[tokio::test]
async fn a_pipeline_under_load_is_clean() {
    // few enough for a busy machine: what is compared grows for as long as it is compared
    let world = World::initialised().await.with("GENERATION_RATE", "30000");
    // the emulator of BigQuery takes more of it than all others together
    let world = world.with("PIPELINE_SINKS", "kafka,redis");
    let running = world.start().await;
    let load = world.spawn_command("generate");
    let client = sql::connect(&world.postgres).await.unwrap();
    let events = async || {
        client.query_one("SELECT count(*) FROM engagement_events", &[]).await.unwrap().get::<_, i64>(0)
    };
    for least in [500, 5_000] {
        wait_until("there are events", async || events().await >= least).await;
        let (code, report) = verify(&world).await;
        assert_eq!(code, Some(0), "{report:#}");
        assert!(report["total"]["source"].as_i64().unwrap() >= least, "{report:#}");
        expect_redis(&report);
        run(&client, "UPDATE content SET title = title || '!', length_seconds = length_seconds + 1 WHERE random() < 0.1").await;
    }
    load.stop().await;
    running.stop().await;
}

/// `run` goes on without Redis, which is not written, and says how to mend it.
async fn expect_left_alone(world: &World, code: &str) {
    let running = world.start().await;
    wait_until("Redis is left alone", async || {
        let log = running.log.lock().await;
        log.contains(code) && log.contains("walcast rebuild redis")
    })
    .await;
    world.insert_events(10).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let count = "SELECT count(*) FROM engagement_events";
    let events: i64 = client.query_one(count, &[]).await.unwrap().get(0);
    wait_until("Kafka goes on", async || world.kafka_events().await.len() as i64 == events).await;
    running.stop().await;
}

#[tokio::test]
async fn redis_that_has_lost_its_data_is_rebuilt_and_the_stream_goes_on() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(300).await;
    world.wait_until_all_hold(300).await;
    running.stop().await;
    let mut redis = world.redis().await;
    let _: () = redis::cmd("FLUSHDB").query_async(&mut redis).await.unwrap();
    expect_left_alone(&world, "WC-402").await;
    world.insert_events(50).await;
    // as if it had never been written: then only the broken rebuild itself keeps `run` away
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "DELETE FROM walcast.sink WHERE name = 'redis'").await;
    for place in ["after_begin", "after_clear", "after_write", "before_checkpoint"] {
        let killed = world.with("FAILPOINTS", &format!("redis_rebuild_{place}=return"));
        let ended = killed.walcast(["rebuild", "redis"]).await;
        assert_ne!(ended.code, Some(0), "{place}: {}", ended.output);
        expect_left_alone(&world, "WC-417").await;
    }
    let load = tokio::spawn({
        let world = world.clone();
        async move {
            for _ in 0..20 {
                world.insert_events(10).await;
            }
        }
    });
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds"]);
    load.await.unwrap();
    let running = world.start().await;
    world.insert_events(10).await;
    expect_redis(&expect_clean(&world, 610).await);
    running.stop().await;
}

#[tokio::test]
async fn a_rebuild_is_refused_when_the_counters_are_anothers() {
    let world = World::initialised().await;
    let running = world.with("PIPELINE_SINKS", "kafka").start().await;
    let mut redis = world.redis().await;
    // of this version, and of version 0.1
    for (other, token) in [("walcast:checkpoint:other", "fencing_token"), ("walcast:mark:other", "token")] {
        let _: i64 = redis::cmd("HSET").arg(other).arg(token).arg(1).query_async(&mut redis).await.unwrap();
        world.walcast(["rebuild", "redis"]).await.expect(4, &["WC-418", other, "redis.db"]);
        let _: i64 = redis::cmd("DEL").arg(other).query_async(&mut redis).await.unwrap();
    }
    running.stop().await;
}

#[tokio::test]
async fn a_rebuild_is_refused_when_the_slot_moves_beyond_it() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    running.stop().await;
    let hold = Hold::closed();
    let held = world.with("FAILPOINTS", &hold.at("redis_rebuild_before_check"));
    let rebuild = tokio::spawn(async move { held.walcast(["rebuild", "redis"]).await });
    hold.reached().await;
    let running = world.with("PIPELINE_SINKS", "kafka").start().await;
    world.insert_events(10).await;
    let end = world.wal_end().await;
    world.insert_events(1).await;
    wait_until("the slot has moved", async || world.confirmed_lsn().await >= end).await;
    hold.release();
    rebuild
        .await
        .unwrap()
        .expect(4, &["WC-419", "has moved to", "stop it, and run `walcast rebuild redis` again"]);
    running.stop().await;
}

#[tokio::test]
async fn rows_that_the_stream_never_brought_are_missing_and_rows_from_before_are_not() {
    let world = World::new(support::fresh_database(support::postgres()).await).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, include_str!("../../migrations/0001_source.sql")).await;
    world.insert_events(50).await;
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    let report = expect_clean(&world, 10).await;
    assert_eq!(report["total"]["before_walcast"], 50, "{report:#}");

    // what the publication leaves out is in no sink
    let publication = &world.postgres.publication;
    let unseen = format!(
        "ALTER PUBLICATION {publication} SET (publish = 'update');
         INSERT INTO engagement_events (event_type, event_ts) VALUES ('play', now());
         ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')"
    );
    run(&client, &unseen).await;
    expect_found(&world, "kafka", "missing", 1, &[]).await;
    expect_found(&world, "bigquery", "missing", 1, &[]).await;
    running.stop().await;
}

#[tokio::test]
async fn dead_letters_and_what_retention_has_deleted_are_counted_and_not_missed() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(200).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let negative =
        "INSERT INTO engagement_events (event_type, event_ts, duration_ms) VALUES ('play', now(), -1)";
    run(&client, negative).await;
    world.wait_until_all_hold(200).await;
    let table = format!("{}.engagement_events", world.dataset);
    let position =
        world.bigquery(&format!("SELECT commit_lsn, ordinal FROM {table} WHERE event_id = 7")).await;
    world.bigquery(&format!("DELETE FROM {table} WHERE event_id = 7")).await;
    let letter = format!(
        "INSERT INTO walcast.dead_letter (sink, history_id, commit_lsn, ordinal, event_id, reason, message)
         SELECT 'bigquery', history_id, '0/0'::pg_lsn + {}, {}, 7, 'refused', '' FROM walcast.slot WHERE slot = '{}'",
        position[0][0].as_str().unwrap(),
        position[0][1].as_str().unwrap(),
        world.postgres.slot
    );
    run(&client, &letter).await;
    delete_records(&world, 3, 20).await;
    let (code, report) = verify(&world).await;
    assert_eq!(code, Some(0), "{report:#}");
    let sinks = &report["total"]["sinks"];
    assert_eq!(
        (sinks["kafka"]["dead_letters"].as_u64(), sinks["bigquery"]["dead_letters"].as_u64()),
        (Some(1), Some(2))
    );
    let expired = sinks["kafka"]["expired"].as_u64().unwrap();
    assert_eq!(sinks["kafka"]["held"].as_u64().unwrap() + expired, 200, "{report:#}");
    assert!(expired > 0, "{report:#}");
    running.stop().await;
}

/// Deletes the beginning of the partition of an event, as retention does.
async fn delete_records(world: &World, event_id: i64, offset: i64) {
    let topic = format!("{}.events", world.topic_prefix);
    let of = topic.clone();
    let partition = tokio::task::spawn_blocking(move || partition_of(&of, event_id)).await.unwrap();
    let admin: AdminClient<DefaultClientContext> = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", env("KAFKA_BROKERS", "127.0.0.1:29092"))
        .create()
        .unwrap();
    let mut offsets = rdkafka::TopicPartitionList::new();
    offsets.add_partition_offset(&topic, partition, rdkafka::Offset::Offset(offset)).unwrap();
    admin.delete_records(&offsets, &AdminOptions::new()).await.unwrap();
}

#[tokio::test]
async fn a_stopped_pipeline_is_not_compared() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(3).await;
    world.wait_until_all_hold(3).await;
    running.stop().await;
    let ended = world.walcast(["verify", "--wait-seconds", "1"]).await;
    ended.expect(1, &["WC-341", "nothing was compared", "is read by nobody", "start `walcast run`"]);
}

/// Writes a record of the events topic once more, as a transaction of somebody else's.
async fn produce_again(world: &World, event_id: i64) {
    let events = world.kafka_events().await;
    let event = events.iter().find(|event| event["event_id"] == event_id).unwrap().clone();
    let topic = format!("{}.events", world.topic_prefix);
    tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", env("KAFKA_BROKERS", "127.0.0.1:29092"))
            .set("transactional.id", format!("{topic}.again"))
            .create()
            .unwrap();
        producer.init_transactions(TIMEOUT).unwrap();
        producer.begin_transaction().unwrap();
        let (key, value) = (event["content_id"].as_str().unwrap().to_owned(), event.to_string());
        // the partition that walcast has it in
        let partition = partition_of(&topic, event_id);
        let record = BaseRecord::to(&topic).key(&key).payload(&value).partition(partition);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(TIMEOUT).unwrap();
        producer.commit_transaction(TIMEOUT).unwrap();
    })
    .await
    .unwrap();
}

fn partition_of(topic: &str, event_id: i64) -> i32 {
    use rdkafka::Message as _;
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    use rdkafka::{Offset, TopicPartitionList};
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", env("KAFKA_BROKERS", "127.0.0.1:29092"))
        .set("group.id", "walcast-tests")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..16 {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    loop {
        let message = consumer.poll(TIMEOUT).expect("the record is there").unwrap();
        let value: Value = serde_json::from_slice(message.payload().unwrap_or_default()).unwrap();
        if value["event_id"] == event_id {
            return message.partition();
        }
    }
}

/// A part of the events is compared: each side leaves out the same.
#[tokio::test]
async fn a_time_a_share_and_single_sinks_are_compared_by_themselves() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(300).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let of_before = "
        INSERT INTO engagement_events (content_id, user_id, event_type, event_ts)
        SELECT content_id, user_id, 'play', '2026-01-01T10:00:00Z'::timestamptz + i * interval '1 second'
        FROM generate_series(0, 199) AS i, LATERAL (SELECT * FROM engagement_events WHERE id = 1 + i) AS one";
    run(&client, of_before).await;
    wait_until("Kafka holds all", async || world.kafka_ids().await.len() >= 500).await;
    wait_until("BigQuery holds all", async || world.bigquery_count().await >= 500).await;
    let table = format!("{}.engagement_events", world.dataset);
    let total = |report: &Value, sink: &str, kind: &str| report["total"]["sinks"][sink][kind].clone();
    let clean = async |part: &[&str], events: u64| {
        let (code, report) = verify_part(&world, part).await;
        assert_eq!((code, &report["total"]["source"]), (Some(0), &events.into()), "{part:?}: {report:#}");
        report
    };

    // ten seconds of the two hundred, each an event
    let time = ["--since", "2026-01-01T10:00:50Z", "--until", "2026-01-01T10:01:00Z"];
    let report = clean(&time, 10).await;
    assert_eq!(report["since"], "2026-01-01T10:00:50.000000Z");
    for sink in ["kafka", "bigquery"] {
        assert_eq!(total(&report, sink, "held"), 10, "{report:#}");
    }
    assert!(report["notes"].to_string().contains("redis: not compared"), "{report:#}");
    let at = |second: u32| format!("TIMESTAMP_SECONDS({})", 1_767_261_600 + second);
    world.bigquery(&format!("DELETE FROM {table} WHERE event_ts = {}", at(60))).await;
    clean(&time, 10).await;
    world.bigquery(&format!("DELETE FROM {table} WHERE event_ts = {}", at(59))).await;
    let (code, report) = verify_part(&world, &time).await;
    assert_eq!((code, total(&report, "bigquery", "missing")), (Some(2), 1.into()), "{report:#}");

    // whoever lacks two events does not count where another is asked for
    clean(&["--sinks", "kafka"], 500).await;
    let report = clean(&["--sinks", "redis,kafka"], 500).await;
    assert!(
        total(&report, "redis", "held").as_u64().unwrap() > 0 && total(&report, "bigquery", "held").is_null()
    );
    world
        .walcast(["verify", "--sinks", "kafka,nats"])
        .await
        .expect(78, &["nats is not among pipeline.sinks"]);
    world
        .walcast(["verify", "--sinks", "redis", "--sample", "1%"])
        .await
        .expect(78, &["none of these sinks"]);
    world.walcast(["verify", "--sample", "1"]).await.expect(64, &["1% or 0.05%"]);

    // the same ids everywhere
    let sample: Sample = "20%".parse().unwrap();
    let mut ids = world.kafka_ids().await;
    ids.retain(|id| sample.holds(*id));
    assert!((90..=110).contains(&ids.len()), "{}", ids.len());
    let kept = ["--sample", "20%", "--since", "2026-06-01T00:00:00Z"];
    let (inside, outside) = (ids[0], (1..300).find(|id| !sample.holds(*id)).unwrap());
    let of_now = ids.iter().filter(|id| **id <= 300).count() as u64;
    let report = clean(&kept, of_now).await;
    assert_eq!(total(&report, "kafka", "held"), of_now, "{report:#}");
    assert_eq!(report["sample_percent"], 20.0);
    world.bigquery(&format!("UPDATE {table} SET device = 'radio' WHERE event_id = {outside}")).await;
    clean(&kept, of_now).await;
    world.bigquery(&format!("UPDATE {table} SET device = 'radio' WHERE event_id = {inside}")).await;
    let (code, report) = verify_part(&world, &kept).await;
    assert_eq!((code, total(&report, "bigquery", "different")), (Some(2), 1.into()), "{report:#}");

    // an event whose time was changed at the source is on one side alone
    let moved = "UPDATE engagement_events SET event_ts = event_ts + interval '10 seconds'
        WHERE event_ts BETWEEN '2026-01-01T10:00:40Z' AND '2026-01-01T10:00:54Z'";
    run(&client, moved).await;
    let later = "INSERT INTO engagement_events (event_type, event_ts) VALUES ('play', '2020-01-01')";
    run(&client, later).await;
    wait_until("Kafka holds all", async || world.kafka_ids().await.len() >= 501).await;
    let (code, report) =
        verify_part(&world, &[["--sinks", "kafka"], [time[0], time[1]], [time[2], time[3]]].concat()).await;
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(report["total"]["source"], 15, "{report:#}");
    assert_eq!(total(&report, "kafka", "changed_at_source"), 15, "{report:#}");
    running.stop().await;
}
