//! `[kafka]`, and what librdkafka is told.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::event::encoding::{self, Encoding, PayloadForm};
use crate::hop::{host_of, is_loopback};

/// What a record may have beside the row: the content's columns, names, escapes.
const RECORD_OVERHEAD_BYTES: usize = 100_000;
/// A record's key, headers and batch header.
const FRAME_BYTES: usize = 10_000;

/// `[kafka]`: where events go, and what the topics look like.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// Brokers to contact first: `host:port,host:port`.
    pub brokers: String,
    /// The topics are `<prefix>.events`, `<prefix>.content`, `<prefix>.dlq` and `<prefix>.progress`.
    pub topic_prefix: String,
    /// Partitions of the events topic and of the content topic. It cannot change once there are records, because it
    /// decides the partition of each content id.
    pub partitions: u16,
    /// Copies of each partition. Use 1 on a single broker.
    pub replication_factor: u16,
    /// Copies that must have a record before Kafka acknowledges it. Use 1 on a single broker.
    pub min_insync_replicas: u16,
    /// How long Kafka keeps events, in hours; -1 keeps them for ever.
    pub events_retention_hours: i64,
    /// How long Kafka keeps dead letters, in hours; -1 keeps them for ever.
    pub dead_letter_retention_hours: i64,
    /// The producer's transactional id, by which Kafka shuts out older instances. Unset: made from the topic prefix
    /// and the slot name.
    pub transactional_id: Option<String>,
    /// The encoding of records: `json`.
    pub format: String,
    /// How a record has `raw_payload`. `json`: nested, as it stands. `text`: as a text that holds the JSON, so that a
    /// reader that cannot read all JSON can read every record.
    pub raw_payload: PayloadForm,
    /// What records are compressed by: `lz4`, `zstd`, `gzip`, `snappy` or `none`. Not every reader has each of them:
    /// docs/sinks/kafka.md names the plug-ins.
    pub compression: Compression,
    /// How old the first event of a transaction may become, in milliseconds, before walcast commits it. A shorter
    /// interval shows events sooner and costs the brokers more: each transaction writes a marker into every
    /// partition it touches.
    pub commit_interval_ms: u64,
    /// Largest transaction, in bytes of rows.
    pub write_bytes_max: usize,
    /// How long the brokers may be silent, in milliseconds, before they count as unavailable.
    pub timeout_ms: u64,
    /// After how long, in milliseconds, Kafka aborts a transaction whose producer has died.
    pub transaction_timeout_ms: u64,
    /// More librdkafka settings, by librdkafka's names: `security.protocol`, `sasl.username` and so on. In the
    /// environment: a JSON object.
    #[schemars(with = "BTreeMap<String, String>")]
    pub properties: Properties,
}

/// What records are compressed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Little work for both sides.
    Lz4,
    /// The smallest records.
    Zstd,
    /// What every reader has.
    Gzip,
    /// As lz4, for readers that have no lz4.
    Snappy,
    /// Records go as they are.
    None,
}

impl Compression {
    /// As librdkafka names it.
    fn name(self) -> &'static str {
        match self {
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::None => "none",
        }
    }
}

impl Default for KafkaConfig {
    fn default() -> Self {
        KafkaConfig {
            brokers: "127.0.0.1:9092".into(),
            topic_prefix: "engagement".into(),
            partitions: 16,
            replication_factor: 3,
            min_insync_replicas: 2,
            events_retention_hours: 7 * 24,
            dead_letter_retention_hours: 14 * 24,
            transactional_id: None,
            format: encoding::json::Json.name().into(),
            raw_payload: PayloadForm::Json,
            compression: Compression::Lz4,
            commit_interval_ms: 50,
            write_bytes_max: 4 << 20,
            timeout_ms: 10_000,
            transaction_timeout_ms: 60_000,
            properties: Properties::default(),
        }
    }
}

