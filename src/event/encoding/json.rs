//! The plain record as JSON: Kafka's value, an HTTP body. The same names everywhere, every field always there, `null`
//! for what is absent.
//!
//! Times are RFC 3339 in UTC with microseconds, ids are text, `commit_lsn` is `X/Y`, floats are the shortest text that
//! reads back as the same number. JSON comes last: nested as it stands, or as a text that holds it. Which of both a record
//! has is told by `raw_payload_bytes`, the length of the JSON: of the nested value, quotation marks and all, or of what the
//! text says.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Encoding, PayloadForm};
use crate::event::extra;
use crate::event::schema::{
    ContentRecord, EVENT_FIELDS, EventRecord, EventValues, Field, FieldKind, Value, Visit, event_field,
    visit_content, visit_event,
};
use crate::event::time::{micros_of, time_text};
use crate::lsn::Lsn;

const NAME: &str = "json";

/// See the module. `raw_payload` is nested.
pub struct Json;

/// See the module. `raw_payload` is a text.
struct JsonWithText;

impl Encoding for Json {
    fn name(&self) -> &'static str {
        NAME
    }

    fn with_payload(&self, form: PayloadForm) -> &'static dyn Encoding {
        with_payload(form)
    }

    fn event(&self, record: &EventRecord<'_>, out: &mut Vec<u8>) {
        event::<NESTED>(record, out);
    }

    fn content(&self, record: &ContentRecord<'_>, out: &mut Vec<u8>) {
        content(record, out);
    }

    fn read_event<'a>(&self, bytes: &'a [u8]) -> Option<EventValues<'a>> {
        read_event(bytes)
    }
}

impl Encoding for JsonWithText {
    fn name(&self) -> &'static str {
        NAME
    }

    fn with_payload(&self, form: PayloadForm) -> &'static dyn Encoding {
        with_payload(form)
    }

    fn event(&self, record: &EventRecord<'_>, out: &mut Vec<u8>) {
        event::<TEXT>(record, out);
    }

    fn content(&self, record: &ContentRecord<'_>, out: &mut Vec<u8>) {
        content(record, out);
    }

    fn read_event<'a>(&self, bytes: &'a [u8]) -> Option<EventValues<'a>> {
        read_event(bytes)
    }
}

fn with_payload(form: PayloadForm) -> &'static dyn Encoding {
    match form {
        PayloadForm::Json => &Json,
        PayloadForm::Text => &JsonWithText,
    }
}

fn event<const FORM: u8>(record: &EventRecord<'_>, out: &mut Vec<u8>) {
    let mut object = Object::new(out);
    visit_event(record, &mut Members::<OTHERS>(&mut object));
    object.extra::<FORM>(record);
    visit_event(record, &mut Members::<FORM>(&mut object));
    object.end();
}

/// An event's record without the members that are null, which [`Json`] reads like one with them: for what walcast alone reads.
pub fn put_event_without_nulls(record: &EventRecord<'_>, out: &mut Vec<u8>) {
    let mut object = Object::new(out);
    visit_event(record, &mut Members::<NOT_NULL>(&mut object));
    object.extra::<NESTED>(record);
    if record.event.raw_payload.is_some() {
        visit_event(record, &mut Members::<NESTED>(&mut object));
    }
    object.end();
}

fn content(record: &ContentRecord<'_>, out: &mut Vec<u8>) {
    let mut object = Object::new(out);
    visit_content(record, &mut Members::<OTHERS>(&mut object));
    visit_content(record, &mut Members::<NESTED>(&mut object));
    object.end();
}

fn read_event(bytes: &[u8]) -> Option<EventValues<'_>> {
    let mut read = serde_json::from_slice::<Read<'_>>(bytes).ok()?.0;
    take_payload_out_of_text(&mut read);
    let extra = std::mem::take(&mut read.1);
    let values = EventValues::read(|at, _| Some(read.0.get_mut(at)?.take().unwrap_or(Value::Null)));
    values.map(|values| EventValues(values.0, extra))
}

/// A text as payload is one that holds the JSON if it is of that very length; else it is the JSON, nested.
fn take_payload_out_of_text(values: &mut EventValues<'_>) {
    let [payload, bytes] = const { [event_field("raw_payload"), event_field("raw_payload_bytes")] };
    let Some(Some(Value::Int(bytes))) = values.0.get(bytes) else { return };
    let bytes = *bytes;
    if let Some(Some(Value::Json(json))) = values.0.get_mut(payload)
        && json.starts_with('"')
        && let Ok(text) = serde_json::from_str::<String>(json)
        && i64::try_from(text.len()) == Ok(bytes)
    {
        *json = text.into();
    }
}

