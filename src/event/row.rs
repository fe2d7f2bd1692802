//! The rows of the two source tables, however they were read: from the stream, or by SQL.

use uuid::Uuid;

use super::privacy::{Privacy, Rule};
use super::schema::{ContentColumn, EngagementColumn};
use super::time::{MICROS_MAX, MICROS_MIN};
use crate::pgoutput::{DecodeError, Timestamp};

/// A row of `engagement_events`, as slices of what it was read from. Every `None` is an SQL NULL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

/// A row of `content`. Every other `None` is an SQL NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// `content.id`.
    pub id: Uuid,
    /// `content.slug`; `None` when it is left out.
    pub slug: Option<String>,
    /// `content.title`; `None` when it is left out.
    pub title: Option<String>,
    /// `content.content_type`: podcast, newsletter, video, or what the database allows besides.
    pub content_type: Option<String>,
    /// `content.length_seconds`.
    pub length_seconds: Option<i32>,
    /// `content.publish_ts`, microseconds since 1970; `None` when it lies outside the years 1 to 9999.
    pub publish_ts: Option<i64>,
}

/// Why one row cannot go on as what it should be. It becomes a dead letter; the stream goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    /// A short code for metrics.
    pub reason: &'static str,
    /// Column, shape found, shape wanted; never the value.
    pub message: String,
}

impl From<DecodeError> for RowError {
    fn from(error: DecodeError) -> Self {
        RowError { reason: "undecodable", message: error.to_string() }
    }
}

/// One column's value of a row that is being read. `None` is an SQL NULL.
pub trait Cell<'a> {
    /// What a value of another shape gives.
    type Error;
    /// An integer of up to 64 bits.
    fn int8(self) -> Result<Option<i64>, Self::Error>;
    /// An integer of up to 32 bits.
    fn int4(self) -> Result<Option<i32>, Self::Error>;
    /// A UUID.
    fn uuid(self) -> Result<Option<Uuid>, Self::Error>;
    /// A text.
    fn text(self) -> Result<Option<&'a str>, Self::Error>;
    /// A time.
    fn time(self) -> Result<Option<Timestamp>, Self::Error>;
    /// JSON, as text.
    fn json(self) -> Result<Option<&'a str>, Self::Error>;
}

/// A row of `engagement_events` that has not been held against the rules yet.
#[derive(Debug, Clone, Default)]
pub struct UncheckedEngagement<'a> {
    id: Option<i64>,
    event_ts: Option<Timestamp>,
    row: Engagement<'a>,
}

impl<'a> UncheckedEngagement<'a> {
    /// Takes a column's value.
    #[inline(always)]
    pub fn put<C: Cell<'a>>(&mut self, column: EngagementColumn, cell: C) -> Result<(), C::Error> {
        let row = &mut self.row;
        match column {
            EngagementColumn::Id => self.id = cell.int8()?,
            EngagementColumn::ContentId => row.content_id = cell.uuid()?,
            EngagementColumn::UserId => row.user_id = cell.uuid()?,
            EngagementColumn::EventType => row.event_type = cell.text()?,
            EngagementColumn::EventTs => self.event_ts = cell.time()?,
            EngagementColumn::DurationMs => row.duration_ms = cell.int8()?,
            EngagementColumn::Device => row.device = cell.text()?,
            EngagementColumn::RawPayload => row.raw_payload = cell.json()?,
        }
        Ok(())
    }

    /// The row, if it keeps the rules: an id, a stamp within the years 1 to 9999, no negative duration.
    #[inline(always)]
    pub fn checked(self) -> Result<Engagement<'a>, RowError> {
        let UncheckedEngagement { id, event_ts, mut row } = self;
        row.id = id.ok_or_else(|| missing("id"))?;
        row.event_ts = writable(event_ts.ok_or_else(|| missing("event_ts"))?).ok_or_else(|| RowError {
            reason: "event_ts_out_of_range",
            message: "column event_ts: a time outside the years 1 to 9999".into(),
        })?;
        if row.duration_ms.is_some_and(|duration| duration < 0) {
            return Err(negative_duration());
        }
        Ok(row)
    }

    /// The row so far, and the columns that it must have and has not: 0 stands for them.
    pub fn in_part(self) -> (Engagement<'a>, impl Iterator<Item = &'static str>) {
        let UncheckedEngagement { id, event_ts, mut row } = self;
        let stamp = event_ts.and_then(writable);
        row.id = id.unwrap_or_default();
        row.event_ts = stamp.unwrap_or_default();
        let missing = [id.is_none().then_some("id"), stamp.is_none().then_some("event_ts")];
        (row, missing.into_iter().flatten())
    }

    /// The row as it is, and whether it keeps the rules; 0 stands for a stamp that is not there. `None` without an id: it
    /// is a dead letter, and nobody can tell whose.
    pub fn as_it_is(mut self) -> Option<(Engagement<'a>, bool)> {
        self.row.id = self.id?;
        self.row.event_ts = self.event_ts.and_then(writable).unwrap_or_default();
        let as_it_is = self.row.clone();
        Some((as_it_is, self.checked().is_ok()))
    }
}

