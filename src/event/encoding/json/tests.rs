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
use crate::event::{Content, ContentChange, Event, Extra, Texts, intern, samples};
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
            slug: Some("s".into()),
            title: Some("Zażółć\n".into()),
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
fn a_record_without_nulls_is_read_like_one_with_them() {
    let mut arena = String::new();
    let mut events = samples::events(2_000, |text| intern(&mut arena, text));
    let plain = intern(&mut arena, r#","country":"PL","none":null"#);
    let json = intern(&mut arena, r#","meta":{"a": [null]}"#);
    let with_extra = Event { extra: Extra { plain, json }, ..plain_event() };
    assert!(
        read_event(json_of(&arena, &with_extra).as_bytes())
            .is_some_and(|EventValues(_, extra)| extra.len() == 3)
    );
    events.push(with_extra);
    let (mut saved, mut readable) = (0, 0);
    for event in [&plain_event()].into_iter().chain(&events) {
        let mut short = Vec::new();
        put_event_without_nulls(&EventRecord { event, texts: Texts(&arena) }, &mut short);
        let long = json_of(&arena, event);
        let read = read_event(&short);
        assert_eq!(read, read_event(long.as_bytes()), "{long}");
        readable += usize::from(read.is_some());
        saved += long.len() - short.len();
    }
    assert!(saved > 0 && readable > events.len() / 2, "{readable}");
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
fn extra_columns_stand_before_the_payload_and_are_read_back() {
    let mut arena = String::new();
    let plain = intern(&mut arena, r#","country":"PL","score":1.5"#);
    let json = intern(&mut arena, r#","meta":{"a": [1e400]},"none":null"#);
    let event = Event { extra: Extra { plain, json }, ..plain_event() };
    let written = |form| {
        let mut out = Vec::new();
        Json.with_payload(form).event(&EventRecord { event: &event, texts: Texts(&arena) }, &mut out);
        String::from_utf8(out).unwrap()
    };
    for (form, meta) in
        [(PayloadForm::Json, r#"{"a": [1e400]}"#), (PayloadForm::Text, r#""{\"a\": [1e400]}""#)]
    {
        let record = written(form);
        let members = format!(
            r#""ordinal":7,"country":"PL","score":1.5,"meta":{meta},"none":null,"raw_payload":null}}"#
        );
        assert!(record.ends_with(&members), "{record}");
        let EventValues(_, extra) = Json.read_event(record.as_bytes()).unwrap();
        let wanted = [("country", "\"PL\""), ("score", "1.5"), ("meta", meta), ("none", "null")];
        assert_eq!(extra, wanted.map(|(name, json)| (name.into(), json.into())));
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
            slug: Some(slug),
            title: Some(title),
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
            extra: Default::default(),
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

proptest! {
    /// Whoever may write to a topic may put anything there.
    #[test]
    fn a_record_that_somebody_has_changed_is_read_or_refused(
        content in any_content(),
        payload in any_payload(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<proptest::sample::Index>(),
        cuts: bool,
    ) {
        let mut arena = String::new();
        let payload = payload.map(|payload| payload.to_string());
        let event = Event {
            content: Some(Arc::new(content)),
            raw_payload: payload.as_deref().map(|text| intern(&mut arena, text)),
            ..plain_event()
        };
        let mut bytes = json_of(&arena, &event).into_bytes();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = Json.read_event(&bytes);
    }
}
