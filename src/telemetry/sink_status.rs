//! How one sink is: its driver writes it after every step, the registry shows it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Class, Code, Error};
use crate::lsn::{Checkpoint, Lsn, Position};
use crate::telemetry::delivery::Delivery;
use crate::telemetry::metrics::SinkCounters;
use crate::telemetry::queue_gauge::QueueGauge;
use crate::telemetry::status::{BreakerState, LaneLine, LaneSlot, LaneState, SinkLine, SinkState};

/// How many transactions of one sink may wait to be measured; more are left out.
const WAITING_MAX: usize = 65_536;
/// How many heartbeats of one sink may wait to be timed; more are left out.
const HEARTBEATS_MAX: usize = 64;

/// What is known of one sink: its driver writes it, the registry reads it.
pub(super) struct SinkFacts {
    pub(super) name: &'static str,
    pub(super) delivery: Arc<Delivery>,
    standing: Mutex<Standing>,
}

/// How a sink stands now.
#[derive(Default)]
pub(super) struct Standing {
    guarantee: String,
    durable: Checkpoint,
    state: SinkState,
    last_error: Option<String>,
    last_error_code: Option<Code>,
    failing_since: Option<Instant>,
    /// The queue that it takes from.
    pub(super) queue: Option<QueueGauge>,
    pub(super) backpressure: bool,
    rows_total: u64,
    /// When the oldest transaction committed that it was given and does not hold.
    oldest_committed_at: Option<Instant>,
    /// What it was given amounts to.
    given: Lsn,
    heartbeat: Option<Beaten>,
    trouble: Option<String>,
    breaker: BreakerState,
    next_probe: Option<Instant>,
    lane: Option<LaneFacts>,
}

/// How a sink's lane stands.
struct LaneFacts {
    line: LaneLine,
    since: Instant,
    /// When it was last told how far it is behind, and how fast it came nearer until then, in bytes a second.
    told: Option<(Instant, Option<f64>)>,
}

/// A heartbeat whose place a sink holds.
#[derive(Clone, Copy)]
struct Beaten {
    committed_at: Instant,
    took: Duration,
}

/// Where one sink's driver writes how the sink is.
pub struct SinkStatus {
    facts: Arc<SinkFacts>,
    counters: SinkCounters,
    /// When the first row committed that is being written.
    in_hand_committed_at: Option<Instant>,
    /// When the write began that is under way.
    writing_since: Option<Instant>,
    /// When it was given what is being written, also across retries.
    given_at: Option<Instant>,
    waiting: VecDeque<Waiting>,
    /// Heartbeats whose place it does not hold yet: the end of their transactions, and when those committed.
    heartbeats: VecDeque<(Lsn, Instant)>,
}

/// A transaction that a sink has and does not hold durably.
#[derive(Clone, Copy)]
struct Waiting {
    last: Position,
    committed_at: Instant,
    given_at: Instant,
}

impl SinkStatus {
    /// Of a sink that was recovered and stands at `durable`. What was counted of it before goes on.
    pub(super) fn new(facts: Arc<SinkFacts>, durable: Checkpoint) -> SinkStatus {
        let mut standing = facts.standing();
        let (rows_total, heartbeat) = (standing.rows_total, standing.heartbeat);
        *standing =
            Standing { durable, given: durable.durable_lsn, rows_total, heartbeat, ..Standing::default() };
        drop(standing);
        SinkStatus {
            counters: SinkCounters::new(facts.name),
            facts,
            in_hand_committed_at: None,
            writing_since: None,
            given_at: None,
            waiting: VecDeque::new(),
            heartbeats: VecDeque::new(),
        }
    }

