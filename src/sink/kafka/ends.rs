//! How far the topics reach at least, by what walcast has written. It stands in each checkpoint, so that a topic that was
//! deleted or made anew shows: retention moves where a partition begins, and nothing but a loss takes back where it ends.
//!
//! A transaction that is committed has all its records, and each has an offset of its own: so what a partition had when
//! the producer began, and one more for each record since, is never too much. Markers and records of aborted transactions
//! only make partitions longer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset, TopicPartitionList};

use super::config::KafkaConfig;
use super::error::{Reports, classify};
use super::hung_transactions::reader;
use crate::error::{Error, Result};

/// Of topics with more partitions several add up to one number: a checkpoint stays small.
const NUMBERS_MAX: usize = 64;
/// A partition's new leader may not know at once how far it reaches.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// What is lost with it is in PostgreSQL too.
const LETTERS: &str = "dlq";

/// By topic, without the prefix: where its partitions end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ends(BTreeMap<String, Vec<i64>>);

/// A topic that reaches less far than it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortfall {
    topic: String,
    partition: usize,
    was: i64,
    is: i64,
}

impl Ends {
    /// As a checkpoint has them.
    pub(super) fn stored(of: &BTreeMap<String, Vec<i64>>) -> Ends {
        Ends(of.clone())
    }

    /// For a checkpoint.
    pub(super) fn to_store(&self) -> BTreeMap<String, Vec<i64>> {
        self.0.clone()
    }

    /// One more record.
    pub(super) fn add(&mut self, topic: &str, partition: i32, records: i64) {
        let partition = usize::try_from(partition).unwrap_or_default();
        // all topics have the same prefix, and none of their names has a dot
        let name = topic.rsplit('.').next().unwrap_or_default();
        let numbers = match self.0.get_mut(name) {
            Some(numbers) => numbers,
            None => self.0.entry(name.to_owned()).or_default(),
        };
        let place = partition % NUMBERS_MAX;
        if numbers.len() <= place {
            numbers.resize(place + 1, 0);
        }
        if let Some(number) = numbers.get_mut(place) {
            *number = number.saturating_add(records);
        }
    }

    /// Whether a topic, by its full name, has had a record that nothing else has.
    pub(super) fn needs(&self, topic: &str) -> bool {
        let name = topic.rsplit('.').next().unwrap_or_default();
        name != LETTERS && self.0.get(name).is_some_and(|numbers| numbers.iter().any(|number| *number > 0))
    }

    /// The first partition of each topic that ends before it did.
    pub(super) fn shortfalls(&self, now: &Ends) -> Vec<Shortfall> {
        let of_topic = |(topic, was): (&String, &Vec<i64>)| {
            let is = |place| now.0.get(topic).and_then(|numbers| numbers.get(place)).copied().unwrap_or(0);
            let mut pairs = was.iter().enumerate().map(|(place, was)| (place, *was, is(place)));
            let (partition, was, is) = pairs.find(|(_, was, is)| is < was)?;
            Some(Shortfall { topic: topic.clone(), partition, was, is })
        };
        self.0.iter().filter_map(of_topic).collect()
    }
}

impl Shortfall {
    /// Whether only dead letters are gone.
    pub(super) fn is_of_letters(&self) -> bool {
        self.topic == LETTERS
    }

    /// Whether the same topic is among these.
    pub(super) fn is_in(&self, others: &[Shortfall]) -> bool {
        others.iter().any(|other| other.topic == self.topic)
    }

    /// What has happened.
    pub(super) fn told(&self, config: &KafkaConfig) -> String {
        let Shortfall { topic, partition, was, is } = self;
        let prefix = &config.topic_prefix;
        match is {
            0 => format!(
                "held records in topic {prefix}.{topic} once and holds none now: it was deleted or made anew"
            ),
            _ => format!(
                "held records in topic {prefix}.{topic}, partition {partition}, up to offset {was}, and now it ends at {is}"
            ),
        }
    }
}

