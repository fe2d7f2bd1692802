//! The topics as they must be: made when they are missing, checked when they are there, never changed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::config::{KafkaConfig, Topics, message_bytes_max};
use super::error::{Reports, bad_settings, classify, definite};
use super::hung_transactions::{commands, lasting_transactions};
use super::reach::reach;
use super::thread::spawn;
use super::versions;
use crate::error::{self, Error, Result};
use crate::finding::{Finding, Verdict, refuse};
use crate::hop::in_clear;

/// The longest segment of the progress topic.
const SEGMENT_BYTES: u64 = 50 << 20;
/// How long the markers of transactions stay in the progress topic. Its readers take seconds to read past them.
const MARKERS_KEPT_MS: u64 = 600_000;
/// The id of a topic's finding.
const TOPIC: &str = "kafka.topic";

/// Makes the topics that are missing, and refuses those of another shape.
pub(super) async fn prepare(config: &KafkaConfig, row_bytes_max: usize) -> Result<()> {
    on_thread(config, row_bytes_max, |cluster| async move {
        for wanted in &cluster.wanted {
            if cluster.found(&wanted.name).await?.is_none() {
                cluster.create(wanted).await?;
            }
        }
        let mut findings = Vec::new();
        for wanted in &cluster.wanted {
            findings.push(wanted.finding(cluster.found(&wanted.name).await?.as_ref(), &cluster.config));
        }
        for finding in findings.iter().filter(|finding| finding.verdict == Verdict::Warn) {
            tracing::warn!("{}: {}", finding.subject, finding.message);
        }
        refuse(&findings)
    })
    .await
}

/// Deletes all records of events, below where they end now. Offsets go on from there.
pub(super) async fn empty(config: &KafkaConfig, row_bytes_max: usize) -> Result<()> {
    on_thread(config, row_bytes_max, |cluster| async move {
        let events = cluster.config.topics().events;
        let mut to_the_end = TopicPartitionList::new();
        for partition in 0..i32::from(cluster.config.partitions) {
            let added = to_the_end.add_partition_offset(&events, partition, Offset::End);
            added.map_err(|error| cluster.failed("delete records", error))?;
        }
        let deleted = cluster.admin.delete_records(&to_the_end, &cluster.options()).await;
        let deleted = deleted.map_err(|error| cluster.failed("delete records", error))?;
        for partition in deleted.elements() {
            partition.error().map_err(|error| cluster.failed("delete records", error))?;
        }
        Ok(())
    })
    .await
}

/// What is there and what is wrong with it. Changes nothing.
pub(super) async fn check(
    config: &KafkaConfig,
    row_bytes_max: usize,
    transactional_id: &str,
) -> Result<Vec<Finding>> {
    let transactional_id = transactional_id.to_owned();
    on_thread(config, row_bytes_max, |cluster| async move {
        let (brokers, broker, addresses) = cluster.brokers()?;
        let mut findings = vec![brokers, versions::finding(&cluster.config, &addresses)];
        if cluster.config.is_exposed() {
            let fix = "set security.protocol in kafka.properties to ssl or sasl_ssl: docs/sinks/kafka.md";
            findings.push(in_clear("kafka.tls", "kafka connection", fix));
        }
        findings.extend(cluster.limits(broker, &transactional_id).await);
        let mut complete = true;
        for wanted in &cluster.wanted {
            let found = cluster.found(&wanted.name).await?;
            complete &=
                found.as_ref().is_some_and(|found| found.partitions == usize::from(wanted.partitions));
            findings.push(wanted.finding(found.as_ref(), &cluster.config));
        }
        if complete {
            findings.push(open_transactions(&cluster.config)?);
        }
        Ok(findings)
    })
    .await
}

