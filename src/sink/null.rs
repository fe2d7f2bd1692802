//! A sink that forgets everything: for measuring the way up to the sinks. It keeps no checkpoint, so each start
//! begins at the slot's confirmed LSN.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::batch::Batch;
use crate::error::Result;
use crate::lsn::{Checkpoint, Session, StoredCheckpoint};
use crate::resume::SinkName;
use crate::sink::erasure::{Subject, Traces};
use crate::sink::read_back::ReadBack;
use crate::sink::{BatchPolicy, Finding, Guarantee, Sink, SinkAdmin, SinkIdentity, Written};

/// The name in configuration and metrics.
pub const NAME: SinkName = SinkName::new("null");
const GUARANTEE: Guarantee = Guarantee::None;

/// The sink.
#[derive(Debug, Default)]
pub struct NullSink {
    checkpoint: Checkpoint,
}

impl SinkIdentity for NullSink {
    fn id(&self) -> SinkName {
        NAME
    }

    fn guarantee(&self) -> Guarantee {
        GUARANTEE
    }
}

#[async_trait]
impl Sink for NullSink {
    fn batch_policy(&self) -> BatchPolicy {
        BatchPolicy { linger: Duration::ZERO, write_bytes_max: 1 << 20, tick_every: None }
    }

    async fn recover(&mut self, _session: &Session) -> Result<Option<StoredCheckpoint>> {
        Ok(None)
    }

    async fn begin(&mut self, _session: &Session, _: bool) -> Result<()> {
        Ok(())
    }

    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
        self.checkpoint =
            batches.iter().fold(self.checkpoint, |checkpoint, batch| checkpoint.advanced(batch.checkpoint()));
        Ok(Written::Durable(self.checkpoint))
    }

    async fn flush(&mut self) -> Result<Option<Checkpoint>> {
        // every write is durable when it returns
        Ok(None)
    }
}

#[async_trait]
impl SinkAdmin for NullSink {
    async fn check(&mut self) -> Vec<Finding> {
        Vec::new()
    }

    async fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn read_back(&self) -> ReadBack {
        ReadBack::Nothing
    }

    async fn peek(&mut self, _session: &Session) -> Result<Option<StoredCheckpoint>> {
        Ok(None)
    }

    async fn traces(&mut self, _subject: &Subject) -> Result<Traces> {
        Ok(Traces::default())
    }
}
