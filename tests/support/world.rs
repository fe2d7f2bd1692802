//! A walcast with a database, slot, topics, Redis database and dataset of its own, run as users run it: the
//! binary, its environment, its signals and exit codes; and readers of the targets that are not walcast.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::runtime::{Handle, RuntimeFlavor};
use walcast::lsn::Lsn;
use walcast::sink::redis::RedisConfig;
use walcast::source::{PostgresConfig, role, sql};

use super::redis_server;
use super::running::Running;
use super::{drop_database, env, fresh_database, fresh_name, postgres, wait_until};

/// Commands of whoever owns the database.
const OWNERS: [&str; 4] = ["init", "generate", "check", "config"];

/// Longer than any command is given to wait.
const COMMAND_ENDS_WITHIN: Duration = Duration::from_secs(180);

/// A pipeline's surroundings.
#[derive(Clone)]
pub struct World {
    pub postgres: PostgresConfig,
    pub topic_prefix: String,
    redis: RedisConfig,
    pub dataset: String,
    binary: String,
    more: Vec<(String, String)>,
    _cleanup: Arc<Cleanup>,
}

/// Drops database, slots, topics and dataset when the last copy of a world goes, also when its test fails: a slot left
/// behind would keep WAL for ever, and Kafka and the emulator have more to do with each topic and dataset they have.
struct Cleanup {
    postgres: PostgresConfig,
    topic_prefix: String,
    dataset: String,
    _redis: redis_server::Database,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let (postgres, topic_prefix, dataset) =
            (self.postgres.clone(), self.topic_prefix.clone(), self.dataset.clone());
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                drop_dataset(&dataset).await;
                drop_topics(&topic_prefix).await;
                drop_database(&postgres).await;
            });
        });
        let multi_thread =
            Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
        let ended = match multi_thread {
            // other tasks go on meanwhile: PostgreSQL drops no database while one of them is in the middle of a login
            true => tokio::task::block_in_place(|| cleaning.join()),
            false => cleaning.join(),
        };
        if ended.is_err() {
            eprintln!("database {} could not be dropped", self.postgres.db);
        }
    }
}

/// Most worlds have none, and some no emulator.
async fn drop_dataset(dataset: &str) {
    let url = format!("{}/datasets/{dataset}?deleteContents=true", bigquery_url());
    let _ = http().delete(url).timeout(Duration::from_secs(30)).send().await;
}

/// Where a test killed the broker, it ends without.
async fn drop_topics(prefix: &str) {
    let topics = ["events", "content", "progress", "dlq"].map(|topic| format!("{prefix}.{topic}"));
    let admin: AdminClient<DefaultClientContext> = client_config().create().unwrap();
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(30)));
    let _ = admin.delete_topics(&topics.each_ref().map(String::as_str), &options).await;
}

impl World {
    /// Names for all targets; nothing is made yet.
    pub async fn new(postgres: PostgresConfig) -> World {
        let (topic_prefix, dataset) = (fresh_name("t"), fresh_name("d"));
        let database = redis_server::fresh_database().await;
        let redis: RedisConfig = database.clone();
        let cleanup = Cleanup {
            postgres: postgres.clone(),
            topic_prefix: topic_prefix.clone(),
            dataset: dataset.clone(),
            _redis: database,
        };
        World {
            topic_prefix,
            redis,
            dataset,
            binary: env!("CARGO_BIN_EXE_walcast").into(),
            more: vec![("WEB_LISTEN".into(), "127.0.0.1:0".into())],
            _cleanup: Arc::new(cleanup),
            postgres,
        }
    }

    /// On a fresh database of the main server, after `walcast init`.
    pub async fn initialised() -> World {
        let world = World::new(fresh_database(postgres()).await).await;
        world.walcast(["init"]).await.expect(0, &[]);
        world
    }

