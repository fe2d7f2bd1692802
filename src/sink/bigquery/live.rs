//! The sink between `recover` and the next error: one open stream at most, and the checkpoints before and after it.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use gcp_bigquery_client::model::table::Table;

use super::append::{Appender, RefusedRow};
use super::column::{Footprint, Record};
use super::config::BigQueryConfig;
use super::extra::ExtraTable;
use super::progress::{self, Intent};
use super::rest::Rest;
use super::write::{Commit, WriteClient};
use super::{NAME, Target, table};
use crate::batch::{Batch, Event};
use crate::continuity::ContinuityCheck;
use crate::error::{Code, Error, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Position, Session, StoredCheckpoint, TargetState};
use crate::resume::{self, Refusal};
use crate::state::State;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics;

/// A recovered sink.
pub struct Live {
    config: BigQueryConfig,
    rest: Rest,
    client: WriteClient,
    session: Session,
    history_id: String,
    /// What PostgreSQL says that we hold.
    stored: Option<Checkpoint>,
    /// The table that `stored` speaks of.
    target: TargetState,
    /// What we hold once the open stream is committed.
    accepted: Checkpoint,
    /// What the driver knows that we hold.
    reported: Checkpoint,
    /// The table's columns for the events' extra columns.
    extra: Arc<ExtraTable>,
    open: Option<Open>,
    refused: Vec<RefusedRow>,
    in_table: InTable,
    /// What the table is found to hold beyond the checkpoint must be rows of this stream.
    continuity: ContinuityCheck,
    throttle: LogThrottle,
}

/// A stream that takes rows.
struct Open {
    appender: Appender,
    since: Instant,
    first: Position,
    /// The last event that it has.
    last: Option<Position>,
    footprint: Footprint,
}

/// What the table holds of the events that come.
#[derive(Debug, Clone, Copy)]
enum InTable {
    /// Not known yet.
    LookUp,
    /// All up to here, and perhaps more.
    AtLeast(Position),
    /// All up to here and nothing beyond.
    UpTo(Option<Position>),
}

impl Live {
    /// Settles what an earlier run left open, and gives the checkpoint that follows from it.
    pub async fn recover(
        config: &BigQueryConfig,
        Target { rest, client }: Target,
        state: &mut State,
        session: &Session,
    ) -> Result<(Self, Option<StoredCheckpoint>)> {
        // only asked who is the newest: an older instance need not try
        drop(state.guarded(session).await?);
        let (mut stored, intent) = state.progress::<Intent>(session, NAME).await?;
        if let Some(intent) = intent {
            if was_committed(&rest, &client, session, &intent).await? {
                stored = Some(intent.checkpoint);
            } else {
                tracing::warn!("bigquery lost a write stream before it was committed; its rows come again");
            }
            failpoint!("bigquery_recover_before_checkpoint");
            progress::store(state, session, stored.as_ref(), None, &[]).await?;
            failpoint!("bigquery_recover_after_checkpoint");
        }
        let table = rest.table().await?;
        refuse_another_table(&rest, table.as_ref(), stored.as_ref(), session).await?;
        refuse_lost_future(&rest, stored.as_ref(), session).await?;
        let before = stored.as_ref().map(|stored| stored.target.clone()).unwrap_or_default();
        let target = TargetState { made_ms: table.as_ref().and_then(table::made_ms), ..before };
        let checkpoint = stored.as_ref().map(|stored| stored.checkpoint);
        let live = Live {
            config: config.clone(),
            rest,
            client,
            history_id: session.history_id.uuid.to_string(),
            session: session.clone(),
            stored: checkpoint,
            target,
            accepted: checkpoint.unwrap_or_default(),
            reported: checkpoint.unwrap_or_default(),
            extra: Arc::default(),
            open: None,
            refused: Vec::new(),
            in_table: InTable::LookUp,
            continuity: ContinuityCheck::default(),
            throttle: LogThrottle::default(),
        };
        Ok((live, stored))
    }

