//! The one record that every sink shows: Kafka's value, an HTTP body. The same names, every field always
//! there, `null` for what is absent.

use serde::Serialize;
use uuid::Uuid;

use crate::batch::{Batch, ContentChange, Event};
use crate::lsn::Position;

/// Appends the event as one JSON object.
///
/// Times are RFC 3339 in UTC with microseconds, ids are text, `commit_lsn` is `X/Y`, floats are the
/// shortest text that reads back as the same number. `raw_payload` is nested as it stands, not a string,
/// and comes last.
pub fn write_json(batch: &Batch, event: &Event, out: &mut Vec<u8>) {
    let content = event.content.as_deref();
    let payload = event.raw_payload.map_or("null", |span| batch.text(span));
    let mut object = Object::new(out);
    object.number("event_id", Some(event.id));
    object.id("content_id", event.content_id);
    object.id("user_id", event.user_id);
    object.text("event_type", event.event_type.map(|span| batch.text(span)));
    object.time("event_ts", Some(event.event_ts));
    object.number("duration_ms", event.duration_ms);
    object.text("device", event.device.map(|span| batch.text(span)));
    object.number("raw_payload_bytes", event.raw_payload_bytes);
    object.text("slug", content.map(|content| content.slug.as_str()));
    object.text("title", content.map(|content| content.title.as_str()));
    object.text("content_type", content.and_then(|content| content.content_type.as_deref()));
    object.number("length_seconds", content.and_then(|content| content.length_seconds));
    object.time("publish_ts", content.and_then(|content| content.publish_ts));
    object.number("engagement_seconds", event.engagement_seconds());
    object.number("engagement_pct", event.engagement_pct());
    object.place(event.commit_ts, event.position);
    object.key("raw_payload").extend_from_slice(payload.as_bytes());
    object.end();
}

