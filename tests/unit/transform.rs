//! From wire messages to batches: the join as of each event's own place, the calculation, dead letters, and
//! when a batch ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;
use walcast::batch::{Batch, Event, Row};
use walcast::error::Code;
use walcast::event::encoding::Encoding;
use walcast::event::encoding::json::Json;
use walcast::event::place::Places;
use walcast::event::schema::EventRecord;
use walcast::lsn::{Lsn, Position};
use walcast::model::Tables;
use walcast::model::content::Content;
use walcast::pgoutput::{Column, OldKind, Relation};
use walcast::source::request::{Brought, Request, RequestKind, RequestRow};
use walcast::telemetry::metrics;
use walcast::transform::content_cache::ContentCache;
use walcast::transform::{Bounds, Transform};

use crate::stages::encode::{CONTENT_COLUMNS, Cell, EVENT_COLUMNS, Sent, relation};

const CONTENT: u32 = 1;
const EVENTS: u32 = 2;
const OTHER: u32 = 3;

const BOUNDS: Bounds = Bounds {
    batch_rows_max: 1000,
    batch_bytes_max: 1 << 20,
    batch_age_max: Duration::from_millis(2),
    idle_every: Duration::from_secs(10),
    row_bytes_max: 10_000,
};

/// A stream being written, transaction by transaction.
struct Stream {
    transform: Transform,
    at: u64,
}

impl Stream {
    fn new(bounds: Bounds, content: impl IntoIterator<Item = Content>) -> Self {
        let cache = content.into_iter().collect::<ContentCache>();
        let mut stream =
            Stream { transform: Transform::new(&Places::usual("public"), Lsn(50), cache, bounds), at: 100 };
        for relation in relations() {
            stream.send(Sent::Relation(relation));
        }
        stream
    }

    fn send(&mut self, message: Sent) {
        self.transform.apply(&message.encode()).unwrap();
    }

    fn begin(&mut self) {
        self.begin_at(0);
    }

    fn begin_at(&mut self, commit_ts: i64) {
        self.send(Sent::Begin { final_lsn: Lsn(self.at), commit_ts, xid: 1 });
    }

    fn commit(&mut self) {
        let (commit_lsn, end_lsn) = (Lsn(self.at), Lsn(self.at + 10));
        self.send(Sent::Commit { commit_lsn, end_lsn, commit_ts: 0 });
        self.at += 100;
    }

    fn transaction(&mut self, messages: impl IntoIterator<Item = Sent>) {
        self.begin();
        messages.into_iter().for_each(|message| self.send(message));
        self.commit();
    }

    fn transaction_at(&mut self, commit_ts: i64, messages: impl IntoIterator<Item = Sent>) {
        self.begin_at(commit_ts);
        messages.into_iter().for_each(|message| self.send(message));
        self.commit();
    }

    fn batch(&mut self) -> Batch {
        self.transform.take_rest().expect("a batch")
    }

    /// Title and percent of each event so far.
    fn joined(&mut self) -> Vec<(Option<String>, Option<f64>)> {
        let title = |event: &Event| event.content.as_ref().and_then(|content| content.title.clone());
        self.batch().events().map(|event| (title(event), event.engagement_pct())).collect()
    }
}

fn relations() -> [Relation; 3] {
    [
        relation(CONTENT, "content", &CONTENT_COLUMNS),
        relation(EVENTS, "engagement_events", &EVENT_COLUMNS),
        relation(OTHER, "orders", &[("id", 20)]),
    ]
}

fn text(text: impl AsRef<str>) -> Cell {
    Cell::Binary(text.as_ref().as_bytes().to_vec())
}

fn uuid(number: u128) -> Cell {
    Cell::Binary(id(number).as_bytes().to_vec())
}

fn int(number: i32) -> Cell {
    Cell::Binary(number.to_be_bytes().to_vec())
}

