//! The enriched event: an engagement row joined with its content row as of its own place in the stream.

#[cfg(test)]
pub(crate) mod samples;

use std::sync::Arc;

use uuid::Uuid;

use crate::lsn::Position;
use crate::model::content::Content;

/// A piece of text in the batch's arena; [`crate::batch::Batch::text`] reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// One engagement event with its content. Times are microseconds since 1970-01-01 UTC, within the
/// years 1 to 9999 (a row outside them is a dead letter). Every `None` is an SQL NULL.
#[derive(Debug, Clone)]
pub struct Event {
    /// The event's name.
    pub position: Position,
    /// When the transaction committed.
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
}

impl Event {
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
