//! Random lives of the real loop ([`walcast::streaming`]): its decoding, batches, queues, drivers, checkpoints, watermark,
//! silence rule and drain, over a real stream of bytes from a walsender that is simulated, into sinks that fail in
//! every way a target can: before the write, after it with the answer lost, in the middle of it, by losing what they
//! had only accepted, by hanging; with crashes of the whole process, signals, and servers that fall silent, end the
//! stream or were restored from a backup in between. After every step: no sink has a gap or a double, and what the
//! server is told is not ahead of what any sink really holds. At the end: nothing is stuck.
//!
//! Time is simulated, so a seed gives the same run again: `WALCAST_SEED=7 cargo test --test unit simulation`.

mod server;
mod target;
mod wal;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use walcast::continuity::ContinuityCheck;
use walcast::error::{Class, Code, Error, Result};
use walcast::event::place::Places;
use walcast::lsn::{Checkpoint, HistoryId, Lsn, Session, StoredCheckpoint, Timelines};
use walcast::resume::{SinkName, judge};
use walcast::shutdown::{Shutdown, Trigger};
use walcast::sink::breaker::BreakerConfig;
use walcast::source::heartbeat::{Answer, Answers, doubts};
use walcast::source::stream::ReplicationStream;
use walcast::streaming::{Begins, Fed, Intake, Limits, Streaming};
use walcast::telemetry::registry::StatusRegistry;
use walcast::transform::{Bounds, Transform};
use walcast::watermark::Watermark;

use self::server::{Habits, Heard, Witness};
use self::target::{FaultySink, Manners, Target};
use self::wal::Wal;

const NAMES: [&str; 3] = ["writes", "cuts", "accepts"];
const START: Lsn = Lsn(1000);
/// How long a drain may take: less, or more, than a server may be silent.
const DRAINS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(150)];
const QUEUE_BYTES_MAX: usize = 30_000;
const BATCH_BYTES_MAX: usize = 20_000;
/// After so long a life that is to end by itself hangs.
const STUCK: Duration = Duration::from_secs(900);

/// What befalls a process in one life.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// It is killed, after so many turns of its loop at the latest.
    Killed(usize),
    /// It is asked to end.
    Signalled,
    /// The server says nothing any more.
    Silence,
    /// The server ends the stream.
    StreamEnds,
    /// The source's own watch finds something wrong.
    SourceEnds,
    /// The server warns, and what it means is known late; with `loss`, that rows are left out.
    Warned { loss: bool },
    /// A sink hangs, and the process is killed.
    Hangs,
    /// A sink hangs, and the process is asked to end: once, or twice.
    HangsSignalled { twice: bool },
    /// The server was restored from a backup.
    Restored,
    /// All goes well until all is sent, then it is asked to end.
    Drains,
    /// All goes well, and it goes on until the idle server may forget everything.
    Idles,
    /// The same, with a server that waits for that.
    Awaited,
}

impl Fate {
    fn random(rng: &mut StdRng) -> Fate {
        match rng.random_range(0..18) {
            0..6 => Fate::Killed(rng.random_range(0..1_000)),
            6..9 => Fate::Signalled,
            9 => Fate::Silence,
            10 => Fate::StreamEnds,
            11 => Fate::SourceEnds,
            12..14 => Fate::Hangs,
            14 => Fate::HangsSignalled { twice: false },
            15 => Fate::Warned { loss: false },
            16 => Fate::Warned { loss: true },
            _ => Fate::HangsSignalled { twice: true },
        }
    }

    fn last(rng: &mut StdRng) -> Fate {
        [Fate::Drains, Fate::Idles, Fate::Awaited][rng.random_range(0..3)]
    }

    /// Whether sinks may fail in such a life, and be slow.
    fn is_rough(self) -> bool {
        matches!(self, Fate::Killed(_) | Fate::Signalled | Fate::StreamEnds | Fate::SourceEnds)
    }

    fn hangs(self) -> bool {
        matches!(self, Fate::Hangs | Fate::HangsSignalled { .. })
    }
}

/// How a life ended, and what the server knew then.
struct End {
    /// `None`: killed.
    ended: Option<Result<()>>,
    heard: Heard,
    /// No sink failed.
    calm: bool,
    /// How far the loop had received.
    received: Lsn,
    /// Since the first signal.
    signalled: Option<Duration>,
    /// How long the drain might take.
    drain: Duration,
    /// Who stops the reading.
    full: Option<String>,
}

