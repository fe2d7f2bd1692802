//! The enriched event: an engagement row joined with its content row as of its own place in the stream. What it has
//! is written down once, in [`schema`]; how it is put into bytes, and read back, in [`encoding`].

pub mod encoding;
pub mod extra;
pub mod privacy;
pub mod zone;
pub mod row;
#[cfg(test)]
pub(crate) mod samples;
pub mod schema;
pub mod place;
pub mod reference;
pub mod replayed;
pub mod time;

use std::sync::Arc;

use uuid::Uuid;

use crate::lsn::Position;
pub use extra::{Extra, ExtraColumn};
use privacy::Privacy;
pub use row::{Content, Engagement};

/// A piece of text in the batch's arena; [`Texts`] reads it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// The arena that the texts of events stand in, one after the other.
#[derive(Debug, Clone, Copy, Default)]
pub struct Texts<'a>(pub(crate) &'a str);

impl<'a> Texts<'a> {
    /// The texts of an arena of one's own.
    pub fn of(arena: &'a str) -> Self {
        Texts(arena)
    }

    /// The text behind a span of an event whose texts these are.
    #[inline]
    pub fn get(self, span: Span) -> &'a str {
        let start = span.start as usize;
        self.0.get(start..start + span.len as usize).unwrap_or_default()
    }
}

/// Copies a text to the end of an arena.
#[inline]
pub(crate) fn intern(arena: &mut String, text: &str) -> Span {
    let start = arena.len() as u32;
    arena.push_str(text);
    Span { start, len: text.len() as u32 }
}

/// One engagement event with its content. Times are microseconds since 1970-01-01 UTC, within the
/// years 1 to 9999 (a row outside them is a dead letter). Every `None` is an SQL NULL.
#[derive(Debug, Clone)]
pub struct Event {
    /// The event's name.
    pub position: Position,
    /// When the transaction committed, as the server that it was first committed at says.
    pub commit_ts: i64,
    /// `engagement_events.id`.
    pub id: i64,
    /// `engagement_events.content_id`.
    pub content_id: Option<Uuid>,
    /// `engagement_events.user_id`.
    pub user_id: Option<Uuid>,
    /// `engagement_events.event_type`: play, pause, finish, click, or what the database allows besides.
    pub event_type: Option<Span>,
    /// `engagement_events.event_ts`.
    pub event_ts: i64,
    /// `engagement_events.duration_ms`, never negative (that is a dead letter).
    pub duration_ms: Option<i64>,
    /// `engagement_events.device`.
    pub device: Option<Span>,
    /// `engagement_events.raw_payload`, valid JSON text; `None` also when it was larger than `row_bytes_max`.
    pub raw_payload: Option<Span>,
    /// The size of `raw_payload` at the source, also when it was left out.
    pub raw_payload_bytes: Option<u32>,
    /// The content row as of this event's place in the stream; `None` when there was none.
    pub content: Option<Arc<Content>>,
    /// The columns that walcast does not know and passes on.
    pub extra: Extra,
}

impl Event {
    /// An event without anything that may be absent.
    pub fn new(position: Position, commit_ts: i64, id: i64, event_ts: i64) -> Self {
        let row = Engagement { id, event_ts, ..Engagement::default() };
        let everything = Privacy::default();
        Event::of(&row, (position, commit_ts), None, (true, &everything), |_| Span { start: 0, len: 0 })
    }

    /// The event of a row. `intern` puts its texts into the arena; `raw_payload` is left out unless it is to be kept, and
    /// what tells of people goes by the rules.
    #[inline(always)]
    pub fn of(
        row: &Engagement<'_>,
        (position, commit_ts): (Position, i64),
        content: Option<Arc<Content>>,
        (keep_payload, privacy): (bool, &Privacy),
        mut intern: impl FnMut(&str) -> Span,
    ) -> Self {
        Event {
            position,
            commit_ts,
            id: row.id,
            content_id: row.content_id,
            user_id: row.user_id.and_then(|id| privacy.user_id(id)),
            event_type: row.event_type.map(&mut intern),
            event_ts: row.event_ts,
            duration_ms: row.duration_ms,
            device: row.device.and_then(|text| privacy.device(text, &mut intern)),
            raw_payload: row
                .raw_payload
                .filter(|_| keep_payload)
                .and_then(|json| privacy.raw_payload(json, &mut intern)),
            raw_payload_bytes: row.raw_payload.map(|text| text.len() as u32),
            content,
            extra: Extra::default(),
        }
    }

    /// Seconds of engagement: `duration_ms / 1000`.
    pub fn engagement_seconds(&self) -> Option<f64> {
        self.duration_ms.map(|duration_ms| duration_ms as f64 / 1000.0)
    }

    /// Seconds of engagement in percent of the content's length; above 100 is kept. `None` when a part
    /// is missing or the length is not positive: never NaN, never infinite.
    pub fn engagement_pct(&self) -> Option<f64> {
        let length_seconds = self.content.as_ref()?.length_seconds.filter(|length| *length > 0)?;
        Some(self.engagement_seconds()? / f64::from(length_seconds) * 100.0)
    }
}

/// The state of one content row after a change.
#[derive(Debug, Clone)]
pub struct ContentChange {
    /// The change's place in the stream.
    pub position: Position,
    /// When the transaction committed, microseconds since 1970.
    pub commit_ts: i64,
    /// `content.id`.
    pub id: Uuid,
    /// The row as it is now; `None` when it was deleted.
    pub after: Option<Arc<Content>>,
}

/// What the source did to events after they came: nothing that a sink acts upon, for updates and deletes of events mean
/// nothing; but whoever compares has to know of it.
#[derive(Debug, Clone, Copy)]
pub struct EventChange {
    /// The change's place in the stream.
    pub position: Position,
    /// When the transaction committed, microseconds since 1970.
    pub commit_ts: i64,
    /// What was done.
    pub fate: Fate,
}

/// What the source did to an event, or to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The row with this id was updated or deleted.
    Touched(i64),
    /// A row was given this id by an update: it came as an event with another.
    Renamed(i64),
    /// The table was emptied.
    Emptied,
}
