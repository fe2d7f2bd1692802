//! The whole story, top to bottom: take the slot, ask every sink where it stands, read the stream from the
//! lowest durable LSN, hand batches to the sinks, and confirm what all of them hold.
//!
//! The loop itself is [`Streaming::run`]; what it is begun with is asked of the servers here. Whatever goes
//! wrong that is not final (a lost connection, a sink that lost what it had accepted) has one answer: begin again
//! with [`stream_once`], where every target is asked anew.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument, info_span};

use crate::backfill;
use crate::clock::ServerClock;
use crate::config::Config;
use crate::continuity::ContinuityCheck;
use crate::error::{Class, Code, Error, Kind, Result};
use crate::failpoint::failpoint;
use crate::finding;
use crate::lanes::{Keeper, KeeperConfig};
use crate::lsn::{Checkpoint, Session};
use crate::resume::{self, SinkName};
use crate::shutdown::Shutdown;
use crate::sink::retry::Backoff;
use crate::sink::{self, Sink, SinkAdmin};
use crate::sinks;
use crate::source::connection::Connection;
use crate::source::heartbeat::{Watch, ask_clock};
use crate::source::request::OwnRequests;
use crate::source::{check, slot};
use crate::state::backfills::{self, Backfill, RebuildStep};
use crate::state::lanes::{self, LaneRecord};
use crate::state::{State, history};
use crate::streaming::{Begins, Fed, Intake, LaneEnd, Streaming};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::registry::StatusRegistry;
use crate::transform::Transform;
use crate::watermark::Watermark;

/// How long it waits at most where another of several hosts may become the primary at any moment.
const TAKEOVER_WAIT_MAX: Duration = Duration::from_secs(1);

/// A target that has lost what it had accepted so often in a row does not mend by itself.
const ODD_ATTEMPTS: u32 = 4;

/// Runs until `shutdown`, or until an error that starting again would not mend.
pub async fn run(config: &Config, registry: &StatusRegistry, mut shutdown: Shutdown) -> Result<()> {
    let mut backoff = Backoff::default();
    let mut former = None;
    let mut throttle = LogThrottle::default();
    let several_hosts = config.postgres.each_host().len() > 1;
    // of all lives: what one has received comes again in the next, and is as old as it was
    let clock = ServerClock::default();
    loop {
        let ended = stream_once(config, registry, &mut former, &clock, &mut backoff, &mut shutdown).await;
        registry.streaming(false);
        match ended {
            Ok(()) => return Ok(()),
            Err(error) if error.class() == Class::Definite => {
                if error.code() == Code::PublicationChanged {
                    note(history::remember_left_out(&config.postgres).await);
                }
                return Err(error);
            }
            Err(error) => {
                let mut wait = backoff.next_wait();
                let error = match error.class() {
                    Class::Rewind if backoff.attempts() >= ODD_ATTEMPTS => {
                        error.hint("it loses what it accepts each time: look at the target's log")
                    }
                    _ => error,
                };
                registry.failed(&error);
                if several_hosts && matches!(error.code(), Code::PostgresUnreachable | Code::PostgresStandby)
                {
                    wait = wait.min(TAKEOVER_WAIT_MAX);
                }
                if let Some(repeated) = throttle.say(&error.to_string()) {
                    tracing::warn!(
                        code = %error.code(),
                        error = error.chain(),
                        repeated = (repeated > 0).then_some(repeated),
                        "starting again in {wait:.1?}: {}",
                        error.advice()
                    );
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shutdown.wait() => return Ok(()),
                }
            }
        }
    }
}

fn note(noted: Result<()>) {
    if let Err(failed) = noted {
        tracing::warn!(error = failed.chain(), "that the publication leaves out a table could not be noted");
    }
}