    /// The same world with one more environment variable.
    pub fn with(&self, name: &str, value: &str) -> World {
        self.with_all([(name.into(), value.into())])
    }

    /// The same world with more environment variables.
    pub fn with_all(&self, variables: impl IntoIterator<Item = (String, String)>) -> World {
        let mut world = self.clone();
        world.more.extend(variables);
        world
    }

    /// The same world with another release of walcast.
    pub fn with_binary(&self, binary: &str) -> World {
        World { binary: binary.into(), ..self.clone() }
    }

    /// A configuration file.
    pub fn file(&self, text: &str) -> String {
        let path = std::env::temp_dir().join(fresh_name("walcast-config"));
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(&self.binary);
        let postgres = &self.postgres;
        let arguments: Vec<&str> = arguments.into_iter().collect();
        // who owns the database makes what is needed; the rest is done by the small role, as it should be everywhere
        let is_owners = arguments.first().is_none_or(|name| OWNERS.contains(name));
        let user = if is_owners || postgres.user != "postgres" { &postgres.user } else { role::NAME };
        command
            .args(arguments)
            .env_clear()
            .env("WALCAST_LOG", "info")
            .env("POSTGRES_HOST", &postgres.host)
            .env("POSTGRES_PORT", postgres.port.to_string())
            .env("POSTGRES_DB", &postgres.db)
            .env("POSTGRES_USER", user)
            .env("POSTGRES_PASSWORD", postgres.password.expose())
            .env("POSTGRES_SLOT", &postgres.slot)
            .env("POSTGRES_PUBLICATION", &postgres.publication)
            .env("KAFKA_BROKERS", brokers())
            .env("KAFKA_REPLICATION_FACTOR", env("KAFKA_REPLICATION_FACTOR", "1"))
            .env("KAFKA_MIN_INSYNC_REPLICAS", env("KAFKA_MIN_INSYNC_REPLICAS", "1"))
            .env("KAFKA_TOPIC_PREFIX", &self.topic_prefix)
            .env("REDIS_HOST", &self.redis.host)
            .env("REDIS_PORT", self.redis.port.to_string())
            .env("REDIS_PASSWORD", self.redis.password.expose())
            .env("REDIS_DB", self.redis.db.to_string())
            .env("BIGQUERY_PROJECT_ID", project())
            .env("BIGQUERY_DATASET", &self.dataset)
            .env("BIGQUERY_REST_URL", env("BIGQUERY_REST_URL", "http://127.0.0.1:29050"))
            .env("BIGQUERY_GRPC_URL", env("BIGQUERY_GRPC_URL", "http://127.0.0.1:29060"))
            .env("BIGQUERY_COMMIT_SECONDS", "2")
            .envs(self.more.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end, which must come within 60 s.
    pub async fn walcast<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Ended {
        let output = self.command(arguments).output();
        let output = tokio::time::timeout(COMMAND_ENDS_WITHIN, output).await;
        Ended::of(output.expect("the command ends in time").unwrap())
    }

    /// What a command shows on a terminal, colours and all.
    pub async fn on_terminal(&self, arguments: &str) -> String {
        let walcast = self.command([]);
        let mut command = Command::new("script");
        command.args(["-qec", &format!("{} {arguments}", self.binary), "/dev/null"]).env_clear();
        command.envs(walcast.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("PATH", env("PATH", "/usr/bin:/bin")).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND_ENDS_WITHIN, command.output()).await;
        Ended::of(output.expect("the command ends in time").unwrap()).output
    }

    /// Starts `walcast run` and waits until it streams.
    pub async fn start(&self) -> Running {
        let running = self.spawn();
        running.wait_until_streaming().await;
        running
    }

    /// Starts `walcast run`.
    pub fn spawn(&self) -> Running {
        self.spawn_command("run")
    }

    /// Starts a command that runs until it is stopped.
    pub fn spawn_command(&self, name: &str) -> Running {
        let token = self.more.iter().rev().find(|(name, _)| name == "WEB_TOKEN");
        Running::spawn(self.command([name]), token.map(|(_, token)| token.clone()).unwrap_or_default())
    }

    /// `walcast verify` finds every sink whole.
    pub async fn verify(&self) {
        let verified = self.command(["verify", "--wait-seconds", "600"]).output();
        let verified = tokio::time::timeout(Duration::from_secs(900), verified).await;
        Ended::of(verified.expect("verify ends within 900 s").unwrap()).expect(0, &[]);
    }

    /// `walcast generate` at this many events a minute, until it is dropped or has ended.
    pub fn generate(&self, rate_per_minute: u32) -> Child {
        let mut command = self.command(["generate"]);
        command.env("GENERATION_RATE", rate_per_minute.to_string());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Inserts so many events, one content row an event in turn out of three, in one transaction.
    pub async fn insert_events(&self, count: i64) {
        let client = sql::connect(&self.postgres).await.unwrap();
        let insert = "
            INSERT INTO content SELECT ('00000000-0000-0000-0000-00000000000' || i)::uuid, 'slug-' || i, 'title ' || i,
              'podcast', 100, now() FROM generate_series(1, 3) AS i ON CONFLICT DO NOTHING;
            INSERT INTO engagement_events (content_id, user_id, event_type, event_ts, duration_ms, device, raw_payload)
            SELECT ('00000000-0000-0000-0000-00000000000' || 1 + i % 3)::uuid, gen_random_uuid(), 'play', now(), 1000,
              'tv', jsonb_build_object('i', i)
            FROM generate_series(1, COUNT) AS i";
        client.batch_execute(&insert.replace("COUNT", &count.to_string())).await.unwrap();
    }

    /// Where the slot begins.
    pub async fn confirmed_lsn(&self) -> Lsn {
        let client = sql::connect(&self.postgres).await.unwrap();
        let query = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
        let lsn: String = client.query_one(query, &[&self.postgres.slot]).await.unwrap().get(0);
        lsn.parse().unwrap()
    }

    /// Waits until the slot begins where the WAL ends now.
    pub async fn all_is_confirmed(&self) {
        let end = self.wal_end().await;
        wait_until("all is confirmed", async || self.confirmed_lsn().await >= end).await;
    }

    /// The end of the server's WAL.
    pub async fn wal_end(&self) -> Lsn {
        let client = sql::connect(&self.postgres).await.unwrap();
        let lsn: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        lsn.parse().unwrap()
    }

    /// Rows of `walcast.content_version`.
    pub async fn content_versions(&self) -> i64 {
        let client = sql::connect(&self.postgres).await.unwrap();
        client.query_one("SELECT count(*) FROM walcast.content_version", &[]).await.unwrap().get(0)
    }

    /// Whether the slot is there.
    pub async fn has_slot(&self) -> bool {
        let client = sql::connect(&self.postgres).await.unwrap();
        let query = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1";
        client.query_opt(query, &[&self.postgres.slot]).await.unwrap().is_some()
    }

    /// Slots of lanes, and records of them.
    pub async fn lanes(&self) -> (i64, i64) {
        let client = sql::connect(&self.postgres).await.unwrap();
        let count = "SELECT count(*) FROM pg_replication_slots, walcast.slot
            WHERE starts_with(slot_name::text, 'walcast_lane_' || left(replace(history_id::text, '-', ''), 12))";
        let slots = client.query_one(count, &[]).await.unwrap().get(0);
        (slots, client.query_one("SELECT count(*) FROM walcast.lane", &[]).await.unwrap().get(0))
    }

    /// Returns when nothing of any lane is left.
    pub async fn no_lane_is_left(&self) {
        wait_until("no lane is left over", async || self.lanes().await == (0, 0)).await;
    }

    /// Waits until each sink holds so many events, each once.
    pub async fn wait_until_all_hold(&self, events: usize) {
        wait_until("Kafka holds all", async || self.kafka_ids().await.len() >= events).await;
        wait_until("Redis holds all", async || self.redis_plays().await >= events as i64).await;
        wait_until("BigQuery holds all", async || self.bigquery_count().await >= events).await;
        self.check_each_once(events).await;
    }

    /// Each sink holds so many events, none of them twice.
    pub async fn check_each_once(&self, events: usize) {
        for (sink, ids) in [("Kafka", self.kafka_ids().await), ("BigQuery", self.bigquery_ids().await)] {
            assert_eq!(ids.len(), events, "{sink} holds another number of events");
            assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), events, "{sink} holds an event twice");
        }
        assert_eq!(self.redis_plays().await, events as i64, "Redis counts another number of events");
    }

    /// Each sink holds at least so many events.
    pub async fn check_all_hold_at_least(&self, events: usize) {
        assert!(self.kafka_ids().await.len() >= events, "Kafka holds fewer than {events}");
        assert!(self.redis_plays().await >= events as i64, "Redis holds fewer than {events}");
        assert!(self.bigquery_ids().await.len() >= events, "BigQuery holds fewer than {events}");
    }

    /// The values of the events topic, in order within each partition, as a `read_committed` reader sees them.
    pub async fn kafka_events(&self) -> Vec<Value> {
        self.kafka_topic("events")
            .await
            .into_iter()
            .map(|value| serde_json::from_slice(&value).unwrap())
            .collect()
    }

    pub async fn kafka_ids(&self) -> Vec<i64> {
        self.kafka_events().await.iter().map(|event| event["event_id"].as_i64().unwrap()).collect()
    }

    /// The values of one of our topics.
    pub async fn kafka_topic(&self, name: &str) -> Vec<Vec<u8>> {
        let topic = format!("{}.{name}", self.topic_prefix);
        tokio::task::spawn_blocking(move || {
            read_topic(&topic, |message| message.payload().unwrap_or_default().to_vec())
        })
        .await
        .unwrap()
    }

    /// What the records of one of our topics have in this header.
    pub async fn kafka_headers(&self, name: &str, key: &'static str) -> Vec<String> {
        let topic = format!("{}.{name}", self.topic_prefix);
        let header = move |message: &BorrowedMessage<'_>| {
            let mut headers = message.headers().unwrap().iter();
            let value = headers.find(|header| header.key == key).and_then(|header| header.value).unwrap();
            String::from_utf8(value.to_vec()).unwrap()
        };
        tokio::task::spawn_blocking(move || read_topic(&topic, header)).await.unwrap()
    }

