//! What a sink that keeps sums holds, against what the events amount to.
//!
//! It is read at a checkpoint of its own, some way beyond the snapshot. The events in between come from the snapshot's own
//! slot: PostgreSQL itself tells them, with their places.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use uuid::Uuid;

use super::report::{Difference, Report};
use super::truth::Versions;
use crate::batch::{Batch, Row};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::event::Event;
use crate::event::place::Places;
use crate::lsn::{Checkpoint, HistoryId, Lsn};
use crate::sink::read_back::{KeyFound, KeyState, ReadSums};
use crate::source::connection::ReplicationStream;
use crate::source::frame::Frame;
use crate::source::request;
use crate::transform::Transform;

const ASK_EVERY: Duration = Duration::from_millis(100);

/// The sums of one sink, and what is needed to judge them.
pub struct Sums {
    sink: &'static str,
    reader: Box<dyn ReadSums>,
    /// How far they reach.
    checkpoint: Checkpoint,
}

/// Reads them.
pub async fn read(sink: &'static str, mut reader: Box<dyn ReadSums>, history_id: &HistoryId) -> Result<Sums> {
    let checkpoint = reader.read(history_id).await?;
    Ok(Sums { sink, reader, checkpoint })
}

/// What came after the snapshot, up to where all sums reach.
#[derive(Default)]
pub struct Later {
    /// Contents that have changed.
    changed: HashSet<Uuid>,
}

/// A stream that is read for what it tells, from `start` on; nothing of it is confirmed.
pub struct Follow<'a> {
    /// The stream.
    pub stream: ReplicationStream,
    /// What makes batches of it.
    pub transform: Transform,
    /// Where it starts.
    pub start: Lsn,
    /// Where control messages are looked up; without it they are nobody's.
    pub requests: Option<&'a Client>,
}

impl Follow<'_> {
    /// Gives all batches until the stream reaches `target`.
    pub async fn up_to(
        self,
        target: Checkpoint,
        within: Duration,
        mut take: impl FnMut(&Batch),
    ) -> Result<()> {
        let Follow { mut stream, mut transform, start, requests } = self;
        let (mut checkpoint, began) = (Checkpoint::at(start), Instant::now());
        while !checkpoint.covers(&target) {
            if began.elapsed() > within {
                let message =
                    format!("the stream from {start} did not reach {target}, where the sinks stand");
                return Err(Error::new(Code::Unavailable, message));
            }
            // a keepalive tells the end of an idle stream
            stream.send_status(start, start, true).await?;
            tokio::time::timeout(ASK_EVERY, stream.fill()).await.unwrap_or(Ok(()))?;
            while let Some(frame) = stream.next_frame()? {
                match frame {
                    Frame::XLogData { payload, .. } => {
                        transform.apply(&payload)?;
                        if let Some(ticket) = transform.asks() {
                            transform.answered(match requests {
                                Some(client) => request::find(client, ticket).await?,
                                None => None,
                            });
                        }
                    }
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
            while let Some(batch) = transform.take_rest() {
                checkpoint = batch.checkpoint();
                take(&batch);
            }
        }
        Ok(())
    }
}

impl Later {
    /// Takes from the stream, which begins at the snapshot, all that the sums have beyond it.
    pub async fn follow(
        sums: &mut [Sums],
        config: &Config,
        places: &Places,
        (stream, client): (ReplicationStream, &Client),
        start: Lsn,
        versions: &Versions,
        within: Duration,
    ) -> Result<Later> {
        let mut later = Later::default();
        let target = sums.iter().fold(Checkpoint::at(start), |target, sums| target.advanced(sums.checkpoint));
        let bounds = config.pipeline.bounds();
        let transform = Transform::new(places, start, versions.cache(), bounds);
        let follow = Follow { stream, transform, start, requests: Some(client) };
        follow.up_to(target, within, |batch| later.keep(sums, batch)).await?;
        Ok(later)
    }

    fn keep(&mut self, sums: &mut [Sums], batch: &Batch) {
        let is_for = |sums: &&mut Sums| batch.control().is_none_or(|control| control.is_for(sums.sink));
        for row in batch.rows() {
            match row {
                Row::Event(event) => {
                    let event_type = event.event_type.map(|span| batch.text(span));
                    sums.iter_mut().filter(is_for).for_each(|sums| sums.reader.add_later(event, event_type));
                }
                Row::Content(change) => drop(self.changed.insert(change.id)),
                Row::DeadLetter(_) | Row::EventChange(_) => {}
            }
        }
    }

    /// Whether a content's row has changed.
    pub fn has_changed(&self, content_id: &Uuid) -> bool {
        self.changed.contains(content_id)
    }
}

impl Sums {
    /// Whose they are.
    pub fn sink(&self) -> &'static str {
        self.sink
    }

    /// Counts an event of the snapshot.
    pub fn add(&mut self, event: &Event, event_type: Option<&str>) {
        self.reader.add(event, event_type);
    }

    /// Compares. `unsure` tells the contents whose length may have been another one.
    /// `excused` whether the source has changed or deleted events so that keys of a content, or of all where it is `None`,
    /// may be as they are found.
    pub fn compare(
        self,
        unsure: impl Fn(&Uuid) -> bool,
        excused: impl Fn(Option<&Uuid>, KeyState) -> bool,
        report: &mut Report,
    ) {
        let Sums { sink, reader, checkpoint } = self;
        report
            .notes
            .push(format!("{sink} was compared as of its checkpoint {checkpoint}, by keys and members"));
        let mut less: u64 = 0;
        reader.compare(&unsure, &mut |found| {
            less += u64::from(found.state == KeyState::Less);
            let as_it_may_be = matches!(found.state, KeyState::Same | KeyState::Less);
            match !as_it_may_be && excused(content_of(&found.key).as_ref(), found.state) {
                true => report.counters(sink, None).changed_at_source += 1,
                false => tell(sink, found, report),
            }
        });
        if less > 0 {
            report.notes.push(format!(
                "{sink} lacks events in {less} keys and members, as it may: they came further ahead of their time than it counts"
            ));
        }
    }
}

/// The content that a key, or its member, is about.
fn content_of(key: &str) -> Option<Uuid> {
    key.split([':', ' ']).find_map(|part| Uuid::parse_str(part).ok())
}

fn tell(sink: &'static str, found: KeyFound, report: &mut Report) {
    let difference = match found.state {
        KeyState::Same | KeyState::Less => {
            report.counters(sink, None).held += 1;
            return;
        }
        KeyState::Missing => Difference::Missing,
        KeyState::Different | KeyState::More => Difference::Different,
        KeyState::Unexpected => Difference::Unexpected,
    };
    let names = found.fields.into_iter().map(str::to_owned).collect();
    report.differs(sink, None, difference, || (found.key, names));
}
