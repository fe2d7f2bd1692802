//! How records are put into bytes, and read back. What writes a topic and what reads it for `verify` use the same object.
//! An encoding is a file here, and a line in [`ENCODINGS`].

pub mod json;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{ContentRecord, EventRecord, EventValues};

/// All encodings; the first is the default.
#[rustfmt::skip]
pub static ENCODINGS: &[&dyn Encoding] = &[
    &json::Json,
];

/// How a record has `raw_payload`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PayloadForm {
    /// Nested in the record, as it stands.
    Json,
    /// As a text that holds the JSON: a reader that cannot read all JSON can read every record.
    Text,
}

/// A form in which records go out.
pub trait Encoding: Send + Sync {
    /// Its name in configuration.
    fn name(&self) -> &'static str;

    /// The same with `raw_payload` in this form.
    fn with_payload(&self, form: PayloadForm) -> &'static dyn Encoding;

    /// Appends an event.
    fn event(&self, record: &EventRecord<'_>, out: &mut Vec<u8>);

    /// Appends a content row.
    fn content(&self, record: &ContentRecord<'_>, out: &mut Vec<u8>);

    /// An event as [`Self::event`] wrote it, with `raw_payload` in any form; `None` for anything else. A field that the
    /// writer did not know yet is null.
    fn read_event<'a>(&self, bytes: &'a [u8]) -> Option<EventValues<'a>>;
}

/// The encoding of this name.
pub fn named(name: &str) -> Option<&'static dyn Encoding> {
    ENCODINGS.iter().copied().find(|encoding| encoding.name() == name)
}
