//! Where the pipeline and the sinks' drivers write how they are; `/api/status`, `/readyz` and `/metrics` read it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::error::{Code, Error};
use crate::lsn::{Checkpoint, Lsn};
use crate::state::dead_letters::LetterCount;
use crate::telemetry::delivery::Delivery;
use crate::telemetry::metrics as names;
use crate::telemetry::problem::problems;
use crate::telemetry::queue_gauge::QueueGauge;
use crate::telemetry::sink_status::{SinkFacts, SinkStatus};
use crate::telemetry::status::{BackfillLine, LaneSlot, LaneState, SlotStatus, SourceStatus, State, Status};

/// The pipeline's loop turns at least once a second while it streams; later than this it hangs.
const TICK_AGE_MAX: Duration = Duration::from_secs(30);

/// Where the running parts write how they are. Clones are the same registry. No call waits for anything.
#[derive(Clone)]
pub struct StatusRegistry(Arc<Shared>);

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
    last_error_code: Option<Code>,
    received: Lsn,
    confirmed: Lsn,
    slot: Option<(SlotStatus, Instant)>,
    dead_letters: Vec<LetterCount>,
    backfill: Option<BackfillLine>,
    sinks: Vec<Arc<SinkFacts>>,
}

impl Default for StatusRegistry {
    fn default() -> Self {
        StatusRegistry::new()
    }
}

