//! The loop that carries the stream: read, decode, join and batch in one task; write in one task a sink
//! ([`crate::sink::driver`]); confirm what all sinks hold. Between them are two crossings only: a bounded queue
//! out, a watch of checkpoints back.
//!
//! It asks no server anything: the open stream, the sinks with what each holds, and whatever else may end it are
//! given to it. Its only clock is tokio's: what the timers run by is also what ages are measured by, and a test can
//! hold it. So the simulation (`tests/unit/simulation`) drives this loop itself, with a server, targets and a time of its
//! own.

pub mod intake;
pub mod lane;
mod seat;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tracing::{Instrument, Span, info_span};

pub use self::intake::Intake;
use self::seat::{Place, Seat};
pub use self::seat::{Says, Told};
use crate::batch::Batch;
use crate::error::{Code, Error, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Lsn, Session};
use crate::shutdown::Shutdown;
use crate::sink::anew::{Asker, Parting, anew};
use crate::sink::breaker::{Breaker, BreakerConfig};
use crate::sink::driver::{Apart, Driver};
use crate::sink::queue::{Feeder, feed as feed_of, queue};
use crate::sink::{Sink, SinkAdmin};
use crate::source::connect;
use crate::state::State;
use crate::state::backfills::RebuildStep;
use crate::telemetry::registry::StatusRegistry;
use crate::telemetry::sink_status::SinkStatus;
use crate::watermark::Watermark;

const STATUS_EVERY: Duration = Duration::from_secs(1);

/// What the loop may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of batches that may wait before each sink.
    pub queue_bytes_max: usize,
    /// How long the sinks have at the end to write what they were given.
    pub drain: Duration,
    /// When a target that fails is left alone.
    pub breaker: BreakerConfig,
}

/// A sink, and where it is to be fed from.
pub struct Fed {
    /// The sink.
    pub sink: Box<dyn Sink>,
    /// What it holds; where it was not asked yet, no more than that.
    pub durable: Checkpoint,
    /// Where to register it with its first checkpoint, when it is not registered yet.
    pub unregistered: Option<State>,
    /// How it begins.
    pub begins: Begins,
    /// What is to be made at its target first, where that does not answer yet.
    pub unprepared: Option<Box<dyn SinkAdmin>>,
    /// Its target is still to be emptied, and it is not fed before.
    pub rebuild: Option<RebuildStep>,
}

/// How a sink begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// At the stream, and never leaves it.
    Always,
    /// At the stream, and may leave it for a lane.
    Here,
    /// In a lane.
    InLane {
        /// Whether it counts for the confirmed LSN until the lane has a slot.
        counts: bool,
        /// Whether it was asked where it stands.
        recovered: bool,
    },
}

/// What a lane needs of the stream that it belongs to.
pub struct LaneEnd {
    /// The sink's name.
    pub name: &'static str,
    /// Its place in `checkpoints`.
    pub index: usize,
    /// Where its queues go.
    pub feeder: Feeder,
    /// From where on it wants rows; `None` while it has a queue, or wants none.
    pub wants: watch::Receiver<Option<Checkpoint>>,
    /// How far each sink is; the first is the one that keeps the content versions.
    pub checkpoints: watch::Receiver<Vec<Checkpoint>>,
    /// How far the stream has been received.
    pub received: watch::Receiver<Lsn>,
    /// What the stream tells.
    pub told: mpsc::UnboundedReceiver<Told>,
    /// What it is told.
    pub says: mpsc::UnboundedSender<(usize, Says)>,
    /// Whether the sink is to begin anew.
    pub parting: Parting,
}

/// The stream and the sinks at work.
pub struct Streaming<S = connect::Stream> {
    intake: Intake<S>,
    watermark: Watermark,
    seats: Vec<Seat>,
    checkpoints: watch::Receiver<Vec<Checkpoint>>,
    received: watch::Sender<Lsn>,
    lanes: mpsc::UnboundedReceiver<(usize, Says)>,
    /// The most that the server can have been told, by us or by an instance before us.
    told: Lsn,
    drivers: JoinSet<Result<()>>,
    outbox: Option<Outbox>,
    limits: Limits,
    registry: StatusRegistry,
    span: Span,
}

