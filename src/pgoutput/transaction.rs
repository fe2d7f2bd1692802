//! The ordinal rule: which [`Position`] each row change has.

use super::{DecodeError, Message};
use crate::lsn::{Lsn, Position};

/// Where the stream stands among transactions. Fed every message of a session in order.
///
/// The rule (version [`crate::lsn::ORDINAL_RULE`]): an event's name is the LSN of its transaction's commit
/// record and its 0-based index among that transaction's insert, update, delete and truncate messages. With
/// protocol 1 a transaction comes whole, once, after its commit and without what savepoints rolled back, so
/// each replay counts the same. A TRUNCATE of several tables is one message and one event. Logical messages,
/// relations, types and origins are not counted: whether they are sent differs between sessions.
#[derive(Debug, Default)]
pub struct Transaction {
    open: Option<Open>,
    last_end: Lsn,
}

#[derive(Debug)]
struct Open {
    commit_lsn: Lsn,
    next_ordinal: u64,
}

impl Transaction {
    /// Takes the next message. `Some` is the position of the row change or truncate that it is.
    #[inline]
    pub fn advance(&mut self, message: &Message<'_>) -> Result<Option<Position>, DecodeError> {
        match message {
            Message::Insert { .. }
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Truncate { .. } => self.count(message).map(Some),
            Message::Begin { final_lsn, .. } => self.begin(*final_lsn).map(|()| None),
            Message::Commit { commit_lsn, end_lsn, .. } => self.commit(*commit_lsn, *end_lsn).map(|()| None),
            Message::Origin { .. } | Message::Logical { transactional: true, .. } => {
                self.open(message).map(|_| None)
            }
            Message::Relation(_) | Message::Type { .. } | Message::Logical { .. } => Ok(None),
        }
    }

    /// Whether a Begin has come and its Commit has not.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    fn count(&mut self, message: &Message<'_>) -> Result<Position, DecodeError> {
        let open = self.open(message)?;
        let position = Position { commit_lsn: open.commit_lsn, ordinal: open.next_ordinal };
        open.next_ordinal += 1;
        Ok(position)
    }

    fn open(&mut self, message: &Message<'_>) -> Result<&mut Open, DecodeError> {
        self.open.as_mut().ok_or_else(|| DecodeError::OutsideTransaction { message: message.name() })
    }

    fn begin(&mut self, commit_lsn: Lsn) -> Result<(), DecodeError> {
        if let Some(Open { commit_lsn, .. }) = self.open {
            return Err(DecodeError::InsideTransaction { commit_lsn });
        }
        if commit_lsn < self.last_end {
            return Err(DecodeError::CommitOrder { last_end: self.last_end, found: commit_lsn });
        }
        self.open = Some(Open { commit_lsn, next_ordinal: 0 });
        Ok(())
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<(), DecodeError> {
        let Some(open) = self.open.take() else {
            return Err(DecodeError::OutsideTransaction { message: "commit" });
        };
        if commit_lsn != open.commit_lsn {
            return Err(DecodeError::OtherCommit { wanted: open.commit_lsn, found: commit_lsn });
        }
        if end_lsn <= commit_lsn {
            return Err(DecodeError::CommitEnd { commit_lsn, end_lsn });
        }
        self.last_end = end_lsn;
        Ok(())
    }
}
