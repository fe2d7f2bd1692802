//! A place of a test's own on the real broker, and readers that are not ours.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, Event, Row};
use walcast::lsn::{Checkpoint, HistoryId, Lsn, Position, Session, StoredCheckpoint, Timelines};
use walcast::model::content::Content;
use walcast::ops::init::migrate;
use walcast::sink::kafka::{KafkaConfig, KafkaSink, Topics};
use walcast::sink::{Sink, SinkAdmin};
use walcast::source::sql;
use walcast::state::State;

use crate::support;

pub const ROW_BYTES_MAX: usize = 900_000;
/// Long ago: what the broker rolls, compacts and deletes by its records' times does not go by it.
pub static COMMIT_TS: LazyLock<i64> = LazyLock::new(|| (now_millis() - 58 * 86_400_000) * 1_000);

pub fn now_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Whether a record's timestamp is that of a write in this test.
pub fn is_time_of_writing(millis: i64) -> bool {
    (now_millis() - 600_000..=now_millis()).contains(&millis)
}

/// A topic prefix, a database and a slot of the test's own.
pub struct Fixture {
    pub config: KafkaConfig,
    pub topics: Topics,
    pub db: String,
    pub sql: Client,
    pub history_id: HistoryId,
}

impl Fixture {
    pub async fn new(test: &str) -> Self {
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
        let mut sql = sql::connect(&support::database(&db)).await.unwrap();
        migrate(&mut sql, &support::database(&db)).await.unwrap();
        let history_id = support::made_up_history(&sql, &format!("s_{run}")).await;
        Fixture { topics: config.topics(), config, db, sql, history_id }
    }

    pub fn sink(&self) -> KafkaSink {
        KafkaSink::new(self.config.clone(), ROW_BYTES_MAX, State::new(support::database(&self.db))).unwrap()
    }

    /// A newer instance than all before.
    pub async fn session(&self) -> Session {
        let update = "UPDATE walcast.slot SET fencing_token = fencing_token + 1 RETURNING fencing_token";
        let fencing_token = self.sql.query_one(update, &[]).await.unwrap().get(0);
        Session {
            history_id: self.history_id.clone(),
            fencing_token,
            timelines: Timelines::default(),
            start: Lsn(0),
            settled_timeline: 1,
        }
    }

    /// A sink that has its topics and the newest fencing token.
    pub async fn ready(&self) -> KafkaSink {
        let mut sink = self.sink();
        let prepared = sink.prepare().await;
        prepared.unwrap_or_else(|error| panic!("no Kafka, run `make services`: {error:?}"));
        sink.recover(&self.session().await).await.unwrap();
        sink
    }

    pub fn producer(&self) -> BaseProducer {
        let id = format!("walcast.{}.{}", self.config.topic_prefix, self.history_id.slot);
        transactional_producer(&self.config, &id, 60_000)
    }

    /// What committed readers see once the broker has carried out all commits: it answers a commit as soon
    /// as that is decided, and shows it some milliseconds later.
    pub fn committed(&self, topic: &str) -> Vec<OwnedMessage> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while ends(&self.config, topic, "read_committed") != ends(&self.config, topic, "read_uncommitted") {
            assert!(Instant::now() < deadline, "{topic} has an open transaction");
        }
        read(&self.config, topic, "read_committed")
    }

    pub fn checkpoints(&self) -> Vec<StoredCheckpoint> {
        let checkpoints = self.committed(&self.topics.progress).into_iter();
        checkpoints
            .filter(|message| message.key() == Some(self.history_id.slot.as_bytes()))
            .map(|message| StoredCheckpoint::from_json(message.payload().unwrap()).unwrap())
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

pub fn admin(config: &KafkaConfig) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &config.brokers).create().unwrap()
}

pub fn transactional_producer(config: &KafkaConfig, id: &str, timeout_ms: u32) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &config.brokers)
        .set("transactional.id", id)
        .set("transaction.timeout.ms", timeout_ms.to_string())
        .create()
        .unwrap();
    producer.init_transactions(Duration::from_secs(20)).unwrap();
    producer
}

pub async fn create_topic(config: &KafkaConfig, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let topic = settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
    admin(config).create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
}

pub fn reader(config: &KafkaConfig, isolation: &str) -> BaseConsumer {
    let mut reader = ClientConfig::new();
    reader
        .set("bootstrap.servers", &config.brokers)
        .set("group.id", "walcast-test")
        .set("isolation.level", isolation);
    reader.set("enable.auto.commit", "false").set("enable.partition.eof", "true").create().unwrap()
}

pub fn partitions(reader: &BaseConsumer, topic: &str) -> Vec<i32> {
    let metadata = reader.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
    metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect()
}

/// Where each partition ends for a reader of this isolation.
pub fn ends(config: &KafkaConfig, topic: &str, isolation: &str) -> Vec<i64> {
    let reader = reader(config, isolation);
    let end = |partition| reader.fetch_watermarks(topic, partition, Duration::from_secs(10)).unwrap().1;
    partitions(&reader, topic).into_iter().map(end).collect()
}

/// All that a reader of this isolation is given.
pub fn read(config: &KafkaConfig, topic: &str, isolation: &str) -> Vec<OwnedMessage> {
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

pub fn position(commit_lsn: u64, ordinal: u64) -> Position {
    Position { commit_lsn: Lsn(commit_lsn), ordinal }
}

pub fn event(position: Position, id: i64, content_id: Option<Uuid>) -> Row {
    Row::Event(Event {
        extra: Default::default(),
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

pub fn finish(rows: Vec<Row>, held: u64) -> Arc<Batch> {
    let mut builder = BatchBuilder::new(Checkpoint::default());
    rows.into_iter().for_each(|row| builder.push(row));
    builder.hold(Lsn(held));
    Arc::new(builder.finish(false))
}

/// A transaction of `rows` events, committed at `commit_lsn`, that ends at `commit_lsn + 10`.
pub fn events(commit_lsn: u64, rows: u64) -> Arc<Batch> {
    let rows = (0..rows).map(|ordinal| {
        let id = (commit_lsn + ordinal) as i64;
        event(position(commit_lsn, ordinal), id, Some(Uuid::from_u128(u128::from(ordinal % 7))))
    });
    finish(rows.collect(), commit_lsn + 10)
}

pub fn content(id: u128, title: &str) -> Content {
    Content {
        id: Uuid::from_u128(id),
        slug: Some("a-slug".into()),
        title: Some(title.into()),
        content_type: Some("video".into()),
        length_seconds: Some(60),
        publish_ts: Some(0),
    }
}

pub fn json(message: &OwnedMessage) -> Value {
    serde_json::from_slice(message.payload().unwrap()).unwrap()
}

pub fn ids(messages: &[OwnedMessage]) -> Vec<i64> {
    messages.iter().map(|message| json(message)["event_id"].as_i64().unwrap()).collect()
}

pub fn header(message: &OwnedMessage, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    Some(String::from_utf8(found.value?.to_vec()).unwrap())
}
