//! What was committed: transactions of every kind of change, the rows that sinks are to have of them, and the
//! messages that a walsender makes of them.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use uuid::Uuid;
use walcast::batch::Row;
use walcast::lsn::{Lsn, Position};
use walcast::model::content::Content;
use walcast::pgoutput::Relation;
use walcast::transform::content_cache::ContentCache;

use crate::stages::encode::{CONTENT_COLUMNS, Cell, EVENT_COLUMNS, Sent, relation};

const CONTENT: u32 = 1;
const EVENTS: u32 = 2;
const OTHER: u32 = 3;
/// How many content rows there are.
const CONTENTS: u128 = 3;

/// The history of a server.
#[derive(Clone)]
pub struct Wal {
    pub commits: Vec<Commit>,
    /// Where the WAL of the idle server ends: beyond the last commit lies what is nothing to us.
    pub end: Lsn,
}

/// A committed transaction.
#[derive(Clone)]
pub struct Commit {
    pub lsn: Lsn,
    pub end: Lsn,
    changes: Vec<Change>,
    beats: bool,
}

#[derive(Clone, Copy)]
enum Change {
    Event {
        id: u32,
        content: u128,
        payload: usize,
    },
    Content {
        id: u128,
        length: i32,
    },
    /// An event against a rule.
    Bad {
        id: u32,
    },
    /// Of a table that is nothing to us.
    Other,
}

/// A row as a target has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    pub position: Position,
    id: u128,
    /// Tells the version of the content that an event was joined with.
    length: Option<i32>,
}

impl Seen {
    pub fn of(row: &Row) -> Seen {
        let (id, length) = match row {
            Row::Event(event) => {
                let content = event.content.as_ref();
                (event.id as u128, content.and_then(|content| content.length_seconds))
            }
            Row::Content(change) => {
                (change.id.as_u128(), change.after.as_ref().and_then(|content| content.length_seconds))
            }
            Row::DeadLetter(_) | Row::EventChange(_) => (0, None),
        };
        Seen { position: row.position(), id, length }
    }
}

impl Wal {
    /// A history from `start` on. `wide`: with rows of some kilobytes.
    pub fn random(rng: &mut StdRng, start: Lsn, wide: bool) -> Wal {
        let mut wal = Wal { commits: Vec::new(), end: start };
        for _ in 0..rng.random_range(1..40) {
            wal.commit(rng, wide, 0);
        }
        wal.end.0 += 2 * rng.random_range(0..20);
        wal
    }

    /// The history of a server that was restored from a backup of when it had `kept` transactions, and went on
    /// differently. No commit of it lies where one of ours does.
    pub fn restored(&self, rng: &mut StdRng, kept: usize) -> Wal {
        let commits = self.commits[..kept].to_vec();
        let start = commits.last().map_or(Lsn(1000), |last| last.end);
        let mut wal = Wal { commits, end: start };
        while wal.end <= self.end {
            wal.commit(rng, false, 1);
        }
        wal.end.0 += 1;
        wal
    }

    fn commit(&mut self, rng: &mut StdRng, wide: bool, parity: u64) {
        let lsn = self.end.0.next_multiple_of(2) + 2 * rng.random_range(0..20) + parity;
        self.end = Lsn(lsn + 2 * rng.random_range(1..10) - parity);
        let changes = (0..rng.random_range(0..25)).map(|_| change(rng, wide)).collect();
        self.commits.push(Commit { lsn: Lsn(lsn), end: self.end, changes, beats: rng.random_bool(0.1) });
    }

    /// The rows that every sink is to have in the end.
    pub fn rows(&self) -> Vec<Seen> {
        let mut lengths = [None; CONTENTS as usize];
        let mut rows = Vec::new();
        for commit in &self.commits {
            for (ordinal, change) in commit.changes.iter().enumerate() {
                let position = Position { commit_lsn: commit.lsn, ordinal: ordinal as u64 };
                let (id, length) = match *change {
                    Change::Event { id, content, .. } => (u128::from(id), lengths[content as usize]),
                    Change::Content { id, length } => {
                        lengths[id as usize] = Some(length);
                        (id, Some(length))
                    }
                    Change::Bad { .. } => (0, None),
                    Change::Other => continue,
                };
                rows.push(Seen { position, id, length });
            }
        }
        rows
    }

