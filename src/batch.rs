//! The unit that crosses to the sinks: rows in stream order, their texts in one arena, and the checkpoint that
//! whoever holds the batch may claim.

use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::{ServerClock, Showing};
pub use crate::event::{ContentChange, Event, EventChange, Extra, ExtraColumn, Fate, Span, Texts};
use crate::lsn::{Checkpoint, Lsn, Position};
use crate::source::request::{EVERY_SINK, RequestKind};

/// Slug and title of a content, mostly.
const SHORT_BYTES: usize = 500;

/// One thing for the sinks to know, at its place in the stream.
#[derive(Debug, Clone)]
pub enum Row {
    /// An engagement event.
    Event(Event),
    /// A content row came, changed or went.
    Content(ContentChange),
    /// The source changed or deleted events that came before.
    EventChange(EventChange),
    /// A row that no sink can take.
    DeadLetter(Box<DeadLetter>),
}

impl Row {
    /// The row's place in the stream. Rows of one batch never go down; an update that changes a content
    /// id, and a truncation, give several rows of one position.
    pub fn position(&self) -> Position {
        match self {
            Row::Event(event) => event.position,
            Row::Content(change) => change.position,
            Row::EventChange(change) => change.position,
            Row::DeadLetter(letter) => letter.position,
        }
    }

    /// When the row's transaction committed, microseconds since 1970.
    pub fn commit_ts(&self) -> i64 {
        match self {
            Row::Event(event) => event.commit_ts,
            Row::Content(change) => change.commit_ts,
            Row::EventChange(change) => change.commit_ts,
            Row::DeadLetter(letter) => letter.commit_ts,
        }
    }

    /// Bytes of the texts that it has of its own, or shares with others: not those of a batch's arena. A content's short ones
    /// do not count: rows share them, and they are no more than what a row is.
    pub fn bytes_beside(&self) -> usize {
        let content = match self {
            Row::Event(event) => event.content.as_deref(),
            Row::Content(change) => change.after.as_deref(),
            Row::DeadLetter(letter) => return letter.bytes(),
            Row::EventChange(_) => None,
        };
        content.map_or(0, |content| {
            let texts = [&content.slug, &content.title];
            texts.into_iter().flatten().map(String::len).sum::<usize>().saturating_sub(SHORT_BYTES)
        })
    }
}

/// A row refused before the sinks: undecodable, or against a rule.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The row's place in the stream.
    pub position: Position,
    /// When the transaction committed, microseconds since 1970.
    pub commit_ts: i64,
    /// The table, `schema.name`.
    pub table: String,
    /// A short code for metrics, such as `negative_duration`.
    pub reason: &'static str,
    /// One sentence: field, shape found, shape wanted.
    pub message: String,
    /// The row as received: a JSON object of column name to text (binary values in base64 under `$base64`).
    pub row_json: String,
    /// Of a row of the events table what it would have been.
    pub event: Option<LetterEvent>,
}

impl DeadLetter {
    fn bytes(&self) -> usize {
        self.row_json.len() + self.event.as_ref().map_or(0, |event| event.record.len())
    }
}

/// A refused row of the events table, as far as it could be read.
#[derive(Debug, Clone)]
pub struct LetterEvent {
    /// Its id; `None` when that could not be read.
    pub id: Option<i64>,
    /// Its record as JSON, without its content.
    pub record: String,
    /// The fields that could not be read, or are null and must not be.
    pub unread: Vec<&'static str>,
}

/// Rows in stream order, and the checkpoint of whoever holds them and all before them.
#[derive(Debug)]
pub struct Batch {
    rows: Vec<Row>,
    text: String,
    checkpoint: Checkpoint,
    urgent: bool,
    /// What the source's clock showed when the first row was put in.
    clock: Showing,
    heartbeat: Option<Heartbeat>,
    foreign: Vec<Foreign>,
    extra: Vec<ExtraSince>,
    bytes_beside: usize,
    control: Option<Arc<Control>>,
}

/// What a control message of ours has asked for, in a batch of its own.
#[derive(Debug)]
pub struct Control {
    /// The request.
    pub id: Uuid,
    /// What it asks for.
    pub kind: RequestKind,
    /// Where its message lies in the stream.
    pub commit_lsn: Lsn,
    /// It came in one transaction with other changes: nothing of it is done.
    pub refused: bool,
    /// Whom its rows are for.
    pub sinks: Vec<String>,
    /// Its rows' first places, by their ordinals.
    pub firsts: Vec<Position>,
}

/// The sink that keeps what became of requests, and gets each of their batches whole.
const KEEPER: &str = "content";