/// How a kind of value looks in JSON, for the reference.
pub fn type_name(kind: FieldKind) -> &'static str {
    match kind {
        FieldKind::Int | FieldKind::Count => "number, whole",
        FieldKind::Float => "number",
        FieldKind::Text => "text",
        FieldKind::Id => "text, a UUID",
        FieldKind::Time => "text, RFC 3339 in UTC with microseconds",
        FieldKind::Json => "as it stands, or as a text that holds it; after all others",
        FieldKind::Lsn => "text, `X/Y` in hexadecimal",
    }
}

/// All fields that are not JSON themselves.
const OTHERS: u8 = 0;
/// Those that are, nested.
const NESTED: u8 = 1;
/// Those that are, as texts.
const TEXT: u8 = 2;

/// Those of the others that have a value.
const NOT_NULL: u8 = 3;

/// Whether a field that is not JSON itself is written.
const fn writes(which: u8, has_value: bool) -> bool {
    which == OTHERS || which == NOT_NULL && has_value
}

/// Writes some of the fields into an object.
struct Members<'o, 'b, const WHICH: u8>(&'o mut Object<'b>);

impl<'a, const WHICH: u8> Visit<'a> for Members<'_, '_, WHICH> {
    #[inline(always)]
    fn int(&mut self, field: &'static Field, value: Option<i64>) {
        if writes(WHICH, value.is_some()) {
            self.0.number(field.name, value);
        }
    }

    #[inline(always)]
    fn count(&mut self, field: &'static Field, value: u64) {
        if writes(WHICH, true) {
            self.0.number(field.name, Some(value));
        }
    }

    #[inline(always)]
    fn float(&mut self, field: &'static Field, value: Option<f64>) {
        if writes(WHICH, value.is_some()) {
            self.0.number(field.name, value);
        }
    }

    #[inline(always)]
    fn text(&mut self, field: &'static Field, value: Option<&'a str>) {
        if writes(WHICH, value.is_some()) {
            self.0.text(field.name, value);
        }
    }

    #[inline(always)]
    fn id(&mut self, field: &'static Field, value: Option<Uuid>) {
        if writes(WHICH, value.is_some()) {
            self.0.id(field.name, value);
        }
    }

    #[inline(always)]
    fn time(&mut self, field: &'static Field, value: Option<i64>) {
        if writes(WHICH, value.is_some()) {
            self.0.time(field.name, value);
        }
    }

    #[inline(always)]
    fn json(&mut self, field: &'static Field, value: Option<&'a str>) {
        match WHICH {
            NESTED => self.0.key(field.name).extend_from_slice(value.unwrap_or("null").as_bytes()),
            TEXT => self.0.text(field.name, value),
            _ => {}
        }
    }

    #[inline(always)]
    fn lsn(&mut self, field: &'static Field, value: Lsn) {
        if writes(WHICH, true) {
            self.0.lsn(field.name, value);
        }
    }
}

/// A JSON object being written. Names, ids and times are known to need no escaping, and are not looked through
/// for it: that was half of what an event cost on its way to Kafka. Inlined, so that each name and what stands
/// around it is one constant.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    /// What comes before the next name.
    before: &'static [u8],
}

impl<'a> Object<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        Object { out, before: b"{\"" }
    }

    /// The place of the value that belongs to this name.
    #[inline(always)]
    fn key(&mut self, name: &'static str) -> &mut Vec<u8> {
        self.out.extend_from_slice(self.before);
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.before = b",\"";
        self.out
    }

    #[inline(always)]
    fn number(&mut self, name: &'static str, number: Option<impl Serialize>) {
        put_json(&number, self.key(name));
    }

    #[inline(always)]
    fn text(&mut self, name: &'static str, text: Option<&str>) {
        match text.map(str::as_bytes) {
            Some(bytes) if !is_plain(bytes) => put_json(&text, self.key(name)),
            plain => self.plain(name, plain),
        }
    }

    #[inline(always)]
    fn id(&mut self, name: &'static str, id: Option<Uuid>) {
        let mut text = [0; 36];
        self.plain(name, id.map(|id| id.hyphenated().encode_lower(&mut text).as_bytes()));
    }

    #[inline(always)]
    fn time(&mut self, name: &'static str, micros: Option<i64>) {
        let text = micros.and_then(time_text);
        self.plain(name, text.as_ref().map(<[u8; 27]>::as_slice));
    }

    #[inline(always)]
    fn lsn(&mut self, name: &'static str, lsn: Lsn) {
        let out = self.key(name);
        out.push(b'"');
        lsn.put_text(out);
        out.push(b'"');
    }

    /// A text that needs no escaping.
    #[inline(always)]
    fn plain(&mut self, name: &'static str, text: Option<&[u8]>) {
        let out = self.key(name);
        let Some(text) = text else { return out.extend_from_slice(b"null") };
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    }

    /// The extra columns stand in their texts as they are to stand here; JSON perhaps as texts that hold it.
    #[inline(always)]
    fn extra<const FORM: u8>(&mut self, record: &EventRecord<'_>) {
        let extra = &record.event.extra;
        if extra.is_empty() {
            return;
        }
        self.out.extend_from_slice(record.texts.get(extra.plain).as_bytes());
        let json = record.texts.get(extra.json);
        match FORM {
            TEXT => extra::for_each([json, ""], &mut String::new(), |name, value| {
                put_as_text(name, value, self.out);
            }),
            _ => self.out.extend_from_slice(json.as_bytes()),
        }
    }

    fn end(self) {
        self.out.push(b'}');
    }
}

