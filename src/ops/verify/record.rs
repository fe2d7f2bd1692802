//! What verify keeps of an event: its name, and a hash of each field. Never a value.

mod json;

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::sync::LazyLock;

use uuid::Uuid;

use crate::event::extra::{self, EXTRA_COLUMNS_MAX};
use crate::event::schema::{EVENT_FIELD_COUNT, EVENT_FIELDS, EventValues, Origin, Value, event_field};
use crate::event::time::HALF_HOUR_MICROS;
use crate::lsn::{Lsn, Position};

/// Fields, as bits by their places in [`EVENT_FIELDS`]; behind them the extra columns.
pub type Fields = u64;

const FIELDS_MAX: usize = EVENT_FIELD_COUNT + EXTRA_COLUMNS_MAX;
const _: () = assert!(FIELDS_MAX <= Fields::BITS as usize);

/// All fields.
pub const ALL: Fields = Fields::MAX;

/// The fields that come from the content row.
pub const OF_CONTENT: Fields = {
    let (mut bits, mut at) = (0, 0);
    while at < EVENT_FIELD_COUNT {
        if matches!(EVENT_FIELDS[at].origin, Origin::Content) {
            bits |= 1 << at;
        }
        at += 1;
    }
    bits
};

/// The place of `event_ts` among the fields.
pub const EVENT_TS: usize = event_field("event_ts");
const CONTENT_ID: usize = event_field("content_id");

/// What else is known of a record.
pub mod flag {
    /// A row that was there before the slot was made: a sink has it only if it was brought one.
    pub const BEFORE: u8 = 1;
    /// A row that walcast refuses: a dead letter in place of an event.
    pub const REFUSED: u8 = 2;
    /// A dead letter, without fields.
    pub const LETTER: u8 = 4;
    /// A dead letter that speaks for all sinks.
    pub const LETTER_FOR_ALL: u8 = 8;
    /// A row that the source has changed since it went out.
    pub const TOUCHED: u8 = 16;
    /// A row that has its id by an update: no event has it.
    pub const RENAMED: u8 = 32;
    /// A dead letter that has not been sent again since, or was refused again: as the store has it.
    pub const STORED: u8 = 64;
}

/// The extra columns that are compared: each one's name, and the first event that has it.
#[derive(Debug, Clone, Default)]
pub struct Extras(pub Vec<(String, Position)>);

impl Extras {
    /// The bytes that a [`Record`] has on disk.
    pub fn record_bytes(&self) -> usize {
        8 + 8 + 8 + 4 + 2 + 2 + 8 + 4 * (EVENT_FIELD_COUNT + self.0.len())
    }

