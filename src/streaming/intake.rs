//! The reading half of a stream: from the socket's buffer to batches, and the status that goes back.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::batch::Batch;
use crate::continuity::ContinuityCheck;
use crate::error::{Code, Error, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Lsn};
use crate::source::connect;
use crate::source::frame::Frame;
use crate::source::heartbeat::{Answer, Doubt, Doubts};
use crate::source::request::{OwnRequests, Request};
use crate::source::stream::ReplicationStream;
use crate::telemetry::log_throttle::LogThrottle;
use crate::transform::Transform;

/// How long the server may say nothing, though asked after half of it: as long as PostgreSQL's own receiver waits.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A stream that is read, from its confirmed LSN on.
pub struct Intake<S = connect::Stream> {
    pub(super) stream: ReplicationStream<S>,
    pub(super) transform: Transform,
    continuity: ContinuityCheck,
    /// The highest LSN that the server has sent us.
    received: Lsn,
    /// What whoever has all batches that were made has.
    reach: Checkpoint,
    /// When the server last said something, or was not listened to.
    heard: Instant,
    /// Whether we listen to it: not while a batch waits for room or a warning for its meaning, nor at the end.
    listens: bool,
    pub(super) doubts: Doubts,
    /// What this process has sent through the WAL.
    own_requests: OwnRequests,
    warnings: LogThrottle,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Intake<S> {
    /// `stream` and `transform` begin at `from`. What sinks have of it already stands in `continuity`; what the server warns
    /// of goes through `doubts`.
    pub fn new(
        stream: ReplicationStream<S>,
        transform: Transform,
        continuity: ContinuityCheck,
        from: Lsn,
        doubts: Doubts,
    ) -> Self {
        Intake {
            stream,
            transform,
            continuity,
            received: from,
            reach: Checkpoint::at(from),
            heard: Instant::now(),
            listens: true,
            doubts,
            own_requests: OwnRequests::default(),
            warnings: LogThrottle::default(),
        }
    }

    /// The same; these requests are not looked up.
    pub fn with_own_requests(self, own_requests: OwnRequests) -> Self {
        Intake { own_requests, ..self }
    }

    /// The highest LSN that the server has sent us.
    pub(super) fn received(&self) -> Lsn {
        self.received
    }

    /// What whoever has all batches that were made has.
    pub(super) fn reach(&self) -> Checkpoint {
        self.reach
    }

    /// The next batch of what is in the socket's buffer, as soon as it is full or due. Nothing after a warning, until it is
    /// known to be harmless: rows that were left out must not be passed by. An error when the batch shows that the sinks
    /// were fed from another stream.
    pub(super) fn take_batch(&mut self) -> Result<Option<Batch>> {
        loop {
            let frame = if self.doubts.is_pending() { None } else { self.stream.next_frame()? };
            match frame {
                Some(Frame::XLogData { wal_start, payload, .. }) => {
                    self.received = self.received.max(wal_start);
                    self.transform.apply(&payload)?;
                    if let Some(ticket) = self.transform.asks() {
                        match self.own_requests.take(ticket) {
                            Some(request) => self.answered(Some(request)),
                            None => self.doubts.raise(Doubt::Ticket(ticket)),
                        }
                    }
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
                    self.doubts.raise(Doubt::Warning(warning));
                    continue;
                }
                None => {}
            }
            let Some(batch) = self.transform.take_batch(Instant::now()) else { return Ok(None) };
            failpoint!("pipeline_after_batch", blocking);
            return self.judged(batch).map(Some);
        }
    }

    /// What is left, when no more is read.
    pub(super) fn take_rest(&mut self) -> Result<Option<Batch>> {
        self.transform.take_rest().map(|rest| self.judged(rest)).transpose()
    }

    fn judged(&mut self, batch: Batch) -> Result<Batch> {
        debug_assert!(
            batch.checkpoint().durable_lsn <= self.received,
            "a batch claims more than was received"
        );
        self.continuity.follow(&batch)?;
        self.reach = self.reach.advanced(batch.checkpoint());
        Ok(batch)
    }

    /// Waits until there may be another batch. With `room` for it, for the server or for the time at which one is due. Cancel
    /// safe.
    pub(super) async fn wait(&mut self, room: bool) -> Result<()> {
        self.listens = room && !self.doubts.is_pending();
        let due = room.then(|| self.transform.due_at()).flatten();
        tokio::select! {
            biased;
            () = sleep_until(due), if due.is_some() => {}
            answer = self.doubts.settled(), if self.doubts.is_pending() => match answer {
                Answer::Harmless(meaning) => {
                    if let Some(repeated) = self.warnings.say(&meaning) {
                        tracing::warn!(repeated = (repeated > 0).then_some(repeated), "{meaning}");
                    }
                }
                Answer::Request(request) => self.answered(request),
            },
            filled = self.stream.fill(), if self.listens => {
                filled?;
                self.heard = Instant::now();
            }
            else => std::future::pending().await,
        }
        Ok(())
    }

    /// Whose a control message is. Without an await behind the answer: it would be lost where the future is dropped.
    fn answered(&mut self, request: Option<Arc<Request>>) {
        failpoint!("ticket_before_answer", blocking);
        self.transform.answered(request);
        failpoint!("ticket_after_answer", blocking);
    }

    /// Nobody listens to the server any more.
    pub(super) fn stop(&mut self) {
        self.listens = false;
    }

    /// Tells the server what it may forget.
    pub(super) async fn send_status(&mut self, confirmed: Lsn) -> Result<()> {
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
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due).await;
    }
}
