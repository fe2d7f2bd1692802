//! How far `read_committed` readers can see: up to where a partition's first open transaction begins.
//!
//! A transaction that stays open for longer than its time-out is hung: its coordinator has forgotten it (a
//! broker's restart can do that), nobody will end it, and all that follows in the partition stays hidden.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::config::KafkaConfig;
use super::error::{Reports, bad_settings, sort};
use super::writer::spawn;
use crate::error::{Error, Kind, Result};
use crate::telemetry::metrics::KAFKA_OPEN_TRANSACTION_SECONDS;

/// How long `check` waits for the transactions that it finds open; ours take far less than a second.
const CHECK_PATIENCE: Duration = Duration::from_secs(3);
const WATCH_EVERY: Duration = Duration::from_secs(30);

/// A transaction that does not end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct OpenTransaction {
    pub(super) topic: String,
    pub(super) partition: i32,
    /// Its first offset.
    pub(super) offset: i64,
}

impl OpenTransaction {
    /// What an operator can do to end it.
    pub(super) fn abort_command(&self, config: &KafkaConfig) -> String {
        let OpenTransaction { topic, partition, offset } = self;
        format!(
            "kafka-transactions.sh --bootstrap-server {} abort --topic {topic} --partition {partition} --start-offset {offset}",
            config.brokers
        )
    }

    pub(super) fn hung(&self, config: &KafkaConfig, open: Duration) -> Error {
        let OpenTransaction { topic, partition, offset } = self;
        let message = format!(
            "Kafka: the transaction in {topic} partition {partition} at offset {offset} has not ended for {} s: \
             it is hung, and hides all that follows it",
            open.as_secs()
        );
        Error::new(Kind::Setup, message).hint(format!("end it: {}", self.abort_command(config)))
    }
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
    bounds.map_err(|error| sort("read a partition's end", error, reader.client().context()))
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

    /// The transactions that are open now, the first of each partition.
    fn open(&self) -> Result<Vec<OpenTransaction>> {
        let mut open = Vec::new();
        for (topic, partitions) in self.config.partitioning() {
            for partition in 0..i32::from(partitions) {
                let (_, offset) = bounds(&self.committed, &self.config, &topic, partition)?;
                let (_, end) = bounds(&self.all, &self.config, &topic, partition)?;
                if offset < end {
                    open.push(OpenTransaction { topic: topic.clone(), partition, offset });
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
        lasting.retain(|transaction| open.contains(transaction));
    }
    Ok(lasting)
}

/// Keeps the gauge [`KAFKA_OPEN_TRANSACTION_SECONDS`] until it is dropped.
pub(super) struct Watch {
    _stop: Sender<()>,
}

impl Watch {
    pub(super) fn start(config: &KafkaConfig) -> Result<Self> {
        let readers = Readers::new(config)?;
        let (stop, stopped) = channel();
        spawn("kafka-watch", move || {
            let mut ages = Ages::default();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(WATCH_EVERY) {
                // brokers that do not answer are the producer's to report
                if let Ok(open) = readers.open() {
                    ages.see(open, Instant::now());
                    ages.report(&readers.config);
                }
            }
        })?;
        Ok(Watch { _stop: stop })
    }
}

/// Since when each open transaction has been seen.
#[derive(Default)]
struct Ages(HashMap<OpenTransaction, Instant>);

impl Ages {
    fn see(&mut self, open: Vec<OpenTransaction>, now: Instant) {
        let before = std::mem::take(&mut self.0);
        let since = |transaction: &OpenTransaction| before.get(transaction).copied().unwrap_or(now);
        self.0 = open.into_iter().map(|transaction| (transaction.clone(), since(&transaction))).collect();
    }

    fn oldest(&self) -> Option<(&OpenTransaction, Duration)> {
        let (transaction, since) = self.0.iter().min_by_key(|(_, since)| **since)?;
        Some((transaction, since.elapsed()))
    }

    fn report(&self, config: &KafkaConfig) {
        let oldest = self.oldest();
        metrics::gauge!(KAFKA_OPEN_TRANSACTION_SECONDS)
            .set(oldest.map_or(0.0, |(_, open)| open.as_secs_f64()));
        if let Some((transaction, open)) = oldest.filter(|(_, open)| *open > config.transaction_open_max()) {
            let error = transaction.hung(config, open);
            tracing::error!("{error}; {}", error.advice());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_ages_only_while_it_is_the_same() {
        let at = |offset| OpenTransaction { topic: "t".into(), partition: 0, offset };
        let start = Instant::now() - Duration::from_secs(60);
        let mut ages = Ages::default();
        ages.see(vec![at(1)], start);
        ages.see(vec![at(1)], Instant::now());
        let (oldest, open) = ages.oldest().unwrap();
        assert_eq!(*oldest, at(1));
        assert!(open >= Duration::from_secs(60));
        ages.see(vec![at(2)], Instant::now());
        assert!(ages.oldest().unwrap().1 < Duration::from_secs(60));
        ages.see(Vec::new(), Instant::now());
        assert_eq!(ages.oldest(), None);
    }
}
