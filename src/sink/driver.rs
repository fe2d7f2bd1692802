//! The one loop under every sink: queue, collecting, skipping what is durable, retry, registration.
//!
//! Three checkpoints keep it honest. `durable` is durable at the target. `accepted` is what left our memory: equal
//! to `durable`, or ahead of it for a sink that answers [`Written::Accepted`]. What the queue has is beyond
//! both. After an error the target is asked; an answer below `accepted` means that rows are gone that we
//! cannot send again, and only the slot can: `Lost`.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::batch::Batch;
use crate::error::{Class, Error, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Session, StoredCheckpoint};
use crate::resume;
use crate::sink::queue::{QueueReceiver, Queued};
use crate::sink::retry::Backoff;
use crate::sink::{Sink, Written};
use crate::state::State;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::sink_status::SinkStatus;

/// Trouble that took so many attempts lasted for some seconds.
const LASTING_ATTEMPTS: u32 = 6;

/// A sink at work.
pub struct Driver {
    /// The sink.
    pub sink: Box<dyn Sink>,
    /// Where its batches come from.
    pub queue: QueueReceiver,
    /// Who we are.
    pub session: Session,
    /// Where the sink stood when it was recovered.
    pub durable: Checkpoint,
    /// Where the pipeline sees how far each sink is.
    pub checkpoints: watch::Sender<Vec<Checkpoint>>,
    /// This sink's place in `checkpoints`.
    pub index: usize,
    /// The sink's line in `walcast.sink` is still to be written.
    pub unregistered: Option<State>,
    /// What the operator sees.
    pub status: SinkStatus,
}

impl Driver {
    /// Runs until the queue is closed and drained (`Ok`), or until an error that only a new start of the
    /// pipeline (`Lost`) or nobody (`Definite`) can mend.
    pub async fn run(self) -> Result<()> {
        let mut work = Work {
            accepted: self.durable,
            pending: Vec::new(),
            next_tick: Instant::now(),
            throttle: LogThrottle::default(),
            driver: self,
        };
        // tokens differ from start to start, and a simulation's runs can be repeated
        let mut backoff =
            Backoff::seeded(work.driver.session.fencing_token as u64 ^ work.driver.index as u64);
        loop {
            match work.step().await {
                Ok(true) => {
                    work.recovered(&backoff);
                    backoff.reset();
                }
                Ok(false) => break,
                Err(error) => work.retry(error, &mut backoff).await?,
            }
        }
        work.driver.sink.close().await;
        Ok(())
    }

    fn publish(&mut self, durable: Checkpoint) {
        self.durable = durable;
        self.status.durable(durable);
        self.checkpoints.send_modify(|checkpoints| {
            if let Some(checkpoint) = checkpoints.get_mut(self.index) {
                *checkpoint = durable;
            }
        });
    }
}

struct Work {
    driver: Driver,
    accepted: Checkpoint,
    pending: Vec<Queued>,
    next_tick: Instant,
    throttle: LogThrottle,
}

impl Work {
    /// One write, one tick, or the end (`false`).
    async fn step(&mut self) -> Result<bool> {
        let open = self.collect().await;
        self.write().await?;
        self.tick().await?;
        self.driver.status.trouble(self.driver.sink.trouble());
        if !open && self.pending.is_empty() {
            let checkpoint = self.driver.sink.flush().await?;
            self.durable(checkpoint).await?;
        }
        Ok(open)
    }

    /// Takes batches until the sink's pace is met or a tick is due. `false` when the queue has ended.
    async fn collect(&mut self) -> bool {
        let policy = self.driver.sink.batch_policy();
        let mut bytes: usize = self.pending.iter().map(|queued| queued.batch.bytes()).sum();
        let mut until = (!self.pending.is_empty()).then(Instant::now);
        while bytes < policy.write_bytes_max {
            let tick = policy.tick_every.map(|_| self.next_tick);
            let deadline = until.into_iter().chain(tick).min();
            let queued = tokio::select! {
                biased;
                queued = self.driver.queue.recv() => queued,
                () = sleep_until(deadline) => return true,
            };
            let Some(queued) = queued else { return false };
            bytes += queued.batch.bytes();
            let urgent = queued.batch.urgent();
            // it has waited already while the last write went on
            until.get_or_insert(queued.since + policy.linger);
            self.pending.push(queued);
            if urgent {
                return true;
            }
        }
        true
    }

    async fn write(&mut self) -> Result<()> {
        let batches: Vec<Arc<Batch>> =
            self.pending.iter().filter_map(|queued| queued.batch.beyond(&self.accepted)).collect();
        let urgent = self.pending.iter().any(|queued| queued.batch.urgent());
        if let Some(last) = batches.last() {
            let end = self.accepted.advanced(last.checkpoint());
            self.driver.status.begins(end.durable_lsn, batches.iter().map(|batch| batch.created()));
            for heartbeat in batches.iter().filter_map(|batch| batch.heartbeat()) {
                self.driver.status.awaits(heartbeat.end_lsn, heartbeat.committed_at);
            }
            if let Some((_, since)) = batches.iter().find_map(|batch| batch.under_way().next()) {
                self.driver.status.takes(since);
            }
            let written = self.driver.sink.write(&batches).await?;
            self.accepted = end;
            self.driver.status.wrote(batches.iter().flat_map(|batch| batch.under_way()));
            if let Written::Durable(checkpoint) = written {
                self.durable(Some(checkpoint)).await?;
            }
        }
        if urgent {
            let checkpoint = self.driver.sink.flush().await?;
            self.durable(checkpoint).await?;
        }
        self.pending.clear();
        Ok(())
    }

