//! How records are put into bytes, and read back. What writes a topic and what reads it for `verify` use the same object.
//! An encoding is a file here, and a line in [`ENCODINGS`].

pub mod json;

use super::schema::{ContentRecord, EventRecord, EventValues};

/// All encodings; the first is the default.
#[rustfmt::skip]
pub static ENCODINGS: &[&dyn Encoding] = &[
    &json::Json,
];

/// A form in which records go out.
pub trait Encoding: Send + Sync {
    /// Its name in configuration.
    fn name(&self) -> &'static str;

    /// Appends an event.
    fn event(&self, record: &EventRecord<'_>, out: &mut Vec<u8>);

    /// Appends a content row.
    fn content(&self, record: &ContentRecord<'_>, out: &mut Vec<u8>);

    /// An event as [`Self::event`] wrote it; `None` for anything else. A field that the writer did not know yet is
    /// null.
    fn read_event<'a>(&self, bytes: &'a [u8]) -> Option<EventValues<'a>>;
}

/// The encoding of this name.
pub fn named(name: &str) -> Option<&'static dyn Encoding> {
    ENCODINGS.iter().copied().find(|encoding| encoding.name() == name)
}
