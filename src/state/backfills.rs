//! `walcast.backfill`: which rows of before walcast are brought to which sinks, and how far that is.

use std::fmt;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Json, PgLsn, ToSql, Type};
use tokio_postgres::{Client, GenericClient, Row, Transaction};
use uuid::Uuid;

use crate::error::{Code, Error, Result};
use crate::lsn::{Checkpoint, HistoryId, Lsn, Session};
use crate::source::sql;
use crate::state::State;
use crate::state::lanes::LaneRecord;

/// Rows of before walcast on their way to some sinks.
#[derive(Debug, Clone, PartialEq)]
pub struct Backfill {
    /// Its name.
    pub id: Uuid,
    /// Whom it is for.
    pub sinks: Vec<String>,
    /// Of `event_ts`, from there on, as PostgreSQL writes it.
    pub since: Option<String>,
    /// Of `event_ts`, before that, as PostgreSQL writes it.
    pub until: Option<String>,
    /// The same two in microseconds since 1970.
    pub between: (Option<i64>, Option<i64>),
    /// How many rows a second at most.
    pub rows_per_second: Option<u32>,
    /// No row that was there before has a higher id.
    pub last_id: i64,
    /// All rows up to this id are sent; `None` before the first.
    pub done_id: Option<i64>,
    /// How many those are.
    pub rows: u64,
    /// About how many there are.
    pub estimated_rows: u64,
    /// What it does.
    pub state: BackfillState,
    /// Set where it fills its only sink anew.
    pub rebuild: Option<Rebuild>,
}

/// How far a sink is that is filled anew.
#[derive(Debug, Clone, PartialEq)]
pub struct Rebuild {
    /// What is done of it.
    pub step: RebuildStep,
    /// From here on the stream brings rows to the sink; known once rows are marked.
    pub begins: Option<Checkpoint>,
    /// What had committed by then has a lower transaction id.
    pub begins_xid: u64,
    /// What the sink holds from places below stays, and it is brought what it lacks; `None`: it is emptied.
    pub keeps_below: Option<Lsn>,
}

/// The steps before rows are brought, each of which is stored when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RebuildStep {
    /// The sink is to stop.
    Asked,
    /// It has stopped, and a slot of its own keeps what follows.
    Stopped,
    /// The rows are marked that the stream brings from `begins` on.
    Marked,
    /// Its target holds nothing but the checkpoint `begins`, and what it keeps.
    Emptied,
    /// It keeps sums: it has stopped, and all events are counted anew.
    Counting,
    /// Its target holds the sums of all events, and goes on from there.
    Counted,
}

/// The first step of one that keeps what its sink holds: an older walcast, which would empty it, does not know it.
const ASKED_TO_KEEP: &str = "asked to keep";

impl RebuildStep {
    const ALL: [(RebuildStep, &str); 6] = [
        (RebuildStep::Asked, "asked"),
        (RebuildStep::Stopped, "stopped"),
        (RebuildStep::Marked, "marked"),
        (RebuildStep::Emptied, "emptied"),
        (RebuildStep::Counting, "counting"),
        (RebuildStep::Counted, "counted"),
    ];

    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        Self::ALL.into_iter().find(|(step, _)| *step == self).map_or("", |(_, name)| name)
    }
}

impl Backfill {
    /// The sink whose target is still to be emptied, or is being filled with sums.
    pub fn to_be_emptied(&self) -> Option<(&str, RebuildStep)> {
        let step = self.rebuild.as_ref()?.step;
        let sink = self.sinks.first()?;
        (self.state.is_open() && step != RebuildStep::Emptied).then_some((sink.as_str(), step))
    }

    /// Whether it is for this sink too.
    pub fn is_for(&self, sink: &str) -> bool {
        self.sinks.iter().any(|one| one == sink)
    }

    /// Whether its sink has begun anew for this one: it has rows at other places than the others.
    pub fn began_anew(&self) -> bool {
        self.rebuild.as_ref().is_some_and(|rebuild| rebuild.step == RebuildStep::Emptied)
    }