/// What all sinks of a stream are given.
struct Shared<'a> {
    limits: &'a Limits,
    session: &'a Session,
    checkpoints: watch::Sender<Vec<Checkpoint>>,
    checkpoints_seen: watch::Receiver<Vec<Checkpoint>>,
    received_seen: watch::Receiver<Lsn>,
    says: mpsc::UnboundedSender<(usize, Says)>,
    /// There is one sink beside the content versions, or none.
    alone: bool,
}

impl Shared<'_> {
    /// A sink's seat at a stream from `from` on, its driver, and what a lane needs, if it may have one.
    fn place(
        &self,
        index: usize,
        fed: Fed,
        from: Lsn,
        status: SinkStatus,
    ) -> (Seat, Driver, Option<(LaneEnd, Asker)>) {
        let Fed { sink, durable, unregistered, begins, unprepared, rebuild } = fed;
        let (feeder, feed) = feed_of(durable);
        let name = sink.name();
        let filled = matches!(begins, Begins::Always | Begins::Here).then(|| {
            let (sender, queue) = queue(self.limits.queue_bytes_max, Checkpoint::at(from));
            // the driver has the other end
            let _ = feeder.send(queue);
            sender
        });
        let (mut apart, mut keeper, mut end) = (None, None, None);
        if begins != Begins::Always {
            let (wants, wants_seen) = watch::channel(None);
            let (tell, told) = mpsc::unbounded_channel();
            let recovered = !matches!(begins, Begins::InLane { recovered: false, .. });
            let has_parted = rebuild.is_some_and(|step| step > RebuildStep::Asked);
            let (asker, anew, parting) = anew(name, index, rebuild.is_some(), has_parted);
            apart = Some(Apart { wants, recovered, unprepared, anew, alone: self.alone });
            keeper = Some(tell);
            let lane = LaneEnd {
                name,
                index,
                feeder,
                wants: wants_seen,
                checkpoints: self.checkpoints_seen.clone(),
                received: self.received_seen.clone(),
                told,
                says: self.says.clone(),
                parting,
            };
            end = Some((lane, asker));
        }
        let mut seat = Seat::new(name, filled, keeper);
        seat.counts |= matches!(begins, Begins::InLane { counts: true, .. });
        if seat.place == Place::Left {
            seat.leave();
        }
        let session = match begins {
            // its slot begins elsewhere
            Begins::InLane { .. } => Session { start: durable.durable_lsn, ..self.session.clone() },
            Begins::Always | Begins::Here => self.session.clone(),
        };
        let driver = Driver {
            sink,
            feed,
            durable,
            checkpoints: self.checkpoints.clone(),
            index,
            unregistered,
            // tokens differ from start to start, and a simulation's runs can be repeated
            breaker: Breaker::seeded(&self.limits.breaker, session.fencing_token as u64 ^ index as u64),
            session,
            apart,
            status,
        };
        (seat, driver, end)
    }
}