    /// All records of one of our topics, whole.
    pub async fn copy_of_topic(&self, name: &str) -> Vec<OwnedMessage> {
        let topic = format!("{}.{name}", self.topic_prefix);
        tokio::task::spawn_blocking(move || read_topic(&topic, |message| message.detach())).await.unwrap()
    }

    /// Puts a topic's records where they were, as a tool that mirrors topics does.
    pub async fn put_back(&self, records: &[OwnedMessage]) {
        let producer: FutureProducer = client_config().create().unwrap();
        for record in records {
            let (key, payload, headers) = (record.key(), record.payload(), record.headers().cloned());
            let partition = Some(record.partition());
            let (topic, timestamp) = (record.topic(), record.timestamp().to_millis());
            let copy = FutureRecord { topic, partition, payload, key, timestamp, headers };
            producer.send(copy, Duration::from_secs(10)).await.unwrap();
        }
    }

    /// Puts a record into one of our topics, as anybody might.
    pub async fn produce(&self, name: &str, key: &str, value: &[u8]) {
        let producer: FutureProducer = client_config().create().unwrap();
        let topic = format!("{}.{name}", self.topic_prefix);
        let record = FutureRecord::to(&topic).key(key).payload(value).partition(0);
        producer.send(record, Duration::from_secs(10)).await.unwrap();
    }

