//! Kafka: events, content rows, dead letters and the checkpoint in one transaction, so that a `read_committed`
//! reader sees all of a write or nothing.
//!
//! Who may write is decided twice. Kafka lets only the newest producer of a transactional id commit, and
//! whoever has become it reads the checkpoint afterwards: so the history that Kafka holds is one line whatever
//! instances do. The fencing token in PostgreSQL decides which instance gives up: one that was fenced and still has
//! the newest fencing token only lost a transaction to its time-out, and begins again.

mod config;
pub mod encode;
mod ends;
mod error;
mod murmur;
mod look;
mod reach;
mod read_back;
mod recover;
mod scan;
mod hung_transactions;
mod thread;
mod topics;
mod versions;
mod write;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

pub use self::config::{Compression, KafkaConfig, Properties, Topics};
use self::ends::Ends;
use self::hung_transactions::Watch;
use self::recover::Fence;
use self::write::{LetterBox, Writer};
use crate::batch::Batch;
use crate::error::{Code, Error, Kind, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Session, StoredCheckpoint};
use crate::resume::{Refusal, SinkName};
use crate::sink::erasure::{Subject, Traces};
use crate::sink::read_back::ReadBack;
use crate::sink::{BatchPolicy, Finding, Guarantee, Sink, SinkAdmin, SinkIdentity, Written};
use crate::state::State;

/// The name in configuration and metrics.
pub const NAME: SinkName = SinkName::new("kafka").rebuilt_by("walcast rebuild kafka");
const GUARANTEE: Guarantee =
    Guarantee::ExactlyOnce("for readers with isolation.level=read_committed; per content in commit order");

/// Writes to Kafka.
pub struct KafkaSink {
    config: KafkaConfig,
    row_bytes_max: usize,
    slot: String,
    state: State,
    open: Option<Open>,
    watch: Option<Watch>,
    /// Where the topics end by what is committed.
    ends: Arc<Mutex<Ends>>,
}

/// What a successful `recover` leaves, and the first error ends.
struct Open {
    writer: Writer,
    session: Session,
    durable: Checkpoint,
}

impl KafkaSink {
    /// A sink that connects when it is used first. `row_bytes_max` is the largest row that is sent on with
    /// its payload; `state` is where the fencing token is looked up. An error of kind `Config` for settings that
    /// cannot work.
    pub fn new(config: KafkaConfig, row_bytes_max: usize, state: State) -> Result<Self> {
        config.validate()?;
        Ok(KafkaSink {
            config,
            row_bytes_max,
            slot: state.slot().to_owned(),
            state,
            open: None,
            watch: None,
            ends: Arc::default(),
        })
    }

    async fn require_fencing_token(&mut self, session: &Session) -> Result<()> {
        self.state.guarded(session).await.map(drop)
    }
}