/// A batch on its way into the queues; `next` is the first that does not have it yet.
struct Outbox {
    batch: Arc<Batch>,
    next: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Streaming<S> {
    /// Sets the sinks to work. `intake` begins where the lowest of the sinks stands that it feeds, at or above the watermark's
    /// confirmed LSN. Gives what the lanes need of those that may
    /// leave, and the ends by which they are told to begin anew.
    pub fn spawn(
        limits: Limits,
        registry: &StatusRegistry,
        intake: Intake<S>,
        watermark: Watermark,
        session: &Session,
        fed: Vec<Fed>,
    ) -> (Self, Vec<LaneEnd>, Vec<Asker>) {
        let from = intake.reach().durable_lsn;
        let fencing_token = session.fencing_token;
        let (checkpoints, checkpoints_seen) = watch::channel(fed.iter().map(|fed| fed.durable).collect());
        let (received, received_seen) = watch::channel(from);
        let (says, lanes) = mpsc::unbounded_channel();
        let (mut drivers, mut seats) = (JoinSet::new(), Vec::new());
        let (mut ends, mut askers) = (Vec::new(), Vec::new());
        let alone = fed.len() <= 2;
        let shared =
            Shared { limits: &limits, session, checkpoints, checkpoints_seen, received_seen, says, alone };
        for (index, fed) in fed.into_iter().enumerate() {
            let (name, durable) = (fed.sink.name(), fed.durable);
            let status =
                registry.sink(name, durable).promising(fed.sink.guarantee(), fed.sink.latency_objective());
            let (seat, driver, end) = shared.place(index, fed, from, status);
            if let Some(queue) = &seat.queue {
                registry.queue(name, queue.gauge());
            }
            let span =
                info_span!(parent: None, "sink", sink = name, fencing_token, from = %durable.durable_lsn);
            drivers.spawn(driver.run().instrument(span));
            seats.push(seat);
            if let Some((lane, asker)) = end {
                ends.push(lane);
                askers.push(asker);
            }
        }
        let checkpoints_seen = shared.checkpoints_seen;
        let streaming = Streaming {
            intake,
            told: from,
            watermark,
            seats,
            checkpoints: checkpoints_seen,
            received,
            lanes,
            drivers,
            outbox: None,
            limits,
            registry: registry.clone(),
            span: info_span!(parent: None, "stream", slot = session.history_id.slot, fencing_token, %from),
        };
        (streaming, ends, askers)
    }

    /// What the server may forget.
    pub fn confirmed(&self) -> Lsn {
        self.watermark.confirmed()
    }

    /// The sinks that are fed.
    pub fn names(&self) -> Vec<&'static str> {
        self.seats.iter().map(|seat| seat.name).collect()
    }

    /// How far each sink is, and the stream.
    pub fn progress(&self) -> (watch::Receiver<Vec<Checkpoint>>, watch::Receiver<Lsn>) {
        (self.checkpoints.clone(), self.received.subscribe())
    }

    /// Runs until `shutdown` (`Ok`), or until the stream, a sink or the source's own watch `source_ended` fails.
    pub async fn run(self, source_ended: impl Future<Output = Error>, shutdown: &mut Shutdown) -> Result<()> {
        let span = self.span.clone();
        self.follow(source_ended, shutdown).instrument(span).await
    }

    async fn follow(
        mut self,
        source_ended: impl Future<Output = Error>,
        shutdown: &mut Shutdown,
    ) -> Result<()> {
        let mut source_ended = pin!(source_ended);
        let mut status_due = status_interval();
        loop {
            if self.outbox.is_none()
                && let Some(batch) = self.intake.take_batch()?
            {
                self.hand_on(batch);
            }
            self.registry.tick();
            let room = self.outbox.is_none();
            tokio::select! {
                biased;
                () = shutdown.wait() => break,
                Some(ended) = self.drivers.join_next() => return Err(driver_ended(ended)),
                error = &mut source_ended => return Err(error),
                Ok(()) = self.checkpoints.changed() => self.confirm().await?,
                Some((index, says)) = self.lanes.recv() => self.hear(index, &says),
                _ = status_due.tick() => self.send_status().await?,
                () = send_next(&mut self.seats, &mut self.outbox), if !room => {}
                waited = self.intake.wait(room) => waited?,
            }
        }
        self.drain(shutdown).await
    }

    /// Puts a batch in the outbox.
    fn hand_on(&mut self, batch: Batch) {
        self.outbox = Some(Outbox { batch: Arc::new(batch), next: 0 });
        // who has sent rows through the WAL waits for this
        self.tell_received();
    }

    fn tell_received(&self) {
        let received = self.intake.received();
        self.received.send_if_modified(|known| std::mem::replace(known, received) != received);
    }

