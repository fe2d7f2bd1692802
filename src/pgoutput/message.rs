//! One message of the stream.

use std::fmt;

use super::cursor::Cursor;
use super::{DecodeError, Relation, Tuple};
use crate::lsn::Lsn;

/// A message, read from the payload of one XLogData frame. Borrows everything but relations from there.
///
/// Timestamps are microseconds since 2000-01-01 UTC, as on the wire;
/// [`timestamp::unix_micros`](super::timestamp::unix_micros) converts.
#[derive(Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A committed transaction begins.
    Begin {
        /// Where its commit record begins.
        final_lsn: Lsn,
        /// When it was committed.
        commit_ts: i64,
        /// Its transaction id.
        xid: u32,
    },
    /// The transaction is whole.
    Commit {
        /// Where the commit record begins: the `final_lsn` of Begin.
        commit_lsn: Lsn,
        /// The first byte after the commit record: what may be confirmed once all is held.
        end_lsn: Lsn,
        /// When it was committed.
        commit_ts: i64,
    },
    /// The transaction was itself replicated from elsewhere.
    Origin {
        /// Its commit there.
        commit_lsn: Lsn,
        /// The replication origin's name.
        name: &'a str,
    },
    /// A table's columns: before its first row in a session, and again after each change.
    Relation(Relation),
    /// A type that is not built in, before the relation that uses it.
    Type {
        /// The type's OID; of a domain, the domain's own.
        id: u32,
        /// Schema of the type, or of a domain's base type. Empty is `pg_catalog`.
        namespace: &'a str,
        /// Name of the type, or of a domain's base type.
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// The table's OID.
        relation_id: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// The table's OID.
        relation_id: u32,
        /// The row before, when its replica identity is FULL or its key changed.
        old: Option<OldTuple<'a>>,
        /// The row after. Large values that did not change are left out.
        new: Tuple<'a>,
    },
    /// A deleted row.
    Delete {
        /// The table's OID.
        relation_id: u32,
        /// The row before.
        old: OldTuple<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// How.
        options: TruncateOptions,
        /// The tables' OIDs: all of the publication's that one statement emptied.
        relations: RelationIds<'a>,
    },
    /// A message by `pg_logical_emit_message`.
    Logical {
        /// Whether it belongs to the transaction around it. Others come at once and belong to none.
        transactional: bool,
        /// The message's own place.
        lsn: Lsn,
        /// Who is meant.
        prefix: &'a str,
        /// What is said.
        content: &'a [u8],
    },
}

impl<'a> Message<'a> {
    /// Reads the one message that `payload` is.
    #[inline]
    pub fn parse(payload: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut cursor = Cursor::new("unknown", 0, payload);
        let tag = cursor.u8("tag")?;
        cursor.rename(name_of(tag));
        let message = match tag {
            b'I' => insert(&mut cursor),
            b'U' => update(&mut cursor),
            b'D' => delete(&mut cursor),
            b'B' => begin(&mut cursor),
            b'C' => commit(&mut cursor),
            b'M' => logical(&mut cursor),
            b'R' => Relation::read(&mut cursor).map(Message::Relation),
            b'Y' => type_name(&mut cursor),
            b'T' => truncate(&mut cursor),
            b'O' => origin(&mut cursor),
            _ => Err(cursor.wrong_byte("tag", tag)),
        }?;
        cursor.end()?;
        Ok(message)
    }

    /// The message's name in the manual, in small letters.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Begin { .. } => "begin",
            Message::Commit { .. } => "commit",
            Message::Origin { .. } => "origin",
            Message::Relation(_) => "relation",
            Message::Type { .. } => "type",
            Message::Insert { .. } => "insert",
            Message::Update { .. } => "update",
            Message::Delete { .. } => "delete",
            Message::Truncate { .. } => "truncate",
            Message::Logical { .. } => "logical",
        }
    }
}

/// The name alone: a message holds values of rows.
impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(self.name()).finish_non_exhaustive()
    }
}

/// A row as it was before an update or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldTuple<'a> {
    /// How much of the row there is.
    pub kind: OldKind,
    /// All columns of the table; those that `kind` leaves out are null.
    pub tuple: Tuple<'a>,
}

/// How much of an old row the stream tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldKind {
    /// The columns of the replica identity (`K`).
    Key,
    /// All columns, large values too (`O`).
    Full,
}

