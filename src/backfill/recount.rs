//! Counts all events anew for a sink that keeps sums of them.
//!
//! A temporary slot's snapshot holds exactly the commits below its consistent point. What they amount to is written to the
//! target, with that point as its checkpoint: the stream skips what lies below it and adds the rest.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::Client;
use uuid::Uuid;

use super::{Pace, Worker};
use crate::error::Result;
use crate::event::Content;
use crate::event::encoding::Encoding;
use crate::event::encoding::json::Json;
use crate::event::place::{Place, Places};
use crate::event::replayed::Replayed;
use crate::failpoint::failpoint;
use crate::lsn::Session;
use crate::sink::recount::Recount;
use crate::source::snapshot::Snapshot;
use crate::source::{PostgresConfig, check, heartbeat, rows, sql};
use crate::state::backfills::{self, Backfill, RebuildStep};
use crate::state::marks::EventMarks;
use crate::state::pre_existing::{PreExisting, Xid};
use crate::state::{State, dead_letters, history};
use crate::telemetry::registry::StatusRegistry;

/// How often it is stored how many events are counted.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Events between two looks at who wants to know how many there are.
const TELL_EVENTS: u64 = 1_000;

type Contents = HashMap<Uuid, Arc<Content>>;

/// What is known of the events that are counted.
pub struct Recounting<'a> {
    /// Who counts.
    pub session: &'a Session,
    /// Where they are.
    pub places: &'a Places,
    /// What their ids tell.
    pub marks: &'a EventMarks,
    /// Whether rows that were there before walcast count.
    pub with_history: bool,
    /// Who knows of the events that come meanwhile; `None` where nothing else runs.
    pub beside: Option<&'a StatusRegistry>,
}

/// How many events were counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    /// All.
    pub events: u64,
    /// Those that were there before walcast.
    pub of_before: u64,
}

impl Recounting<'_> {
    /// Adds every event of a snapshot that walcast has streamed, or will not stream again, to a target that is empty.
    pub async fn count(
        &self,
        target: &mut dyn Recount,
        snapshot: &Snapshot,
        told: &watch::Sender<u64>,
    ) -> Result<Counted> {
        let client = &snapshot.client;
        let pre_existing = PreExisting::load(client, &self.session.history_id).await?;
        let contents = contents(client, &self.places.content).await?;
        // as of the snapshot: those that are sent after it the stream will bring
        let repaired = dead_letters::repaired(client, self.session.history_id.uuid).await?;
        let repaired = add_repaired(target, &repaired, &contents).await?;
        let mut counted = Counted { events: repaired.len() as u64, of_before: 0 };
        let (mut pace, mut began) = (Pace::hurried(), Instant::now());
        let query = rows::select(&self.places.events, &["xmin"], None);
        let found = client.query_raw(&query, std::iter::empty::<i32>()).await.map_err(sql::error)?;
        let mut found = std::pin::pin!(found);
        while let Some(row) = found.try_next().await.map_err(sql::error)? {
            let xid = row.try_get::<_, Xid>(0).map_err(sql::error)?;
            let unchecked = rows::engagement(&row, 1, &self.places.events)?;
            // walcast refuses the others
            let Ok(row) = unchecked.checked() else { continue };
            let was_before = self.marks.was_before(row.id).unwrap_or_else(|| pre_existing.saw(xid));
            if was_before && !self.with_history || repaired.contains(&row.id) {
                continue;
            }
            counted.events += 1;
            counted.of_before += u64::from(was_before);
            if counted.events.is_multiple_of(TELL_EVENTS) {
                told.send_replace(counted.events);
                if let Some(beside) = self.beside {
                    let pause = pace.pause(beside.events_total(), Instant::now(), began.elapsed());
                    tokio::time::sleep(pause).await;
                    began = Instant::now();
                }
            }
            let content = row.content_id.and_then(|id| contents.get(&id)).cloned();
            target.add(&row, content).await?;
        }
        told.send_replace(counted.events);
        Ok(counted)
    }
}

