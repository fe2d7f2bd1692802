use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::*;
use crate::batch::{BatchBuilder, ContentChange, Row};
use crate::error::Code;
use crate::lsn::{HistoryId, Lsn, Position, StoredCheckpoint, Timelines};
use crate::resume::SinkName;
use crate::sink::anew::{Asker, Beginning, Parting, anew};
use crate::sink::breaker::BreakerConfig;
use crate::sink::queue::{Feeder, QueueSender, feed, queue};
use crate::sink::{BatchPolicy, Guarantee, SinkIdentity};
use crate::telemetry::registry::StatusRegistry;

const START: Checkpoint = Checkpoint { position: None, durable_lsn: Lsn(1) };
const PROBE: Duration = Duration::from_secs(10);

/// What a target was asked for, what it has, and what it answers next.
#[derive(Default)]
struct Target {
    writes: Vec<Instant>,
    recoveries: Vec<Instant>,
    rows: Vec<Position>,
    has: Checkpoint,
    /// Errors to answer with, the last of them for ever if `always`.
    refuses: VecDeque<Code>,
    always: bool,
    write_takes: Duration,
    /// It answers when it is asked where it stands, and refuses rows alone.
    answers: bool,
    /// It takes rows, and has lost them when it is asked to make them durable.
    loses: bool,
    taken: bool,
    linger: Duration,
}

impl Target {
    fn outcome(&mut self) -> Result<()> {
        let code = if self.always { self.refuses.front().copied() } else { self.refuses.pop_front() };
        code.map_or(Ok(()), |code| Err(Error::new(code, "it does not work")))
    }
}

struct TestSink(Arc<Mutex<Target>>);

impl SinkIdentity for TestSink {
    fn id(&self) -> SinkName {
        SinkName::new("test")
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::None
    }
}

#[async_trait]
impl Sink for TestSink {
    fn batch_policy(&self) -> BatchPolicy {
        let target = self.0.lock().unwrap();
        let tick_every = target.loses.then_some(Duration::from_millis(100));
        BatchPolicy { linger: target.linger, write_bytes_max: usize::MAX, tick_every }
    }

    async fn recover(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        let mut target = self.0.lock().unwrap();
        target.recoveries.push(Instant::now());
        if !target.answers {
            target.outcome()?;
        }
        Ok(Some(StoredCheckpoint::new(&session.history_id, target.has)))
    }

    async fn begin(&mut self, _session: &Session, _: bool) -> Result<()> {
        let mut target = self.0.lock().unwrap();
        target.outcome()?;
        target.rows.clear();
        target.has = Checkpoint::default();
        Ok(())
    }

    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
        let takes = {
            let mut target = self.0.lock().unwrap();
            target.writes.push(Instant::now());
            target.outcome()?;
            target.taken = true;
            if target.loses {
                return Ok(Written::Accepted);
            }
            target.rows.extend(batches.iter().flat_map(|batch| batch.rows()).map(Row::position));
            target.has = batches.iter().fold(target.has, |has, batch| has.advanced(batch.checkpoint()));
            target.write_takes
        };
        tokio::time::sleep(takes).await;
        Ok(Written::Durable(self.0.lock().unwrap().has))
    }

    async fn tick(&mut self) -> Result<Option<Checkpoint>> {
        let mut target = self.0.lock().unwrap();
        match std::mem::take(&mut target.taken) && target.loses {
            true => Err(Error::new(Code::Lost, "the rows are gone")),
            false => Ok(None),
        }
    }

    async fn flush(&mut self) -> Result<Option<Checkpoint>> {
        Ok(None)
    }
}

/// A driver at work, and what feeds it.
struct Work {
    target: Arc<Mutex<Target>>,
    feeder: Feeder,
    wants: watch::Receiver<Option<Checkpoint>>,
    registry: StatusRegistry,
    asker: Asker,
    parting: Parting,
    running: JoinHandle<Result<()>>,
}

fn work(target: Target) -> Work {
    let history_id = HistoryId { uuid: Uuid::nil(), system_id: "1".into(), timeline: 1, slot: "s".into() };
    let target = Arc::new(Mutex::new(Target { has: START, ..target }));
    let (feeder, feed) = feed(START);
    let (wants, wants_seen) = watch::channel(None);
    let registry = StatusRegistry::new();
    let session = Session {
        history_id,
        fencing_token: 1,
        timelines: Timelines::default(),
        start: Lsn(1),
        settled_timeline: 1,
    };
    let (asker, anew, parting) = anew("test", 0, false, true);
    let driver = Driver {
        sink: Box::new(TestSink(Arc::clone(&target))),
        feed,
        session,
        durable: START,
        checkpoints: watch::channel(vec![START]).0,
        index: 0,
        unregistered: None,
        breaker: Breaker::seeded(&BreakerConfig { failures_max: 5, probe_seconds: PROBE.as_secs() }, 1),
        apart: Some(Apart { wants, recovered: true, unprepared: None, anew, alone: false }),
        status: registry.sink("test", START),
    };
    Work { target, feeder, wants: wants_seen, registry, asker, parting, running: tokio::spawn(driver.run()) }
}

