//! How far `read_committed` readers can see: up to where a partition's first open transaction begins.
//!
//! A transaction that stays open for longer than its time-out is hung: its coordinator has forgotten it (a
//! broker's restart can do that), nobody will end it, and all that follows in the partition stays hidden.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metrics::gauge;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::config::KafkaConfig;
use super::ends::{Asker, Ends};
use super::error::{Reports, bad_settings, classify};
use super::lock;
use super::thread::spawn;
use crate::error::{Code, Error, Result};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::{
    KAFKA_HIDDEN_RECORDS, KAFKA_HUNG_TRANSACTIONS, KAFKA_OPEN_TRANSACTION_SECONDS,
    KAFKA_TRANSACTION_LIMIT_SECONDS,
};

/// How long `check` waits for the transactions that it finds open; ours take far less than a second.
const CHECK_PATIENCE: Duration = Duration::from_secs(3);
const WATCH_EVERY: Duration = Duration::from_secs(10);

/// A transaction that does not end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct OpenTransaction {
    pub(super) topic: String,
    pub(super) partition: i32,
    /// Its first offset.
    pub(super) offset: i64,
}

impl OpenTransaction {
    pub(super) fn hung(&self, config: &KafkaConfig, open: Duration) -> Error {
        let OpenTransaction { topic, partition, offset } = self;
        let message = format!(
            "Kafka: the transaction in {topic} partition {partition} at offset {offset} has not ended for {} s, \
             and hides all that follows it",
            open.as_secs()
        );
        Error::new(Code::KafkaTransactionHung, message).hint(format!(
            "see whether its coordinator has forgotten it: {}",
            commands(std::slice::from_ref(self), config)
        ))
    }
}

/// What an operator is to type: whether their coordinator still knows them, and, behind that, what ends those that are forgotten. An
/// abort does not fence a producer that lives: what it commits after that, readers see without its beginning.
pub(super) fn commands(open: &[OpenTransaction], config: &KafkaConfig) -> String {
    let tool = format!("kafka-transactions.sh --bootstrap-server {}", config.brokers);
    let find = |topic: &str| format!("{tool} find-hanging --topic {topic} --max-transaction-timeout 1");
    if let [OpenTransaction { topic, partition, offset }] = open {
        return format!(
            "{} --partition {partition} # only if that lists it: {tool} abort --topic {topic} --partition {partition} \
             --start-offset {offset}",
            find(topic)
        );
    }
    let mut topics: Vec<&str> = open.iter().map(|one| one.topic.as_str()).collect();
    topics.dedup();
    let look = format!("for topic in {}; do {}; done", topics.join(" "), find("$topic"));
    format!(
        "{look} # and what ends those that it lists: {look} | awk '$2 ~ /^[0-9]+$/ {{print $1, $2, $6}}' | \
         while read -r topic partition offset; do {tool} abort --topic $topic --partition $partition \
         --start-offset $offset </dev/null; done"
    )
}

/// A reader that joins no group and keeps no offsets.
pub(super) fn reader(config: &KafkaConfig, isolation: &str) -> Result<BaseConsumer<Reports>> {
    config.reader(isolation).create_with_context(Reports::default()).map_err(bad_settings)
}

/// A partition's first offset, and its end as this reader sees it.
pub(super) fn bounds(
    reader: &BaseConsumer<Reports>,
    config: &KafkaConfig,
    topic: &str,
    partition: i32,
) -> Result<(i64, i64)> {
    let bounds = reader.fetch_watermarks(topic, partition, config.timeout());
    bounds.map_err(|error| classify("read a partition's end", error, reader.client().context()))
}

/// Sees all partitions as readers of both kinds do.
struct Readers {
    config: KafkaConfig,
    committed: BaseConsumer<Reports>,
    all: BaseConsumer<Reports>,
}

