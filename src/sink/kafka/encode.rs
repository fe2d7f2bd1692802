//! What becomes of a row: topic, partition, key, value and headers.
//!
//! Headers: `lsn` is the row's position, `16/B374D848#7`; `op` is `c` for an event, `p` for one that is sent again, whose
//! first position is in `first`, `u` for a content row
//! that came or changed, `d` for its tombstone. A dead letter has Kafka Connect's `__connect.errors.*`
//! instead of `op`, so that tools made for those work.
//!
//! A record's timestamp is the time of writing, and not that of the commit, which a replication origin may set to anything:
//! brokers delete by it what is old, and refuse what lies ahead. The broker says it (LogAppendTime), since our clock may be
//! wrong too. The commit's time is a field of the record.

use std::fmt;

use rdkafka::message::{Header, OwnedHeaders};
use uuid::Uuid;

use super::config::{KafkaConfig, Topics, record_bytes_max};
use super::murmur::partition_of;
use crate::batch::{Batch, ContentChange, DeadLetter, Event, Origin, Row};
use crate::event::encoding::Encoding;
use crate::event::schema::{CONTENT, ContentRecord, ENGAGEMENT_EVENTS, EventRecord};
use crate::lsn::Position;
use crate::state::dead_letters::Letter;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics;

/// How much of a dead letter's sentence goes into a header.
const MESSAGE_CHARS_MAX: usize = 1_000;
const WITHOUT_PAYLOAD: &str = "event too large for Kafka goes there without its raw_payload";
pub(super) const TOO_LARGE: &str = "record_too_large";

/// One record for Kafka.
pub struct Message<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The partition, from 0.
    pub partition: i32,
    /// The key; `None` for a dead letter, and for an event without content.
    pub key: Option<&'a str>,
    /// `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// See the module.
    pub headers: Option<OwnedHeaders>,
}

/// Makes messages in buffers that it keeps.
pub struct Encoder {
    topics: Topics,
    encoding: &'static dyn Encoding,
    partitions: u16,
    record_bytes_max: usize,
    without_key: u16,
    key: [u8; 36],
    value: Vec<u8>,
    place: Vec<u8>,
    /// What was too large since somebody last took it.
    refused: Vec<Letter>,
    throttle: LogThrottle,
}

impl Encoder {
    /// An encoder for these topics. `row_bytes_max` is the largest row that is sent on with its payload.
    pub fn new(config: &KafkaConfig, row_bytes_max: usize) -> Self {
        Encoder {
            topics: config.topics(),
            encoding: config.encoding(),
            partitions: config.partitions,
            record_bytes_max: record_bytes_max(row_bytes_max),
            without_key: 0,
            key: [0; 36],
            value: Vec::new(),
            place: Vec::new(),
            refused: Vec::new(),
            throttle: LogThrottle::default(),
        }
    }