impl Work {
    fn queue(&self, from: u64) -> QueueSender {
        let (sender, queue) = queue(1 << 20, Checkpoint::at(Lsn(from)));
        self.feeder.send(queue).ok().unwrap();
        sender
    }

    fn breaker(&self) -> BreakerState {
        self.registry.status().sinks[0].breaker
    }

    /// It wants rows from here on.
    async fn wants(&mut self) -> Checkpoint {
        self.wants.wait_for(Option::is_some).await.unwrap().unwrap()
    }

    async fn ends_well(self) {
        drop(self.feeder);
        self.running.await.unwrap().unwrap();
    }
}

/// A row at each of these places, and the batch that has them.
fn rows(places: impl IntoIterator<Item = u64>) -> Arc<Batch> {
    let mut builder = BatchBuilder::new(START);
    for place in places {
        let position = Position { commit_lsn: Lsn(place), ordinal: 0 };
        builder.push(Row::Content(ContentChange { position, commit_ts: 0, id: Uuid::nil(), after: None }));
        builder.hold(Lsn(place + 1));
    }
    Arc::new(builder.finish(false))
}

/// How close together these moments are, at the closest.
fn closest(moments: &[Instant]) -> Duration {
    moments.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap()
}

#[tokio::test(start_paused = true)]
async fn no_batch_waits_longer_than_the_linger_because_a_write_went_on() {
    const LINGER: Duration = Duration::from_millis(100);
    const BATCH_EVERY: Duration = Duration::from_millis(10);
    let write_takes = Duration::from_millis(60);
    let work = work(Target { write_takes, linger: LINGER, ..Target::default() });
    let sender = work.queue(1);
    for end in 0..100 {
        sender.send(Arc::new(Batch::empty(Checkpoint::at(Lsn(2 + end)), false))).await.unwrap();
        tokio::time::sleep(BATCH_EVERY).await;
    }
    drop(sender);
    let target = Arc::clone(&work.target);
    work.ends_well().await;
    let writes = &target.lock().unwrap().writes;
    assert!(writes.len() >= 9, "{} writes in a second", writes.len());
    // the first batch of a write came at most one interval after the last write began
    assert!(writes.windows(2).all(|pair| pair[1] - pair[0] <= LINGER + BATCH_EVERY), "{writes:?}");
}

