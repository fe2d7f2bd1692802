//! What a sink lacks that keeps what it holds: the rows that are due in it and not there. What it holds is read back from it, by
//! ids alone: a bit a row.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::lsn::{HistoryId, Lsn};
use crate::sink::read_back::{Found, Part, ReadBack, ReadEvents};
use crate::sinks;
use crate::source::sql;
use crate::state::backfills::Backfill;
use crate::state::brought::BroughtTo;
use crate::state::dead_letters;
use crate::state::marks::{EventMarks, IdSet};

/// Which rows a sink is to be brought.
pub(super) struct Lacking {
    /// Whose it is.
    pub backfill: Uuid,
    sink: String,
    held: Held,
    brought: BroughtTo,
}

/// What a sink holds.
#[derive(Default)]
struct Held {
    ids: IdSet,
    /// Partitions whose beginning the target has deleted, as long as nothing of them was found.
    trimmed: HashSet<u16>,
    /// The lowest id with which such a partition begins now. Rows below had their time there.
    begins: Option<i64>,
}

impl Held {
    fn take(&mut self, found: Found<'_>, below: Lsn) {
        match found {
            Found::Trimmed(partition) => {
                self.trimmed.insert(partition);
            }
            Found::Event(values, partition) => {
                let (Some(id), Some(position)) = (values.id(), values.position()) else { return };
                if partition.is_some_and(|partition| self.trimmed.remove(&partition)) {
                    self.begins = Some(self.begins.map_or(id, |begins| begins.min(id)));
                }
                if position.commit_lsn < below {
                    self.ids.insert(id);
                }
            }
            // refused once, it would be refused again
            Found::Letter { id, for_all: false, .. } => self.ids.insert(id),
            Found::Letter { .. } | Found::Expected(_) | Found::Unreadable => {}
        }
    }
}

impl Lacking {
    /// Reads what the backfill's sink holds; `None` where it keeps nothing.
    pub async fn of(
        config: &Config,
        client: &Client,
        history_id: &HistoryId,
        backfill: &Backfill,
    ) -> Result<Option<Lacking>> {
        let Some((keeps_below, sink)) = backfill.keeps_below().zip(backfill.sinks.first()) else {
            return Ok(None);
        };
        let wal_end =
            client.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await.map_err(sql::error)?;
        let end = keeps_below.min(Lsn(sql::get::<PgLsn>(&wal_end, 0)?.into()));
        let (read, reader) = what_tells(config, sink)?.ok_or_else(|| {
            let message = format!("what {sink} holds no sink tells");
            Error::new(Code::BackfillUnfit, message).hint(format!("walcast rebuild {sink} --yes"))
        })?;
        tracing::info!(sink, read, "what it holds is read, to tell what it lacks");
        // a reader that blocks has a thread of its own; nobody else takes the lock meanwhile
        let held = Arc::new(Mutex::new(Held::default()));
        let taking = Arc::clone(&held);
        let take = move |found: Found<'_>| {
            taking.lock().unwrap_or_else(PoisonError::into_inner).take(found, end);
            Ok(())
        };
        reader.read(end, &Part::default(), Box::new(take)).await?;
        let held = std::mem::take(&mut *held.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lacking = Lacking {
            backfill: backfill.id,
            sink: sink.clone(),
            held,
            brought: BroughtTo::load(client, history_id).await?,
        };
        for id in dead_letters::refused_by(client, history_id.uuid, sink).await? {
            lacking.held.ids.insert(id);
        }
        tracing::info!(sink, rows = lacking.held.ids.len(), "what it holds is read");
        Ok(Some(lacking))
    }

    /// Whether the sink is to be brought a row; `before`: it was there before walcast.
    pub fn has(&self, id: i64, event_ts: i64, before: bool) -> bool {
        let expired = self.held.begins.is_some_and(|begins| id < begins);
        !expired && !self.held.ids.contains(id) && self.brought.is_due(&self.sink, id, event_ts, before)
    }

    /// Of rows up to `last`, behind `done`, those that the sink has and PostgreSQL has not, as that was read; nor did the stream
    /// bring them.
    pub fn gone(&self, done: Option<i64>, last: i64, read: &HashSet<i64>, since: &IdSet) -> EventMarks {
        let first = done.map_or(Some(i64::MIN), |done| done.checked_add(1));
        let held = first.into_iter().flat_map(|first| self.held.ids.within(first..=last));
        let mut gone = EventMarks::default();
        held.filter(|id| !read.contains(id) && !since.contains(*id)).for_each(|id| gone.touched.insert(id));
        gone
    }
}

/// Who tells what a sink holds, and by whose name: itself, or, of one that gives nothing back, another one.
fn what_tells(config: &Config, sink: &str) -> Result<Option<(&'static str, Box<dyn ReadEvents>)>> {
    let mut others = None;
    for target in sinks::wanted(config)? {
        let ReadBack::Events(reader) = target.read_back() else { continue };
        if target.name() == sink {
            return Ok(Some((target.name(), reader)));
        }
        others.get_or_insert((target.name(), reader));
    }
    Ok(others)
}
