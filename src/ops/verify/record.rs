//! What verify keeps of an event: its name, and a hash of each field. Never a value.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;
use uuid::Uuid;

use crate::lsn::{Lsn, Position};

/// The fields that are compared, by their names in every sink.
pub const FIELDS: [&str; 18] = [
    "content_id",
    "user_id",
    "event_type",
    "event_ts",
    "duration_ms",
    "device",
    "raw_payload",
    "raw_payload_bytes",
    "slug",
    "title",
    "content_type",
    "length_seconds",
    "publish_ts",
    "engagement_seconds",
    "engagement_pct",
    "commit_ts",
    "commit_lsn",
    "ordinal",
];

/// A place in [`FIELDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `content_id`.
    ContentId,
    /// `user_id`.
    UserId,
    /// `event_type`.
    EventType,
    /// `event_ts`.
    EventTs,
    /// `duration_ms`.
    DurationMs,
    /// `device`.
    Device,
    /// `raw_payload`.
    RawPayload,
    /// `raw_payload_bytes`.
    RawPayloadBytes,
    /// `slug`.
    Slug,
    /// `title`.
    Title,
    /// `content_type`.
    ContentType,
    /// `length_seconds`.
    LengthSeconds,
    /// `publish_ts`.
    PublishTs,
    /// `engagement_seconds`.
    EngagementSeconds,
    /// `engagement_pct`.
    EngagementPct,
    /// `commit_ts`.
    CommitTs,
    /// `commit_lsn`.
    CommitLsn,
    /// `ordinal`.
    Ordinal,
}

/// The fields that come from the content row.
pub const OF_CONTENT: u32 = bit(Field::Slug)
    | bit(Field::Title)
    | bit(Field::ContentType)
    | bit(Field::LengthSeconds)
    | bit(Field::PublishTs)
    | bit(Field::EngagementPct);

const HALF_HOUR_MICROS: i64 = 1_800_000_000;

/// What else is known of a record.
pub mod flag {
    /// A row that was there before the slot was made: no sink need have it.
    pub const BEFORE: u8 = 1;
    /// A row that walcast refuses: a dead letter in place of an event.
    pub const REFUSED: u8 = 2;
    /// A dead letter, without fields.
    pub const LETTER: u8 = 4;
    /// A dead letter that speaks for all sinks.
    pub const LETTER_FOR_ALL: u8 = 8;
}

/// An event as one side knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// `engagement_events.id`.
    pub id: i64,
    /// In a sink: the event's place. At the source: that of the newest version of its content row; events
    /// after it have seen that version.
    pub position: Position,
    /// `event_ts` in half hours since 1970.
    pub half_hour: i32,
    /// The partition that Kafka has it in, by its content id.
    pub partition: u16,
    /// See [`flag`].
    pub flags: u8,
    known: u32,
    hashes: [u32; FIELDS.len()],
}

/// How many bytes a [`Record`] has on disk.
pub const RECORD_BYTES: usize = 8 + 8 + 8 + 4 + 2 + 2 + 4 + 4 * FIELDS.len();

/// The partition of an event without a content id: any.
pub const ANY_PARTITION: u16 = u16::MAX;

impl Record {
    /// A record without fields.
    pub fn new(id: i64, position: Position, event_ts: i64) -> Self {
        Record {
            id,
            position,
            half_hour: i32::try_from(event_ts.div_euclid(HALF_HOUR_MICROS)).unwrap_or(i32::MAX),
            partition: ANY_PARTITION,
            flags: 0,
            known: 0,
            hashes: [0; FIELDS.len()],
        }
    }

    /// Sets a field; `None` is NULL, which is a value too.
    pub fn set(&mut self, field: Field, value: Option<impl Hash>) {
        let hash = value.map_or(0, |value| hash_of(&value).max(1));
        if let Some(place) = self.hashes.get_mut(field as usize) {
            *place = hash;
            self.known |= bit(field);
        }
    }

    /// Sets a field of JSON text, whatever its spaces and the order of its keys. JSON's null is NULL.
    pub fn set_json(&mut self, field: Field, text: Option<&str>) {
        match text.map(serde_json::from_str::<Value>) {
            None | Some(Ok(Value::Null)) => self.set(field, None::<()>),
            Some(Ok(value)) => self.set(field, Some(json_hash(&value))),
            // what this reader cannot read (too deep, a number without end) is left to the other fields
            Some(Err(_)) => {}
        }
    }

    /// Sets a floating-point field.
    pub fn set_float(&mut self, field: Field, value: Option<f64>) {
        self.set(field, value.map(f64::to_bits));
    }

    /// Takes over the fields of the content row.
    pub fn take_content(&mut self, from: &Record) {
        for (at, (hash, theirs)) in self.hashes.iter_mut().zip(&from.hashes).enumerate() {
            if OF_CONTENT & from.known & (1 << at) != 0 {
                *hash = *theirs;
            }
        }
        self.known |= OF_CONTENT & from.known;
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The hash of the content id: enough to tell apart, not to read.
    pub fn content(&self) -> u32 {
        self.hashes.first().copied().unwrap_or_default()
    }

    /// The fields, as bits, in which two records differ, of those that both know and `of` has.
    pub fn differences(&self, other: &Record, of: u32) -> u32 {
        let both = self.known & other.known & of;
        let unequal = self.hashes.iter().zip(&other.hashes).enumerate().filter(|(_, (a, b))| a != b);
        unequal.fold(0, |bits, (at, _)| bits | (1 << at)) & both
    }

    /// Appends the record as it lies on disk.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.position.commit_lsn.0.to_le_bytes());
        out.extend_from_slice(&self.position.ordinal.to_le_bytes());
        out.extend_from_slice(&self.half_hour.to_le_bytes());
        out.extend_from_slice(&self.partition.to_le_bytes());
        out.extend_from_slice(&[self.flags, 0]);
        out.extend_from_slice(&self.known.to_le_bytes());
        self.hashes.iter().for_each(|hash| out.extend_from_slice(&hash.to_le_bytes()));
    }

