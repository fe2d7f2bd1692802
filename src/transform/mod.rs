//! From the payloads of the stream to batches of enriched events. Synchronous and without IO: the whole
//! way from socket buffer to batch is this one call chain.

pub mod content_cache;
mod replay;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::batch::{
    Batch, BatchBuilder, ContentChange, DeadLetter, Event, EventChange, Extra, Fate, Heartbeat, LetterEvent,
    Row, Texts,
};
use crate::clock::ServerClock;
use crate::error::{Code, Error, Result};
use crate::event::encoding::Encoding;
use crate::event::encoding::json::Json;
use crate::event::place::Places;
use crate::event::privacy::Privacy;
use crate::event::schema::{CONTENT, ENGAGEMENT_EVENTS, EngagementColumn, EventRecord};
use crate::event::time;
use crate::event::{Content, intern};
use crate::lsn::{Checkpoint, Lsn, Position};
use crate::model::engagement::{self, EngagementTable};
use crate::model::{Refused, Table, Tables};
use crate::pgoutput::timestamp::unix_micros;
use crate::pgoutput::{Message, OldTuple, RelationIds, Transaction, Tuple};
use crate::source::request::{self, Ticket};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics;
use content_cache::ContentCache;

/// How often a server that waits is answered with a batch that moves nothing: sinks may still hold accepted
/// rows back.
const URGENT_EVERY: Duration = Duration::from_secs(1);
/// By how much a server's clock may be moved, or differ from ours, for its times to be taken for its own.
const CLOCKS_AGREE_MICROS: i64 = 60_000_000;

/// A row that an update moves to another partition comes as a delete and, next or after what triggers wrote, an insert of
/// the same id in the same transaction. So many deletes are remembered.
const MOVED_ROWS_MAX: usize = 64;

/// Bounds of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Rows at most.
    pub batch_rows_max: usize,
    /// Bytes at most, as [`Batch::bytes`] counts.
    pub batch_bytes_max: usize,
    /// How long the first row may wait for company.
    pub batch_age_max: Duration,
    /// How often, at most, a batch without rows is sent to move the checkpoints.
    pub idle_every: Duration,
    /// A row larger than this goes on without its `raw_payload`.
    pub row_bytes_max: usize,
}

/// The state between the stream and the batches.
pub struct Transform {
    bounds: Bounds,
    tables: Tables,
    privacy: Privacy,
    transaction: Transaction,
    commit_ts: i64,
    commit_lsn: Lsn,
    xid: u32,
    /// The ids of the events that the open transaction has deleted last.
    deleted: VecDeque<i64>,
    cache: ContentCache,
    builder: BatchBuilder,
    sent: Checkpoint,
    sent_at: Instant,
    heartbeat_seen: bool,
    /// The open transaction is a heartbeat.
    beating: bool,
    /// The open transaction was replicated to the server from elsewhere, as the stream says.
    replicated: bool,
    /// The open transaction's commit time is not this server's.
    foreign: bool,
    /// When the last heartbeat was committed: all that follows it in the WAL was committed after it.
    beaten_at: i64,
    clock: ServerClock,
    urgent: bool,
    /// The control message of the open transaction.
    ticket: Option<Uuid>,
    /// Whose control message that was: to be found out before the stream goes on, with the end of its transaction.
    asks: Option<(Ticket, Lsn)>,
    /// Batches that have been ended.
    ready: VecDeque<Batch>,
    throttle: LogThrottle,
}

impl Transform {
    /// A transform for a stream that starts at `start`, with the content rows as of there. `places` are the two tables.
    pub fn new(places: &Places, start: Lsn, cache: ContentCache, bounds: Bounds) -> Self {
        Transform {
            bounds,
            tables: Tables::new(places),
            privacy: places.events.privacy.clone(),
            transaction: Transaction::default(),
            commit_ts: 0,
            commit_lsn: Lsn::ZERO,
            xid: 0,
            deleted: VecDeque::new(),
            cache,
            builder: BatchBuilder::new(Checkpoint::at(start)),
            sent: Checkpoint::at(start),
            sent_at: Instant::now(),
            heartbeat_seen: false,
            beating: false,
            replicated: false,
            foreign: false,
            beaten_at: i64::MIN,
            clock: ServerClock::default(),
            urgent: false,
            ticket: None,
            asks: None,
            ready: VecDeque::new(),
            throttle: LogThrottle::default(),
        }
    }

    /// The same transform; commits are dated by this clock.
    pub fn dated_by(self, clock: ServerClock) -> Self {
        Transform { builder: self.builder.dated_by(clock.clone()), clock, ..self }
    }

