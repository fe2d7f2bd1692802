//! Where the pipeline and the sinks' drivers write how they are; `/api/status`, `/readyz` and `/metrics` read it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::error::{Class, Error};
use crate::lsn::{Lsn, Mark, Position};
use crate::telemetry::delivery::Delivery;
use crate::telemetry::metrics::{self as names, SinkCounters};
use crate::telemetry::problem::problems;
use crate::telemetry::status::{SinkLine, SinkState, SlotStatus, SourceStatus, State, Status};

/// The pipeline's loop turns at least once a second while it streams; later than this it hangs.
const TICK_AGE_MAX: Duration = Duration::from_secs(30);
/// How many transactions of one sink may wait to be measured; more are left out.
const WAITING_MAX: usize = 65_536;
/// How many heartbeats of one sink may wait to be timed; more are left out.
const HEARTBEATS_MAX: usize = 64;

/// Where the running parts write how they are. Clones are the same board. No call waits for anything.
#[derive(Clone)]
pub struct Board(Arc<Shared>);

struct Shared {
    began: Instant,
    ticked_millis: AtomicU64,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    state: State,
    since: Timestamp,
    last_error: Option<String>,
    received: Lsn,
    confirmed: Lsn,
    slot: Option<(SlotStatus, Instant)>,
    sinks: Vec<SinkFacts>,
}

struct SinkFacts {
    name: &'static str,
    held: Mark,
    state: SinkState,
    last_error: Option<String>,
    queue_bytes: u64,
    backpressure: bool,
    rows_total: u64,
    /// When the oldest transaction committed that it was given and does not hold; microseconds since 1970.
    oldest_commit_ts: Option<i64>,
    /// What it was given amounts to.
    given: Lsn,
    heartbeat: Option<Held>,
    trouble: Option<String>,
    delivery: Arc<Delivery>,
}

/// A heartbeat whose place a sink holds.
#[derive(Clone, Copy)]
struct Held {
    commit_ts: i64,
    took_seconds: f64,
}

impl Default for Board {
    fn default() -> Self {
        Board::new()
    }
}

impl Board {
    /// A board that says "starting".
    pub fn new() -> Self {
        Board(Arc::new(Shared {
            began: Instant::now(),
            ticked_millis: AtomicU64::new(0),
            facts: Mutex::new(Facts { since: Timestamp::now(), ..Facts::default() }),
        }))
    }