    /// It promises this of each event, and to hold it within this time of its commit.
    #[must_use]
    pub fn promising(self, guarantee: impl fmt::Display, within: Duration) -> Self {
        self.facts.delivery.latency_objective(within);
        self.update(|sink| sink.guarantee = guarantee.to_string());
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
    pub fn awaits(&mut self, end_lsn: Lsn, committed_at: Instant) {
        let known = self.heartbeats.back().is_some_and(|(last, _)| *last >= end_lsn);
        if !known && self.heartbeats.len() < HEARTBEATS_MAX {
            self.heartbeats.push_back((end_lsn, committed_at));
        }
    }

    /// What is wrong with its target although it takes rows.
    pub fn trouble(&self, trouble: Option<String>) {
        self.update(|sink| sink.trouble = trouble);
    }

    /// Its circuit breaker has changed, or waits for another probe.
    pub fn breaker(&self, state: BreakerState, next_probe: Option<Instant>) {
        self.update(|sink| {
            (sink.breaker, sink.next_probe) = (state, next_probe);
            if state == BreakerState::Closed {
                sink.recover();
            }
        });
    }

    /// It is to write a row that committed then.
    pub fn takes(&mut self, committed_at: Instant) {
        self.in_hand_committed_at.get_or_insert(committed_at);
        self.writing_since = Some(Instant::now());
        self.update(|_| {});
    }

    /// It took these rows: each one's position and when it committed, in stream order.
    pub fn wrote(&mut self, rows: impl IntoIterator<Item = (Position, Instant)>) {
        let mut count = 0;
        for (position, committed_at) in rows {
            count += 1;
            self.wait_for(position, committed_at);
        }
        self.in_hand_committed_at = None;
        self.given_at = None;
        self.counters.wrote(count);
        if let Some(since) = self.writing_since.take() {
            self.facts.delivery.wrote(count, since.elapsed());
        }
        self.update(|sink| {
            sink.rows_total += count;
            sink.recover();
        });
    }

    /// It holds everything up to this checkpoint durably.
    pub fn durable(&mut self, checkpoint: Checkpoint) {
        while let Some(waiting) = self.waiting.front().filter(|waiting| checkpoint.holds(waiting.last)) {
            let seconds = waiting.committed_at.elapsed().as_secs_f64();
            self.counters.durable(seconds, waiting.given_at.elapsed());
            self.facts.delivery.latencies.record(seconds);
            self.waiting.pop_front();
        }
        let mut heartbeat = None;
        while let Some((_, committed_at)) =
            self.heartbeats.front().filter(|(end_lsn, _)| checkpoint.durable_lsn >= *end_lsn)
        {
            heartbeat = Some(Beaten { committed_at: *committed_at, took: committed_at.elapsed() });
            self.heartbeats.pop_front();
        }
        self.update(|sink| {
            sink.durable = checkpoint;
            sink.given = sink.given.max(checkpoint.durable_lsn);
            sink.heartbeat = heartbeat.or(sink.heartbeat);
            sink.recover();
        });
    }

    /// It failed.
    pub fn failed(&mut self, error: &Error) {
        self.counters.failed(error);
        let transient = error.class() == Class::Transient;
        self.facts.delivery.failed(error.told(), transient);
        self.update(|sink| {
            sink.state = if transient { SinkState::Retrying } else { SinkState::Blocked };
            sink.last_error = Some(error.told());
            sink.last_error_code = Some(error.code());
            sink.failing_since.get_or_insert_with(Instant::now);
        });
    }

    fn wait_for(&mut self, position: Position, committed_at: Instant) {
        let given_at = self.given_at.unwrap_or_else(Instant::now);
        let room = self.waiting.len() < WAITING_MAX;
        match self.waiting.back_mut() {
            Some(waiting) if waiting.last.commit_lsn == position.commit_lsn => waiting.last = position,
            _ if room => self.waiting.push_back(Waiting { last: position, committed_at, given_at }),
            _ => {}
        }
    }

    fn update(&self, change: impl FnOnce(&mut Standing)) {
        let mut sink = self.facts.standing();
        change(&mut sink);
        sink.oldest_committed_at =
            self.waiting.front().map(|waiting| waiting.committed_at).or(self.in_hand_committed_at);
    }
}

impl SinkFacts {
    pub(super) fn new(name: &'static str) -> SinkFacts {
        SinkFacts { name, delivery: Arc::default(), standing: Mutex::default() }
    }

    pub(super) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits for it; `None` while it is not fed with the others.
    pub(super) fn waiting_bytes(&self) -> Option<u64> {
        let now = self.standing();
        now.lane.is_none().then(|| now.queue_bytes())
    }

    pub(super) fn lane(&self, state: LaneState, slot: &str) {
        let mut now = self.standing();
        let former = now.lane.take();
        let since = former
            .as_ref()
            .filter(|lane| lane.line.state == state)
            .map_or_else(Instant::now, |lane| lane.since);
        let line = former.map(|lane| lane.line).unwrap_or_default();
        let kept = line.kept.filter(|kept| kept.slot == slot);
        let line = LaneLine {
            state,
            slot: slot.to_owned(),
            received_lsn: line.received_lsn,
            behind_bytes: line.behind_bytes,
            kept,
            ..LaneLine::default()
        };
        now.lane = Some(LaneFacts { line, since, told: None });
        if matches!(state, LaneState::Opening | LaneState::Parked) {
            now.queue = None;
        }
    }

