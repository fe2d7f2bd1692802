//! The Kafka sink on a real broker. What is true of the broker itself is tested first: an exactly-once
//! claim on a broker that shows aborted records would be worth nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, ContentChange, DeadLetter, Event, Row};
use walcast::error::Kind;
use walcast::lsn::{Epoch, History, Lsn, Mark, Position, Session, StoredMark};
use walcast::model::content::Content;
use walcast::sink::kafka::{KafkaConfig, KafkaSink, Topics};
use walcast::sink::{Sink, Verdict, Written};
use walcast::source::sql;
use walcast::state::State;

const ROW_BYTES_MAX: usize = 900_000;
/// Recent: the broker rolls, compacts and deletes by the records' own times.
static COMMIT_TS: LazyLock<i64> =
    LazyLock::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64);

/// A topic prefix, a database and a slot of the test's own.
struct Fixture {
    config: KafkaConfig,
    topics: Topics,
    db: String,
    sql: Client,
    epoch: Epoch,
}

impl Fixture {
    async fn new(test: &str) -> Self {
        let run = &Uuid::new_v4().simple().to_string()[..10];
        let config = KafkaConfig {
            brokers: support::env("KAFKA_BROKERS", "127.0.0.1:29092"),
            topic_prefix: format!("test-{run}.{test}"),
            partitions: 4,
            replication_factor: 1,
            min_insync_replicas: 1,
            ..KafkaConfig::default()
        };
        let db = format!("walcast_kafka_{run}");
        let admin = sql::connect(&support::database("postgres")).await;
        let admin = admin.unwrap_or_else(|error| panic!("no PostgreSQL, run `make services`: {error:?}"));
        admin.batch_execute(&format!("CREATE DATABASE {db}")).await.unwrap();
        let sql = sql::connect(&support::database(&db)).await.unwrap();
        sql.batch_execute(include_str!("../migrations/0002_state.sql")).await.unwrap();
        let epoch =
            Epoch { epoch: Uuid::new_v4(), system_id: "7".into(), timeline: 1, slot: format!("s_{run}") };
        let insert = "INSERT INTO walcast.epoch (slot, epoch, system_id, timeline, publication, publication_oid, state) \
                      VALUES ($1, $2, '7', 1, 'walcast', 1, 'ready')";
        sql.execute(insert, &[&epoch.slot, &epoch.epoch]).await.unwrap();
        Fixture { topics: config.topics(), config, db, sql, epoch }
    }

    fn sink(&self) -> KafkaSink {
        KafkaSink::new(self.config.clone(), ROW_BYTES_MAX, State::new(support::database(&self.db))).unwrap()
    }

    /// A newer instance than all before.
    async fn session(&self) -> Session {
        let update = "UPDATE walcast.epoch SET token = token + 1 RETURNING token";
        let token = self.sql.query_one(update, &[]).await.unwrap().get(0);
        Session { epoch: self.epoch.clone(), token, history: History::default(), start: Lsn(0) }
    }

    /// A sink that has its topics and the newest token.
    async fn ready(&self) -> KafkaSink {
        let mut sink = self.sink();
        let prepared = sink.prepare().await;
        prepared.unwrap_or_else(|error| panic!("no Kafka, run `make services`: {error:?}"));
        sink.recover(&self.session().await).await.unwrap();
        sink
    }

    fn producer(&self) -> BaseProducer {
        let id = format!("walcast.{}.{}", self.config.topic_prefix, self.epoch.slot);
        transactional_producer(&self.config, &id, 60_000)
    }

    /// What committed readers see once the broker has carried out all commits: it answers a commit as soon
    /// as that is decided, and shows it some milliseconds later.
    fn committed(&self, topic: &str) -> Vec<OwnedMessage> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while ends(&self.config, topic, "read_committed") != ends(&self.config, topic, "read_uncommitted") {
            assert!(Instant::now() < deadline, "{topic} has an open transaction");
        }
        read(&self.config, topic, "read_committed")
    }

    fn marks(&self) -> Vec<StoredMark> {
        let marks = self.committed(&self.topics.progress).into_iter();
        marks
            .filter(|message| message.key() == Some(self.epoch.slot.as_bytes()))
            .map(|message| StoredMark::from_json(message.payload().unwrap()).unwrap())
            .collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let (config, topics, db) = (self.config.clone(), self.topics.clone(), self.db.clone());
        let clean_up = async move {
            let Topics { events, content, dlq, progress } = &topics;
            let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(2)));
            let _ = admin(&config).delete_topics(&[events, content, dlq, progress], &options).await;
            let server = sql::connect(&support::database("postgres")).await.unwrap();
            let _ = server.batch_execute(&format!("DROP DATABASE {db} WITH (FORCE)")).await;
        };
        // a thread, since this runs inside a runtime, and also when the test has failed
        let thread = std::thread::spawn(|| tokio::runtime::Runtime::new().unwrap().block_on(clean_up));
        let _ = thread.join();
    }
}

