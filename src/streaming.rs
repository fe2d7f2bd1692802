//! The loop that carries the stream: read, decode, join and batch in one task; write in one task a sink
//! ([`crate::sink::driver`]); confirm what all sinks hold. Between them are two crossings only: a bounded queue
//! out, a watch of checkpoints back.
//!
//! It asks no server anything: the open stream, the sinks with what each holds, and whatever else may end it are
//! given to it. Its only clock is tokio's: what the timers run by is also what ages are measured by, and a test can
//! hold it. So the simulation (`tests/unit/simulation`) drives this loop itself, with a server, targets and a time of its
//! own.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tracing::{Instrument, Span, info_span};

use crate::batch::Batch;
use crate::continuity::ContinuityCheck;
use crate::error::{Code, Error, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Lsn, Session};
use crate::shutdown::Shutdown;
use crate::sink::Sink;
use crate::sink::driver::Driver;
use crate::sink::queue::{QueueSender, queue};
use crate::source::connect;
use crate::source::frame::Frame;
use crate::source::heartbeat::Doubts;
use crate::source::stream::ReplicationStream;
use crate::state::State;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::registry::StatusRegistry;
use crate::transform::Transform;
use crate::watermark::Watermark;

const STATUS_EVERY: Duration = Duration::from_secs(1);
/// How long the server may say nothing, though asked after half of it: as long as PostgreSQL's own receiver waits.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What the loop may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of batches that may wait before each sink.
    pub queue_bytes_max: usize,
    /// How long the sinks have at the end to write what they were given.
    pub drain: Duration,
}

/// A sink that was asked where it stands, and is to be fed from there.
pub struct Fed {
    /// The sink.
    pub sink: Box<dyn Sink>,
    /// What it holds.
    pub durable: Checkpoint,
    /// Where to register it with its first checkpoint, when it is not registered yet.
    pub unregistered: Option<State>,
}

/// The stream and the sinks at work.
pub struct Streaming<S = connect::Stream> {
    stream: ReplicationStream<S>,
    transform: Transform,
    continuity: ContinuityCheck,
    watermark: Watermark,
    /// The highest LSN that the server has sent us.
    received: Lsn,
    /// When the server last said something, or was not listened to.
    heard: Instant,
    /// Whether we listen to it: not while a batch waits for room or a warning for its meaning, nor at the end.
    listens: bool,
    queues: Vec<(&'static str, QueueSender)>,
    checkpoints: watch::Receiver<Vec<Checkpoint>>,
    drivers: JoinSet<Result<()>>,
    outbox: Option<Outbox>,
    drain: Duration,
    registry: StatusRegistry,
    span: Span,
}

/// A batch on its way into the queues; `next` is the first that does not have it yet.
struct Outbox {
    batch: Arc<Batch>,
    next: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Streaming<S> {
    /// Sets the sinks to work. `stream` and `transform` begin at the watermark's confirmed LSN.
    pub fn spawn(
        limits: Limits,
        registry: &StatusRegistry,
        stream: ReplicationStream<S>,
        transform: Transform,
        watermark: Watermark,
        session: &Session,
        fed: Vec<Fed>,
    ) -> Self {
        let from = watermark.confirmed();
        let fencing_token = session.fencing_token;
        let continuity = ContinuityCheck::new(from, fed.iter().map(|fed| (fed.sink.id(), fed.durable)));
        let (checkpoints, checkpoints_seen) = watch::channel(fed.iter().map(|fed| fed.durable).collect());
        let mut drivers = JoinSet::new();
        let mut queues = Vec::new();
        for (index, Fed { sink, durable, unregistered }) in fed.into_iter().enumerate() {
            let (sender, receiver) = queue(limits.queue_bytes_max);
            let name = sink.name();
            queues.push((name, sender));
            let status = registry.sink(name, durable).promising(sink.guarantee(), sink.latency_objective());
            let driver = Driver {
                sink,
                queue: receiver,
                session: session.clone(),
                durable,
                checkpoints: checkpoints.clone(),
                index,
                unregistered,
                status,
            };
            let span =
                info_span!(parent: None, "sink", sink = name, fencing_token, from = %durable.durable_lsn);
            drivers.spawn(driver.run().instrument(span));
        }
        Streaming {
            stream,
            transform,
            continuity,
            received: from,
            heard: Instant::now(),
            listens: true,
            watermark,
            queues,
            checkpoints: checkpoints_seen,
            drivers,
            outbox: None,
            drain: limits.drain,
            registry: registry.clone(),
            span: info_span!(parent: None, "stream", slot = session.history_id.slot, fencing_token, %from),
        }
    }

    /// What the server may forget.
    pub fn confirmed(&self) -> Lsn {
        self.watermark.confirmed()
    }

    /// The sinks that are fed.
    pub fn names(&self) -> Vec<&'static str> {
        self.queues.iter().map(|(name, _)| *name).collect()
    }