    pub(super) fn lane_received(&self, received: Lsn, behind: u64, queue: QueueGauge) {
        let mut now = self.standing();
        now.queue = Some(queue);
        let Some(lane) = &mut now.lane else { return };
        let moment = Instant::now();
        let pace = lane.told.map(|(told, pace)| {
            let seconds = (moment - told).as_secs_f64().max(0.001);
            let nearer = (lane.line.behind_bytes as f64 - behind as f64) / seconds;
            pace.map_or(nearer, |pace| 0.8 * pace + 0.2 * nearer)
        });
        lane.line.catch_up_seconds = pace.filter(|pace| *pace > 1.0).map(|pace| behind as f64 / pace);
        lane.told = Some((moment, pace));
        (lane.line.received_lsn, lane.line.behind_bytes) = (received, behind);
    }

    pub(super) fn lane_failed(&self, error: &Error, lost: bool) {
        let mut now = self.standing();
        let Some(lane) = &mut now.lane else { return };
        if lost && lane.line.state != LaneState::Lost {
            (lane.line.state, lane.since) = (LaneState::Lost, Instant::now());
        }
        (lane.line.last_error, lane.line.last_error_code) = (Some(error.told()), Some(error.code()));
    }

    pub(super) fn lane_slot(&self) -> Option<String> {
        let now = self.standing();
        now.lane.as_ref().map(|lane| lane.line.slot.clone()).filter(|slot| !slot.is_empty())
    }

    pub(super) fn lane_kept(&self, kept: &LaneSlot) -> bool {
        let mut now = self.standing();
        let Some(lane) = now.lane.as_mut().filter(|lane| lane.line.slot == kept.slot) else { return false };
        lane.line.kept = Some(kept.clone());
        lane.line.is_lost()
    }

    pub(super) fn no_lane(&self) {
        self.standing().lane = None;
    }

    /// What the status says of it, when the stream has come to `received`.
    pub(super) fn line(&self, received: Lsn) -> SinkLine {
        let now = self.standing();
        SinkLine {
            name: self.name.to_owned(),
            guarantee: now.guarantee.clone(),
            state: now.state,
            durable_lsn: now.durable.durable_lsn,
            position: now.durable.position,
            lag_bytes: received.bytes_since(now.durable.durable_lsn),
            queue_lag_bytes: received.bytes_since(now.given),
            delivery_lag_bytes: now.given.bytes_since(now.durable.durable_lsn),
            lag_seconds: now.oldest_committed_at.map_or(0.0, seconds_since),
            heartbeat_age_seconds: now.heartbeat.map(|heartbeat| seconds_since(heartbeat.committed_at)),
            heartbeat_seconds: now.heartbeat.map(|heartbeat| heartbeat.took.as_secs_f64()),
            queue_bytes: now.queue_bytes(),
            backpressure: now.backpressure,
            rows_total: now.rows_total,
            last_error: now.last_error.clone(),
            last_error_code: now.last_error_code,
            failing_seconds: now.failing_since.map(seconds_since),
            trouble: now.trouble.clone(),
            breaker: now.breaker,
            next_probe_seconds: now
                .next_probe
                .map(|at| at.saturating_duration_since(Instant::now()).as_secs_f64()),
            lane: now.lane.as_ref().map(|lane| lane.line(received.bytes_since(now.durable.durable_lsn))),
        }
    }
}

impl LaneFacts {
    /// What the status says of it, when its sink lacks so much. Only while it runs it is told itself how far it is.
    fn line(&self, lacks: u64) -> LaneLine {
        let line = LaneLine { seconds: seconds_since(self.since), ..self.line.clone() };
        match line.state {
            LaneState::CatchingUp => line,
            LaneState::Joining => LaneLine { behind_bytes: 0, catch_up_seconds: None, ..line },
            LaneState::Opening | LaneState::Parked | LaneState::Lost => {
                LaneLine { behind_bytes: lacks, catch_up_seconds: None, ..line }
            }
        }
    }
}

impl Standing {
    fn queue_bytes(&self) -> u64 {
        self.queue.as_ref().map_or(0, |queue| queue.bytes() as u64)
    }

