//! Brings the rows that were there before walcast, while the stream goes on: read from the table, copied into requests, and
//! sent through the WAL, where each sink takes them once by its ordinary checkpoint.
//!
//! Which rows those are: all with an id that is no higher than any when the slot was made, but for those that the stream has
//! brought after all. What it has brought is known once the content versions' checkpoint has passed the place at which the rows
//! are read; so rows are read in snapshots, each of which waits for that once.
//!
//! # A sink that is filled anew
//!
//! It is brought all rows, but for those that the stream brings it. First it stops, and a lane is opened for it. Then the content
//! versions' sink begins, with one of its checkpoints, to mark the rows that come: what had come by that checkpoint is history.
//! Then the target is emptied, and that checkpoint becomes its own. Each step is stored when it is done ([`RebuildStep`]), and may
//! be done again. One that keeps sums of events is brought no rows: they are counted anew ([`recount`]). One that keeps what it
//! holds is not emptied, and is brought what it lacks ([`lacking`]).
//!
//! How far it is stands in `walcast.backfill`, and moves in the transaction that sends the rows: nothing is sent twice, whoever
//! is killed. The stream comes first: rows go out only as long as every sink that they are for has room.

mod lacking;
mod pace;
pub mod recount;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use crate::batch::{self, Event, ExtraColumn, Texts};
use crate::config::Config;
use crate::error::{Code, Error, Kind, Result};
use crate::event::encoding::Encoding;
use crate::event::encoding::json::{Json, put_event_without_nulls};
use crate::event::intern;
use crate::event::place::Place;
use crate::event::schema::EventRecord;
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Lsn, Position, Session};
use crate::quote::identifier;
use crate::sink;
use crate::sink::anew::{Asker, Beginning};
use crate::sink::retry::Backoff;
use crate::sinks;
use crate::source::request::{self, Brought, OwnRequests, Refusal, Request, RequestKind, RequestRow};
use crate::source::{heartbeat, rows, slot, sql};
use crate::state::backfills::{self, Backfill, BackfillState, RebuildStep};
use crate::state::marks::EventMarks;
use crate::state::{State, dead_letters, history};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::registry::StatusRegistry;
use lacking::Lacking;
pub use pace::Pace;
use pace::{InFlight, groups};

/// How often it is asked whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often it is asked whether others have written what they began.
const WRITERS_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether there is room.
const ROOM_EVERY: Duration = Duration::from_millis(20);
/// How often it is looked whether rows are marked.
const MARKED_EVERY: Duration = Duration::from_millis(100);
/// How long rows are read in one snapshot: PostgreSQL keeps old row versions meanwhile.
const SNAPSHOT_MAX: Duration = Duration::from_secs(30);
/// How rows are to be found by their ids: of a table that was never analysed PostgreSQL would read all that is left, and sort it, for
/// each read.
const BY_INDEX: &str =
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off";
/// Requests that the stream has not brought yet at most.
const IN_FLIGHT_MAX: usize = 4;

/// Brings what `walcast.backfill` asks for.
pub struct Worker {
    /// How everything is configured.
    pub config: Config,
    /// Who we are.
    pub session: Session,
    /// How far each sink is; the first is the one that keeps the content versions.
    pub checkpoints: watch::Receiver<Vec<Checkpoint>>,
    /// How far the stream has been received.
    pub received: watch::Receiver<Lsn>,
    /// How sinks are told to begin anew.
    pub askers: Vec<Asker>,
    /// Where the stream finds what was sent.
    pub own_requests: OwnRequests,
    /// How the sinks are.
    pub registry: StatusRegistry,
    /// How fast rows go.
    pub pace: Pace,
}

/// A snapshot in which rows are read, and what the stream has brought of them.
struct Snapshot {
    client: Client,
    began: Instant,
    events: Place,
    extra: Vec<ExtraColumn>,
    statement: String,
    marks: EventMarks,
    /// What the sink lacks that keeps what it holds; `None`: all.
    lacking: Option<Arc<Lacking>>,
    /// Rows that were refused before the sinks, by their ids; with the record of one that was mended and sent again.
    letters: HashMap<i64, Option<String>>,
}

/// Rows that were read together.
struct Read {
    /// All rows up to this id have been read.
    last_id: i64,
    /// Those that are history, each with its id.
    rows: Vec<(i64, RequestRow)>,
    /// Those up to there that a sink has and PostgreSQL has not.
    gone: EventMarks,
}