fn json(text: &str) -> Cell {
    Cell::Binary([&[1], text.as_bytes()].concat())
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn content(number: u128, title: &str, length_seconds: i32) -> Content {
    Content {
        id: id(number),
        slug: Some(format!("slug-{number}")),
        title: Some(title.into()),
        content_type: Some("podcast".into()),
        length_seconds: Some(length_seconds),
        publish_ts: Some(0),
    }
}

fn content_row(number: u128, title: Cell, length_seconds: i32) -> Vec<Cell> {
    let slug = text(format!("slug-{number}"));
    vec![uuid(number), slug, title, text("podcast"), int(length_seconds), Cell::Binary(vec![0; 8])]
}

fn insert_content(number: u128, title: &str, length_seconds: i32) -> Sent {
    Sent::Insert { relation_id: CONTENT, new: content_row(number, text(title), length_seconds) }
}

fn update_content(number: u128, title: Cell, length_seconds: i32) -> Sent {
    Sent::Update { relation_id: CONTENT, old: None, new: content_row(number, title, length_seconds) }
}

fn delete_content(number: u128) -> Sent {
    let key = vec![uuid(number), Cell::Null, Cell::Null, Cell::Null, Cell::Null, Cell::Null];
    Sent::Delete { relation_id: CONTENT, old: (OldKind::Key, key) }
}

fn play(number: u128, duration_ms: i32) -> Sent {
    event(uuid(number), int(duration_ms), json("{}"))
}

fn event(content_id: Cell, duration_ms: Cell, raw_payload: Cell) -> Sent {
    event_at(content_id, duration_ms, raw_payload, 1_000_000)
}

fn event_at(content_id: Cell, duration_ms: Cell, raw_payload: Cell, event_ts: i64) -> Sent {
    let new = vec![
        int(7),
        content_id,
        Cell::Null,
        text("play"),
        Cell::Binary(event_ts.to_be_bytes().to_vec()),
        duration_ms,
        text("tv"),
        raw_payload,
    ];
    Sent::Insert { relation_id: EVENTS, new }
}

fn joined(title: &str, pct: f64) -> (Option<String>, Option<f64>) {
    (Some(title.to_owned()), Some(pct))
}

#[test]
fn an_event_sees_the_content_of_its_own_place() {
    let mut stream = Stream::new(BOUNDS, [content(1, "before", 100)]);
    stream.transaction([
        play(1, 50_000),
        update_content(1, text("after"), 200),
        play(1, 50_000),
        delete_content(1),
        play(1, 50_000),
        insert_content(1, "again", 50),
        play(1, 50_000),
    ]);
    let none = (None, None);
    assert_eq!(
        stream.joined(),
        [joined("before", 50.0), joined("after", 25.0), none, joined("again", 100.0)]
    );
}

#[test]
fn unknown_and_null_content_go_on_without_metadata() {
    let mut stream = Stream::new(BOUNDS, []);
    stream.transaction([play(9, 1), event(Cell::Null, int(1), Cell::Null)]);
    let batch = stream.batch();
    let events: Vec<&Event> = batch.events().collect();
    assert_eq!(events.iter().map(|event| event.content_id).collect::<Vec<_>>(), [Some(id(9)), None]);
    assert!(events.iter().all(|event| event.content.is_none() && event.engagement_pct().is_none()));
    assert_eq!(events[0].engagement_seconds(), Some(0.001));
}

#[test]
fn a_truncation_takes_all_content_away() {
    let mut stream = Stream::new(BOUNDS, [content(1, "a", 10), content(2, "b", 10)]);
    stream.transaction([Sent::Truncate { options: 0, relations: vec![CONTENT, EVENTS] }, play(1, 1)]);
    let batch = stream.batch();
    let mut gone: Vec<Uuid> = batch
        .rows()
        .iter()
        .filter_map(|row| match row {
            Row::Content(change) if change.after.is_none() => Some(change.id),
            _ => None,
        })
        .collect();
    gone.sort();
    assert_eq!(gone, [id(1), id(2)]);
    assert!(batch.events().all(|event| event.content.is_none()));
}

#[test]
fn a_large_value_that_an_update_left_alone_is_kept() {
    let mut stream = Stream::new(BOUNDS, [content(1, "large title", 100)]);
    stream.transaction([update_content(1, Cell::Unchanged, 10), play(1, 1000)]);
    assert_eq!(stream.joined(), [joined("large title", 10.0)]);
}

#[test]
fn a_changed_id_moves_the_content() {
    let mut stream = Stream::new(BOUNDS, [content(1, "moved", 10)]);
    let key = vec![uuid(1), Cell::Null, Cell::Null, Cell::Null, Cell::Null, Cell::Null];
    let update = Sent::Update {
        relation_id: CONTENT,
        old: Some((OldKind::Key, key)),
        new: content_row(2, Cell::Unchanged, 10),
    };
    stream.transaction([update, play(1, 1000), play(2, 1000)]);
    assert_eq!(stream.joined(), [(None, None), joined("moved", 10.0)]);
}

#[test]
fn percent_is_null_never_infinite_and_may_pass_a_hundred() {
    let mut stream = Stream::new(BOUNDS, [content(1, "zero", 0), content(2, "short", 10)]);
    stream.transaction([play(1, 1000), play(2, 25_000), event(uuid(2), Cell::Null, Cell::Null)]);
    let short = Some("short".to_owned());
    assert_eq!(stream.joined(), [(Some("zero".into()), None), (short.clone(), Some(250.0)), (short, None)]);
}

#[test]
fn rows_against_a_rule_become_dead_letters_and_keep_their_ordinal() {
    let mut stream = Stream::new(BOUNDS, []);
    stream.transaction([
        event(Cell::Null, int(-1), Cell::Null),
        event_at(Cell::Null, Cell::Null, Cell::Null, i64::MAX),
        event(text("not a uuid"), Cell::Null, Cell::Null),
        event(Cell::Null, int(1), Cell::Null),
    ]);
    let batch = stream.batch();
    let letters: Vec<(u64, &str)> = batch
        .rows()
        .iter()
        .filter_map(|row| match row {
            Row::DeadLetter(letter) => Some((letter.position.ordinal, letter.reason)),
            _ => None,
        })
        .collect();
    assert_eq!(letters, [(0, "negative_duration"), (1, "event_ts_out_of_range"), (2, "undecodable")]);
    let Some(Row::DeadLetter(letter)) = batch.rows().first() else { panic!("a dead letter first") };
    let row: serde_json::Value = serde_json::from_str(&letter.row_json).unwrap();
    assert_eq!(
        (&row["duration_ms"]["$base64"], &row["event_type"]["$base64"]),
        (&"/////w==".into(), &"cGxheQ==".into())
    );
    assert_eq!(batch.events().map(|event| event.position.ordinal).collect::<Vec<_>>(), [3]);
}

#[test]
fn ordinals_count_what_we_leave_out() {
    let mut stream = Stream::new(BOUNDS, []);
    let other = || Sent::Insert { relation_id: OTHER, new: vec![int(1)] };
    stream.transaction([other(), play(1, 1), other(), play(1, 1)]);
    let positions: Vec<Position> = stream.batch().events().map(|event| event.position).collect();
    let at = |ordinal| Position { commit_lsn: Lsn(100), ordinal };
    assert_eq!(positions, [at(1), at(3)]);
}

#[tokio::test]
async fn a_change_is_counted_for_the_table_that_it_was_made_to() {
    let metrics = metrics::install().unwrap();
    let mut stream = Stream::new(BOUNDS, []);
    let key = || (OldKind::Key, vec![int(1)]);
    let changes = |relation_id: u32| {
        [
            Sent::Update { relation_id, old: None, new: vec![int(1)] },
            Sent::Update { relation_id, old: Some(key()), new: vec![int(1)] },
            Sent::Delete { relation_id, old: key() },
            Sent::Truncate { options: 0, relations: vec![relation_id] },
        ]
    };
    stream.transaction(changes(OTHER));
    stream.transaction(changes(OTHER));
    stream.transaction(changes(EVENTS));
    let text = metrics.render();
    for (table, op, count) in [
        ("other", "update", 4),
        ("other", "delete", 2),
        ("other", "truncate", 2),
        ("engagement_events", "update", 2),
        ("engagement_events", "delete", 1),
        // and one of the test of truncations, which may have run
        ("engagement_events", "truncate", 1),
    ] {
        let name = format!(r#"walcast_skipped_changes_total{{table="{table}",op="{op}"}} "#);
        let found = text.lines().find_map(|line| line.strip_prefix(&name)).expect(&name);
        let found: u64 = found.parse().unwrap();
        let more = u64::from(op == "truncate" && table == "engagement_events");
        assert!((count..=count + more).contains(&found), "{name}{found}");
    }
}

#[test]
fn a_row_above_the_bound_goes_on_without_its_payload() {
    let mut stream = Stream::new(BOUNDS, []);
    let payload = format!("\"{}\"", "x".repeat(10_000));
    stream.transaction([event(Cell::Null, int(1), json(&payload)), event(Cell::Null, int(1), json("[]"))]);
    let batch = stream.batch();
    let events: Vec<_> =
        batch.events().map(|event| (event.raw_payload.is_some(), event.raw_payload_bytes)).collect();
    assert_eq!(events, [(false, Some(10_002)), (true, Some(2))]);
}

#[test]
fn a_table_without_a_column_that_we_need_stops_the_stream() {
    let mut stream = Stream::new(BOUNDS, []);
    let [_, mut events, _] = relations();
    events.columns.retain(|column| column.name != "duration_ms");
    let error = stream.transform.apply(&Sent::Relation(events).encode()).unwrap_err();
    assert_eq!(error.code(), Code::TableWasUnfit);
    assert!(error.to_string().contains("duration_ms"), "{error}");
    let absent = r#"export POSTGRES_EVENTS_COLUMNS='{"duration_ms": "duration_ms,"}'"#;
    assert!(error.advice().ends_with(absent), "{}", error.advice());

    let [_, mut events, _] = relations();
    events.columns[0].type_oid = 25;
    let error = stream.transform.apply(&Sent::Relation(events).encode()).unwrap_err();
    assert!(error.chain().contains("column id"), "{}", error.chain());
    assert!(error.chain().contains("transaction 0, which committed at 0/0"), "{}", error.chain());
    assert!(error.advice().contains("bring the sinks level"), "{}", error.advice());

    let [mut content, ..] = relations();
    content.namespace = "My \"shop\"".into();
    content.columns.retain(|column| column.name != "slug");
    let mut tables = Tables::new(&Places::usual("My \"shop\""));
    content.columns.push(Column { name: "headline".into(), type_oid: 25, type_modifier: -1, key: false });
    let error = tables.describe(content).unwrap_err().told(7, Lsn(9));
    assert_eq!(error.code(), Code::TableWasUnfit);
    let export = r#"export POSTGRES_CONTENT_COLUMNS='{"slug": "slug,headline"}'"#;
    assert!(error.advice().ends_with(export), "{}", error.advice());
}

/// An update that moves a row to another partition is a delete and an insert.
#[test]
fn a_row_that_moves_is_no_other_event() {
    let insert = |id: i32| {
        let Sent::Insert { relation_id, mut new } = play(1, 1) else { panic!("an insert") };
        new[0] = int(id);
        Sent::Insert { relation_id, new }
    };
    let delete = |id: i32| {
        let key = EVENT_COLUMNS.iter().map(|(name, _)| if *name == "id" { int(id) } else { Cell::Null });
        Sent::Delete { relation_id: EVENTS, old: (OldKind::Key, key.collect()) }
    };
    let mut stream = Stream::new(BOUNDS, []);
    stream.transaction([insert(1)]);
    stream.transaction([delete(1), insert(1)]);
    stream.transaction([insert(2), delete(2), delete(1), insert(1), insert(3), insert(2)]);
    stream.transaction([delete(3)]);
    stream.transaction([insert(3)]);
    let ids: Vec<i64> = stream.batch().events().map(|event| event.id).collect();
    assert_eq!(ids, [1, 2, 3, 3]);
}

#[test]
fn a_full_batch_ends_inside_a_transaction_and_holds_only_the_commit_before() {
    let mut stream = Stream::new(Bounds { batch_rows_max: 2, ..BOUNDS }, []);
    stream.transaction([play(1, 1)]);
    stream.begin();
    stream.send(play(1, 1));
    let batch = stream.transform.take_batch(Instant::now()).expect("it is full");
    assert_eq!(batch.checkpoint().durable_lsn, Lsn(110));
    assert_eq!(batch.checkpoint().position, Some(Position { commit_lsn: Lsn(200), ordinal: 0 }));
    stream.commit();
    assert_eq!(stream.batch().checkpoint().durable_lsn, Lsn(210));
}

#[test]
fn the_commit_of_rows_that_went_ahead_follows_at_once() {
    let mut stream = Stream::new(Bounds { batch_rows_max: 1, ..BOUNDS }, []);
    stream.begin();
    stream.send(play(1, 1));
    assert!(stream.transform.take_batch(Instant::now()).is_some());
    stream.commit();
    let batch = stream.transform.take_batch(Instant::now() + BOUNDS.batch_age_max).expect("it is due");
    assert_eq!((batch.checkpoint().durable_lsn, batch.rows().len()), (Lsn(110), 0));
}

#[test]
fn a_batch_goes_when_its_first_row_is_old_enough() {
    let mut stream = Stream::new(BOUNDS, []);
    stream.transaction([play(1, 1)]);
    let now = Instant::now();
    assert!(stream.transform.due_at().is_some_and(|due| due <= now + BOUNDS.batch_age_max));
    assert!(stream.transform.take_batch(now + BOUNDS.batch_age_max).is_some());
    assert_eq!(stream.transform.due_at(), None);
}

#[test]
fn an_idle_stream_moves_the_checkpoint_every_ten_seconds() {
    let mut stream = Stream::new(BOUNDS, []);
    let now = Instant::now();
    stream.transform.keepalive(Lsn(5000), false);
    assert!(stream.transform.take_batch(now).is_none());
    let batch = stream.transform.take_batch(now + BOUNDS.idle_every * 2).expect("it is due");
    assert_eq!((batch.checkpoint().durable_lsn, batch.rows().len(), batch.urgent()), (Lsn(5000), 0, false));
    stream.transform.keepalive(Lsn(5000), false);
    assert!(stream.transform.take_batch(now + BOUNDS.idle_every * 9).is_none(), "nothing has moved");
}

#[test]
fn inside_a_transaction_a_keepalive_moves_nothing() {
    let mut stream = Stream::new(BOUNDS, []);
    stream.begin();
    stream.transform.keepalive(Lsn(5000), true);
    assert!(stream.transform.take_rest().is_none());
}

/// Anybody may write messages outside of transactions, with any prefix and at any time.
#[test]
fn a_message_outside_of_transactions_is_no_heartbeat() {
    let mut stream = Stream::new(BOUNDS, []);
    let message =
        Sent::Logical { transactional: false, lsn: Lsn(9), prefix: "walcast".into(), content: vec![] };
    stream.transform.apply(&message.encode()).unwrap();
    stream.transaction([]);
    assert!(stream.transform.take_batch(Instant::now()).is_none(), "nothing is told at once");
    let rest = stream.transform.take_rest().expect("a commit moves the checkpoint");
    assert!(rest.heartbeat().is_none());
}

/// A commit's time in microseconds since 2000, as on the wire.
fn wire_now(seconds: i64) -> i64 {
    jiff::Timestamp::now().as_microsecond() - 946_684_800_000_000 + seconds * 1_000_000
}

/// Since when each row is under way, in seconds before now, and the record's own time of commit.
fn times(batch: &Batch) -> Vec<(i64, i64)> {
    let rows = batch.under_way().zip(batch.rows());
    rows.map(|((_, since), row)| (since.elapsed().as_secs().cast_signed(), row.commit_ts())).collect()
}

#[test]
fn only_the_servers_own_commit_times_are_measured_by() {
    let heartbeat =
        Sent::Logical { transactional: true, lsn: Lsn(99), prefix: "walcast".into(), content: vec![] };
    let origin = Sent::Origin { commit_lsn: Lsn(1), name: "elsewhere".into() };
    let mut stream = Stream::new(BOUNDS, []);
    stream.transaction_at(wire_now(-7_000), [play(1, 1)]);
    stream.transaction_at(wire_now(-7_000), [origin.clone(), play(1, 1), play(1, 1)]);
    stream.transaction_at(wire_now(-7_000), [play(1, 1)]);
    let since = |batch: &Batch| times(batch).into_iter().map(|(since, _)| since).collect::<Vec<_>>();
    assert_eq!(since(&stream.batch()), [7_000, 0, 0, 7_000]);

    // a heartbeat of an origin is none
    stream.transaction_at(wire_now(-9_000), [origin.clone(), heartbeat.clone()]);
    assert_eq!(stream.batch().heartbeat(), None);
    stream.transaction_at(wire_now(-100), [heartbeat]);
    assert!(stream.batch().heartbeat().is_some());
    // an origin that is not named any more
    for seconds in [-7_000, 7_000, -101, -99, 0] {
        stream.transaction_at(wire_now(seconds), [play(1, 1)]);
    }
    assert_eq!(since(&stream.batch()), [0, 0, 101, 99, 0]);

    for (wire, year) in [(i64::MIN, 1), (i64::MAX, 9999), (i64::MIN + 1, 1), (i64::MAX - 1, 9999)] {
        stream.transaction_at(wire, [play(1, 1)]);
        let (since, commit_ts) = times(&stream.batch())[0];
        let shown = String::from_utf8(walcast::event::time::time_text(commit_ts).unwrap().to_vec()).unwrap();
        assert!(since == 0 && shown.starts_with(&format!("{year:04}-")), "{since} {shown}");
    }
}

/// A server's clock that was set back, or was wrong and is set right: its next heartbeat says what it shows now.
#[test]
fn a_heartbeat_shows_that_the_servers_clock_was_set() {
    let heartbeat =
        Sent::Logical { transactional: true, lsn: Lsn(99), prefix: "walcast".into(), content: vec![] };
    let mut stream = Stream::new(BOUNDS, []);
    let since = |batch: &Batch| times(batch).into_iter().map(|(since, _)| since).collect::<Vec<_>>();
    for shown in [-100, -3_700, -50, 3_600, 0, -7_000] {
        stream.transaction_at(wire_now(shown), [play(1, 1)]);
        let before = since(&stream.batch())[0];
        assert!(before < 200, "{shown}: {before} s before a heartbeat has come");
        stream.transaction_at(wire_now(shown), [heartbeat.clone()]);
        assert!(stream.batch().heartbeat().unwrap().committed_at.elapsed().as_secs() < 200, "{shown}");
        stream.transaction_at(wire_now(shown.min(0) + 1), [play(1, 1)]);
        assert_eq!(since(&stream.batch()), [(-shown - 1).max(0)], "{shown}: by the clock as it is now");
    }
}

/// A transaction that ends in another batch is the same transaction.
#[test]
fn every_batch_knows_whose_rows_it_has() {
    let mut stream = Stream::new(BOUNDS, []);
    let origin = Sent::Origin { commit_lsn: Lsn(1), name: "elsewhere".into() };
    stream.begin_at(wire_now(-7_000));
    for message in [origin, play(1, 1)] {
        stream.send(message);
    }
    let first = stream.batch();
    stream.send(play(1, 1));
    stream.commit();
    let second = std::sync::Arc::new(stream.batch());
    assert_eq!((times(&first)[0].0, times(&second)[0].0), (0, 0));
    let rest = second.beyond(&first.checkpoint()).unwrap();
    assert_eq!(times(&rest)[0].0, 0);
}

#[test]
fn a_heartbeat_goes_at_once_and_so_does_a_server_that_waits() {
    let mut stream = Stream::new(BOUNDS, []);
    let logical =
        Sent::Logical { transactional: true, lsn: Lsn(99), prefix: "walcast".into(), content: vec![] };
    stream.transaction([logical]);
    let batch = stream.transform.take_batch(Instant::now()).expect("a heartbeat goes");
    assert_eq!((batch.checkpoint().durable_lsn, batch.urgent()), (Lsn(110), false));
    stream.transform.keepalive(Lsn(150), true);
    assert!(stream.transform.take_batch(Instant::now()).expect("the server waits").urgent());
}

const CONTROL: &str = "walcast.control";

fn ticket(transactional: bool, content: &str) -> Sent {
    Sent::Logical { transactional, lsn: Lsn(99), prefix: CONTROL.into(), content: content.into() }
}

/// What a control message asks for: the event of a batch again, joined anew or not.
fn request(batch: &Batch, sinks: &[&str], joins: &[bool]) -> Arc<Request> {
    let event = batch.events().next().unwrap();
    let mut record = Vec::new();
    Json.event(&EventRecord { event, texts: batch.texts() }, &mut record);
    let record = String::from_utf8(record).unwrap();
    let rows = joins
        .iter()
        .map(|joins| RequestRow { record: record.clone(), joins: *joins, refused: None })
        .collect();
    Arc::new(Request {
        id: id(77),
        kind: RequestKind::Replay,
        sinks: sinks.iter().map(|sink| (*sink).to_owned()).collect(),
        brings: Brought { extra: Vec::new(), rows },
    })
}

#[test]
fn rows_that_are_sent_again_come_at_the_messages_place_in_a_batch_of_their_own() {
    let mut stream = Stream::new(BOUNDS, [content(1, "before", 100)]);
    stream.transaction_at(5_000_000, [play(1, 50_000)]);
    let first = stream.batch();
    let asked = request(&first, &["kafka"], &[false, true]);
    stream.transaction([update_content(1, text("after"), 200), play(1, 20_000)]);
    stream.transaction([ticket(true, &id(77).to_string())]);
    assert_eq!(
        stream.transform.asks().map(|ticket| (ticket.id, ticket.commit_lsn)),
        Some((id(77), Lsn(300)))
    );
    assert!(
        stream.transform.due_at().is_some_and(|due| due > Instant::now()),
        "what came before waits for more"
    );
    stream.transform.answered(Some(asked));
    assert_eq!(stream.transform.asks(), None);
    let (before, again) = (stream.batch(), stream.batch());
    assert_eq!((before.rows().len(), before.control().is_none()), (2, true));
    assert_eq!(before.checkpoint().durable_lsn, Lsn(210));
    let events: Vec<&Event> = again.events().collect();
    let places: Vec<Position> = events.iter().map(|event| event.position).collect();
    assert_eq!(places, [0, 1].map(|ordinal| Position { commit_lsn: Lsn(300), ordinal }));
    let titles: Vec<&str> =
        events.iter().map(|event| event.content.as_ref().unwrap().title.as_deref().unwrap()).collect();
    assert_eq!(titles, ["before", "after"]);
    assert_eq!(
        events.iter().map(|event| event.commit_ts).collect::<Vec<_>>(),
        [first.rows()[0].commit_ts(); 2]
    );
    assert_eq!(again.checkpoint().durable_lsn, Lsn(310));
    let origin = again.origin(events[1].position).unwrap();
    assert_eq!((origin.request, origin.first), (id(77), first.rows()[0].position()));
    // for others there is only the checkpoint
    let again = Arc::new(again);
    assert_eq!(["content", "kafka", "redis"].map(|sink| again.for_sink(sink).rows().len()), [2, 2, 0]);
    assert_eq!(again.for_sink("redis").checkpoint(), again.checkpoint());
    // the stream goes on as it was
    stream.transaction([play(1, 10_000)]);
    let after = stream.batch();
    assert_eq!((after.rows().len(), after.control().is_none()), (1, true));
}

#[test]
fn a_message_that_is_nobodys_changes_nothing() {
    let mut stream = Stream::new(BOUNDS, [content(1, "before", 100)]);
    stream.transaction([play(1, 1)]);
    stream.send(ticket(false, &id(77).to_string()));
    assert_eq!(stream.transform.asks(), None, "outside of a transaction");
    stream.transaction([ticket(true, "nonsense")]);
    assert_eq!(stream.transform.asks(), None, "it names nothing");
    stream.transaction([play(1, 1), ticket(true, &id(77).to_string()), play(1, 1)]);
    stream.transform.answered(None);
    stream.transaction([play(1, 1)]);
    let batch = stream.batch();
    assert_eq!((batch.rows().len(), batch.control().is_none()), (4, true), "not even a batch is cut");
    assert_eq!(batch.checkpoint().durable_lsn, Lsn(410));
}

#[test]
fn a_request_among_other_changes_brings_nothing_and_is_told() {
    for (before, after) in [(1, 0), (0, 1)] {
        let mut stream = Stream::new(BOUNDS, []);
        stream.transaction([play(1, 1)]);
        let asked = request(&stream.batch(), &["all"], &[true]);
        let plays = |count| std::iter::repeat_with(|| play(1, 1)).take(count);
        stream.transaction(plays(before).chain([ticket(true, &id(77).to_string())]).chain(plays(after)));
        if before > 0 {
            // rows that have gone out already count too
            assert_eq!(stream.batch().rows().len(), 1);
        }
        stream.transform.answered(Some(asked));
        let mut batches: Vec<Batch> = std::iter::from_fn(|| stream.transform.take_rest()).collect();
        let told = batches.pop().unwrap();
        assert_eq!((told.rows().len(), told.control().map(|control| control.refused)), (0, Some(true)));
        assert_eq!(told.checkpoint().durable_lsn, Lsn(210));
        assert_eq!(batches.iter().map(|batch| batch.rows().len()).sum::<usize>(), after);
    }
}

#[test]
fn a_row_that_is_against_the_rules_still_is_the_same_dead_letter_again() {
    let mut stream = Stream::new(BOUNDS, []);
    stream.transaction([play(1, 1)]);
    let first = stream.batch();
    let asked = request(&first, &["all"], &[true]);
    let mut asked = Arc::into_inner(asked).unwrap();
    asked.brings.rows[0].record =
        asked.brings.rows[0].record.replace("\"duration_ms\":1,", "\"duration_ms\":-1,");
    stream.transaction([ticket(true, &id(77).to_string())]);
    stream.transform.answered(Some(Arc::new(asked)));
    let batch = stream.batch();
    let Row::DeadLetter(letter) = &batch.rows()[0] else { panic!("{:?}", batch.rows()) };
    assert_eq!(letter.reason, "negative_duration");
    assert_eq!(batch.origin(letter.position).unwrap().first, first.rows()[0].position());
}