/// The tables as they are now, as far as they are published.
pub async fn readable(config: &PostgresConfig, client: &Client) -> Result<Places> {
    let places = history::publication(config, client).await?.places;
    check::readable(client, config, &places).await
}

async fn contents(client: &Client, content: &Place) -> Result<Contents> {
    let query = rows::select(content, &[], None);
    let found = client.query_raw(&query, std::iter::empty::<i32>()).await.map_err(sql::error)?;
    let mut found = std::pin::pin!(found);
    let mut contents = Contents::new();
    while let Some(row) = found.try_next().await.map_err(sql::error)? {
        let Some(content) = rows::content(&row, 0, content)? else { continue };
        contents.insert(content.id, Arc::new(content));
    }
    Ok(contents)
}

/// Adds the rows that were refused, mended and sent again; gives their ids.
async fn add_repaired(
    target: &mut dyn Recount,
    records: &[String],
    contents: &Contents,
) -> Result<HashSet<i64>> {
    let mut ids = HashSet::new();
    for record in records {
        let Some(values) = Json.read_event(record.as_bytes()) else { continue };
        let Ok(row) = Replayed::of(&values).checked() else { continue };
        let content = row.content_id.and_then(|id| contents.get(&id)).cloned();
        target.add(&row, content).await?;
        ids.insert(row.id);
    }
    Ok(ids)
}

impl Worker {
    /// Stops a sink that keeps sums and has all events counted anew; it goes on from there when it is let go. Broken off, it
    /// begins once more.
    pub(super) async fn recount(
        &mut self,
        at: usize,
        target: &mut dyn Recount,
        state: &mut State,
        backfill: &Backfill,
    ) -> Result<()> {
        self.stop(at).await;
        let transaction = state.guarded(&self.session).await?;
        backfills::step(&transaction, backfill, RebuildStep::Counting).await?;
        transaction.commit().await.map_err(sql::error)?;
        let places = readable(&self.config.postgres, state.client().await?).await?;
        target.check(&self.config.postgres.slot).await?;
        let snapshot = Snapshot::take(&self.config.postgres).await?;
        let end = snapshot.consistent_point;
        target.begin(&self.session).await?;
        // which rows came after all is known once the content versions are there; an idle stream moves at once by this
        heartbeat::beat(state.client().await?).await?;
        self.passed(end).await;
        let history_id = &self.session.history_id;
        let client = state.client().await?;
        let marks = EventMarks::load(client, history_id).await?;
        let of_before = backfills::counts_before(client, history_id, &backfill.sinks).await?;
        let recounting = Recounting {
            session: &self.session,
            places: &places,
            marks: &marks,
            with_history: of_before.is_some(),
            beside: Some(&self.registry),
        };
        let counted = tell(&recounting, (&mut *target, &snapshot), (&mut *state, backfill)).await?;
        drop(snapshot);
        target.end(end).await?;
        failpoint!("recount_before_commit");
        let transaction = state.guarded(&self.session).await?;
        if let (Some(last_id), [sink]) = (of_before, backfill.sinks.as_slice()) {
            backfills::counted(&transaction, history_id, sink, (last_id, counted.of_before)).await?;
        }
        backfills::recounted(&transaction, backfill, counted.events).await?;
        transaction.commit().await.map_err(sql::error)?;
        tracing::info!(sinks = backfill.sinks.join(", "), events = counted.events, checkpoint = %end, "events are counted anew");
        Ok(())
    }
}

/// Counts, and stores meanwhile how many events that are.
async fn tell(
    recounting: &Recounting<'_>,
    (target, snapshot): (&mut dyn Recount, &Snapshot),
    (state, backfill): (&mut State, &Backfill),
) -> Result<Counted> {
    let (told, mut tells) = watch::channel(0);
    let mut counting = std::pin::pin!(recounting.count(target, snapshot, &told));
    loop {
        tokio::select! {
            counted = &mut counting => return counted,
            () = tokio::time::sleep(TELL_EVERY) => {
                let events = *tells.borrow_and_update();
                backfills::counts(state.client().await?, backfill, events).await?;
            }
        }
    }
}