/// How long events stay in their topic, milliseconds; `None`: for ever, or this user is not told.
pub(super) async fn retention_ms(config: &KafkaConfig, row_bytes_max: usize) -> Result<Option<i64>> {
    on_thread(config, row_bytes_max, |cluster| async move {
        let found = cluster.found(&cluster.config.topics().events).await?;
        let settings = found.as_ref().and_then(|found| found.settings.as_ref());
        let millis = settings.and_then(|settings| settings.get("retention.ms")?.parse().ok());
        Ok(millis.filter(|millis: &i64| *millis > 0))
    })
    .await
}

/// How long records stay in the topics that have whole events, in words.
pub(super) async fn kept(config: &KafkaConfig, row_bytes_max: usize) -> Result<Vec<String>> {
    on_thread(config, row_bytes_max, |cluster| async move {
        let Topics { events, dlq, .. } = cluster.config.topics();
        let mut kept = Vec::new();
        for topic in [events, dlq] {
            let Some(found) = cluster.found(&topic).await? else { continue };
            let retention = found.settings.as_ref().and_then(|settings| settings.get("retention.ms"));
            kept.push(format!("{topic} keeps them {}", retention_words(retention.map(String::as_str))));
        }
        Ok(kept)
    })
    .await
}

/// How long that is, and until when from now on.
fn retention_words(millis: Option<&str>) -> String {
    match millis.map(str::parse::<i64>) {
        None | Some(Err(_)) => "for as long as its retention.ms, which this user is not told".into(),
        Some(Ok(..0)) => "for ever".into(),
        Some(Ok(millis)) => {
            let until = Timestamp::now().checked_add(SignedDuration::from_millis(millis));
            let until =
                until.map(|until| format!(": the last are gone soon after {until:.0}")).unwrap_or_default();
            format!("for {} hours{until}", millis / 3_600_000)
        }
    }
}

fn open_transactions(config: &KafkaConfig) -> Result<Finding> {
    let (id, subject) = ("kafka.transactions", "kafka transactions");
    let lasting = lasting_transactions(config)?;
    let Some(first) = lasting.first() else { return Ok(Finding::ok(id, subject, "all transactions end")) };
    let message = format!(
        "{} partitions have a transaction that does not end, such as {} partition {} at offset {}: one of \
         walcast's ends within {} s, another's when its own time-out has passed",
        lasting.len(),
        first.topic,
        first.partition,
        first.offset,
        config.transaction_open_max().as_secs()
    );
    Ok(Finding::warn(id, subject, message, commands(&lasting, config)))
}

/// Runs `work` on a thread of its own: some of librdkafka's calls block.
async fn on_thread<T, F>(
    config: &KafkaConfig,
    row_bytes_max: usize,
    work: impl FnOnce(Cluster) -> F + Send + 'static,
) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
{
    let (done, outcome) = oneshot::channel();
    let (config, runtime) = (config.clone(), Handle::current());
    spawn("kafka-admin", move || {
        let cluster = Cluster::new(config, row_bytes_max);
        drop(done.send(cluster.and_then(|cluster| runtime.block_on(work(cluster)))));
    })?;
    outcome.await.map_err(|_| Error::new(error::Code::Unavailable, "Kafka: the admin client has ended"))?
}

struct Cluster {
    admin: AdminClient<Reports>,
    config: KafkaConfig,
    wanted: [Wanted; 4],
}

/// A topic as the cluster has it.
struct Found {
    partitions: usize,
    replication: usize,
    has_leaders: bool,
    /// `None` when this user may not be told.
    settings: Option<Settings>,
}

type Settings = BTreeMap<String, String>;

impl Cluster {
    fn new(config: KafkaConfig, row_bytes_max: usize) -> Result<Self> {
        reach(&config)?;
        let admin = config.client().create_with_context(Reports::default()).map_err(bad_settings)?;
        let wanted = wanted(&config, row_bytes_max);
        Ok(Cluster { admin, config, wanted })
    }