fn admin(config: &KafkaConfig) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &config.brokers).create().unwrap()
}

fn transactional_producer(config: &KafkaConfig, id: &str, timeout_ms: u32) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &config.brokers)
        .set("transactional.id", id)
        .set("transaction.timeout.ms", timeout_ms.to_string())
        .create()
        .unwrap();
    producer.init_transactions(Duration::from_secs(20)).unwrap();
    producer
}

async fn create_topic(config: &KafkaConfig, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let topic = settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
    admin(config).create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
}

fn reader(config: &KafkaConfig, isolation: &str) -> BaseConsumer {
    let mut reader = ClientConfig::new();
    reader
        .set("bootstrap.servers", &config.brokers)
        .set("group.id", "walcast-test")
        .set("isolation.level", isolation);
    reader.set("enable.auto.commit", "false").set("enable.partition.eof", "true").create().unwrap()
}

fn partitions(reader: &BaseConsumer, topic: &str) -> Vec<i32> {
    let metadata = reader.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
    metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect()
}

/// Where each partition ends for a reader of this isolation.
fn ends(config: &KafkaConfig, topic: &str, isolation: &str) -> Vec<i64> {
    let reader = reader(config, isolation);
    let end = |partition| reader.fetch_watermarks(topic, partition, Duration::from_secs(10)).unwrap().1;
    partitions(&reader, topic).into_iter().map(end).collect()
}

/// All that a reader of this isolation is given.
fn read(config: &KafkaConfig, topic: &str, isolation: &str) -> Vec<OwnedMessage> {
    let reader = reader(config, isolation);
    let mut open: HashSet<i32> = partitions(&reader, topic).into_iter().collect();
    let mut assignment = TopicPartitionList::new();
    for partition in &open {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning).unwrap();
    }
    reader.assign(&assignment).unwrap();
    let (mut messages, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(60));
    while !open.is_empty() {
        assert!(Instant::now() < deadline, "reading {topic} takes too long");
        match reader.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => messages.push(message.detach()),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    messages
}

fn position(commit_lsn: u64, ordinal: u64) -> Position {
    Position { commit_lsn: Lsn(commit_lsn), ordinal }
}

fn event(position: Position, id: i64, content_id: Option<Uuid>) -> Row {
    Row::Event(Event {
        position,
        commit_ts: *COMMIT_TS,
        id,
        content_id,
        user_id: None,
        event_type: None,
        event_ts: *COMMIT_TS - 5_000_000,
        duration_ms: Some(1500),
        device: None,
        raw_payload: None,
        raw_payload_bytes: None,
        content: None,
    })
}

fn finish(rows: Vec<Row>, held: u64) -> Arc<Batch> {
    let mut builder = BatchBuilder::new(Mark::default());
    rows.into_iter().for_each(|row| builder.push(row));
    builder.hold(Lsn(held));
    Arc::new(builder.finish(false))
}

/// A transaction of `rows` events, committed at `commit_lsn`, that ends at `commit_lsn + 10`.
fn events(commit_lsn: u64, rows: u64) -> Arc<Batch> {
    let rows = (0..rows).map(|ordinal| {
        let id = (commit_lsn + ordinal) as i64;
        event(position(commit_lsn, ordinal), id, Some(Uuid::from_u128(u128::from(ordinal % 7))))
    });
    finish(rows.collect(), commit_lsn + 10)
}

fn content(id: u128, title: &str) -> Content {
    Content {
        id: Uuid::from_u128(id),
        slug: "a-slug".into(),
        title: title.into(),
        content_type: Some("video".into()),
        length_seconds: Some(60),
        publish_ts: Some(0),
    }
}

fn json(message: &OwnedMessage) -> Value {
    serde_json::from_slice(message.payload().unwrap()).unwrap()
}

fn ids(messages: &[OwnedMessage]) -> Vec<i64> {
    messages.iter().map(|message| json(message)["event_id"].as_i64().unwrap()).collect()
}

fn header(message: &OwnedMessage, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    Some(String::from_utf8(found.value?.to_vec()).unwrap())
}

