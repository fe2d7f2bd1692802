//! Two walcasts on one slot: the second waits and takes over; the first, should it have been paused instead of dead,
//! can change nothing any more, and ends with exit code 5.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::hold::Hold;
use crate::support::running::Running;
use crate::support::wire::{Weather, Wire, Words};
use crate::support::world::World;
use crate::support::{self, fresh_database, run, wait_until};
use tokio_postgres::Client;
use walcast::source::sql;

/// How soon a waiting instance must stream after the death of the other.
const TAKEOVER: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_second_instance_takes_over_within_two_seconds() {
    let world = World::initialised().await;
    let first = world.start().await;
    let second = world.spawn();
    second.wait_until_told("waiting for the instance that reads the slot").await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    let killed = Instant::now();
    first.kill().await;
    second.wait_until_streaming().await;
    let took = killed.elapsed();
    world.insert_events(10).await;
    world.wait_until_all_hold(20).await;
    second.stop().await;
    assert!(took <= TAKEOVER, "it took {took:?}");
}

/// Ends whoever reads the slot.
async fn cut_off(client: &Client, world: &World) {
    let reader =
        "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = $1";
    client.query(reader, &[&world.postgres.slot]).await.unwrap();
}

/// A text in the stream: once the wire has passed it, it has passed all that came before.
const LAST_WORD: &str = "all of it has been sent";

/// An old instance, paused with events in its socket that it has not read, and a new one that has asked every
/// sink and taken every fence, but has not written anything yet.
struct Standoff {
    old: Running,
    new: Running,
    /// Where the new one waits.
    recovered: Hold,
    /// Where the old one waits with what PostgreSQL would refuse.
    _content: Hold,
    // last: its database can only go when nobody reads the slot
    world: World,
}

impl Standoff {
    /// With events in its socket that the old one has not read.
    async fn new(sinks: &str) -> Standoff {
        Standoff::of(sinks, None).await
    }

    /// The old one is paused at this failpoint, or with events in its socket that it has not read.
    async fn of(sinks: &str, paused_at: Option<&str>) -> Standoff {
        let world = World::new(fresh_database(support::postgres()).await).await;
        let world = world.with("PIPELINE_SINKS", sinks).with("BIGQUERY_COMMIT_SECONDS", "1");
        world.walcast(["init"]).await.expect(0, &[]);
        let words = Words { client: "START_REPLICATION", server: LAST_WORD };
        let wire = Wire::listening(world.postgres.port, words).await;
        let (recovered, paused, content) = (Hold::closed(), Hold::open(), Hold::open());
        let mut holds = vec![];
        // PostgreSQL is not to stop it before the sink under test does
        holds.extend((!sinks.is_empty()).then(|| content.at("content_before_store")));
        holds.extend(paused_at.map(|failpoint| paused.at(failpoint)));
        let through_wire = world
            .with("POSTGRES_PORT", &wire.port.to_string())
            .with("POSTGRES_SSLMODE", "disable")
            .with("FAILPOINTS", &holds.join(";"));
        let old = through_wire.start().await;
        world.insert_events(10).await;
        let end = world.wal_end().await;
        wait_until("all is confirmed", async || world.confirmed_lsn().await >= end).await;

        let client = sql::connect(&world.postgres).await.unwrap();
        if paused_at.is_some() {
            paused.close();
            paused.reached().await;
        }
        old.send("STOP");
        content.close();
        if paused_at.is_some() {
            paused.release();
        } else {
            run(&client, "UPDATE content SET title = 'changed'").await;
            world.insert_events(10).await;
            run(&client, &format!("SELECT pg_logical_emit_message(true, 'walcast', '{LAST_WORD}')")).await;
            wire.server_said().await;
        }
        wire.set(Weather::SilentWhereSaid);
        cut_off(&client, &world).await;
        let new = world.with("FAILPOINTS", &recovered.at("pipeline_after_recover")).spawn();
        recovered.reached().await;
        Standoff { old, new, recovered, _content: content, world }
    }

    /// Resumes the old one: it must give up, and `look` must see the same before and after.
    async fn resume<T: PartialEq + std::fmt::Debug>(mut self, look: impl AsyncFn(&World) -> T) {
        let before = look(&self.world).await;
        self.old.send("CONT");
        let code = self.old.ended().await;
        let after = look(&self.world).await;
        assert_eq!(before, after, "the old instance has changed something");
        let log = self.old.log.lock().await.clone();
        assert!(code == Some(5) && log.contains("WC-500"), "{code:?} {log}");
        self.recovered.release();
        self.new.wait_until_streaming().await;
        let end = self.world.wal_end().await;
        wait_until("the new one goes on", async || self.world.confirmed_lsn().await >= end).await;
    }
}