/// One life of the pipeline: from "who holds what" to the end of the stream.
async fn stream_once(
    config: &Config,
    registry: &StatusRegistry,
    former: &mut Option<Session>,
    clock: &ServerClock,
    backoff: &mut Backoff,
    shutdown: &mut Shutdown,
) -> Result<()> {
    let starting = async {
        let config = config.on_one_host().await?;
        let started = start(&config, registry, former, clock).await?;
        Ok::<_, Error>((config, started))
    };
    let (config, started) = tokio::select! {
        started = starting => started?,
        () = shutdown.wait() => return Ok(()),
    };
    let Started { streaming, watch, mut keepers } = started;
    tracing::info!(
        start = %streaming.confirmed(),
        sinks = streaming.names().join(", "),
        "streaming from slot {}",
        config.postgres.slot
    );
    registry.streaming(true);
    let began = Instant::now();
    let source_ended = async {
        tokio::select! {
            error = watch.run(&config.postgres) => error,
            error = keeper_ended(&mut keepers) => error,
        }
    };
    let (checkpoints, _) = streaming.progress();
    let first = checkpoints.borrow().clone();
    let ended = streaming.run(source_ended, shutdown).await;
    // a target that loses all that it accepts has not worked, however long that took
    let lost = matches!(&ended, Err(error) if error.class() == Class::Rewind);
    if !lost || checkpoints.borrow().iter().zip(&first).all(|(last, first)| last != first) {
        backoff.worked_for(began.elapsed());
    }
    ended
}

/// What a life begins with.
struct Started {
    streaming: Streaming,
    watch: Watch,
    keepers: JoinSet<Result<()>>,
}

/// The first error of a lane's keeper. One that ends in good order does so with the stream.
async fn keeper_ended(keepers: &mut JoinSet<Result<()>>) -> Error {
    loop {
        match keepers.join_next().await {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => return error,
            Some(Err(error)) => {
                return Error::new(Code::WalcastBroke, "a task beside the stream broke down").because(error);
            }
            None => std::future::pending().await,
        }
    }
}

/// Whoever took over while we did not look is left alone. A server that does not know us is asked as at a first start.
async fn leave_to_newer(state: &mut State, former: &Session) -> Result<()> {
    match state.guarded(former).await {
        Err(error) if error.class() == Class::Definite => Err(error),
        // one that does not answer says so again
        Err(_) | Ok(_) => Ok(()),
    }
}

/// Takes the slot for this instance, recovers the sinks, and opens the stream where the slowest stands.
async fn start(
    config: &Config,
    registry: &StatusRegistry,
    former: &mut Option<Session>,
    clock: &ServerClock,
) -> Result<Started> {
    let mut state = State::new(config.postgres.clone());
    if let Some(former) = former {
        leave_to_newer(&mut state, former).await?;
    }
    slot::server_facts(state.client().await?).await?.check_primary()?;
    finding::refuse(&check::check_to_stream(state.client().await?, &config.postgres).await?)?;
    let mut dead = Dead::new(config, former.is_some());
    prepare(config, &mut state, &mut dead).await?;
    // Last, when nothing else is in the way: from here on the server keeps WAL for us.
    let (mut history_id, mut timelines) = history::open(&config.postgres, &mut state).await?;
    let waiting = || registry.waiting();
    if slot::wait_until_free(state.client().await?, &config.postgres.slot, waiting).await? {
        registry.streaming(false);
        // whoever had it may have noted something
        (history_id, timelines) = history::open(&config.postgres, &mut state).await?;
    }
    let confirmed = history::confirmed(&config.postgres, state.client().await?).await?;
    let session = state.take_fencing_token(history_id, timelines, confirmed).await?;
    *former = Some(session.clone());
    failpoint!("pipeline_after_fencing_token");
    let sinks = sinks::build(config)?;
    let names: Vec<&str> = sinks.iter().map(|sink| sink.name()).collect();
    let lanes = lanes::take_over(&mut state, &session, &names).await?;
    let rebuild = backfills::take_over(&mut state, &session, &lanes).await?;
    let fed = recover(config, sinks, &session, &mut state, &lanes, dead, rebuild).await?;
    failpoint!("pipeline_after_recover");

    let counts = |fed: &&Fed| !matches!(fed.begins, Begins::InLane { counts: false, .. });
    let here = |fed: &&Fed| matches!(fed.begins, Begins::Always | Begins::Here);
    let durable = |fed: &Fed| (fed.sink.name(), fed.durable.durable_lsn);
    let watermark = Watermark::new(confirmed, fed.iter().filter(counts).map(durable));
    // One that does not answer holds back what is confirmed, and not where the stream begins: an older instance may have
    // confirmed more than the slot said when we looked, and what the sinks that are fed hold is never below that.
    let from = Watermark::new(confirmed, fed.iter().filter(here).map(durable)).confirmed();
    let cache = sink::content::load(state.client().await?, &session, from).await?;
    tracing::debug!(rows = cache.len(), "content loaded");
    let places = history::publication(&config.postgres, state.client().await?).await?.places;
    ask_clock(state.client().await?, clock).await?;
    let transform = Transform::new(&places, from, cache, config.pipeline.bounds()).dated_by(clock.clone());
    let connection = Connection::connect(&config.postgres).await?;
    let opened =
        connection.start_replication(&config.postgres.slot, &config.postgres.publication, from).await;
    let stream = match opened {
        Ok(stream) => stream.dated_by(clock.clone()),
        Err(refused) => {
            return Err(history::why_refused(&config.postgres, state.client().await?, refused).await);
        }
    };
    let publication = history::publication(&config.postgres, state.client().await?).await?;
    let (watch, doubts) = Watch::new(publication.identity, clock.clone());
    let claims = fed.iter().filter(here).map(|fed| (fed.sink.id(), fed.durable));
    let own_requests = OwnRequests::default();
    let intake = Intake::new(stream, transform, ContinuityCheck::new(from, claims), from, doubts);
    let intake = intake.with_own_requests(own_requests.clone());
    let limits = config.pipeline.limits(&config.breaker);
    let ids: Vec<SinkName> = fed.iter().map(|fed| fed.sink.id()).collect();
    let (streaming, ends, askers) = Streaming::spawn(limits, registry, intake, watermark, &session, fed);
    let mut keepers = keep_lanes(config, &session, registry, ends, &ids, lanes);
    let (checkpoints, received) = streaming.progress();
    let backfill = backfill::Worker {
        config: config.clone(),
        session,
        checkpoints,
        received,
        askers,
        own_requests,
        registry: registry.clone(),
        pace: backfill::Pace::default(),
    };
    keepers.spawn(backfill.run().instrument(info_span!(parent: None, "backfill")));
    Ok(Started { streaming, watch, keepers })
}