// --- the broker itself

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_hides_what_was_aborted_and_shuts_older_producers_out() {
    let fixture = Fixture::new("broker").await;
    create_topic(&fixture.config, &fixture.topics.events, 1, &[]).await;
    let topic = &fixture.topics.events;
    let send = |producer: &BaseProducer, text: &str| {
        producer.begin_transaction().unwrap();
        producer.send(BaseRecord::<str, str>::to(topic).payload(text)).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
    };
    let older = fixture.producer();
    send(&older, "committed");
    older.commit_transaction(Duration::from_secs(10)).unwrap();
    send(&older, "aborted");
    older.abort_transaction(Duration::from_secs(10)).unwrap();
    send(&older, "zombie");
    let newer = fixture.producer();
    assert!(older.commit_transaction(Duration::from_secs(10)).is_err(), "a zombie committed");
    send(&newer, "heir");
    newer.commit_transaction(Duration::from_secs(10)).unwrap();

    let texts = |isolation| -> Vec<String> {
        let messages = read(&fixture.config, topic, isolation);
        messages.iter().map(|message| message.payload_view::<str>().unwrap().unwrap().to_owned()).collect()
    };
    assert_eq!(texts("read_uncommitted"), ["committed", "aborted", "zombie", "heir"]);
    assert_eq!(fixture.committed(topic).len(), 2);
    assert_eq!(texts("read_committed"), ["committed", "heir"]);
}