    /// The place of one among a record's fields.
    pub fn field(&self, name: &str) -> Option<usize> {
        Some(EVENT_FIELD_COUNT + self.0.iter().position(|(known, _)| known == name)?)
    }
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
    /// Of the sinks that were brought rows otherwise than by the stream, those that are to have it, as bits
    /// ([`crate::state::brought::BroughtTo`]).
    pub brought: u8,
    known: Fields,
    hashes: [u32; FIELDS_MAX],
}

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
            brought: 0,
            known: 0,
            hashes: [0; FIELDS_MAX],
        }
    }

    /// The record of an event that a sink holds; `None` when it does not say which it is.
    pub fn of(values: &EventValues<'_>, extras: &Extras) -> Option<Record> {
        let position = values.position()?;
        let mut record = Record::new(values.id()?, position, values.event_ts()?);
        record.take(values);
        record.take_extra(values, extras, |since| position >= since);
        Some(record)
    }

    /// It came again, and is held against others as it was at its first place.
    pub fn is_at(&mut self, first: Position) {
        self.position = first;
        const PLACE: Fields = 1 << event_field("commit_lsn") | 1 << event_field("ordinal");
        self.known &= !PLACE;
    }

    /// Takes over all values that are told.
    pub fn take(&mut self, values: &EventValues<'_>) {
        for (at, value) in values.0.iter().enumerate() {
            if let Some(hash) = value.as_ref().and_then(value_hash) {
                self.set(at, hash);
            }
        }
    }

    /// Takes over the extra columns that hold for this event, which `has` says from the first event that has one. One that
    /// is not there is NULL.
    pub fn take_extra(
        &mut self,
        EventValues(_, values): &EventValues<'_>,
        Extras(columns): &Extras,
        has: impl Fn(Position) -> bool,
    ) {
        for (at, (name, since)) in (EVENT_FIELD_COUNT..).zip(columns) {
            if has(*since) {
                let value = values.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
                self.set(at, value.map_or(0, |(_, json)| extra_hash(json)));
            }
        }
    }

    fn set(&mut self, at: usize, hash: u32) {
        if let Some(place) = self.hashes.get_mut(at) {
            *place = hash;
            self.known |= 1 << at;
        }
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The hash of the content id: enough to tell apart, not to read.
    pub fn content(&self) -> u32 {
        self.hashes.get(CONTENT_ID).copied().unwrap_or_default()
    }

    /// The hash of a field, by its place; `None` for one that is not known, 0 for NULL.
    pub fn hash(&self, at: usize) -> Option<u32> {
        self.hashes.get(at).copied().filter(|_| self.known & (1 << at) != 0)
    }

    /// The fields, as bits, in which two records differ, of those that both know and `of` has.
    pub fn differences(&self, other: &Record, of: Fields) -> Fields {
        let both = self.known & other.known & of;
        let unequal = self.hashes.iter().zip(&other.hashes).enumerate().filter(|(_, (a, b))| a != b);
        unequal.fold(0, |bits, (at, _)| bits | (1 << at)) & both
    }

    /// Appends the record as it lies on disk.
    pub fn write(&self, Extras(columns): &Extras, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.position.commit_lsn.0.to_le_bytes());
        out.extend_from_slice(&self.position.ordinal.to_le_bytes());
        out.extend_from_slice(&self.half_hour.to_le_bytes());
        out.extend_from_slice(&self.partition.to_le_bytes());
        out.extend_from_slice(&[self.flags, self.brought]);
        out.extend_from_slice(&self.known.to_le_bytes());
        let hashes = self.hashes.iter().take(EVENT_FIELD_COUNT + columns.len());
        hashes.for_each(|hash| out.extend_from_slice(&hash.to_le_bytes()));
    }

    /// Reads a record back; `None` when there are too few bytes.
    pub fn read(mut bytes: &[u8], Extras(columns): &Extras) -> Option<Record> {
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
        let [flags, brought] = take(bytes)?;
        let known = Fields::from_le_bytes(take(bytes)?);
        let mut hashes = [0; FIELDS_MAX];
        for hash in hashes.iter_mut().take(EVENT_FIELD_COUNT + columns.len()) {
            *hash = u32::from_le_bytes(take(bytes)?);
        }
        let position = Position { commit_lsn, ordinal };
        Some(Record { id, position, half_hour, partition, flags, brought, known, hashes })
    }
}

/// The names of fields given as bits.
pub fn names(bits: Fields, Extras(columns): &Extras) -> Vec<String> {
    let names =
        EVENT_FIELDS.iter().map(|field| field.name).chain(columns.iter().map(|(name, _)| name.as_str()));
    names.enumerate().filter(|(at, _)| bits & (1 << at) != 0).map(|(_, name)| name.to_owned()).collect()
}

/// The hash of an extra column's value, 0 for NULL. Sinks write a value each in its own form: a number is the same as a text
/// that says it, and JSON the same as a text that holds it.
pub fn extra_hash(json: &str) -> u32 {
    let Some(scalar) = extra::scalar(json) else {
        return json::hash(json).map_or(1, |hash| fold(hash).max(1));
    };
    if extra::is_null(json) {
        return 0;
    }
    let hash = match (scalar.parse::<i64>(), scalar.parse::<f64>()) {
        (Ok(int), _) => hash_of(&int),
        // whole numbers that both can be
        (_, Ok(float)) if float.fract() == 0.0 && float.abs() < 9e15 => hash_of(&(float as i64)),
        (_, Ok(float)) => hash_of(&float.to_bits()),
        _ => match scalar.as_bytes().first() {
            Some(b'{' | b'[' | b'"') if json::hash(&scalar).is_some() => return extra_hash(&scalar),
            _ => return text_hash(&scalar),
        },
    };
    hash.max(1)
}

/// The hash by which a text is known.
pub fn text_hash(text: &str) -> u32 {
    hash_of(&text).max(1)
}

/// The hash by which a content id is known in [`Record::content`].
pub fn content_hash(id: &Uuid) -> u32 {
    hash_of(id).max(1)
}

/// A value's hash, 0 for NULL; `None` for what cannot be compared.
fn value_hash(value: &Value<'_>) -> Option<u32> {
    let hash = match value {
        Value::Null => return Some(0),
        Value::Int(int) | Value::Time(int) => hash_of(int),
        Value::Count(count) => hash_of(count),
        Value::Lsn(lsn) => hash_of(&lsn.0),
        Value::Float(float) => hash_of(&float.to_bits()),
        Value::Text(text) => hash_of(text),
        Value::Id(id) => hash_of(id),
        Value::Json(text) => match json::hash(text)? {
            // JSON's null is NULL
            hash if hash == json::null() => return Some(0),
            hash => fold(hash),
        },
    };
    Some(hash.max(1))
}