impl KafkaConfig {
    /// Refuses settings that cannot work, naming the field.
    pub fn validate(&self) -> Result<()> {
        let prefix = &self.topic_prefix;
        let names: Vec<&str> = encoding::ENCODINGS.iter().map(|encoding| encoding.name()).collect();
        let formats = format!("give {}", names.join(", "));
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let faults = [
            (self.brokers.trim().is_empty(), "kafka.brokers is empty", "give host:port,host:port"),
            (
                prefix.is_empty() || prefix.len() > 200 || !prefix.chars().all(legal),
                "kafka.topic_prefix is not a topic name",
                "use letters, digits, dot, underscore and minus, at most 200 of them",
            ),
            (encoding::named(&self.format).is_none(), "kafka.format is no format that walcast has", &formats),
            (self.partitions == 0, "kafka.partitions is 0", "give at least 1"),
            (self.replication_factor == 0, "kafka.replication_factor is 0", "give at least 1"),
            (
                self.min_insync_replicas == 0 || self.min_insync_replicas > self.replication_factor,
                "kafka.min_insync_replicas is not between 1 and kafka.replication_factor",
                "2 of 3 in production, 1 of 1 on a single broker",
            ),
            (
                self.timeout_ms < 1_000 || self.timeout_ms > self.transaction_timeout_ms,
                "kafka.timeout_ms is not between 1000 and kafka.transaction_timeout_ms",
                "the defaults are 10000 and 60000",
            ),
            (
                self.transaction_timeout_ms > 900_000,
                "kafka.transaction_timeout_ms is above 900000",
                "brokers allow 15 minutes unless told otherwise",
            ),
        ];
        match faults.into_iter().find(|(broken, ..)| *broken) {
            Some((_, message, hint)) => Err(Error::new(Code::Configuration, message).hint(hint)),
            None => Ok(()),
        }
    }

    /// The topics' names.
    pub fn topics(&self) -> Topics {
        let name = |what: &str| format!("{}.{what}", self.topic_prefix);
        Topics {
            events: name("events"),
            content: name("content"),
            dlq: name("dlq"),
            progress: name("progress"),
        }
    }

    /// What records are written in, and read back.
    pub fn encoding(&self) -> &'static dyn Encoding {
        encoding::named(&self.format).unwrap_or(&encoding::json::Json).with_payload(self.raw_payload)
    }

    /// How many partitions each topic has.
    pub(super) fn partitioning(&self) -> [(String, u16); 4] {
        let Topics { events, content, dlq, progress } = self.topics();
        [(events, self.partitions), (content, self.partitions), (dlq, 1), (progress, 1)]
    }

    /// See [`KafkaConfig::transactional_id`].
    pub(super) fn transactional_id_for(&self, slot: &str) -> String {
        self.transactional_id.clone().unwrap_or_else(|| format!("walcast.{}.{slot}", self.topic_prefix))
    }

    /// The brokers to contact first, each as `host:port`.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &str> {
        let addresses = self.brokers.split(',').map(str::trim).filter(|address| !address.is_empty());
        addresses.map(|address| address.split_once("://").map_or(address, |(_, address)| address))
    }

    fn protocol(&self) -> String {
        self.properties.get("security.protocol").unwrap_or("plaintext").to_ascii_lowercase()
    }

    /// Whether connections are encrypted.
    pub(super) fn has_tls(&self) -> bool {
        matches!(self.protocol().as_str(), "ssl" | "sasl_ssl")
    }

    /// Whether walcast logs in.
    pub(super) fn has_sasl(&self) -> bool {
        self.protocol().starts_with("sasl")
    }

    /// The command that allows this user an operation on what `on` says.
    pub(super) fn allow(&self, operation: &str, on: &str) -> String {
        let user = self.properties.get("sasl.username").unwrap_or("walcast");
        let brokers = &self.brokers;
        format!(
            "kafka-acls.sh --bootstrap-server {brokers} --add --allow-principal User:{user} --operation {operation} {on}"
        )
    }

    /// Whether rows, and perhaps a password, travel in clear where others may listen.
    pub(super) fn is_exposed(&self) -> bool {
        !self.has_tls() && !self.addresses().all(|address| is_loopback(host_of(address)))
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// How long a transaction may stay open at most when all is well: the time-out, and the 10 s that
    /// brokers let pass between two looks at it.
    pub(super) fn transaction_open_max(&self) -> Duration {
        Duration::from_millis(self.transaction_timeout_ms) + Duration::from_secs(10)
    }

    /// What every client of ours is told.
    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        for (name, value) in &self.properties.0 {
            client.set(name, value);
        }
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "walcast")
            .set("allow.auto.create.topics", "false")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.timeout.ms", self.timeout_ms.to_string())
            .set("topic.metadata.refresh.sparse", "true");
        client
    }

    /// The transactional producer.
    pub(super) fn producer(&self, transactional_id: &str, row_bytes_max: usize) -> ClientConfig {
        let mut client = self.client();
        client
            .set("transactional.id", transactional_id)
            .set("transaction.timeout.ms", self.transaction_timeout_ms.to_string())
            .set("message.timeout.ms", self.timeout_ms.to_string())
            .set("message.max.bytes", message_bytes_max(row_bytes_max).to_string())
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", queue_kbytes(row_bytes_max).to_string())
            .set("acks", "all")
            .set("delivery.report.only.error", "true");
        for (name, value) in [
            ("compression.type", self.compression.name()),
            ("linger.ms", "1"),
            ("batch.num.messages", "10000"),
            ("retry.backoff.ms", "10"),
        ] {
            if !self.properties.0.contains_key(name) {
                client.set(name, value);
            }
        }
        client
    }

    /// A reader that joins no group and keeps no offsets.
    pub(super) fn reader(&self, isolation: &str) -> ClientConfig {
        let mut client = self.client();
        client
            .set("group.id", format!("walcast.{}", self.topic_prefix))
            .set("isolation.level", isolation)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest");
        client
    }
}