impl Control {
    /// Whether its rows are for this sink.
    pub fn is_for(&self, sink: &str) -> bool {
        sink == KEEPER || self.sinks.iter().any(|name| name == sink || name == EVERY_SINK)
    }
}

/// Where a row that comes again was at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The request that brings it.
    pub request: Uuid,
    /// Its first place.
    pub first: Position,
}

impl Origin {
    /// The place by which a refused row is kept, and the request that brought it.
    pub fn of_letter(position: Position, origin: Option<Origin>) -> (Position, Option<Uuid>) {
        origin.map_or((position, None), |origin| (origin.first, Some(origin.request)))
    }
}

/// A transaction whose commit time is not this server's, in a batch that has rows of it.
#[derive(Debug, Clone, Copy)]
struct Foreign {
    commit_lsn: Lsn,
    received_at: Instant,
}

/// Which extra columns events have, from one of them on.
#[derive(Debug, Clone)]
pub struct ExtraSince {
    /// The first event that has them.
    pub since: Position,
    /// The columns.
    pub columns: Arc<[ExtraColumn]>,
}

/// A heartbeat that came back through the WAL, to be timed until the sinks hold its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// The end of its transaction.
    pub end_lsn: Lsn,
    /// When that committed.
    pub committed_at: Instant,
}

impl Batch {
    /// A batch without rows that only moves the checkpoint.
    pub fn empty(checkpoint: Checkpoint, urgent: bool) -> Self {
        Batch {
            rows: Vec::new(),
            text: String::new(),
            checkpoint,
            urgent,
            clock: Showing { at: Instant::now(), micros: 0 },
            heartbeat: None,
            foreign: Vec::new(),
            extra: Vec::new(),
            bytes_beside: 0,
            control: None,
        }
    }

    /// What a control message has asked for: all rows are of that.
    pub fn control(&self) -> Option<&Arc<Control>> {
        self.control.as_ref()
    }

    /// Where a row of this batch was at first; `None` for one that comes for the first time.
    pub fn origin(&self, position: Position) -> Option<Origin> {
        let control = self.control.as_ref()?;
        let first = control.firsts.get(usize::try_from(position.ordinal).ok()?)?;
        Some(Origin { request: control.id, first: *first })
    }

    /// The batch as a sink is to have it: without the rows when they are for others.
    pub fn for_sink(self: &Arc<Self>, sink: &str) -> Arc<Batch> {
        match &self.control {
            Some(control) if !control.is_for(sink) => {
                let heartbeat = self.heartbeat;
                Arc::new(Batch { heartbeat, ..Batch::empty(self.checkpoint, self.urgent) })
            }
            _ => Arc::clone(self),
        }
    }

    /// The rows, in stream order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The engagement events among the rows.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.rows.iter().filter_map(|row| match row {
            Row::Event(event) => Some(event),
            _ => None,
        })
    }

    /// The text behind a span of one of this batch's events.
    pub fn text(&self, span: Span) -> &str {
        self.texts().get(span)
    }

    /// All texts of this batch's events.
    pub fn texts(&self) -> Texts<'_> {
        Texts(&self.text)
    }

    /// What holding this batch and all before it amounts to.
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    /// Whether the sinks shall make it durable at once rather than at their own pace (the server waits).
    pub fn urgent(&self) -> bool {
        self.urgent
    }

    /// The last heartbeat in it.
    pub fn heartbeat(&self) -> Option<Heartbeat> {
        self.heartbeat
    }

    /// Which extra columns its events have, and perhaps those before them, in stream order.
    pub fn extra(&self) -> &[ExtraSince] {
        &self.extra
    }

    /// When the first row was put in.
    pub fn created(&self) -> Instant {
        self.clock.at
    }

    /// Each row's place, and since when it is under way: since its commit, or since it was received where the commit's time is
    /// not this server's.
    pub fn under_way(&self) -> impl Iterator<Item = (Position, Instant)> {
        self.rows.iter().map(|row| {
            let position = row.position();
            let foreign =
                self.foreign.binary_search_by_key(&position.commit_lsn, |foreign| foreign.commit_lsn);
            let foreign = foreign.ok().and_then(|at| self.foreign.get(at));
            (
                position,
                foreign.map_or_else(|| self.clock.moment(row.commit_ts()), |foreign| foreign.received_at),
            )
        })
    }

    /// About what the batch occupies in memory, and what writing it means: each row counts the texts that it refers to,
    /// also those of its content. Never 0, so that it can be a queue's measure.
    pub fn bytes(&self) -> usize {
        512 + self.rows.len() * size_of::<Row>() + self.text.len() + self.bytes_beside
    }

    /// The part that somebody who already has `held` still needs: `None` when that is nothing, not even
    /// the checkpoint. Costs a copy only where a restart cuts a batch.
    pub fn beyond(self: &Arc<Self>, held: &Checkpoint) -> Option<Arc<Batch>> {
        if held.covers(&self.checkpoint) && self.rows.last().is_none_or(|row| held.holds(row.position())) {
            return None;
        }
        let skip = self.rows.partition_point(|row| held.holds(row.position()));
        if skip == 0 {
            return Some(Arc::clone(self));
        }
        Some(Arc::new(Batch {
            rows: self.rows.get(skip..).unwrap_or_default().to_vec(),
            text: self.text.clone(),
            checkpoint: self.checkpoint,
            urgent: self.urgent,
            clock: self.clock,
            heartbeat: self.heartbeat,
            foreign: self.foreign.clone(),
            extra: self.extra.clone(),
            bytes_beside: self.bytes_beside,
            control: self.control.clone(),
        }))
    }
}