    /// Whether its sink has nothing of before it: it was emptied for this one.
    pub fn empties(&self) -> bool {
        self.began_anew() && self.keeps_below().is_none()
    }

    /// Below which places its sink keeps what it holds; `None` where it is emptied, or not filled anew at all.
    pub fn keeps_below(&self) -> Option<Lsn> {
        self.rebuild.as_ref()?.keeps_below
    }
}

/// What a backfill does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackfillState {
    /// It begins when those before it have ended.
    Waiting,
    /// Rows are sent as the sinks take them.
    Running,
    /// It waits for somebody to let it go on.
    Paused,
    /// It will not go on.
    Cancelled,
    /// All its rows are sent.
    Done,
}

impl BackfillState {
    const ALL: [BackfillState; 5] = [
        BackfillState::Waiting,
        BackfillState::Running,
        BackfillState::Paused,
        BackfillState::Cancelled,
        BackfillState::Done,
    ];

    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            BackfillState::Waiting => "waiting",
            BackfillState::Running => "running",
            BackfillState::Paused => "paused",
            BackfillState::Cancelled => "cancelled",
            BackfillState::Done => "done",
        }
    }

    /// Whether it is the one that sends rows, or may.
    pub fn is_open(self) -> bool {
        matches!(self, BackfillState::Running | BackfillState::Paused)
    }

    /// Whether rows of it are still to come.
    pub fn is_to_come(self) -> bool {
        self.is_open() || self == BackfillState::Waiting
    }
}

impl fmt::Display for BackfillState {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.pad(self.as_str())
    }
}

/// All of a history, the oldest first.
pub async fn list(client: &Client, history_id: &HistoryId) -> Result<Vec<Backfill>> {
    of_history(client, history_id.uuid).await
}

async fn of_history(client: &Client, history_id: Uuid) -> Result<Vec<Backfill>> {
    let statement = include_str!("../../sql/backfills.sql");
    let rows = client.query(statement, &[&history_id]).await.map_err(sql::error)?;
    rows.iter().map(read).collect()
}

/// The one that is open.
pub async fn open(client: &Client, history_id: &HistoryId) -> Result<Option<Backfill>> {
    Ok(list(client, history_id).await?.into_iter().find(|backfill| backfill.state.is_open()))
}

/// The open one of a slot.
pub async fn open_of(client: &Client, slot: &str) -> Result<Option<Backfill>> {
    let query = "SELECT history_id FROM walcast.slot WHERE slot = $1";
    let Some(row) = client.query_opt(query, &[&slot]).await.map_err(sql::error)? else { return Ok(None) };
    let all = of_history(client, sql::get(&row, 0)?).await?;
    Ok(all.into_iter().find(|backfill| backfill.state.is_open()))
}

fn read(row: &Row) -> Result<Backfill> {
    let state: String = sql::get(row, 9)?;
    let known = BackfillState::ALL.into_iter().find(|one| one.as_str() == state);
    let unknown = |what: String| {
        Error::new(Code::Protocol, format!("walcast.backfill has {what}, which this version does not know"))
    };
    let rebuild = match sql::get::<Option<String>>(row, 12)? {
        None => None,
        Some(step) => {
            let step = if step == ASKED_TO_KEEP { "asked".to_owned() } else { step };
            let known = RebuildStep::ALL.into_iter().find(|(_, name)| *name == step);
            let (step, _) = known.ok_or_else(|| unknown(format!("the step {step}")))?;
            let begins: Option<String> = sql::get(row, 13)?;
            let begins = begins.as_deref().map(serde_json::from_str).transpose();
            let begins = begins.map_err(|error| unknown("a checkpoint".into()).because(error))?;
            let xid: Option<String> = sql::get(row, 14)?;
            let begins_xid = xid.and_then(|xid| xid.parse().ok()).unwrap_or_default();
            let keeps_below = sql::get::<Option<PgLsn>>(row, 15)?.map(|lsn| Lsn(lsn.into()));
            Some(Rebuild { step, begins, begins_xid, keeps_below })
        }
    };
    let micros = |at| Ok(sql::get::<Option<f64>>(row, at)?.map(|seconds| (seconds * 1e6) as i64));
    Ok(Backfill {
        id: sql::get(row, 0)?,
        sinks: sql::get(row, 1)?,
        since: sql::get(row, 2)?,
        until: sql::get(row, 3)?,
        between: (micros(10)?, micros(11)?),
        rows_per_second: sql::get::<Option<i32>>(row, 4)?.map(i32::cast_unsigned),
        last_id: sql::get(row, 5)?,
        done_id: sql::get(row, 6)?,
        rows: sql::get::<i64>(row, 7)?.unsigned_abs(),
        estimated_rows: sql::get::<i64>(row, 8)?.unsigned_abs(),
        state: known.ok_or_else(|| unknown(format!("the state {state}")))?,
        rebuild,
    })
}

