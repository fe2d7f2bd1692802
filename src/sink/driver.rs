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
use crate::lsn::{Checkpoint, Session};
use crate::resume;
use crate::sink::anew::Anew;
use crate::sink::breaker::{Breaker, BreakerState};
use crate::sink::queue::{Fed, Feed, Queued};
use crate::sink::{Sink, SinkAdmin, Written};
use crate::state::State;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::sink_status::SinkStatus;

/// A sink at work.
pub struct Driver {
    /// The sink.
    pub sink: Box<dyn Sink>,
    /// Where its batches come from.
    pub feed: Feed,
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
    /// When its target is tried again.
    pub breaker: Breaker,
    /// How it gets rows again that it has given back; `None` where only a new start of the pipeline brings them.
    pub apart: Option<Apart>,
    /// What the operator sees.
    pub status: SinkStatus,
}

/// A sink that can be fed by a stream of its own.
pub struct Apart {
    /// From where on it wants rows; `None` while it has a queue, or wants none.
    pub wants: watch::Sender<Option<Checkpoint>>,
    /// Whether it was asked where it stands.
    pub recovered: bool,
    /// What is to be made at its target before, since that has not answered yet.
    pub unprepared: Option<Box<dyn SinkAdmin>>,
    /// How it is told to begin anew.
    pub anew: Anew,
    /// There is no other sink that would go on without it.
    pub alone: bool,
}