/// A member whose JSON is held by a text, unless it is null.
fn put_as_text(name: &str, json: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    match extra::is_null(json) {
        true => out.extend_from_slice(json.as_bytes()),
        false => put_json(&json, out),
    }
}

fn put_json(value: &impl Serialize, out: &mut Vec<u8>) {
    // plain values into memory: nothing in it can fail
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "{written:?}");
}

/// Whether a text is the same in JSON. All of it is looked at, without a branch a byte: sixteen bytes at once.
pub(crate) fn is_plain(text: &[u8]) -> bool {
    text.iter().fold(true, |plain, byte| plain & (*byte >= 0x20) & (*byte != b'"') & (*byte != b'\\'))
}

/// An event that is being read.
struct Read<'a>(EventValues<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for Read<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(ReadMembers).map(Read)
    }
}

struct ReadMembers;

impl<'de> Visitor<'de> for ReadMembers {
    type Value = EventValues<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<EventValues<'de>, A::Error> {
        let mut values = EventValues::default();
        while let Some(Text(name)) = members.next_key()? {
            let mut places = EVENT_FIELDS.iter().zip(&mut values.0);
            let Some((field, place)) = places.find(|(field, _)| field.name == name) else {
                let value: &RawValue = members.next_value()?;
                values.1.push((name, value.get().into()));
                continue;
            };
            if place.replace(members.next_value_seed(Member(field.kind))?).is_some() {
                return Err(A::Error::duplicate_field(field.name));
            }
        }
        Ok(values)
    }
}

/// A text that is borrowed where nothing in it is escaped.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads a value of this kind, or null.
struct Member(FieldKind);

impl<'de> DeserializeSeed<'de> for Member {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value<'de>, D::Error> {
        fn or_null<T, E>(
            value: Option<T>,
            of: impl FnOnce(T) -> Result<Value<'static>, E>,
        ) -> Result<Value<'static>, E> {
            value.map_or(Ok(Value::Null), of)
        }
        let kind = self.0;
        match kind {
            FieldKind::Int => or_null(Option::deserialize(from)?, |int| Ok(Value::Int(int))),
            FieldKind::Count => or_null(Option::deserialize(from)?, |count| Ok(Value::Count(count))),
            FieldKind::Lsn => or_null(Option::deserialize(from)?, |lsn| Ok(Value::Lsn(lsn))),
            FieldKind::Text => {
                Ok(Option::deserialize(from)?.map_or(Value::Null, |Text(text)| Value::Text(text)))
            }
            FieldKind::Json => {
                let raw: Option<&'de RawValue> = Option::deserialize(from)?;
                Ok(raw.map_or(Value::Null, |raw| Value::Json(raw.get().into())))
            }
            // serde_json's own reading may be off by the last bit
            FieldKind::Float => or_null(Option::<&RawValue>::deserialize(from)?, |raw| {
                raw.get().parse().map(Value::Float).map_err(D::Error::custom)
            }),
            FieldKind::Id => or_null(Option::deserialize(from)?, |Text(text)| {
                Uuid::parse_str(&text).map(Value::Id).map_err(D::Error::custom)
            }),
            FieldKind::Time => or_null(Option::deserialize(from)?, |Text(text)| {
                micros_of(&text).map(Value::Time).ok_or_else(|| D::Error::custom("a time in another form"))
            }),
        }
    }
}

#[cfg(test)]
mod tests;
