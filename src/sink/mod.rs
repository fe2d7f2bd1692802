//! What a sink is.
//!
//! A sink stores rows and its [`Checkpoint`] in one atomic act, and asks its target where it stands instead of
//! remembering. Where a target cannot do that, the [`Guarantee`] says so. Queue, retry, skipping of what is held already, metrics and dead letters live once, in
//! [`driver`]. A new sink is one folder, one `mod` line here and one entry in [`crate::sinks`], which lists them.

pub mod queue;
pub mod read_back;
pub mod recount;
pub mod retry;
pub mod breaker;
pub mod erasure;
pub mod anew;
pub mod driver;
pub mod content;
pub mod null;
pub mod kafka;
pub mod redis;
pub mod bigquery;
pub mod http;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use self::erasure::{Subject, Traces};
use self::read_back::ReadBack;
use self::recount::Recount;
pub use self::redis::reader::Reader as Leaderboards;
use crate::batch::Batch;
use crate::error::Result;
pub use crate::finding::{Finding, Verdict};
use crate::lsn::{Checkpoint, Session, StoredCheckpoint};
use crate::resume::SinkName;
use crate::telemetry::delivery::LATENCY_OBJECTIVE;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The target has the rows but may still lose them; a later `tick` or `flush` makes them durable.
    /// The driver releases them from memory: when the target loses them after all, the sink answers
    /// with an error of kind `Lost` and the slot is read again.
    Accepted,
    /// The rows and this checkpoint are durable.
    Durable(Checkpoint),
}

/// How the driver is to feed a sink.
#[derive(Debug, Clone, Copy)]
pub struct BatchPolicy {
    /// How old the first batch may become while others are collected for one `write`; an urgent one ends the wait.
    pub linger: Duration,
    /// How many bytes of batches (as [`Batch::bytes`] counts) to collect at most for one `write`.
    pub write_bytes_max: usize,
    /// How often to call `tick`; `None` for never.
    pub tick_every: Option<Duration>,
}

/// What a sink promises of each event that PostgreSQL commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    /// It arrives once, whatever crashes. The text says for whom or in what way.
    ExactlyOnce(&'static str),
    /// It arrives once or more, and who receives it can tell a repeat. The text says by what.
    AtLeastOnce(&'static str),
    /// It is forgotten: for measurements.
    None,
}

impl Guarantee {
    /// Whether the target keeps a checkpoint over restarts: then a target without one has lost its data.
    pub fn keeps_checkpoint(self) -> bool {
        self != Guarantee::None
    }
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Guarantee::ExactlyOnce(how) => write!(f, "exactly once, {how}"),
            Guarantee::AtLeastOnce(how) => write!(f, "at least once: {how}"),
            Guarantee::None => f.write_str("none: events are forgotten"),
        }
    }
}

/// What each view of a sink tells of it.
pub trait SinkIdentity: Send {
    /// Which sink it is.
    fn id(&self) -> SinkName;

    /// The name in configuration, metrics and `walcast.sink`.
    fn name(&self) -> &'static str {
        self.id().as_str()
    }

    /// What it promises.
    fn guarantee(&self) -> Guarantee;
}

/// A place where events go: the way of the data.
///
/// Calls come one at a time, from the sink's own task. After any error the driver calls `recover` before
/// it writes again, and then writes only what the answer does not cover: so an unknown outcome needs no
/// care of its own in `write`, it is an error of class `Transient`.
#[async_trait]
pub trait Sink: SinkIdentity {
    /// How to feed it.
    fn batch_policy(&self) -> BatchPolicy;

    /// Within what time of their commit it is to hold rows, while all is well.
    fn latency_objective(&self) -> Duration {
        LATENCY_OBJECTIVE
    }

    /// Shuts older instances out (`session.fencing_token`), settles what an earlier run left open, and asks the
    /// target how far it reaches; `None` when it holds no checkpoint.
    async fn recover(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>>;

    /// Makes what is missing of the target, empties it unless it keeps its rows, and is recovered then as one that holds no
    /// checkpoint. Done again, it does nothing more. What is written next follows on no earlier row.
    async fn begin(&mut self, session: &Session, keeps_rows: bool) -> Result<()>;

    /// Takes batches, in stream order, without gaps, never one that the target already holds. A batch
    /// may be without rows: its checkpoint is to be made durable all the same.
    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written>;

    /// Work on the sink's own clock; `Some` when it made a checkpoint durable. Never called where [`BatchPolicy::tick_every`] is `None`.
    async fn tick(&mut self) -> Result<Option<Checkpoint>> {
        Ok(None)
    }

    /// Makes all accepted rows durable now; `Some` when that moved the checkpoint.
    async fn flush(&mut self) -> Result<Option<Checkpoint>>;

    /// What is wrong with the target although it takes rows, in one sentence that ends with what to do.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Ends connections in good order. Accepted rows may be dropped: the slot still has them.
    async fn close(&mut self) {}
}

/// A sink's target as an operator sees it: what is done before and beside the way of the data.
#[async_trait]
pub trait SinkAdmin: SinkIdentity {
    /// Looks whether the target is as it must be; changes nothing.
    async fn check(&mut self) -> Vec<Finding>;

    /// Creates what is missing at the target (topics, tables) and refuses what is there in another
    /// shape (kind `Setup`). Run again it does nothing.
    async fn prepare(&mut self) -> Result<()>;

    /// What goes when it is emptied, in words; `None` where it is not filled anew row by row.
    fn would_go(&self) -> Option<String> {
        None
    }

    /// What counts all events anew at a target that keeps sums of them; `None` where rows are brought one by one.
    fn recount(&self) -> Option<Box<dyn Recount>> {
        None
    }

    /// What `walcast verify` compares with PostgreSQL.
    fn read_back(&self) -> ReadBack;

    /// How far the target reaches now, asked without shutting anybody out and without changing anything: a running
    /// instance may be further in a moment. `None` when it holds no checkpoint.
    async fn peek(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>>;

    /// What the target has of a person, or of a content.
    async fn traces(&mut self, subject: &Subject) -> Result<Traces>;

    /// Takes out of it what can be taken out.
    async fn erase(&mut self, _subject: &Subject) -> Result<()> {
        Ok(())
    }
}
