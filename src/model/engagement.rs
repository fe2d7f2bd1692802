//! The `engagement_events` table.

use uuid::Uuid;

use super::{Reads, RowError, TableColumns, Wanted, missing, writable};
use crate::error::Result;
use crate::pgoutput::{Relation, Tuple};

/// A row of `engagement_events`, as slices of its message. Every `None` is an SQL NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engagement<'a> {
    /// `id`.
    pub id: i64,
    /// `content_id`.
    pub content_id: Option<Uuid>,
    /// `user_id`.
    pub user_id: Option<Uuid>,
    /// `event_type`.
    pub event_type: Option<&'a str>,
    /// `event_ts`, microseconds since 1970, within the years 1 to 9999.
    pub event_ts: i64,
    /// `duration_ms`, not negative.
    pub duration_ms: Option<i64>,
    /// `device`.
    pub device: Option<&'a str>,
    /// `raw_payload`, valid JSON.
    pub raw_payload: Option<&'a str>,
}

impl Engagement<'_> {
    /// Bytes of the columns that have no bound of their own.
    pub fn text_bytes(&self) -> usize {
        [self.event_type, self.device, self.raw_payload].iter().flatten().map(|text| text.len()).sum()
    }
}

#[derive(Debug, Clone, Copy)]
enum Field {
    Id,
    ContentId,
    UserId,
    EventType,
    EventTs,
    DurationMs,
    Device,
    RawPayload,
}

const FIELDS: [(&str, Field, Reads); 8] = [
    ("id", Field::Id, Reads::Integer),
    ("content_id", Field::ContentId, Reads::Uuid),
    ("user_id", Field::UserId, Reads::Uuid),
    ("event_type", Field::EventType, Reads::Text),
    ("event_ts", Field::EventTs, Reads::Time),
    ("duration_ms", Field::DurationMs, Reads::Integer),
    ("device", Field::Device, Reads::Text),
    ("raw_payload", Field::RawPayload, Reads::Json),
];

/// The columns that walcast needs.
pub fn columns() -> impl Iterator<Item = Wanted> {
    FIELDS.iter().map(Wanted::of)
}

/// Their names.
pub fn column_names() -> impl Iterator<Item = &'static str> {
    columns().map(|column| column.name)
}

/// The columns of `engagement_events`, whatever their order and whatever others there are.
pub struct EngagementTable {
    /// Which column is which.
    columns: TableColumns<Field>,
}

impl EngagementTable {
    pub(super) fn new(relation: Relation) -> Result<Self> {
        Ok(EngagementTable { columns: TableColumns::new(relation, &FIELDS)? })
    }

    /// Reads a row and holds it against the rules: a stamp within the years 1 to 9999, no negative duration.
    pub fn read<'a>(&self, tuple: &Tuple<'a>) -> Result<Engagement<'a>, RowError> {
        let (mut id, mut event_ts) = (None, None);
        let mut row = Engagement {
            id: 0,
            content_id: None,
            user_id: None,
            event_type: None,
            event_ts: 0,
            duration_ms: None,
            device: None,
            raw_payload: None,
        };
        for value in self.columns.values(tuple)? {
            let (field, column, value) = value?;
            match field {
                Field::Id => id = value.int8(column)?,
                Field::ContentId => row.content_id = value.uuid(column)?,
                Field::UserId => row.user_id = value.uuid(column)?,
                Field::EventType => row.event_type = value.text(column)?,
                Field::EventTs => event_ts = value.timestamptz(column)?,
                Field::DurationMs => row.duration_ms = value.int8(column)?,
                Field::Device => row.device = value.text(column)?,
                Field::RawPayload => row.raw_payload = value.json(column)?,
            }
        }
        row.id = id.ok_or_else(|| missing("id"))?;
        row.event_ts = writable(event_ts.ok_or_else(|| missing("event_ts"))?).ok_or_else(|| RowError {
            reason: "event_ts_out_of_range",
            message: "column event_ts: a time outside the years 1 to 9999".into(),
        })?;
        if row.duration_ms.is_some_and(|duration| duration < 0) {
            return Err(RowError {
                reason: "negative_duration",
                message: "column duration_ms: a negative number".into(),
            });
        }
        Ok(row)
    }

    /// A row that [`Self::read`] refused, for the dead letter: error, table, row as JSON.
    pub fn dead_letter(&self, tuple: &Tuple<'_>, error: RowError) -> (RowError, String, String) {
        self.columns.dead_letter(tuple, error)
    }
}