    /// How far a reader of this isolation sees into the events topic: the sum of its partitions' ends.
    pub async fn kafka_end(&self, isolation: &'static str) -> i64 {
        let topic = format!("{}.events", self.topic_prefix);
        let end = move || {
            let reader: BaseConsumer = client_config()
                .set("group.id", "walcast-tests")
                .set("isolation.level", isolation)
                .create()
                .unwrap();
            let end =
                |partition| reader.fetch_watermarks(&topic, partition, Duration::from_secs(10)).unwrap().1;
            (0..16).map(end).sum()
        };
        tokio::task::spawn_blocking(end).await.unwrap()
    }

    /// Makes a topic the way an operator might have.
    pub async fn create_topic(&self, name: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = client_config().create().unwrap();
        let topic = format!("{}.{name}", self.topic_prefix);
        let topic = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
    }

    /// Deletes a topic, and returns when it is gone.
    pub async fn delete_topic(&self, name: &str) {
        let admin: AdminClient<DefaultClientContext> = client_config().create().unwrap();
        let topic = format!("{}.{name}", self.topic_prefix);
        let deleted = admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    }

    /// Deletes all records of a topic, as its retention would.
    pub async fn delete_records(&self, name: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = client_config().create().unwrap();
        let topic = format!("{}.{name}", self.topic_prefix);
        let mut all = TopicPartitionList::new();
        for partition in 0..partitions {
            all.add_partition_offset(&topic, partition, Offset::End).unwrap();
        }
        admin.delete_records(&all, &AdminOptions::new()).await.unwrap();
    }

