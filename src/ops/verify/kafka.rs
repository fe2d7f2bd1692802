//! The events as Kafka has them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use indicatif::ProgressBar;

use super::record::{ANY_PARTITION, Record, flag};
use super::spill::Spill;
use crate::error::{Code, Error, Result};
use crate::event::schema::ENGAGEMENT_EVENTS;
use crate::lsn::{Lsn, Position};
use crate::sink::kafka::KafkaConfig;
use crate::sink::kafka::scan::{self, Scan};

/// What was read besides the records.
#[derive(Debug, Default)]
pub struct Topic {
    /// Records that come after one of a later place: by event id, a few.
    pub out_of_order: Vec<Record>,
    /// Records that are not what walcast writes, by partition and count.
    pub unreadable: u64,
    /// For partitions that have lost their beginning to retention: the place of the first record left.
    pub begins: BTreeMap<u16, Position>,
}

/// Reads the events below `end` and the dead letters. Blocks.
pub fn read(config: &KafkaConfig, end: Lsn, spill: &mut Spill, progress: &ProgressBar) -> Result<Topic> {
    let topics = config.topics();
    let events = Scan::open(config, &topics.events, config.partitions)?;
    let letters = Scan::open(config, &topics.dlq, 1)?;
    progress.set_length(events.offsets() + letters.offsets());
    let encoding = config.encoding();
    let mut topic = Topic::default();
    let trimmed: Vec<i32> = events.begins().filter(|(_, begin)| *begin > 0).map(|(at, _)| at).collect();
    let mut last: BTreeMap<i32, Position> = BTreeMap::new();
    events.read(|message| {
        progress.inc(1);
        let Some(record) = encoding.read_event(message.value()).as_ref().and_then(Record::of) else {
            topic.unreadable += 1;
            return Ok(());
        };
        let partition = message.partition();
        if trimmed.contains(&partition) {
            topic.begins.entry(partition as u16).or_insert(record.position);
        }
        let before = last.entry(partition).or_insert(record.position);
        if record.position < *before && record.position.commit_lsn < end {
            topic.out_of_order.push(record);
        }
        *before = record.position.max(*before);
        if record.position.commit_lsn < end { spill.add(&record) } else { Ok(()) }
    })?;
    letters.read(|message| {
        progress.inc(1);
        match letter(&message).filter(|letter| letter.position.commit_lsn < end) {
            Some(letter) => spill.add(&letter),
            None => Ok(()),
        }
    })?;
    for partition in trimmed {
        // nothing is left of it: whatever was there has gone
        let all = Position { commit_lsn: Lsn(u64::MAX), ordinal: 0 };
        topic.begins.entry(partition as u16).or_insert(all);
    }
    Ok(topic)
}

/// A dead letter of an event.
fn letter(message: &scan::Record<'_>) -> Option<Record> {
    if message.header("__connect.errors.topic")?.rsplit('.').next() != Some(ENGAGEMENT_EVENTS.name) {
        return None;
    }
    let (commit_lsn, ordinal) = message.header("lsn")?.split_once('#')?;
    let position = Position { commit_lsn: commit_lsn.parse().ok()?, ordinal: ordinal.parse().ok()? };
    let mut letter = Record::new(letter_id(message.value())?, position, 0);
    let only_here = message.header("__connect.errors.exception.class.name") == Some("record_too_large");
    letter.flags = if only_here { flag::LETTER } else { flag::LETTER | flag::LETTER_FOR_ALL };
    letter.partition = ANY_PARTITION;
    Some(letter)
}

/// The row's id: text, or bytes as PostgreSQL sends an integer.
fn letter_id(row: &[u8]) -> Option<i64> {
    let row: serde_json::Value = serde_json::from_slice(row).ok()?;
    let id = row.get("id")?;
    if let Some(text) = id.as_str() {
        return text.parse().ok();
    }
    let bytes = BASE64.decode(id.get("$base64")?.as_str()?).ok()?;
    match bytes.len() {
        2 => Some(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        4 => Some(i32::from_be_bytes(bytes.try_into().ok()?).into()),
        _ => Some(i64::from_be_bytes(bytes.try_into().ok()?)),
    }
}

/// As [`read`], on a thread that may block.
pub async fn read_apart(
    config: &KafkaConfig,
    end: Lsn,
    mut spill: Spill,
    progress: ProgressBar,
) -> Result<(Spill, Topic)> {
    let config = config.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let topic = read(&config, end, &mut spill, &progress)?;
        Ok((spill, topic))
    });
    reading
        .await
        .map_err(|error| Error::new(Code::WalcastBroke, "reading Kafka broke down").because(error))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letters_id_is_found_as_text_and_as_bytes() {
        assert_eq!(letter_id(br#"{"id":"42"}"#), Some(42));
        assert_eq!(letter_id(br#"{"id":{"$base64":"AAAAAAAAACo="}}"#), Some(42));
        assert_eq!(letter_id(br#"{"id":{"$base64":"AAAAKg=="}}"#), Some(42));
        assert_eq!(letter_id(b"{}"), None);
        assert_eq!(letter_id(b"x"), None);
    }
}
