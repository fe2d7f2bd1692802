//! What control messages of ours bring: rows that are sent again, in a batch of their own at the message's place.

use std::sync::Arc;

use uuid::Uuid;

use super::Transform;
use crate::batch::{Control, DeadLetter, Event, Extra, ExtraColumn, LetterEvent, Row};
use crate::event::encoding::Encoding;
use crate::event::encoding::json::Json;
use crate::event::replayed::{Replayed, put_extra};
use crate::event::row::RowError;
use crate::event::schema::ENGAGEMENT_EVENTS;
use crate::lsn::{Lsn, Position};
use crate::source::request::{Brought, Refusal, Request, RequestKind, RequestRow, Ticket};
use crate::telemetry::metrics::{self, TicketFate};

impl Transform {
    /// The open transaction has a control message. One outside of a transaction is nobody's, as is one that names nothing.
    pub(super) fn control(&mut self, transactional: bool, content: &[u8]) {
        let id = std::str::from_utf8(content).ok().and_then(|text| Uuid::parse_str(text).ok());
        match id.filter(|_| transactional && self.ticket.is_none()) {
            Some(id) => self.ticket = Some(id),
            None => self.ignored(),
        }
    }

    /// The control message of which it must be known whose it is before the stream goes on.
    pub fn asks(&self) -> Option<Ticket> {
        self.asks.map(|(ticket, _)| ticket)
    }

    /// What was found out of that control message; `None`: nobody asked for anything.
    pub fn answered(&mut self, request: Option<Arc<Request>>) {
        let Some((ticket, end_lsn)) = self.asks.take() else { return };
        let Some(request) = request else {
            self.ignored();
            return self.commit(end_lsn);
        };
        // rows of this transaction are in this batch, or went out in one before
        let has_changes =
            self.builder.checkpoint().position.is_some_and(|last| last.commit_lsn == ticket.commit_lsn);
        self.cut();
        match has_changes {
            true => self.refuse(&request, ticket.commit_lsn),
            false => self.bring(&request, ticket.commit_lsn),
        }
        self.commit(end_lsn);
        self.cut();
    }

    /// Ends the batch, if there is anything in it.
    fn cut(&mut self) {
        if self.builder.checkpoint() != self.sent {
            let batch = self.end_batch(tokio::time::Instant::now());
            self.ready.push_back(batch);
        }
    }

    fn ignored(&mut self) {
        metrics::ticket(TicketFate::Ignored);
        if let Some(repeated) = self.throttle.say("ticket") {
            let repeated = (repeated > 0).then_some(repeated);
            let commit_lsn = self.commit_lsn;
            tracing::warn!(%commit_lsn, repeated, "somebody else's control message is ignored");
        }
    }

    fn refuse(&mut self, request: &Request, commit_lsn: Lsn) {
        metrics::ticket(TicketFate::Refused);
        tracing::error!(
            %commit_lsn,
            request = %request.id,
            "a control message came in one transaction with changes of the source tables: these go on, and nothing of \
             what it asks for is done; ask again with `walcast`, which sends it alone"
        );
        self.builder.begin_control();
        self.builder.control(Control {
            id: request.id,
            kind: request.kind,
            commit_lsn,
            refused: true,
            sinks: Vec::new(),
            firsts: Vec::new(),
        });
    }