/// Puts a new one in. An error when another is open.
pub async fn begin(client: &impl GenericClient, history_id: &HistoryId, backfill: &Backfill) -> Result<()> {
    put(client, history_id.uuid, backfill, "'running'").await
}

/// Puts a new one in, which begins when those before it have ended.
pub async fn queue(client: &impl GenericClient, history_id: Uuid, backfill: &Backfill) -> Result<()> {
    let state = "CASE WHEN EXISTS (SELECT FROM walcast.backfill
         WHERE history_id = $2 AND state IN ('waiting', 'running', 'paused')) THEN 'waiting' ELSE 'running' END";
    put(client, history_id, backfill, state).await
}

async fn put(client: &impl GenericClient, history_id: Uuid, backfill: &Backfill, state: &str) -> Result<()> {
    let Backfill { id, sinks, since, until, rows_per_second, last_id, estimated_rows, .. } = backfill;
    let insert = format!(
        "INSERT INTO walcast.backfill
           (id, history_id, sinks, since, until, rows_per_second, last_id, estimated_rows, rebuild, keeps_below, created_at, state)
         VALUES ($1, $2, $3, $4::text::timestamptz, $5::text::timestamptz, $6, $7, $8, $9, $10, clock_timestamp(), {state})"
    );
    let rows_per_second = rows_per_second.map(u32::cast_signed);
    let estimated_rows = estimated_rows.cast_signed();
    let rebuild = backfill.rebuild.as_ref().map(|rebuild| match rebuild.keeps_below {
        Some(_) => ASKED_TO_KEEP,
        None => rebuild.step.as_str(),
    });
    let keeps_below = backfill.keeps_below().map(|lsn| PgLsn::from(lsn.0));
    let bounds: [&(dyn ToSql + Sync); 3] = [since, until, &rows_per_second];
    let rest: [&(dyn ToSql + Sync); 4] = [last_id, &estimated_rows, &rebuild, &keeps_below];
    let names: [&(dyn ToSql + Sync); 3] = [id, &history_id, sinks];
    let parameters = [&names[..], &bounds, &rest].concat();
    match client.execute(&insert, &parameters).await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Err(Error::new(
            Code::BackfillOpen,
            "another backfill is open",
        )
        .hint(
            "`walcast backfill status` shows it; `walcast backfill resume` lets it go on, `cancel` ends it",
        )),
        Err(error) => Err(sql::error(error)),
    }
}

/// So many rows are to be expected, as far as is known.
pub async fn estimated(client: &Client, backfill: &Backfill) -> Result<()> {
    let update = "UPDATE walcast.backfill SET estimated_rows = $2 WHERE id = $1";
    let rows = backfill.estimated_rows.cast_signed();
    client.execute(update, &[&backfill.id, &rows]).await.map_err(sql::error)?;
    Ok(())
}

