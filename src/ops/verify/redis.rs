//! What Redis holds, against what the events amount to.
//!
//! Redis is read at a checkpoint of its own, some way beyond the snapshot. The events in between come from the snapshot's own
//! slot: PostgreSQL itself tells them, with their places.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::report::{Difference, Report};
use super::truth::Versions;
use crate::batch::{Batch, Row};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::lsn::{Checkpoint, HistoryId, Lsn};
use crate::sink::redis::audit::{self, Expected, Found, Later, Reading, Verdict};
use crate::source::connection::ReplicationStream;
use crate::source::frame::Frame;
use crate::transform::Transform;

const ASK_EVERY: Duration = Duration::from_millis(100);

/// Redis as it was read, and what is needed to judge it.
pub struct Redis {
    reading: Reading,
    /// What the events of the snapshot amount to; filled by who reads them.
    pub expected: Expected,
    later: Vec<Later>,
    /// Contents that have changed after the snapshot.
    changed: HashSet<Uuid>,
}

/// Reads Redis.
pub async fn read(config: &Config, history_id: &HistoryId) -> Result<Redis> {
    let reading = audit::read(&config.redis, history_id).await?;
    let expected = Expected::new(reading.at);
    Ok(Redis { reading, expected, later: Vec::new(), changed: HashSet::new() })
}

impl Redis {
    /// Takes from the stream, which begins at the snapshot, all that Redis holds beyond it.
    pub async fn follow(
        &mut self,
        config: &Config,
        mut stream: ReplicationStream,
        start: Lsn,
        versions: &Versions,
        within: Duration,
    ) -> Result<()> {
        let target = self.reading.checkpoint();
        let bounds = config.pipeline.bounds();
        let mut transform = Transform::new(&config.postgres.schema, start, versions.cache(), bounds);
        let (mut checkpoint, began) = (Checkpoint::at(start), Instant::now());
        while !checkpoint.covers(&target) {
            if began.elapsed() > within {
                let message =
                    format!("the stream from the snapshot did not reach {target}, where Redis stands");
                return Err(Error::new(Code::Unavailable, message));
            }
            // a keepalive tells the end of an idle stream
            stream.send_status(start, start, true).await?;
            tokio::time::timeout(ASK_EVERY, stream.fill()).await.unwrap_or(Ok(()))?;
            while let Some(frame) = stream.next_frame()? {
                match frame {
                    Frame::XLogData { payload, .. } => transform.apply(&payload)?,
                    Frame::Keepalive { wal_end, .. } => transform.keepalive(wal_end, false),
                    Frame::Warning(warning) => {
                        let message = format!("PostgreSQL may leave out rows of the stream: {warning}");
                        return Err(Error::new(Code::Unavailable, message));
                    }
                }
                if transform.is_full() {
                    break;
                }
            }
            if let Some(batch) = transform.take_rest() {
                checkpoint = batch.checkpoint();
                self.keep(&batch);
            }
        }
        Ok(())
    }

    fn keep(&mut self, batch: &Batch) {
        for row in batch.rows() {
            match row {
                Row::Event(event) => {
                    self.later.push(Later::new(event, event.event_type.map(|span| batch.text(span))));
                }
                Row::Content(change) => drop(self.changed.insert(change.id)),
                Row::DeadLetter(_) => {}
            }
        }
    }

    /// Compares. `unsure` tells the contents whose length may have been another one.
    pub fn compare(self, unsure: impl Fn(&Uuid) -> bool, report: &mut Report) {
        let Redis { reading, expected, later, changed } = self;
        let unsure = |id: &Uuid| changed.contains(id) || unsure(id);
        let checkpoint = reading.checkpoint();
        report
            .notes
            .push(format!("redis was compared as of its checkpoint {checkpoint}, by keys and members"));
        audit::differences(expected, &later, &reading, unsure, &mut |found| tell(found, report));
    }
}

fn tell(found: Found, report: &mut Report) {
    const NAME: &str = "redis";
    let difference = match found.verdict {
        Verdict::Same => {
            report.counters(NAME, None).held += 1;
            return;
        }
        Verdict::Missing => Difference::Missing,
        Verdict::Different => Difference::Different,
        Verdict::Unexpected => Difference::Unexpected,
    };
    report.differs(NAME, None, difference, || (found.key, found.fields));
}