/// The largest record sent: what is above becomes a dead letter.
pub(super) fn record_bytes_max(row_bytes_max: usize) -> usize {
    row_bytes_max.saturating_add(RECORD_OVERHEAD_BYTES)
}

/// What the topics' `max.message.bytes` must allow.
pub(super) fn message_bytes_max(row_bytes_max: usize) -> usize {
    record_bytes_max(row_bytes_max).saturating_add(FRAME_BYTES)
}

/// librdkafka's queue: small, for memory's sake, and large enough for some of the largest records.
fn queue_kbytes(row_bytes_max: usize) -> usize {
    (4 << 10).max(4 * message_bytes_max(row_bytes_max) / 1024)
}

/// The topics' names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Enriched events.
    pub events: String,
    /// The newest state of every content row.
    pub content: String,
    /// Dead letters.
    pub dlq: String,
    /// Checkpoints, one key a slot.
    pub progress: String,
}

/// Settings that carry the promise, or that have a name of their own in `[kafka]`.
const OURS: [&str; 14] = [
    "acks",
    "allow.auto.create.topics",
    "bootstrap.servers",
    "delivery.report.only.error",
    "enable.auto.commit",
    "enable.idempotence",
    "group.id",
    "isolation.level",
    "message.max.bytes",
    "message.timeout.ms",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "transaction.timeout.ms",
    "transactional.id",
];

/// A table of librdkafka's settings, written as `"sasl.username" = "x"` or as `sasl.username = "x"`.
/// Secrets among them are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// The value of one.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn shown(&self) -> impl Iterator<Item = (&str, &str)> {
        let shown = |name: &str, value| if is_shown(name) { value } else { "***" };
        self.0.iter().map(move |(name, value)| (name.as_str(), shown(name, value)))
    }
}

/// Whether the value of a setting of librdkafka may be shown.
pub(super) fn is_shown(name: &str) -> bool {
    SHOWN.contains(&name)
}

/// The settings of librdkafka whose values tell nobody a secret. What is not known to be harmless is hidden: librdkafka has
/// passwords, keys and tokens under many names, and more with each version.
const SHOWN: [&str; 33] = [
    "batch.num.messages",
    "batch.size",
    "broker.address.family",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "enable.ssl.certificate.verification",
    "fetch.max.bytes",
    "linger.ms",
    "message.send.max.retries",
    "metadata.max.age.ms",
    "queue.buffering.max.ms",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.timeout.ms",
    "retries",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.method",
    "sasl.username",
    "security.protocol",
    "socket.keepalive.enable",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.cipher.suites",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
];

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shown()).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.shown())
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut properties = BTreeMap::new();
        for (name, value) in BTreeMap::<String, Value>::deserialize(deserializer)? {
            flatten(name, value, &mut properties).map_err(D::Error::custom)?;
        }
        Ok(Properties(properties))
    }
}