    /// Takes the payload of the next XLogData frame.
    pub fn apply(&mut self, payload: &[u8]) -> Result<()> {
        let message = Message::parse(payload).map_err(broken_stream)?;
        let position = self.transaction.advance(&message).map_err(broken_stream)?;
        match message {
            Message::Begin { commit_ts, final_lsn, xid } => {
                self.begin(commit_ts);
                (self.xid, self.commit_lsn) = (xid, final_lsn);
                self.deleted.clear();
            }
            Message::Commit { end_lsn, .. } => match self.ticket.take() {
                None => self.commit(end_lsn),
                Some(id) => {
                    let ticket = Ticket { id, xid: self.xid, commit_lsn: self.commit_lsn };
                    self.asks = Some((ticket, end_lsn));
                }
            },
            Message::Relation(relation) => {
                let described = self.tables.describe(relation);
                described.map_err(|unfit| unfit.told(self.xid, self.commit_lsn))?;
            }
            Message::Type { id, namespace, name } => self.tables.describe_type(id, namespace, name),
            // Ours is of a transaction: one that is not comes whenever anybody likes, and no commit follows it.
            Message::Logical { transactional: true, prefix, .. }
                if prefix == crate::source::heartbeat::PREFIX =>
            {
                metrics::heartbeat_received();
                self.heartbeat_seen = true;
                self.beating = true;
            }
            Message::Logical { transactional, prefix, content, .. } if prefix == request::PREFIX => {
                self.control(transactional, content);
            }
            Message::Logical { .. } => {}
            Message::Origin { .. } => {
                self.replicated = true;
                self.foreign = true;
                self.builder.transaction(true);
            }
            change => {
                if let Some(position) = position {
                    self.change(position, change)?;
                }
            }
        }
        Ok(())
    }

    /// The time of a commit is any that the session of a replication origin has said, and pgoutput need not name one that was
    /// dropped since: a time before the last heartbeat, or ahead of the server's clock, is not this server's either. So is one
    /// from after its clock was set, until the next heartbeat shows what it is now.
    fn begin(&mut self, commit_ts: i64) {
        self.commit_ts = time::nearest(unix_micros(commit_ts));
        self.replicated = false;
        self.foreign = self.commit_ts < self.beaten_at.saturating_sub(CLOCKS_AGREE_MICROS)
            || self.commit_ts > self.clock.now().saturating_add(CLOCKS_AGREE_MICROS);
        self.builder.transaction(self.foreign);
    }

    fn commit(&mut self, end_lsn: Lsn) {
        self.builder.hold(end_lsn);
        let beating = std::mem::take(&mut self.beating) && !self.replicated;
        if beating {
            self.clock.dated(self.commit_ts);
        }
        let now = self.clock.showing();
        if beating {
            let committed_at = if self.foreign { now.at } else { now.moment(self.commit_ts) };
            self.beaten_at = self.commit_ts;
            self.builder.beat(Heartbeat { end_lsn, committed_at });
        }
        if !self.foreign {
            metrics::commit_received(now.age(self.commit_ts));
        }
    }

    /// The server has no committed transaction below `wal_end` that it has not sent. `waiting`: it asks for
    /// an answer, so whatever is in is to be made durable at once.
    pub fn keepalive(&mut self, wal_end: Lsn, waiting: bool) {
        if !self.transaction.is_open() {
            self.builder.hold(wal_end);
            self.urgent |= waiting;
        }
    }

    /// When the batch must go although it is not full.
    pub fn due_at(&self) -> Option<Instant> {
        if let Some(ready) = self.ready.front() {
            return Some(ready.created());
        }
        let by_age = self.builder.first_row_at().map(|first| first + self.bounds.batch_age_max);
        let idle = self.builder.checkpoint() != self.sent && !self.transaction.is_open();
        // Rows that went out before their commit came: the sinks hold them, and need only be told so.
        let cut = self.sent.position.is_some_and(|last| last.commit_lsn >= self.sent.durable_lsn);
        let patience = if cut { self.bounds.batch_age_max } else { self.bounds.idle_every };
        let by_idleness = idle.then(|| self.sent_at + patience);
        by_age.into_iter().chain(by_idleness).min()
    }