impl Driver {
    /// Runs until its feed has ended and is written (`Ok`), or until an error that only a new start of the
    /// pipeline (`Lost`) or nobody (`Definite`) can mend. A sink that can be fed apart ends with no error of its target.
    pub async fn run(self) -> Result<()> {
        let mut work = Work {
            accepted: self.durable,
            pending: Vec::new(),
            next_tick: Instant::now(),
            throttle: LogThrottle::default(),
            given_back: self.apart.as_ref().is_some_and(|apart| !apart.recovered),
            driver: self,
        };
        let mut goes_on = !work.given_back || work.begin().await?;
        while goes_on {
            goes_on = match work.step().await {
                Ok(goes_on) => goes_on,
                Err(error) => work.retry(error).await?,
            };
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

    /// Says from where on rows are wanted.
    fn wants(&self, from: Option<Checkpoint>) {
        if let Some(apart) = &self.apart {
            apart.wants.send_if_modified(|wants| std::mem::replace(wants, from) != from);
        }
    }

    /// Whether an error is the target's alone, so that no other sink needs to know.
    fn is_its_own(&self, error: &Error) -> bool {
        self.apart.as_ref().is_some_and(|apart| !apart.alone) && !error.code().concerns_the_source()
    }
}

struct Work {
    driver: Driver,
    accepted: Checkpoint,
    pending: Vec<Queued>,
    next_tick: Instant,
    throttle: LogThrottle,
    /// It holds no queue and no batch: what comes next follows on what the target says that it has.
    given_back: bool,
}

impl Work {
    /// One write, one tick, or the end (`false`).
    async fn step(&mut self) -> Result<bool> {
        let open = self.collect().await;
        if self.stops() {
            return self.begin().await;
        }
        self.write().await?;
        self.tick().await?;
        self.driver.status.trouble(self.driver.sink.trouble());
        if !open && self.pending.is_empty() {
            let checkpoint = self.driver.sink.flush().await?;
            self.durable(checkpoint).await?;
        }
        Ok(open)
    }

    /// Takes batches until the sink's pace is met or a tick is due. `false` when nothing more will come.
    async fn collect(&mut self) -> bool {
        let policy = self.driver.sink.batch_policy();
        let mut bytes: usize = self.pending.iter().map(|queued| queued.batch.bytes()).sum();
        let mut until = (!self.pending.is_empty()).then(Instant::now);
        let mut hungry = false;
        while bytes < policy.write_bytes_max {
            let tick = policy.tick_every.map(|_| self.next_tick);
            let deadline = until.into_iter().chain(tick).min();
            let Driver { feed, apart, .. } = &mut self.driver;
            let fed = tokio::select! {
                biased;
                () = asked(apart) => return true,
                fed = feed.recv(hungry) => fed,
                () = sleep_until(deadline) => return true,
            };
            let queued = match fed {
                Fed::Batch(queued) => queued,
                Fed::Ended => return false,
                Fed::Hungry => {
                    self.driver.wants(Some(self.driver.feed.reach()));
                    hungry = true;
                    continue;
                }
            };
            if std::mem::take(&mut hungry) {
                self.driver.wants(None);
            }
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
        // queues that follow one another may overlap, and so may batches of one write
        let mut end = self.accepted;
        let mut take = |batch: &Arc<Batch>| {
            let beyond = batch.beyond(&end);
            end = end.advanced(batch.checkpoint());
            beyond
        };
        let batches: Vec<Arc<Batch>> = self.pending.iter().filter_map(|queued| take(&queued.batch)).collect();
        let urgent = self.pending.iter().any(|queued| queued.batch.urgent());
        if !batches.is_empty() {
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
        let moved = driver.durable.advanced(checkpoint);
        if moved != driver.durable && driver.breaker.progressed() {
            tracing::info!(sink = driver.sink.name(), "takes rows again");
            driver.status.breaker(BreakerState::Closed, None);
        }
        driver.publish(moved);
        debug_assert!(self.accepted.covers(&self.driver.durable), "durable beyond what was accepted");
        Ok(())
    }

    fn stops(&self) -> bool {
        self.driver.apart.as_ref().is_some_and(|apart| apart.anew.stops())
    }

    /// A sink that is to begin anew gives back what it has, and waits until it is told from where. `false` when nothing more
    /// will come.
    async fn heed(&mut self) -> bool {
        while self.stops() {
            self.give_back();
            self.driver.sink.close().await;
            let Driver { feed, apart, .. } = &mut self.driver;
            let Some(Apart { anew, .. }) = apart else { break };
            anew.stopped();
            tokio::select! {
                () = anew.changed() => {}
                () = feed.ended() => return false,
            }
        }
        true
    }

    /// Asks a target where it stands that did not answer yet. `false` when nothing more will come.
    async fn begin(&mut self) -> Result<bool> {
        if !self.heed().await {
            return Ok(false);
        }
        match self.recover().await {
            Ok(()) => Ok(true),
            Err(error) => self.retry(error).await,
        }
    }

    /// Waits, asks the target where it stands, and goes on from there; returns what cannot be retried. `false` when nothing
    /// more will come.
    async fn retry(&mut self, error: Error) -> Result<bool> {
        let mut error = error;
        loop {
            self.driver.status.failed(&error);
            let its_own = self.driver.is_its_own(&error);
            if !its_own && error.class() != Class::Transient {
                return Err(error);
            }
            if error.class() != Class::Transient {
                self.give_back();
            }
            let wait = self.driver.breaker.failed(error.class() == Class::Definite);
            let open = self.driver.apart.is_some() && self.driver.breaker.state() == BreakerState::Open;
            let until = Instant::now() + wait;
            if open {
                self.give_back();
                // nothing shall knock at it meanwhile
                self.driver.sink.close().await;
                self.driver.status.breaker(BreakerState::Open, Some(until));
            }
            self.say(&error, open, until);
            match open {
                true if !self.driver.feed.idle_until(until).await => return Ok(false),
                true => {}
                false => tokio::time::sleep_until(until).await,
            }
            if !self.heed().await {
                return Ok(false);
            }
            match self.recover().await {
                Ok(()) => return Ok(true),
                Err(again) => error = again,
            }
        }
    }

    fn say(&mut self, error: &Error, open: bool, until: Instant) {
        let Some(repeated) = self.throttle.say(&error.to_string()) else { return };
        let wait = until.saturating_duration_since(Instant::now());
        let repeated = (repeated > 0).then_some(repeated);
        let (sink, code, chain) = (self.driver.sink.name(), error.code(), error.chain());
        match open {
            true => tracing::warn!(
                sink,
                code = %code,
                error = chain,
                repeated,
                "left alone, and asked again in {wait:.0?}; the other sinks go on: {}",
                error.advice()
            ),
            false => {
                tracing::warn!(sink, code = %code, error = chain, repeated, "trying again in {wait:.1?}: {}", error.advice());
            }
        }
    }

    /// Lets go of all that is not accepted. What comes next follows on what the target says that it has.
    fn give_back(&mut self) {
        self.given_back = true;
        self.pending.clear();
        self.driver.feed.refuse(Checkpoint::default());
        self.driver.wants(None);
    }

    /// Asks the target where it stands. With batches at hand that must be what left our memory; without, any place that the
    /// slot can go on from.
    async fn recover(&mut self) -> Result<()> {
        self.begin_anew().await?;
        let Driver { sink, session, apart, .. } = &mut self.driver;
        if let Some(apart) = apart
            && let Some(target) = &mut apart.unprepared
        {
            target.prepare().await?;
            apart.unprepared = None;
        }
        let stored = sink.recover(session).await?;
        let (sink, registered) = (self.driver.sink.id(), self.driver.unregistered.is_none());
        let session = &self.driver.session;
        let checkpoint = match self.given_back {
            true => resume::judge_apart(sink, stored.as_ref(), registered, session)?,
            false => resume::judge_again(sink, stored.as_ref(), registered, session, self.accepted)?,
        };
        if std::mem::take(&mut self.given_back) {
            self.driver.feed.refuse(checkpoint);
        }
        self.accepted = checkpoint;
        self.driver.publish(checkpoint);
        if self.driver.breaker.answered() && self.driver.apart.is_some() {
            self.driver.status.breaker(BreakerState::HalfOpen, None);
        }
        Ok(())
    }

    /// Empties the target where that is asked for, and waits until whoever asked has noted it. What the target holds then is
    /// asked like at any other time.
    async fn begin_anew(&mut self) -> Result<()> {
        let Driver { sink, session, apart, unregistered, .. } = &mut self.driver;
        let Some(apart) = apart else { return Ok(()) };
        let Some(beginning) = apart.anew.beginning() else { return Ok(()) };
        beginning.make(sink.as_mut(), session).await?;
        apart.unprepared = None;
        if let Some(state) = unregistered {
            state.register_sink(session, sink.name(), beginning.from).await?;
            *unregistered = None;
        }
        failpoint!("anew_before_begun");
        apart.anew.begun();
        // one that is to end sees so by its feed
        self.heed().await;
        Ok(())
    }
}

/// Waits until the sink is to begin anew.
async fn asked(apart: &mut Option<Apart>) {
    match apart {
        None => std::future::pending().await,
        Some(apart) => {
            while !apart.anew.stops() {
                apart.anew.changed().await;
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