/// Collects rows until a bound is reached, then gives them as a [`Batch`].
#[derive(Debug)]
pub struct BatchBuilder {
    rows: Vec<Row>,
    text: String,
    checkpoint: Checkpoint,
    clock: ServerClock,
    /// What the clock showed when the first row came.
    first_row: Option<Showing>,
    heartbeat: Option<Heartbeat>,
    foreign: Vec<Foreign>,
    /// The open transaction's commit time is not this server's.
    foreign_open: bool,
    extra: Vec<ExtraSince>,
    /// Of texts that are not in `text`.
    bytes_beside: usize,
    control: Option<Arc<Control>>,
    /// The extra columns that the stream's own events have, while others are brought.
    extra_of_stream: Option<ExtraSince>,
}

impl BatchBuilder {
    /// An empty builder; its first batch starts after `checkpoint`.
    pub fn new(checkpoint: Checkpoint) -> Self {
        BatchBuilder {
            rows: Vec::new(),
            text: String::new(),
            checkpoint,
            clock: ServerClock::default(),
            first_row: None,
            heartbeat: None,
            foreign: Vec::new(),
            foreign_open: false,
            extra: Vec::new(),
            bytes_beside: 0,
            control: None,
            extra_of_stream: None,
        }
    }

    /// What is put in from here on is what a control message has asked for.
    pub fn begin_control(&mut self) {
        self.extra_of_stream = self.extra.last().cloned();
    }

    /// The rows of this batch are what a control message has asked for.
    pub fn control(&mut self, control: Control) {
        self.control = Some(Arc::new(control));
    }

    /// The same builder; commits are dated by this clock.
    pub fn dated_by(self, clock: ServerClock) -> Self {
        BatchBuilder { clock, ..self }
    }

    /// Copies a text into the arena.
    pub fn intern(&mut self, text: &str) -> Span {
        crate::event::intern(&mut self.text, text)
    }

    /// Lets an event's extra columns be written into the arena, of which `columns` it has.
    pub fn put_extra(
        &mut self,
        since: Position,
        columns: &Arc<[ExtraColumn]>,
        put: impl FnOnce(&mut String) -> Extra,
    ) -> Extra {
        if self.extra.last().is_none_or(|last| !Arc::ptr_eq(&last.columns, columns)) {
            self.extra.push(ExtraSince { since, columns: Arc::clone(columns) });
        }
        put(&mut self.text)
    }

    /// Adds a row; rows come in stream order.
    pub fn push(&mut self, row: Row) {
        debug_assert!(self.checkpoint.position.is_none_or(|last| last <= row.position()));
        self.checkpoint.position = Some(row.position());
        self.first_row.get_or_insert_with(|| self.clock.showing());
        if self.foreign_open {
            self.push_foreign(row.position().commit_lsn);
        }
        self.bytes_beside += row.bytes_beside();
        self.rows.push(row);
    }

    /// Rows that come now are of another transaction. `foreign`: its commit time is not this server's.
    pub fn transaction(&mut self, foreign: bool) {
        self.foreign_open = foreign;
    }

    #[cold]
    fn push_foreign(&mut self, commit_lsn: Lsn) {
        if self.foreign.last().is_none_or(|last| last.commit_lsn != commit_lsn) {
            self.foreign.push(Foreign { commit_lsn, received_at: Instant::now() });
        }
    }