/// Makes what is missing at the targets, but at one that is to be emptied: there it is made then.
async fn prepare(config: &Config, state: &mut State, dead: &mut Dead) -> Result<()> {
    let open = backfills::open_of(state.client().await?, &config.postgres.slot).await?;
    let anew = open.as_ref().and_then(Backfill::to_be_emptied).map(|(sink, _)| sink);
    let mut targets = sinks::admins(config)?;
    targets.retain(|target| Some(target.name()) != anew);
    // at once: one that does not answer takes its time to say so
    let prepared = join_all(targets.iter_mut().map(|target| target.prepare())).await;
    for (target, prepared) in targets.into_iter().zip(prepared) {
        if dead.sort(target.name(), prepared)?.is_none() {
            dead.unprepared.push(target);
        }
    }
    Ok(())
}

/// A task for each lane that there is or may be.
fn keep_lanes(
    config: &Config,
    session: &Session,
    registry: &StatusRegistry,
    ends: Vec<LaneEnd>,
    ids: &[SinkName],
    mut open: Vec<LaneRecord>,
) -> JoinSet<Result<()>> {
    let lane = KeeperConfig {
        postgres: config.postgres.clone(),
        bounds: config.pipeline.bounds(),
        queue_bytes_max: config.pipeline.queue_bytes_max,
        wal_bytes_max: config.lane.wal_bytes_max,
    };
    let mut keepers = JoinSet::new();
    for end in ends {
        let record = open.iter().position(|lane| lane.sink == end.name).map(|at| open.swap_remove(at));
        let Some(sink) = ids.iter().find(|id| id.as_str() == end.name) else { continue };
        let span = info_span!(parent: None, "lane", sink = end.name);
        let keeper = Keeper::new(&lane, session, *sink, end, record, registry);
        keepers.spawn(keeper.run().instrument(span));
    }
    keepers
}

/// The sinks that do not begin with a life.
struct Dead {
    /// How many of them leave others to go on: the content versions are no sink that anybody reads.
    tolerated: usize,
    /// Whether this process has had them all before: what is wrong now is no mistake in its settings.
    again: bool,
    /// How many trying again cannot help.
    blocked: usize,
    /// Those whose targets have not what it takes yet.
    unprepared: Vec<Box<dyn SinkAdmin>>,
}

impl Dead {
    fn new(config: &Config, again: bool) -> Dead {
        let tolerated = config.pipeline.sinks.len().saturating_sub(1);
        Dead { tolerated, again, blocked: 0, unprepared: Vec::new() }
    }

