//! Random runs of the real queues, drivers, marks and watermark against sinks that fail in every way a target
//! can: before the write, after it with the answer lost, in the middle of it, by losing what they had only
//! accepted; with crashes of the whole process in between. After every step: no sink has a gap or a double,
//! and the confirmed LSN is not ahead of what any sink really holds. At the end: nothing is stuck.
//!
//! Time is simulated, so a seed gives the same run again: `WALCAST_SEED=7 cargo test --test unit simulation`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, ContentChange, Row};
use walcast::error::{Class, Error, Kind, Result};
use walcast::lsn::{Epoch, History, Lsn, Mark, Position, Session, StoredMark};
use walcast::retrace::Retrace;
use walcast::sink::driver::Driver;
use walcast::sink::queue::{QueueSender, queue};
use walcast::sink::{Guarantee, Pace, Sink, Written};
use walcast::telemetry::board::Board;
use walcast::watermark::Watermark;

const NAMES: [&str; 3] = ["writes", "cuts", "accepts"];

/// A committed transaction: rows, and where it lies.
#[derive(Clone, Copy)]
struct Commit {
    lsn: Lsn,
    end: Lsn,
    rows: u64,
}

/// What is really at a target, which survives every crash.
#[derive(Default)]
struct Target {
    rows: Vec<Position>,
    mark: Option<Mark>,
}

impl Target {
    fn store(&mut self, rows: &[Position], mark: Mark) {
        self.rows.extend_from_slice(rows);
        self.mark = Some(self.mark.unwrap_or_default().advanced(mark));
    }
}

struct FaultySink {
    name: &'static str,
    target: Arc<Mutex<Target>>,
    staged: Vec<Position>,
    staged_mark: Option<Mark>,
    session: Option<Session>,
    rng: StdRng,
    faults: f64,
}

impl FaultySink {
    fn fault(&mut self, what: &str) -> Result<()> {
        match self.rng.random_bool(self.faults) {
            true => Err(Error::new(Kind::Unavailable, what)),
            false => Ok(()),
        }
    }

    fn commit(&mut self, rows: &[Position], mark: Mark) -> Result<Mark> {
        self.fault("before the write")?;
        self.target.lock().unwrap().store(rows, mark);
        self.fault("answer lost")?;
        Ok(mark)
    }

    fn commit_staged(&mut self) -> Result<Option<Mark>> {
        let Some(mark) = self.staged_mark.take() else { return Ok(None) };
        let rows = std::mem::take(&mut self.staged);
        self.commit(&rows, mark).map(Some)
    }
}

#[async_trait]
impl Sink for FaultySink {
    fn name(&self) -> &'static str {
        self.name
    }

    fn pace(&self) -> Pace {
        let tick_every = (self.name == "accepts").then_some(Duration::from_millis(30));
        Pace { linger: Duration::from_millis(5), write_bytes_max: 20_000, tick_every }
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce("in the simulation")
    }

    async fn recover(&mut self, session: &Session) -> Result<Option<StoredMark>> {
        self.staged.clear();
        self.staged_mark = None;
        self.session = Some(session.clone());
        self.fault("recover")?;
        let mark = self.target.lock().unwrap().mark;
        Ok(mark.map(|mark| StoredMark::new(&session.epoch, mark)))
    }

    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..4))).await;
        let rows: Vec<Position> =
            batches.iter().flat_map(|batch| batch.rows().iter().map(Row::position)).collect();
        let mark = batches.iter().fold(Mark::default(), |mark, batch| mark.advanced(batch.mark()));
        match self.name {
            "accepts" => {
                self.fault("accepting")?;
                self.staged.extend(rows);
                self.staged_mark = Some(self.staged_mark.unwrap_or_default().advanced(mark));
                Ok(Written::Accepted)
            }
            "cuts" if rows.len() > 1 => {
                // As Redis: a prefix with a mark inside, then the rest.
                let (first, rest) = rows.split_at(self.rng.random_range(1..rows.len()));
                let before = self.target.lock().unwrap().mark;
                let start = self.session.as_ref().map(|session| session.start).unwrap_or_default();
                let held = before.map_or(start, |mark| mark.held);
                self.commit(first, Mark { position: first.last().copied(), held })?;
                self.commit(rest, mark).map(Written::Durable)
            }
            _ => self.commit(&rows, mark).map(Written::Durable),
        }
    }

    async fn tick(&mut self) -> Result<Option<Mark>> {
        self.commit_staged()
    }

    async fn flush(&mut self) -> Result<Option<Mark>> {
        self.commit_staged()
    }
}

