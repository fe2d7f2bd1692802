//! What rows look like in Kafka: keys, partitions, headers, tombstones, dead letters.

use std::collections::HashMap;
use std::sync::Arc;

use rdkafka::message::Message;
use uuid::Uuid;
use walcast::batch::{BatchBuilder, ContentChange, Control, DeadLetter, Row};
use walcast::lsn::{Checkpoint, Lsn};
use walcast::sink::Sink;
use walcast::source::request::RequestKind;

use super::fixture::{
    COMMIT_TS, Fixture, ROW_BYTES_MAX, content, event, finish, header, ids, is_time_of_writing, json,
    position,
};

#[tokio::test(flavor = "multi_thread")]
async fn events_without_content_id_have_no_key_and_spread() {
    let fixture = Fixture::new("nullkey").await;
    let mut sink = fixture.ready().await;
    let rows = (0..40).map(|ordinal| event(position(100, ordinal), ordinal as i64, None)).collect();
    sink.write(&[finish(rows, 110)]).await.unwrap();
    let records = fixture.committed(&fixture.topics.events);
    assert_eq!(records.len(), 40);
    assert!(records.iter().all(|message| message.key().is_none() && json(message)["content_id"].is_null()));
    let mut spread: HashMap<i32, usize> = HashMap::new();
    records.iter().for_each(|message| *spread.entry(message.partition()).or_default() += 1);
    assert_eq!(spread, (0..4).map(|partition| (partition, 10)).collect());
}