    /// The next batch, if one is full or due.
    pub fn take_batch(&mut self, now: Instant) -> Option<Batch> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(ready);
        }
        let at_commit = !self.transaction.is_open();
        let moved = self.builder.checkpoint() != self.sent;
        let patient = now.saturating_duration_since(self.sent_at) < URGENT_EVERY;
        let asked = at_commit && (self.urgent && (moved || !patient) || self.heartbeat_seen && moved);
        let due = self.due_at().is_some_and(|due| due <= now);
        (self.is_full() || asked || due).then(|| self.end_batch(now))
    }

    /// Whether no more rows fit.
    pub fn is_full(&self) -> bool {
        self.builder.len() >= self.bounds.batch_rows_max
            || !self.ready.is_empty()
            || self.builder.bytes() >= self.bounds.batch_bytes_max
    }

    /// What is in so far as a last batch; `None` when the sinks have been sent all of it.
    pub fn take_rest(&mut self) -> Option<Batch> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(ready);
        }
        (self.builder.checkpoint() != self.sent).then(|| self.end_batch(Instant::now()))
    }

    fn end_batch(&mut self, now: Instant) -> Batch {
        self.sent = self.builder.checkpoint();
        self.sent_at = now;
        self.heartbeat_seen = false;
        self.builder.finish(std::mem::take(&mut self.urgent))
    }

    fn change(&mut self, position: Position, message: Message<'_>) -> Result<()> {
        match message {
            Message::Insert { relation_id, new } => self.insert(position, relation_id, &new),
            Message::Update { relation_id, old, new } => self.update(position, relation_id, old, &new),
            Message::Delete { relation_id, old } => self.delete(position, relation_id, &old),
            Message::Truncate { relations, .. } => self.truncate(position, relations),
            _ => Ok(()),
        }
    }

    fn insert(&mut self, position: Position, relation_id: u32, new: &Tuple<'_>) -> Result<()> {
        let table = self.tables.get(relation_id).map_err(broken_stream)?;
        match table {
            Table::Engagement(table) => {
                metrics::event_received(ENGAGEMENT_EVENTS.name, "insert");
                match table.read(new) {
                    Ok(row) if self.deleted.contains(&row.id) => {
                        metrics::change_skipped(ENGAGEMENT_EVENTS.name, "update");
                        self.event_changes(position, Fate::Touched(row.id));
                    }
                    Ok(row) => {
                        let columns = table.extra_columns();
                        let extra = match columns.is_empty() {
                            true => Extra::default(),
                            false => {
                                self.builder.put_extra(position, columns, |arena| table.put_extra(new, arena))
                            }
                        };
                        self.event(position, &row, extra);
                    }
                    Err(error) => {
                        let event = partly(table, new, (position, self.commit_ts), &self.privacy);
                        let refused = table.dead_letter(new, error);
                        self.dead_letter(position, refused, Some(event));
                    }
                }
            }
            Table::Content(table) => {
                metrics::event_received(CONTENT.name, "insert");
                match table.read(new, None) {
                    Ok(content) => self.content_is(position, content),
                    Err(error) => {
                        let refused = table.dead_letter(new, error);
                        self.dead_letter(position, refused, None);
                    }
                }
            }
            other @ Table::Other => metrics::change_skipped(other.name(), "insert"),
        }
        Ok(())
    }

    fn event(&mut self, position: Position, row: &engagement::Engagement<'_>, extra: Extra) {
        let text_bytes = row.text_bytes() + extra.bytes();
        let oversized = text_bytes > self.bounds.row_bytes_max;
        if oversized {
            metrics::oversized_row();
            if let Some(repeated) = self.throttle.say("oversized") {
                let repeated = (repeated > 0).then_some(repeated);
                tracing::warn!(%position, row_bytes = text_bytes, repeated, "row above row_bytes_max goes on without its raw_payload");
            }
        }
        let content = row.content_id.and_then(|id| self.cache.get(&id).cloned());
        if content.is_none() {
            metrics::unknown_content();
        }
        let place = (position, self.commit_ts);
        let rules = (!oversized, &self.privacy);
        let mut event = Event::of(row, place, content, rules, |text| self.builder.intern(text));
        event.extra = extra;
        self.builder.push(Row::Event(event));
    }

    fn update(
        &mut self,
        position: Position,
        relation_id: u32,
        old: Option<OldTuple<'_>>,
        new: &Tuple<'_>,
    ) -> Result<()> {
        let table = self.tables.get(relation_id).map_err(broken_stream)?;
        let Table::Content(table) = table else {
            metrics::change_skipped(table.name(), "update");
            let before = old.and_then(|old| event_id(table, &old.tuple));
            match (before, event_id(table, new)) {
                (Some(before), Some(now)) if before != now => {
                    self.event_changes(position, Fate::Touched(before));
                    self.event_changes(position, Fate::Renamed(now));
                }
                (_, Some(id)) => self.event_changes(position, Fate::Touched(id)),
                (_, None) => {}
            }
            return Ok(());
        };
        metrics::event_received(CONTENT.name, "update");
        let known_as = match &old {
            Some(old) => table.id(&old.tuple),
            None => table.id(new),
        };
        let before = known_as.as_ref().ok().and_then(|id| self.cache.get(id).cloned());
        let content = known_as.and_then(|id| Ok((id, table.read(new, before.as_deref())?)));
        match content {
            Ok((old_id, content)) => {
                if old_id != content.id {
                    self.content_gone(position, old_id);
                }
                self.content_is(position, content);
            }
            Err(error) => {
                let refused = table.dead_letter(new, error);
                self.dead_letter(position, refused, None);
            }
        }
        Ok(())
    }

    fn delete(&mut self, position: Position, relation_id: u32, old: &OldTuple<'_>) -> Result<()> {
        let table = self.tables.get(relation_id).map_err(broken_stream)?;
        let Table::Content(table) = table else {
            metrics::change_skipped(table.name(), "delete");
            // what cannot be read has no insert either that could be taken for a new event
            if let Some(id) = event_id(table, &old.tuple) {
                self.deleted.truncate(MOVED_ROWS_MAX - 1);
                self.deleted.push_front(id);
                self.event_changes(position, Fate::Touched(id));
            }
            return Ok(());
        };
        metrics::event_received(CONTENT.name, "delete");
        match table.id(&old.tuple) {
            Ok(id) => self.content_gone(position, id),
            Err(error) => {
                let refused = table.dead_letter(&old.tuple, error);
                self.dead_letter(position, refused, None);
            }
        }
        Ok(())
    }

    fn truncate(&mut self, position: Position, relations: RelationIds<'_>) -> Result<()> {
        for relation_id in relations.iter() {
            match self.tables.get(relation_id).map_err(broken_stream)? {
                Table::Content(_) => {
                    metrics::event_received(CONTENT.name, "truncate");
                    for id in self.cache.clear() {
                        self.content_gone(position, id);
                    }
                }
                Table::Engagement(_) => {
                    metrics::change_skipped(ENGAGEMENT_EVENTS.name, "truncate");
                    self.event_changes(position, Fate::Emptied);
                }
                Table::Other => metrics::change_skipped("other", "truncate"),
            }
        }
        Ok(())
    }

    fn event_changes(&mut self, position: Position, fate: Fate) {
        self.builder.push(Row::EventChange(EventChange { position, commit_ts: self.commit_ts, fate }));
    }

    fn content_is(&mut self, position: Position, content: Content) {
        let id = content.id;
        let after = Some(self.cache.put(content));
        self.builder.push(Row::Content(ContentChange { position, commit_ts: self.commit_ts, id, after }));
    }

    fn content_gone(&mut self, position: Position, id: uuid::Uuid) {
        self.cache.remove(&id);
        self.builder.push(Row::Content(ContentChange {
            position,
            commit_ts: self.commit_ts,
            id,
            after: None,
        }));
    }

    fn dead_letter(&mut self, position: Position, refused: Refused, event: Option<LetterEvent>) {
        let Refused { error, table, row_json } = refused;
        metrics::dead_letter(error.reason);
        if let Some(repeated) = self.throttle.say(error.reason) {
            let repeated = (repeated > 0).then_some(repeated);
            tracing::warn!(%position, table, reason = error.reason, repeated, "dead letter: {}", error.message);
        }
        self.builder.push(Row::DeadLetter(Box::new(DeadLetter {
            position,
            commit_ts: self.commit_ts,
            table,
            reason: error.reason,
            message: error.message,
            row_json,
            event,
        })));
    }
}