fn hash_of(value: &impl Hash) -> u32 {
    let mut hasher = self::hasher();
    value.hash(&mut hasher);
    fold(hasher.finish())
}

/// By a key that is drawn for each run: what the file on disk has of a value with few possibilities, such as a device, tells
/// nobody which it is.
fn hasher() -> DefaultHasher {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEY.build_hasher()
}

fn fold(hash: u64) -> u32 {
    (hash ^ (hash >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Record {
        /// Sets one field.
        pub(in super::super) fn tell(&mut self, name: &str, value: Value<'_>) {
            self.set(event_field(name), value_hash(&value).unwrap());
        }
    }

    fn record() -> Record {
        Record::new(7, Position { commit_lsn: Lsn(1 << 40), ordinal: 3 }, 1_767_323_045_000_001)
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let mut record = record();
        record.tell("device", Value::Text("tv".into()));
        record.tell("user_id", Value::Null);
        (record.partition, record.flags) = (15, flag::BEFORE);
        let mut bytes = Vec::new();
        let extras = Extras(vec![("country".to_owned(), record.position)]);
        let extra = vec![("country".into(), "\"PL\"".into())];
        record.take_extra(&EventValues(EventValues::default().0, extra), &extras, |_| true);
        record.write(&extras, &mut bytes);
        assert_eq!(bytes.len(), extras.record_bytes());
        assert_eq!(Record::read(&bytes, &extras), Some(record));
        assert_eq!(Record::read(&bytes[1..], &extras), None);
    }

    #[test]
    fn only_what_both_know_can_differ() {
        let (mut a, mut b) = (record(), record());
        a.tell("device", Value::Text("tv".into()));
        a.tell("user_id", Value::Null);
        b.tell("user_id", Value::Id(Uuid::nil()));
        b.tell("title", Value::Text("t".into()));
        assert_eq!(names(a.differences(&b, ALL), &Extras::default()), ["user_id"]);
        assert_eq!(a.differences(&b, OF_CONTENT), 0);
    }

    #[test]
    fn json_is_the_same_however_it_is_written() {
        let differ = |one: &str, other: &str| {
            let (mut a, mut b) = (record(), record());
            a.tell("raw_payload", Value::Json(one.into()));
            b.tell("raw_payload", Value::Json(other.into()));
            a.differences(&b, ALL) != 0
        };
        assert!(!differ(r#"{"a": 1.0, "b": [1, 2]}"#, r#"{"b":[1,2],"a":1}"#));
        // a reader that rounds to the nearest double has lost nothing that its own numbers could hold
        assert!(!differ(&format!("0.{}", "3".repeat(16_383)), "0.3333333333333333"));
        assert!(differ(r#"{"a":1}"#, r#"{"a":2}"#));
        assert!(differ(r#"{"a":1,"b":2}"#, r#"{"a":2,"b":1}"#));
        assert!(differ("[1,2]", "[2,1]"));
        assert!(differ(r#""1""#, "1"));
        let (mut null, mut absent) = (record(), record());
        null.tell("raw_payload", Value::Json("null".into()));
        absent.tell("raw_payload", Value::Null);
        assert_eq!(null.differences(&absent, ALL), 0);
    }

    #[test]
    fn an_extra_value_is_the_same_in_each_form() {
        let same = [
            ["5", "\"5\"", "5.0"],
            ["\"12.50\"", "\"12.5\"", "12.5"],
            ["\"NaN\"", "\"NaN\"", "\"NaN\""],
            [r#"{"a":[1]}"#, r#"{"a": [1.0]}"#, r#""{\"a\":[1]}""#],
            [r#""x""#, r#""\u0078""#, r#""\"x\"""#],
            ["true", "true", "\"true\""],
        ];
        for forms in same {
            let [a, b, c] = forms.map(extra_hash);
            assert_eq!((a, a), (b, c), "{forms:?}");
        }
        let others = [
            "null",
            "\"\"",
            "0",
            "\"a\"",
            "\"A\"",
            "false",
            "[]",
            "{}",
            "9007199254740993",
            "9007199254740992",
        ];
        let hashes: std::collections::HashSet<u32> = others.iter().map(|json| extra_hash(json)).collect();
        assert_eq!((hashes.len(), extra_hash("null")), (others.len(), 0));
    }

    #[test]
    fn what_depends_on_the_content_row_is_known() {
        assert_eq!(
            names(OF_CONTENT, &Extras::default()),
            ["slug", "title", "content_type", "length_seconds", "publish_ts", "engagement_pct"]
        );
    }
}
