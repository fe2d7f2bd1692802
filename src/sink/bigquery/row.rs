//! A row on the wire: protobuf by hand, straight from the batch, one allocation a row (the request wants a
//! vector of each).

use prost::encoding::{WireType, encode_key, encode_varint};
use uuid::Uuid;

use super::table::bucket_30m;
use crate::batch::{Batch, Event};

/// What is the same for all rows of an append.
pub struct Common<'a> {
    /// The epoch's id as text.
    pub epoch: &'a str,
    /// Microseconds since 1970.
    pub ingested_at: i64,
}

/// The row of an event. Field numbers are places in [`super::table::COLUMNS`], from 1.
pub fn encode(batch: &Batch, event: &Event, common: &Common<'_>) -> Vec<u8> {
    let content = event.content.as_deref();
    let text = |span: Option<crate::batch::Span>| span.map(|span| batch.text(span));
    let payload_bytes = event.raw_payload.map_or(0, |span| batch.text(span).len());
    let title_bytes = content.map_or(0, |content| content.title.len() + content.slug.len());
    let mut row = Row(Vec::with_capacity(256 + payload_bytes + title_bytes));
    row.int(1, Some(event.id));
    row.uuid(2, event.content_id);
    row.uuid(3, event.user_id);
    row.text(4, text(event.event_type));
    row.int(5, Some(event.event_ts));
    row.int(6, event.duration_ms);
    row.text(7, text(event.device));
    row.text(8, text(event.raw_payload));
    row.int(9, event.raw_payload_bytes.map(i64::from));
    row.text(10, content.map(|content| content.slug.as_str()));
    row.text(11, content.map(|content| content.title.as_str()));
    row.text(12, content.and_then(|content| content.content_type.as_deref()));
    row.int(13, content.and_then(|content| content.length_seconds).map(i64::from));
    row.int(14, content.and_then(|content| content.publish_ts));
    row.float(15, event.engagement_seconds());
    row.float(16, event.engagement_pct());
    row.int(17, Some(event.commit_ts));
    row.int(18, Some(event.position.commit_lsn.0.cast_signed()));
    row.int(19, Some(event.position.ordinal.cast_signed()));
    row.int(20, Some(bucket_30m(event.event_ts)));
    row.text(21, Some(common.epoch));
    row.int(22, Some(common.ingested_at));
    row.0
}

struct Row(Vec<u8>);

impl Row {
    fn int(&mut self, field: u32, value: Option<i64>) {
        if let Some(value) = value {
            encode_key(field, WireType::Varint, &mut self.0);
            encode_varint(value.cast_unsigned(), &mut self.0);
        }
    }

    fn float(&mut self, field: u32, value: Option<f64>) {
        if let Some(value) = value {
            encode_key(field, WireType::SixtyFourBit, &mut self.0);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    fn text(&mut self, field: u32, value: Option<&str>) {
        if let Some(value) = value {
            encode_key(field, WireType::LengthDelimited, &mut self.0);
            encode_varint(value.len() as u64, &mut self.0);
            self.0.extend_from_slice(value.as_bytes());
        }
    }

    fn uuid(&mut self, field: u32, value: Option<Uuid>) {
        let mut buffer = Uuid::encode_buffer();
        self.text(field, value.map(|value| &*value.hyphenated().encode_lower(&mut buffer)));
    }
}