    /// Puts events into streams, ending those that get full.
    pub async fn write(&mut self, state: &mut State, batches: &[Arc<Batch>]) -> Result<()> {
        self.look_up(batches).await?;
        self.make_columns(state, batches).await?;
        let mut rest = batches;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.fitting(rest));
            self.append(now).await?;
            if !later.is_empty() || self.is_full() {
                self.settle(state).await?;
            }
            rest = later;
        }
        // A heartbeat has nothing to wait for.
        if self.open.is_none() && batches.iter().all(|batch| batch.rows().is_empty()) {
            self.settle(state).await?;
        }
        Ok(())
    }

    /// Gives the table the extra columns that events have and it has not. A stream takes rows of the columns that it was
    /// opened for: one that is open is ended first.
    async fn make_columns(&mut self, state: &mut State, batches: &[Arc<Batch>]) -> Result<()> {
        let columns = || batches.iter().flat_map(|batch| batch.extra()).flat_map(|extra| &*extra.columns);
        if columns().all(|column| self.extra.has(column)) {
            return Ok(());
        }
        self.settle(state).await?;
        let known = self.extra.columns().iter().map(|column| column.name.as_str());
        let extra = self.rest.columns_for(known, columns()).await?;
        self.client.await_columns(&extra).await?;
        self.extra = Arc::new(extra);
        Ok(())
    }

    /// Makes everything accepted durable: finalize, intent, commit, checkpoint.
    pub async fn settle(&mut self, state: &mut State) -> Result<()> {
        if self.is_settled() {
            return Ok(());
        }
        let last = self.open.as_ref().and_then(|open| open.last);
        let target = TargetState { last_event: last.or(self.target.last_event), ..self.target.clone() };
        let checkpoint = StoredCheckpoint::new(&self.session.history_id, self.accepted).at(target.clone());
        if let Some(open) = self.open.take().filter(|open| open.appender.rows() > 0) {
            let Open { appender, first, footprint, since, .. } = open;
            let rows = appender.rows();
            let intent =
                Intent { stream: appender.close(), checkpoint: checkpoint.clone(), first, footprint };
            failpoint!("bigquery_before_finalize");
            self.client.finalize(&intent.stream, rows).await?;
            failpoint!("bigquery_before_intent");
            self.store(state, self.stored_checkpoint(), Some(&intent)).await?;
            failpoint!("bigquery_before_commit");
            if self.client.commit(&intent.stream).await? == Commit::Gone {
                return Err(Error::new(Code::Lost, "bigquery lost a write stream before it was committed"));
            }
            tracing::debug!(rows, checkpoint = %self.accepted, seconds = since.elapsed().as_secs(), "committed");
        }
        failpoint!("bigquery_before_checkpoint");
        self.store(state, Some(checkpoint), None).await?;
        failpoint!("bigquery_after_checkpoint");
        self.stored = Some(self.accepted);
        self.target = target;
        Ok(())
    }

    /// Whether it is time to settle.
    pub fn is_due(&self) -> bool {
        self.open.as_ref().is_none_or(|open| open.since.elapsed() >= self.config.commit_every())
    }

    /// Whether everything accepted is durable.
    pub fn is_settled(&self) -> bool {
        self.stored.unwrap_or_default() == self.accepted
    }

    /// The durable checkpoint, when it has moved since it was last reported.
    pub fn report(&mut self) -> Option<Checkpoint> {
        let checkpoint = self.stored.filter(|checkpoint| *checkpoint != self.reported)?;
        self.reported = checkpoint;
        Some(checkpoint)
    }

    /// Skips what the table holds although the checkpoint is older (a restored or half-deleted state): it says how
    /// far it is itself. Asked until it has nothing beyond, which is the first answer but in such a case.
    async fn look_up(&mut self, batches: &[Arc<Batch>]) -> Result<()> {
        if matches!(self.in_table, InTable::UpTo(_)) {
            return Ok(());
        }
        let mut footprint = Footprint::default();
        let events = || batches.iter().flat_map(|batch| batch.events());
        events().for_each(|event| footprint.add(event.event_ts));
        let (Some(first), Some(last)) = (events().next(), events().last()) else { return Ok(()) };
        let history_id = self.session.history_id.uuid;
        let found = self.rest.last_position(history_id, &footprint, first.position).await?;
        if let Some(found) = found {
            tracing::warn!(%found, "bigquery holds events beyond its checkpoint; they are not written again");
            self.continuity.claim(NAME, found);
        }
        self.in_table = match (found, self.in_table) {
            (Some(found), _) if found >= last.position => InTable::AtLeast(found),
            (Some(found), _) | (None, InTable::AtLeast(found)) => InTable::UpTo(Some(found)),
            (None, _) => InTable::UpTo(None),
        };
        Ok(())
    }

    fn is_new(&self, event: &Event) -> bool {
        match self.in_table {
            InTable::AtLeast(last) | InTable::UpTo(Some(last)) => event.position > last,
            InTable::LookUp | InTable::UpTo(None) => true,
        }
    }

    /// How many of the batches the open stream can still take; the first of a new stream always fits.
    fn fitting(&self, batches: &[Arc<Batch>]) -> usize {
        let mut rows = self.open.as_ref().map_or(0, |open| open.appender.rows());
        let fits = |batch: &&Arc<Batch>| {
            let was_empty = rows == 0;
            rows += batch.events().count() as u64;
            was_empty || rows <= self.config.batch_rows_max
        };
        batches.iter().take_while(fits).count()
    }

    fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|Open { appender, .. }| {
            appender.rows() >= self.config.batch_rows_max || appender.bytes() >= self.config.batch_bytes_max
        })
    }

    async fn append(&mut self, batches: &[Arc<Batch>]) -> Result<()> {
        batches.iter().try_for_each(|batch| self.continuity.follow(batch))?;
        let ingested_at = now_micros();
        let record = |batch, event| Record { event, batch, epoch: &self.history_id, ingested_at };
        let records: Vec<Record<'_>> = batches
            .iter()
            .flat_map(|batch| batch.events().map(move |event| (batch, event)))
            .filter(|(_, event)| self.is_new(event))
            .map(|(batch, event)| record(batch, event))
            .collect();
        if let Some(first) = records.first() {
            let open = match &mut self.open {
                Some(open) => open,
                none => {
                    let appender =
                        Appender::open(&self.client, self.config.append_bytes_max, &self.extra).await?;
                    // afterwards: whatever comes later, the stream is of no other table
                    require_same_table(&self.rest, &self.target, &self.session).await?;
                    none.insert(Open {
                        appender,
                        since: Instant::now(),
                        first: first.event.position,
                        last: None,
                        footprint: Footprint::default(),
                    })
                }
            };
            records.iter().for_each(|record| open.footprint.add(record.event.event_ts));
            failpoint!("bigquery_before_append");
            let positions: Vec<Position> = records.iter().map(|record| record.event.position).collect();
            let refused = open.appender.append(records).await?;
            failpoint!("bigquery_after_append");
            let taken = |record: &&Position| refused.iter().all(|refused| refused.position != **record);
            open.last = positions.iter().rev().find(taken).copied().or(open.last);
            for refused in refused {
                if let Some(repeated) = self.throttle.say(refused.reason) {
                    let repeated = (repeated > 0).then_some(repeated);
                    tracing::warn!(position = %refused.position, reason = refused.reason, repeated, "bigquery refuses a row; kept in walcast.dead_letter");
                }
                metrics::dead_letter(refused.reason);
                self.refused.push(refused);
            }
        }
        // a checkpoint beyond rows that were skipped wrongly would take the proof out of the slot
        if self.continuity.is_settled() {
            self.accepted = batches
                .iter()
                .fold(self.accepted, |checkpoint, batch| checkpoint.advanced(batch.checkpoint()));
        }
        Ok(())
    }

    fn stored_checkpoint(&self) -> Option<StoredCheckpoint> {
        let stored = |checkpoint| StoredCheckpoint::new(&self.session.history_id, checkpoint);
        self.stored.map(|checkpoint| stored(checkpoint).at(self.target.clone()))
    }

    async fn store(
        &mut self,
        state: &mut State,
        checkpoint: Option<StoredCheckpoint>,
        intent: Option<&Intent>,
    ) -> Result<()> {
        progress::store(state, &self.session, checkpoint.as_ref(), intent, &self.refused).await?;
        self.refused.clear();
        Ok(())
    }
}

