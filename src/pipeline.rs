//! The whole story, top to bottom: take the slot, ask every sink where it stands, read the stream from the
//! lowest durable LSN, hand batches to the sinks, and confirm what all of them hold.
//!
//! The loop itself is [`Streaming::run`]; what it is begun with is asked of the servers here. Whatever goes
//! wrong that is not final (a lost connection, a sink that lost what it had accepted) has one answer: begin again
//! with [`stream_once`], where every target is asked anew.

use tokio::time::Instant;

use crate::clock::ServerClock;
use crate::config::Config;
use crate::error::{Class, Error, Kind, Result};
use crate::failpoint::failpoint;
use crate::finding;
use crate::lsn::{Checkpoint, Session};
use crate::resume;
use crate::shutdown::Shutdown;
use crate::sink::retry::Backoff;
use crate::sink::{self, Sink};
use crate::sinks;
use crate::source::connection::Connection;
use crate::source::heartbeat::{Watch, ask_clock};
use crate::source::slot::Publication;
use crate::source::{check, slot};
use crate::state::{State, history};
use crate::streaming::{Fed, Streaming};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::registry::StatusRegistry;
use crate::transform::Transform;
use crate::watermark::Watermark;

/// Runs until `shutdown`, or until an error that starting again would not mend.
pub async fn run(config: &Config, registry: &StatusRegistry, mut shutdown: Shutdown) -> Result<()> {
    let mut backoff = Backoff::default();
    let mut former = None;
    let mut throttle = LogThrottle::default();
    // of all lives: what one has received comes again in the next, and is as old as it was
    let clock = ServerClock::default();
    loop {
        let ended = stream_once(config, registry, &mut former, &clock, &mut backoff, &mut shutdown).await;
        registry.streaming(false);
        match ended {
            Ok(()) => return Ok(()),
            Err(error) if error.class() == Class::Definite => return Err(error),
            Err(error) => {
                registry.failed(&error);
                let wait = backoff.next_wait();
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

/// One life of the pipeline: from "who holds what" to the end of the stream.
async fn stream_once(
    config: &Config,
    registry: &StatusRegistry,
    former: &mut Option<Session>,
    clock: &ServerClock,
    backoff: &mut Backoff,
    shutdown: &mut Shutdown,
) -> Result<()> {
    let starting = start(config, registry, former, clock);
    let (streaming, publication) = tokio::select! {
        started = starting => started?,
        () = shutdown.wait() => return Ok(()),
    };
    tracing::info!(
        start = %streaming.confirmed(),
        sinks = streaming.names().join(", "),
        "streaming from slot {}",
        config.postgres.slot
    );
    registry.streaming(true);
    let began = Instant::now();
    let (watch, doubts) = Watch::new(publication.identity, clock.clone());
    let ended = streaming.run(watch.run(&config.postgres), doubts, shutdown).await;
    backoff.worked_for(began.elapsed());
    ended
}

/// Takes the slot for this instance, recovers the sinks, and opens the stream where the slowest stands.
/// Gives what the slot was made for too.
async fn start(
    config: &Config,
    registry: &StatusRegistry,
    former: &mut Option<Session>,
    clock: &ServerClock,
) -> Result<(Streaming, Publication)> {
    let mut state = State::new(config.postgres.clone());
    if let Some(former) = former {
        // whoever took over while we did not look is left alone
        drop(state.guarded(former).await?);
    }
    slot::server_facts(state.client().await?).await?.check_primary()?;
    finding::refuse(&check::check(state.client().await?, &config.postgres).await?)?;
    for mut target in sinks::admins(config)? {
        target.prepare().await?;
    }
    // Last, when nothing else is in the way: from here on the server keeps WAL for us.
    let (history_id, timelines) = history::open(&config.postgres, &mut state).await?;
    let waiting = || registry.waiting();
    if slot::wait_until_free(state.client().await?, &config.postgres.slot, waiting).await? {
        registry.streaming(false);
    }
    let confirmed = history::confirmed(&config.postgres, state.client().await?).await?;
    let session = state.take_fencing_token(history_id, timelines, confirmed).await?;
    *former = Some(session.clone());
    failpoint!("pipeline_after_fencing_token");
    let recovered = recover(sinks::build(config)?, &session, &mut state).await?;
    failpoint!("pipeline_after_recover");

    let watermark = Watermark::new(
        confirmed,
        recovered.iter().map(|(sink, durable, _)| (sink.name(), durable.durable_lsn)),
    );
    let from = watermark.confirmed();
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
    let fed = recovered.into_iter().map(|(sink, durable, registered)| {
        let unregistered = !registered && sink.guarantee().keeps_checkpoint();
        Fed { sink, durable, unregistered: unregistered.then(|| State::new(config.postgres.clone())) }
    });
    let limits = config.pipeline.limits();
    let streaming = Streaming::spawn(limits, registry, stream, transform, watermark, &session, fed.collect());
    Ok((streaming, publication))
}

type Recovered = Vec<(Box<dyn Sink>, Checkpoint, bool)>;

/// Asks every sink where it stands: the sink, its checkpoint, and whether it is registered.
async fn recover(sinks: Vec<Box<dyn Sink>>, session: &Session, state: &mut State) -> Result<Recovered> {
    let mut recovered = Recovered::new();
    for mut sink in sinks {
        let name = sink.name();
        let stored = match sink.recover(session).await {
            Err(error) if error.kind() == Kind::Fenced => {
                return Err(older_state(error, session, state).await);
            }
            stored => stored?,
        };
        let registered = state.is_registered(session, name).await?;
        let judged = resume::judge(stored.as_ref(), registered, session, state.wal_end().await?);
        let checkpoint = judged.or_refuse(sink.id(), session)?;
        tracing::info!(sink = name, %checkpoint, "sink recovered");
        recovered.push((sink, checkpoint, registered));
    }
    state.settle(session).await?;
    Ok(recovered)
}

/// Whether PostgreSQL knows of the newer instance that a target has seen.
async fn older_state(fenced: Error, session: &Session, state: &mut State) -> Error {
    match state.guarded(session).await {
        Err(newer) => newer,
        Ok(_) => resume::forgotten_instance(fenced),
    }
}
