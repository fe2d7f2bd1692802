//! Control messages: instructions of ours that travel through the WAL. What is asked for, rows included, stands in
//! `walcast.request`; the message in the stream is a ticket, which only says when.
//!
//! Anybody may emit messages. A ticket counts only in the transaction that inserted its request: the xids tell.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_postgres::types::{PgLsn, ToSql, Type};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use crate::error::{Code, Error, Result};
use crate::lsn::Lsn;
use crate::source::sql;

/// Prefix of control messages.
pub const PREFIX: &str = "walcast.control";

/// How often a transaction is looked for that has not ended yet.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A control message that the stream has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The request that it names.
    pub id: Uuid,
    /// The transaction that it came in.
    pub xid: u32,
    /// Where that committed.
    pub commit_lsn: Lsn,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Dead letters are to be sent again.
    Replay,
    /// Rows that were there before walcast are brought.
    Chunk,
}

impl RequestKind {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            RequestKind::Replay => "replay",
            RequestKind::Chunk => "chunk",
        }
    }

    /// What a record of its rows says of itself in its header `op`; `c` is one that comes for the first time.
    pub fn op(self) -> &'static str {
        match self {
            RequestKind::Replay => "p",
            RequestKind::Chunk => "r",
        }
    }

    fn named(name: &str) -> Option<RequestKind> {
        [RequestKind::Replay, RequestKind::Chunk].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A request whose ticket has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its name.
    pub id: Uuid,
    /// What it asks for.
    pub kind: RequestKind,
    /// The sinks that it is for; [`EVERY_SINK`]: all.
    pub sinks: Vec<String>,
    /// What it brings.
    pub brings: Brought,
}

/// Rows, and the extra columns that they have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brought {
    /// Names and shapes.
    pub extra: Vec<(String, String)>,
    /// A row's ordinal is its index.
    pub rows: Vec<RequestRow>,
}

/// In a request's sinks: all there are.
pub const EVERY_SINK: &str = "all";

/// A row that a request brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRow {
    /// The event's record as JSON; its position is the row's first one.
    pub record: String,
    /// Whether its content is that of the ticket's place, and not what the record says.
    pub joins: bool,
    /// Why it cannot go on as an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

impl RequestRow {
    /// An event that is joined with the content of the ticket's place.
    pub fn joined(record: String) -> RequestRow {
        RequestRow { record, joins: true, refused: None }
    }
}

/// Why a row cannot go on as an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A short code.
    pub reason: String,
    /// Column, shape found, shape wanted.
    pub message: String,
    /// The columns that could not be read, or must have a value and have none.
    pub unread: Vec<String>,
}

/// What is known of a ticket.
pub(super) enum Found {
    /// It is ours.
    Request(Request),
    /// Its transaction has not ended for us: it may wait for a standby.
    NotYet,
    /// Nobody asked for anything.
    Nothing,
}

/// Requests that this process has sent and its stream has not brought yet: what is at hand need not be read back, while the
/// stream stands still. What is not here, such as after a restart, is looked up.
#[derive(Debug, Clone, Default)]
pub struct OwnRequests(Arc<Mutex<AtHand>>);

/// Each with the 32 bits of its transaction's id, in the order in which they were sent.
type AtHand = VecDeque<(u32, Arc<Request>)>;

/// Requests at hand at most.
const OWN_REQUESTS_MAX: usize = 8;

impl OwnRequests {
    /// Keeps a request whose transaction `xid` has committed. One that the stream brings before that is known is looked up, since it
    /// may not be seen yet by those who note that it came.
    pub fn put(&self, xid: u32, request: Request) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // those that were looked up all the same
        if all.len() >= OWN_REQUESTS_MAX {
            all.pop_front();
        }
        all.push_back((xid, Arc::new(request)));
    }

    /// The request of a ticket that came in the very transaction that had inserted it; with it go those that were sent before.
    pub fn take(&self, ticket: Ticket) -> Option<Arc<Request>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|(xid, request)| (*xid, request.id) == (ticket.xid, ticket.id))?;
        all.drain(..=at).next_back().map(|(_, request)| request)
    }
}

/// A request on its way.
pub struct Sent {
    /// Where its ticket lies.
    pub at: Lsn,
    /// The 32 bits of its transaction's id.
    pub xid: u32,
}