    fn bring(&mut self, request: &Request, commit_lsn: Lsn) {
        metrics::ticket(TicketFate::Taken);
        let Request { id, kind, sinks, brings: Brought { extra, rows } } = request;
        let column = |(name, shape): &(String, String)| {
            Some(ExtraColumn { name: name.clone(), shape: shape.parse().ok()? })
        };
        let columns: Arc<[ExtraColumn]> = extra.iter().filter_map(column).collect();
        match kind {
            RequestKind::Replay => {
                tracing::info!(%commit_lsn, request = %id, rows = rows.len(), sinks = sinks.join(", "), "rows are sent again");
            }
            RequestKind::Chunk => tracing::debug!(%commit_lsn, rows = rows.len(), "rows of before walcast"),
        }
        self.builder.begin_control();
        // they are as old as their first commit, and are under way since now
        self.builder.transaction(true);
        let mut firsts = Vec::with_capacity(rows.len());
        for (row, ordinal) in rows.iter().zip(0..) {
            let position = Position { commit_lsn, ordinal };
            let first = self.again(row, position, *kind, &columns);
            // what was never sent has no other place
            if *kind == RequestKind::Replay {
                firsts.push(first);
            }
        }
        self.builder.transaction(self.foreign);
        let (id, kind, sinks) = (*id, *kind, sinks.clone());
        self.builder.control(Control { id, kind, commit_lsn, refused: false, sinks, firsts });
    }

    /// Puts a row in; gives its first place. What is against the rules still is a dead letter still.
    fn again(
        &mut self,
        row: &RequestRow,
        position: Position,
        kind: RequestKind,
        columns: &Arc<[ExtraColumn]>,
    ) -> Position {
        let Some(values) = Json.read_event(row.record.as_bytes()) else {
            let error = RowError {
                reason: "undecodable",
                message: "the record of a dead letter cannot be read".into(),
            };
            self.refused_again(row, (position, self.commit_ts), None, error);
            return position;
        };
        let first = values.position().unwrap_or(position);
        let replayed = Replayed::of(&values);
        let commit_ts = match kind {
            RequestKind::Replay => replayed.commit_ts(),
            RequestKind::Chunk => self.commit_ts,
        };
        let place = (position, commit_ts);
        let refused = row.refused.as_ref().map(refusal);
        let engagement = match refused.map_or_else(|| replayed.checked(), Err) {
            Ok(engagement) => engagement,
            Err(error) => {
                self.refused_again(row, place, values.id(), error);
                return first;
            }
        };
        let content = match row.joins {
            true => engagement.content_id.and_then(|id| self.cache.get(&id).cloned()),
            false => replayed.content().map(Arc::new),
        };
        let extra = match values.1.is_empty() || columns.is_empty() {
            true => Extra::default(),
            false => self.builder.put_extra(position, columns, |arena| put_extra(columns, &values.1, arena)),
        };
        // its record was made by the rules of then
        let rules = (true, &self.privacy.of_pseudonyms());
        let mut event = Event::of(&engagement, place, content, rules, |text| self.builder.intern(text));
        event.raw_payload_bytes = replayed.raw_payload_bytes().or(event.raw_payload_bytes);
        event.extra = extra;
        self.builder.push(Row::Event(event));
        first
    }

    fn refused_again(&mut self, row: &RequestRow, place: (Position, i64), id: Option<i64>, error: RowError) {
        let (position, commit_ts) = place;
        metrics::dead_letter(error.reason);
        self.builder.push(Row::DeadLetter(Box::new(DeadLetter {
            position,
            commit_ts,
            table: ENGAGEMENT_EVENTS.name.to_owned(),
            reason: error.reason,
            message: error.message,
            row_json: row.record.clone(),
            event: Some(LetterEvent { id, record: row.record.clone(), unread: unread(row) }),
        })));
    }
}

/// Why a row was refused before it was stored.
fn refusal(refusal: &Refusal) -> RowError {
    let known = ["null", "event_ts_out_of_range", "negative_duration"];
    let reason = known.into_iter().find(|known| *known == refusal.reason).unwrap_or("undecodable");
    RowError { reason, message: refusal.message.clone() }
}

/// The columns of it that were not read.
fn unread(row: &RequestRow) -> Vec<&'static str> {
    let is_unread = |column: &&'static str| {
        row.refused.as_ref().is_some_and(|refused| refused.unread.iter().any(|unread| unread == column))
    };
    ENGAGEMENT_EVENTS.column_names().filter(is_unread).collect()
}
