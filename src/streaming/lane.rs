//! The loop of a lane: a stream of its own slot into the queue of one sink, until that sink can be fed from the main stream
//! again.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior};

use super::{LaneEnd, Says, Told};
use crate::error::{Error, Result};
use crate::lsn::{Checkpoint, Lsn};
use crate::sink::queue::{Closed, Queue, QueueSender, queue};
use crate::streaming::intake::Intake;
use crate::telemetry::registry::StatusRegistry;
use crate::watermark::Watermark;

const STATUS_EVERY: Duration = Duration::from_secs(1);
/// This close to the main stream, a lane asks to be taken in again.
const NEAR_BYTES: u64 = 4 << 20;
/// How long a lane that came close and fell behind again waits before it asks once more.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// `[lane]`: what PostgreSQL keeps for a sink that has fallen behind.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LaneConfig {
    /// How much WAL, in bytes, PostgreSQL keeps for one sink that has fallen behind. A sink that lacks more is given up, so that
    /// the source's disk does not fill: it gets nothing until it is given a new start, and the others go on. 0: all that it
    /// lacks is kept.
    pub wal_bytes_max: u64,
}

/// How a lane's stream ended, where nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The sink takes from the main stream's queue.
    Joined,
    /// The sink has given back what it was fed.
    GivenBack,
    /// The main stream ends.
    Stopped,
}

/// The stream of a lane.
pub struct Lane<S> {
    intake: Intake<S>,
    queue: QueueSender,
    watermark: Watermark,
    offer: Option<(Checkpoint, Queue)>,
    asked_at: Option<Instant>,
    not_before: Instant,
    registry: StatusRegistry,
}

/// The two that a lane's slot must wait for: its sink, and whatever keeps the content versions that a start needs.
const SINK: &str = "sink";
const CONTENT: &str = "content";

/// What a lane's slot may be told.
pub fn watermark(confirmed: Lsn, checkpoints: &[Checkpoint], index: usize) -> Watermark {
    let at = |index: usize| checkpoints.get(index).map_or(confirmed, |checkpoint| checkpoint.durable_lsn);
    Watermark::new(confirmed, [(SINK, at(index)), (CONTENT, at(0))])
}

impl<S: AsyncRead + AsyncWrite + Unpin> Lane<S> {
    /// A stream of the sink at `end`, which takes the new queue; `intake` begins where `watermark` stands. It does not ask to
    /// be taken in again before `not_before`.
    pub fn feed(
        end: &LaneEnd,
        intake: Intake<S>,
        watermark: Watermark,
        queue_bytes_max: usize,
        not_before: Instant,
        registry: &StatusRegistry,
    ) -> Self {
        let (sender, queue) = queue(queue_bytes_max, Checkpoint::at(watermark.confirmed()));
        // a driver that has ended has said why
        let _ = end.feeder.send(queue);
        Lane {
            intake,
            queue: sender,
            watermark,
            offer: None,
            asked_at: None,
            not_before,
            registry: registry.clone(),
        }
    }

    /// Runs until the sink is elsewhere, or until the stream or `source_ended` fails.
    pub async fn run(
        mut self,
        end: &mut LaneEnd,
        source_ended: impl Future<Output = Error>,
    ) -> Result<Ended> {
        let mut source_ended = pin!(source_ended);
        let mut status_due = tokio::time::interval(STATUS_EVERY);
        status_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outbox = None;
        loop {
            if outbox.is_none() && self.join(end) {
                return Ok(Ended::Joined);
            }
            if outbox.is_none() {
                outbox = self.intake.take_batch()?.map(|batch| Arc::new(batch).for_sink(end.name));
            }
            let room = outbox.is_none();
            tokio::select! {
                biased;
                told = end.told.recv() => match told {
                    None => return Ok(Ended::Stopped),
                    Some(Told::Offer { at, queue }) => self.offer = Some((at, queue)),
                    Some(Told::Withdrawn) => self.withdraw(),
                    Some(Told::Left | Told::LetGo) => {}
                },
                error = &mut source_ended => return Err(error),
                Ok(()) = end.checkpoints.changed() => self.confirm(end).await?,
                _ = status_due.tick() => self.send_status(end).await?,
                sent = send(&self.queue, &mut outbox), if !room => if sent.is_err() { return Ok(Ended::GivenBack) },
                () = self.queue.closed(), if room => return Ok(Ended::GivenBack),
                waited = self.intake.wait(room) => waited?,
            }
        }
    }

    /// Hands the sink over when it has all that the queue on offer follows on.
    fn join(&mut self, end: &LaneEnd) -> bool {
        let reach = self.intake.reach();
        let Some((_, queue)) = self.offer.take_if(|(at, _)| reach.covers(at)) else { return false };
        // one that has run over by now ends early, and its sink asks for more
        let _ = end.feeder.send(queue);
        let _ = end.says.send((end.index, Says::Joined));
        true
    }

    fn withdraw(&mut self) {
        self.offer = None;
        self.asked_at = None;
        self.not_before = Instant::now() + ASK_AGAIN_AFTER;
    }

    /// Asks to be taken in again, when the main stream is near.
    fn ask(&mut self, end: &LaneEnd) {
        let behind = end.received.borrow().bytes_since(self.intake.received());
        let near = behind <= NEAR_BYTES && self.queue.bytes() * 2 <= self.queue.bytes_max();
        if self.asked_at.is_none() && near && Instant::now() >= self.not_before {
            self.asked_at = Some(Instant::now());
            let _ = end.says.send((end.index, Says::Near));
        }
    }

    async fn confirm(&mut self, end: &mut LaneEnd) -> Result<()> {
        let (sink, content) = {
            let checkpoints = end.checkpoints.borrow_and_update();
            let at =
                |index: usize| checkpoints.get(index).map_or(Lsn::ZERO, |checkpoint| checkpoint.durable_lsn);
            (at(end.index), at(0))
        };
        let moved = self.watermark.advance(SINK, sink) | self.watermark.advance(CONTENT, content);
        if moved { self.intake.send_status(self.watermark.confirmed()).await } else { Ok(()) }
    }

    async fn send_status(&mut self, end: &LaneEnd) -> Result<()> {
        self.ask(end);
        self.registry.lane_received(end.name, self.intake.received(), self.queue.gauge());
        self.intake.send_status(self.watermark.confirmed()).await
    }
}

/// Puts the outbox's batch into the queue. Cancel safe.
async fn send(queue: &QueueSender, outbox: &mut Option<Arc<crate::batch::Batch>>) -> Result<(), Closed> {
    let Some(batch) = outbox.as_ref() else { return Ok(()) };
    queue.send(Arc::clone(batch)).await?;
    *outbox = None;
    Ok(())
}
