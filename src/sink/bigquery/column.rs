//! The table's columns: those of the event, and a few of its own.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Event};
use crate::event::schema::{EVENT_FIELDS, EventRecord, Field, FieldKind, Visit, fields, visit_event};
use crate::event::time::{HALF_HOUR_MICROS, MICROS_MAX, MICROS_MIN};

/// How many half hours the ring of partitions has: 200 days.
pub const BUCKETS: i64 = 9_600;

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

impl ColumnType {
    /// The type of a field's column.
    pub fn of(field: &Field) -> Self {
        match field.kind {
            FieldKind::Int | FieldKind::Count | FieldKind::Lsn => ColumnType::Int64,
            FieldKind::Float => ColumnType::Float64,
            FieldKind::Text | FieldKind::Id => ColumnType::String,
            FieldKind::Time => ColumnType::Timestamp,
            FieldKind::Json => ColumnType::Json,
        }
    }

    /// Its name in SQL.
    pub fn sql(self) -> &'static str {
        match self {
            ColumnType::Int64 => "INT64",
            ColumnType::Float64 => "FLOAT64",
            ColumnType::String => "STRING",
            ColumnType::Timestamp => "TIMESTAMP",
            ColumnType::Json => "JSON",
        }
    }
}

/// What a row is made from.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    /// The event.
    pub event: &'a Event,
    /// The batch that has its texts.
    pub batch: &'a Batch,
    /// The history id's UUID as text.
    pub epoch: &'a str,
    /// When the row is sent, microseconds since 1970.
    pub ingested_at: i64,
}

fields! {
    /// The columns that only this table has.
    table OWN_FIELDS, number OWN_FIELD_COUNT;
    /// Gives the values of [`OWN_FIELDS`].
    visit visit_own(r: Record<'a>);

    epoch: Text, Sink, "", "The history that commit_lsn belongs to, UUID text" = Some(r.epoch);
    bucket_30m: Int, Sink, "", "MOD(DIV(UNIX_SECONDS(event_ts), 1800), 9600)" = Some(bucket_30m(r.event.event_ts));
    ingested_at: Time, Sink, "", "When walcast sent the row" = Some(r.ingested_at);
}

/// All columns, in the table's order. A column's place among them is its field number (from 1) in the rows.
pub fn columns() -> impl Iterator<Item = &'static Field> + Clone {
    EVENT_FIELDS.iter().chain(&OWN_FIELDS)
}

/// Gives a row's values, in the order of [`columns`].
#[inline(always)]
pub fn visit_row<'a>(record: &Record<'a>, to: &mut impl Visit<'a>) {
    visit_event(&EventRecord { event: record.event, texts: record.batch.texts() }, to);
    visit_own(record, to);
}

/// The reference of the table's columns, as Markdown: what the documentation shows.
pub fn reference_markdown() -> String {
    let line = |field: &Field| {
        let null_when = if field.required() { "REQUIRED" } else { field.null_when };
        let kind = ColumnType::of(field).sql();
        format!("| `{}` | {kind} | {null_when} | {} |\n", field.name, field.description)
    };
    let lines: String = columns().map(line).collect();
    format!("| Column | Type | NULL when | What it holds |\n| --- | --- | --- | --- |\n{lines}")
}

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
        Footprint { buckets: (0..BUCKETS).collect(), event_ts_min: MICROS_MIN, event_ts_max: MICROS_MAX }
    }

    /// Adds an event's place.
    pub fn add(&mut self, event_ts: i64) {
        self.buckets.insert(bucket_30m(event_ts));
        self.event_ts_min = self.event_ts_min.min(event_ts);
        self.event_ts_max = self.event_ts_max.max(event_ts);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::extra::unfit_name;

    #[test]
    fn no_extra_column_takes_the_name_of_one_of_ours() {
        for column in columns() {
            assert!(unfit_name(column.name).is_some(), "{}", column.name);
        }
    }

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