/// Inserts a request and emits its ticket. It commits locally, so that no standby keeps it from being seen.
pub async fn send(transaction: &Transaction<'_>, history_id: Uuid, request: &Request) -> Result<Sent> {
    let rows = serde_json::to_string(&request.brings).map_err(|error| {
        Error::new(Code::WalcastBroke, "a request's rows cannot be written").because(error)
    })?;
    // at once, and without asking for the types first: a backfill sends many
    let statement = "WITH request AS (
         INSERT INTO walcast.request (id, history_id, kind, sinks, rows) VALUES ($1, $2, $3, $4, $5))
       SELECT pg_logical_emit_message(true, $6, $7), (pg_current_xact_id()::text::numeric % 4294967296)::bigint,
         set_config('synchronous_commit', 'local', true)";
    let (kind, ticket) = (request.kind.as_str(), request.id.to_string());
    let parameters: [(&(dyn ToSql + Sync), Type); 7] = [
        (&request.id, Type::UUID),
        (&history_id, Type::UUID),
        (&kind, Type::TEXT),
        (&request.sinks, Type::TEXT_ARRAY),
        (&rows, Type::TEXT),
        (&PREFIX, Type::TEXT),
        (&ticket, Type::TEXT),
    ];
    let row = transaction.query_typed_one(statement, &parameters).await.map_err(sql::error)?;
    let xid = u32::try_from(sql::get::<i64>(&row, 1)?).unwrap_or_default();
    Ok(Sent { at: Lsn(sql::get::<PgLsn>(&row, 0)?.into()), xid })
}

/// The request of a ticket; `None` when there is none, known for certain. Waits while its transaction has not ended.
pub async fn find(client: &Client, ticket: Ticket) -> Result<Option<Arc<Request>>> {
    loop {
        match look(client, ticket).await? {
            Found::Request(request) => return Ok(Some(Arc::new(request))),
            Found::Nothing => return Ok(None),
            Found::NotYet => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

pub(super) async fn look(client: &Client, ticket: Ticket) -> Result<Found> {
    let statement = include_str!("../../sql/find_request.sql");
    let xid = i64::from(ticket.xid);
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&ticket.id, Type::UUID), (&xid, Type::INT8)];
    let row = client.query_typed_one(statement, &parameters).await.map_err(sql::error)?;
    let (ended, kind): (bool, Option<String>) = (sql::get(&row, 0)?, sql::get(&row, 1)?);
    let Some(kind) = kind else {
        return Ok(if ended { Found::Nothing } else { Found::NotYet });
    };
    let kind = RequestKind::named(&kind).ok_or_else(|| {
        let message =
            format!("walcast.request has a request of kind {kind}, which this version does not know");
        Error::new(Code::Protocol, message)
    })?;
    let rows: String = sql::get(&row, 3)?;
    let brings = serde_json::from_str(&rows).map_err(|_| {
        // without the parser's words, which quote
        Error::new(
            Code::Protocol,
            format!("the rows of request {} are not as walcast writes them", ticket.id),
        )
    })?;
    Ok(Found::Request(Request { id: ticket.id, kind, sinks: sql::get(&row, 2)?, brings }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u128) -> Request {
        let brings = Brought::default();
        Request { id: Uuid::from_u128(id), kind: RequestKind::Chunk, sinks: Vec::new(), brings }
    }

    fn ticket(id: u128, xid: u32) -> Ticket {
        Ticket { id: Uuid::from_u128(id), xid, commit_lsn: Lsn::ZERO }
    }

    #[test]
    fn a_request_at_hand_answers_for_its_own_transaction_alone() {
        let own = OwnRequests::default();
        own.put(7, request(1));
        own.put(8, request(2));
        for copied in [ticket(1, 8), ticket(2, 7), ticket(3, 7)] {
            assert_eq!(own.take(copied), None, "{copied:?}");
        }
        assert_eq!(own.take(ticket(1, 7)).as_deref(), Some(&request(1)));
        assert_eq!(own.take(ticket(1, 7)), None, "once");
        assert_eq!(own.take(ticket(2, 8)).as_deref(), Some(&request(2)));
    }

    #[test]
    fn requests_that_nobody_takes_do_not_heap_up() {
        let own = OwnRequests::default();
        (1..=100).for_each(|id| own.put(id, request(id.into())));
        let kept = |id: u32| own.take(ticket(id.into(), id)).is_some();
        assert!(!kept(100 - OWN_REQUESTS_MAX as u32));
        assert!(kept(100));
        assert!(!kept(99), "what was sent before does not come any more");
    }
}
