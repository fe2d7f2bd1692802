//! Reading a topic as `verify` does: all that is committed, from its beginning up to its end as of now.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset, TopicPartitionList};

use super::config::KafkaConfig;
use super::error::{Reports, bad_settings, classify};
use super::hung_transactions::{OpenTransaction, bounds, reader};
use crate::error::{Error, Kind, Result};

/// How much is read ahead of what is looked at.
const AHEAD_KBYTES: &str = "8192";
/// How much of a partition is fetched at once.
const FETCH_BYTES: &str = "262144";

const POLL: Duration = Duration::from_millis(100);

/// A record as a `read_committed` reader is given it.
pub struct Record<'a>(BorrowedMessage<'a>);

impl Record<'_> {
    /// Its partition.
    pub fn partition(&self) -> i32 {
        self.0.partition()
    }

    /// Its value; empty for a tombstone.
    pub fn value(&self) -> &[u8] {
        self.0.payload().unwrap_or_default()
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.0.headers()?;
        let header = headers.iter().find(|header| header.key == name)?;
        std::str::from_utf8(header.value?).ok()
    }
}

/// A topic with the ends at which reading stops.
pub struct Scan {
    config: KafkaConfig,
    topic: String,
    consumer: BaseConsumer<Reports>,
    /// By partition: the first offset, and the end.
    bounds: BTreeMap<i32, (i64, i64)>,
}

impl Scan {
    /// Asks where the partitions end, and waits until all up to there is decided. Blocks.
    pub fn open(config: &KafkaConfig, topic: &str, partitions: u16) -> Result<Scan> {
        let all = reader(config, "read_uncommitted")?;
        let mut ends = BTreeMap::new();
        for partition in 0..i32::from(partitions) {
            ends.insert(partition, bounds(&all, config, topic, partition)?);
        }
        let consumer = config
            .reader("read_committed")
            .set("enable.partition.eof", "true")
            .set("queued.max.messages.kbytes", AHEAD_KBYTES)
            // of each partition, packed: a fetch is more than what may wait, and is unpacked whole
            .set("fetch.message.max.bytes", FETCH_BYTES)
            .create_with_context(Reports::default())
            .map_err(bad_settings)?;
        let scan = Scan { config: config.clone(), topic: topic.to_owned(), consumer, bounds: ends };
        scan.wait_until_decided()?;
        Ok(scan)
    }

    /// The first offset of each partition: above 0 when records have been deleted since.
    pub fn begins(&self) -> impl Iterator<Item = (i32, i64)> {
        self.bounds.iter().map(|(partition, (begin, _))| (*partition, *begin))
    }

    /// How many offsets there are to read; not all of them are records.
    pub fn offsets(&self) -> u64 {
        self.bounds.values().map(|(begin, end)| end.abs_diff(*begin)).sum()
    }

    /// Gives every record, in order within each partition. Blocks.
    pub fn read(&self, mut each: impl FnMut(Record<'_>) -> Result<()>) -> Result<()> {
        let mut open: BTreeMap<i32, i64> = self
            .bounds
            .iter()
            .filter(|(_, (begin, end))| begin < end)
            .map(|(at, (_, end))| (*at, *end))
            .collect();
        self.assign(open.keys().copied())?;
        let mut moved = Instant::now();
        while !open.is_empty() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    moved = Instant::now();
                    let (partition, offset) = (message.partition(), message.offset());
                    let Some(end) = open.get(&partition).copied() else { continue };
                    if offset < end {
                        each(Record(message))?;
                    }
                    // an offset that no reader is given may stand last: then the partition's end tells
                    if offset + 1 >= end {
                        open.remove(&partition);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                Some(Err(error)) if error.rdkafka_error_code() == Some(Code::GroupAuthorizationFailed) => {}
                Some(Err(error)) => self.require_mendable(error)?,
                None if moved.elapsed() > self.config.timeout() => return Err(self.silent()),
                None => {}
            }
        }
        Ok(())
    }

    fn assign(&self, partitions: impl Iterator<Item = i32>) -> Result<()> {
        let mut assignment = TopicPartitionList::new();
        for partition in partitions {
            let begin = self.bounds.get(&partition).map_or(0, |(begin, _)| *begin);
            let added = assignment.add_partition_offset(&self.topic, partition, Offset::Offset(begin));
            added.map_err(|error| self.failed(error))?;
        }
        self.consumer.assign(&assignment).map_err(|error| self.failed(error))
    }

    /// The end of a partition may lie in a transaction that is just being committed.
    fn wait_until_decided(&self) -> Result<()> {
        let began = Instant::now();
        for (partition, (_, end)) in &self.bounds {
            loop {
                let (_, stable) = bounds(&self.consumer, &self.config, &self.topic, *partition)?;
                if stable >= *end {
                    break;
                }
                if began.elapsed() > self.config.transaction_open_max() {
                    let open =
                        OpenTransaction { topic: self.topic.clone(), partition: *partition, offset: stable };
                    return Err(open.hung(&self.config, began.elapsed()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn require_mendable(&self, error: KafkaError) -> Result<()> {
        let error = self.failed(error);
        if error.kind() == Kind::Unavailable { Ok(()) } else { Err(error) }
    }

    fn silent(&self) -> Error {
        self.failed(KafkaError::Global(Code::OperationTimedOut))
    }

    fn failed(&self, error: KafkaError) -> Error {
        classify(&format!("read the topic {}", self.topic), error, self.consumer.client().context())
    }
}