    /// The message of a row. An event that is too large for Kafka goes without its payload; what is too large even so
    /// becomes a dead letter without its values, so that it holds nothing up.
    pub fn row(&mut self, batch: &Batch, row: &Row) -> Option<Message<'_>> {
        self.value.clear();
        match row {
            Row::Event(event) => {
                self.encoding.event(&EventRecord { event, texts: batch.texts() }, &mut self.value);
            }
            Row::Content(change) => {
                // a row that is gone is a tombstone
                if let Some(content) = change.after.as_deref() {
                    self.encoding.content(&ContentRecord { change, content }, &mut self.value);
                }
            }
            Row::DeadLetter(letter) => self.value.extend_from_slice(letter.row_json.as_bytes()),
            // it is no event
            Row::EventChange(_) => return None,
        }
        if self.value.len() > self.record_bytes_max {
            if let Row::Event(event @ Event { raw_payload: Some(_), .. }) = row {
                self.leave_payload_out(batch, event);
            }
            if self.value.len() > self.record_bytes_max {
                return self.too_large(row, batch.origin(row.position()));
            }
        }
        Some(match row {
            Row::Event(event) => {
                let op = batch.control().map_or("c", |control| control.kind.op());
                self.event(event, op, batch.origin(event.position))
            }
            Row::Content(change) => self.content(change),
            Row::DeadLetter(letter) => self.dead_letter(letter),
            Row::EventChange(_) => return None,
        })
    }

    /// The rows that were too large since this was last asked.
    pub fn refused(&mut self) -> Vec<Letter> {
        std::mem::take(&mut self.refused)
    }

    /// The message that stores `value` under `key` among the checkpoints.
    pub fn progress<'a>(&'a self, key: &'a str, value: &'a str) -> Message<'a> {
        Message {
            topic: &self.topics.progress,
            partition: 0,
            key: Some(key),
            payload: Some(value.as_bytes()),
            headers: None,
        }
    }

    fn event(&mut self, event: &Event, op: &'static str, origin: Option<Origin>) -> Message<'_> {
        let headers = self.headers(event.position, "op", op);
        let headers = match origin {
            None => headers,
            Some(Origin { first, .. }) => {
                headers.insert(Header { key: "first", value: Some(&first.to_string()) })
            }
        };
        let (partition, key) = match event.content_id {
            Some(id) => keyed(id, &mut self.key, self.partitions),
            None => {
                self.without_key = (self.without_key + 1) % self.partitions;
                (i32::from(self.without_key), None)
            }
        };
        Message {
            topic: &self.topics.events,
            partition,
            key,
            payload: Some(&self.value),
            headers: Some(headers),
        }
    }

    fn content(&mut self, change: &ContentChange) -> Message<'_> {
        let exists = change.after.is_some();
        let headers = self.headers(change.position, "op", if exists { "u" } else { "d" });
        let (partition, key) = keyed(change.id, &mut self.key, self.partitions);
        Message {
            topic: &self.topics.content,
            partition,
            key,
            payload: exists.then_some(&self.value),
            headers: Some(headers),
        }
    }

    fn dead_letter(&mut self, letter: &DeadLetter) -> Message<'_> {
        let offset = letter.position.commit_lsn.0.to_string();
        let mut headers = self.headers(letter.position, "__connect.errors.topic", &letter.table);
        for (name, value) in [
            ("partition", "0"),
            ("offset", &offset),
            ("connector.name", "walcast"),
            ("task.id", "0"),
            ("stage", "TRANSFORMATION"),
            ("class.name", "walcast"),
            ("exception.class.name", letter.reason),
            ("exception.message", shortened(&letter.message)),
        ] {
            headers = headers.insert(Header { key: &format!("__connect.errors.{name}"), value: Some(value) });
        }
        Message {
            topic: &self.topics.dlq,
            partition: 0,
            key: None,
            payload: Some(&self.value),
            headers: Some(headers),
        }
    }

    /// `pipeline.row_bytes_max` knows neither the content's texts nor what escaping adds: here what is written is counted.
    #[cold]
    fn leave_payload_out(&mut self, batch: &Batch, event: &Event) {
        let bytes = self.value.len();
        let event = Event { raw_payload: None, ..event.clone() };
        self.value.clear();
        self.encoding.event(&EventRecord { event: &event, texts: batch.texts() }, &mut self.value);
        if self.value.len() > self.record_bytes_max {
            return;
        }
        metrics::oversized_row();
        if let Some(repeated) = self.throttle.say(WITHOUT_PAYLOAD) {
            let repeated = (repeated > 0).then_some(repeated);
            tracing::warn!(position = %event.position, bytes, repeated, "{WITHOUT_PAYLOAD}");
        }
    }

    fn too_large(&mut self, row: &Row, origin: Option<Origin>) -> Option<Message<'_>> {
        let bytes = self.value.len();
        let id_alone = |id: &dyn fmt::Display| format!(r#"{{"id":"{id}"}}"#);
        let (table, commit_ts, reason, row_json) = match row {
            Row::Event(event) => (ENGAGEMENT_EVENTS.name, event.commit_ts, TOO_LARGE, id_alone(&event.id)),
            Row::Content(change) => (CONTENT.name, change.commit_ts, TOO_LARGE, id_alone(&change.id)),
            // it stays what it is: refused before the sinks, for a reason of its own
            Row::DeadLetter(letter) => {
                (&*letter.table, letter.commit_ts, letter.reason, id_of(&letter.row_json))
            }
            Row::EventChange(_) => return None,
        };
        let message = format!(
            "the record of {bytes} bytes is above the {} that a Kafka record may have: the row's values are left out",
            self.record_bytes_max
        );
        self.keep((row, origin), &message, &row_json);
        metrics::dead_letter(TOO_LARGE);
        if let Some(repeated) = self.throttle.say(TOO_LARGE) {
            let repeated = (repeated > 0).then_some(repeated);
            tracing::warn!(position = %row.position(), bytes, repeated, "row too large for Kafka: kept as a dead letter");
        }
        self.value.clear();
        self.value.extend_from_slice(row_json.as_bytes());
        let (position, table) = (row.position(), table.to_owned());
        Some(self.dead_letter(&DeadLetter {
            position,
            commit_ts,
            table,
            reason,
            message,
            row_json,
            event: None,
        }))
    }

    /// A row refused before the sinks is kept already. Of an event what would have gone out is kept too: with a larger
    /// bound it can be sent again.
    fn keep(&mut self, (row, origin): (&Row, Option<Origin>), message: &str, row_json: &str) {
        let (event_id, table, record) = match row {
            Row::Event(event) => (Some(event.id), None, String::from_utf8_lossy(&self.value).into_owned()),
            Row::Content(_) => (None, Some(CONTENT.name.to_owned()), row_json.to_owned()),
            Row::DeadLetter(_) | Row::EventChange(_) => return,
        };
        let (position, request) = Origin::of_letter(row.position(), origin);
        self.refused.push(Letter {
            position,
            event_id,
            table,
            commit_ts: row.commit_ts(),
            reason: TOO_LARGE,
            message: message.to_owned(),
            record,
            event: None,
            unread: Vec::new(),
            request,
        });
    }

    fn headers(&mut self, position: Position, name: &str, value: &str) -> OwnedHeaders {
        self.place.clear();
        position.put_text(&mut self.place);
        OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: "lsn", value: Some(&self.place) })
            .insert(Header { key: name, value: Some(value) })
    }
}

fn shortened(message: &str) -> &str {
    let end = message.char_indices().nth(MESSAGE_CHARS_MAX).map_or(message.len(), |(end, _)| end);
    message.get(..end).unwrap_or_default()
}

fn keyed(id: Uuid, buffer: &mut [u8; 36], partitions: u16) -> (i32, Option<&str>) {
    let key: &str = id.hyphenated().encode_lower(buffer);
    (partition_of(key.as_bytes(), partitions), Some(key))
}

/// Of a row as JSON, its id alone.
fn id_of(row_json: &str) -> String {
    let row: Option<serde_json::Value> = serde_json::from_str(row_json).ok();
    let id = row.as_ref().and_then(|row| row.get("id"));
    id.map_or_else(|| "{}".to_owned(), |id| format!(r#"{{"id":{id}}}"#))
}