/// Lets the oldest of those that wait begin, unless another is open. Whether one waited.
pub async fn begin_next(client: &Client, all: &[Backfill]) -> Result<bool> {
    if all.iter().any(|one| one.state.is_open()) {
        return Ok(false);
    }
    let Some(next) = all.iter().find(|one| one.state == BackfillState::Waiting) else { return Ok(false) };
    let update = "UPDATE walcast.backfill SET state = 'running', changed_at = now() WHERE id = $1 AND state = 'waiting'";
    client.execute(update, &[&next.id]).await.map_err(sql::error)?;
    Ok(true)
}

/// Notes that a sink counts the rows of before walcast from now on, although nobody sent them one by one.
pub async fn counted(
    transaction: &Transaction<'_>,
    history_id: &HistoryId,
    sink: &str,
    (last_id, rows): (i64, u64),
) -> Result<()> {
    let (sinks, rows) = ([sink], rows.cast_signed());
    let forget =
        "DELETE FROM walcast.backfill WHERE history_id = $1 AND sinks = $2::text[] AND rebuild IS NULL";
    transaction.execute(forget, &[&history_id.uuid, &&sinks[..]]).await.map_err(sql::error)?;
    let insert = "INSERT INTO walcast.backfill
           (id, history_id, sinks, last_id, done_id, row_count, estimated_rows, state)
         VALUES (gen_random_uuid(), $1, $2::text[], $3, $3, $4, $4, 'done')";
    transaction
        .execute(insert, &[&history_id.uuid, &&sinks[..], &last_id, &rows])
        .await
        .map_err(sql::error)?;
    Ok(())
}

/// Up to which id a sink that keeps sums counts the rows of before walcast; `None` where it does not.
pub async fn counts_before(client: &Client, history_id: &HistoryId, sinks: &[String]) -> Result<Option<i64>> {
    let all = list(client, history_id).await?;
    let counts = |one: &&Backfill| one.rebuild.is_none() && one.sinks.iter().any(|sink| sinks.contains(sink));
    Ok(all.iter().find(counts).map(|one| one.last_id))
}

/// So many events are counted by now.
pub async fn counts(client: &Client, backfill: &Backfill, events: u64) -> Result<()> {
    let update = "UPDATE walcast.backfill SET row_count = $2, changed_at = now() WHERE id = $1 AND rebuild = 'counting'";
    client.execute(update, &[&backfill.id, &events.cast_signed()]).await.map_err(sql::error)?;
    Ok(())
}

/// All events are counted.
pub async fn recounted(transaction: &Transaction<'_>, backfill: &Backfill, events: u64) -> Result<()> {
    let update =
        "UPDATE walcast.backfill SET rebuild = 'counted', state = 'done', row_count = $2, changed_at = now()
       WHERE id = $1";
    transaction.execute(update, &[&backfill.id, &events.cast_signed()]).await.map_err(sql::error)?;
    Ok(())
}

/// Lets the open one do something else, unless its sink is being emptied. What it did before; `None` where none is open.
pub async fn turn(
    client: &Client,
    history_id: &HistoryId,
    to: BackfillState,
) -> Result<Option<BackfillState>> {
    let Some(open) = open(client, history_id).await? else { return Ok(None) };
    let update = "UPDATE walcast.backfill SET state = $2, changed_at = now()
       WHERE id = $1 AND state IN ('running', 'paused') AND coalesce(rebuild, 'emptied') = 'emptied'";
    let changed = client.execute(update, &[&open.id, &to.as_str()]).await.map_err(sql::error)?;
    Ok((changed > 0).then_some(open.state))
}