impl StatusRegistry {
    /// A registry that says "starting".
    pub fn new() -> Self {
        StatusRegistry(Arc::new(Shared {
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
            facts.last_error_code = None;
            facts.enter(State::Streaming);
        } else {
            facts.enter(State::Starting);
        }
    }

    /// Another instance reads the slot: this one waits for its turn.
    pub fn waiting(&self) {
        self.facts().enter(State::Waiting);
    }

    /// The stream broke, or could not be opened; it is tried again.
    pub fn failed(&self, error: &Error) {
        let mut facts = self.facts();
        facts.last_error = Some(error.told());
        facts.last_error_code = Some(error.code());
        facts.enter(State::Retrying);
    }

    /// No more is read; the sinks finish.
    pub fn draining(&self) {
        self.facts().enter(State::Draining);
    }

    /// How far the stream has come, and what was confirmed.
    pub fn source(&self, received: Lsn, confirmed: Lsn) {
        let mut facts = self.facts();
        facts.received = received;
        facts.confirmed = confirmed;
    }

    /// A sink takes from this queue now.
    pub fn queue(&self, sink: &str, queue: QueueGauge) {
        if let Some(sink) = self.facts().sink(sink) {
            sink.standing().queue = Some(queue);
        }
    }

    /// Engagement events received since this process started.
    pub fn events_total(&self) -> u64 {
        names::engagements_received()
    }

    /// Bytes that wait for the one of these sinks that has most to do; `None` while one of them is not fed with the others.
    pub fn waiting_bytes(&self, sinks: &[String]) -> Option<u64> {
        let facts = self.facts();
        let asked = facts.sinks.iter().filter(|sink| sinks.iter().any(|name| name == sink.name));
        asked.map(|sink| sink.waiting_bytes()).try_fold(0, |most, bytes| Some(bytes?.max(most)))
    }

    /// Which sink's full queue stops the reading, if one does.
    pub fn backpressure(&self, sink: Option<&'static str>) {
        for line in &self.facts().sinks {
            line.standing().backpressure = Some(line.name) == sink;
        }
    }

    /// A sink has a lane, which does this by this slot.
    pub fn lane(&self, sink: &str, state: LaneState, slot: &str) {
        if let Some(sink) = self.facts().sink(sink) {
            sink.lane(state, slot);
        }
    }

    /// A sink's lane has been received up to there, and this waits for the sink.
    pub fn lane_received(&self, sink: &str, received: Lsn, queue: QueueGauge) {
        let facts = self.facts();
        if let Some(sink) = facts.sink(sink) {
            sink.lane_received(received, facts.received.bytes_since(received), queue);
        }
    }

    /// A sink's lane does not run, or can never again (`lost`).
    pub fn lane_failed(&self, sink: &str, error: &Error, lost: bool) {
        if let Some(sink) = self.facts().sink(sink) {
            sink.lane_failed(error, lost);
        }
    }

    /// The slots of the lanes that there are.
    pub fn lane_slots(&self) -> Vec<String> {
        self.facts().sinks.iter().filter_map(|sink| sink.lane_slot()).collect()
    }

    /// What PostgreSQL says of a lane's slot. Whether what its sink lacks is gone.
    pub fn lane_kept(&self, kept: &LaneSlot) -> bool {
        self.facts().sinks.iter().any(|sink| sink.lane_kept(kept))
    }

    /// A sink is fed with the others again.
    pub fn no_lane(&self, sink: &str) {
        if let Some(sink) = self.facts().sink(sink) {
            sink.no_lane();
        }
    }

    /// What PostgreSQL says of the slot.
    pub fn slot(&self, slot: SlotStatus) {
        self.facts().slot = Some((slot, Instant::now()));
    }

    /// The dead letters that are not done with. A group that was there before and is not any more has none.
    pub fn dead_letters(&self, counts: Vec<LetterCount>) {
        let mut facts = self.facts();
        let before = std::mem::take(&mut facts.dead_letters);
        let same =
            |one: &LetterCount, other: &LetterCount| (&one.sink, &one.reason) == (&other.sink, &other.reason);
        let gone = before.into_iter().filter(|before| counts.iter().all(|now| !same(before, now)));
        let none: Vec<LetterCount> = gone.map(|gone| LetterCount { open: 0, replaying: 0, ..gone }).collect();
        facts.dead_letters = counts.into_iter().chain(none).collect();
    }

    /// How far the open backfill is, if one is.
    pub fn backfill(&self, backfill: Option<BackfillLine>) {
        self.facts().backfill = backfill;
    }

    /// A sink that was recovered and stands at `durable`. For one that was there before, counting goes on.
    pub fn sink(&self, name: &'static str, durable: Checkpoint) -> SinkStatus {
        let mut facts = self.facts();
        let sink = facts.sink(name).map(Arc::clone).unwrap_or_else(|| {
            let new = Arc::new(SinkFacts::new(name));
            facts.sinks.push(Arc::clone(&new));
            new
        });
        SinkStatus::new(sink, durable)
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
                ignored_control_messages_total: names::ignored_tickets(),
                heartbeat_age_seconds: names::heartbeat_age().map(|age| age.as_secs_f64()),
                last_error: facts.last_error.clone(),
                last_error_code: facts.last_error_code,
                slot: facts.slot.as_ref().map(|(slot, taken)| SlotStatus {
                    age_seconds: (now - *taken).as_secs_f64(),
                    ..slot.clone()
                }),
            },
            confirmed_lsn: facts.confirmed,
            sinks: facts.sinks.iter().map(|sink| sink.line(facts.received)).collect(),
            dead_letters: facts.dead_letters.clone(),
            backfill: facts.backfill.clone(),
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

    fn sink(&self, name: &str) -> Option<&Arc<SinkFacts>> {
        self.sinks.iter().find(|sink| sink.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Position;
    use crate::telemetry::status::SinkState;

    fn why(registry: &StatusRegistry) -> Option<String> {
        registry.status().problem
    }

    #[test]
    fn a_board_is_ready_when_it_streams_and_every_sink_is_ok() {
        let registry = StatusRegistry::new();
        let mut kafka = registry.sink("kafka", Checkpoint::at(Lsn(10)));
        assert!(!registry.status().is_ready());
        registry.streaming(true);
        assert!(registry.status().is_ready());
        kafka.failed(&Error::new(Code::KafkaUnreachable, "no broker answers").hint("start one"));
        let status = registry.status();
        assert!(!status.is_ready());
        assert_eq!(status.sinks.first().map(|sink| sink.state), Some(SinkState::Retrying));
        let code = status.sinks.first().and_then(|sink| sink.last_error_code);
        assert_eq!(code, Some(Code::KafkaUnreachable));
        assert_eq!(
            status.problem.as_deref(),
            Some("kafka takes no rows and holds the WAL back: no broker answers; start one (WC-310)")
        );
        kafka.durable(Checkpoint::at(Lsn(10)));
        assert!(registry.status().is_ready());
        assert_eq!(why(&registry), None);
    }

    #[test]
    fn a_broken_stream_is_told_until_it_runs_again() {
        let registry = StatusRegistry::new();
        registry.streaming(true);
        registry.streaming(false);
        registry.failed(
            &Error::new(Code::PostgresUnreachable, "PostgreSQL cannot be reached").hint("look at it"),
        );
        let status = registry.status();
        assert_eq!(
            (status.state, status.source.last_error_code),
            (State::Retrying, Some(Code::PostgresUnreachable))
        );
        assert_eq!(
            why(&registry).as_deref(),
            Some("not streaming: PostgreSQL cannot be reached; look at it (WC-301)")
        );
        registry.streaming(true);
        assert_eq!(why(&registry), None);
    }

    #[test]
    fn causes_stay_out_of_the_status() {
        let registry = StatusRegistry::new();
        let cause = std::io::Error::other("Key (slug)=(secret) already exists");
        registry.failed(&Error::new(Code::Prerequisite, "PostgreSQL refused a row").because(cause));
        assert!(why(&registry).is_some_and(|why| !why.contains("secret")));
    }

    #[test]
    fn what_is_wrong_with_a_target_is_told_although_it_takes_rows() {
        let registry = StatusRegistry::new();
        registry.streaming(true);
        let sink = registry.sink("kafka", Checkpoint::at(Lsn(1)));
        sink.trouble(Some("a transaction is hung; end it".into()));
        assert!(registry.status().is_ready());
        assert_eq!(why(&registry).as_deref(), Some("a transaction is hung; end it"));
        sink.trouble(None);
        assert_eq!(why(&registry), None);
    }

    #[test]
    fn a_lost_slot_is_the_first_thing_to_say() {
        let registry = StatusRegistry::new();
        registry.failed(&Error::new(Code::Unavailable, "x"));
        registry.slot(SlotStatus {
            name: "walcast".into(),
            wal_status: "lost".into(),
            invalidation_reason: Some("wal_removed".into()),
            ..SlotStatus::default()
        });
        let first = why(&registry).unwrap_or_default();
        assert!(first.starts_with("the replication slot walcast is lost (wal_removed), "), "{first}");
    }

    #[test]
    fn a_slot_close_to_its_bound_is_told() {
        let registry = StatusRegistry::new();
        registry.streaming(true);
        let slot = |safe| SlotStatus {
            name: "walcast".into(),
            wal_status: "extended".into(),
            safe_wal_bytes: safe,
            ..SlotStatus::default()
        };
        registry.slot(slot(None));
        assert_eq!(why(&registry), None);
        registry.slot(slot(Some(100 << 20)));
        assert!(why(&registry).is_some_and(|why| why.contains("100.0 MiB")));
    }

    #[test]
    fn a_loop_that_hangs_is_not_live_and_one_that_waits_is() {
        let registry = StatusRegistry::new();
        registry.streaming(true);
        assert!(registry.is_live());
        let hung = StatusRegistry(Arc::new(Shared {
            began: Instant::now().checked_sub(TICK_AGE_MAX * 2).unwrap_or_else(Instant::now),
            ticked_millis: AtomicU64::new(0),
            facts: Mutex::new(Facts { state: State::Streaming, ..Facts::default() }),
        }));
        assert!(!hung.is_live());
        hung.failed(&Error::new(Code::PostgresUnreachable, "PostgreSQL cannot be reached"));
        assert!(hung.is_live(), "waiting for PostgreSQL is not mended by a restart");
        hung.facts().enter(State::Streaming);
        hung.tick();
        assert!(hung.is_live());
    }

    #[test]
    fn a_status_reads_back_from_its_json() -> serde_json::Result<()> {
        let registry = StatusRegistry::new();
        let position = Position { commit_lsn: Lsn(7), ordinal: 3 };
        registry.sink("redis", Checkpoint { position: Some(position), durable_lsn: Lsn(5) });
        registry.slot(SlotStatus::default());
        let status = registry.status();
        let json = serde_json::to_string(&status)?;
        let mut again: Status = serde_json::from_str(&json)?;
        again.since = status.since;
        assert_eq!(again, status);
        Ok(())
    }
}