    /// The brokers, the id of one, and where they all are.
    fn brokers(&self) -> Result<(Finding, i32, Vec<String>)> {
        let metadata =
            self.admin.inner().fetch_metadata(Some(&self.config.topics().events), self.config.timeout());
        let metadata = metadata.map_err(|error| self.failed("reach the brokers", error))?;
        let any = metadata.brokers().first().map(|broker| broker.id()).unwrap_or_default();
        let at =
            metadata.brokers().iter().map(|broker| format!("{}:{}", broker.host(), broker.port())).collect();
        let brokers = metadata.brokers().len();
        let (id, subject) = ("kafka.brokers", "kafka brokers");
        let KafkaConfig { replication_factor, min_insync_replicas, brokers: addresses, .. } = &self.config;
        if brokers < usize::from(*replication_factor) {
            let message =
                format!("{brokers} at {addresses}, and kafka.replication_factor is {replication_factor}");
            let fix = format!(
                "export KAFKA_REPLICATION_FACTOR={brokers} KAFKA_MIN_INSYNC_REPLICAS={}",
                min_insync_replicas.min(&(brokers as u16))
            );
            return Ok((Finding::fail(error::Code::KafkaRefused, id, subject, message, fix), any, at));
        }
        if *min_insync_replicas >= 2 {
            return Ok((Finding::ok(id, subject, format!("{brokers} at {addresses}")), any, at));
        }
        let message = format!(
            "{brokers} at {addresses}; with replication_factor = {replication_factor} and min_insync_replicas = \
             {min_insync_replicas} one lost disk loses events"
        );
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let replicas = partitions.map(|partition| partition.replicas().len()).min();
        Ok((Finding::warn(id, subject, message, safer(brokers, replicas)), any, at))
    }

    /// What a broker allows of transactions. What the ACLs allow this user shows only when a producer begins, and that
    /// would shut a running walcast out.
    async fn limits(&self, broker: i32, transactional_id: &str) -> Vec<Finding> {
        let timeout = "kafka.transaction_timeout";
        let settings = match self.settings(ResourceSpecifier::Broker(broker)).await {
            Ok(Some(settings)) => settings,
            Ok(None) => {
                let subject = "kafka broker settings";
                let message = "are not told to this user: kafka.transaction_timeout_ms may be too long";
                let allow = self.config.allow("DescribeConfigs", "--cluster");
                let told = Finding::warn(timeout, subject, message, allow);
                return vec![told, untried(transactional_id)];
            }
            Err(error) => return vec![Finding::failed(timeout, "kafka broker settings", &error)],
        };
        vec![self.transaction_timeout(&settings), transactional_id_of(&settings, transactional_id)]
    }

    fn transaction_timeout(&self, settings: &Settings) -> Finding {
        let (id, subject) = ("kafka.transaction_timeout", "kafka transaction timeout");
        let most = settings.get("transaction.max.timeout.ms").and_then(|most| most.parse::<u64>().ok());
        let ours = self.config.transaction_timeout_ms;
        match most.filter(|most| *most < ours) {
            None => Finding::ok(id, subject, format!("{ours} ms, which the brokers allow")),
            Some(most) => Finding::fail(
                error::Code::KafkaRefused,
                id,
                subject,
                format!("{ours} ms is more than the brokers allow (transaction.max.timeout.ms = {most})"),
                format!("export KAFKA_TRANSACTION_TIMEOUT_MS={most}"),
            ),
        }
    }

    /// The topic, or `None` when there is none of this name.
    async fn found(&self, name: &str) -> Result<Option<Found>> {
        let metadata = self.admin.inner().fetch_metadata(Some(name), self.config.timeout());
        let metadata = metadata.map_err(|error| self.failed("read the topics", error))?;
        let Some(topic) = metadata.topics().first() else { return Ok(None) };
        // one that may not be seen looks like one that is not there
        if let Some(code) = topic.error().map(Code::from).filter(|code| definite(*code).is_some()) {
            return Err(self.failed(&format!("see the topic {name}"), KafkaError::AdminOp(code)));
        }
        if topic.partitions().is_empty() {
            return Ok(None);
        }
        let partitions = topic.partitions();
        Ok(Some(Found {
            partitions: partitions.len(),
            replication: partitions
                .iter()
                .map(|partition| partition.replicas().len())
                .min()
                .unwrap_or_default(),
            has_leaders: partitions.iter().all(|partition| partition.leader() >= 0),
            settings: self.settings(ResourceSpecifier::Topic(name)).await?,
        }))
    }