    /// Our topics: each with its partitions, and how far each goes.
    pub async fn kafka_topics(&self) -> Vec<String> {
        let prefix = format!("{}.", self.topic_prefix);
        let look = move || {
            let reader: BaseConsumer = client_config().set("group.id", "walcast-tests").create().unwrap();
            let timeout = Duration::from_secs(10);
            let metadata = reader.fetch_metadata(None, timeout).unwrap();
            let ours = metadata.topics().iter().filter(|topic| topic.name().starts_with(&prefix));
            let partitions =
                ours.flat_map(|topic| topic.partitions().iter().map(|one| (topic.name(), one.id())));
            let mut told: Vec<String> = partitions
                .map(|(name, id)| {
                    format!("{name} {id} {:?}", reader.fetch_watermarks(name, id, timeout).unwrap())
                })
                .collect();
            told.sort();
            told
        };
        tokio::task::spawn_blocking(look).await.unwrap()
    }

    /// Where Redis listens.
    pub fn redis_port(&self) -> u16 {
        self.redis.port
    }

    /// A connection to this world's Redis database.
    pub async fn redis(&self) -> redis::aio::MultiplexedConnection {
        redis_server::connect(&self.redis).await
    }

    /// The sum of all plays of all days.
    pub async fn redis_plays(&self) -> i64 {
        let mut redis = self.redis().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("engagement:*").query_async(&mut redis).await.unwrap();
        let mut plays = 0;
        for key in keys {
            let count: Option<i64> =
                redis::cmd("HGET").arg(key).arg("plays").query_async(&mut redis).await.unwrap();
            plays += count.unwrap_or_default();
        }
        plays
    }

    /// Runs a query at the emulator; a row's values in order.
    pub async fn bigquery(&self, query: &str) -> Vec<Vec<Value>> {
        let answer = self.try_bigquery(query).await;
        rows_of(query, &answer)
    }

    /// Runs a query at the emulator; what it answers, which may be an error.
    pub async fn try_bigquery(&self, query: &str) -> Value {
        ask_bigquery(&bigquery_url(), query, None).await
    }

    /// How many rows the events table has: cheap for the emulator, which the ids are not.
    pub async fn bigquery_count(&self) -> usize {
        let rows = self.bigquery(&format!("SELECT COUNT(*) FROM {}.engagement_events", self.dataset)).await;
        rows[0][0].as_str().unwrap().parse().unwrap()
    }