/// Commits the intent's stream, or finds that it was. A stream that is gone has put in all its rows or none,
/// and nothing was put in after them.
async fn was_committed(
    rest: &Rest,
    client: &WriteClient,
    session: &Session,
    intent: &Intent,
) -> Result<bool> {
    match client.commit(&intent.stream).await? {
        Commit::Done => Ok(true),
        Commit::Gone => {
            let last = rest.last_position(session.history_id.uuid, &intent.footprint, intent.first).await?;
            Ok(last.is_some())
        }
    }
}

/// The table may have been deleted or made anew while its checkpoint in PostgreSQL is as it was. One that was restored
/// has another time of making too: it is welcome when it has the last event that was written.
pub async fn refuse_another_table(
    rest: &Rest,
    table: Option<&Table>,
    stored: Option<&StoredCheckpoint>,
    session: &Session,
) -> Result<()> {
    let Some(stored) = stored.filter(|stored| stored.target.made_ms.is_some()) else { return Ok(()) };
    let StoredCheckpoint { checkpoint, target: TargetState { made_ms, last_event, .. }, .. } = stored;
    if table.and_then(table::made_ms) == *made_ms || checkpoint.position.is_none() {
        return Ok(());
    }
    let told = another_table(rest.config(), table);
    if let (Some(last), Some(_)) = (last_event, table) {
        let history_id = session.history_id.uuid;
        if rest.last_position(history_id, &Footprint::whole(), *last).await?.is_some() {
            tracing::warn!("bigquery {told}; it has the last event that was written, so walcast goes on");
            return Ok(());
        }
    }
    Err(lost(rest.config(), told, session))
}

