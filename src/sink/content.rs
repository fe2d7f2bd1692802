//! What the stream must leave in PostgreSQL whatever sinks there are: the content versions, which let a replayed event
//! see its content as it saw it at first, and the rows that were refused before the sinks.
//!
//! A sink like the others: its checkpoint counts for the confirmed LSN, so no version and no refused row that the stream has
//! brought is ever lost, and a start can load the state at its own start position.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_postgres::types::{PgLsn, ToSql};
use tokio_postgres::{Client, Transaction};

use crate::batch::{Batch, ContentChange, Control, DeadLetter, ExtraSince, Origin, Row};
use crate::error::{Code, Error, Result};
use crate::event::place::Place;
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Lsn, Session, StoredCheckpoint};
use crate::resume::SinkName;
use crate::sink::erasure::{Subject, Traces};
use crate::sink::read_back::ReadBack;
use crate::sink::{BatchPolicy, Finding, Guarantee, Sink, SinkAdmin, SinkIdentity, Written};
use crate::source::request::RequestKind;
use crate::source::{PostgresConfig, rows, sql};
use crate::state::dead_letters::{self, Letter, Retention};
use crate::state::marks::EventMarks;
use crate::state::{State, backfills, extra, lanes, requests, store_progress};
use crate::transform::content_cache::ContentCache;

/// Its name.
pub const NAME: SinkName = SinkName::new("content");
const GUARANTEE: Guarantee =
    Guarantee::ExactlyOnce("so that a replayed event is joined with the content row that it saw at first");
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How often a heartbeat makes what came before it durable at most: anybody may send one.
const FLUSH_FOR_HEARTBEATS_EVERY: Duration = Duration::from_millis(100);
const PRUNE_EVERY: Duration = Duration::from_secs(60);
const CHANGES_MAX: usize = 2_000;
/// Blocks of marks that wait for the next flush at most, of 128 bytes each.
const MARK_BLOCKS_MAX: usize = 8_192;
/// Rows may be large: no more than these bytes of them wait for the next flush, or what is written at once.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// Keeps `walcast.content_version` and `walcast.dead_letter`.
pub struct ContentSink {
    state: State,
    session: Option<Session>,
    stored: Checkpoint,
    accepted: Checkpoint,
    changes: Vec<ContentChange>,
    letters: Vec<Letter>,
    waiting_bytes: usize,
    marks: EventMarks,
    /// The events table.
    events: Place,
    /// What control messages have asked for.
    controls: Vec<Arc<Control>>,
    /// Whether there may be requests that all sinks have passed, and are to be done with.
    requests_open: bool,
    /// For how long the rows of dead letters are kept.
    retention: Retention,
    /// Extra columns, as they begin with an event beyond the stored checkpoint.
    extra: Vec<ExtraSince>,
    flushed_at: Option<Instant>,
    pruned_at: Option<Instant>,
    /// The slot's confirmed LSN when versions were last pruned.
    pruned: Lsn,
}

impl ContentSink {
    /// The sink for this database.
    pub fn new(postgres: &PostgresConfig, retention: Retention) -> Self {
        ContentSink {
            state: State::new(postgres.clone()),
            session: None,
            stored: Checkpoint::default(),
            accepted: Checkpoint::default(),
            changes: Vec::new(),
            letters: Vec::new(),
            waiting_bytes: 0,
            marks: EventMarks::default(),
            events: postgres.places().events,
            controls: Vec::new(),
            requests_open: true,
            retention,
            extra: Vec::new(),
            flushed_at: None,
            pruned_at: None,
            pruned: Lsn::default(),
        }
    }

    fn take(&mut self, batch: &Batch, row: &Row) {
        match row {
            // rows of before walcast do not come late
            Row::Event(_) if batch.control().is_some_and(|control| control.kind == RequestKind::Chunk) => {
                return;
            }
            Row::Event(event) => return self.marks.inserted(event.id),
            Row::EventChange(change) => self.marks.changed(change),
            Row::Content(change) => self.changes.push(change.clone()),
            Row::DeadLetter(letter) => self.letters.push(kept(letter, batch.origin(letter.position))),
        }
        self.waiting_bytes += row.bytes_beside();
    }

    fn forget_rows(&mut self) {
        self.marks.stored();
        self.extra.clear();
        self.changes.clear();
        self.letters.clear();
        self.controls.clear();
        self.waiting_bytes = 0;
    }