    async fn tick(&mut self) -> Result<()> {
        let Some(every) = self.driver.sink.batch_policy().tick_every else { return Ok(()) };
        if Instant::now() < self.next_tick {
            return Ok(());
        }
        self.next_tick = Instant::now() + every;
        let checkpoint = self.driver.sink.tick().await?;
        self.durable(checkpoint).await
    }

    /// Tells the pipeline of a durable checkpoint. A sink is registered before its first checkpoint can count: from
    /// then on a target without a checkpoint has lost its data.
    async fn durable(&mut self, checkpoint: Option<Checkpoint>) -> Result<()> {
        let Some(checkpoint) = checkpoint else { return Ok(()) };
        let driver = &mut self.driver;
        if let Some(state) = &mut driver.unregistered {
            failpoint!("driver_before_register");
            state.register_sink(&driver.session, driver.sink.name(), checkpoint).await?;
            failpoint!("driver_after_register");
            driver.unregistered = None;
        }
        driver.publish(driver.durable.advanced(checkpoint));
        debug_assert!(self.accepted.covers(&self.driver.durable), "durable beyond what was accepted");
        Ok(())
    }

    /// Waits, asks the target where it stands, and goes on from there; returns what cannot be retried.
    async fn retry(&mut self, error: Error, backoff: &mut Backoff) -> Result<()> {
        let mut error = error;
        loop {
            self.driver.status.failed(&error);
            if error.class() != Class::Transient {
                return Err(error);
            }
            let wait = backoff.next_wait();
            if let Some(repeated) = self.throttle.say(&error.to_string()) {
                tracing::warn!(
                    sink = self.driver.sink.name(),
                    code = %error.code(),
                    error = error.chain(),
                    repeated = (repeated > 0).then_some(repeated),
                    "trying again in {wait:.1?}: {}",
                    error.advice()
                );
            }
            tokio::time::sleep(wait).await;
            match self.driver.sink.recover(&self.driver.session).await {
                Ok(stored) => return self.resume(stored),
                Err(again) => error = again,
            }
        }
    }

    /// Ends what the warnings began; a short trouble needs no second line.
    fn recovered(&self, backoff: &Backoff) {
        if backoff.attempts() >= LASTING_ATTEMPTS {
            tracing::info!(sink = self.driver.sink.name(), attempts = backoff.attempts(), "takes rows again");
        }
    }

    fn resume(&mut self, stored: Option<StoredCheckpoint>) -> Result<()> {
        let registered = self.driver.unregistered.is_none();
        let session = &self.driver.session;
        let checkpoint =
            resume::judge_again(self.driver.sink.id(), stored.as_ref(), registered, session, self.accepted)?;
        self.accepted = checkpoint;
        self.driver.publish(checkpoint);
        Ok(())
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use async_trait::async_trait;
    use uuid::Uuid;

    use super::*;
    use crate::lsn::{HistoryId, Lsn, Timelines};
    use crate::resume::SinkName;
    use crate::sink::queue::queue;
    use crate::sink::{BatchPolicy, Guarantee, SinkIdentity};
    use crate::telemetry::registry::StatusRegistry;

    const LINGER: Duration = Duration::from_millis(100);
    const WRITE_TAKES: Duration = Duration::from_millis(60);
    const BATCH_EVERY: Duration = Duration::from_millis(10);

    /// Takes its time to write, and notes when it began.
    struct SlowSink(Arc<Mutex<Vec<Instant>>>);

    impl SinkIdentity for SlowSink {
        fn id(&self) -> SinkName {
            SinkName::new("slow")
        }

        fn guarantee(&self) -> Guarantee {
            Guarantee::None
        }
    }

    #[async_trait]
    impl Sink for SlowSink {
        fn batch_policy(&self) -> BatchPolicy {
            BatchPolicy { linger: LINGER, write_bytes_max: usize::MAX, tick_every: None }
        }

        async fn recover(&mut self, _: &Session) -> Result<Option<StoredCheckpoint>> {
            Ok(None)
        }

        async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
            self.0.lock().unwrap().push(Instant::now());
            tokio::time::sleep(WRITE_TAKES).await;
            Ok(Written::Durable(batches.last().map_or_else(Checkpoint::default, |last| last.checkpoint())))
        }

        async fn flush(&mut self) -> Result<Option<Checkpoint>> {
            Ok(None)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_batch_waits_longer_than_the_linger_because_a_write_went_on() {
        let history_id =
            HistoryId { uuid: Uuid::nil(), system_id: "1".into(), timeline: 1, slot: "s".into() };
        let durable = Checkpoint::at(Lsn(1));
        let (mut sender, queue) = queue(usize::MAX);
        let writes = Arc::default();
        let driver = Driver {
            sink: Box::new(SlowSink(Arc::clone(&writes))),
            queue,
            session: Session {
                history_id,
                fencing_token: 1,
                timelines: Timelines::default(),
                start: Lsn(1),
                settled_timeline: 1,
            },
            durable,
            checkpoints: watch::channel(vec![durable]).0,
            index: 0,
            unregistered: None,
            status: StatusRegistry::new().sink("slow", durable),
        };
        let running = tokio::spawn(driver.run());
        for end in 0..100 {
            sender.send(Arc::new(Batch::empty(Checkpoint::at(Lsn(2 + end)), false))).await.unwrap();
            tokio::time::sleep(BATCH_EVERY).await;
        }
        sender.close();
        running.await.unwrap().unwrap();
        let writes = writes.lock().unwrap();
        assert!(writes.len() >= 9, "{} writes in a second", writes.len());
        // the first batch of a write came at most one interval after the last write began
        assert!(writes.windows(2).all(|pair| pair[1] - pair[0] <= LINGER + BATCH_EVERY), "{writes:?}");
    }
}