    /// The pipeline's loop turns.
    pub fn tick(&self) {
        self.0.ticked_millis.store(self.0.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// The stream is open, or is not any more.
    pub fn streaming(&self, streaming: bool) {
        self.tick();
        let mut facts = self.facts();
        if streaming {
            facts.last_error = None;
            facts.enter(State::Streaming);
        } else {
            facts.enter(State::Starting);
        }
    }

    /// The stream broke, or could not be opened; it is tried again.
    pub fn failed(&self, error: &Error) {
        let mut facts = self.facts();
        facts.last_error = Some(said(error));
        facts.enter(State::Retrying);
    }

    /// No more is read; the sinks finish.
    pub fn draining(&self) {
        self.facts().enter(State::Draining);
    }

    /// How far the stream has come, what was confirmed, and what waits for each sink.
    pub fn source(
        &self,
        received: Lsn,
        confirmed: Lsn,
        queues: impl IntoIterator<Item = (&'static str, usize)>,
    ) {
        let mut facts = self.facts();
        facts.received = received;
        facts.confirmed = confirmed;
        for (name, bytes) in queues {
            if let Some(sink) = facts.sink(name) {
                sink.queue_bytes = bytes as u64;
            }
        }
    }

    /// Which sink's full queue stops the reading, if one does.
    pub fn backpressure(&self, sink: Option<&'static str>) {
        for line in &mut self.facts().sinks {
            line.backpressure = Some(line.name) == sink;
        }
    }

    /// What PostgreSQL says of the slot.
    pub fn slot(&self, slot: SlotStatus) {
        self.facts().slot = Some((slot, Instant::now()));
    }

    /// A sink that was recovered and stands at `held`. For one that was there before, counting goes on.
    pub fn sink(&self, name: &'static str, held: Mark) -> SinkStatus {
        let mut facts = self.facts();
        let delivery = facts.sink(name).map(|sink| Arc::clone(&sink.delivery)).unwrap_or_default();
        let sink = SinkFacts {
            name,
            held,
            state: SinkState::Ok,
            last_error: None,
            queue_bytes: 0,
            backpressure: false,
            rows_total: facts.sink(name).map_or(0, |sink| sink.rows_total),
            oldest_commit_ts: None,
            given: held.held,
            heartbeat: facts.sink(name).and_then(|sink| sink.heartbeat),
            trouble: None,
            delivery: Arc::clone(&delivery),
        };
        match facts.sink(name) {
            Some(line) => *line = sink,
            None => facts.sinks.push(sink),
        }
        drop(facts);
        SinkStatus {
            board: self.clone(),
            name,
            counters: SinkCounters::new(name),
            delivery,
            in_hand_commit_ts: None,
            writing_since: None,
            given_at: None,
            waiting: VecDeque::new(),
            heartbeats: VecDeque::new(),
        }
    }

    /// What each sink's driver has counted, in the order of the status.
    pub fn deliveries(&self) -> Vec<Arc<Delivery>> {
        self.facts().sinks.iter().map(|sink| Arc::clone(&sink.delivery)).collect()
    }

    /// Whether the process does its work, or waits for others in good order. `false` = restart it.
    pub fn is_live(&self) -> bool {
        let ticked = Duration::from_millis(self.0.ticked_millis.load(Ordering::Relaxed));
        let late = self.0.began.elapsed().saturating_sub(ticked) > TICK_AGE_MAX;
        !(late && self.facts().state == State::Streaming)
    }

    /// All of it, as of now.
    pub fn status(&self) -> Status {
        let facts = self.facts();
        let now = Instant::now();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: facts.state,
            since: facts.since,
            source: SourceStatus {
                received_lsn: facts.received,
                events_total: names::engagements_received(),
                heartbeat_age_seconds: names::heartbeat_age().map(|age| age.as_secs_f64()),
                last_error: facts.last_error.clone(),
                slot: facts.slot.as_ref().map(|(slot, taken)| SlotStatus {
                    age_seconds: (now - *taken).as_secs_f64(),
                    ..slot.clone()
                }),
            },
            confirmed_lsn: facts.confirmed,
            sinks: facts.sinks.iter().map(|sink| sink.line(facts.received)).collect(),
            problems: Vec::new(),
            problem: None,
        };
        status.problems = problems(&status);
        status.problem = status.problems.first().cloned();
        status
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    fn enter(&mut self, state: State) {
        if self.state != state {
            self.state = state;
            self.since = Timestamp::now();
        }
    }

    fn sink(&mut self, name: &str) -> Option<&mut SinkFacts> {
        self.sinks.iter_mut().find(|sink| sink.name == name)
    }
}

/// Where one sink's driver writes how the sink is.
pub struct SinkStatus {
    board: Board,
    name: &'static str,
    counters: SinkCounters,
    delivery: Arc<Delivery>,
    /// When the first row committed that is being written.
    in_hand_commit_ts: Option<i64>,
    /// When the write began that is under way.
    writing_since: Option<Instant>,
    /// When it was given what is being written, also across retries.
    given_at: Option<Instant>,
    waiting: VecDeque<Waiting>,
    /// Heartbeats whose place it does not hold yet: the end of their transactions, and when those committed.
    heartbeats: VecDeque<(Lsn, i64)>,
}

/// A transaction that a sink has and does not hold durably.
#[derive(Clone, Copy)]
struct Waiting {
    last: Position,
    commit_ts: i64,
    given_at: Instant,
}

impl SinkStatus {
    /// It promises to hold rows within this time of their commit, instead of the usual five seconds.
    #[must_use]
    pub fn promising(self, promise: Duration) -> Self {
        self.delivery.promise(promise);
        self
    }

    /// It is given batches up to `given` whose first rows came at these moments. Given again after an error they count
    /// once.
    pub fn begins(&mut self, given: Lsn, received_at: impl IntoIterator<Item = Instant>) {
        if self.given_at.is_none() {
            let now = Instant::now();
            self.given_at = Some(now);
            for received in received_at {
                self.counters.given(now.saturating_duration_since(received));
            }
        }
        self.update(|sink| sink.given = sink.given.max(given));
    }

    /// Among what it was given is a heartbeat.
    pub fn awaits(&mut self, end_lsn: Lsn, commit_ts: i64) {
        let known = self.heartbeats.back().is_some_and(|(last, _)| *last >= end_lsn);
        if !known && self.heartbeats.len() < HEARTBEATS_MAX {
            self.heartbeats.push_back((end_lsn, commit_ts));
        }
    }

    /// What is wrong with its target although it takes rows.
    pub fn trouble(&self, trouble: Option<String>) {
        self.update(|sink| sink.trouble = trouble);
    }

    /// It is to write a row that committed at `commit_ts`, microseconds since 1970.
    pub fn takes(&mut self, commit_ts: i64) {
        self.in_hand_commit_ts.get_or_insert(commit_ts);
        self.writing_since = Some(Instant::now());
        self.update(|_| {});
    }

    /// It took these rows: each one's position and commit time, in stream order.
    pub fn wrote(&mut self, rows: impl IntoIterator<Item = (Position, i64)>) {
        let mut count = 0;
        for (position, commit_ts) in rows {
            count += 1;
            self.wait_for(position, commit_ts);
        }
        self.in_hand_commit_ts = None;
        self.given_at = None;
        self.counters.wrote(count);
        if let Some(since) = self.writing_since.take() {
            self.delivery.wrote(count, since.elapsed());
        }
        self.update(|sink| {
            sink.rows_total += count;
            sink.recover();
        });
    }

    /// It holds everything up to this mark durably.
    pub fn held(&mut self, mark: Mark) {
        while let Some(held) = self.waiting.front().filter(|waiting| mark.holds(waiting.last)) {
            let seconds = names::seconds_since(held.commit_ts);
            self.counters.durable(seconds, held.given_at.elapsed());
            self.delivery.latencies.record(seconds);
            self.waiting.pop_front();
        }
        let mut heartbeat = None;
        while let Some((_, commit_ts)) = self.heartbeats.front().filter(|(end_lsn, _)| mark.held >= *end_lsn)
        {
            heartbeat = Some(Held { commit_ts: *commit_ts, took_seconds: names::seconds_since(*commit_ts) });
            self.heartbeats.pop_front();
        }
        self.update(|sink| {
            sink.held = mark;
            sink.given = sink.given.max(mark.held);
            sink.heartbeat = heartbeat.or(sink.heartbeat);
            sink.recover();
        });
    }

    /// It failed.
    pub fn failed(&mut self, error: &Error) {
        self.counters.failed(error);
        let transient = error.class() == Class::Transient;
        self.delivery.failed(said(error), transient);
        self.update(|sink| {
            sink.state = if transient { SinkState::Retrying } else { SinkState::Blocked };
            sink.last_error = Some(said(error));
        });
    }

    fn wait_for(&mut self, position: Position, commit_ts: i64) {
        let given_at = self.given_at.unwrap_or_else(Instant::now);
        let room = self.waiting.len() < WAITING_MAX;
        match self.waiting.back_mut() {
            Some(waiting) if waiting.last.commit_lsn == position.commit_lsn => waiting.last = position,
            _ if room => self.waiting.push_back(Waiting { last: position, commit_ts, given_at }),
            _ => {}
        }
    }

    fn update(&self, change: impl FnOnce(&mut SinkFacts)) {
        if let Some(sink) = self.board.facts().sink(self.name) {
            change(sink);
            sink.oldest_commit_ts =
                self.waiting.front().map(|waiting| waiting.commit_ts).or(self.in_hand_commit_ts);
        }
    }
}

impl SinkFacts {
    fn recover(&mut self) {
        self.state = SinkState::Ok;
        self.last_error = None;
    }

    fn line(&self, received: Lsn) -> SinkLine {
        SinkLine {
            name: self.name.to_owned(),
            state: self.state,
            held_lsn: self.held.held,
            position: self.held.position,
            lag_bytes: received.bytes_since(self.held.held),
            queue_lag_bytes: received.bytes_since(self.given),
            delivery_lag_bytes: self.given.bytes_since(self.held.held),
            lag_seconds: self.oldest_commit_ts.map_or(0.0, names::seconds_since),
            heartbeat_age_seconds: self.heartbeat.map(|held| names::seconds_since(held.commit_ts)),
            heartbeat_seconds: self.heartbeat.map(|held| held.took_seconds),
            queue_bytes: self.queue_bytes,
            backpressure: self.backpressure,
            rows_total: self.rows_total,
            last_error: self.last_error.clone(),
            trouble: self.trouble.clone(),
        }
    }
}

/// Without causes: those are for the log, and a server's own words may quote a row.
fn said(error: &Error) -> String {
    format!("{error}; {}", error.advice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn position(commit_lsn: u64, ordinal: u64) -> Position {
        Position { commit_lsn: Lsn(commit_lsn), ordinal }
    }

    fn mark(commit_lsn: u64, ordinal: u64, held: u64) -> Mark {
        Mark { position: Some(position(commit_lsn, ordinal)), held: Lsn(held) }
    }

    fn now_micros() -> i64 {
        Timestamp::now().as_microsecond()
    }

    fn line(board: &Board) -> SinkLine {
        board.status().sinks.swap_remove(0)
    }

    fn why(board: &Board) -> Option<String> {
        board.status().problem
    }

    #[test]
    fn a_board_is_ready_when_it_streams_and_every_sink_is_ok() {
        let board = Board::new();
        let mut kafka = board.sink("kafka", Mark::at(Lsn(10)));
        assert!(!board.status().is_ready());
        board.streaming(true);
        assert!(board.status().is_ready());
        kafka.failed(&Error::new(Kind::Unavailable, "no broker answers").hint("start one"));
        let status = board.status();
        assert!(!status.is_ready());
        assert_eq!(status.sinks.first().map(|sink| sink.state), Some(SinkState::Retrying));
        assert_eq!(
            status.problem.as_deref(),
            Some("kafka takes no rows and holds the WAL back: no broker answers; start one")
        );
        kafka.held(Mark::at(Lsn(10)));
        assert!(board.status().is_ready());
        assert_eq!(why(&board), None);
    }

    #[test]
    fn a_broken_stream_is_told_until_it_runs_again() {
        let board = Board::new();
        board.streaming(true);
        board.streaming(false);
        board.failed(&Error::new(Kind::Unavailable, "PostgreSQL cannot be reached").hint("look at it"));
        assert_eq!(board.status().state, State::Retrying);
        assert_eq!(why(&board).as_deref(), Some("not streaming: PostgreSQL cannot be reached; look at it"));
        board.streaming(true);
        assert_eq!(why(&board), None);
    }

    #[test]
    fn causes_stay_out_of_the_status() {
        let board = Board::new();
        let cause = std::io::Error::other("Key (slug)=(secret) already exists");
        board.failed(&Error::new(Kind::Setup, "PostgreSQL refused a row").because(cause));
        assert!(why(&board).is_some_and(|why| !why.contains("secret")));
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_row_that_is_not_durable() {
        let board = Board::new();
        let mut sink = board.sink("bigquery", Mark::at(Lsn(100)));
        assert_eq!(line(&board).lag_seconds, 0.0);
        sink.takes(now_micros() - 90_000_000);
        sink.wrote([
            (position(100, 0), now_micros() - 90_000_000),
            (position(200, 0), now_micros() - 40_000_000),
        ]);
        board.source(Lsn(250), Lsn(100), [("bigquery", 77)]);
        let behind = line(&board);
        assert!((89.0..95.0).contains(&behind.lag_seconds), "{}", behind.lag_seconds);
        assert_eq!((behind.lag_bytes, behind.queue_bytes, behind.rows_total), (150, 77, 2));
        assert!(why(&board).is_some_and(|why| why.starts_with("bigquery is 9")));
        sink.held(mark(100, 0, 150));
        assert!((39.0..45.0).contains(&line(&board).lag_seconds));
        sink.held(mark(200, 0, 250));
        assert_eq!((line(&board).lag_seconds, line(&board).lag_bytes), (0.0, 0));
    }

    #[test]
    fn lag_is_split_into_what_waits_here_and_what_the_sink_was_given() {
        let board = Board::new();
        let mut sink = board.sink("redis", Mark::at(Lsn(100)));
        board.source(Lsn(250), Lsn(100), []);
        assert_eq!((line(&board).queue_lag_bytes, line(&board).delivery_lag_bytes), (150, 0));
        sink.begins(Lsn(200), [Instant::now()]);
        assert_eq!((line(&board).queue_lag_bytes, line(&board).delivery_lag_bytes), (50, 100));
        sink.held(mark(200, 0, 200));
        assert_eq!((line(&board).queue_lag_bytes, line(&board).delivery_lag_bytes), (50, 0));
    }

    #[test]
    fn a_heartbeat_counts_when_its_place_is_held() {
        let board = Board::new();
        let mut sink = board.sink("bigquery", Mark::at(Lsn(100)));
        sink.awaits(Lsn(150), now_micros() - 30_000_000);
        sink.awaits(Lsn(150), now_micros()); // the same, given again after an error
        sink.awaits(Lsn(160), now_micros() - 20_000_000);
        sink.awaits(Lsn(300), now_micros() - 10_000_000);
        sink.held(Mark::at(Lsn(149)));
        assert_eq!((line(&board).heartbeat_age_seconds, line(&board).heartbeat_seconds), (None, None));
        sink.held(Mark::at(Lsn(200)));
        let (age, took) = (line(&board).heartbeat_age_seconds, line(&board).heartbeat_seconds);
        assert!(age.is_some_and(|age| (20.0..25.0).contains(&age)), "{age:?}");
        assert!(took.is_some_and(|took| (20.0..25.0).contains(&took)), "{took:?}");
        board.sink("bigquery", Mark::at(Lsn(200)));
        assert!(line(&board).heartbeat_age_seconds >= age, "a restart of the sink forgets nothing");
    }

    #[test]
    fn what_is_wrong_with_a_target_is_told_although_it_takes_rows() {
        let board = Board::new();
        board.streaming(true);
        let sink = board.sink("kafka", Mark::at(Lsn(1)));
        sink.trouble(Some("a transaction is hung; end it".into()));
        assert!(board.status().is_ready());
        assert_eq!(why(&board).as_deref(), Some("a transaction is hung; end it"));
        sink.trouble(None);
        assert_eq!(why(&board), None);
    }

    #[test]
    fn a_sink_that_cannot_write_falls_behind() {
        let board = Board::new();
        let mut sink = board.sink("redis", Mark::at(Lsn(100)));
        sink.takes(now_micros() - 5_000_000);
        sink.failed(&Error::new(Kind::Unavailable, "down"));
        sink.held(Mark::at(Lsn(100))); // it was asked, and stands where it stood
        assert!(line(&board).lag_seconds >= 5.0);
    }

    #[test]
    fn a_transaction_is_measured_when_all_rows_that_were_written_are_durable() {
        let board = Board::new();
        let mut sink = board.sink("kafka", Mark::at(Lsn(100)));
        sink.wrote((0..3).map(|ordinal| (position(100, ordinal), 0)));
        sink.wrote((3..5).map(|ordinal| (position(100, ordinal), 0)));
        assert_eq!(sink.waiting.len(), 1);
        sink.held(mark(100, 2, 100));
        assert_eq!(sink.waiting.len(), 1);
        sink.held(mark(100, 4, 150));
        assert_eq!(sink.waiting.len(), 0);
    }

    #[test]
    fn a_sink_recovered_anew_goes_on_counting() {
        let board = Board::new();
        board.sink("kafka", Mark::at(Lsn(1))).wrote([(position(1, 0), 0)]);
        let mut again = board.sink("kafka", Mark::at(Lsn(1)));
        again.wrote([(position(2, 0), 0)]);
        assert_eq!(board.status().sinks.len(), 1);
        assert_eq!(line(&board).rows_total, 2);
    }

    #[test]
    fn a_lost_slot_is_the_first_thing_to_say() {
        let board = Board::new();
        board.failed(&Error::new(Kind::Unavailable, "x"));
        board.slot(SlotStatus {
            name: "walcast".into(),
            wal_status: "lost".into(),
            invalidation_reason: Some("wal_removed".into()),
            ..SlotStatus::default()
        });
        let first = why(&board).unwrap_or_default();
        assert!(first.starts_with("the replication slot walcast is lost (wal_removed), "), "{first}");
    }

    #[test]
    fn a_slot_close_to_its_bound_is_told() {
        let board = Board::new();
        board.streaming(true);
        let slot = |safe| SlotStatus {
            name: "walcast".into(),
            wal_status: "extended".into(),
            safe_wal_bytes: safe,
            ..SlotStatus::default()
        };
        board.slot(slot(None));
        assert_eq!(why(&board), None);
        board.slot(slot(Some(100 << 20)));
        assert!(why(&board).is_some_and(|why| why.contains("100 MB")));
    }

    #[test]
    fn a_loop_that_hangs_is_not_live_and_one_that_waits_is() {
        let board = Board::new();
        board.streaming(true);
        assert!(board.is_live());
        let hung = Board(Arc::new(Shared {
            began: Instant::now().checked_sub(TICK_AGE_MAX * 2).unwrap_or_else(Instant::now),
            ticked_millis: AtomicU64::new(0),
            facts: Mutex::new(Facts { state: State::Streaming, ..Facts::default() }),
        }));
        assert!(!hung.is_live());
        hung.failed(&Error::new(Kind::Unavailable, "PostgreSQL cannot be reached"));
        assert!(hung.is_live(), "waiting for PostgreSQL is not mended by a restart");
        hung.facts().enter(State::Streaming);
        hung.tick();
        assert!(hung.is_live());
    }

    #[test]
    fn a_status_reads_back_from_its_json() -> serde_json::Result<()> {
        let board = Board::new();
        board.sink("redis", mark(7, 3, 5));
        board.slot(SlotStatus::default());
        let status = board.status();
        let json = serde_json::to_string(&status)?;
        let mut again: Status = serde_json::from_str(&json)?;
        again.since = status.since;
        assert_eq!(again, status);
        Ok(())
    }
}