    /// The content rows as of this place.
    pub fn contents(&self, at: Lsn) -> ContentCache {
        let mut cache = ContentCache::default();
        for change in self.commits.iter().filter(|commit| commit.lsn < at).flat_map(|commit| &commit.changes)
        {
            if let Change::Content { id, length } = *change {
                cache.put(content(id, length));
            }
        }
        cache
    }

    /// How many transactions begin below this place.
    pub fn below(&self, at: Lsn) -> usize {
        self.commits.partition_point(|commit| commit.lsn < at)
    }
}

impl Commit {
    /// The messages of the transaction; the first of a session brings the relations.
    pub fn messages(&self, is_first: bool) -> Vec<Sent> {
        let mut messages = vec![Sent::Begin { final_lsn: self.lsn, commit_ts: 0, xid: 1 }];
        if is_first {
            messages.extend(relations().map(Sent::Relation));
        }
        if self.beats {
            let prefix = walcast::source::heartbeat::PREFIX.to_owned();
            messages.push(Sent::Logical { transactional: true, lsn: self.lsn, prefix, content: vec![] });
        }
        messages.extend(self.changes.iter().map(|change| match *change {
            Change::Event { id, content, payload } => event(id, Some(content), 1000, payload),
            Change::Bad { id } => event(id, None, -1, 0),
            Change::Content { id, length } => insert(CONTENT, content_row(id, length)),
            Change::Other => insert(OTHER, vec![binary(&1_i64.to_be_bytes())]),
        }));
        messages.push(Sent::Commit { commit_lsn: self.lsn, end_lsn: self.end, commit_ts: 0 });
        messages
    }
}

fn change(rng: &mut StdRng, wide: bool) -> Change {
    let payload = if wide && rng.random_bool(0.5) { rng.random_range(0..3000) } else { 10 };
    match rng.random_range(0..10) {
        0 => Change::Content { id: rng.random_range(0..CONTENTS), length: (rng.next_u32() >> 2) as i32 },
        1 => Change::Bad { id: rng.next_u32() },
        2 => Change::Other,
        _ => Change::Event { id: rng.next_u32(), content: rng.random_range(0..CONTENTS), payload },
    }
}

fn content(id: u128, length: i32) -> Content {
    Content {
        id: Uuid::from_u128(id),
        slug: Some("s".into()),
        title: Some("t".into()),
        content_type: None,
        length_seconds: Some(length),
        publish_ts: None,
    }
}

fn content_row(id: u128, length: i32) -> Vec<Cell> {
    let id = binary(Uuid::from_u128(id).as_bytes());
    vec![id, binary(b"s"), binary(b"t"), Cell::Null, binary(&length.to_be_bytes()), Cell::Null]
}

fn event(id: u32, content: Option<u128>, duration_ms: i32, payload: usize) -> Sent {
    let content = content.map_or(Cell::Null, |id| binary(Uuid::from_u128(id).as_bytes()));
    let payload = [b"\x01\"", "x".repeat(payload).as_bytes(), b"\""].concat();
    insert(
        EVENTS,
        vec![
            binary(&i64::from(id).to_be_bytes()),
            content,
            Cell::Null,
            binary(b"play"),
            binary(&802_000_000_000_000_i64.to_be_bytes()),
            binary(&duration_ms.to_be_bytes()),
            Cell::Null,
            Cell::Binary(payload),
        ],
    )
}

fn insert(relation_id: u32, new: Vec<Cell>) -> Sent {
    Sent::Insert { relation_id, new }
}

fn binary(bytes: &[u8]) -> Cell {
    Cell::Binary(bytes.to_vec())
}

fn relations() -> [Relation; 3] {
    [
        relation(CONTENT, "content", &CONTENT_COLUMNS),
        relation(EVENTS, "engagement_events", &EVENT_COLUMNS),
        relation(OTHER, "orders", &[("id", 20)]),
    ]
}
