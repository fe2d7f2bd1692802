//! How far `read_committed` readers can see: up to where a partition's first open transaction begins.
//!
//! A transaction that stays open for longer than its time-out is hung: its coordinator has forgotten it (a
//! broker's restart can do that), nobody will end it, and all that follows in the partition stays hidden.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::config::KafkaConfig;
use super::error::{Reports, bad_settings, sort};
use crate::error::{Error, Kind, Result};

/// How long `check` waits for the transactions that it finds open; ours take far less than a second.
const CHECK_PATIENCE: Duration = Duration::from_secs(3);

/// A transaction that does not end.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// The transactions that were open when asked and did not end within some seconds. Blocks.
pub(super) fn lasting_transactions(config: &KafkaConfig) -> Result<Vec<OpenTransaction>> {
    let (committed, all) = (reader(config, "read_committed")?, reader(config, "read_uncommitted")?);
    let mut open = Vec::new();
    for (topic, partitions) in config.partitioning() {
        for partition in 0..i32::from(partitions) {
            let (_, end) = bounds(&all, config, &topic, partition)?;
            open.push((topic.clone(), partition, end));
        }
    }
    let started = Instant::now();
    loop {
        let mut lasting = Vec::new();
        for (topic, partition, end) in &open {
            let (_, offset) = bounds(&committed, config, topic, *partition)?;
            if offset < *end {
                lasting.push(OpenTransaction { topic: topic.clone(), partition: *partition, offset });
            }
        }
        if lasting.is_empty() || started.elapsed() > CHECK_PATIENCE {
            return Ok(lasting);
        }
        open.retain(|(topic, partition, _)| {
            lasting
                .iter()
                .any(|transaction| transaction.topic == *topic && transaction.partition == *partition)
        });
        std::thread::sleep(Duration::from_millis(100));
    }
}
