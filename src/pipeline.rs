//! The whole story, top to bottom: take the slot, ask every sink where it stands, read the stream from the
//! lowest held LSN, hand batches to the sinks, and confirm what all of them hold.
//!
//! One task reads, decodes, joins and batches ([`Streaming::run`]); one task a sink writes
//! ([`crate::sink::driver`]). Between them are two crossings only: a bounded queue out, a watch of marks
//! back. Whatever goes wrong that is not final (a lost connection, a sink that lost what it had accepted) has
//! one answer: begin again with [`stream_once`], where every target is asked anew.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::batch::Batch;
use crate::config::Config;
use crate::error::{Class, Error, Kind, Result};
use crate::failpoint::failpoint;
use crate::finding;
use crate::lsn::{Lsn, Mark, Session};
use crate::resume;
use crate::retrace::Retrace;
use crate::shutdown::Shutdown;
use crate::sink::driver::Driver;
use crate::sink::queue::{QueueSender, queue};
use crate::sink::retry::Backoff;
use crate::sink::{self, Sink};
use crate::sinks;
use crate::source::connection::Connection;
use crate::source::frame::Frame;
use crate::source::stream::ReplicationStream;
use crate::source::{check, heartbeat, slot};
use crate::state::{State, epoch};
use crate::telemetry::board::Board;
use crate::telemetry::fold::Fold;
use crate::transform::Transform;
use crate::watermark::Watermark;