    pub async fn bigquery_ids(&self) -> Vec<i64> {
        let rows = self.bigquery(&format!("SELECT event_id FROM {}.engagement_events", self.dataset)).await;
        rows.iter().map(|row| row[0].as_str().unwrap().parse().unwrap()).collect()
    }
}

/// How a command ended.
pub struct Ended {
    pub code: Option<i32>,
    /// Standard output, then standard error.
    pub output: String,
}

impl Ended {
    fn of(output: std::process::Output) -> Ended {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: output.status.code(), output: text(&output.stdout) + &text(&output.stderr) }
    }

    /// The exit code, and words that the output must have.
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.output);
        for word in words {
            assert!(self.output.contains(word), "no {word:?} in: {}", self.output);
        }
    }
}

/// A client for all tests. It keeps no connection, as each belongs to the runtime of one test.
pub fn http() -> &'static reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> =
        LazyLock::new(|| reqwest::Client::builder().pool_max_idle_per_host(0).no_proxy().build().unwrap());
    &CLIENT
}

fn brokers() -> String {
    env("KAFKA_BROKERS", "127.0.0.1:29092")
}

/// The emulator's REST address, of our project.
fn bigquery_url() -> String {
    let url = env("BIGQUERY_REST_URL", "http://127.0.0.1:29050");
    format!("{url}/bigquery/v2/projects/{}", project())
}

/// What the emulator at the address of a project answers to a query, which may be an error.
pub async fn ask_bigquery(project_url: &str, query: &str, dataset: Option<&str>) -> Value {
    let mut body = serde_json::json!({ "query": query, "useLegacySql": false, "timeoutMs": 30_000 });
    if let Some(dataset) = dataset {
        body["defaultDataset"] = serde_json::json!({ "datasetId": dataset });
    }
    let request = http().post(format!("{project_url}/queries")).json(&body).timeout(Duration::from_secs(60));
    request.send().await.unwrap().json().await.unwrap()
}

/// The rows of an answer, each its values in order.
pub fn rows_of(query: &str, answer: &Value) -> Vec<Vec<Value>> {
    assert!(answer.get("error").is_none(), "{query}: {answer}");
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    let values = |row: Value| row["f"].as_array().unwrap().iter().map(|field| field["v"].clone()).collect();
    rows.into_iter().map(values).collect()
}

fn project() -> String {
    env("BIGQUERY_PROJECT_ID", "walcast-local")
}

fn client_config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers());
    config
}

/// A topic up to its end as of now, partition after partition: one that is still written to has no other.
fn read_topic<T>(topic: &str, take: impl Fn(&BorrowedMessage<'_>) -> T) -> Vec<T> {
    let timeout = Duration::from_secs(10);
    let consumer: BaseConsumer = client_config()
        .set("group.id", "walcast-tests")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), timeout).unwrap();
    let mut assignment = TopicPartitionList::new();
    let mut ends = BTreeMap::new();
    for partition in metadata.topics()[0].partitions() {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
        ends.insert(partition.id(), consumer.fetch_watermarks(topic, partition.id(), timeout).unwrap().1);
    }
    consumer.assign(&assignment).unwrap();
    let mut values = BTreeMap::new();
    while !ends.is_empty() {
        match consumer.poll(timeout).expect("the topic is read to its end within 10 s") {
            Ok(message) => {
                // a marker of a transaction may stand last, which no reader is given
                if ends.get(&message.partition()).is_some_and(|end| message.offset() + 1 >= *end) {
                    ends.remove(&message.partition());
                }
                values.insert((message.partition(), message.offset()), take(&message));
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(partition)) => drop(ends.remove(&partition)),
            Err(error) => panic!("{error}"),
        }
    }
    values.into_values().collect()
}
