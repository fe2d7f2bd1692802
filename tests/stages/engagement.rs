//! Inserts into `engagement_events` as a server sends them, and their whole way through the decoder.

use uuid::Uuid;
use walcast::lsn::{Lsn, Position};
use walcast::pgoutput::{DecodeError, Message, Relation, Relations, Timestamp, Transaction, Tuple};

use super::encode::{Cell, EVENT_COLUMNS, Sent, relation};

const RELATION_ID: u32 = 16400;
const CONTENTS: u64 = 1000;

/// The content rows that the events refer to.
pub fn content_ids() -> impl Iterator<Item = Uuid> {
    (0..CONTENTS).map(content_id)
}

fn content_id(number: u64) -> Uuid {
    Uuid::from_u64_pair(0x8a6e_0804_2bd0_4672, number)
}

/// The payloads of one transaction: Begin, Relation, so many inserts, Commit. An insert has about 250 bytes, 130 of
/// them jsonb.
pub fn transaction(inserts: i64) -> Vec<Vec<u8>> {
    transactions(1, inserts)
}

/// The payloads of so many transactions of so many inserts, the Relation in the first, as a server sends it.
pub fn transactions(count: i64, inserts: i64) -> Vec<Vec<u8>> {
    let transaction = |number: i64| {
        let (commit_lsn, end_lsn) = (Lsn(200 * number as u64 + 100), Lsn(200 * number as u64 + 200));
        let begin = Sent::Begin { final_lsn: commit_lsn, commit_ts: 0, xid: 1 + number as u32 };
        let relation =
            (number == 0).then(|| Sent::Relation(relation(RELATION_ID, "engagement_events", &EVENT_COLUMNS)));
        let ids = number * inserts + 1..=(number + 1) * inserts;
        let inserts = ids.map(|id| Sent::Insert { relation_id: RELATION_ID, new: row(id) });
        let commit = Sent::Commit { commit_lsn, end_lsn, commit_ts: 0 };
        [begin].into_iter().chain(relation).chain(inserts).chain([commit])
    };
    (0..count).flat_map(transaction).map(|sent| sent.encode()).collect()
}

/// The decoder's state in a session, used the way the service uses it.
#[derive(Default)]
pub struct Decoder {
    transaction: Transaction,
    relations: Relations,
}

/// A row with all its columns.
#[derive(Debug, Default, PartialEq)]
pub struct Event<'a> {
    pub id: Option<i64>,
    pub content_id: Option<Uuid>,
    pub user_id: Option<Uuid>,
    pub event_type: Option<&'a str>,
    pub event_ts: Option<Timestamp>,
    pub duration_ms: Option<i32>,
    pub device: Option<&'a str>,
    pub raw_payload: Option<&'a str>,
}

impl Decoder {
    /// Decodes one payload. `Some` when it is an insert.
    #[inline]
    pub fn decode<'a>(&mut self, payload: &'a [u8]) -> Result<Option<(Position, Event<'a>)>, DecodeError> {
        let message = Message::parse(payload)?;
        let position = self.transaction.advance(&message)?;
        match (message, position) {
            (Message::Insert { relation_id, new }, Some(position)) => {
                Ok(Some((position, event(self.relations.get(relation_id)?, &new)?)))
            }
            (Message::Relation(relation), _) => {
                self.relations.insert(relation);
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

#[inline]
fn event<'a>(relation: &Relation, row: &Tuple<'a>) -> Result<Event<'a>, DecodeError> {
    let mut event = Event::default();
    for (place, cell) in relation.values(row)?.enumerate() {
        let (column, value) = cell?;
        match place {
            0 => event.id = value.int8(column)?,
            1 => event.content_id = value.uuid(column)?,
            2 => event.user_id = value.uuid(column)?,
            3 => event.event_type = value.text(column)?,
            4 => event.event_ts = value.timestamptz(column)?,
            5 => event.duration_ms = value.int4(column)?,
            6 => event.device = value.text(column)?,
            _ => event.raw_payload = value.json(column)?,
        }
    }
    Ok(event)
}

fn row(id: i64) -> Vec<Cell> {
    let content_id = content_id(id as u64 % CONTENTS);
    let user_id = Uuid::from_u64_pair(0xb1a7_51e5_7a11_4c3d, id as u64 * 7919);
    let (event_type, device) =
        [("play", "ios"), ("pause", "android"), ("finish", "web"), ("click", "tv")][id as usize % 4];
    let duration_ms = (id % 60_000) as i32;
    let payload = format!(
        r#"{{"session": "{:016x}", "position_ms": {}, "quality": "auto", "referrer": "newsletter", "experiment": ["a", "b"], "visible": true}}"#,
        id * 31,
        id % 3_600_000
    );
    let micros = 802_000_000_000_000 + id * 1_000;
    let same = |text: &str| Cell::Binary(text.as_bytes().to_vec());
    vec![
        Cell::Binary(id.to_be_bytes().into()),
        Cell::Binary(content_id.as_bytes().to_vec()),
        Cell::Binary(user_id.as_bytes().to_vec()),
        same(event_type),
        Cell::Binary(micros.to_be_bytes().into()),
        Cell::Binary(duration_ms.to_be_bytes().into()),
        same(device),
        Cell::Binary([&[1], payload.as_bytes()].concat()),
    ]
}