/// What another thread may have left half done is not seen: each value is put there whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SinkIdentity for KafkaSink {
    fn id(&self) -> SinkName {
        NAME
    }

    fn guarantee(&self) -> Guarantee {
        GUARANTEE
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn batch_policy(&self) -> BatchPolicy {
        BatchPolicy {
            linger: Duration::from_millis(self.config.commit_interval_ms),
            write_bytes_max: self.config.write_bytes_max,
            tick_every: None,
        }
    }

    async fn recover(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        self.open = None;
        // before: an instance that is to give up shall not shut the newer one out once more;
        // after: nobody has become newer while we waited
        self.require_fencing_token(session).await?;
        let fence = Fence::new(session);
        let letters = LetterBox::new(self.state.another(), session);
        let writer = Writer::start(&self.config, self.row_bytes_max, &fence, &self.ends, letters).await?;
        self.require_fencing_token(session).await?;
        failpoint!("kafka_recover_before_read");
        let held = recover::read(&self.config, &fence).await?;
        *lock(&self.ends) = held.ends.clone();
        let stored = held.whole(&self.config, session)?;
        let ours = stored.as_ref().filter(|stored| stored.history_id.uuid == session.history_id.uuid);
        let durable = ours.map_or_else(Checkpoint::default, |stored| stored.checkpoint);
        self.open = Some(Open { writer, session: session.clone(), durable });
        if self.watch.is_none() {
            self.watch = Some(Watch::start(&self.config, Arc::clone(&self.ends))?);
        }
        Ok(stored)
    }

    /// The events topic holds no record then, unless it keeps them; offsets go on, so that consumers do. What is keyed by content is
    /// written over.
    async fn begin(&mut self, session: &Session, keeps_rows: bool) -> Result<()> {
        self.open = None;
        self.watch = None;
        self.require_fencing_token(session).await?;
        topics::prepare(&self.config, self.row_bytes_max).await?;
        // what was there before is not missed
        *lock(&self.ends) = Ends::default();
        let letters = LetterBox::new(self.state.another(), session);
        let fence = Fence::new(session);
        let writer = Writer::start(&self.config, self.row_bytes_max, &fence, &self.ends, letters).await?;
        self.require_fencing_token(session).await?;
        failpoint!("kafka_before_empty");
        if !keeps_rows {
            topics::empty(&self.config, self.row_bytes_max).await?;
        }
        failpoint!("kafka_after_empty");
        *lock(&self.ends) = recover::ends(&self.config).await?;
        self.open = Some(Open { writer, session: session.clone(), durable: Checkpoint::default() });
        Ok(())
    }

    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
        // taken out, and put back when all went well: a write that is dropped halfway ends the producer too
        let Some(mut open) = self.open.take() else {
            return Err(Error::new(
                Code::KafkaUnreachable,
                "Kafka: there is no producer since the last error",
            ));
        };
        let checkpoint =
            batches.iter().fold(open.durable, |checkpoint, batch| checkpoint.advanced(batch.checkpoint()));
        let stored = StoredCheckpoint::new(&open.session.history_id, checkpoint);
        if let Some(told) = self.watch.as_ref().and_then(Watch::lost) {
            return Err(Refusal::LostWhatItHeld { told }.into_error(NAME, &open.session));
        }
        if let Err(error) = open.writer.write(batches, stored).await {
            return match self.require_fencing_token(&open.session).await {
                Err(newer) if newer.kind() == Kind::Fenced => Err(newer),
                _ => Err(error),
            };
        }
        open.durable = checkpoint;
        self.open = Some(open);
        Ok(Written::Durable(checkpoint))
    }

    async fn flush(&mut self) -> Result<Option<Checkpoint>> {
        // every write is durable when it returns
        Ok(None)
    }

    fn trouble(&self) -> Option<String> {
        self.watch.as_ref()?.trouble()
    }

    async fn close(&mut self) {
        self.open = None;
        self.watch = None;
    }
}

#[async_trait]
impl SinkAdmin for KafkaSink {
    async fn check(&mut self) -> Vec<Finding> {
        let transactional_id = self.config.transactional_id_for(&self.slot);
        let findings = topics::check(&self.config, self.row_bytes_max, &transactional_id).await;
        findings.unwrap_or_else(|error| vec![Finding::failed("kafka.brokers", "kafka brokers", &error)])
    }

    async fn prepare(&mut self) -> Result<()> {
        topics::prepare(&self.config, self.row_bytes_max).await
    }

    fn would_go(&self) -> Option<String> {
        Some(format!("all records of topic {} are deleted", self.config.topics().events))
    }

    fn read_back(&self) -> ReadBack {
        let (config, row_bytes_max) = (self.config.clone(), self.row_bytes_max);
        ReadBack::Events(Box::new(read_back::ReadTopics { config, row_bytes_max }))
    }

    async fn peek(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        recover::peek(&self.config, &session.history_id.slot).await?.whole(&self.config, session)
    }

    async fn traces(&mut self, subject: &Subject) -> Result<Traces> {
        let kept = topics::kept(&self.config, self.row_bytes_max).await?;
        let content = matches!(subject, Subject::Content(_)).then(|| self.config.topics().content);
        let content = content.map(|topic| {
            format!("; {topic} keeps the row until it is deleted in PostgreSQL, and is compacted after that")
        });
        let stays =
            format!("single records cannot be deleted: {}{}", kept.join(", "), content.unwrap_or_default());
        Ok(Traces::staying(stays))
    }
}
