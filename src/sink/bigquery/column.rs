//! The table's columns: the one list from which schema, row descriptor and rows are made.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::batch::{Batch, Event};

const HALF_HOUR_MICROS: i64 = 1_800 * 1_000_000;

/// How many half hours the ring of partitions has: 200 days.
pub const BUCKETS: i64 = 9_600;

/// A column of the table.
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: ColumnType,
    /// Whether it is never NULL.
    pub required: bool,
    /// What it holds.
    pub description: &'static str,
    /// What a row has there.
    pub read: for<'a> fn(&Record<'a>) -> Value<'a>,
}

/// The types that the table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// INT64.
    Int64,
    /// FLOAT64.
    Float64,
    /// STRING.
    String,
    /// TIMESTAMP, written as microseconds since 1970.
    Timestamp,
    /// JSON, written as text.
    Json,
}

/// What a row has in a column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// NULL.
    Null,
    /// For INT64 and TIMESTAMP.
    Int(i64),
    /// For FLOAT64.
    Float(f64),
    /// For STRING and JSON.
    Text(&'a str),
    /// For STRING: 8-4-4-4-12 in lower case.
    Id(Uuid),
}

/// What a row is made from.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    /// The event.
    pub event: &'a Event,
    /// The batch that has its texts.
    pub batch: &'a Batch,
    /// The epoch's UUID as text.
    pub epoch: &'a str,
    /// When the row is sent, microseconds since 1970.
    pub ingested_at: i64,
}

/// All columns, in the table's order. A column's place in the list is its field number (from 1) in the rows.
pub static COLUMNS: [Column; 22] = [
    required("event_id", ColumnType::Int64, "engagement_events.id", |r| Value::Int(r.event.id)),
    nullable("content_id", ColumnType::String, "engagement_events.content_id, UUID text", |r| {
        r.event.content_id.map_or(Value::Null, Value::Id)
    }),
    nullable("user_id", ColumnType::String, "engagement_events.user_id, UUID text", |r| {
        r.event.user_id.map_or(Value::Null, Value::Id)
    }),
    nullable("event_type", ColumnType::String, "play, pause, finish or click", |r| {
        r.event.event_type.map_or(Value::Null, |span| Value::Text(r.batch.text(span)))
    }),
    required("event_ts", ColumnType::Timestamp, "When it happened", |r| Value::Int(r.event.event_ts)),
    nullable("duration_ms", ColumnType::Int64, "engagement_events.duration_ms", |r| int(r.event.duration_ms)),
    nullable("device", ColumnType::String, "engagement_events.device", |r| {
        r.event.device.map_or(Value::Null, |span| Value::Text(r.batch.text(span)))
    }),
    nullable(
        "raw_payload",
        ColumnType::Json,
        "engagement_events.raw_payload; NULL when it was too large",
        |r| r.event.raw_payload.map_or(Value::Null, |span| Value::Text(r.batch.text(span))),
    ),
    nullable("raw_payload_bytes", ColumnType::Int64, "Size of raw_payload, also when it was left out", |r| {
        int(r.event.raw_payload_bytes)
    }),
    nullable("slug", ColumnType::String, "content.slug when the event was written", |r| {
        r.event.content.as_deref().map_or(Value::Null, |content| Value::Text(&content.slug))
    }),
    nullable("title", ColumnType::String, "content.title when the event was written", |r| {
        r.event.content.as_deref().map_or(Value::Null, |content| Value::Text(&content.title))
    }),
    nullable("content_type", ColumnType::String, "content.content_type: podcast, newsletter or video", |r| {
        let content = r.event.content.as_deref();
        content.and_then(|content| content.content_type.as_deref()).map_or(Value::Null, Value::Text)
    }),
    nullable("length_seconds", ColumnType::Int64, "content.length_seconds", |r| {
        int(r.event.content.as_deref().and_then(|content| content.length_seconds))
    }),
    nullable("publish_ts", ColumnType::Timestamp, "content.publish_ts", |r| {
        int(r.event.content.as_deref().and_then(|content| content.publish_ts))
    }),
    nullable("engagement_seconds", ColumnType::Float64, "duration_ms / 1000", |r| {
        float(r.event.engagement_seconds())
    }),
    nullable("engagement_pct", ColumnType::Float64, "engagement_seconds / length_seconds * 100", |r| {
        float(r.event.engagement_pct())
    }),
    required("commit_ts", ColumnType::Timestamp, "When the event's transaction committed", |r| {
        Value::Int(r.event.commit_ts)
    }),
    required("commit_lsn", ColumnType::Int64, "Where that commit lies in the WAL", |r| {
        Value::Int(r.event.position.commit_lsn.0 as i64)
    }),
    required("ordinal", ColumnType::Int64, "The change's index within its transaction", |r| {
        Value::Int(r.event.position.ordinal as i64)
    }),
    required("epoch", ColumnType::String, "The history that commit_lsn belongs to, UUID text", |r| {
        Value::Text(r.epoch)
    }),
    required("bucket_30m", ColumnType::Int64, "MOD(DIV(UNIX_SECONDS(event_ts), 1800), 9600)", |r| {
        Value::Int(bucket_30m(r.event.event_ts))
    }),
    required("ingested_at", ColumnType::Timestamp, "When walcast sent the row", |r| {
        Value::Int(r.ingested_at)
    }),
];

