//! Two walcasts on one slot: the second waits and takes over; the first, should it have been paused instead of dead,
//! can change nothing any more, and ends with exit code 5.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::world::{Running, World};
use crate::support::{self, fresh_database, run, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use walcast::source::sql;

/// How soon a waiting instance must stream after the death of the other.
const TAKEOVER: Duration = Duration::from_secs(2);

async fn said(running: &Running, words: &str) {
    wait_until(words, async || running.log.lock().await.contains(words)).await;
}

#[tokio::test]
async fn a_second_instance_takes_over_within_two_seconds() {
    let world = World::initialised().await;
    let first = world.start().await;
    let second = world.spawn();
    said(&second, "waiting for its end").await;
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

/// How soon a resumed instance must have noticed that it is not the newest any more.
const GIVES_UP: Duration = Duration::from_secs(10);

/// A text in the stream: once the proxy has passed it, it has passed all that came before.
const LAST_WORD: &str = "all of it has been sent";

/// Stands between an instance and PostgreSQL. After [`Proxy::hold`] the instance hears nothing more of its
/// stream, not even its end: as over a network that has parted.
struct Proxy {
    port: u16,
    last_word_passed: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
}

impl Proxy {
    async fn start(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy {
            port: listener.local_addr().unwrap().port(),
            last_word_passed: Arc::default(),
            held: Arc::default(),
        };
        let (passed, held) = (Arc::clone(&proxy.last_word_passed), Arc::clone(&proxy.held));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let stream = Arc::new(AtomicBool::new(false));
                tokio::spawn(up(from_client, to_server, Arc::clone(&stream)));
                tokio::spawn(down(from_server, to_client, stream, Arc::clone(&passed), Arc::clone(&held)));
            }
        });
        proxy
    }

    /// From now on streams carry nothing.
    fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }
}

/// To the server; sees whether this is a stream.
async fn up(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, stream: Arc<AtomicBool>) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        if contains(&bytes[..length], b"START_REPLICATION") {
            stream.store(true, Ordering::SeqCst);
        }
        if to.write_all(&bytes[..length]).await.is_err() && !stream.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// To the instance.