    /// What a lane says.
    fn hear(&mut self, index: usize, says: &Says) {
        let (at, bytes_max) = (self.intake.reach(), self.limits.queue_bytes_max);
        let durable = self.checkpoints.borrow().get(index).copied().unwrap_or_default();
        let Some(seat) = self.seats.get_mut(index) else { return };
        match says {
            // a batch that is on its way goes into the queue too, and is passed over there
            Says::Near => seat.offer(at, bytes_max),
            Says::Joined => {
                if seat.joined() {
                    self.watermark.add(seat.name, durable.durable_lsn);
                    if let Some(queue) = &seat.queue {
                        self.registry.queue(seat.name, queue.gauge());
                    }
                }
            }
            // heard late, when the sink counts again
            Says::Parted if seat.place == Place::Joining || seat.place == Place::Fed => {}
            Says::Parted => {
                seat.counts = false;
                self.watermark.remove(seat.name);
            }
        }
    }

    /// Tells the server of every step of the confirmed LSN at once: it can forget that WAL.
    async fn confirm(&mut self) -> Result<()> {
        let mut moved = false;
        let durable: Vec<Lsn> =
            self.checkpoints.borrow_and_update().iter().map(|checkpoint| checkpoint.durable_lsn).collect();
        for (seat, durable) in self.seats.iter_mut().zip(durable) {
            if !seat.counts {
                continue;
            }
            debug_assert!(
                durable <= self.intake.received()
                    || self.watermark.durable(seat.name) == Some(durable)
                    || seat.may_leave(),
                "{} holds more than was received",
                seat.name
            );
            moved |= self.watermark.advance(seat.name, durable);
            // it counts since it joined, so that nothing was confirmed beyond it since
            if seat.place == Place::Joining && durable >= self.told {
                seat.let_go();
            }
        }
        if moved { self.send_status().await } else { Ok(()) }
    }

    async fn send_status(&mut self) -> Result<()> {
        let confirmed = self.confirmed();
        debug_assert!(
            self.seats.iter().any(|seat| seat.place == Place::Joining)
                || self.watermark.slowest().is_none_or(|(_, durable)| confirmed <= durable),
            "confirmed beyond what a sink holds"
        );
        let received = self.intake.received();
        self.tell_received();
        self.seats.iter_mut().for_each(Seat::leave_if_closed);
        self.registry.source(received, confirmed);
        self.registry.backpressure(self.full_queue());
        self.intake.send_status(confirmed).await?;
        self.told = self.told.max(confirmed);
        Ok(())
    }

    /// The sink whose queue has no room for the batch that is to go into it.
    fn full_queue(&self) -> Option<&'static str> {
        let outbox = self.outbox.as_ref()?;
        let seat = self.seats.get(outbox.next)?;
        (!seat.queue.as_ref()?.has_room_for(&outbox.batch)).then_some(seat.name)
    }

    /// Stops reading, lets the sinks make durable what they were given, tells the server, and leaves.
    async fn drain(mut self, shutdown: &mut Shutdown) -> Result<()> {
        tracing::info!("draining");
        self.registry.draining();
        self.intake.stop();
        let deadline = Instant::now() + self.limits.drain;
        let mut status_due = status_interval();
        loop {
            if self.outbox.is_none()
                && let Some(rest) = self.intake.take_rest()?
            {
                self.hand_on(rest);
            }
            if self.outbox.is_none() {
                self.seats.iter_mut().for_each(Seat::close);
            }
            tokio::select! {
                biased;
                ended = self.drivers.join_next() => match ended {
                    Some(Ok(Ok(()))) => {}
                    Some(ended) => return Err(driver_ended(ended)),
                    None => break,
                },
                Ok(()) = self.checkpoints.changed() => self.confirm().await?,
                Some((index, says)) = self.lanes.recv() => self.hear(index, &says),
                _ = status_due.tick() => self.send_status().await?,
                () = send_next(&mut self.seats, &mut self.outbox), if self.outbox.is_some() => {}
                () = tokio::time::sleep_until(deadline) => {
                    let seconds = self.limits.drain.as_secs();
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
        self.intake.stream.close(confirmed).await?;
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
async fn send_next(seats: &mut [Seat], outbox: &mut Option<Outbox>) {
    let Some(out) = outbox else { return };
    if let Some(seat) = seats.get_mut(out.next) {
        seat.send(&out.batch).await;
        out.next += 1;
    }
    if out.next >= seats.len() {
        *outbox = None;
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