    /// Says that everything up to `end_lsn`, the end of a commit or the idle WAL end, is in.
    pub fn hold(&mut self, end_lsn: Lsn) {
        self.checkpoint.durable_lsn = self.checkpoint.durable_lsn.max(end_lsn);
    }

    /// A heartbeat's transaction has ended.
    pub fn beat(&mut self, heartbeat: Heartbeat) {
        self.heartbeat = Some(heartbeat);
    }

    /// The checkpoint that the batch would have if it ended here.
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes so far, as [`Batch::bytes`] counts them.
    pub fn bytes(&self) -> usize {
        self.rows.len() * size_of::<Row>() + self.text.len() + self.bytes_beside
    }

    /// When the first row came; `None` while there is none.
    pub fn first_row_at(&self) -> Option<Instant> {
        self.first_row.map(|first| first.at)
    }

    /// Ends the batch here and starts the next, with room for as much: that spares growing by steps. What the
    /// batch does not need of its own room it gives back, so that [`Batch::bytes`] is what it occupies.
    pub fn finish(&mut self, urgent: bool) -> Batch {
        let rows = Vec::with_capacity(with_margin(self.rows.len()));
        let text = String::with_capacity(with_margin(self.text.len()));
        self.rows.shrink_to_fit();
        self.text.shrink_to_fit();
        let goes_on = match self.control {
            Some(_) => self.extra_of_stream.take(),
            None => self.extra.last().cloned(),
        };
        let goes_on = goes_on.into_iter().collect();
        let clock = self.first_row.take().unwrap_or_else(|| Showing { at: Instant::now(), micros: 0 });
        Batch {
            rows: std::mem::replace(&mut self.rows, rows),
            text: std::mem::replace(&mut self.text, text),
            checkpoint: self.checkpoint,
            urgent,
            clock,
            heartbeat: self.heartbeat.take(),
            foreign: std::mem::take(&mut self.foreign),
            extra: std::mem::replace(&mut self.extra, goes_on),
            bytes_beside: std::mem::take(&mut self.bytes_beside),
            control: self.control.take(),
        }
    }
}

/// Batches of a busy stream differ by a little.
fn with_margin(len: usize) -> usize {
    len + len / 8
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::event::Content;

    /// A batch of so many rows, each with a text.
    fn batch_of(builder: &mut BatchBuilder, rows: usize) -> Batch {
        for _ in 0..rows {
            builder.intern("pause");
            let change = ContentChange {
                position: Position { commit_lsn: Lsn(1), ordinal: 0 },
                commit_ts: 0,
                id: Uuid::nil(),
                after: None,
            };
            builder.push(Row::Content(change));
        }
        builder.finish(false)
    }

    /// Ten thousand events of a content with a title of 500 kB are five gigabytes for Kafka, in one transaction.
    #[test]
    fn a_batch_counts_what_its_rows_refer_to() {
        let mut builder = BatchBuilder::new(Checkpoint::at(Lsn(1)));
        let bare = batch_of(&mut builder, 3).bytes();
        let position = Position { commit_lsn: Lsn(1), ordinal: 0 };
        let content = Arc::new(Content {
            id: Uuid::nil(),
            slug: Some("slug".into()),
            title: Some("t".repeat(500_000)),
            content_type: None,
            length_seconds: None,
            publish_ts: None,
        });
        let row_json = "x".repeat(70_000);
        builder
            .push(Row::Event(Event { content: Some(Arc::clone(&content)), ..Event::new(position, 0, 1, 0) }));
        builder.push(Row::Content(ContentChange {
            position,
            commit_ts: 0,
            id: content.id,
            after: Some(content),
        }));
        builder.push(Row::DeadLetter(Box::new(DeadLetter {
            position,
            commit_ts: 0,
            table: String::new(),
            reason: "null",
            message: String::new(),
            row_json,
            event: None,
        })));
        let (before, batch) = (builder.bytes(), builder.finish(false));
        assert_eq!(batch.bytes() + 15, bare + 2 * (500_004 - SHORT_BYTES) + 70_000);
        assert_eq!((batch.bytes() - 512, builder.bytes()), (before, 0));
    }

    #[test]
    fn a_batch_occupies_what_it_counts_whatever_came_before_it() {
        let mut builder = BatchBuilder::new(Checkpoint::at(Lsn(1)));
        for rows in [3, 4_096, 1_000, 1_001, 0, 7, 4_096] {
            let batch = batch_of(&mut builder, rows);
            let room = batch.rows.capacity() * size_of::<Row>() + batch.text.capacity();
            assert_eq!(512 + room, batch.bytes(), "{rows} rows");
        }
    }
}