/// With the way back: time travel has the table for seven days, unless one of its name was made since.
fn lost(config: &BigQueryConfig, told: String, session: &Session) -> Error {
    Refusal::LostWhatItHeld { told }.into_error(NAME, session).hint(way_back(config))
}

/// What brings a deleted table back.
pub fn way_back(config: &BigQueryConfig) -> String {
    let (dataset, table) = (&config.dataset, &config.table);
    format!(
        "restore it as it was before that: bq cp '{dataset}.{table}@<milliseconds since 1970>' {dataset}.{table}, then start \
         again: walcast goes on when it has the last event; or {}",
        NAME.fresh_start()
    )
}

/// The same while we run. A table that has none of our events is as good as the one before: the slot has them.
async fn require_same_table(rest: &Rest, target: &TargetState, session: &Session) -> Result<()> {
    if target.made_ms.is_none() {
        return Ok(());
    }
    let table = rest.table().await?;
    if table.as_ref().and_then(table::made_ms) == target.made_ms {
        return Ok(());
    }
    let told = another_table(rest.config(), table.as_ref());
    Err(match target.last_event {
        Some(_) => lost(rest.config(), told, session),
        None => Error::new(Code::Lost, format!("bigquery {told}")),
    })
}

/// What is said of a table that is not the one that was written.
pub fn another_table(config: &BigQueryConfig, table: Option<&Table>) -> String {
    let how = if table.is_some() {
        "is another table now: it was made anew"
    } else {
        "is not there: it was deleted"
    };
    format!("held events once, and {} {how}", config.address())
}

/// After a failover the checkpoint in PostgreSQL is as old as the new primary, or was not there yet. Rows of the old
/// one's last moments, which the new one has lost, would pass for rows that are yet to come.
pub async fn refuse_lost_future(
    rest: &Rest,
    stored: Option<&StoredCheckpoint>,
    session: &Session,
) -> Result<()> {
    let Some((_, left_at)) = resume::left_behind(stored, session) else { return Ok(()) };
    let from = Position { commit_lsn: left_at, ordinal: 0 };
    let Some(last) = rest.last_position(session.history_id.uuid, &Footprint::whole(), from).await? else {
        return Ok(());
    };
    resume::judge_beyond(stored, Some(last), session).map_err(|refusal| {
        refusal.into_error(NAME, session).hint(format!(
            "delete them: DELETE FROM {} WHERE epoch = '{}' AND commit_lsn >= {}, with the table's partition filter; \
             then start again",
            rest.config().sql_table(),
            session.history_id.uuid,
            left_at.0
        ))
    })
}

fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