impl Readers {
    fn new(config: &KafkaConfig) -> Result<Self> {
        let (committed, all) = (reader(config, "read_committed")?, reader(config, "read_uncommitted")?);
        Ok(Readers { config: config.clone(), committed, all })
    }

    /// The transactions that are open now, the first of each partition, and how many offsets each hides.
    fn open(&self) -> Result<HashMap<OpenTransaction, i64>> {
        let mut open = HashMap::new();
        for (topic, partitions) in self.config.partitioning() {
            for partition in 0..i32::from(partitions) {
                let (_, offset) = bounds(&self.committed, &self.config, &topic, partition)?;
                let (_, end) = bounds(&self.all, &self.config, &topic, partition)?;
                if offset < end {
                    open.insert(OpenTransaction { topic: topic.clone(), partition, offset }, end - offset);
                }
            }
        }
        Ok(open)
    }
}

/// The transactions that are open and stay so for some seconds. Blocks.
pub(super) fn lasting_transactions(config: &KafkaConfig) -> Result<Vec<OpenTransaction>> {
    let readers = Readers::new(config)?;
    let started = Instant::now();
    let mut lasting = readers.open()?;
    while !lasting.is_empty() && started.elapsed() < CHECK_PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
        let open = readers.open()?;
        lasting.retain(|transaction, _| open.contains_key(transaction));
    }
    let mut lasting: Vec<_> = lasting.into_keys().collect();
    lasting.sort();
    Ok(lasting)
}

/// Keeps the figures of open transactions, and says which is hung, until it is dropped.
pub(super) struct Watch {
    _stop: Sender<()>,
    hung: Arc<Mutex<Option<String>>>,
    lost: Arc<Mutex<Option<String>>>,
}

impl Watch {
    /// `ends`: where the topics end by what is committed.
    pub(super) fn start(config: &KafkaConfig, ends: Arc<Mutex<Ends>>) -> Result<Self> {
        let (readers, asker) = (Readers::new(config)?, Asker::new(config)?);
        let (stop, stopped) = channel();
        let (hung, lost) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
        let (told, told_lost) = (Arc::clone(&hung), Arc::clone(&lost));
        gauge!(KAFKA_HUNG_TRANSACTIONS).set(0.0);
        gauge!(KAFKA_TRANSACTION_LIMIT_SECONDS).set(config.transaction_open_max().as_secs_f64());
        spawn("kafka-watch", move || {
            let mut ages = Ages::default();
            let mut missing = Vec::new();
            loop {
                let before = lock(&ends).clone();
                if let Ok(now) = asker.ask() {
                    let shortfalls = before.shortfalls(&now);
                    // twice: a partition's new leader may not know at once how far it reaches
                    let lasting = shortfalls.iter().find(|one| !one.is_of_letters() && one.is_in(&missing));
                    *lock(&told_lost) = lasting.map(|one| one.told(&readers.config));
                    missing = shortfalls;
                }
                // brokers that do not answer are the producer's to report
                if let Ok(open) = readers.open() {
                    ages.see(open, Instant::now());
                    ages.show();
                    *lock(&told) = ages.judge(&readers.config);
                }
                let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(WATCH_EVERY) else { break };
            }
        })?;
        Ok(Watch { _stop: stop, hung, lost })
    }

    /// The transaction that is hung for longest, and what ends it.
    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.hung).clone()
    }

    /// What Kafka held and holds no longer, although nothing that was written failed.
    pub(super) fn lost(&self) -> Option<String> {
        lock(&self.lost).clone()
    }
}

/// Since when each open transaction has been seen.
#[derive(Default)]
struct Ages {
    open: HashMap<OpenTransaction, Seen>,
    /// Partitions that have had a figure.
    shown: HashSet<(String, i32)>,
    throttle: LogThrottle,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    since: Instant,
    hidden: i64,
}

