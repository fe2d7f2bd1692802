//! The events as Kafka has them.

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use jiff::Timestamp;

use super::config::{KafkaConfig, record_bytes_max};
use super::encode::TOO_LARGE;
use super::murmur::partition_of;
use super::scan::{self, Scan};
use super::topics;
use crate::error::{Code, Error, Result};
use crate::event::schema::{EventValues, FieldKind, Value, event_field};
use crate::lsn::{Lsn, Position};
use crate::sink::read_back::{Found, Part, PartitionOf, ReadEvents, Take};

/// Reads the topics of events and dead letters.
pub struct ReadTopics {
    /// Which, and how.
    pub config: KafkaConfig,
    /// The largest row that is sent on with its payload.
    pub row_bytes_max: usize,
}

#[async_trait]
impl ReadEvents for ReadTopics {
    async fn read(self: Box<Self>, _: Lsn, _: &Part, take: Take) -> Result<()> {
        tokio::task::spawn_blocking(move || read(&self, take))
            .await
            .map_err(|error| Error::new(Code::WalcastBroke, "reading Kafka broke down").because(error))?
    }

    async fn keeps_since(&mut self) -> Result<Option<i64>> {
        let kept = topics::retention_ms(&self.config, self.row_bytes_max).await?;
        Ok(kept.map(|millis| {
            let now = Timestamp::now().as_microsecond();
            now.saturating_sub(millis.saturating_mul(1_000))
        }))
    }

    fn tells_letters(&self) -> bool {
        true
    }

    fn partition_of(&self) -> Option<Box<PartitionOf>> {
        let partitions = self.config.partitions;
        Some(Box::new(move |key| partition_of(key.as_bytes(), partitions) as u16))
    }
}

fn read(ReadTopics { config, row_bytes_max }: &ReadTopics, mut take: Take) -> Result<()> {
    let topics = config.topics();
    let events = Scan::open(config, &topics.events, config.partitions)?;
    let letters = Scan::open(config, &topics.dlq, 1)?;
    take(Found::Expected(events.offsets() + letters.offsets()))?;
    for (partition, _) in events.begins().filter(|(_, begin)| *begin > 0) {
        take(Found::Trimmed(partition as u16))?;
    }
    let encoding = config.encoding();
    events.read(|message| match encoding.read_event(message.value()) {
        Some(mut values) => {
            if payload_did_not_fit(&values, message.value().len(), *row_bytes_max) {
                values.forget(|field| field.kind == FieldKind::Json);
            }
            take(Found::Event(&values, Some(message.partition() as u16)))
        }
        None => take(Found::Unreadable),
    })?;
    letters.read(|message| letter(&message).map_or(Ok(()), &mut take))
}

/// Whether the record has left out a payload with which it would be too large. As a text, JSON may be twice as long.
fn payload_did_not_fit(values: &EventValues<'_>, record_bytes: usize, row_bytes_max: usize) -> bool {
    let [payload, bytes] = const { [event_field("raw_payload"), event_field("raw_payload_bytes")] };
    match (values.0.get(payload), values.0.get(bytes)) {
        (Some(Some(Value::Null)), Some(Some(Value::Int(bytes)))) => {
            let payload_bytes = usize::try_from(*bytes).unwrap_or_default().saturating_mul(2);
            record_bytes.saturating_add(payload_bytes) > record_bytes_max(row_bytes_max)
        }
        _ => false,
    }
}

/// A dead letter of an event: what the id of a content row is, no number is.
fn letter(message: &scan::Record<'_>) -> Option<Found<'static>> {
    let (commit_lsn, ordinal) = message.header("lsn")?.split_once('#')?;
    let position = Position { commit_lsn: commit_lsn.parse().ok()?, ordinal: ordinal.parse().ok()? };
    let only_here = message.header("__connect.errors.exception.class.name") == Some(TOO_LARGE);
    Some(Found::Letter { id: letter_id(message.value())?, position, for_all: !only_here })
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