const STATUS_EVERY: Duration = Duration::from_secs(1);
/// How long the server may say nothing, though asked after half of it: as long as PostgreSQL's own receiver waits.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Runs until `shutdown`, or until an error that starting again would not mend.
pub async fn run(config: &Config, board: &Board, mut shutdown: Shutdown) -> Result<()> {
    let mut backoff = Backoff::default();
    let mut former = None;
    let mut fold = Fold::default();
    loop {
        let ended = stream_once(config, board, &mut former, &mut backoff, &mut shutdown).await;
        board.streaming(false);
        match ended {
            Ok(()) => return Ok(()),
            Err(error) if error.class() == Class::Definite => return Err(error),
            Err(error) => {
                board.failed(&error);
                let wait = backoff.next_wait();
                if let Some(repeated) = fold.say(&error.to_string()) {
                    tracing::warn!(
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
    board: &Board,
    former: &mut Option<Session>,
    backoff: &mut Backoff,
    shutdown: &mut Shutdown,
) -> Result<()> {
    let starting = start(config, board, former);
    let streaming = tokio::select! {
        streaming = starting => streaming?,
        () = shutdown.wait() => return Ok(()),
    };
    tracing::info!(
        start = %streaming.confirmed(),
        sinks = streaming.names().join(", "),
        "streaming from slot {}",
        config.postgres.slot
    );
    board.streaming(true);
    let began = Instant::now();
    let ended = streaming.run(config, board, shutdown).await;
    backoff.worked_for(began.elapsed());
    ended
}

/// Takes the slot for this instance, recovers the sinks, and opens the stream where the slowest stands.
async fn start(config: &Config, board: &Board, former: &mut Option<Session>) -> Result<Streaming> {
    let mut state = State::new(config.postgres.clone());
    if let Some(former) = former {
        // whoever took over while we did not look is left alone
        drop(state.guarded(former).await?);
    }
    finding::refuse(&check::check(state.client().await?, &config.postgres).await?)?;
    for mut target in sinks::admins(config)? {
        target.prepare().await?;
    }
    // Last, when nothing else is in the way: from here on the server keeps WAL for us.
    let (epoch, history) = epoch::open(&config.postgres, &mut state).await?;
    slot::wait_until_free(state.client().await?, &config.postgres.slot).await?;
    let confirmed = epoch::confirmed(&config.postgres, state.client().await?).await?;
    let session = state.take_token(epoch, history, confirmed).await?;
    *former = Some(session.clone());
    failpoint!("pipeline_after_token");
    let recovered = recover(sinks::build(config)?, &session, &mut state).await?;
    failpoint!("pipeline_after_recover");

    let watermark =
        Watermark::new(confirmed, recovered.iter().map(|(sink, held, _)| (sink.name(), held.held)));
    let from = watermark.confirmed();
    let cache = sink::content::load(state.client().await?, &session, from).await?;
    tracing::debug!(rows = cache.len(), "content loaded");
    let transform = Transform::new(&config.postgres.schema, from, cache, config.pipeline.bounds());
    let connection = Connection::connect(&config.postgres).await?;
    let opened =
        connection.start_replication(&config.postgres.slot, &config.postgres.publication, from).await;
    if opened.as_ref().is_err_and(|refused| refused.kind() == Kind::Resync) {
        // of a slot that has gone this very moment more is known than the server says
        epoch::confirmed(&config.postgres, state.client().await?).await?;
    }
    let stream = opened?;
    Ok(Streaming::spawn(config, board, stream, transform, watermark, session, recovered))
}

type Recovered = Vec<(Box<dyn Sink>, Mark, bool)>;

/// Asks every sink where it stands: the sink, its mark, and whether it is registered.
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
        let mark = judged.or_refuse(name, session)?;
        tracing::info!(sink = name, %mark, "sink recovered");
        recovered.push((sink, mark, registered));
    }
    Ok(recovered)
}

/// Whether PostgreSQL knows of the newer instance that a target has seen.
async fn older_state(fenced: Error, session: &Session, state: &mut State) -> Error {
    match state.guarded(session).await {
        Err(newer) => newer,
        Ok(_) => resume::forgotten_instance(fenced),
    }
}

/// The stream and the sinks at work.
struct Streaming {
    stream: ReplicationStream,
    transform: Transform,
    retrace: Retrace,
    watermark: Watermark,
    /// The highest LSN that the server has sent us.
    received: Lsn,
    /// When the server last said something, or was not listened to.
    heard: Instant,
    queues: Vec<(&'static str, QueueSender)>,
    marks: watch::Receiver<Vec<Mark>>,
    drivers: JoinSet<Result<()>>,
    outbox: Option<Outbox>,
}

/// A batch on its way into the queues; `next` is the first that does not have it yet.
struct Outbox {
    batch: Arc<Batch>,
    next: usize,
}

impl Streaming {
    fn spawn(
        config: &Config,
        board: &Board,
        stream: ReplicationStream,
        transform: Transform,
        watermark: Watermark,
        session: Session,
        recovered: Recovered,
    ) -> Self {
        let held = recovered.iter().map(|(sink, mark, _)| (sink.name(), *mark));
        let retrace = Retrace::new(watermark.confirmed(), held);
        let (marks, marks_seen) = watch::channel(recovered.iter().map(|(_, mark, _)| *mark).collect());
        let mut drivers = JoinSet::new();
        let mut queues = Vec::new();
        for (index, (sink, held, registered)) in recovered.into_iter().enumerate() {
            let (sender, receiver) = queue(config.pipeline.queue_bytes_max);
            let name = sink.name();
            let unregistered = !registered && sink.guarantee().keeps_mark();
            queues.push((name, sender));
            let status = board.sink(name, held).promising(sink.guarantee(), sink.promise());
            let driver = Driver {
                sink,
                queue: receiver,
                session: session.clone(),
                held,
                marks: marks.clone(),
                index,
                unregistered: unregistered.then(|| State::new(config.postgres.clone())),
                status,
            };
            drivers.spawn(driver.run());
        }
        Streaming {
            stream,
            transform,
            retrace,
            received: watermark.confirmed(),
            heard: Instant::now(),
            watermark,
            queues,
            marks: marks_seen,
            drivers,
            outbox: None,
        }
    }

    fn confirmed(&self) -> Lsn {
        self.watermark.confirmed()
    }

    fn names(&self) -> Vec<&'static str> {
        self.queues.iter().map(|(name, _)| *name).collect()
    }

    async fn run(mut self, config: &Config, board: &Board, shutdown: &mut Shutdown) -> Result<()> {
        let mut source_ended = pin!(heartbeat::watch(&config.postgres));
        let mut status_due = tokio::time::interval(STATUS_EVERY);
        status_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.take_frames(board)?;
            let due = self.outbox.is_none().then(|| self.transform.due_at()).flatten();
            tokio::select! {
                biased;
                () = shutdown.wait() => break,
                Some(ended) = self.drivers.join_next() => return Err(driver_ended(ended)),
                error = &mut source_ended => return Err(error),
                Ok(()) = self.marks.changed() => self.confirm(board).await?,
                _ = status_due.tick() => self.send_status(board).await?,
                sent = send_next(&self.queues, &mut self.outbox), if self.outbox.is_some() => sent?,
                () = sleep_until(due), if due.is_some() => {}
                filled = self.stream.fill(), if self.outbox.is_none() => {
                    filled?;
                    self.heard = Instant::now();
                }
            }
        }
        self.drain(config, board, shutdown).await
    }

    /// Decodes what is in the socket's buffer, until a batch is full.
    fn take_frames(&mut self, board: &Board) -> Result<()> {
        while self.outbox.is_none() {
            match self.stream.next_frame()? {
                Some(Frame::XLogData { wal_start, payload, .. }) => {
                    self.received = self.received.max(wal_start);
                    self.transform.apply(&payload)?;
                    if !self.transform.is_full() {
                        continue;
                    }
                }
                Some(Frame::Keepalive { wal_end, reply_requested, .. }) => {
                    self.received = self.received.max(wal_end);
                    self.transform.keepalive(wal_end, reply_requested);
                    continue;
                }
                None => {}
            }
            let Some(batch) = self.transform.take_batch(Instant::now()) else { break };
            failpoint!("pipeline_after_batch", blocking);
            self.hand_on(batch)?;
        }
        board.tick();
        Ok(())
    }

    /// Puts a batch in the outbox, unless it shows that the sinks were fed from another stream.
    fn hand_on(&mut self, batch: Batch) -> Result<()> {
        self.retrace.follow(&batch)?;
        self.outbox = Some(Outbox { batch: Arc::new(batch), next: 0 });
        Ok(())
    }

    /// Tells the server of every step of the confirmed LSN at once: it can forget that WAL.
    async fn confirm(&mut self, board: &Board) -> Result<()> {
        let mut moved = false;
        let held: Vec<Lsn> = self.marks.borrow_and_update().iter().map(|mark| mark.held).collect();
        for ((name, _), held) in self.queues.iter().zip(held) {
            moved |= self.watermark.advance(name, held);
        }
        if moved { self.send_status(board).await } else { Ok(()) }
    }

    async fn send_status(&mut self, board: &Board) -> Result<()> {
        let confirmed = self.confirmed();
        board.source(
            self.received,
            confirmed,
            self.queues.iter().map(|(name, queue)| (*name, queue.bytes())),
        );
        board.backpressure(self.full_queue());
        let ask = self.is_silent()?;
        failpoint!("pipeline_before_status");
        self.stream.send_status(self.received.max(confirmed), confirmed, ask).await?;
        failpoint!("pipeline_after_status");
        Ok(())
    }

    /// Whether it is time to ask the server for a sign of life; an error when it has given none for too long. TCP's
    /// own probes do not see a connection of which only the near half, up to some proxy, is alive.
    fn is_silent(&mut self) -> Result<bool> {
        if self.outbox.is_some() {
            self.heard = Instant::now();
        }
        let silence = self.heard.elapsed();
        if silence > SILENCE_MAX {
            let message = format!("PostgreSQL has sent nothing for {} s", silence.as_secs());
            return Err(Error::new(Kind::Unavailable, message));
        }
        Ok(silence > SILENCE_MAX / 2)
    }

    /// The sink whose queue has no room for the batch that is to go into it.
    fn full_queue(&self) -> Option<&'static str> {
        let outbox = self.outbox.as_ref()?;
        let (name, queue) = self.queues.get(outbox.next)?;
        (!queue.has_room_for(&outbox.batch)).then_some(*name)
    }

    /// Stops reading, lets the sinks make durable what they were given, tells the server, and leaves.
    async fn drain(mut self, config: &Config, board: &Board, shutdown: &mut Shutdown) -> Result<()> {
        tracing::info!("draining");
        board.draining();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(config.pipeline.drain_seconds);
        let mut status_due = tokio::time::interval(STATUS_EVERY);
        loop {
            if self.outbox.is_none()
                && let Some(rest) = self.transform.take_rest()
            {
                self.hand_on(rest)?;
            }
            if self.outbox.is_none() {
                self.queues.iter_mut().for_each(|(_, queue)| queue.close());
            }
            tokio::select! {
                biased;
                ended = self.drivers.join_next() => match ended {
                    Some(Ok(Ok(()))) => {}
                    Some(ended) => return Err(driver_ended(ended)),
                    None => break,
                },
                Ok(()) = self.marks.changed() => self.confirm(board).await?,
                _ = status_due.tick() => self.send_status(board).await?,
                sent = send_next(&self.queues, &mut self.outbox), if self.outbox.is_some() => sent?,
                () = tokio::time::sleep_until(deadline) => {
                    tracing::warn!("not all sinks were done within {} s; the rest is read again at the next start", config.pipeline.drain_seconds);
                    break;
                }
                () = shutdown.again() => {
                    tracing::warn!("second signal: leaving at once; the rest is read again at the next start");
                    break;
                }
            }
        }
        self.confirm(board).await?;
        failpoint!("pipeline_before_close");
        let confirmed = self.confirmed();
        self.stream.close(confirmed).await?;
        tracing::info!(%confirmed, "stopped");
        Ok(())
    }
}

/// Puts the outbox's batch into the next queue. Cancel safe.
async fn send_next(queues: &[(&'static str, QueueSender)], outbox: &mut Option<Outbox>) -> Result<()> {
    let Some(out) = outbox else { return Ok(()) };
    if let Some((_, queue)) = queues.get(out.next) {
        // A driver that has ended is noticed by its own branch of the loop, with its error.
        if queue.send(Arc::clone(&out.batch)).await.is_err() {
            std::future::pending::<()>().await;
        }
        out.next += 1;
    }
    if out.next >= queues.len() {
        *outbox = None;
    }
    Ok(())
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

fn driver_ended(ended: Result<Result<()>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => Error::new(Kind::Unavailable, "a sink's task ended early"),
        Err(error) => Error::new(Kind::Protocol, "a sink's task broke down").because(error),
    }
}