/// What a refused row would have been, as far as it can be read. Its content is joined when it is sent again.
#[cold]
fn partly(
    table: &EngagementTable,
    tuple: &Tuple<'_>,
    place: (Position, i64),
    privacy: &Privacy,
) -> LetterEvent {
    let (row, unread) = table.read_partly(tuple);
    let (mut arena, mut record) = (String::new(), Vec::new());
    let mut event = Event::of(&row, place, None, (true, privacy), |text| intern(&mut arena, text));
    event.extra = table.put_extra(tuple, &mut arena);
    Json.event(&EventRecord { event: &event, texts: Texts::of(&arena) }, &mut record);
    LetterEvent {
        id: (!unread.contains(&EngagementColumn::Id.name())).then_some(row.id),
        record: String::from_utf8_lossy(&record).into_owned(),
        unread,
    }
}

/// The id of a row of the events table.
fn event_id(table: &Table, tuple: &Tuple<'_>) -> Option<i64> {
    match table {
        Table::Engagement(table) => table.id(tuple).ok(),
        Table::Content(_) | Table::Other => None,
    }
}

/// What the server sent is not the protocol: going on would be guessing.
fn broken_stream(error: crate::pgoutput::DecodeError) -> Error {
    Error::new(Code::Protocol, "the replication stream cannot be decoded").because(error)
}