    /// `None` when this user may not be told: rdkafka passes on no error of that, only that there are no settings, and of
    /// those that may be told there are many.
    async fn settings(&self, of: ResourceSpecifier<'_>) -> Result<Option<Settings>> {
        let described = self.admin.describe_configs([&of], &self.options()).await;
        let described = described.map_err(|error| self.failed("read settings", error))?;
        let mut settings = Settings::new();
        for resource in described {
            let resource =
                resource.map_err(|code| self.failed("read settings", KafkaError::AdminOp(code)))?;
            settings
                .extend(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))));
        }
        Ok((!settings.is_empty()).then_some(settings))
    }

    async fn create(&self, wanted: &Wanted) -> Result<()> {
        let replication = TopicReplication::Fixed(i32::from(self.config.replication_factor));
        let mut topic = NewTopic::new(&wanted.name, i32::from(wanted.partitions), replication);
        for rule in &wanted.rules {
            topic = topic.set(rule.setting, &rule.value);
        }
        let created = self.admin.create_topics([&topic], &self.options()).await;
        for outcome in created.map_err(|error| self.failed("create topics", error))? {
            match outcome {
                Ok(_) => tracing::info!(topic = wanted.name, "topic created"),
                Err((_, Code::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(cannot_create(&wanted.name, code)),
            }
        }
        self.wait_for_leaders(&wanted.name).await
    }

    async fn wait_for_leaders(&self, name: &str) -> Result<()> {
        let deadline = Instant::now() + self.config.timeout();
        while Instant::now() < deadline {
            if self.found(name).await.is_ok_and(|found| found.is_some_and(|found| found.has_leaders)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Error::new(error::Code::KafkaUnreachable, format!("Kafka: the new topic {name} gets no leaders")))
    }

    fn options(&self) -> AdminOptions {
        let timeout = Some(self.config.timeout());
        AdminOptions::new().request_timeout(timeout).operation_timeout(timeout)
    }

    fn failed(&self, doing: &str, error: KafkaError) -> Error {
        classify(doing, error, self.admin.inner().context())
    }
}

/// What is said of the transactional id. Whether brokers have ACLs is known only of those that tell their settings.
fn transactional_id_of(settings: &Settings, transactional_id: &str) -> Finding {
    match settings.get("authorizer.class.name").is_some_and(|class| !class.is_empty()) {
        true => untried(transactional_id),
        false => Finding::ok(
            "kafka.transactional_id",
            "kafka transactional id",
            format!("{transactional_id}; the brokers have no ACLs"),
        ),
    }
}

fn untried(transactional_id: &str) -> Finding {
    let message = format!(
        "{transactional_id}; whether the ACLs allow it (Write and Describe) shows when walcast starts: to try would shut a \
         running one out"
    );
    Finding::ok("kafka.transactional_id", "kafka transactional id", message)
}

fn cannot_create(topic: &str, code: Code) -> Error {
    let message = format!("Kafka: cannot create topic {topic}: {code}");
    match definite(code) {
        Some((meaning, hint)) => Error::new(meaning, message).hint(hint),
        None => Error::new(error::Code::KafkaUnreachable, message),
    }
}

/// What loses no event with one disk, as far as that many brokers allow it. Topics that are there already, with so many
/// replicas, come first: a start refuses topics with fewer than it is told.
fn safer(brokers: usize, replicas: Option<usize>) -> String {
    let wanted = match brokers {
        0 | 1 => return "add brokers: one alone keeps every event on one disk".into(),
        2 => 2,
        _ => 3,
    };
    let export = format!("export KAFKA_REPLICATION_FACTOR={wanted} KAFKA_MIN_INSYNC_REPLICAS=2");
    match replicas {
        Some(few) if few < wanted => format!(
            "give walcast's topics {wanted} replicas (kafka-reassign-partitions.sh) and min.insync.replicas=2 \
             (kafka-configs.sh), then {export}"
        ),
        _ => export,
    }
}

/// A topic as it must be.
struct Wanted {
    name: String,
    partitions: u16,
    rules: Vec<Rule>,
}

/// What one setting of a topic must be.
struct Rule {
    setting: &'static str,
    value: String,
    need: Need,
}

#[derive(Clone, Copy)]
enum Need {
    /// This value and no other.
    Exactly,
    /// This number or a greater one.
    AtLeast,
    /// Whatever: ours is only for new topics.
    Default,
    /// The operator should know when it is another.
    Told,
    /// The operator should know when it is a greater number.
    ToldAbove,
}

impl Rule {
    fn new(setting: &'static str, value: impl ToString, need: Need) -> Self {
        Rule { setting, value: value.to_string(), need }
    }

    fn verdict(&self, found: &str) -> Verdict {
        let number = |text: &str| text.parse::<i64>().unwrap_or(i64::MIN);
        match self.need {
            Need::Exactly if found != self.value => Verdict::Fail,
            Need::AtLeast if number(found) < number(&self.value) => Verdict::Fail,
            Need::Told if found != self.value => Verdict::Warn,
            Need::ToldAbove if number(found) > number(&self.value) => Verdict::Warn,
            _ => Verdict::Ok,
        }
    }
}

fn wanted(config: &KafkaConfig, row_bytes_max: usize) -> [Wanted; 4] {
    let Topics { events, content, dlq, progress } = config.topics();
    let millis = |hours: i64| if hours < 0 { -1 } else { hours.saturating_mul(3_600_000) };
    let bytes = message_bytes_max(row_bytes_max);
    let topic = |name, partitions, cleanup_policy, more: Vec<Rule>| {
        let mut rules = vec![
            Rule::new("cleanup.policy", cleanup_policy, Need::Exactly),
            Rule::new("min.insync.replicas", config.min_insync_replicas, Need::AtLeast),
            Rule::new("message.timestamp.type", "LogAppendTime", Need::Told),
        ];
        rules.extend(more);
        Wanted { name, partitions, rules }
    };
    let size = || Rule::new("max.message.bytes", bytes, Need::AtLeast);
    let retention = |hours| Rule::new("retention.ms", millis(hours), Need::Told);
    // Each transaction leaves a record, which the next one replaces, and a marker, which stays until a pass of the cleaner that comes
    // so long after the first one. Only closed segments are cleaned, so these are short.
    let bounded = vec![
        Rule::new("segment.ms", 4 * 3_600_000, Need::Default),
        Rule::new("segment.bytes", SEGMENT_BYTES, Need::ToldAbove),
        Rule::new("delete.retention.ms", MARKERS_KEPT_MS, Need::ToldAbove),
    ];
    [
        topic(events, config.partitions, "delete", vec![size(), retention(config.events_retention_hours)]),
        topic(content, config.partitions, "compact", vec![size()]),
        topic(dlq, 1, "delete", vec![size(), retention(config.dead_letter_retention_hours)]),
        topic(progress, 1, "compact", bounded),
    ]
}

impl Wanted {
    /// All that differs, and the command that sets it right.
    fn finding(&self, found: Option<&Found>, config: &KafkaConfig) -> Finding {
        let subject = format!("kafka topic {}", self.name);
        let Some(found) = found else {
            return Finding::fail(
                error::Code::KafkaTopicUnfit,
                TOPIC,
                subject,
                "is not there",
                "walcast init",
            );
        };
        if found.partitions != usize::from(self.partitions) {
            return self.wrong_partitions(subject, found);
        }
        if found.replication < usize::from(config.replication_factor) {
            return too_few_replicas(subject, found, config);
        }
        let Some(settings) = &found.settings else {
            let message = "its settings are not told to this user, and may not be what walcast needs";
            let topics = format!("--topic {} --resource-pattern-type prefixed", config.topic_prefix);
            return Finding::warn(TOPIC, subject, message, config.allow("DescribeConfigs", &topics));
        };
        let differing = self.rules.iter().filter_map(|rule| {
            let value = settings.get(rule.setting).map_or("", String::as_str);
            Some((rule, value, rule.verdict(value))).filter(|(.., verdict)| *verdict != Verdict::Ok)
        });
        let differing: Vec<_> = differing.collect();
        if differing.is_empty() {
            return Finding::ok(TOPIC, subject, format!("{} partitions, as it must be", self.partitions));
        }
        let complaints: Vec<_> = differing.iter().map(|(rule, value, _)| rule.complaint(value)).collect();
        let message = format!("has {}", complaints.join(", and "));
        let fix = self.alter(differing.iter().map(|(rule, ..)| *rule), config);
        match differing.iter().any(|(.., verdict)| *verdict == Verdict::Fail) {
            true => Finding::fail(error::Code::KafkaTopicUnfit, TOPIC, subject, message, fix),
            false => Finding::warn(TOPIC, subject, message, fix),
        }
    }

    fn wrong_partitions(&self, subject: String, found: &Found) -> Finding {
        let (found, wanted) = (found.partitions, self.partitions);
        let message =
            format!("has {found} partitions instead of {wanted}; their number decides where a content id is");
        let take_it =
            if wanted == 1 { String::new() } else { format!("set kafka.partitions = {found}, or ") };
        let fix = format!(
            "{take_it}set another kafka.topic_prefix, or delete the topic if nothing of worth is in it"
        );
        Finding::fail(error::Code::KafkaTopicUnfit, TOPIC, subject, message, fix)
    }

    fn alter<'a>(&self, rules: impl Iterator<Item = &'a Rule>, config: &KafkaConfig) -> String {
        let settings: Vec<_> = rules.map(|rule| format!("{}={}", rule.setting, rule.value)).collect();
        format!(
            "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {} --add-config {}",
            config.brokers,
            self.name,
            settings.join(",")
        )
    }
}

impl Rule {
    fn complaint(&self, found: &str) -> String {
        let bound = match self.need {
            Need::AtLeast => "at least ",
            Need::ToldAbove => "at most ",
            Need::Exactly | Need::Default | Need::Told => "",
        };
        format!("{} = {found}, wanted is {bound}{}", self.setting, self.value)
    }
}

fn too_few_replicas(subject: String, found: &Found, config: &KafkaConfig) -> Finding {
    let (found, wanted) = (found.replication, config.replication_factor);
    let message = format!("has {found} replicas of each partition, kafka.replication_factor is {wanted}");
    let fix = format!(
        "give it more replicas with kafka-reassign-partitions.sh, or set kafka.replication_factor = {found}"
    );
    Finding::fail(error::Code::KafkaTopicUnfit, TOPIC, subject, message, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_are_there_get_their_replicas_before_walcast_asks_for_them() {
        let advice = safer(3, Some(1));
        let (topics, setting) = (advice.find("kafka-reassign-partitions"), advice.find("export KAFKA_"));
        assert!(topics.is_some() && topics < setting, "{advice}");
        assert!(safer(3, Some(3)).starts_with("export KAFKA_"));
    }

    #[test]
    fn no_more_replicas_are_advised_than_there_are_brokers() {
        for brokers in 0..9 {
            let advice = safer(brokers, None);
            let advised = (2..=9).find(|factor| advice.contains(&format!("FACTOR={factor} ")));
            assert_eq!(advised, (brokers > 1).then(|| brokers.min(3)), "{brokers}: {advice}");
        }
    }
}