// --- exactly once

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_its_rows_and_one_mark_in_one_transaction() {
    let fixture = Fixture::new("write").await;
    let mut sink = fixture.ready().await;
    let written = sink.write(&[events(100, 30), events(200, 3)]).await.unwrap();
    let mark = Mark { position: Some(position(200, 2)), held: Lsn(210) };
    assert_eq!(written, Written::Durable(mark));

    let records = fixture.committed(&fixture.topics.events);
    assert_eq!(ids(&records).into_iter().collect::<HashSet<_>>(), (100..130).chain(200..203).collect());
    assert_eq!(records.len(), 33);
    assert_eq!(fixture.marks(), [StoredMark::new(&fixture.epoch, mark)]);
    let first = records.iter().find(|message| json(message)["event_id"] == 100).unwrap();
    assert_eq!(header(first, "lsn").unwrap(), "0/64#0");
    assert_eq!(header(first, "op").unwrap(), "c");
    assert_eq!(first.timestamp().to_millis(), Some(*COMMIT_TS / 1000));
    assert_eq!(json(first)["engagement_seconds"], 1.5);

    // one transaction: each partition it touched has one marker and nothing else besides its records
    let offsets = records.iter().map(|message| (message.partition(), message.offset())).collect::<Vec<_>>();
    let partitions: HashSet<i32> = offsets.iter().map(|(partition, _)| *partition).collect();
    let last: i64 = partitions
        .iter()
        .map(|p| offsets.iter().filter(|(q, _)| q == p).map(|(_, o)| o + 1).max().unwrap())
        .sum();
    assert_eq!(last, 33, "a marker lies between the records");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_which_one_record_is_refused_leaves_nothing() {
    // room for transaction markers and not for events, or for the fence record and not for a mark
    for (small, bytes) in [("events", "100"), ("progress", "230")] {
        let fixture = Fixture::new("refused").await;
        for (topic, partitions) in [("events", 4), ("content", 4), ("dlq", 1), ("progress", 1)] {
            let limit = if topic == small { bytes } else { "1100000" };
            let name = format!("{}.{topic}", fixture.config.topic_prefix);
            create_topic(&fixture.config, &name, partitions, &[("max.message.bytes", limit)]).await;
        }
        let mut sink = fixture.sink();
        sink.recover(&fixture.session().await).await.unwrap();
        let error = sink.write(&[events(100, 20)]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Setup, "{small}: {error:?}");
        assert!(error.advice().contains("max.message.bytes"), "{error:?}");
        assert_eq!(sink.recover(&fixture.session().await).await.unwrap(), None, "{small}");
        assert!(fixture.committed(&fixture.topics.events).is_empty(), "{small}");
        assert!(fixture.marks().is_empty(), "{small}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_rows_moves_the_mark_and_never_back() {
    let fixture = Fixture::new("empty").await;
    let mut sink = fixture.ready().await;
    sink.write(&[events(100, 3)]).await.unwrap();
    let idle = Arc::new(Batch::empty(Mark::at(Lsn(500)), false));
    let mark = Mark { position: Some(position(100, 2)), held: Lsn(500) };
    assert_eq!(sink.write(&[idle]).await.unwrap(), Written::Durable(mark));
    assert_eq!(fixture.sink().recover(&fixture.session().await).await.unwrap().unwrap().mark, mark);
    assert_eq!(fixture.marks().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_uncommitted_is_never_seen() {
    let fixture = Fixture::new("crash").await;
    let mut sink = fixture.ready().await;
    sink.write(&[events(100, 5)]).await.unwrap();
    drop(sink);
    // an instance that died between produce and commit: records and mark are at the broker
    let dead = fixture.producer();
    dead.begin_transaction().unwrap();
    let mark = StoredMark::new(&fixture.epoch, Mark::at(Lsn(999))).to_json();
    for (topic, key, payload) in [
        (&fixture.topics.events, "k", r#"{"event_id":7}"#),
        (&fixture.topics.progress, &*fixture.epoch.slot, &*mark),
    ] {
        dead.send(BaseRecord::to(topic).key(key).payload(payload)).map_err(|(error, _)| error).unwrap();
    }
    dead.flush(Duration::from_secs(10)).unwrap();
    std::mem::forget(dead);

    let mut sink = fixture.sink();
    let stored = sink.recover(&fixture.session().await).await.unwrap().unwrap();
    assert_eq!(stored.mark, Mark { position: Some(position(100, 4)), held: Lsn(110) });
    sink.write(&[events(200, 1)]).await.unwrap();
    assert_eq!(ids(&fixture.committed(&fixture.topics.events)).len(), 6);
    assert!(!ids(&fixture.committed(&fixture.topics.events)).contains(&7));
    assert!(ids(&read(&fixture.config, &fixture.topics.events, "read_uncommitted")).contains(&7));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_instance_stops_and_leaves_the_newer_one_alone() {
    let fixture = Fixture::new("fenced").await;
    let first = fixture.session().await;
    let mut older = fixture.sink();
    older.prepare().await.unwrap();
    assert_eq!(older.recover(&first).await.unwrap(), None);
    older.write(&[events(100, 1)]).await.unwrap();

    let mut newer = fixture.sink();
    newer.recover(&fixture.session().await).await.unwrap();
    assert_eq!(older.write(&[events(200, 1)]).await.unwrap_err().kind(), Kind::Fenced);
    assert_eq!(older.recover(&first).await.unwrap_err().kind(), Kind::Fenced);
    newer.write(&[events(200, 1)]).await.unwrap();
    assert_eq!(ids(&fixture.committed(&fixture.topics.events)), [100, 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn fenced_with_the_newest_token_begins_again() {
    let fixture = Fixture::new("timeout").await;
    let session = fixture.session().await;
    let mut sink = fixture.sink();
    sink.prepare().await.unwrap();
    sink.recover(&session).await.unwrap();
    let _other = fixture.producer();
    assert_eq!(sink.write(&[events(100, 1)]).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(sink.write(&[events(100, 1)]).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(sink.recover(&session).await.unwrap(), None);
    sink.write(&[events(100, 1)]).await.unwrap();
    assert_eq!(ids(&fixture.committed(&fixture.topics.events)), [100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mark_is_found_behind_markers_and_many_records_of_others() {
    let fixture = Fixture::new("marks").await;
    let mut sink = fixture.ready().await;
    for lsn in [100, 200, 300] {
        sink.write(&[events(lsn, 1)]).await.unwrap();
    }
    let other = transactional_producer(&fixture.config, &fixture.config.topic_prefix, 60_000);
    for round in 0..15 {
        other.begin_transaction().unwrap();
        for _ in 0..50 {
            let mark = StoredMark::new(&fixture.epoch, Mark::at(Lsn(round))).to_json();
            let record = BaseRecord::to(&fixture.topics.progress).key("other_slot").payload(&mark);
            other.send(record).map_err(|(error, _)| error).unwrap();
        }
        other.flush(Duration::from_secs(10)).unwrap();
        if round % 2 == 0 {
            other.commit_transaction(Duration::from_secs(10)).unwrap();
        } else {
            other.abort_transaction(Duration::from_secs(10)).unwrap();
        }
    }
    for _ in 0..3 {
        let stored = sink.recover(&fixture.session().await).await.unwrap().unwrap();
        assert_eq!(stored.mark, Mark { position: Some(position(300, 0)), held: Lsn(310) });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_cut_off_at_random_leave_every_event_once_and_in_order() {
    let seed =
        std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let fixture = Fixture::new("cut").await;
    fixture.ready().await;
    const WRITES: u64 = 40;
    let all: Vec<Arc<Batch>> = (1..=WRITES).map(|n| events(n * 1000, 50)).collect();
    let (mut next, mut cuts) = (0, 0);
    while next < all.len() {
        let mut sink = fixture.sink();
        let stored = sink.recover(&fixture.session().await).await.unwrap();
        let held = stored.map_or_else(Mark::default, |stored| stored.mark);
        next = all.iter().take_while(|batch| batch.beyond(&held).is_none()).count();
        while next < all.len() {
            let until = (next + random.random_range(1..4)).min(all.len());
            let patience = Duration::from_micros(random.random_range(0..25_000));
            match tokio::time::timeout(patience, sink.write(&all[next..until])).await {
                Ok(written) => drop(written.unwrap()),
                Err(_) => break,
            }
            next = until;
        }
        cuts += 1;
    }
    println!("{cuts} cuts");
    let records = fixture.committed(&fixture.topics.events);
    let mut by_key: BTreeMap<Vec<u8>, Vec<i64>> = BTreeMap::new();
    for message in &records {
        by_key
            .entry(message.key().unwrap().to_vec())
            .or_default()
            .push(json(message)["event_id"].as_i64().unwrap());
    }
    assert_eq!(records.len() as u64, WRITES * 50, "seed {seed}");
    assert_eq!(ids(&records).into_iter().collect::<HashSet<_>>().len() as u64, WRITES * 50, "seed {seed}");
    assert!(by_key.values().all(|ids| ids.is_sorted()), "seed {seed}");
    assert!(fixture.marks().is_sorted_by_key(|stored| stored.mark.held), "seed {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_dropped_must_be_asked_after() {
    let fixture = Fixture::new("dropped").await;
    let session = fixture.session().await;
    let mut sink = fixture.ready().await;
    assert!(tokio::time::timeout(Duration::ZERO, sink.write(&[events(100, 500)])).await.is_err());
    assert_eq!(sink.write(&[events(100, 500)]).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(sink.recover(&session).await.unwrap_err().kind(), Kind::Fenced, "an older session");
    if sink.recover(&fixture.session().await).await.unwrap().is_none() {
        sink.write(&[events(100, 500)]).await.unwrap();
    }
    assert_eq!(ids(&fixture.committed(&fixture.topics.events)).len(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_larger_than_the_producers_queue_passes() {
    const ROWS: u64 = 120_000;
    let fixture = Fixture::new("queue").await;
    let mut sink = fixture.ready().await;
    sink.write(&[events(1000, ROWS)]).await.unwrap();
    let records = fixture.committed(&fixture.topics.events);
    assert_eq!(ids(&records).into_iter().collect::<HashSet<_>>().len() as u64, ROWS);
    assert_eq!(records.len() as u64, ROWS);
}

// --- rows

#[tokio::test(flavor = "multi_thread")]
async fn events_without_content_id_have_no_key_and_spread() {
    let fixture = Fixture::new("nullkey").await;
    let mut sink = fixture.ready().await;
    let rows = (0..40).map(|ordinal| event(position(100, ordinal), ordinal as i64, None)).collect();
    sink.write(&[finish(rows, 110)]).await.unwrap();
    let records = fixture.committed(&fixture.topics.events);
    assert_eq!(records.len(), 40);
    assert!(records.iter().all(|message| message.key().is_none() && json(message)["content_id"].is_null()));
    let mut spread: HashMap<i32, usize> = HashMap::new();
    records.iter().for_each(|message| *spread.entry(message.partition()).or_default() += 1);
    assert_eq!(spread, (0..4).map(|partition| (partition, 10)).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_content_row_is_a_tombstone() {
    let fixture = Fixture::new("content").await;
    let mut sink = fixture.ready().await;
    let change = |ordinal, id, after: Option<&str>| {
        let after = after.map(|title| Arc::new(content(id, title)));
        let (position, id) = (position(100, ordinal), Uuid::from_u128(id));
        Row::Content(ContentChange { position, commit_ts: *COMMIT_TS, id, after })
    };
    let rows = vec![change(0, 1, Some("one")), change(1, 2, Some("two")), change(2, 1, None)];
    sink.write(&[finish(rows, 110)]).await.unwrap();

    let one = Uuid::from_u128(1).to_string();
    let records = fixture.committed(&fixture.topics.content);
    let ones: Vec<_> = records.iter().filter(|message| message.key() == Some(one.as_bytes())).collect();
    assert_eq!(records.len(), 3);
    assert_eq!(json(ones[0])["title"], "one");
    assert_eq!(header(ones[0], "op").unwrap(), "u");
    assert_eq!(ones[1].payload(), None);
    assert_eq!(header(ones[1], "op").unwrap(), "d");
    assert_eq!(header(ones[1], "lsn").unwrap(), "0/64#2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_has_the_headers_of_kafka_connect() {
    let fixture = Fixture::new("dlq").await;
    let mut sink = fixture.ready().await;
    let letter = DeadLetter {
        position: position(0x100, 1),
        commit_ts: *COMMIT_TS,
        table: "public.engagement_events".into(),
        reason: "negative_duration",
        message: "duration_ms is negative".into(),
        row_json: r#"{"id":"9","duration_ms":"-1"}"#.into(),
    };
    sink.write(&[finish(vec![event(position(0x100, 0), 8, None), Row::DeadLetter(Box::new(letter))], 0x110)])
        .await
        .unwrap();
    let letters = fixture.committed(&fixture.topics.dlq);
    assert_eq!(letters.len(), 1);
    assert_eq!(json(&letters[0])["duration_ms"], "-1");
    for (name, value) in [
        ("lsn", "0/100#1"),
        ("__connect.errors.topic", "public.engagement_events"),
        ("__connect.errors.partition", "0"),
        ("__connect.errors.offset", "256"),
        ("__connect.errors.connector.name", "walcast"),
        ("__connect.errors.task.id", "0"),
        ("__connect.errors.exception.class.name", "negative_duration"),
        ("__connect.errors.exception.message", "duration_ms is negative"),
    ] {
        assert_eq!(header(&letters[0], name).as_deref(), Some(value), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_too_large_for_kafka_is_a_dead_letter_and_holds_nothing_up() {
    let fixture = Fixture::new("large").await;
    let mut sink = fixture.ready().await;
    let mut builder = BatchBuilder::new(Mark::default());
    let mut push = |ordinal, bytes| {
        let Row::Event(mut event) = event(position(100, ordinal), ordinal as i64, Some(Uuid::nil())) else {
            return;
        };
        event.device = Some(builder.intern(&"x".repeat(bytes)));
        builder.push(Row::Event(event));
    };
    // what fits by the row's limit passes; text that JSON escapes sixfold does not
    push(0, ROW_BYTES_MAX);
    push(1, 2 * ROW_BYTES_MAX);
    push(2, 5);
    builder.hold(Lsn(110));
    let title = "y".repeat(2 * ROW_BYTES_MAX);
    let change = ContentChange {
        position: position(100, 3),
        commit_ts: *COMMIT_TS,
        id: Uuid::from_u128(5),
        after: Some(Arc::new(content(5, &title))),
    };
    builder.push(Row::Content(change));
    sink.write(&[Arc::new(builder.finish(false))]).await.unwrap();
    assert_eq!(ids(&fixture.committed(&fixture.topics.events)), [0, 2]);
    let letters = fixture.committed(&fixture.topics.dlq);
    assert_eq!(
        letters.iter().map(|letter| json(letter)["id"].clone()).collect::<Vec<_>>(),
        ["1", &*Uuid::from_u128(5).to_string()]
    );
    assert_eq!(header(&letters[0], "__connect.errors.exception.class.name").unwrap(), "record_too_large");
}

/// Lines of a key in hexadecimal and what Java's client made of it.
const JAVA_HASHES: &str = include_str!("data/murmur2.txt");

#[tokio::test(flavor = "multi_thread")]
async fn another_client_finds_every_key_where_java_would_put_it() {
    let mut fixture = Fixture::new("kcat").await;
    fixture.config.partitions = 16;
    let mut sink = fixture.ready().await;
    let mut java = HashMap::new();
    for line in JAVA_HASHES.lines().filter(|line| !line.starts_with('#')) {
        let (hex, hash) = line.split_once(' ').unwrap();
        let bytes: Vec<u8> =
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
        let uuid = String::from_utf8(bytes).ok().and_then(|text| text.parse::<Uuid>().ok());
        let hash: i32 = hash.parse().unwrap();
        java.extend(uuid.map(|uuid| (uuid, (hash & 0x7fff_ffff) % 16)));
    }
    assert!(java.len() >= 100);
    let rows = java
        .keys()
        .enumerate()
        .map(|(at, id)| event(position(100, at as u64), at as i64, Some(*id)))
        .collect();
    sink.write(&[finish(rows, 110)]).await.unwrap();

    fixture.committed(&fixture.topics.events);
    let kcat = std::process::Command::new("kcat")
        .args(["-C", "-q", "-e", "-o", "beginning", "-X", "isolation.level=read_committed"])
        .args(["-b", &fixture.config.brokers, "-t", &fixture.topics.events, "-f", "%p %k %T %h %s\n"])
        .output()
        .expect("kcat runs: install it with apt-get install kcat");
    let lines = String::from_utf8(kcat.stdout).unwrap();
    let mut seen = 0;
    for line in lines.lines() {
        let (partition, rest) = line.split_once(' ').unwrap();
        let (key, rest) = rest.split_once(' ').unwrap();
        assert_eq!(partition.parse(), Ok(java[&key.parse().unwrap()]), "{line}");
        assert!(rest.starts_with(&format!("{} lsn=0/64#", *COMMIT_TS / 1000)), "{line}");
        assert!(rest.contains(",op=c {\"event_id\":"), "{line}");
        seen += 1;
    }
    assert_eq!(seen, java.len(), "{}", String::from_utf8_lossy(&kcat.stderr));
}

// --- topics

#[tokio::test(flavor = "multi_thread")]
async fn prepare_makes_topics_that_check_finds_right() {
    let fixture = Fixture::new("prepare").await;
    let mut sink = fixture.sink();
    let missing = sink.check().await;
    let fails = missing.iter().filter(|finding| finding.verdict == Verdict::Fail);
    assert_eq!(fails.count(), 4, "{missing:?}");
    let metadata = admin(&fixture.config);
    let metadata = metadata.inner().fetch_metadata(None, Duration::from_secs(10)).unwrap();
    assert!(!metadata.topics().iter().any(|topic| topic.name().starts_with(&fixture.config.topic_prefix)));

    sink.prepare().await.unwrap();
    sink.prepare().await.unwrap();
    let findings = sink.check().await;
    assert_eq!(findings.len(), 8);
    for finding in &findings {
        let single_broker = finding.subject == "kafka brokers";
        let wanted = if single_broker { Verdict::Warn } else { Verdict::Ok };
        assert_eq!(finding.verdict, wanted, "{finding:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_another_shape_is_refused_by_name_with_the_fix() {
    for (topic, partitions, settings, message, fix) in [
        ("events", 8, ("retention.ms", "604800000"), "has 8 partitions instead of 4", "kafka.partitions = 8"),
        ("events", 4, ("cleanup.policy", "compact"), "cleanup.policy = compact", "cleanup.policy=delete"),
        ("content", 4, ("cleanup.policy", "delete"), "cleanup.policy = delete", "cleanup.policy=compact"),
        ("progress", 3, ("cleanup.policy", "compact"), "has 3 partitions instead of 1", "kafka.topic_prefix"),
        ("dlq", 1, ("max.message.bytes", "1000"), "max.message.bytes = 1000", "max.message.bytes=1010000"),
    ] {
        let fixture = Fixture::new("shape").await;
        let name = format!("{}.{topic}", fixture.config.topic_prefix);
        create_topic(&fixture.config, &name, partitions, &[settings]).await;
        let mut sink = fixture.sink();
        let error = sink.prepare().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Setup);
        assert!(error.chain().contains(&name) && error.chain().contains(message), "{error:?}");
        assert!(error.advice().contains(fix), "{error:?}");
        let findings = sink.check().await;
        let finding = findings.iter().find(|finding| finding.subject.ends_with(&name)).unwrap();
        assert_eq!(finding.verdict, Verdict::Fail);
        if finding.message.contains("partitions") {
            assert_eq!(sink.recover(&fixture.session().await).await.unwrap_err().kind(), Kind::Setup);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_replicas_than_brokers_is_refused_with_the_fix() {
    let mut fixture = Fixture::new("replicas").await;
    fixture.config.replication_factor = 3;
    let error = fixture.sink().prepare().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Setup);
    assert!(error.advice().contains("kafka.replication_factor"), "{error:?}");
}

// --- when Kafka does not answer

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_is_unavailable_soon() {
    let mut fixture = Fixture::new("down").await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    fixture.config.brokers = format!("127.0.0.1:{port}");
    fixture.config.timeout_ms = 1_000;
    let (mut sink, session, started) = (fixture.sink(), fixture.session().await, Instant::now());
    for error in [sink.recover(&session).await.unwrap_err(), sink.prepare().await.unwrap_err()] {
        assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    }
    let findings = sink.check().await;
    assert_eq!(findings[0].verdict, Verdict::Fail, "{findings:?}");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

/// librdkafka's own broker in this process: it has no isolation, and serves here for what happens when a
/// broker goes away in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_under_a_write_is_unavailable_soon() {
    let mut fixture = Fixture::new("gone").await;
    let cluster = MockCluster::new(1).unwrap();
    fixture.config.brokers = cluster.bootstrap_servers();
    fixture.config.timeout_ms = 1_000;
    for (topic, partitions) in [
        (&fixture.topics.events, 4),
        (&fixture.topics.content, 4),
        (&fixture.topics.dlq, 1),
        (&fixture.topics.progress, 1),
    ] {
        cluster.create_topic(topic, partitions, 1).unwrap();
    }
    let (mut sink, session) = (fixture.sink(), fixture.session().await);
    sink.recover(&session).await.unwrap();
    sink.write(&[events(100, 10)]).await.unwrap();
    cluster.broker_down(1).unwrap();
    let started = Instant::now();
    assert_eq!(sink.write(&[events(200, 10)]).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(sink.recover(&session).await.unwrap_err().kind(), Kind::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    cluster.broker_up(1).unwrap();
    let stored = sink.recover(&session).await.unwrap().unwrap();
    assert_eq!(stored.mark.held, Lsn(110));
    sink.write(&[events(200, 10)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_transaction_is_named_with_the_command_that_ends_it() {
    let mut fixture = Fixture::new("hung").await;
    let mut sink = fixture.ready().await;
    sink.write(&[events(100, 1)]).await.unwrap();
    // nobody ends this one for as long as the test runs
    let hung = transactional_producer(&fixture.config, &fixture.config.topic_prefix, 120_000);
    hung.begin_transaction().unwrap();
    let record = BaseRecord::<str, str>::to(&fixture.topics.progress).key("other_slot").payload("{}");
    hung.send(record).map_err(|(error, _)| error).unwrap();
    hung.flush(Duration::from_secs(10)).unwrap();

    let finding = sink.check().await.pop().unwrap();
    assert_eq!(finding.verdict, Verdict::Warn, "{finding:?}");
    let start = format!("abort --topic {} --partition 0 --start-offset 4", fixture.topics.progress);
    assert!(finding.fix.as_ref().unwrap().contains(&start), "{finding:?}");

    fixture.config.timeout_ms = 1_000;
    fixture.config.transaction_timeout_ms = 2_000;
    let error = fixture.sink().recover(&fixture.session().await).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Setup);
    assert!(error.chain().contains(&fixture.topics.progress) && error.advice().contains(&start), "{error:?}");

    hung.abort_transaction(Duration::from_secs(10)).unwrap();
    let stored = fixture.sink().recover(&fixture.session().await).await.unwrap().unwrap();
    assert_eq!(stored.mark.held, Lsn(110));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_hangs_beside_a_running_sink_is_its_trouble() {
    let mut fixture = Fixture::new("hanging").await;
    fixture.config.timeout_ms = 1_000;
    fixture.config.transaction_timeout_ms = 2_000;
    let hung = transactional_producer(&fixture.config, &fixture.config.topic_prefix, 120_000);
    let mut sink = fixture.ready().await;
    sink.write(&[events(100, 1)]).await.unwrap();
    assert_eq!(sink.trouble(), None);
    hung.begin_transaction().unwrap();
    let record = BaseRecord::<str, str>::to(&fixture.topics.events).partition(2).key("other").payload("{}");
    hung.send(record).map_err(|(error, _)| error).unwrap();
    hung.flush(Duration::from_secs(10)).unwrap();
    let within = Duration::from_secs(60);
    support::wait_until_within(within, "it is told", async || sink.trouble().is_some()).await;
    let trouble = sink.trouble().unwrap();
    let named = format!("{} partition 2", fixture.topics.events);
    let command = format!("abort --topic {} --partition 2 --start-offset ", fixture.topics.events);
    assert!(trouble.contains(&named) && trouble.contains(&command), "{trouble}");
    hung.abort_transaction(Duration::from_secs(10)).unwrap();
    support::wait_until_within(within, "it is told no more", async || sink.trouble().is_none()).await;
}

// --- cost

/// rdkafka's flush, which its commit calls, waits in steps of 100 ms while records are under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_does_not_wait_for_rdkafkas_flush() {
    let fixture = Fixture::new("cost").await;
    let mut sink = fixture.ready().await;
    let mut took = Vec::new();
    for n in 1..=20 {
        let started = Instant::now();
        sink.write(&[events(n * 1000, 300)]).await.unwrap();
        took.push(started.elapsed());
    }
    took.sort();
    println!("a write of 300 events: median {:?}, longest {:?}", took[10], took[19]);
    assert!(took[10] < Duration::from_millis(80), "{took:?}");
}
