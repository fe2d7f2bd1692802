//! An event made from its record again.

use uuid::Uuid;

use super::extra::{self, ExtraColumn, Shape};
use super::row::{Content, Engagement, RowError, negative_duration};
use super::schema::{EventValues, ExtraValues, Value, event_field};
use super::{Extra, Span};

/// What a record says of its row, its content and its commit.
pub struct Replayed<'a>(&'a EventValues<'a>);

macro_rules! read {
    ($values:expr, $field:literal, $kind:ident) => {
        match &$values.0[const { event_field($field) }] {
            Some(Value::$kind(value)) => Some(value),
            _ => None,
        }
    };
}

impl<'a> Replayed<'a> {
    /// Of a record that was read.
    pub fn of(values: &'a EventValues<'a>) -> Self {
        Replayed(values)
    }

    /// When its transaction committed at first, microseconds since 1970.
    pub fn commit_ts(&self) -> i64 {
        read!(self.0, "commit_ts", Time).copied().unwrap_or_default()
    }

    /// The size of `raw_payload` at the source, also when it was left out.
    pub fn raw_payload_bytes(&self) -> Option<u32> {
        read!(self.0, "raw_payload_bytes", Int).and_then(|bytes| u32::try_from(*bytes).ok())
    }

    /// The row, if it keeps the rules.
    pub fn checked(&self) -> Result<Engagement<'a>, RowError> {
        let Replayed(values) = self;
        let row = Engagement {
            id: values.id().unwrap_or_default(),
            content_id: read!(values, "content_id", Id).copied(),
            user_id: read!(values, "user_id", Id).copied(),
            event_type: read!(values, "event_type", Text).map(|text| &**text),
            event_ts: values.event_ts().unwrap_or_default(),
            duration_ms: read!(values, "duration_ms", Int).copied(),
            device: read!(values, "device", Text).map(|text| &**text),
            raw_payload: read!(values, "raw_payload", Json).map(|text| &**text),
        };
        match row.duration_ms {
            Some(..0) => Err(negative_duration()),
            _ => Ok(row),
        }
    }

    /// The content that it was joined with.
    pub fn content(&self) -> Option<Content> {
        let Replayed(values) = self;
        let text = |text: &std::borrow::Cow<'_, str>| text.clone().into_owned();
        let id: Uuid = read!(values, "content_id", Id).copied()?;
        let none = Content {
            id,
            slug: None,
            title: None,
            content_type: None,
            length_seconds: None,
            publish_ts: None,
        };
        let content = Content {
            id,
            slug: read!(values, "slug", Text).map(text),
            title: read!(values, "title", Text).map(text),
            content_type: read!(values, "content_type", Text).map(text),
            length_seconds: read!(values, "length_seconds", Int)
                .and_then(|length| i32::try_from(*length).ok()),
            publish_ts: read!(values, "publish_ts", Time).copied(),
        };
        // one of which nothing is told goes out as none does
        (content != none).then_some(content)
    }
}

/// Writes extra columns behind what stands in the arena, those of `columns` alone.
pub fn put_extra(columns: &[ExtraColumn], values: &ExtraValues<'_>, arena: &mut String) -> Extra {
    let mut put = |json: bool| {
        let start = arena.len();
        for column in columns.iter().filter(|column| (column.shape == Shape::Json) == json) {
            let value = values.iter().find(|(name, _)| *name == column.name);
            extra::put_written(&column.name, value.map_or("null", |(_, value)| value), arena);
        }
        Span { start: start as u32, len: (arena.len() - start) as u32 }
    };
    Extra { plain: put(false), json: put(true) }
}