struct World {
    rng: StdRng,
    wal: Wal,
    targets: Vec<Arc<Mutex<Target>>>,
    /// What the slot says: below it everything is forgotten.
    confirmed: Lsn,
    session: Session,
    trace: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let wide = rng.random_bool(0.3);
        let wal = Wal::random(&mut rng, START, wide);
        let wanted = Some(Arc::new(wal.rows()));
        let target = |name| Target { name, wanted: wanted.clone(), ..Target::default() };
        let history_id =
            HistoryId { uuid: Uuid::nil(), system_id: "1".into(), timeline: 1, slot: "s".into() };
        World {
            rng,
            wal,
            targets: NAMES.map(|name| Arc::new(Mutex::new(target(name)))).into(),
            confirmed: START,
            session: Session {
                history_id,
                fencing_token: 0,
                timelines: Timelines::default(),
                start: START,
                settled_timeline: 1,
            },
            trace: 0,
        }
    }

    fn rng(&mut self) -> StdRng {
        StdRng::seed_from_u64(self.rng.random())
    }

    fn targets(&self) -> impl Iterator<Item = Target> {
        self.targets.iter().map(|target| target.lock().unwrap().clone())
    }

    /// Where each sink goes on, as it is judged at every start.
    fn checkpoints(&self) -> Vec<Checkpoint> {
        let go_on = |target: Target| {
            let stored = target
                .checkpoint
                .map(|checkpoint| StoredCheckpoint::new(&self.session.history_id, checkpoint));
            let judged = judge(stored.as_ref(), stored.is_some(), &self.session, self.wal.end);
            judged.or_refuse(SinkName::new(target.name), &self.session).expect("a sink can always go on")
        };
        self.targets().map(go_on).collect()
    }

    fn lowest(&self) -> Lsn {
        self.checkpoints().iter().map(|checkpoint| checkpoint.durable_lsn).min().unwrap_or_default()
    }

    fn bounds(&mut self, fate: Fate) -> Bounds {
        // what is to be flushed at the end must not have gone before
        let patient = fate == Fate::Drains || fate != Fate::Idles && self.rng.random_bool(0.2);
        Bounds {
            batch_rows_max: self.rng.random_range(1..40),
            batch_bytes_max: self.rng.random_range(1_000..BATCH_BYTES_MAX),
            batch_age_max: if patient { Duration::from_secs(5) } else { Duration::from_millis(1) },
            idle_every: Duration::from_secs(10),
            row_bytes_max: 900_000,
        }
    }

    fn habits(&mut self, fate: Fate) -> Habits {
        let some = self.rng.random_range(0..20);
        Habits {
            stops_after: matches!(fate, Fate::Silence | Fate::StreamEnds).then_some(some),
            ends: fate == Fate::StreamEnds,
            waits: fate == Fate::Awaited,
            brisk: fate.hangs() || matches!(fate, Fate::Warned { .. }),
            warns: warns(fate),
        }
    }

    /// The sinks, recovered. One of them may hang.
    fn fed(&mut self, fate: Fate, faults: f64) -> Vec<Fed> {
        let slow = fate.is_rough() && self.rng.random_bool(0.3);
        let write_millis_max = if slow { 300 } else { 4 };
        // one that nobody ticks makes rows durable when it is told to
        let lazy = matches!(fate, Fate::Drains | Fate::Awaited) || self.rng.random_bool(0.1);
        let tick_every = if lazy && fate != Fate::Idles {
            Duration::from_secs(10_000)
        } else {
            Duration::from_millis(400)
        };
        let hanging = self.rng.random_range(0..NAMES.len());
        let mut fed = Vec::new();
        for (index, durable) in self.checkpoints().into_iter().enumerate() {
            let hangs = fate.hangs() && index == hanging;
            let manners = Manners { faults, write_millis_max, tick_every, hangs };
            let rng = self.rng();
            self.targets[index].lock().unwrap().asked(durable);
            let sink = FaultySink::new(&self.targets[index], &self.session, rng, manners);
            fed.push(Fed {
                sink: Box::new(sink),
                durable,
                unregistered: None,
                begins: Begins::Always,
                unprepared: None,
                rebuild: None,
            });
        }
        fed
    }

    /// One life of the process.
    async fn live(&mut self, fate: Fate) -> End {
        self.session.start = self.confirmed;
        self.session.fencing_token += 1;
        let registry = StatusRegistry::new();
        let durable =
            NAMES.into_iter().zip(self.checkpoints().into_iter().map(|checkpoint| checkpoint.durable_lsn));
        let watermark = Watermark::new(self.confirmed, durable);
        let from = watermark.confirmed();
        let rough = fate.is_rough() && self.rng.random_bool(0.7);
        let faults = if rough { self.rng.random_range(0.01..0.3) } else { 0.0 };
        let fed = self.fed(fate, faults);
        let transform =
            Transform::new(&Places::usual("public"), from, self.wal.contents(from), self.bounds(fate));
        let (client, server) = tokio::io::duplex(self.rng.random_range(100..4096));
        let drain = DRAINS[self.rng.random_range(0..DRAINS.len())];
        let limits = Limits { queue_bytes_max: QUEUE_BYTES_MAX, drain, breaker: BreakerConfig::default() };
        let (doubts, answers) = doubts();
        let claims = fed.iter().map(|fed| (fed.sink.id(), fed.durable));
        let continuity = ContinuityCheck::new(from, claims);
        let intake = Intake::new(ReplicationStream::over(client), transform, continuity, from, doubts);
        let (streaming, ..) = Streaming::spawn(limits, &registry, intake, watermark, &self.session, fed);

        let rows = self.targets.first().unwrap().lock().unwrap().wanted.clone().unwrap_or_default();
        let witness = Witness::new(&self.targets, rows, self.confirmed, !rough);
        let (habits, servers_rng, mut fates_rng) = (self.habits(fate), self.rng(), self.rng());
        let (trigger, mut shutdown) = Shutdown::manual();
        let signalled = Mutex::new(None);
        let source_ended = source_ended(fate, self.rng(), answers, &witness);
        let ended = tokio::select! {
            biased;
            ended = turns(fate, streaming.run(source_ended, &mut shutdown)) => ended,
            never = server::serve(server, &self.wal, from, habits, servers_rng, &witness) => match never {},
            () = befall(fate, &mut fates_rng, &trigger, &signalled, drain, &witness, self.wal.end) => None,
            () = sleep(STUCK) => panic!("{fate:?}: stuck"),
        };
        let heard = witness.heard();
        assert!(
            heard.left || !witness.is_overdue(),
            "{fate:?}: no status for {:?}",
            heard.status_at.elapsed()
        );
        let status = registry.status();
        let full = status.sinks.into_iter().find(|sink| sink.backpressure).map(|sink| sink.name);
        // a slot may forget its last steps when its server crashes
        if self.rng.random_bool(0.8) {
            self.confirmed = heard.confirmed;
        }
        self.trace = self.trace.wrapping_mul(31).wrapping_add(heard.trace);
        let signalled = signalled.lock().unwrap().map(|at: Instant| at.elapsed());
        End { ended, heard, calm: !rough, received: status.source.received_lsn, signalled, drain, full }
    }

    /// One life, and whether it ended as it should.
    async fn survive(&mut self, fate: Fate) {
        let end = self.live(fate).await;
        let End { ended, heard, full, .. } = &end;
        let error = ended.as_ref().and_then(|ended| ended.as_ref().err());
        let failed = |code: Code, words: &str| {
            error.is_some_and(|error| error.code() == code && error.to_string().contains(words))
        };
        let lost = error.is_some_and(|error| error.class() == Class::Rewind) && !end.calm;
        let drained = matches!(ended, Some(Ok(())));
        match fate {
            Fate::Killed(_) => assert!(ended.is_none() || lost, "{ended:?}"),
            Fate::Signalled => assert!(drained || lost, "{ended:?}"),
            Fate::Silence => {
                assert!(failed(Code::PostgresSilent, "has sent nothing"), "{ended:?}");
                let asked = heard.asked_at.expect("it is asked for a sign of life") - heard.said_at;
                assert!(heard.said_at.elapsed() > Duration::from_secs(60), "{asked:?}");
                assert!(heard.said_at.elapsed() < Duration::from_secs(64), "{asked:?}");
            }
            Fate::StreamEnds => {
                assert!(lost || failed(Code::PostgresUnreachable, "ended the replication"), "{ended:?}")
            }
            Fate::SourceEnds => {
                assert!(lost || failed(Code::PostgresUnreachable, "the SQL session"), "{ended:?}")
            }
            Fate::Warned { loss } => {
                let told = loss && heard.doubts_raised > 0 && failed(Code::PublicationChanged, "left out");
                assert!(told || ended.is_none() && heard.doubts_settled == heard.doubts_raised, "{ended:?}");
            }
            Fate::Restored => assert!(failed(Code::SinkAheadOfServer, "holds a last row at"), "{ended:?}"),
            Fate::Hangs => assert!(ended.is_none(), "{ended:?}"),
            Fate::HangsSignalled { .. } | Fate::Drains => assert!(drained, "{ended:?}"),
            Fate::Awaited => assert!(ended.is_none(), "{ended:?}"),
            Fate::Idles => {
                assert!(ended.is_none(), "{ended:?}");
                self.check_quick(heard.all_sent_at.unwrap());
            }
        }
        if fate.hangs() {
            assert!(heard.new_bytes <= 100_000, "{} bytes are taken for a sink that hangs", heard.new_bytes);
            let told = fate != Fate::Hangs || heard.all_sent_at.is_some() || full.is_some();
            assert!(told, "it is told who stops the reading");
        }
        if drained {
            self.check_drained(fate, &end);
        }
    }

    /// What came last did not wait for company any longer than it may.
    fn check_quick(&self, all_sent_at: Instant) {
        let Some(last) = self.wal.rows().last().map(|row| row.position.commit_lsn) else { return };
        let end = self.wal.commits.iter().find(|commit| commit.lsn == last).map(|commit| commit.end).unwrap();
        for target in self.targets().filter(|target| target.name != "accepts") {
            let took = target.held_since(end).map_or(Duration::ZERO, |since| since - all_sent_at);
            assert!(took < Duration::from_millis(300), "{} has the last rows after {took:?}", target.name);
        }
    }

    /// It left within its time, and told the server of all that the sinks hold.
    fn check_drained(&self, fate: Fate, end: &End) {
        let (heard, took, drain) = (end.heard, end.signalled.unwrap(), end.drain);
        assert!(heard.left, "it said goodbye");
        let leaving = Duration::from_millis(20);
        assert!(took <= drain + leaving, "{took:?}");
        let at_once = fate == Fate::HangsSignalled { twice: true };
        assert!(!at_once || took <= drain / 2 + leaving, "{took:?}");
        if took < drain && !at_once {
            assert_eq!(heard.confirmed, self.lowest(), "the last status is of all that the sinks hold");
            let whole = self.wal.commits.iter().rev().find(|commit| commit.end <= end.received);
            let whole = whole.map_or(START, |commit| commit.end);
            assert!(self.lowest() >= whole, "{whole} was received, and only {} is durable", self.lowest());
        }
    }

    /// The server was restored from a backup of a time that a sink is ahead of, and that is read again.
    async fn restored(&mut self) -> Option<World> {
        let last = |target: Target| target.checkpoint.and_then(|checkpoint| checkpoint.position);
        let furthest = self.targets().filter_map(last).max()?.commit_lsn;
        let known = self.wal.below(self.lowest());
        let lost = self.wal.below(Lsn(furthest.0 + 1));
        if known >= lost {
            return None;
        }
        let kept = self.rng.random_range(known..lost);
        let mut rng = self.rng();
        let wal = self.wal.restored(&mut rng, kept);
        let copy = |target: Target| Arc::new(Mutex::new(Target { wanted: None, ..target }));
        let targets = self.targets().map(copy).collect();
        let session = self.session.clone();
        Some(World { rng, wal, targets, confirmed: self.confirmed, session, trace: 0 })
    }

    /// A sink that has rows which the restored server has lost gets none of its new ones.
    async fn notice(&mut self, old: &Wal) {
        let before: Vec<Target> = self.targets().collect();
        self.survive(Fate::Restored).await;
        let same =
            old.commits.iter().zip(&self.wal.commits).take_while(|(old, new)| old.lsn == new.lsn).count();
        let cut = old.commits.get(same).map_or(old.end, |commit| commit.lsn);
        for (before, after) in before.iter().zip(self.targets()) {
            let lost = before.rows.last().is_some_and(|row| row.position.commit_lsn >= cut);
            assert!(!lost || before.rows == after.rows, "{} got rows of another history", after.name);
        }
    }
}