/// An unquoted dotted name is a table within a table for TOML.
fn flatten(name: String, value: Value, properties: &mut BTreeMap<String, String>) -> Result<(), String> {
    let text = match value {
        Value::Object(inner) => {
            return inner
                .into_iter()
                .try_for_each(|(part, value)| flatten(format!("{name}.{part}"), value, properties));
        }
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Null | Value::Array(_) => {
            return Err(format!("{name}: a text, a number or true or false is expected"));
        }
    };
    if OURS.contains(&name.as_str()) {
        return Err(format!("{name} is walcast's own to set: leave it out"));
    }
    properties.insert(name, text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use figment::Figment;
    use figment::providers::{Format, Toml};

    use super::*;

    fn from_toml(text: &str) -> Result<KafkaConfig, String> {
        Figment::from(Toml::string(text)).extract().map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_valid() {
        assert!(KafkaConfig::default().validate().is_ok());
        assert_eq!(KafkaConfig::default().topics().events, "engagement.events");
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (text, field) in [
            ("brokers = ' '", "kafka.brokers"),
            ("topic_prefix = 'a b'", "kafka.topic_prefix"),
            ("partitions = 0", "kafka.partitions"),
            ("replication_factor = 1", "kafka.min_insync_replicas"),
            ("timeout_ms = 999", "kafka.timeout_ms"),
            ("timeout_ms = 70000", "kafka.timeout_ms"),
            ("transaction_timeout_ms = 1000000", "kafka.transaction_timeout_ms"),
        ] {
            let error = from_toml(text).unwrap().validate().unwrap_err();
            assert!(error.to_string().contains(field), "{text}: {error}");
            assert_eq!(error.code(), Code::Configuration);
        }
        assert!(from_toml("brokrs = 'x'").unwrap_err().contains("brokrs"));
    }

    #[test]
    fn properties_are_read_in_both_spellings_and_hide_secrets() {
        let config = from_toml(
            "[properties]\nsecurity.protocol = 'SASL_SSL'\nsasl.password = 'hunter2'\n'sasl.username' = 'w'\n\
             'ssl.key.pem' = 'hunter2'\n\
             'sasl.oauthbearer.assertion.private.key.passphrase' = 'hunter2'\n'of.a.later.version' = 'hunter2'\n'enable.ssl.certificate.verification' = false\n'linger.ms' = 7",
        )
        .unwrap();
        let client = config.producer("id", 1000);
        for (name, value) in [
            ("security.protocol", "SASL_SSL"),
            ("sasl.password", "hunter2"),
            ("enable.ssl.certificate.verification", "false"),
            ("linger.ms", "7"),
        ] {
            assert_eq!(client.get(name), Some(value));
        }
        let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("SASL_SSL"), "{shown}");
    }

    #[test]
    fn records_are_compressed_as_told() {
        for (text, compression) in [
            ("", "lz4"),
            ("compression = 'zstd'", "zstd"),
            ("compression = 'none'", "none"),
            ("compression = 'zstd'\n[properties]\n'compression.type' = 'gzip'", "gzip"),
        ] {
            let client = from_toml(text).unwrap().producer("id", 1000);
            assert_eq!(client.get("compression.type"), Some(compression), "{text}");
        }
        assert!(from_toml("compression = 'lz5'").unwrap_err().contains("lz5"));
    }

    #[test]
    fn what_leaves_this_machine_without_tls_is_exposed() {
        let exposed = |text: &str| from_toml(text).unwrap().is_exposed();
        for text in [
            "brokers = 'kafka:9092'",
            "brokers = '127.0.0.1:9092, PLAINTEXT://10.0.0.7:9092'",
            "brokers = 'kafka:9092'\n[properties]\n'security.protocol' = 'sasl_plaintext'",
        ] {
            assert!(exposed(text), "{text}");
        }
        for text in [
            "brokers = '127.0.0.1:9092,[::1]:9092'",
            "brokers = 'kafka:9092'\n[properties]\n'security.protocol' = 'SASL_SSL'",
        ] {
            assert!(!exposed(text), "{text}");
        }
    }

    #[test]
    fn properties_cannot_break_the_promise() {
        for text in ["acks = 1", "'enable.idempotence' = false", "isolation.level = 'read_uncommitted'"] {
            let error = from_toml(&format!("[properties]\n{text}")).unwrap_err();
            assert!(error.contains("walcast's own"), "{error}");
        }
        assert!(from_toml("[properties]\nx = []").unwrap_err().contains("x: a text"));
    }
}