async fn down(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    stream: Arc<AtomicBool>,
    last_word_passed: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let stream = stream.load(Ordering::SeqCst);
        if stream && held.load(Ordering::SeqCst) {
            continue;
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
        if stream && contains(&bytes[..length], LAST_WORD.as_bytes()) {
            last_word_passed.store(true, Ordering::SeqCst);
        }
    }
    if stream.load(Ordering::SeqCst) && held.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// An old instance, paused with events in its socket that it has not read, and a new one that has asked every
/// sink and taken every fence, but has not written anything yet.
struct Standoff {
    old: Running,
    new: Running,
    // last: its database can only go when nobody reads the slot
    world: World,
}

impl Standoff {
    /// `old_is_slow_at` are the old one's failpoints: so that it is not stopped elsewhere first.
    async fn new(sinks: &str, old_is_slow_at: &str) -> Standoff {
        let world = World::new(fresh_database(support::postgres()).await).await;
        let world = world.with("PIPELINE_SINKS", sinks).with("BIGQUERY_COMMIT_SECONDS", "1");
        world.walcast(["init"]).await.expect(0, &[]);
        let proxy = Proxy::start(world.postgres.port).await;
        let through_proxy = world
            .with("POSTGRES_PORT", &proxy.port.to_string())
            .with("POSTGRES_SSLMODE", "disable")
            .with("FAILPOINTS", old_is_slow_at);
        let old = through_proxy.start().await;
        world.insert_events(10).await;
        let end = world.wal_end().await;
        wait_until("all is confirmed", async || world.confirmed_lsn().await >= end).await;

        old.send("STOP");
        let client = sql::connect(&world.postgres).await.unwrap();
        run(&client, "UPDATE content SET title = 'changed'").await;
        world.insert_events(10).await;
        run(&client, &format!("SELECT pg_logical_emit_message(true, 'walcast', '{LAST_WORD}')")).await;
        wait_until("the old one's socket has it all", async || proxy.last_word_passed.load(Ordering::SeqCst))
            .await;
        proxy.hold();
        let free =
            "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = $1";
        client.query(free, &[&world.postgres.slot]).await.unwrap();
        let new = world.with("FAILPOINTS", "pipeline_after_recover=sleep(18000)").spawn();
        for sink in sinks.split(',').filter(|sink| !sink.is_empty()).chain(["content"]) {
            wait_until("the new one has recovered", async || {
                let log = new.log.lock().await;
                log.lines().any(|line| {
                    line.contains("sink recovered") && line.contains(&format!("\"sink\":\"{sink}\""))
                })
            })
            .await;
        }
        Standoff { old, new, world }
    }

    /// Resumes the old one: it must give up, and `look` must see the same before and after.
    async fn resume<T: PartialEq + std::fmt::Debug>(mut self, look: impl AsyncFn(&World) -> T) {
        let before = look(&self.world).await;
        self.old.send("CONT");
        let code = tokio::time::timeout(GIVES_UP, self.old.ended()).await;
        let after = look(&self.world).await;
        assert!(!self.new.log.lock().await.contains("streaming from slot"), "the look came too late");
        assert_eq!(before, after, "the old instance has changed something");
        let log = self.old.log.lock().await.clone();
        assert_eq!(code, Ok(Some(5)), "{log}");
        said(&self.old, "a newer walcast").await;
        self.new.wait_until_streaming().await;
        let end = self.world.wal_end().await;
        wait_until("the new one goes on", async || self.world.confirmed_lsn().await >= end).await;
    }
}

/// Slows the sink that is stopped by PostgreSQL itself.
const CONTENT_LAST: &str = "content_before_store=sleep(6000)";

#[tokio::test]
async fn a_resumed_instance_changes_nothing_in_kafka() {
    let standoff = Standoff::new("kafka", CONTENT_LAST).await;
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
    let standoff = Standoff::new("redis", CONTENT_LAST).await;
    let world = standoff.world.clone();
    standoff.resume(redis_keys).await;
    assert_eq!(world.redis_plays().await, 20);
}

/// Its boards are refreshed by the clock, with nothing to flush.
#[tokio::test]
async fn a_resumed_instance_refreshes_no_board() {
    // together less than the time it has: each holds one of few threads up, and may follow upon the other
    let slow = "content_before_store=sleep(3000);redis_before_flush=sleep(2000)";
    Standoff::new("redis", slow).await.resume(redis_keys).await;
}

#[tokio::test]
async fn a_resumed_instance_changes_nothing_in_bigquery() {
    let standoff = Standoff::new("bigquery", CONTENT_LAST).await;
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
    for table in ["epoch", "sink", "progress", "content_version", "dead_letter", "migration"] {
        let rows = format!("SELECT to_jsonb(entry)::text FROM walcast.{table} AS entry ORDER BY 1");
        let rows = client.query(&rows, &[]).await.unwrap();
        tables.insert(table, rows.iter().map(|row| row.get(0)).collect());
    }
    tables
}

#[tokio::test]
async fn a_resumed_instance_changes_nothing_in_the_state_schema() {
    let standoff = Standoff::new("", "").await;
    standoff.resume(state).await;
}

/// Its open transaction holds the lock that the new one needs.
#[tokio::test]
async fn an_instance_paused_in_a_transaction_lets_the_next_one_in() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    let world = world.with("PIPELINE_SINKS", "redis");
    world.walcast(["init"]).await.expect(0, &[]);
    let mut old = world.with("FAILPOINTS", "content_before_commit=sleep(1000)").start().await;
    world.insert_events(10).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                AND application_name = 'walcast' AND state = 'idle in transaction'
                AND clock_timestamp() - xact_start > interval '100 ms'";
    let in_transaction = async || client.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 1;
    wait_until("it is paused in a transaction", async || {
        if !in_transaction().await {
            return false;
        }
        old.send("STOP");
        let paused = in_transaction().await;
        if !paused {
            old.send("CONT");
        }
        paused
    })
    .await;
    let free =
        "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = $1";
    client.query(free, &[&world.postgres.slot]).await.unwrap();
    let new = world.start().await;
    wait_until("all is there", async || world.redis_plays().await == 10).await;
    old.send("CONT");
    assert_eq!(tokio::time::timeout(GIVES_UP, old.ended()).await, Ok(Some(5)), "{}", old.log.lock().await);
    world.insert_events(10).await;
    wait_until("all is there", async || world.redis_plays().await == 20).await;
    new.stop().await;
}

#[tokio::test]
async fn a_lone_instance_goes_on_when_its_transaction_timed_out() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    let world = world
        .with("PIPELINE_SINKS", "kafka")
        .with("KAFKA_TIMEOUT_MS", "2000")
        .with("KAFKA_TRANSACTION_TIMEOUT_MS", "2000")
        .with("FAILPOINTS", "kafka_before_commit=sleep(1000)");
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    world.insert_events(100).await;
    let open = async || world.kafka_end("read_uncommitted").await > world.kafka_end("read_committed").await;
    wait_until("a transaction is open", open).await;
    running.send("STOP");
    wait_until("it has timed out", async || !open().await).await;
    assert!(world.kafka_events().await.is_empty(), "the stop came too late");
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