/// Appends the content row after `change` as one JSON object; appends nothing when the row was deleted.
pub fn write_content_json(change: &ContentChange, out: &mut Vec<u8>) {
    let Some(content) = &change.after else { return };
    let mut object = Object::new(out);
    object.id("id", Some(change.id));
    object.text("slug", Some(&content.slug));
    object.text("title", Some(&content.title));
    object.text("content_type", content.content_type.as_deref());
    object.number("length_seconds", content.length_seconds);
    object.time("publish_ts", content.publish_ts);
    object.place(change.commit_ts, change.position);
    object.end();
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

    /// Where in the stream it stands, and when that was committed.
    fn place(&mut self, commit_ts: i64, position: Position) {
        self.time("commit_ts", Some(commit_ts));
        let out = self.key("commit_lsn");
        out.push(b'"');
        position.commit_lsn.put_text(out);
        out.push(b'"');
        self.number("ordinal", Some(position.ordinal));
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

const DAY_MICROS: i64 = 86_400_000_000;
/// 0001-01-01.
const MICROS_MIN: i64 = -719_162 * DAY_MICROS;
/// The last microsecond of 9999-12-31.
const MICROS_MAX: i64 = 2_932_897 * DAY_MICROS - 1;

/// Microseconds since 1970 as `2026-01-02T03:04:05.678901Z`; `None` outside the years 1 to 9999.
pub fn time_text(micros: i64) -> Option<[u8; 27]> {
    if !(MICROS_MIN..=MICROS_MAX).contains(&micros) {
        return None;
    }
    let (year, month, day) = date_of(micros.div_euclid(DAY_MICROS));
    let of_day = micros.rem_euclid(DAY_MICROS);
    let (seconds, fraction) = ((of_day / 1_000_000) as u32, (of_day % 1_000_000) as u32);
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    text[0..4].copy_from_slice(&digits::<4>(year));
    text[5..7].copy_from_slice(&digits::<2>(month));
    text[8..10].copy_from_slice(&digits::<2>(day));
    text[11..13].copy_from_slice(&digits::<2>(seconds / 3600));
    text[14..16].copy_from_slice(&digits::<2>(seconds / 60 % 60));
    text[17..19].copy_from_slice(&digits::<2>(seconds % 60));
    text[20..26].copy_from_slice(&digits::<6>(fraction));
    Some(text)
}

/// Year, month and day of a day since 1970, from the year 0 on. Our own, since a calendar that can do everything
/// took five times as long, three times an event. Years begin in March here, so that the leap day is their last, and
/// are counted in the 400 years (146,097 days) after which the calendar repeats.
fn date_of(day: i64) -> (u32, u32, u32) {
    let day = (day + 719_468) as u32; // since 0000-03-01
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (400 * era + year + u32::from(month <= 2), month, day - (153 * from_march + 2) / 5 + 1)
}

#[inline(always)]
fn digits<const N: usize>(mut number: u32) -> [u8; N] {
    let mut text = [b'0'; N];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    text
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
    use crate::batch::{BatchBuilder, Row};
    use crate::event::samples;
    use crate::lsn::{Lsn, Mark};
    use crate::model::content::Content;

    fn plain_event() -> Event {
        Event {
            position: Position { commit_lsn: Lsn(0x16_B374_D848), ordinal: 7 },
            commit_ts: 1_767_323_045_600_000,
            id: 42,
            content_id: None,
            user_id: None,
            event_type: None,
            event_ts: 1_767_323_045_000_001,
            duration_ms: None,
            device: None,
            raw_payload: None,
            raw_payload_bytes: None,
            content: None,
        }
    }

    fn batch_of(builder: &mut BatchBuilder, event: Event) -> Batch {
        builder.push(Row::Event(event));
        builder.finish(false)
    }

    fn json_of(batch: &Batch) -> String {
        let mut out = Vec::new();
        for event in batch.events() {
            write_json(batch, event, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_field_is_there_when_all_is_absent() {
        let batch = batch_of(&mut BatchBuilder::new(Mark::default()), plain_event());
        insta::assert_snapshot!(json_of(&batch), @r#"{"event_id":42,"content_id":null,"user_id":null,"event_type":null,"event_ts":"2026-01-02T03:04:05.000001Z","duration_ms":null,"device":null,"raw_payload_bytes":null,"slug":null,"title":null,"content_type":null,"length_seconds":null,"publish_ts":null,"engagement_seconds":null,"engagement_pct":null,"commit_ts":"2026-01-02T03:04:05.600000Z","commit_lsn":"16/B374D848","ordinal":7,"raw_payload":null}"#);
    }

    #[test]
    fn every_field_is_there_when_all_is_present() {
        let mut builder = BatchBuilder::new(Mark::default());
        let event = Event {
            content_id: Some(Uuid::from_u128(1)),
            user_id: Some(Uuid::from_u128(2)),
            event_type: Some(builder.intern("play")),
            duration_ms: Some(1500),
            device: Some(builder.intern("ios \"x\"")),
            raw_payload: Some(builder.intern(r#"{"a": [1, 2.50]}"#)),
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
        let batch = batch_of(&mut builder, event);
        insta::assert_snapshot!(json_of(&batch), @r#"{"event_id":42,"content_id":"00000000-0000-0000-0000-000000000001","user_id":"00000000-0000-0000-0000-000000000002","event_type":"play","event_ts":"2026-01-02T03:04:05.000001Z","duration_ms":1500,"device":"ios \"x\"","raw_payload_bytes":16,"slug":"s","title":"Zażółć\n","content_type":"podcast","length_seconds":7,"publish_ts":"1970-01-01T00:00:00.000000Z","engagement_seconds":1.5,"engagement_pct":21.428571428571427,"commit_ts":"2026-01-02T03:04:05.600000Z","commit_lsn":"16/B374D848","ordinal":7,"raw_payload":{"a": [1, 2.50]}}"#);
    }

    #[test]
    fn the_bytes_are_the_same_as_in_every_release_before() {
        let mut builder = BatchBuilder::new(Mark::default());
        let events = samples::events(2_000, |text| builder.intern(text));
        let batch = builder.finish(false);
        let mut out = Vec::new();
        events.iter().for_each(|event| write_json(&batch, event, &mut out));
        assert_eq!((out.len(), samples::fingerprint(&out)), (967_769, 17_554_036_078_591_791_308));
        let mut draw = samples::Draw(0x9E37_79B9_7F4A_7C15);
        out.clear();
        for ordinal in 0..500 {
            let after = Some(Arc::new(samples::content(&mut draw)));
            let position = Position { commit_lsn: Lsn(draw.next()), ordinal };
            let id = Uuid::from_u64_pair(draw.next(), ordinal);
            let change = ContentChange { position, commit_ts: ordinal as i64 * 1_000_003, id, after };
            write_content_json(&change, &mut out);
        }
        assert_eq!((out.len(), samples::fingerprint(&out)), (127_807, 1_348_455_076_661_860_514));
    }

    #[test]
    fn a_deleted_content_row_has_no_record() {
        let change = ContentChange {
            position: plain_event().position,
            commit_ts: 0,
            id: Uuid::from_u128(1),
            after: None,
        };
        let mut out = Vec::new();
        write_content_json(&change, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn every_day_has_its_date() {
        let mut date = DateTime::constant(1, 1, 1, 0, 0, 0, 0).date();
        for day in MICROS_MIN / DAY_MICROS..=MICROS_MAX / DAY_MICROS {
            assert_eq!(date_of(day), (date.year() as u32, date.month() as u32, date.day() as u32), "{day}");
            date = date.tomorrow().unwrap_or(date);
        }
        assert_eq!(date, DateTime::constant(9999, 12, 31, 0, 0, 0, 0).date());
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

    #[test]
    fn times_outside_the_years_1_to_9999_are_null() {
        for (micros, shown) in [
            (i64::MIN, json!(null)),
            (MICROS_MIN - 1, json!(null)),
            (MICROS_MIN, json!("0001-01-01T00:00:00.000000Z")),
            (-1, json!("1969-12-31T23:59:59.999999Z")),
            (MICROS_MAX, json!("9999-12-31T23:59:59.999999Z")),
            (MICROS_MAX + 1, json!(null)),
            (i64::MAX, json!(null)),
        ] {
            let mut out = Vec::new();
            let mut object = Object::new(&mut out);
            object.time("at", Some(micros));
            object.end();
            let read: Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(read["at"], shown, "{micros}");
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
            let mut builder = BatchBuilder::new(Mark::default());
            builder.intern("what stands before");
            let payload_text = payload.as_ref().map(Value::to_string);
            let event = Event {
                position: Position { commit_lsn: Lsn(lsn), ordinal },
                commit_ts: times.0,
                id: ids.0,
                content_id: ids.1.map(Uuid::from_u128),
                user_id: ids.2.map(Uuid::from_u128),
                event_type: texts.0.as_deref().map(|text| builder.intern(text)),
                event_ts: times.1,
                duration_ms,
                device: texts.1.as_deref().map(|text| builder.intern(text)),
                raw_payload: payload_text.as_deref().map(|text| builder.intern(text)),
                raw_payload_bytes: payload_text.as_ref().map(|text| text.len() as u32),
                content: content.clone().map(Arc::new),
            };
            let (seconds, percent) = (event.engagement_seconds(), event.engagement_pct());
            let batch = batch_of(&mut builder, event);
            let text = json_of(&batch);
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
            write_content_json(&change, &mut out);
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