    /// It works again. A target that was left alone has to show that first: one that answers and makes nothing durable still
    /// has what was wrong with it.
    fn recover(&mut self) {
        if self.breaker != BreakerState::Closed {
            if self.state == SinkState::Blocked {
                self.state = SinkState::Retrying;
            }
            return;
        }
        self.state = SinkState::Ok;
        self.last_error = None;
        self.last_error_code = None;
        self.failing_since = None;
    }
}

fn seconds_since(moment: Instant) -> f64 {
    moment.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::registry::StatusRegistry;

    fn position(commit_lsn: u64, ordinal: u64) -> Position {
        Position { commit_lsn: Lsn(commit_lsn), ordinal }
    }

    fn checkpoint(commit_lsn: u64, ordinal: u64, durable: u64) -> Checkpoint {
        Checkpoint { position: Some(position(commit_lsn, ordinal)), durable_lsn: Lsn(durable) }
    }

    fn ago(seconds: u64) -> Instant {
        Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap_or_else(Instant::now)
    }

    fn line(registry: &StatusRegistry) -> SinkLine {
        registry.status().sinks.swap_remove(0)
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_row_that_is_not_durable() {
        let registry = StatusRegistry::new();
        let mut sink = registry.sink("bigquery", Checkpoint::at(Lsn(100)));
        assert_eq!(line(&registry).lag_seconds, 0.0);
        sink.takes(ago(90));
        sink.wrote([(position(100, 0), ago(90)), (position(200, 0), ago(40))]);
        registry.source(Lsn(250), Lsn(100));
        registry.queue("bigquery", QueueGauge::full(77));
        let behind = line(&registry);
        assert!((89.0..95.0).contains(&behind.lag_seconds), "{}", behind.lag_seconds);
        assert_eq!((behind.lag_bytes, behind.queue_bytes, behind.rows_total), (150, 77, 2));
        assert!(registry.status().problem.is_some_and(|why| why.starts_with("bigquery is 9")));
        sink.durable(checkpoint(100, 0, 150));
        assert!((39.0..45.0).contains(&line(&registry).lag_seconds));
        sink.durable(checkpoint(200, 0, 250));
        assert_eq!((line(&registry).lag_seconds, line(&registry).lag_bytes), (0.0, 0));
    }

    #[test]
    fn lag_is_split_into_what_waits_here_and_what_the_sink_was_given() {
        let registry = StatusRegistry::new();
        let mut sink = registry.sink("redis", Checkpoint::at(Lsn(100)));
        registry.source(Lsn(250), Lsn(100));
        assert_eq!((line(&registry).queue_lag_bytes, line(&registry).delivery_lag_bytes), (150, 0));
        sink.begins(Lsn(200), [Instant::now()]);
        assert_eq!((line(&registry).queue_lag_bytes, line(&registry).delivery_lag_bytes), (50, 100));
        sink.durable(checkpoint(200, 0, 200));
        assert_eq!((line(&registry).queue_lag_bytes, line(&registry).delivery_lag_bytes), (50, 0));
    }

    #[test]
    fn a_heartbeat_counts_when_its_place_is_held() {
        let registry = StatusRegistry::new();
        let mut sink = registry.sink("bigquery", Checkpoint::at(Lsn(100)));
        sink.awaits(Lsn(150), ago(30));
        sink.awaits(Lsn(150), ago(0)); // the same, given again after an error
        sink.awaits(Lsn(160), ago(20));
        sink.awaits(Lsn(300), ago(10));
        sink.durable(Checkpoint::at(Lsn(149)));
        assert_eq!((line(&registry).heartbeat_age_seconds, line(&registry).heartbeat_seconds), (None, None));
        sink.durable(Checkpoint::at(Lsn(200)));
        let (age, took) = (line(&registry).heartbeat_age_seconds, line(&registry).heartbeat_seconds);
        assert!(age.is_some_and(|age| (20.0..25.0).contains(&age)), "{age:?}");
        assert!(took.is_some_and(|took| (20.0..25.0).contains(&took)), "{took:?}");
        registry.sink("bigquery", Checkpoint::at(Lsn(200)));
        assert!(line(&registry).heartbeat_age_seconds >= age, "a restart of the sink forgets nothing");
    }

    #[test]
    fn a_sink_that_cannot_write_falls_behind() {
        let registry = StatusRegistry::new();
        let mut sink = registry.sink("redis", Checkpoint::at(Lsn(100)));
        sink.takes(ago(5));
        sink.failed(&Error::new(Code::Unavailable, "down"));
        sink.durable(Checkpoint::at(Lsn(100))); // it was asked, and stands where it stood
        assert!(line(&registry).lag_seconds >= 5.0);
    }

    #[test]
    fn a_transaction_is_measured_when_all_rows_that_were_written_are_durable() {
        let registry = StatusRegistry::new();
        let mut sink = registry.sink("kafka", Checkpoint::at(Lsn(100)));
        sink.wrote((0..3).map(|ordinal| (position(100, ordinal), ago(0))));
        sink.wrote((3..5).map(|ordinal| (position(100, ordinal), ago(0))));
        assert_eq!(sink.waiting.len(), 1);
        sink.durable(checkpoint(100, 2, 100));
        assert_eq!(sink.waiting.len(), 1);
        sink.durable(checkpoint(100, 4, 150));
        assert_eq!(sink.waiting.len(), 0);
    }

    #[test]
    fn a_sink_recovered_anew_goes_on_counting() {
        let registry = StatusRegistry::new();
        registry.sink("kafka", Checkpoint::at(Lsn(1))).wrote([(position(1, 0), ago(0))]);
        let mut again = registry.sink("kafka", Checkpoint::at(Lsn(1)));
        again.wrote([(position(2, 0), ago(0))]);
        assert_eq!(registry.status().sinks.len(), 1);
        assert_eq!(line(&registry).rows_total, 2);
    }

    /// It answers, and loses what it is given: asked about it at any moment, it is not well.
    #[test]
    fn a_target_that_answers_is_well_when_something_is_durable() {
        let registry = StatusRegistry::new();
        let mut sink = registry.sink("redis", Checkpoint::at(Lsn(100)));
        sink.failed(&Error::new(Code::RedisUnreachable, "redis does not answer").hint("start it"));
        sink.breaker(BreakerState::Open, Some(Instant::now() + Duration::from_secs(10)));
        // as a driver does whose probe succeeds
        sink.durable(Checkpoint::at(Lsn(100)));
        sink.breaker(BreakerState::HalfOpen, None);
        sink.wrote([]);
        let now = line(&registry);
        assert_eq!((now.state, now.last_error_code), (SinkState::Retrying, Some(Code::RedisUnreachable)));
        assert!(now.failing_seconds.is_some() && now.next_probe_seconds.is_none());
        sink.breaker(BreakerState::Closed, None);
        let now = line(&registry);
        assert_eq!((now.state, now.last_error, now.failing_seconds), (SinkState::Ok, None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_says_how_far_it_is_behind_also_while_it_does_not_run() {
        let registry = StatusRegistry::new();
        let _sink = registry.sink("redis", Checkpoint::at(Lsn(100)));
        registry.source(Lsn(1_000), Lsn(1_000));
        registry.queue("redis", QueueGauge::full(77));
        let lane = |registry: &StatusRegistry| line(registry).lane.unwrap_or_default();
        registry.lane("redis", LaneState::Parked, "slot");
        assert_eq!((lane(&registry).behind_bytes, line(&registry).queue_bytes), (900, 0));
        registry.lane("redis", LaneState::CatchingUp, "slot");
        registry.lane_received("redis", Lsn(400), QueueGauge::full(5));
        assert_eq!((lane(&registry).behind_bytes, lane(&registry).catch_up_seconds), (600, None));
        tokio::time::advance(Duration::from_secs(1)).await;
        registry.lane_received("redis", Lsn(700), QueueGauge::full(5));
        assert_eq!((lane(&registry).behind_bytes, lane(&registry).catch_up_seconds), (300, Some(1.0)));
        registry.lane("redis", LaneState::Parked, "slot");
        assert_eq!((lane(&registry).behind_bytes, lane(&registry).catch_up_seconds), (900, None));
        registry.lane("redis", LaneState::Joining, "slot");
        assert_eq!(lane(&registry).behind_bytes, 0);
    }

    #[test]
    fn what_postgres_says_of_a_slot_is_of_the_lane_that_has_it() {
        let registry = StatusRegistry::new();
        let _sink = registry.sink("redis", Checkpoint::at(Lsn(100)));
        let kept = |slot: &str| LaneSlot { slot: slot.into(), retained_bytes: 9, ..LaneSlot::default() };
        let shown = |registry: &StatusRegistry| line(registry).lane.and_then(|lane| lane.kept);
        registry.lane("redis", LaneState::Opening, "");
        assert_eq!(registry.lane_slots(), Vec::<String>::new());
        registry.lane("redis", LaneState::Parked, "one");
        assert_eq!(registry.lane_slots(), ["one"]);
        registry.lane_kept(&kept("another"));
        assert_eq!(shown(&registry), None);
        registry.lane_kept(&kept("one"));
        registry.lane("redis", LaneState::CatchingUp, "one");
        assert_eq!(shown(&registry), Some(kept("one")));
        registry.lane("redis", LaneState::Parked, "two");
        assert_eq!(shown(&registry), None);
        let missing = LaneSlot { wal_status: "missing".into(), ..kept("two") };
        assert!(registry.lane_kept(&missing));
        // it may have been dropped by now because it is not needed
        registry.lane("redis", LaneState::Joining, "two");
        assert!(!registry.lane_kept(&missing));
    }
}