    /// Runs until `shutdown` (`Ok`), or until the stream, a sink or the source's own watch `source_ended` fails. What
    /// the server warns of goes to that watch through `doubts`.
    pub async fn run(
        self,
        source_ended: impl Future<Output = Error>,
        doubts: Doubts,
        shutdown: &mut Shutdown,
    ) -> Result<()> {
        let span = self.span.clone();
        self.follow(source_ended, doubts, shutdown).instrument(span).await
    }

    async fn follow(
        mut self,
        source_ended: impl Future<Output = Error>,
        mut doubts: Doubts,
        shutdown: &mut Shutdown,
    ) -> Result<()> {
        let mut source_ended = pin!(source_ended);
        let mut warnings = LogThrottle::default();
        let mut status_due = status_interval();
        loop {
            self.take_frames(&mut doubts)?;
            self.listens = self.outbox.is_none() && !doubts.is_pending();
            let due = self.outbox.is_none().then(|| self.transform.due_at()).flatten();
            tokio::select! {
                biased;
                () = shutdown.wait() => break,
                Some(ended) = self.drivers.join_next() => return Err(driver_ended(ended)),
                error = &mut source_ended => return Err(error),
                Ok(()) = self.checkpoints.changed() => self.confirm().await?,
                _ = status_due.tick() => self.send_status().await?,
                sent = send_next(&self.queues, &mut self.outbox), if self.outbox.is_some() => sent?,
                () = sleep_until(due), if due.is_some() => {}
                meaning = doubts.settled(), if doubts.is_pending() => {
                    if let Some(repeated) = warnings.say(&meaning) {
                        tracing::warn!(repeated = (repeated > 0).then_some(repeated), "{meaning}");
                    }
                }
                filled = self.stream.fill(), if self.listens => {
                    filled?;
                    self.heard = Instant::now();
                }
            }
        }
        self.drain(shutdown).await
    }

    /// Decodes what is in the socket's buffer, until a batch is full. Nothing after a warning, until it is known to be
    /// harmless: rows that were left out must not be passed by.
    fn take_frames(&mut self, doubts: &mut Doubts) -> Result<()> {
        while self.outbox.is_none() {
            let frame = if doubts.is_pending() { None } else { self.stream.next_frame()? };
            match frame {
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
                Some(Frame::Warning(warning)) => {
                    doubts.raise(warning);
                    continue;
                }
                None => {}
            }
            let Some(batch) = self.transform.take_batch(Instant::now()) else { break };
            failpoint!("pipeline_after_batch", blocking);
            self.hand_on(batch)?;
        }
        self.registry.tick();
        Ok(())
    }

    /// Puts a batch in the outbox, unless it shows that the sinks were fed from another stream.
    fn hand_on(&mut self, batch: Batch) -> Result<()> {
        debug_assert!(
            batch.checkpoint().durable_lsn <= self.received,
            "a batch claims more than was received"
        );
        self.continuity.follow(&batch)?;
        self.outbox = Some(Outbox { batch: Arc::new(batch), next: 0 });
        Ok(())
    }