struct World {
    rng: StdRng,
    wal: Vec<Commit>,
    targets: Vec<Arc<Mutex<Target>>>,
    /// What the server was told: below it everything is forgotten.
    confirmed: Lsn,
    session: Session,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut wal = Vec::new();
        let mut at = 1000;
        for _ in 0..rng.random_range(1..120) {
            let lsn = at + rng.random_range(0..50);
            let end = lsn + rng.random_range(1..30);
            wal.push(Commit { lsn: Lsn(lsn), end: Lsn(end), rows: rng.random_range(0..40) });
            at = end;
        }
        let epoch = Epoch { epoch: Uuid::nil(), system_id: "1".into(), timeline: 1, slot: "s".into() };
        World {
            rng,
            wal,
            targets: NAMES.iter().map(|_| Arc::default()).collect(),
            confirmed: Lsn(1000),
            session: Session { epoch, token: 1, history: History::default(), start: Lsn(1000) },
        }
    }

    fn rows(&self) -> Vec<Position> {
        let all = |commit: &Commit| {
            let commit_lsn = commit.lsn;
            (0..commit.rows).map(move |ordinal| Position { commit_lsn, ordinal })
        };
        self.wal.iter().flat_map(all).collect()
    }

    fn end(&self) -> Lsn {
        self.wal.last().map_or(self.confirmed, |commit| commit.end)
    }

    /// The two promises, held against what is really at the targets.
    fn check(&self) {
        let rows = self.rows();
        for (name, target) in NAMES.iter().zip(&self.targets) {
            let target = target.lock().unwrap();
            assert!(rows.starts_with(&target.rows), "{name} has a gap, a double or another order");
            let below = rows.iter().filter(|row| row.commit_lsn < self.confirmed).count();
            assert!(target.rows.len() >= below, "confirmed {} is ahead of {name}", self.confirmed);
        }
    }

    /// One life of the process. `calm`: no faults, and it must get to the end.
    async fn live(&mut self, calm: bool) {
        self.session.start = self.confirmed;
        let faults = if calm { 0.0 } else { self.rng.random_range(0.0..0.3) };
        let board = Board::new();
        let mut sinks = Vec::new();
        for (name, target) in NAMES.iter().zip(&self.targets) {
            let rng = StdRng::seed_from_u64(self.rng.random());
            let target = Arc::clone(target);
            let session = Some(self.session.clone());
            sinks.push(FaultySink { name, target, staged: vec![], staged_mark: None, session, rng, faults });
        }
        let held: Vec<Mark> = self
            .targets
            .iter()
            .map(|target| target.lock().unwrap().mark.unwrap_or(Mark::at(self.confirmed)))
            .collect();
        for (name, mark) in NAMES.iter().zip(&held) {
            assert!(mark.held >= self.confirmed, "{name} could not go on: {mark} below {}", self.confirmed);
        }
        let mut watermark =
            Watermark::new(self.confirmed, NAMES.iter().copied().zip(held.iter().map(|mark| mark.held)));
        let from = watermark.confirmed();
        let (marks, mut seen) = watch::channel(held.clone());
        let mut drivers = JoinSet::new();
        let mut queues = Vec::new();
        for (index, sink) in sinks.into_iter().enumerate() {
            let (sender, receiver) = queue(30_000);
            queues.push(sender);
            let driver = Driver {
                sink: Box::new(sink),
                queue: receiver,
                session: self.session.clone(),
                held: held[index],
                marks: marks.clone(),
                index,
                unregistered: None,
                status: board.sink(NAMES[index], held[index]),
            };
            drivers.spawn(driver.run());
        }
        let batches = self.batches(from);
        let mut retrace = Retrace::new(from, NAMES.iter().copied().zip(held));
        for batch in &batches {
            retrace.follow(batch).expect("it is the stream that the sinks were fed from");
        }
        let dies_after = if calm { usize::MAX } else { self.rng.random_range(0..60) };
        let mut feeder = JoinSet::new();
        feeder.spawn(feed(queues, batches));
        for step in 0.. {
            tokio::select! {
                biased;
                _ = tokio::time::sleep(Duration::from_secs(120)) => panic!("stuck"),
                Ok(()) = seen.changed() => {}
                ended = drivers.join_next() => match ended {
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(error))) => {
                        assert_ne!(error.class(), Class::Definite, "{error:?}");
                        assert!(!calm, "{error:?}");
                        break;
                    }
                    Some(Err(error)) => panic!("{error}"),
                    None => break,
                },
            }
            for (name, mark) in NAMES.iter().zip(seen.borrow_and_update().iter()) {
                watermark.advance(name, mark.held);
            }
            self.confirmed = watermark.confirmed();
            self.check();
            if step > dies_after {
                break;
            }
        }
        for (name, mark) in NAMES.iter().zip(seen.borrow().iter()) {
            watermark.advance(name, mark.held);
        }
        self.confirmed = watermark.confirmed();
        self.check();
    }

    /// The stream from `from`, cut into batches at random places, with keepalives in between.
    fn batches(&mut self, from: Lsn) -> Vec<Batch> {
        let mut builder = BatchBuilder::new(Mark::at(from));
        let mut batches = Vec::new();
        for commit in self.wal.iter().filter(|commit| commit.lsn >= from) {
            for ordinal in 0..commit.rows {
                let position = Position { commit_lsn: commit.lsn, ordinal };
                builder.push(Row::Content(ContentChange {
                    position,
                    commit_ts: 0,
                    id: Uuid::nil(),
                    after: None,
                }));
                if self.rng.random_bool(0.05) {
                    batches.push(builder.finish(false));
                }
            }
            builder.hold(commit.end);
            let next = self.wal.iter().find(|next| next.lsn >= commit.end).map(|next| next.lsn);
            if let Some(next) = next.filter(|_| self.rng.random_bool(0.2)) {
                // An idle keepalive: the server has no commit below this place that it has not sent.
                builder.hold(Lsn(self.rng.random_range(commit.end.0..=next.0)));
            }
            if self.rng.random_bool(0.3) {
                batches.push(builder.finish(self.rng.random_bool(0.1)));
            }
        }
        batches.push(builder.finish(false));
        batches
    }
}

/// Puts the batches into all queues, then closes them. A driver that has ended takes nothing any more.
async fn feed(queues: Vec<QueueSender>, batches: Vec<Batch>) {
    for batch in batches.into_iter().map(Arc::new) {
        for queue in &queues {
            let _ = queue.send(Arc::clone(&batch)).await;
        }
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("WALCAST_SEED") {
        Ok(seed) => vec![seed.parse().expect("WALCAST_SEED is a number")],
        Err(_) => (0..400).collect(),
    }
}

#[test]
fn no_run_gives_a_gap_a_double_or_a_confirmation_too_early() {
    for seed in seeds() {
        let run = std::panic::AssertUnwindSafe(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.unwrap().block_on(async {
                let mut world = World::new(seed);
                for _ in 0..world.rng.random_range(1..6) {
                    world.live(false).await;
                }
                world.live(true).await;
                let rows = world.rows();
                for (name, target) in NAMES.iter().zip(&world.targets) {
                    assert_eq!(target.lock().unwrap().rows, rows, "{name} is stuck");
                }
                assert_eq!(world.confirmed, world.end(), "the confirmed LSN is stuck");
            });
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("run it again with WALCAST_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
