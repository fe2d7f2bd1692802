//! A history to be told to a sink: commits with events and content rows, in batches cut anywhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, ContentChange, Event, Row};
use walcast::lsn::{Checkpoint, HistoryId, Lsn, Position, Session, Timelines};
use walcast::model::content::Content;
use walcast::sink::redis::Clock;

pub const SECOND: i64 = 1_000_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;
pub const START: Lsn = Lsn(1000);

/// A clock that the test sets. It begins at the real time: the server's own clock decides what expires.
#[derive(Clone)]
pub struct Time(Arc<Mutex<i64>>);

impl Time {
    pub fn real() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
        Time(Arc::new(Mutex::new(now as i64)))
    }

    pub fn now(&self) -> i64 {
        *self.0.lock().unwrap()
    }

    pub fn pass(&self, micros: i64) {
        *self.0.lock().unwrap() += micros;
    }

    pub fn clock(&self) -> Clock {
        let time = self.clone();
        Arc::new(move || time.now())
    }
}

/// One row of the history.
#[derive(Clone)]
pub enum Told {
    /// An event; its type is kept apart, since its text lives in a batch.
    Event(Event, Option<&'static str>),
    /// A content row.
    Content(ContentChange),
}

impl Told {
    fn position(&self) -> Position {
        match self {
            Told::Event(event, _) => event.position,
            Told::Content(change) => change.position,
        }
    }
}

/// A timelines, and the content rows at its end.
pub struct Story {
    pub time: Time,
    pub rows: Vec<Told>,
    pub contents: BTreeMap<Uuid, Arc<Content>>,
    commits: Vec<(Lsn, Lsn)>,
    next_lsn: u64,
    next_ordinal: u64,
}

impl Story {
    pub fn new(time: &Time) -> Self {
        Story {
            time: time.clone(),
            rows: Vec::new(),
            contents: BTreeMap::new(),
            commits: Vec::new(),
            next_lsn: START.0 + 8,
            next_ordinal: 0,
        }
    }

    fn position(&mut self) -> Position {
        self.next_ordinal += 1;
        Position { commit_lsn: Lsn(self.next_lsn), ordinal: self.next_ordinal - 1 }
    }

    /// Ends the transaction.
    pub fn commit(&mut self) -> &mut Self {
        let lsn = self.next_lsn;
        self.commits.push((Lsn(lsn), Lsn(lsn + 40)));
        self.next_lsn = lsn + 48;
        self.next_ordinal = 0;
        self
    }

    /// A content row is inserted or updated.
    pub fn content(
        &mut self,
        n: u128,
        title: &str,
        content_type: Option<&str>,
        length: Option<i32>,
    ) -> &mut Self {
        let id = Uuid::from_u128(n);
        let content = Arc::new(Content {
            id,
            slug: Some(format!("slug-{n}")),
            title: Some(title.into()),
            content_type: content_type.map(str::to_owned),
            length_seconds: length,
            publish_ts: n.is_multiple_of(2).then_some(1_767_323_045_678_901),
        });
        self.contents.insert(id, Arc::clone(&content));
        let position = self.position();
        self.change(position, id, Some(content));
        self
    }

    /// Content rows are deleted in one act, as a truncation does it.
    pub fn delete(&mut self, ids: impl IntoIterator<Item = u128>) -> &mut Self {
        let position = self.position();
        for n in ids {
            let id = Uuid::from_u128(n);
            self.contents.remove(&id);
            self.change(position, id, None);
        }
        self
    }

    fn change(&mut self, position: Position, id: Uuid, after: Option<Arc<Content>>) {
        self.rows.push(Told::Content(ContentChange { position, commit_ts: self.time.now(), id, after }));
    }

    /// An event that happened `age` microseconds ago.
    pub fn event(
        &mut self,
        content: Option<u128>,
        event_type: Option<&'static str>,
        age: i64,
        duration_ms: Option<i64>,
    ) -> &mut Self {
        let position = self.position();
        let now = self.time.now();
        let content_id = content.map(Uuid::from_u128);
        let event = Event {
            extra: Default::default(),
            position,
            commit_ts: now,
            id: self.rows.len() as i64,
            content_id,
            user_id: None,
            event_type: None,
            event_ts: now - age,
            duration_ms,
            device: None,
            raw_payload: None,
            raw_payload_bytes: None,
            content: content_id.and_then(|id| self.contents.get(&id).cloned()),
        };
        self.rows.push(Told::Event(event, event_type));
        self
    }