/// The loop, killed after as many turns as it is fated to have.
async fn turns(fate: Fate, running: impl Future<Output = Result<()>>) -> Option<Result<()>> {
    let mut running = pin!(running);
    let mut left = if let Fate::Killed(turns) = fate { turns } else { usize::MAX };
    poll_fn(|context| {
        left -= 1;
        match running.as_mut().poll(context) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// How often the server warns.
fn warns(fate: Fate) -> f64 {
    match fate {
        Fate::Warned { .. } => 0.05,
        Fate::Killed(_) | Fate::Signalled | Fate::SourceEnds | Fate::StreamEnds => 0.01,
        _ => 0.0,
    }
}

/// The source's own watch: it says what the warnings mean, mostly at once, and once later than any silence may last.
async fn source_ended(fate: Fate, mut rng: StdRng, mut answers: Answers, witness: &Witness) -> Error {
    let ends = Duration::from_millis(rng.random_range(0..2_000));
    let ended = async {
        match fate {
            Fate::SourceEnds => sleep(ends).await,
            _ => std::future::pending().await,
        }
        Error::new(Code::PostgresUnreachable, "the SQL session ended")
    };
    let mut late = matches!(fate, Fate::Warned { .. });
    let answering = async {
        loop {
            answers.raised().await;
            let millis = if std::mem::take(&mut late) { 100_000 } else { rng.random_range(0..20) };
            sleep(Duration::from_millis(millis)).await;
            if fate == (Fate::Warned { loss: true }) && rng.random_bool(0.5) {
                return Error::new(Code::PublicationChanged, "rows are left out");
            }
            witness.settled();
            answers.settle(Answer::Harmless("harmless".into()));
        }
    };
    tokio::select! {
        error = ended => error,
        error = answering => error,
    }
}

/// Lets happen what the process is fated to; returns when it is killed.
async fn befall(
    fate: Fate,
    rng: &mut StdRng,
    trigger: &Trigger,
    signalled: &Mutex<Option<Instant>>,
    drain: Duration,
    witness: &Witness,
    end: Lsn,
) {
    let signal = || {
        signalled.lock().unwrap().get_or_insert_with(Instant::now);
        trigger.signal();
    };
    let some_time = Duration::from_millis(rng.random_range(0..1_000));
    match fate {
        Fate::Killed(_) => return sleep(Duration::from_secs(400)).await,
        Fate::Signalled => {
            sleep(some_time).await;
            signal();
        }
        Fate::Hangs => return sleep(Duration::from_secs(100)).await,
        Fate::HangsSignalled { twice } => {
            sleep(some_time).await;
            signal();
            if twice {
                sleep(drain / 2).await;
                signal();
            }
        }
        Fate::Drains => {
            while witness.heard().all_sent_at.is_none() {
                sleep(Duration::from_millis(100)).await;
            }
            sleep(Duration::from_secs(1)).await;
            signal();
        }
        Fate::Idles | Fate::Awaited => {
            while witness.heard().confirmed < end {
                sleep(Duration::from_millis(100)).await;
            }
            return;
        }
        // beyond any wait of this server, however late it is answered
        Fate::Warned { .. } => return sleep(Duration::from_secs(300)).await,
        Fate::Silence | Fate::StreamEnds | Fate::SourceEnds | Fate::Restored => {}
    }
    std::future::pending().await
}

/// A whole run; gives what tells it from others.
fn run(seed: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let mut world = World::new(seed);
        for _ in 0..world.rng.random_range(1..6) {
            let fate = Fate::random(&mut world.rng);
            world.survive(fate).await;
            if let Some(mut restored) = world.restored().await {
                restored.notice(&world.wal).await;
            }
        }
        let last = Fate::last(&mut world.rng);
        world.survive(last).await;
        let rows = world.wal.rows();
        for target in world.targets() {
            assert_eq!(target.rows.len(), rows.len(), "{} is stuck", target.name);
        }
        assert_eq!(world.lowest(), world.wal.end, "a sink's checkpoint is stuck");
        world.trace
    })
}

fn seeds() -> Vec<u64> {
    match std::env::var("WALCAST_SEED") {
        Ok(seed) => vec![seed.parse().expect("WALCAST_SEED is a number")],
        Err(_) => (0..400).collect(),
    }
}

#[test]
fn no_life_gives_a_gap_a_double_or_a_confirmation_too_early() {
    for seed in seeds() {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("run it again with WALCAST_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in 0..10 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