    async fn store(&mut self) -> Result<Option<Checkpoint>> {
        let Some(session) = self.session.as_ref().filter(|_| self.accepted != self.stored) else {
            return Ok(None);
        };
        let checkpoint = self.stored.advanced(self.accepted);
        failpoint!("content_before_store");
        let transaction = self.state.guarded(session).await?;
        insert_versions(&transaction, session, &self.changes).await?;
        dead_letters::insert(&transaction, &session.history_id.uuid, dead_letters::ALL, &self.letters)
            .await?;
        for control in &self.controls {
            requests::came(&transaction, control.id, control.commit_lsn, control.refused).await?;
        }
        let (marks_anew, marks_since) = backfills::marking(&transaction, session, &checkpoint).await?;
        if marks_anew || self.marks.marks_since && !marks_since {
            // of a rebuild that is over
            EventMarks::forget_since(&transaction, &session.history_id).await?;
            self.marks.since.clear();
        }
        self.marks.store(&transaction, &session.history_id).await?;
        for ExtraSince { since, columns } in &self.extra {
            extra::store(&transaction, &session.history_id, &self.events, (*since, columns)).await?;
        }
        store_progress(
            &transaction,
            session,
            NAME,
            Some(&StoredCheckpoint::new(&session.history_id, checkpoint)),
            None::<&()>,
        )
        .await?;
        let prunes = is_due(self.pruned_at, PRUNE_EVERY);
        let mut forgotten = 0;
        if prunes {
            self.pruned = prune(&transaction, session, self.pruned).await?;
            forgotten = dead_letters::forget(&transaction, self.retention).await?;
        }
        failpoint!("content_before_commit");
        transaction.commit().await.map_err(sql::error)?;
        failpoint!("content_after_commit");
        if forgotten > 0 {
            tracing::info!(
                letters = forgotten,
                "the rows of dead letters older than dead_letters.retention_days are forgotten"
            );
        }
        // what an instance has left that was overtaken while it opened a lane; the next time is soon enough
        if prunes && let Err(error) = lanes::sweep(self.state.client().await?, session).await {
            tracing::debug!(error = error.chain(), "lanes' slots are not swept");
        }
        self.flushed_at = Some(Instant::now());
        if prunes {
            self.pruned_at = self.flushed_at;
        }
        self.requests_open |= !self.controls.is_empty();
        self.forget_rows();
        self.marks.marks_since = marks_since;
        self.stored = checkpoint;
        Ok(Some(checkpoint))
    }
}

impl ContentSink {
    /// Is done with the requests whose place every sink has passed, in one transaction.
    async fn settle_requests(&mut self) -> Result<()> {
        let Some(session) = self.session.as_ref().filter(|_| self.requests_open) else { return Ok(()) };
        let transaction = self.state.guarded(session).await?;
        // whether the slot may be gone is for the stream to say
        let Some(confirmed) = lanes::kept_from(transaction.client(), session).await? else { return Ok(()) };
        let left = requests::settle(&transaction, &session.history_id.uuid, confirmed).await?;
        failpoint!("requests_before_settled");
        transaction.commit().await.map_err(sql::error)?;
        failpoint!("requests_after_settled");
        self.requests_open = left;
        Ok(())
    }
}

impl SinkIdentity for ContentSink {
    fn id(&self) -> SinkName {
        NAME
    }

    fn guarantee(&self) -> Guarantee {
        GUARANTEE
    }
}

#[async_trait]
impl Sink for ContentSink {
    fn batch_policy(&self) -> BatchPolicy {
        BatchPolicy { linger: Duration::ZERO, write_bytes_max: 1 << 20, tick_every: Some(FLUSH_EVERY) }
    }

    async fn recover(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        let (stored, _) = self.state.progress::<()>(session, NAME).await?;
        self.forget_rows();
        self.requests_open = true;
        let transaction = self.state.guarded(session).await?;
        extra::forget(&transaction, &session.history_id, &self.events.extra).await?;
        transaction.commit().await.map_err(sql::error)?;
        self.marks = EventMarks::begin(self.state.client().await?, &session.history_id).await?;
        self.marks.stored();
        self.marks.marks_since =
            backfills::marks_since(self.state.client().await?, &session.history_id).await?;
        self.stored = stored.as_ref().map(|stored| stored.checkpoint).unwrap_or_default();
        self.accepted = self.stored;
        self.session = Some(session.clone());
        Ok(stored)
    }

