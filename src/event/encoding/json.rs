//! The plain record as JSON: Kafka's value, an HTTP body. The same names everywhere, every field always there, `null`
//! for what is absent.
//!
//! Times are RFC 3339 in UTC with microseconds, ids are text, `commit_lsn` is `X/Y`, floats are the shortest text that
//! reads back as the same number. JSON comes last: nested as it stands, or as a text that holds it. Which of both a record
//! has is told by `raw_payload_bytes`, the length of the JSON: of the nested value, quotation marks and all, or of what the
//! text says.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Encoding, PayloadForm};
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
    visit_event(record, &mut Members::<FORM>(&mut object));
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
    EventValues::read(|at, _| Some(read.0.get_mut(at)?.take().unwrap_or(Value::Null)))
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

/// Writes some of the fields into an object.
struct Members<'o, 'b, const WHICH: u8>(&'o mut Object<'b>);

impl<'a, const WHICH: u8> Visit<'a> for Members<'_, '_, WHICH> {
    #[inline(always)]
    fn int(&mut self, field: &'static Field, value: Option<i64>) {
        if WHICH == OTHERS {
            self.0.number(field.name, value);
        }
    }

    #[inline(always)]
    fn count(&mut self, field: &'static Field, value: u64) {
        if WHICH == OTHERS {
            self.0.number(field.name, Some(value));
        }
    }

    #[inline(always)]
    fn float(&mut self, field: &'static Field, value: Option<f64>) {
        if WHICH == OTHERS {
            self.0.number(field.name, value);
        }
    }

    #[inline(always)]
    fn text(&mut self, field: &'static Field, value: Option<&'a str>) {
        if WHICH == OTHERS {
            self.0.text(field.name, value);
        }
    }

    #[inline(always)]
    fn id(&mut self, field: &'static Field, value: Option<Uuid>) {
        if WHICH == OTHERS {
            self.0.id(field.name, value);
        }
    }

