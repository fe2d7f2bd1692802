//! What a sink lacks that keeps what it holds: the rows that are due in it and not there. What it holds is read back from it, by
//! ids alone: a bit a row.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_postgres::Client;
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::lsn::{HistoryId, Lsn};
use crate::sink::read_back::{Found, Part, ReadBack, ReadEvents};
use crate::sinks;
use crate::source::slot;
use crate::state::backfills::Backfill;
use crate::state::brought::BroughtTo;
use crate::state::dead_letters;
use crate::state::marks::{EventMarks, IdSet};

/// Which rows a sink is to be brought.
pub(super) struct Lacking {
    /// Whose it is.
    pub backfill: Uuid,
    sink: String,
    held: IdSet,
    /// Older events had their time at the target, by their `event_ts`.
    keeps_since: Option<i64>,
    brought: BroughtTo,
}

/// The id of an event that the sink holds, by what was found.
fn held(found: &Found<'_>, below: Lsn) -> Option<i64> {
    let (id, position) = match found {
        Found::Event(values, _) => values.id().zip(values.position())?,
        // refused once, it would be refused again
        Found::Letter { id, position, for_all: false } => (*id, *position),
        Found::Letter { .. } | Found::Expected(_) | Found::Unreadable | Found::Trimmed(_) => return None,
    };
    (position.commit_lsn < below).then_some(id)
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
        let end = keeps_below.min(slot::wal_insert_lsn(client).await?);
        let (read, mut reader) = what_tells(config, sink)?.ok_or_else(|| {
            let message = format!("what {sink} holds no sink tells");
            Error::new(Code::BackfillUnfit, message).hint(format!("walcast rebuild {sink} --yes"))
        })?;
        tracing::info!(sink, read, "what it holds is read, to tell what it lacks");
        let keeps_since = reader.keeps_since().await?;
        // a reader that blocks has a thread of its own; nobody else takes the lock meanwhile
        let ids = Arc::new(Mutex::new(IdSet::default()));
        let taking = Arc::clone(&ids);
        let take = move |found: Found<'_>| {
            if let Some(id) = held(&found, end) {
                taking.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
            }
            Ok(())
        };
        reader.read(end, &Part::default(), Box::new(take)).await?;
        let held = std::mem::take(&mut *ids.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lacking = Lacking {
            backfill: backfill.id,
            sink: sink.clone(),
            held,
            keeps_since,
            brought: BroughtTo::load(client, history_id).await?,
        };
        for id in dead_letters::refused_by(client, history_id.uuid, sink).await? {
            lacking.held.insert(id);
        }
        tracing::info!(sink, rows = lacking.held.len(), "what it holds is read");
        Ok(Some(lacking))
    }

    /// Whether the sink is to be brought a row; `before`: it was there before walcast.
    pub fn has(&self, id: i64, event_ts: i64, before: bool) -> bool {
        let expired = self.keeps_since.is_some_and(|since| event_ts < since);
        !expired && !self.held.contains(id) && self.brought.is_due(&self.sink, id, event_ts, before)
    }

    /// Of rows up to `last`, behind `done`, those that the sink has and PostgreSQL has not, as that was read; nor did the stream
    /// bring them.
    pub fn gone(&self, done: Option<i64>, last: i64, read: &HashSet<i64>, since: &IdSet) -> EventMarks {
        let first = done.map_or(Some(i64::MIN), |done| done.checked_add(1));
        let held = first.into_iter().flat_map(|first| self.held.within(first..=last));
        let mut gone = EventMarks::default();
        held.filter(|id| !read.contains(id) && !since.contains(*id)).for_each(|id| gone.touched.insert(id));
        gone
    }
}

/// Who tells what a sink holds, and by whose name: itself, or, of one that gives nothing back, the last of the others, which keeps
/// events for longest.
fn what_tells(config: &Config, sink: &str) -> Result<Option<(&'static str, Box<dyn ReadEvents>)>> {
    let mut others = None;
    for target in sinks::wanted(config)? {
        let ReadBack::Events(reader) = target.read_back() else { continue };
        if target.name() == sink {
            return Ok(Some((target.name(), reader)));
        }
        others = Some((target.name(), reader));
    }
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_or_had_its_time_is_not_lacking() {
        let mut held = IdSet::default();
        [3, 5].into_iter().for_each(|id| held.insert(id));
        let lacking = Lacking {
            backfill: Uuid::nil(),
            sink: "kafka".to_owned(),
            held,
            keeps_since: Some(100),
            brought: BroughtTo::default(),
        };
        let has = |id, event_ts| lacking.has(id, event_ts, false);
        assert_eq!([has(3, 100), has(4, 100), has(4, 99)], [false, true, false]);
        assert!(!lacking.has(4, 100, true), "it was there before walcast, and never brought");
        let gone =
            |done, last| lacking.gone(done, last, &HashSet::from([5]), &IdSet::default()).touched.len();
        assert_eq!([gone(None, 10), gone(Some(3), 10), gone(Some(i64::MAX), i64::MAX)], [1, 0, 0]);
    }
}