/// Each codec that Kafka knows.
#[tokio::test(flavor = "multi_thread")]
async fn records_are_compressed_as_is_asked() {
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let mut fixture = Fixture::new(codec).await;
        let properties = serde_json::json!({ "compression.type": codec });
        fixture.config.properties = serde_json::from_value(properties).unwrap();
        let mut sink = fixture.ready().await;
        let rows = (0..40).map(|ordinal| event(position(100, ordinal), ordinal as i64, None)).collect();
        sink.write(&[finish(rows, 110)]).await.unwrap();
        assert_eq!(fixture.committed(&fixture.topics.events).len(), 40, "{codec}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_content_row_is_a_tombstone() {
    let fixture = Fixture::new("content").await;
    let mut sink = fixture.ready().await;
    let change = |ordinal, id, after: Option<&str>| {
        let after = after.map(|title| Arc::new(content(id, title)));
        let (position, id) = (position(100, ordinal), Uuid::from_u128(id));
        Row::Content(ContentChange { position, commit_ts: *COMMIT_TS, id, after })
    };
    let rows = vec![change(0, 1, Some("one")), change(1, 2, Some("two")), change(2, 1, None)];
    sink.write(&[finish(rows, 110)]).await.unwrap();

    let one = Uuid::from_u128(1).to_string();
    let records = fixture.committed(&fixture.topics.content);
    let ones: Vec<_> = records.iter().filter(|message| message.key() == Some(one.as_bytes())).collect();
    assert_eq!(records.len(), 3);
    assert_eq!(json(ones[0])["title"], "one");
    assert_eq!(header(ones[0], "op").unwrap(), "u");
    assert_eq!(ones[1].payload(), None);
    assert_eq!(header(ones[1], "op").unwrap(), "d");
    assert_eq!(header(ones[1], "lsn").unwrap(), "0/64#2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_has_the_headers_of_kafka_connect() {
    let fixture = Fixture::new("dlq").await;
    let mut sink = fixture.ready().await;
    let letter = DeadLetter {
        position: position(0x100, 1),
        commit_ts: *COMMIT_TS,
        table: "public.engagement_events".into(),
        reason: "negative_duration",
        message: "duration_ms is negative".into(),
        row_json: r#"{"id":"9","duration_ms":"-1"}"#.into(),
        event: None,
    };
    sink.write(&[finish(vec![event(position(0x100, 0), 8, None), Row::DeadLetter(Box::new(letter))], 0x110)])
        .await
        .unwrap();
    let letters = fixture.committed(&fixture.topics.dlq);
    assert_eq!(letters.len(), 1);
    assert_eq!(json(&letters[0])["duration_ms"], "-1");
    for (name, value) in [
        ("lsn", "0/100#1"),
        ("__connect.errors.topic", "public.engagement_events"),
        ("__connect.errors.partition", "0"),
        ("__connect.errors.offset", "256"),
        ("__connect.errors.connector.name", "walcast"),
        ("__connect.errors.task.id", "0"),
        ("__connect.errors.exception.class.name", "negative_duration"),
        ("__connect.errors.exception.message", "duration_ms is negative"),
    ] {
        assert_eq!(header(&letters[0], name).as_deref(), Some(value), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_too_large_for_kafka_is_a_dead_letter_and_holds_nothing_up() {
    let fixture = Fixture::new("large").await;
    let mut sink = fixture.ready().await;
    let mut builder = BatchBuilder::new(Checkpoint::default());
    let mut push = |ordinal, bytes| {
        let Row::Event(mut event) = event(position(100, ordinal), ordinal as i64, Some(Uuid::nil())) else {
            return;
        };
        event.device = Some(builder.intern(&"x".repeat(bytes)));
        builder.push(Row::Event(event));
    };
    // what fits by the row's limit passes; text that JSON escapes sixfold does not
    push(0, ROW_BYTES_MAX);
    push(1, 2 * ROW_BYTES_MAX);
    push(2, 5);
    builder.hold(Lsn(110));
    let title = "y".repeat(2 * ROW_BYTES_MAX);
    let change = ContentChange {
        position: position(100, 3),
        commit_ts: *COMMIT_TS,
        id: Uuid::from_u128(5),
        after: Some(Arc::new(content(5, &title))),
    };
    builder.push(Row::Content(change));
    // refused before, and too large besides: it keeps its own reason, by which verify knows whom it is for
    builder.push(Row::DeadLetter(Box::new(DeadLetter {
        position: position(100, 4),
        commit_ts: *COMMIT_TS,
        table: "public.engagement_events".into(),
        reason: "negative_duration",
        message: "duration_ms is negative".into(),
        row_json: format!(
            r#"{{"id":{{"$base64":"AAAABw=="}},"raw_payload":"{}"}}"#,
            "z".repeat(2 * ROW_BYTES_MAX)
        ),
        event: None,
    })));
    sink.write(&[Arc::new(builder.finish(false))]).await.unwrap();
    assert_eq!(ids(&fixture.committed(&fixture.topics.events)), [0, 2]);
    let letters = fixture.committed(&fixture.topics.dlq);
    assert_eq!(
        letters.iter().map(|letter| json(letter)["id"].clone()).collect::<Vec<_>>(),
        [
            serde_json::json!("1"),
            serde_json::json!(Uuid::from_u128(5)),
            serde_json::json!({ "$base64": "AAAABw==" })
        ]
    );
    assert_eq!(header(&letters[2], "__connect.errors.exception.class.name").unwrap(), "negative_duration");
    assert_eq!(header(&letters[0], "__connect.errors.exception.class.name").unwrap(), "record_too_large");
}

/// Lines of a key in hexadecimal and what Java's client made of it.
const JAVA_HASHES: &str = include_str!("../../data/murmur2.txt");

#[tokio::test(flavor = "multi_thread")]
async fn another_client_finds_every_key_where_java_would_put_it() {
    let mut fixture = Fixture::new("kcat").await;
    fixture.config.partitions = 16;
    let mut sink = fixture.ready().await;
    let mut java = HashMap::new();
    for line in JAVA_HASHES.lines().filter(|line| !line.starts_with('#')) {
        let (hex, hash) = line.split_once(' ').unwrap();
        let bytes: Vec<u8> =
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
        let uuid = String::from_utf8(bytes).ok().and_then(|text| text.parse::<Uuid>().ok());
        let hash: i32 = hash.parse().unwrap();
        java.extend(uuid.map(|uuid| (uuid, (hash & 0x7fff_ffff) % 16)));
    }
    assert!(java.len() >= 100);
    let rows = java
        .keys()
        .enumerate()
        .map(|(at, id)| event(position(100, at as u64), at as i64, Some(*id)))
        .collect();
    sink.write(&[finish(rows, 110)]).await.unwrap();

    fixture.committed(&fixture.topics.events);
    let kcat = std::process::Command::new("kcat")
        .args(["-C", "-q", "-e", "-o", "beginning", "-X", "isolation.level=read_committed"])
        .args(["-b", &fixture.config.brokers, "-t", &fixture.topics.events, "-f", "%p %k %T %h %s\n"])
        .output()
        .expect("kcat runs: install it with apt-get install kcat");
    let lines = String::from_utf8(kcat.stdout).unwrap();
    let mut seen = 0;
    for line in lines.lines() {
        let (partition, rest) = line.split_once(' ').unwrap();
        let (key, rest) = rest.split_once(' ').unwrap();
        assert_eq!(partition.parse(), Ok(java[&key.parse().unwrap()]), "{line}");
        let (timestamp, rest) = rest.split_once(' ').unwrap();
        assert!(is_time_of_writing(timestamp.parse().unwrap()), "{line}");
        assert!(rest.starts_with("lsn=0/64#"), "{line}");
        assert!(rest.contains(",op=c {\"event_id\":"), "{line}");
        seen += 1;
    }
    assert_eq!(seen, java.len(), "{}", String::from_utf8_lossy(&kcat.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_sent_again_tells_so_and_its_first_place() {
    let fixture = Fixture::new("again").await;
    let mut sink = fixture.ready().await;
    let mut builder = BatchBuilder::new(Checkpoint::default());
    builder.begin_control();
    builder.push(event(position(0x200, 0), 8, None));
    builder.control(Control {
        id: Uuid::nil(),
        kind: RequestKind::Replay,
        commit_lsn: Lsn(0x200),
        refused: false,
        sinks: vec!["kafka".into()],
        firsts: vec![position(0x100, 7)],
    });
    builder.hold(Lsn(0x210));
    let again = Arc::new(builder.finish(false));
    assert_eq!(again.for_sink("redis").rows().len(), 0);
    assert_eq!(again.for_sink("redis").checkpoint(), again.checkpoint());
    sink.write(&[again]).await.unwrap();
    let events = fixture.committed(&fixture.topics.events);
    let headers = ["op", "lsn", "first"].map(|name| header(&events[0], name).unwrap());
    assert_eq!(headers, ["p", "0/200#0", "0/100#7"]);
}