    /// Reads a record back; `None` when there are too few bytes.
    pub fn read(mut bytes: &[u8]) -> Option<Record> {
        fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (taken, rest) = bytes.split_first_chunk::<N>()?;
            *bytes = rest;
            Some(*taken)
        }
        let bytes = &mut bytes;
        let id = i64::from_le_bytes(take(bytes)?);
        let commit_lsn = Lsn(u64::from_le_bytes(take(bytes)?));
        let ordinal = u64::from_le_bytes(take(bytes)?);
        let half_hour = i32::from_le_bytes(take(bytes)?);
        let partition = u16::from_le_bytes(take(bytes)?);
        let [flags, _] = take(bytes)?;
        let known = u32::from_le_bytes(take(bytes)?);
        let mut hashes = [0; FIELDS.len()];
        for hash in &mut hashes {
            *hash = u32::from_le_bytes(take(bytes)?);
        }
        let position = Position { commit_lsn, ordinal };
        Some(Record { id, position, half_hour, partition, flags, known, hashes })
    }
}

/// The names of fields given as bits.
pub fn names(bits: u32) -> Vec<&'static str> {
    FIELDS.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0).map(|(_, name)| *name).collect()
}

/// The hash by which a content id is known in [`Record::content`].
pub fn content_hash(id: &Uuid) -> u32 {
    hash_of(id).max(1)
}

const fn bit(field: Field) -> u32 {
    1 << field as u32
}

fn hash_of(value: &impl Hash) -> u32 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    let hash = hasher.finish();
    (hash ^ (hash >> 32)) as u32
}

fn json_hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    match value {
        Value::Null => 0u8.hash(&mut hasher),
        Value::Bool(truth) => truth.hash(&mut hasher),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => (1u8, whole).hash(&mut hasher),
            (None, Some(float)) if float.fract() == 0.0 && float.abs() < 9e15 => {
                (1u8, float as i64).hash(&mut hasher);
            }
            (None, float) => (2u8, float.map(f64::to_bits)).hash(&mut hasher),
        },
        Value::String(text) => (3u8, text).hash(&mut hasher),
        Value::Array(items) => {
            4u8.hash(&mut hasher);
            items.iter().for_each(|item| json_hash(item).hash(&mut hasher));
        }
        Value::Object(fields) => {
            let entry = |(name, value): (&String, &Value)| {
                let mut hasher = DefaultHasher::new();
                (name, json_hash(value)).hash(&mut hasher);
                hasher.finish()
            };
            let sum = fields.iter().map(entry).fold(0u64, u64::wrapping_add);
            (5u8, fields.len(), sum).hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::new(7, Position { commit_lsn: Lsn(1 << 40), ordinal: 3 }, 1_767_323_045_000_001)
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let mut record = record();
        record.set(Field::Device, Some("tv"));
        record.set(Field::UserId, None::<()>);
        (record.partition, record.flags) = (15, flag::BEFORE);
        let mut bytes = Vec::new();
        record.write(&mut bytes);
        assert_eq!(bytes.len(), RECORD_BYTES);
        assert_eq!(Record::read(&bytes), Some(record));
        assert_eq!(Record::read(&bytes[1..]), None);
    }

    #[test]
    fn only_what_both_know_can_differ() {
        let (mut a, mut b) = (record(), record());
        a.set(Field::Device, Some("tv"));
        a.set(Field::UserId, None::<Uuid>);
        b.set(Field::UserId, Some(Uuid::nil()));
        b.set(Field::Title, Some("t"));
        assert_eq!(names(a.differences(&b, u32::MAX)), ["user_id"]);
        assert_eq!(a.differences(&b, OF_CONTENT), 0);
    }

    #[test]
    fn json_is_the_same_however_it_is_written() {
        let differ = |one: &str, other: &str| {
            let (mut a, mut b) = (record(), record());
            a.set_json(Field::RawPayload, Some(one));
            b.set_json(Field::RawPayload, Some(other));
            a.differences(&b, u32::MAX) != 0
        };
        assert!(!differ(r#"{"a": 1.0, "b": [1, 2]}"#, r#"{"b":[1,2],"a":1}"#));
        assert!(differ(r#"{"a":1}"#, r#"{"a":2}"#));
        assert!(differ(r#"{"a":1,"b":2}"#, r#"{"a":2,"b":1}"#));
        assert!(differ("[1,2]", "[2,1]"));
        assert!(differ(r#""1""#, "1"));
        let (mut null, mut absent) = (record(), record());
        null.set_json(Field::RawPayload, Some("null"));
        absent.set_json(Field::RawPayload, None);
        assert_eq!(null.differences(&absent, u32::MAX), 0);
    }

    #[test]
    fn fields_and_names_are_in_one_order() {
        assert_eq!(names(bit(Field::Ordinal)), ["ordinal"]);
        assert_eq!(names(bit(Field::EngagementPct)), ["engagement_pct"]);
        assert_eq!(names(bit(Field::RawPayload)), ["raw_payload"]);
    }
}