    #[inline(always)]
    fn time(&mut self, field: &'static Field, value: Option<i64>) {
        if WHICH == OTHERS {
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
        if WHICH == OTHERS {
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

    fn end(self) {
        self.out.push(b'}');
    }
}

fn put_json(value: &impl Serialize, out: &mut Vec<u8>) {
    // plain values into memory: nothing in it can fail
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "{written:?}");
}

/// Whether a text is the same in JSON. All of it is looked at, without a branch a byte: sixteen bytes at once.
fn is_plain(text: &[u8]) -> bool {
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
                members.next_value::<IgnoredAny>()?;
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
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use jiff::SignedDuration;
    use jiff::civil::DateTime;
    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    use super::*;
    use crate::event::schema::event_field;
    use crate::event::time::{MICROS_MAX, MICROS_MIN};
    use crate::event::{Content, ContentChange, Event, Texts, intern, samples};
    use crate::lsn::Position;

    fn plain_event() -> Event {
        let position = Position { commit_lsn: Lsn(0x16_B374_D848), ordinal: 7 };
        Event::new(position, 1_767_323_045_600_000, 42, 1_767_323_045_000_001)
    }

    fn json_of(arena: &str, event: &Event) -> String {
        let mut out = Vec::new();
        Json.event(&EventRecord { event, texts: Texts(arena) }, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn put_content(change: &ContentChange, out: &mut Vec<u8>) {
        if let Some(content) = change.after.as_deref() {
            Json.content(&ContentRecord { change, content }, out);
        }
    }

    #[test]
    fn every_field_is_there_when_all_is_absent() {
        insta::assert_snapshot!(json_of("", &plain_event()), @r#"{"event_id":42,"content_id":null,"user_id":null,"event_type":null,"event_ts":"2026-01-02T03:04:05.000001Z","duration_ms":null,"device":null,"raw_payload_bytes":null,"slug":null,"title":null,"content_type":null,"length_seconds":null,"publish_ts":null,"engagement_seconds":null,"engagement_pct":null,"commit_ts":"2026-01-02T03:04:05.600000Z","commit_lsn":"16/B374D848","ordinal":7,"raw_payload":null}"#);
    }

    #[test]
    fn every_field_is_there_when_all_is_present() {
        let mut arena = String::new();
        let event = Event {
            content_id: Some(Uuid::from_u128(1)),
            user_id: Some(Uuid::from_u128(2)),
            event_type: Some(intern(&mut arena, "play")),
            duration_ms: Some(1500),
            device: Some(intern(&mut arena, "ios \"x\"")),
            raw_payload: Some(intern(&mut arena, r#"{"a": [1, 2.50]}"#)),
            raw_payload_bytes: Some(16),
            content: Some(Arc::new(Content {
                id: Uuid::from_u128(1),
                slug: "s".into(),
                title: "Zażółć\n".into(),
                content_type: Some("podcast".into()),
                length_seconds: Some(7),
                publish_ts: Some(0),
            })),
            ..plain_event()
        };
        insta::assert_snapshot!(json_of(&arena, &event), @r#"{"event_id":42,"content_id":"00000000-0000-0000-0000-000000000001","user_id":"00000000-0000-0000-0000-000000000002","event_type":"play","event_ts":"2026-01-02T03:04:05.000001Z","duration_ms":1500,"device":"ios \"x\"","raw_payload_bytes":16,"slug":"s","title":"Zażółć\n","content_type":"podcast","length_seconds":7,"publish_ts":"1970-01-01T00:00:00.000000Z","engagement_seconds":1.5,"engagement_pct":21.428571428571427,"commit_ts":"2026-01-02T03:04:05.600000Z","commit_lsn":"16/B374D848","ordinal":7,"raw_payload":{"a": [1, 2.50]}}"#);
    }

    #[test]
    fn the_bytes_are_the_same_as_in_every_release_before() {
        let mut arena = String::new();
        let events = samples::events(2_000, |text| intern(&mut arena, text));
        let mut out = Vec::new();
        events.iter().for_each(|event| out.extend_from_slice(json_of(&arena, event).as_bytes()));
        assert_eq!((out.len(), samples::fingerprint(&out)), (967_769, 17_554_036_078_591_791_308));
        let mut draw = samples::Draw(0x9E37_79B9_7F4A_7C15);
        out.clear();
        for ordinal in 0..500 {
            let after = Some(Arc::new(samples::content(&mut draw)));
            let position = Position { commit_lsn: Lsn(draw.draw()), ordinal };
            let id = Uuid::from_u64_pair(draw.draw(), ordinal);
            let change = ContentChange { position, commit_ts: ordinal as i64 * 1_000_003, id, after };
            put_content(&change, &mut out);
        }
        assert_eq!((out.len(), samples::fingerprint(&out)), (127_807, 1_348_455_076_661_860_514));
    }

    #[test]
    fn texts_are_escaped_where_json_asks_for_it() {
        for byte in 0..=0x7f_u8 {
            for place in [0, 7, 15, 16, 40] {
                let mut text = "x".repeat(50).into_bytes();
                text[place] = byte;
                let text = String::from_utf8(text).unwrap();
                let wanted = serde_json::to_string(&text).unwrap();
                assert_eq!(is_plain(text.as_bytes()), wanted.len() == text.len() + 2, "{text:?}");
            }
        }
    }

    /// Both forms are read back by whoever writes one of them.
    #[test]
    fn a_nested_text_is_told_apart_from_a_text_that_holds_the_payload() {
        let deep = "[".repeat(1_500) + &"]".repeat(1_500);
        let texts = [r#""""#, r#""1""#, r#""\"1\"""#, r#""null""#, r#""\ud800""#];
        for payload in texts.into_iter().chain(["{}", "1", "null", " \n[1e400]", "9007199254740993", &deep]) {
            let mut arena = String::new();
            let event = Event {
                raw_payload: Some(intern(&mut arena, payload)),
                raw_payload_bytes: Some(payload.len() as u32),
                ..plain_event()
            };
            for form in [PayloadForm::Json, PayloadForm::Text] {
                let mut out = Vec::new();
                let record = EventRecord { event: &event, texts: Texts(&arena) };
                Json.with_payload(form).event(&record, &mut out);
                let wanted = match (payload, form) {
                    ("null", PayloadForm::Json) => None,
                    _ => Some(payload.trim_start()),
                };
                for reader in [PayloadForm::Json, PayloadForm::Text] {
                    let back = Json.with_payload(reader).read_event(&out).unwrap();
                    let found = match &back.0[const { event_field("raw_payload") }] {
                        Some(super::Value::Json(text)) => Some(text.trim_start()),
                        _ => None,
                    };
                    assert_eq!(found, wanted, "as {form:?}, read as {reader:?}");
                }
            }
        }
    }

    fn any_text() -> impl Strategy<Value = Option<String>> {
        proptest::option::of(any::<String>())
    }

    fn any_payload() -> impl Strategy<Value = Option<Value>> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        proptest::option::of(leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        }))
    }

    fn any_content() -> impl Strategy<Value = Content> {
        let times = proptest::option::of(MICROS_MIN..=MICROS_MAX);
        (any::<u128>(), any::<String>(), any::<String>(), any_text(), any::<Option<i32>>(), times).prop_map(
            |(id, slug, title, content_type, length_seconds, publish_ts)| Content {
                id: Uuid::from_u128(id),
                slug,
                title,
                content_type,
                length_seconds,
                publish_ts,
            },
        )
    }

    fn shown_time(micros: i64) -> String {
        let epoch = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
        format!("{:.6}Z", epoch + SignedDuration::from_micros(micros))
    }

    /// The float as a correct reader sees it: serde_json's own reading may be off by the last bit.
    fn float_of(text: &str, field: &str) -> Option<f64> {
        let fields: HashMap<String, Box<RawValue>> = serde_json::from_str(text).unwrap();
        let number = fields[field].get();
        (number != "null").then(|| number.parse().unwrap())
    }

    proptest! {
        #[test]
        fn an_event_reads_back_as_it_was(
            texts in (any_text(), any_text()),
            payload in any_payload(),
            content in proptest::option::of(any_content()),
            ids in (any::<i64>(), any::<Option<u128>>(), any::<Option<u128>>()),
            times in (MICROS_MIN..=MICROS_MAX, MICROS_MIN..=MICROS_MAX),
            duration_ms in proptest::option::of(0..i64::MAX),
            (lsn, ordinal) in any::<(u64, u64)>(),
        ) {
            let mut arena = "what stands before".to_owned();
            let payload_text = payload.as_ref().map(Value::to_string);
            let event = Event {
                position: Position { commit_lsn: Lsn(lsn), ordinal },
                commit_ts: times.0,
                id: ids.0,
                content_id: ids.1.map(Uuid::from_u128),
                user_id: ids.2.map(Uuid::from_u128),
                event_type: texts.0.as_deref().map(|text| intern(&mut arena, text)),
                event_ts: times.1,
                duration_ms,
                device: texts.1.as_deref().map(|text| intern(&mut arena, text)),
                raw_payload: payload_text.as_deref().map(|text| intern(&mut arena, text)),
                raw_payload_bytes: payload_text.as_ref().map(|text| text.len() as u32),
                content: content.clone().map(Arc::new),
            };
            let (seconds, percent) = (event.engagement_seconds(), event.engagement_pct());
            let text = json_of(&arena, &event);
            let values = EventValues::of(&EventRecord { event: &event, texts: Texts(&arena) });
            let mut back = Json.read_event(text.as_bytes()).unwrap();
            if payload == Some(Value::Null) {
                // JSON's null and SQL's are one in JSON
                back.0[const { event_field("raw_payload") }] = values.0[const { event_field("raw_payload") }].clone();
            }
            prop_assert_eq!(&back, &values);
            let mut with_text = Vec::new();
            let written = EventRecord { event: &event, texts: Texts(&arena) };
            Json.with_payload(PayloadForm::Text).event(&written, &mut with_text);
            prop_assert_eq!(Json.read_event(&with_text), Some(values));
            let told: Value = serde_json::from_slice(&with_text).unwrap();
            prop_assert_eq!(&told["raw_payload"], &json!(payload_text));
            let read: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(float_of(&text, "engagement_seconds"), seconds);
            prop_assert_eq!(float_of(&text, "engagement_pct"), percent);

            let with = |get: fn(&Content) -> Value| content.as_ref().map_or(Value::Null, get);
            let wanted = json!({
                "event_id": ids.0,
                "content_id": ids.1.map(Uuid::from_u128),
                "user_id": ids.2.map(Uuid::from_u128),
                "event_type": texts.0,
                "event_ts": shown_time(times.1),
                "duration_ms": duration_ms,
                "device": texts.1,
                "raw_payload": payload,
                "raw_payload_bytes": payload_text.map(|text| text.len()),
                "slug": with(|content| json!(content.slug)),
                "title": with(|content| json!(content.title)),
                "content_type": with(|content| json!(content.content_type)),
                "length_seconds": with(|content| json!(content.length_seconds)),
                "publish_ts": with(|content| json!(content.publish_ts.map(shown_time))),
                "engagement_seconds": read["engagement_seconds"],
                "engagement_pct": read["engagement_pct"],
                "commit_ts": shown_time(times.0),
                "commit_lsn": Lsn(lsn).to_string(),
                "ordinal": ordinal,
            });
            prop_assert_eq!(read, wanted);
        }

        #[test]
        fn a_content_row_reads_back_as_it_was(content in any_content(), commit_ts in MICROS_MIN..=MICROS_MAX) {
            let change = ContentChange {
                position: Position { commit_lsn: Lsn(1 << 40), ordinal: 3 },
                commit_ts,
                id: content.id,
                after: Some(Arc::new(content.clone())),
            };
            let mut out = Vec::new();
            put_content(&change, &mut out);
            let read: Value = serde_json::from_slice(&out).unwrap();
            let wanted = json!({
                "id": content.id,
                "slug": content.slug,
                "title": content.title,
                "content_type": content.content_type,
                "length_seconds": content.length_seconds,
                "publish_ts": content.publish_ts.map(shown_time),
                "commit_ts": shown_time(commit_ts),
                "commit_lsn": "100/0",
                "ordinal": 3,
            });
            prop_assert_eq!(read, wanted);
        }
    }
}