    /// Tells the server of every step of the confirmed LSN at once: it can forget that WAL.
    async fn confirm(&mut self) -> Result<()> {
        let mut moved = false;
        let durable: Vec<Lsn> =
            self.checkpoints.borrow_and_update().iter().map(|checkpoint| checkpoint.durable_lsn).collect();
        for ((name, _), durable) in self.queues.iter().zip(durable) {
            debug_assert!(
                durable <= self.received || self.watermark.durable(name) == Some(durable),
                "{name} holds more than was received"
            );
            moved |= self.watermark.advance(name, durable);
        }
        if moved { self.send_status().await } else { Ok(()) }
    }

    async fn send_status(&mut self) -> Result<()> {
        let confirmed = self.confirmed();
        debug_assert!(
            self.watermark.slowest().is_none_or(|(_, durable)| confirmed <= durable),
            "confirmed beyond what a sink holds"
        );
        self.registry.source(
            self.received,
            confirmed,
            self.queues.iter().map(|(name, queue)| (*name, queue.bytes())),
        );
        self.registry.backpressure(self.full_queue());
        let ask = self.is_silent()?;
        failpoint!("pipeline_before_status");
        self.stream.send_status(self.received.max(confirmed), confirmed, ask).await?;
        failpoint!("pipeline_after_status");
        Ok(())
    }

    /// Whether it is time to ask the server for a sign of life; an error when it has given none for too long. TCP's
    /// own probes do not see a connection of which only the near half, up to some proxy, is alive.
    fn is_silent(&mut self) -> Result<bool> {
        if !self.listens {
            self.heard = Instant::now();
        }
        let silence = self.heard.elapsed();
        if silence > SILENCE_MAX {
            let message = format!("PostgreSQL has sent nothing for {} s", silence.as_secs());
            return Err(Error::new(Code::PostgresSilent, message));
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
    async fn drain(mut self, shutdown: &mut Shutdown) -> Result<()> {
        tracing::info!("draining");
        self.registry.draining();
        self.listens = false;
        let deadline = Instant::now() + self.drain;
        let mut status_due = status_interval();
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
                Ok(()) = self.checkpoints.changed() => self.confirm().await?,
                _ = status_due.tick() => self.send_status().await?,
                sent = send_next(&self.queues, &mut self.outbox), if self.outbox.is_some() => sent?,
                () = tokio::time::sleep_until(deadline) => {
                    let seconds = self.drain.as_secs();
                    tracing::warn!("not all sinks were done within {seconds} s; the rest is read again at the next start");
                    break;
                }
                () = shutdown.again() => {
                    tracing::warn!("second signal: leaving at once; the rest is read again at the next start");
                    break;
                }
            }
        }
        self.confirm().await?;
        failpoint!("pipeline_before_close");
        let confirmed = self.confirmed();
        self.stream.close(confirmed).await?;
        tracing::info!(%confirmed, "stopped");
        Ok(())
    }
}

/// After a standstill one status is enough.
fn status_interval() -> Interval {
    let mut due = tokio::time::interval(STATUS_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    due
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
        tokio::time::sleep_until(due).await;
    }
}

fn driver_ended(ended: Result<Result<()>, JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => Error::new(Code::Unavailable, "a sink's task ended early"),
        Err(error) => Error::new(Code::WalcastBroke, "a sink's task broke down").because(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sink_that_breaks_down_is_told_as_a_defect_of_walcast() {
        let panicked = tokio::spawn(async { std::panic::panic_any("canary") }).await;
        assert_eq!(driver_ended(panicked).code(), Code::WalcastBroke);
        assert_eq!(driver_ended(Ok(Err(Error::new(Code::RedisFull, "x")))).code(), Code::RedisFull);
    }
}