#[tokio::test]
async fn a_resumed_instance_changes_nothing_in_kafka() {
    let standoff = Standoff::new("kafka").await;
    let world = standoff.world.clone();
    standoff
        .resume(async |world| {
            let mut topics = Vec::new();
            for topic in ["events", "content", "dlq", "progress"] {
                topics.push(world.kafka_topic(topic).await);
            }
            topics
        })
        .await;
    let events = world.kafka_events().await;
    assert_eq!(events.len(), 20);
    assert_eq!(events.iter().filter(|event| event["title"] == "changed").count(), 10);
}

/// Every key, its value, and when it expires.
async fn redis_keys(world: &World) -> BTreeMap<String, (Vec<u8>, i64)> {
    let mut redis = world.redis().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    let mut all = BTreeMap::new();
    for key in keys {
        let value = redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.unwrap();
        let expires = redis::cmd("PEXPIRETIME").arg(&key).query_async(&mut redis).await.unwrap();
        all.insert(key, (value, expires));
    }
    all
}

#[tokio::test]
async fn a_resumed_instance_changes_nothing_in_redis() {
    let standoff = Standoff::new("redis").await;
    let world = standoff.world.clone();
    standoff.resume(redis_keys).await;
    assert_eq!(world.redis_plays().await, 20);
}

/// Its boards are refreshed by the clock, with nothing to flush.
#[tokio::test]
async fn a_resumed_instance_refreshes_no_board() {
    Standoff::of("redis", Some("redis_before_boards")).await.resume(redis_keys).await;
}

#[tokio::test]
async fn a_resumed_instance_changes_nothing_in_bigquery() {
    let standoff = Standoff::new("bigquery").await;
    let world = standoff.world.clone();
    let table = async |world: &World| {
        let query = "SELECT event_id, title FROM DATASET.engagement_events ORDER BY event_id";
        world.bigquery(&query.replace("DATASET", &world.dataset)).await
    };
    standoff.resume(table).await;
    assert_eq!(table(&world).await.len(), 20);
}

/// All rows of the schema `walcast`.
async fn state(world: &World) -> BTreeMap<&'static str, Vec<String>> {
    let client = sql::connect(&world.postgres).await.unwrap();
    let mut tables = BTreeMap::new();
    for table in ["slot", "sink", "progress", "content_version", "dead_letter", "migration"] {
        let rows = format!("SELECT to_jsonb(entry)::text FROM walcast.{table} AS entry ORDER BY 1");
        let rows = client.query(&rows, &[]).await.unwrap();
        tables.insert(table, rows.iter().map(|row| row.get(0)).collect());
    }
    tables
}

#[tokio::test]
async fn a_resumed_instance_changes_nothing_in_the_state_schema() {
    let standoff = Standoff::new("").await;
    standoff.resume(state).await;
}

/// Its open transaction holds the lock that the new one needs.
#[tokio::test]
async fn an_instance_paused_in_a_transaction_lets_the_next_one_in() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    let world = world.with("PIPELINE_SINKS", "redis");
    world.walcast(["init"]).await.expect(0, &[]);
    let hold = Hold::closed();
    let mut old = world.with("FAILPOINTS", &hold.at("content_before_commit")).start().await;
    world.insert_events(10).await;
    hold.reached().await;
    old.send("STOP");
    hold.release();
    let client = sql::connect(&world.postgres).await.unwrap();
    cut_off(&client, &world).await;
    let new = world.start().await;
    wait_until("all is there", async || world.redis_plays().await == 10).await;
    old.send("CONT");
    assert_eq!(old.ended().await, Some(5), "{}", old.log.lock().await);
    world.insert_events(10).await;
    wait_until("all is there", async || world.redis_plays().await == 20).await;
    new.stop().await;
}

#[tokio::test]
async fn a_lone_instance_goes_on_when_its_transaction_timed_out() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    let (in_rows, hold) = (Hold::closed(), Hold::open());
    let world = world
        .with("PIPELINE_SINKS", "kafka")
        .with("KAFKA_TIMEOUT_MS", "2000")
        .with("KAFKA_TRANSACTION_TIMEOUT_MS", "5000")
        .with("FAILPOINTS", &format!("{};{}", in_rows.at("kafka_after_row"), hold.at("kafka_before_commit")));
    world.walcast(["init"]).await.expect(0, &[]);
    world.insert_events(100).await;
    let running = world.start().await;
    // of the transactions that it commits, the one with events is held
    in_rows.reached().await;
    hold.close();
    in_rows.release();
    hold.reached().await;
    running.send("STOP");
    hold.release();
    let open = async || world.kafka_end("read_uncommitted").await > world.kafka_end("read_committed").await;
    wait_until("it has timed out", async || !open().await).await;
    assert_eq!(world.kafka_events().await.len(), 0, "nothing of it counts");
    running.send("CONT");
    wait_until("all is there", async || world.kafka_events().await.len() >= 100).await;
    world.insert_events(100).await;
    wait_until("all is there", async || world.kafka_events().await.len() >= 200).await;
    running.stop().await;
    let mut ids: Vec<_> =
        world.kafka_events().await.iter().map(|event| event["event_id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=200).collect::<Vec<_>>());
}