impl Worker {
    /// Runs until another walcast takes over.
    pub async fn run(mut self) -> Result<()> {
        let mut state = State::new(self.config.postgres.clone());
        let (mut backoff, mut throttle) = (Backoff::default(), LogThrottle::default());
        loop {
            match self.bring_what_is_asked(&mut state, &mut throttle).await {
                Ok(()) => backoff = Backoff::default(),
                // whatever else is wrong with it, the stream goes on
                Err(error) if error.kind() == Kind::Fenced || error.code() == Code::SinkBeginsAnew => {
                    return Err(error);
                }
                Err(error) => {
                    if let Some(repeated) = throttle.say(&error.to_string()) {
                        let repeated = (repeated > 0).then_some(repeated);
                        tracing::warn!(
                            code = %error.code(),
                            error = error.chain(),
                            repeated,
                            "the backfill or rebuild waits, and goes on by itself: {}",
                            error.advice()
                        );
                    }
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn bring_what_is_asked(&mut self, state: &mut State, throttle: &mut LogThrottle) -> Result<()> {
        let mut in_flight = InFlight::default();
        let (mut began, mut lacking) = (None, None);
        while let Some(mut backfill) = self.asked(state).await? {
            if !self.is_begun(state, &backfill).await? {
                continue;
            }
            if began != Some(backfill.id) {
                began = Some(backfill.id);
                let (after, sinks) = (backfill.done_id, backfill.sinks.join(", "));
                tracing::info!(backfill = %backfill.id, after, sinks, "rows are brought");
            }
            if waits_for_writers(state.client().await?, &backfill).await? {
                let oldest = slot::what_writes(state.client().await?).await?;
                // by its beginning alone: how long they take grows
                if let Some(repeated) = throttle.say("what writes") {
                    let repeated = (repeated > 0).then_some(repeated);
                    tracing::info!(oldest, repeated, "{WAITS_FOR_WRITERS}");
                }
                tokio::time::sleep(WRITERS_EVERY).await;
                continue;
            }
            // not with a snapshot in hand: PostgreSQL would keep old row versions for as long as a sink is away
            self.room(&backfill.sinks, &mut in_flight, None).await;
            // before the snapshot, for the same reason: it may take long
            let known = lacking.as_ref().is_some_and(|one: &Arc<Lacking>| one.backfill == backfill.id);
            if !known {
                let (client, history_id) = (state.client().await?, &self.session.history_id);
                lacking = Lacking::of(&self.config, client, history_id, &backfill).await?.map(Arc::new);
            }
            let Some(snapshot) = self.snapshot(state, &mut backfill, &lacking).await? else { continue };
            let mut next = self.read(&snapshot, &backfill).await?;
            while !snapshot.is_over() {
                let Some(read) = next else {
                    return self.end(state, &backfill, &snapshot).await;
                };
                let rows = read.rows.len();
                let behind = Backfill { done_id: Some(read.last_id), ..backfill.clone() };
                // the next ones are read while these are sent
                let (rows_max, bytes_max) = self.read_bounds(&backfill);
                let sent = self.send(state, &mut backfill, read, &snapshot, &mut in_flight);
                let (sent, read) = tokio::join!(sent, snapshot.next(&behind, rows_max, bytes_max));
                if !sent? {
                    break;
                }
                next = read?;
                if let Some(rate) = backfill.rows_per_second {
                    tokio::time::sleep(Duration::from_secs_f64(rows as f64 / f64::from(rate.max(1)))).await;
                }
            }
        }
        // what was to be emptied is not any more
        self.askers.iter_mut().for_each(Asker::let_go);
        Ok(())
    }

    async fn asked(&self, state: &mut State) -> Result<Option<Backfill>> {
        let client = state.client().await?;
        let mut all = backfills::list(client, &self.session.history_id).await?;
        if backfills::begin_next(client, &all).await? {
            all = backfills::list(client, &self.session.history_id).await?;
        }
        Ok(all.into_iter().find(|backfill| backfill.state == BackfillState::Running))
    }

    /// Takes a sink that is filled anew one step further; `true` once its rows can be brought.
    async fn is_begun(&mut self, state: &mut State, backfill: &Backfill) -> Result<bool> {
        let Some((sink, step)) = backfill.to_be_emptied() else {
            // one that was stopped by a life of before the last step, or of a rebuild that is over
            self.askers.iter_mut().for_each(Asker::let_go);
            return Ok(true);
        };
        let Some(mut target) = sinks::wanted(&self.config)?.into_iter().find(|target| target.name() == sink)
        else {
            let message = format!("{sink} is to be filled anew, and this walcast does not have it");
            return Err(Error::new(Code::BackfillUnfit, message)
                .hint(format!("start `walcast run` with {sink} among PIPELINE_SINKS")));
        };
        let Some(at) = self.askers.iter().position(|asker| asker.name == sink) else {
            return Err(Error::new(
                Code::SinkBeginsAnew,
                format!("{sink} is to be filled anew, and there is no other sink"),
            ));
        };
        if let Some(mut sums) = target.recount() {
            target.prepare().await?;
            self.recount(at, sums.as_mut(), state, backfill).await?;
            return Ok(false);
        }
        let done = match step {
            RebuildStep::Asked => {
                self.stop(at).await;
                RebuildStep::Stopped
            }
            RebuildStep::Stopped => {
                // the content versions' sink takes the next step, with its next checkpoint
                heartbeat::beat(state.client().await?).await?;
                tokio::time::sleep(MARKED_EVERY).await;
                return Ok(false);
            }
            // what keeps sums was told apart before
            RebuildStep::Marked | RebuildStep::Emptied | RebuildStep::Counting | RebuildStep::Counted => {
                self.begin(at, state, backfill).await?;
                RebuildStep::Emptied
            }
        };
        let transaction = state.guarded(&self.session).await?;
        backfills::step(&transaction, backfill, done).await?;
        failpoint!("rebuild_before_step");
        transaction.commit().await.map_err(sql::error)?;
        failpoint!("rebuild_after_step");
        tracing::info!(sink, step = done.as_str(), "is filled anew");
        Ok(false)
    }

    /// Returns when a sink takes nothing any more, has a lane for what comes, and the content versions are as far as it had come:
    /// from there on it will begin.
    async fn stop(&mut self, at: usize) {
        let Some(asker) = self.askers.get_mut(at) else { return };
        asker.stop().await;
        let held = self.checkpoints.borrow().get(asker.index).copied().unwrap_or_default();
        let reached = |all: &Vec<Checkpoint>| all.first().is_some_and(|first| first.covers(&held));
        let _ = self.checkpoints.wait_for(reached).await;
    }

    /// Has the sink emptied, with the contents as they were where it begins.
    async fn begin(&mut self, at: usize, state: &mut State, backfill: &Backfill) -> Result<()> {
        let begins = backfill.rebuild.as_ref().and_then(|rebuild| rebuild.begins);
        let begins = begins.ok_or_else(|| Error::new(Code::Protocol, "walcast.backfill has no beginning"))?;
        let client = state.client().await?;
        let contents = sink::content::load(client, &self.session, begins.durable_lsn).await?;
        let now = "SELECT (extract(epoch FROM now()) * 1000000)::bigint";
        let now = sql::get(&client.query_one(now, &[]).await.map_err(sql::error)?, 0)?;
        let beginning = Beginning::new(begins, contents.rows().cloned().collect(), now);
        let beginning = beginning.keeping_rows(backfill.keeps_below().is_some());
        if let Some(asker) = self.askers.get_mut(at) {
            asker.begin(Arc::new(beginning)).await;
        }
        Ok(())
    }

    /// A snapshot of which it is known what of it the stream has brought; `None` when it is not to be had yet.
    async fn snapshot(
        &mut self,
        state: &mut State,
        backfill: &mut Backfill,
        lacking: &Option<Arc<Lacking>>,
    ) -> Result<Option<Snapshot>> {
        let client = sql::connect(&self.config.postgres).await?;
        let events = history::publication(&self.config.postgres, &client).await?.places.events;
        let facts = slot::columns(&client, &events).await?;
        let columns: Vec<_> = facts.iter().map(slot::ColumnFacts::of_stream).collect();
        let (extra, _) = events.extra.split(events.unknown(columns.iter().map(|column| (column, ()))));
        let extra: Vec<ExtraColumn> = extra.into_iter().map(|(column, ())| column).collect();
        let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {BY_INDEX}");
        client.batch_execute(&begin).await.map_err(sql::error)?;
        if backfill.rebuild.is_some() && backfill.done_id.is_none() {
            self.bound(state, &client, &events, backfill).await?;
        }
        let statement = statement(&client, &events, &extra, backfill).await?;
        // by then the snapshot is taken: what it sees has committed below
        let seen = slot::wal_insert_lsn(&client).await?;
        let began = Instant::now();
        let mut aside = State::new(self.config.postgres.clone());
        // an idle stream moves at once by this, instead of at its next own heartbeat
        heartbeat::beat(aside.client().await?).await?;
        self.passed(seen).await;
        failpoint!("backfill_after_snapshot");
        let marks = EventMarks::load(aside.client().await?, &self.session.history_id).await?;
        let letters = match backfill.rebuild {
            Some(_) => dead_letters::outcomes(aside.client().await?, self.session.history_id.uuid).await?,
            None => HashMap::new(),
        };
        let lacking = lacking.clone();
        Ok(Some(Snapshot { client, began, events, extra, statement, marks, lacking, letters }))
    }

    /// Returns when the content versions are there: what the stream has brought below is known then.
    async fn passed(&mut self, seen: Lsn) {
        let passed = |all: &Vec<Checkpoint>| all.first().is_some_and(|first| first.durable_lsn >= seen);
        // whoever holds the other end is gone only with us
        let _ = self.checkpoints.wait_for(passed).await;
    }

    /// No row of before where the sink begins has a higher id than there is now.
    async fn bound(
        &self,
        state: &mut State,
        client: &Client,
        events: &Place,
        backfill: &mut Backfill,
    ) -> Result<()> {
        let id = identifier(events.called("id"));
        let query = format!("SELECT max({id})::bigint FROM {}{}", events.sql(), rows::only(events, None));
        let last: Option<i64> = sql::get(&client.query_one(&query, &[]).await.map_err(sql::error)?, 0)?;
        backfill.last_id = last.unwrap_or(i64::MIN);
        let transaction = state.guarded(&self.session).await?;
        backfills::ends_with(&transaction, backfill).await?;
        transaction.commit().await.map_err(sql::error)
    }

    /// Sends what was read. `false` when it is not to go on, or not with this snapshot.
    async fn send(
        &mut self,
        state: &mut State,
        backfill: &mut Backfill,
        read: Read,
        snapshot: &Snapshot,
        in_flight: &mut InFlight,
    ) -> Result<bool> {
        let (mut groups, mut gone) = (groups(read.rows, self.pace.request_rows()), read.gone);
        match groups.last_mut() {
            Some((to, _)) => *to = read.last_id,
            None => groups.push((read.last_id, Vec::new())),
        }
        for (at, (to, rows)) in groups.into_iter().enumerate() {
            // the first goes out in any case: else one that takes its time to read would never come further
            if at > 0 && snapshot.is_over() || !self.room(&backfill.sinks, in_flight, Some(snapshot)).await {
                return Ok(false);
            }
            let began = Instant::now();
            let count = rows.len() as u64;
            failpoint!("backfill_before_send");
            let transaction = state.guarded(&self.session).await?;
            if !backfills::advance(&transaction, backfill, to, count).await? {
                return Ok(false);
            }
            let mut request = None;
            if !rows.is_empty() {
                let shape = |column: &ExtraColumn| (column.name.clone(), column.shape.to_string());
                let bytes = rows.iter().map(|row| row.record.len() + size_of::<batch::Row>()).sum();
                let chunk = Request {
                    id: Uuid::new_v4(),
                    kind: RequestKind::Chunk,
                    sinks: backfill.sinks.clone(),
                    brings: Brought { extra: snapshot.extra.iter().map(shape).collect(), rows },
                };
                let sent = request::send(&transaction, self.session.history_id.uuid, &chunk).await?;
                in_flight.0.push_back((sent.at, bytes));
                request = Some((sent.xid, chunk));
            }
            // with the first of the groups: done again, they are not looked for below what is done
            gone.store(&transaction, &self.session.history_id).await?;
            gone.stored();
            failpoint!("backfill_before_commit");
            transaction.commit().await.map_err(sql::error)?;
            failpoint!("backfill_after_commit");
            if let Some((xid, request)) = request {
                self.own_requests.put(xid, request);
            }
            backfill.done_id = Some(to);
            backfill.rows += count;
            if self.pace.gives_way() {
                self.arrived(in_flight, snapshot).await;
            }
            tokio::time::sleep(self.pace.pause(
                self.registry.events_total(),
                Instant::now(),
                began.elapsed(),
            ))
            .await;
        }
        Ok(true)
    }

    /// How many rows are read at once at most, and how large a row may be.
    fn read_bounds(&self, backfill: &Backfill) -> (i64, usize) {
        (self.pace.read_rows(backfill.rows_per_second), self.config.pipeline.row_bytes_max)
    }

    async fn read(&self, snapshot: &Snapshot, backfill: &Backfill) -> Result<Option<Read>> {
        let (rows_max, bytes_max) = self.read_bounds(backfill);
        snapshot.next(backfill, rows_max, bytes_max).await
    }

    /// Waits until the stream has brought what was sent, for as long as the snapshot may be kept.
    async fn arrived(&mut self, in_flight: &InFlight, snapshot: &Snapshot) {
        let Some((last, _)) = in_flight.0.back().copied() else { return };
        let left = SNAPSHOT_MAX.saturating_sub(snapshot.began.elapsed());
        let _ = tokio::time::timeout(left, self.received.wait_for(|received| last < *received)).await;
    }

    async fn end(&self, state: &mut State, backfill: &Backfill, snapshot: &Snapshot) -> Result<()> {
        let gone = snapshot.gone(backfill, i64::MAX, &HashSet::new());
        let transaction = state.guarded(&self.session).await?;
        gone.store(&transaction, &self.session.history_id).await?;
        backfills::done(&transaction, backfill).await?;
        transaction.commit().await.map_err(sql::error)?;
        tracing::info!(backfill = %backfill.id, rows = backfill.rows, "all rows are sent");
        Ok(())
    }

    /// Waits until the stream has brought what was sent, and every sink has room for more; `false` when the snapshot is over before.
    async fn room(
        &mut self,
        sinks: &[String],
        in_flight: &mut InFlight,
        snapshot: Option<&Snapshot>,
    ) -> bool {
        loop {
            in_flight.received(*self.received.borrow_and_update());
            if in_flight.0.len() < IN_FLIGHT_MAX && self.have_room(sinks, in_flight) {
                return true;
            }
            if snapshot.is_some_and(Snapshot::is_over) {
                return false;
            }
            let _ = tokio::time::timeout(ROOM_EVERY, self.received.changed()).await;
        }
    }

    /// Whether each of these sinks is fed with the others, and has room for one more request.
    fn have_room(&self, sinks: &[String], in_flight: &InFlight) -> bool {
        let queue_bytes_max = self.config.pipeline.queue_bytes_max;
        let waiting = self.registry.waiting_bytes(sinks);
        waiting.is_some_and(|waiting| self.pace.has_room(queue_bytes_max, waiting, in_flight.bytes()))
    }
}

/// What a rebuild waits for before it reads rows.
pub const WAITS_FOR_WRITERS: &str = "rows are read once every transaction that had written when the sink stopped has ended; \
     SELECT pg_terminate_backend(pid) ends one";

/// Whether something may have committed where a sink begins that others do not see yet: a commit is in the WAL before.
pub async fn waits_for_writers(client: &Client, backfill: &Backfill) -> Result<bool> {
    let Some(rebuild) = &backfill.rebuild else { return Ok(false) };
    let query = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text";
    let xmin: String = sql::get(&client.query_one(query, &[]).await.map_err(sql::error)?, 0)?;
    Ok(!xmin.parse().is_ok_and(|xmin: u64| xmin > rebuild.begins_xid))
}

/// Reads some of the rows behind an id, in the order of their ids, all of one id together.
async fn statement(
    client: &Client,
    events: &Place,
    extra: &[ExtraColumn],
    backfill: &Backfill,
) -> Result<String> {
    let id = identifier(events.called("id"));
    let mut condition = format!("{id} <= {} AND ($1::bigint IS NULL OR {id} > $1)", backfill.last_id);
    condition.push_str(&between(client, events, [&backfill.since, &backfill.until]).await?);
    let names: Vec<String> = extra.iter().map(|column| identifier(&column.name)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let select = rows::select(events, &names, Some(&condition));
    Ok(format!("{select} ORDER BY {id} FETCH FIRST $2 ROWS WITH TIES"))
}

/// The condition on `event_ts`, in the column's own terms; empty for all rows.
pub async fn between(
    client: &Client,
    events: &Place,
    [since, until]: [&Option<String>; 2],
) -> Result<String> {
    let called = events.called("event_ts");
    let zone = slot::local_times(client, events, called).await?;
    let stamp = |text: &String| {
        let stamp = format!("{}::timestamptz", crate::quote::literal(text));
        match zone {
            Some(zone) => format!("({stamp} AT TIME ZONE {})", crate::quote::literal(zone.name())),
            None => stamp,
        }
    };
    let called = identifier(called);
    let since = since.as_ref().map(|since| format!(" AND {called} >= {}", stamp(since)));
    let until = until.as_ref().map(|until| format!(" AND {called} < {}", stamp(until)));
    Ok([since, until].into_iter().flatten().collect())
}

impl Snapshot {
    /// Whether old row versions have been kept for it long enough.
    fn is_over(&self) -> bool {
        self.began.elapsed() > SNAPSHOT_MAX
    }

    /// Rows behind what is done; `None` when there are none.
    async fn next(&self, backfill: &Backfill, rows_max: i64, row_bytes_max: usize) -> Result<Option<Read>> {
        let parameters: [&(dyn ToSql + Sync); 2] = [&backfill.done_id, &rows_max];
        let found = self.client.query(&self.statement, &parameters).await.map_err(sql::error)?;
        if found.is_empty() {
            return Ok(None);
        }
        let (mut last_id, mut rows) = (i64::MIN, Vec::with_capacity(found.len()));
        let (mut texts, mut ids) = (String::new(), HashSet::new());
        for row in &found {
            texts.clear();
            let (id, event_ts, one) = self.row(row, row_bytes_max, &mut texts)?;
            last_id = id;
            let before = self.marks.was_before(id) == Some(true);
            let is_history = match (&backfill.rebuild, &self.lacking) {
                (None, _) => before,
                (Some(_), None) => !self.marks.since.contains(id),
                (Some(_), Some(lacking)) => {
                    ids.insert(id);
                    // one that has its id by an update is there under another
                    let came = self.marks.since.contains(id) || self.marks.renamed.contains(id);
                    !came && lacking.has(id, event_ts, before)
                }
            };
            match self.letters.get(&id).filter(|_| is_history) {
                None if is_history => rows.push((id, one)),
                // it went out mended
                Some(Some(record)) => rows.push((id, RequestRow::joined(record.clone()))),
                // it was refused, and that is known
                Some(None) | None => {}
            }
        }
        Ok(Some(Read { last_id, rows, gone: self.gone(backfill, last_id, &ids) }))
    }

    /// Of the rows behind what is done, up to `last_id`, those that the sink has and of which none was read. Of a part of the rows
    /// that cannot be told.
    fn gone(&self, backfill: &Backfill, last_id: i64, read: &HashSet<i64>) -> EventMarks {
        let all = backfill.since.is_none() && backfill.until.is_none();
        let lacking = self.lacking.as_ref().filter(|_| all);
        let gone = lacking.map(|lacking| lacking.gone(backfill.done_id, last_id, read, &self.marks.since));
        gone.unwrap_or_default()
    }

    /// Its id, its time, and the row.
    fn row(&self, row: &Row, row_bytes_max: usize, texts: &mut String) -> Result<(i64, i64, RequestRow)> {
        const NOWHERE: Position = Position { commit_lsn: Lsn::ZERO, ordinal: 0 };
        let (source, unread, error) = rows::engagement(row, self.extra.len(), &self.events)?.judged();
        let extra = rows::put_extra(row, 0..self.extra.len(), texts).map_err(sql::error)?;
        let keeps_payload = source.text_bytes() + extra.bytes() <= row_bytes_max;
        let rules = (keeps_payload, &self.events.privacy);
        let mut event = Event::of(&source, (NOWHERE, 0), None, rules, |text| intern(texts, text));
        event.extra = extra;
        let (mut record, whole) = (Vec::new(), EventRecord { event: &event, texts: Texts::of(texts) });
        match error {
            // others read a dead letter
            Some(_) => Json.event(&whole, &mut record),
            None => put_event_without_nulls(&whole, &mut record),
        }
        let refused = error.map(|error| Refusal {
            reason: error.reason.to_owned(),
            message: error.message,
            unread: unread.into_iter().map(str::to_owned).collect(),
        });
        let record = String::from_utf8(record)
            .map_err(|error| Error::new(Code::WalcastBroke, "a record is no UTF-8").because(error))?;
        Ok((source.id, source.event_ts, RequestRow { record, joins: true, refused }))
    }
}
