//! Targets, and sinks that fail in every way a target can.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::Instant;
use walcast::batch::Batch;
use walcast::error::{Code, Error, Result};
use walcast::lsn::{Checkpoint, Lsn, Position, Session, StoredCheckpoint};
use walcast::resume::SinkName;
use walcast::sink::{BatchPolicy, Guarantee, Sink, SinkIdentity, Written};

use super::wal::Seen;

/// What is really at a target, which survives every crash.
#[derive(Default, Clone)]
pub struct Target {
    pub name: &'static str,
    pub rows: Vec<Seen>,
    pub checkpoint: Option<Checkpoint>,
    /// What it is to have in the end; `None` when that is open.
    pub wanted: Option<Arc<Vec<Seen>>>,
    /// The server has warned before this place, and it is not known yet why.
    pub doubtful_from: Option<Position>,
    /// When it came to hold what, in this life.
    pub held_since: Vec<(Lsn, Instant)>,
}

impl Target {
    fn store(&mut self, rows: &[Seen], checkpoint: Checkpoint) {
        if let Some(wanted) = &self.wanted {
            let next = &wanted[self.rows.len()..];
            assert!(
                next.starts_with(rows),
                "{} has a gap, a double, another order or another join",
                self.name
            );
        }
        if let Some(from) = self.doubtful_from {
            let passed = rows.last().is_some_and(|row| row.position >= from)
                || checkpoint.durable_lsn > from.commit_lsn;
            assert!(!passed, "{} was fed beyond a warning that is not settled", self.name);
        }
        self.rows.extend_from_slice(rows);
        let checkpoint = self.checkpoint.unwrap_or_default().advanced(checkpoint);
        self.checkpoint = Some(checkpoint);
        self.held_since.push((checkpoint.durable_lsn, Instant::now()));
    }

    /// Since when it holds everything up to here; `None` when it has since before this life.
    pub fn held_since(&self, lsn: Lsn) -> Option<Instant> {
        let first = self.held_since.partition_point(|(durable, _)| *durable < lsn);
        self.held_since.get(first).filter(|_| first > 0).map(|(_, since)| *since)
    }

    /// A new process takes it to hold this.
    pub fn asked(&mut self, durable: Checkpoint) {
        self.held_since = vec![(durable.durable_lsn, Instant::now())];
    }
}

/// How a sink behaves in one life.
#[derive(Clone, Copy)]
pub struct Manners {
    /// How often something goes wrong.
    pub faults: f64,
    /// How many milliseconds a write takes at most.
    pub write_millis_max: u64,
    /// How often it is ticked, for the one that accepts.
    pub tick_every: Duration,
    /// Its writes never end.
    pub hangs: bool,
}

pub struct FaultySink {
    name: &'static str,
    target: Arc<Mutex<Target>>,
    staged: Vec<Seen>,
    staged_checkpoint: Option<Checkpoint>,
    session: Session,
    rng: StdRng,
    manners: Manners,
}

impl FaultySink {
    pub fn new(target: &Arc<Mutex<Target>>, session: &Session, rng: StdRng, manners: Manners) -> Self {
        let (name, target, session) = (target.lock().unwrap().name, Arc::clone(target), session.clone());
        FaultySink { name, target, staged: Vec::new(), staged_checkpoint: None, session, rng, manners }
    }

    fn fault(&mut self, what: &str) -> Result<()> {
        match self.rng.random_bool(self.manners.faults) {
            true => Err(Error::new(Code::Unavailable, what)),
            false => Ok(()),
        }
    }

    fn commit(&mut self, rows: &[Seen], checkpoint: Checkpoint) -> Result<Checkpoint> {
        self.fault("before the write")?;
        self.target.lock().unwrap().store(rows, checkpoint);
        self.fault("answer lost")?;
        Ok(checkpoint)
    }

    fn commit_staged(&mut self) -> Result<Option<Checkpoint>> {
        let Some(checkpoint) = self.staged_checkpoint.take() else { return Ok(None) };
        let rows = std::mem::take(&mut self.staged);
        self.commit(&rows, checkpoint).map(Some)
    }
}

impl SinkIdentity for FaultySink {
    fn id(&self) -> SinkName {
        SinkName::new(self.name)
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce("in the simulation")
    }
}

#[async_trait]
impl Sink for FaultySink {
    fn batch_policy(&self) -> BatchPolicy {
        let tick_every = (self.name == "accepts").then_some(self.manners.tick_every);
        BatchPolicy { linger: Duration::from_millis(5), write_bytes_max: 20_000, tick_every }
    }

    async fn recover(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        self.staged.clear();
        self.staged_checkpoint = None;
        self.session = session.clone();
        self.fault("recover")?;
        let checkpoint = self.target.lock().unwrap().checkpoint;
        Ok(checkpoint.map(|checkpoint| StoredCheckpoint::new(&session.history_id, checkpoint)))
    }

    async fn begin(&mut self, session: &Session, keeps_rows: bool) -> Result<()> {
        self.fault("emptying")?;
        {
            let mut target = self.target.lock().unwrap();
            if !keeps_rows {
                target.rows.clear();
            }
            target.checkpoint = None;
        }
        self.recover(session).await.map(drop)
    }

    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
        if self.manners.hangs {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..self.manners.write_millis_max)))
            .await;
        let rows: Vec<Seen> = batches.iter().flat_map(|batch| batch.rows().iter().map(Seen::of)).collect();
        let checkpoint = batches
            .iter()
            .fold(Checkpoint::default(), |checkpoint, batch| checkpoint.advanced(batch.checkpoint()));
        match self.name {
            "accepts" => {
                self.fault("accepting")?;
                self.staged.extend(rows);
                self.staged_checkpoint =
                    Some(self.staged_checkpoint.unwrap_or_default().advanced(checkpoint));
                Ok(Written::Accepted)
            }
            "cuts" if rows.len() > 1 => {
                // As Redis: a prefix with a checkpoint inside, then the rest.
                let (first, rest) = rows.split_at(self.rng.random_range(1..rows.len()));
                let before = self.target.lock().unwrap().checkpoint;
                let durable_lsn = before.map_or(self.session.start, |checkpoint| checkpoint.durable_lsn);
                self.commit(
                    first,
                    Checkpoint { position: first.last().map(|row| row.position), durable_lsn },
                )?;
                self.commit(rest, checkpoint).map(Written::Durable)
            }
            _ => self.commit(&rows, checkpoint).map(Written::Durable),
        }
    }

    async fn tick(&mut self) -> Result<Option<Checkpoint>> {
        self.commit_staged()
    }

    async fn flush(&mut self) -> Result<Option<Checkpoint>> {
        self.commit_staged()
    }
}