impl Ages {
    fn see(&mut self, open: HashMap<OpenTransaction, i64>, now: Instant) {
        let before = std::mem::take(&mut self.open);
        let since = |transaction: &OpenTransaction| before.get(transaction).map_or(now, |seen| seen.since);
        self.open = open
            .into_iter()
            .map(|(transaction, hidden)| {
                let since = since(&transaction);
                (transaction, Seen { since, hidden })
            })
            .collect();
    }

    /// A partition whose transaction has ended shows zero.
    fn show(&mut self) {
        let ended = self.shown.drain().map(|partition| (partition, (0.0, 0.0)));
        let open = self.open.iter().map(|(OpenTransaction { topic, partition, .. }, seen)| {
            ((topic.clone(), *partition), (seen.since.elapsed().as_secs_f64(), seen.hidden as f64))
        });
        let figures: HashMap<_, _> = ended.chain(open).collect();
        for ((topic, partition), (seconds, hidden)) in figures {
            let labels = [("topic", topic.clone()), ("partition", partition.to_string())];
            gauge!(KAFKA_OPEN_TRANSACTION_SECONDS, &labels).set(seconds);
            gauge!(KAFKA_HIDDEN_RECORDS, &labels).set(hidden);
            self.shown.insert((topic, partition));
        }
    }

    /// Logs what is hung; the sentence for the oldest.
    fn judge(&mut self, config: &KafkaConfig) -> Option<String> {
        let age = |seen: &Seen| seen.since.elapsed();
        let mut hung: Vec<_> =
            self.open.iter().filter(|(_, seen)| age(seen) > config.transaction_open_max()).collect();
        hung.sort_by_key(|(_, seen)| seen.since);
        gauge!(KAFKA_HUNG_TRANSACTIONS).set(hung.len() as f64);
        let sentences: Vec<String> =
            hung.into_iter().map(|(transaction, seen)| transaction.hung(config, age(seen)).told()).collect();
        for sentence in &sentences {
            if self.throttle.say(sentence).is_some() {
                tracing::error!("{sentence}");
            }
        }
        sentences.into_iter().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> HashMap<OpenTransaction, i64> {
        HashMap::from([(OpenTransaction { topic: "t".into(), partition: 3, offset }, 7)])
    }

    #[test]
    fn many_that_hang_are_ended_by_one_command() {
        let at = |topic: &str, partition| OpenTransaction { topic: topic.into(), partition, offset: 7 };
        let told =
            commands(&[at("t.dlq", 0), at("t.events", 1), at("t.events", 12)], &KafkaConfig::default());
        let (look, end) = told.split_once(" # ").unwrap();
        assert!(
            look.starts_with("for topic in t.dlq t.events; do ") && look.contains("find-hanging"),
            "{told}"
        );
        assert!(
            !look.contains("abort") && end.contains("abort --topic $topic --partition $partition"),
            "{told}"
        );
    }

    #[test]
    fn a_transaction_ages_only_while_it_is_the_same() {
        let config = KafkaConfig { transaction_timeout_ms: 1_000, ..KafkaConfig::default() };
        let mut ages = Ages::default();
        ages.see(at(1), Instant::now() - Duration::from_secs(60));
        ages.see(at(1), Instant::now());
        let hung = ages.judge(&config).unwrap();
        assert!(hung.contains("t partition 3 at offset 1 has not ended for 60 s"), "{hung}");
        assert!(hung.contains("--topic t --partition 3 --start-offset 1"), "{hung}");
        ages.see(at(2), Instant::now());
        assert_eq!(ages.judge(&config), None);
        ages.see(HashMap::new(), Instant::now());
        assert_eq!(ages.judge(&config), None);
    }

    #[test]
    fn a_partition_whose_transaction_ended_keeps_its_figure() {
        let mut ages = Ages::default();
        ages.see(at(1), Instant::now());
        ages.show();
        ages.see(HashMap::new(), Instant::now());
        ages.show();
        assert!(ages.shown.contains(&("t".into(), 3)), "shown as zero, not as it was");
    }
}