/// A row of `content` that has not been held against the rules yet.
#[derive(Debug, Default)]
pub struct UncheckedContent {
    id: Option<Uuid>,
    slug: Option<String>,
    title: Option<String>,
    content_type: Option<String>,
    length_seconds: Option<i32>,
    publish_ts: Option<Timestamp>,
}

impl UncheckedContent {
    /// Takes a column's value.
    pub fn put<'a, C: Cell<'a>>(
        &mut self,
        column: ContentColumn,
        cell: C,
        privacy: &Privacy,
    ) -> Result<(), C::Error> {
        match column {
            ContentColumn::Id => self.id = cell.uuid()?,
            ContentColumn::Slug => self.slug = cell.text()?.and_then(|text| privacy.slug(text)),
            ContentColumn::Title => self.title = cell.text()?.and_then(|text| privacy.title(text)),
            ContentColumn::ContentType => self.content_type = cell.text()?.map(str::to_owned),
            ContentColumn::LengthSeconds => self.length_seconds = cell.int4()?,
            ContentColumn::PublishTs => self.publish_ts = cell.time()?,
        }
        Ok(())
    }

    /// Takes over a large value that an update did not touch. Whether the column may be one: others are always
    /// in the stream.
    pub fn keep(&mut self, column: ContentColumn, before: &Content) -> bool {
        match column {
            ContentColumn::Slug => self.slug.clone_from(&before.slug),
            ContentColumn::Title => self.title.clone_from(&before.title),
            ContentColumn::ContentType => self.content_type.clone_from(&before.content_type),
            ContentColumn::Id | ContentColumn::LengthSeconds | ContentColumn::PublishTs => return false,
        }
        true
    }

    /// The row, if it keeps the rules: an id, a slug, a title, unless they are left out.
    pub fn checked(self, privacy: &Privacy) -> Result<Content, RowError> {
        for (text, column) in [(&self.slug, ContentColumn::Slug), (&self.title, ContentColumn::Title)] {
            if text.is_none() && privacy.rule(column.name()) != Rule::Drop {
                return Err(missing(column.name()));
            }
        }
        self.kept().ok_or_else(|| missing(ContentColumn::Id.name()))
    }

    /// The row as it was once found to keep the rules of then.
    pub fn kept(self) -> Option<Content> {
        Some(Content {
            id: self.id?,
            slug: self.slug,
            title: self.title,
            content_type: self.content_type,
            length_seconds: self.length_seconds,
            publish_ts: self.publish_ts.and_then(writable),
        })
    }
}

/// Microseconds since 1970 of a time that every sink can write; `None` for infinities and far years.
fn writable(time: Timestamp) -> Option<i64> {
    match time {
        Timestamp::At(micros) if (MICROS_MIN..=MICROS_MAX).contains(&micros) => Some(micros),
        _ => None,
    }
}

/// A duration that is none.
#[cold]
pub fn negative_duration() -> RowError {
    RowError { reason: "negative_duration", message: "column duration_ms: a negative number".into() }
}

/// A value that has to be there is NULL.
#[cold]
pub fn missing(column: &str) -> RowError {
    RowError { reason: "null", message: format!("column {column}: NULL where a value is wanted") }
}