/// A lane reads again what the sink has from the main stream's queue, and all of it comes into one write.
#[tokio::test(start_paused = true)]
async fn rows_of_overlapping_queues_are_written_once() {
    let work = work(Target { linger: Duration::from_secs(1), ..Target::default() });
    for (from, places) in [(1, 2..8), (3, 3..12), (9, 6..15)] {
        work.queue(from).send(rows(places)).await.unwrap();
    }
    let target = Arc::clone(&work.target);
    work.ends_well().await;
    let target = target.lock().unwrap();
    let places: Vec<u64> = target.rows.iter().map(|position| position.commit_lsn.0).collect();
    assert_eq!(places, (2..15).collect::<Vec<_>>());
    assert_eq!(target.writes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_target_sees_one_probe_at_a_time_and_is_found_again() {
    let refuses = VecDeque::from([Code::RedisUnreachable]);
    let mut work = work(Target { refuses, always: true, ..Target::default() });
    let sender = work.queue(1);
    sender.send(rows(2..4)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(work.breaker(), BreakerState::Open);
    assert!(sender.is_closed(), "what waits for it is not kept in memory");
    assert_eq!(*work.wants.borrow(), None);
    {
        let mut target = work.target.lock().unwrap();
        let (writes, probes) = (target.writes.len(), &target.recoveries[4..]);
        assert_eq!(writes, 1);
        assert!((20..=30).contains(&probes.len()) && closest(probes) >= PROBE, "{probes:?}");
        target.refuses.clear();
    }
    assert_eq!(work.wants().await, START);
    assert_eq!(work.breaker(), BreakerState::HalfOpen);
    work.queue(1).send(rows(2..4)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((work.breaker(), work.target.lock().unwrap().rows.len()), (BreakerState::Closed, 2));
    work.ends_well().await;
}

/// It says where it stands each time, and loses or refuses all that it is given.
#[tokio::test(start_paused = true)]
async fn a_target_that_only_answers_is_no_better_than_a_dead_one() {
    let refuses = VecDeque::from([Code::BigQueryRefused]);
    for target in [
        Target { loses: true, ..Target::default() },
        Target { refuses, always: true, answers: true, ..Target::default() },
    ] {
        let work = work(target);
        let feeder = work.feeder.clone();
        let mut wants = work.wants.clone();
        let lane = tokio::spawn(async move {
            while let Some(from) = wants.wait_for(Option::is_some).await.ok().and_then(|wants| *wants) {
                let (sender, queue) = queue(1 << 20, from);
                feeder.send(queue).ok().unwrap();
                sender.send(rows(2..4)).await.unwrap();
                sender.closed().await;
            }
        });
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert!(!work.running.is_finished(), "it is no other sink's trouble");
        let target = Arc::clone(&work.target);
        {
            let writes = &target.lock().unwrap().writes;
            assert!((20..40).contains(&writes.len()), "{}", writes.len());
            assert!(closest(&writes[5..]) >= PROBE, "{writes:?}");
        }
        lane.abort();
        let _ = lane.await;
        drop(work.feeder);
        work.running.await.unwrap().unwrap();
    }
}

/// A queue that was to follow on rows that the target lost meanwhile is not taken.
#[tokio::test(start_paused = true)]
async fn after_a_loss_no_gap_is_left() {
    let mut work = work(Target::default());
    let lane = work.queue(1);
    lane.send(rows(2..6)).await.unwrap();
    drop(lane);
    assert_eq!(work.wants().await.durable_lsn, Lsn(6));
    work.target.lock().unwrap().refuses.push_back(Code::Lost);
    work.target.lock().unwrap().has = Checkpoint::at(Lsn(3));
    let main = work.queue(6);
    main.send(rows(6..8)).await.unwrap();
    main.closed().await;
    let late = work.queue(6);
    late.send(rows(6..8)).await.unwrap();
    late.closed().await;
    assert_eq!(work.wants().await, Checkpoint::at(Lsn(3)));
    work.target.lock().unwrap().rows.truncate(1);
    work.queue(3).send(rows(3..8)).await.unwrap();
    let target = Arc::clone(&work.target);
    work.ends_well().await;
    let places: Vec<u64> = target.lock().unwrap().rows.iter().map(|row| row.commit_lsn.0).collect();
    assert_eq!(places, (2..8).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_does_not_keep_the_process_from_ending() {
    let refuses = VecDeque::from([Code::RedisLogin]);
    let work = work(Target { refuses, always: true, ..Target::default() });
    work.queue(1).send(rows(2..4)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(work.breaker(), BreakerState::Open, "a wrong password opens it at once");
    let began = Instant::now();
    work.ends_well().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// What concerns PostgreSQL or another walcast is for the pipeline.
#[tokio::test(start_paused = true)]
async fn an_error_that_concerns_every_sink_ends_the_driver() {
    for code in [Code::Fenced, Code::HistoryForgotten, Code::ServerForgotInstance] {
        let work = work(Target { refuses: [code].into(), ..Target::default() });
        work.queue(1).send(rows(2..4)).await.unwrap();
        assert_eq!(work.running.await.unwrap().unwrap_err().code(), code);
    }
}

/// It gives back what it has, empties its target, and takes nothing before it is let go.
#[tokio::test(start_paused = true)]
async fn a_sink_begins_anew_where_it_is_told_to() {
    let mut work = work(Target::default());
    let sender = work.queue(1);
    sender.send(rows(2..4)).await.unwrap();
    let stops = async {
        work.parting.wanted().await;
        work.parting.has_parted();
    };
    tokio::join!(work.asker.stop(), stops);
    assert!(sender.is_closed(), "it takes no more");
    // whatever is refused meanwhile is tried again
    work.target.lock().unwrap().refuses = VecDeque::from([Code::RedisUnreachable, Code::RedisUnreachable]);
    let from = Checkpoint::at(Lsn(50));
    work.asker.begin(Arc::new(Beginning::new(from, Vec::new(), 0))).await;
    {
        let target = work.target.lock().unwrap();
        assert_eq!((target.rows.len(), target.has.durable_lsn), (0, Lsn(50)));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*work.wants.borrow(), None, "nobody has noted yet that it is emptied");
    work.asker.let_go();
    assert!(work.wants().await.covers(&from));
    work.queue(50).send(rows(50..53)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // and once more
    let stops = async {
        work.parting.wanted().await;
        work.parting.has_parted();
    };
    tokio::join!(work.asker.stop(), stops);
    work.asker.let_go();
    assert_eq!(work.wants().await.durable_lsn, Lsn(53));
    let target = Arc::clone(&work.target);
    work.ends_well().await;
    let places: Vec<u64> = target.lock().unwrap().rows.iter().map(|position| position.commit_lsn.0).collect();
    assert_eq!(places, [50, 51, 52]);
}