    async fn begin(&mut self, _session: &Session, _: bool) -> Result<()> {
        // others are joined with what it keeps
        Err(Error::new(Code::BackfillUnfit, "the content versions cannot be filled anew"))
    }

    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
        for batch in batches {
            let begins = |extra: &&ExtraSince| !self.accepted.holds(extra.since);
            if batch.control().is_none() {
                self.extra.extend(batch.extra().iter().filter(begins).cloned());
            }
            batch.rows().iter().for_each(|row| self.take(batch, row));
            self.controls.extend(batch.control().cloned());
            self.accepted = self.accepted.advanced(batch.checkpoint());
        }
        let room = self.changes.len() < CHANGES_MAX && self.marks.blocks() < MARK_BLOCKS_MAX;
        // somebody may have sent it to learn when it is passed
        let heartbeat = batches.iter().any(|batch| batch.heartbeat().is_some())
            && is_due(self.flushed_at, FLUSH_FOR_HEARTBEATS_EVERY);
        if room && self.waiting_bytes < WAITING_BYTES_MAX && !heartbeat {
            return Ok(Written::Accepted);
        }
        Ok(self.store().await?.map_or(Written::Accepted, Written::Durable))
    }

    async fn tick(&mut self) -> Result<Option<Checkpoint>> {
        let stored = self.store().await?;
        self.settle_requests().await?;
        Ok(stored)
    }

    async fn flush(&mut self) -> Result<Option<Checkpoint>> {
        self.store().await
    }
}

#[async_trait]
impl SinkAdmin for ContentSink {
    async fn check(&mut self) -> Vec<Finding> {
        Vec::new()
    }

    async fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn read_back(&self) -> ReadBack {
        ReadBack::Nothing
    }

    async fn peek(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        Ok(self.state.progress::<()>(session, NAME).await?.0)
    }

    async fn traces(&mut self, _subject: &Subject) -> Result<Traces> {
        Ok(Traces::default())
    }
}

fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= every)
}

/// One statement for all changes; a change that is there already (the checkpoint was behind it) stays.
async fn insert_versions(
    transaction: &Transaction<'_>,
    session: &Session,
    changes: &[ContentChange],
) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    fn column<'a, T>(changes: &'a [ContentChange], read: impl Fn(&'a ContentChange) -> T) -> Vec<T> {
        changes.iter().map(read).collect()
    }
    let ours: [&(dyn ToSql + Sync); 5] = [
        &session.history_id.uuid,
        &column(changes, |change| change.id),
        &column(changes, |change| PgLsn::from(change.position.commit_lsn.0)),
        &column(changes, |change| change.position.ordinal as i64),
        &column(changes, |change| change.after.is_none()),
    ];
    let arrays = rows::content_arrays(changes.iter().map(|change| change.after.as_deref()));
    let arrays = arrays.iter().map(|array| &**array as &(dyn ToSql + Sync));
    let parameters: Vec<&(dyn ToSql + Sync)> = ours.iter().copied().chain(arrays).collect();
    let template = include_str!("../../sql/insert_content_versions.sql");
    let statement = rows::content_statement(template, ours.len() + 1);
    transaction.execute(&statement, &parameters).await.map_err(sql::error)?;
    Ok(())
}

/// A row that was refused before the sinks, as it is kept.
fn kept(letter: &DeadLetter, origin: Option<Origin>) -> Letter {
    let DeadLetter { position, commit_ts, table, reason, message, row_json, event } = letter.clone();
    let (position, request) = Origin::of_letter(position, origin);
    let event_id = event.as_ref().and_then(|event| event.id);
    let (event, unread) = event.map_or_else(Default::default, |event| (Some(event.record), event.unread));
    let table = Some(table);
    Letter { position, event_id, table, commit_ts, reason, message, record: row_json, event, unread, request }
}

/// Below the lowest confirmed LSN of all our slots only each id's newest version can still be asked for. Gives that LSN: the next time
/// only what has come since is looked at.
async fn prune(transaction: &Transaction<'_>, session: &Session, pruned: Lsn) -> Result<Lsn> {
    // whether the slot may be gone is for the stream to say
    let Some(confirmed) = lanes::kept_from(transaction.client(), session).await? else {
        return Ok(pruned);
    };
    transaction
        .execute(
            include_str!("../../sql/prune_content_versions.sql"),
            &[&session.history_id.uuid, &PgLsn::from(pruned.0), &PgLsn::from(confirmed.0)],
        )
        .await
        .map_err(sql::error)?;
    Ok(confirmed)
}

/// The content rows as the stream saw them at `start`, the end of a commit.
pub async fn load(client: &Client, session: &Session, start: Lsn) -> Result<ContentCache> {
    let statement = rows::content_statement(include_str!("../../sql/load_content.sql"), 0);
    let found = client
        .query(&statement, &[&session.history_id.uuid, &PgLsn::from(start.0)])
        .await
        .map_err(sql::error)?;
    found.iter().filter_map(|row| rows::kept_content(row, 0).transpose()).collect()
}