    /// Some transactions of random rows: mostly now, some late, some from the future, some too late or too far ahead.
    pub fn improvise(&mut self, rng: &mut StdRng, contents: u128, commits: usize) -> &mut Self {
        const KINDS: [Option<&str>; 6] =
            [Some("play"), Some("pause"), Some("finish"), Some("click"), Some("share"), None];
        const TYPES: [Option<&str>; 4] = [Some("podcast"), Some("newsletter"), Some("video"), None];
        for _ in 0..commits {
            for _ in 0..rng.random_range(0..30) {
                let n = rng.random_range(1..=contents);
                match rng.random_range(0..100) {
                    0..4 => {
                        let title = format!("title {}", rng.random_range(0..3));
                        let content_type = TYPES[rng.random_range(0..TYPES.len())];
                        let length = rng.random_bool(0.8).then(|| rng.random_range(-1..5000));
                        self.content(n, &title, content_type, length);
                    }
                    4..6 => {
                        self.delete([n, rng.random_range(1..=contents)]);
                    }
                    _ => {
                        let age = match rng.random_range(0..20) {
                            0..13 => rng.random_range(0..5 * SECOND),
                            13 => rng.random_range(0..90 * MINUTE),
                            14 => rng.random_range(150 * MINUTE..30 * HOUR),
                            15 => rng.random_range(76 * HOUR..100 * HOUR),
                            16 => -rng.random_range(0..10 * MINUTE),
                            17 if rng.random_bool(0.2) => -rng.random_range(50 * HOUR..80_000 * HOUR),
                            17 => -rng.random_range(10 * MINUTE..47 * HOUR),
                            _ => rng.random_range(0..12 * MINUTE),
                        };
                        let content = rng.random_bool(0.95).then_some(n);
                        let duration = rng.random_bool(0.8).then(|| rng.random_range(0..200_000));
                        self.event(content, KINDS[rng.random_range(0..KINDS.len())], age, duration);
                    }
                }
            }
            self.commit();
        }
        self
    }

    /// Everything that `checkpoint` does not cover, as the driver would hand it over, in batches of `rows_max` at most.
    pub fn beyond(&self, checkpoint: Checkpoint, rows_max: usize) -> Vec<Arc<Batch>> {
        let from = checkpoint.durable_lsn.max(START);
        let mut builder = BatchBuilder::new(Checkpoint::at(from));
        let mut batches = Vec::new();
        for (lsn, end) in self.commits.iter().filter(|(lsn, _)| *lsn >= from) {
            let rows: Vec<&Told> = self.rows.iter().filter(|row| row.position().commit_lsn == *lsn).collect();
            for group in rows.chunk_by(|a, b| a.position() == b.position()) {
                group.iter().for_each(|told| push(&mut builder, told));
                if builder.len() >= rows_max {
                    batches.push(Arc::new(builder.finish(false)));
                }
            }
            builder.hold(*end);
        }
        batches.push(Arc::new(builder.finish(false)));
        batches.iter().filter_map(|batch| batch.beyond(&checkpoint)).collect()
    }

    /// All of it, for a sink that has nothing.
    pub fn all(&self) -> Vec<Arc<Batch>> {
        self.beyond(Checkpoint::at(START), 100)
    }

    /// What covers all of it.
    pub fn end(&self) -> Checkpoint {
        self.all().last().map_or(Checkpoint::at(START), |batch| batch.checkpoint())
    }
}

fn push(builder: &mut BatchBuilder, told: &Told) {
    let row = match told {
        Told::Event(event, event_type) => {
            let event_type = event_type.map(|text| builder.intern(text));
            Row::Event(Event { event_type, ..event.clone() })
        }
        Told::Content(change) => Row::Content(change.clone()),
    };
    builder.push(row);
}

/// The instance with this fencing token.
pub fn session(fencing_token: i64) -> Session {
    let history_id =
        HistoryId { uuid: Uuid::from_u128(7), system_id: "7".into(), timeline: 1, slot: "walcast".into() };
    Session { history_id, fencing_token, timelines: Timelines::default(), start: START, settled_timeline: 1 }
}

/// Random numbers from the seed in `WALCAST_SEED`, or from one that is printed.
pub fn seeded() -> StdRng {
    let seed = std::env::var("WALCAST_SEED").ok().map(|text| text.parse().unwrap());
    let seed = seed.unwrap_or_else(rand::random::<u64>);
    println!("WALCAST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}