/// The sink whose target is to be emptied, as an earlier life has left it. One that had stopped is to have a lane, which keeps
/// what follows; where there is none, it begins once more, and so does one whose sums were being counted.
pub async fn take_over(
    state: &mut State,
    session: &Session,
    lanes: &[LaneRecord],
) -> Result<Option<(String, RebuildStep)>> {
    let Some(open) = open(state.client().await?, &session.history_id).await? else { return Ok(None) };
    let Some((sink, was)) = open.to_be_emptied() else { return Ok(None) };
    let kept = lanes.iter().any(|lane| lane.sink == sink && !lane.given_up);
    let step_now = if kept && was != RebuildStep::Counting { was } else { RebuildStep::Asked };
    if step_now != was {
        let transaction = state.guarded(session).await?;
        step(&transaction, &open, step_now).await?;
        transaction.commit().await.map_err(sql::error)?;
    }
    Ok(Some((sink.to_owned(), step_now)))
}

/// A step of a rebuild is done.
pub async fn step(transaction: &Transaction<'_>, backfill: &Backfill, to: RebuildStep) -> Result<()> {
    let update = "UPDATE walcast.backfill SET rebuild = $2, changed_at = now() WHERE id = $1";
    transaction.execute(update, &[&backfill.id, &to.as_str()]).await.map_err(sql::error)?;
    Ok(())
}

/// What is to be brought ends with this id.
pub async fn ends_with(transaction: &Transaction<'_>, backfill: &Backfill) -> Result<()> {
    let update = "UPDATE walcast.backfill SET last_id = $2 WHERE id = $1";
    transaction.execute(update, &[&backfill.id, &backfill.last_id]).await.map_err(sql::error)?;
    Ok(())
}

/// Whether a rebuild waits for rows to be marked from this checkpoint on, and whether rows are to be marked at all. Belongs into
/// the transaction that stores the checkpoint.
pub async fn marking(
    transaction: &Transaction<'_>,
    session: &Session,
    checkpoint: &Checkpoint,
) -> Result<(bool, bool)> {
    let statement = include_str!("../../sql/mark_since.sql");
    // within a transaction the contents are not known as they were there
    let between = checkpoint.position.is_none_or(|last| last.commit_lsn < checkpoint.durable_lsn);
    let parameters: [&(dyn ToSql + Sync); 3] = [&session.history_id.uuid, &Json(checkpoint), &between];
    let row = transaction.query_one(statement, &parameters).await.map_err(sql::error)?;
    let (begins, goes_on): (bool, bool) = (sql::get(&row, 0)?, sql::get(&row, 1)?);
    Ok((begins, begins || goes_on))
}

/// Whether rows are marked now.
pub async fn marks_since(client: &Client, history_id: &HistoryId) -> Result<bool> {
    let open = open(client, history_id).await?;
    let marks = |step| matches!(step, RebuildStep::Marked | RebuildStep::Emptied);
    Ok(open.and_then(|open| open.rebuild).is_some_and(|rebuild| marks(rebuild.step)))
}

/// The rows up to `to` go out with this transaction, if nobody has sent them, and it is still to run.
pub async fn advance(transaction: &Transaction<'_>, backfill: &Backfill, to: i64, rows: u64) -> Result<bool> {
    let update = "UPDATE walcast.backfill SET done_id = $2, row_count = row_count + $3, changed_at = now()
       WHERE id = $1 AND state = 'running' AND done_id IS NOT DISTINCT FROM $4";
    let rows = rows.cast_signed();
    let parameters: [(&(dyn ToSql + Sync), Type); 4] =
        [(&backfill.id, Type::UUID), (&to, Type::INT8), (&rows, Type::INT8), (&backfill.done_id, Type::INT8)];
    let changed = transaction.execute_typed(update, &parameters).await.map_err(sql::error)?;
    Ok(changed > 0)
}

/// All is sent.
pub async fn done(transaction: &Transaction<'_>, backfill: &Backfill) -> Result<()> {
    let update = "UPDATE walcast.backfill SET state = 'done', changed_at = now()
       WHERE id = $1 AND state = 'running' AND done_id IS NOT DISTINCT FROM $2";
    transaction.execute(update, &[&backfill.id, &backfill.done_id]).await.map_err(sql::error)?;
    Ok(())
}