    /// Takes an error for that sink's alone, unless it concerns all or no other is left; `None` for that.
    fn sort<T>(&mut self, sink: &'static str, outcome: Result<T>) -> Result<Option<T>> {
        let error = match outcome {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error,
        };
        let its_own = !error.code().concerns_the_source() && sink != sink::content::NAME.as_str();
        // what a sink lost is no mistake in the settings either
        let passes = match error.class() {
            Class::Transient => true,
            Class::Definite => self.again || error.kind() == Kind::Resync,
            Class::Rewind => false,
        };
        self.blocked += usize::from(error.class() == Class::Definite);
        if !(its_own && passes && self.tolerated > 0 && self.blocked <= self.tolerated) {
            return Err(error);
        }
        tracing::warn!(
            sink,
            code = %error.code(),
            error = error.chain(),
            "cannot begin; the other sinks begin without it: {}",
            error.advice()
        );
        Ok(None)
    }
}

/// Asks every sink where it stands, all at once, but those that are in a lane, do not answer, or are to begin anew.
async fn recover(
    config: &Config,
    mut sinks: Vec<Box<dyn Sink>>,
    session: &Session,
    state: &mut State,
    open: &[LaneRecord],
    mut dead: Dead,
    rebuild: Option<(String, RebuildStep)>,
) -> Result<Vec<Fed>> {
    let mut fed = Vec::new();
    let mut all = true;
    let in_lanes = open.iter().map(|lane| lane.sink.as_str());
    let anew = rebuild.as_ref().map(|(sink, _)| sink.as_str());
    let later = dead.unprepared.iter().map(|target| target.name()).chain(in_lanes).chain(anew);
    let later: Vec<&str> = later.collect();
    let answers = sinks.iter_mut().map(|sink| async {
        match later.contains(&sink.name()) {
            true => None,
            false => Some(sink.recover(session).await),
        }
    });
    let answers = join_all(answers).await;
    for (sink, answer) in sinks.into_iter().zip(answers) {
        let name = sink.name();
        let registered = state.is_registered(session, name).await?;
        let unregistered = !registered && sink.guarantee().keeps_checkpoint();
        let unregistered = unregistered.then(|| State::new(config.postgres.clone()));
        let lane = open.iter().find(|lane| lane.sink == name);
        let unprepared = dead.unprepared.iter().position(|target| target.name() == name);
        let unprepared = unprepared.map(|at| dead.unprepared.swap_remove(at));
        let apart = |durable, counts, sink, unregistered, unprepared| {
            let begins = Begins::InLane { counts, recovered: false };
            let step = rebuild.as_ref().filter(|(anew, _)| anew == name).map(|(_, step)| *step);
            Fed { sink, durable: Checkpoint::at(durable), unregistered, begins, unprepared, rebuild: step }
        };
        if let Some(lane) = lane {
            // whether it can bring anything is for its keeper to say
            let confirmed = match lanes::confirmed(state, lane, &config.postgres).await {
                Err(error) if error.class() != Class::Definite => return Err(error),
                confirmed => confirmed.unwrap_or_default(),
            };
            fed.push(apart(confirmed, false, sink, unregistered, unprepared));
            all = false;
            continue;
        }
        let begins = match answer {
            None => None,
            Some(Err(error)) if error.kind() == Kind::Fenced => {
                return Err(older_state(error, session, state).await);
            }
            Some(Err(error)) => dead.sort(name, Err(error))?,
            Some(Ok(stored)) => {
                let judged = resume::judge(stored.as_ref(), registered, session, state.wal_end().await?);
                dead.sort(name, judged.or_refuse(sink.id(), session))?
            }
        };
        let Some(checkpoint) = begins else {
            fed.push(apart(session.start, true, sink, unregistered, unprepared));
            all = false;
            continue;
        };
        tracing::info!(sink = name, %checkpoint, "sink recovered");
        let leaves =
            dead.tolerated > 0 && sink.id() != sink::content::NAME && sink.guarantee().keeps_checkpoint();
        let begins = if leaves { Begins::Here } else { Begins::Always };
        fed.push(Fed { sink, durable: checkpoint, unregistered, begins, unprepared: None, rebuild: None });
    }
    if all {
        state.settle(session).await?;
    }
    Ok(fed)
}

/// Whether PostgreSQL knows of the newer instance that a target has seen.
async fn older_state(fenced: Error, session: &Session, state: &mut State) -> Error {
    match state.guarded(session).await {
        Err(newer) => newer,
        Ok(_) => resume::forgotten_instance(fenced),
    }
}