/// Where the partitions end now, and what is missing of `stored` for longer than a new leader needs to know. Blocks.
pub(super) fn against(config: &KafkaConfig, stored: &Ends) -> Result<(Ends, Vec<Shortfall>)> {
    let asker = Asker::new(config)?;
    let deadline = Instant::now() + KNOWN_WITHIN;
    loop {
        let now = asker.ask()?;
        let shortfalls = stored.shortfalls(&now);
        if shortfalls.is_empty() || Instant::now() > deadline {
            return Ok((now, shortfalls));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Asks again and again.
pub(super) struct Asker {
    config: KafkaConfig,
    reader: BaseConsumer<Reports>,
}

impl Asker {
    pub(super) fn new(config: &KafkaConfig) -> Result<Self> {
        // up to where records are safe, also those of open transactions: that end never goes back
        Ok(Asker { config: config.clone(), reader: reader(config, "read_uncommitted")? })
    }

    /// A topic that is not there ends nowhere.
    pub(super) fn ask(&self) -> Result<Ends> {
        let topics: Vec<_> = self.config.partitioning().into();
        let of_all = self.offsets(&topics);
        let code = of_all.as_ref().err().and_then(KafkaError::rdkafka_error_code);
        if !matches!(code, Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition))
        {
            return of_all.map_err(|error| self.failed(error));
        }
        let mut there = Vec::new();
        for (topic, partitions) in topics {
            let metadata = self.reader.fetch_metadata(Some(&topic), self.config.timeout());
            let metadata = metadata.map_err(|error| self.failed(error))?;
            if metadata.topics().first().is_some_and(|topic| !topic.partitions().is_empty()) {
                there.push((topic, partitions));
            }
        }
        self.offsets(&there).map_err(|error| self.failed(error))
    }

    fn offsets(&self, topics: &[(String, u16)]) -> KafkaResult<Ends> {
        let progress = self.config.topics().progress;
        let mut wanted = TopicPartitionList::new();
        for (topic, partitions) in topics.iter().filter(|(topic, _)| *topic != progress) {
            for partition in 0..i32::from(*partitions) {
                wanted.add_partition_offset(topic, partition, Offset::End)?;
            }
        }
        let mut ends = Ends::default();
        if wanted.count() == 0 {
            return Ok(ends);
        }
        for end in self.reader.offsets_for_times(wanted, self.config.timeout())?.elements() {
            end.error()?;
            if let Offset::Offset(offset) = end.offset() {
                ends.add(end.topic(), end.partition(), offset);
            }
        }
        Ok(ends)
    }

    fn failed(&self, error: KafkaError) -> Error {
        classify("read the topics' ends", error, self.reader.client().context())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(of: &[(&str, &[i64])]) -> Ends {
        Ends(of.iter().map(|(topic, numbers)| ((*topic).to_owned(), numbers.to_vec())).collect())
    }

    #[test]
    fn only_what_ends_before_it_did_is_missing() {
        let was = ends(&[("events", &[3, 0, 7]), ("dlq", &[1])]);
        assert!(was.needs("t.events") && !was.needs("t.content"));
        assert_eq!(was.shortfalls(&was), []);
        assert_eq!(was.shortfalls(&ends(&[("events", &[9, 9, 9, 9]), ("dlq", &[1]), ("content", &[0])])), []);
        assert_eq!(Ends::default().shortfalls(&was), [], "of a release that did not store it");
        let short = was.shortfalls(&ends(&[("events", &[3, 0, 6])]));
        let parts: Vec<_> =
            short.iter().map(|one| (one.topic.as_str(), one.partition, one.was, one.is)).collect();
        assert_eq!(parts, [("dlq", 0, 1, 0), ("events", 2, 7, 6)]);
    }

    #[test]
    fn many_partitions_add_up_to_few_numbers() {
        let mut ends = Ends::default();
        (0..1_000).for_each(|partition| ends.add("a.b.events", partition, 2));
        let stored = ends.to_store();
        assert_eq!(stored.get("events").map(Vec::len), Some(NUMBERS_MAX));
        assert_eq!(stored.values().flatten().sum::<i64>(), 2_000);
    }
}