/// The half hour of a time (microseconds since 1970) in the ring: 0 to 9,599. Before 1970 the ring goes on
/// backwards.
pub fn bucket_30m(micros: i64) -> i64 {
    micros.div_euclid(HALF_HOUR_MICROS).rem_euclid(BUCKETS)
}

/// Where in the table rows lie, whichever way it is partitioned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// The values of `bucket_30m`.
    pub buckets: BTreeSet<i64>,
    /// The lowest `event_ts`, microseconds since 1970.
    pub event_ts_min: i64,
    /// The highest `event_ts`.
    pub event_ts_max: i64,
}

impl Default for Footprint {
    fn default() -> Self {
        Footprint { buckets: BTreeSet::new(), event_ts_min: i64::MAX, event_ts_max: i64::MIN }
    }
}

impl Footprint {
    /// The whole table, years 1 to 9999.
    pub fn whole() -> Self {
        Footprint {
            buckets: (0..BUCKETS).collect(),
            event_ts_min: -62_135_596_800_000_000,
            event_ts_max: 253_402_300_799_999_999,
        }
    }

    /// Adds an event's place.
    pub fn add(&mut self, event_ts: i64) {
        self.buckets.insert(bucket_30m(event_ts));
        self.event_ts_min = self.event_ts_min.min(event_ts);
        self.event_ts_max = self.event_ts_max.max(event_ts);
    }
}

type Read = for<'a> fn(&Record<'a>) -> Value<'a>;

const fn required(name: &'static str, kind: ColumnType, description: &'static str, read: Read) -> Column {
    Column { name, kind, required: true, description, read }
}

const fn nullable(name: &'static str, kind: ColumnType, description: &'static str, read: Read) -> Column {
    Column { name, kind, required: false, description, read }
}

fn int<'a>(number: Option<impl Into<i64>>) -> Value<'a> {
    number.map_or(Value::Null, |number| Value::Int(number.into()))
}

fn float<'a>(number: Option<f64>) -> Value<'a> {
    number.map_or(Value::Null, Value::Float)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ring_has_no_seam_at_1970() {
        let second = 1_000_000;
        for (unix_seconds, bucket) in [
            (0, 0),
            (1_799, 0),
            (1_800, 1),
            (1_800 * 9_600, 0),
            (-1, 9_599),
            (-1_800, 9_599),
            (-1_801, 9_598),
        ] {
            assert_eq!(bucket_30m(unix_seconds * second), bucket, "{unix_seconds}");
        }
    }

    proptest! {
        #[test]
        fn a_bucket_is_what_the_documented_sql_gives_and_never_outside_the_ring(micros: i64) {
            let bucket = bucket_30m(micros);
            prop_assert!((0..BUCKETS).contains(&bucket));
            if micros >= 0 {
                prop_assert_eq!(bucket, micros / 1_000_000 / 1_800 % 9_600);
            }
        }
    }
}