/// The options of TRUNCATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TruncateOptions(pub u8);

impl TruncateOptions {
    /// CASCADE: tables with foreign keys to these were emptied too.
    pub fn cascade(self) -> bool {
        self.0 & 1 != 0
    }

    /// RESTART IDENTITY: sequences start again.
    pub fn restart_identity(self) -> bool {
        self.0 & 2 != 0
    }
}

/// The OIDs of the tables that one TRUNCATE emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationIds<'a>(&'a [[u8; 4]]);

impl<'a> RelationIds<'a> {
    /// The OIDs in the stream's order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.0.iter().map(|bytes| u32::from_be_bytes(*bytes))
    }
}

/// For errors: what a message with this tag is called.
fn name_of(tag: u8) -> &'static str {
    match tag {
        b'B' => "begin",
        b'C' => "commit",
        b'O' => "origin",
        b'R' => "relation",
        b'Y' => "type",
        b'I' => "insert",
        b'U' => "update",
        b'D' => "delete",
        b'T' => "truncate",
        b'M' => "logical",
        b'S' | b'E' | b'c' | b'A' => "streaming (protocol 2)",
        b'b' | b'P' | b'K' | b'r' | b'p' => "two-phase (protocol 3)",
        _ => "unknown",
    }
}

fn begin<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Begin {
        final_lsn: cursor.lsn("final LSN")?,
        commit_ts: cursor.i64("commit time")?,
        xid: cursor.u32("xid")?,
    })
}

fn commit<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    let flags = cursor.u8("flags")?;
    if flags != 0 {
        // None is defined: one that is set says something that we do not understand about a commit.
        return Err(cursor.wrong_byte("flags", flags));
    }
    Ok(Message::Commit {
        commit_lsn: cursor.lsn("commit LSN")?,
        end_lsn: cursor.lsn("end LSN")?,
        commit_ts: cursor.i64("commit time")?,
    })
}

fn origin<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Origin { commit_lsn: cursor.lsn("commit LSN")?, name: cursor.text("name")? })
}

fn type_name<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Type {
        id: cursor.u32("OID")?,
        namespace: cursor.text("schema")?,
        name: cursor.text("name")?,
    })
}

#[inline]
fn insert<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    let relation_id = cursor.u32("relation")?;
    match cursor.u8("tuple kind")? {
        b'N' => Ok(Message::Insert { relation_id, new: Tuple::read(cursor)? }),
        other => Err(cursor.wrong_byte("tuple kind", other)),
    }
}

fn update<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    let relation_id = cursor.u32("relation")?;
    let mut kind = cursor.u8("tuple kind")?;
    let old = match old_kind(kind) {
        None => None,
        Some(old) => {
            let tuple = Tuple::read(cursor)?;
            kind = cursor.u8("new tuple kind")?;
            Some(OldTuple { kind: old, tuple })
        }
    };
    match kind {
        b'N' => Ok(Message::Update { relation_id, old, new: Tuple::read(cursor)? }),
        other => Err(cursor.wrong_byte("tuple kind", other)),
    }
}

fn delete<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    let relation_id = cursor.u32("relation")?;
    let kind = cursor.u8("tuple kind")?;
    match old_kind(kind) {
        Some(kind) => {
            Ok(Message::Delete { relation_id, old: OldTuple { kind, tuple: Tuple::read(cursor)? } })
        }
        None => Err(cursor.wrong_byte("tuple kind", kind)),
    }
}

fn old_kind(byte: u8) -> Option<OldKind> {
    match byte {
        b'K' => Some(OldKind::Key),
        b'O' => Some(OldKind::Full),
        _ => None,
    }
}

fn truncate<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    let count = cursor.u32("relation count")? as usize;
    let options = TruncateOptions(cursor.u8("options")?);
    let bytes = cursor.bytes(count.saturating_mul(4), "relations")?;
    Ok(Message::Truncate { options, relations: RelationIds(bytes.as_chunks().0) })
}

fn logical<'a>(cursor: &mut Cursor<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Logical {
        transactional: cursor.u8("flags")? & 1 != 0,
        lsn: cursor.lsn("LSN")?,
        prefix: cursor.text("prefix")?,
        content: cursor.counted("content")?,
    })
}
