//! What can be wrong with the stream: bytes, values, and the order of messages.

use std::fmt;

use crate::lsn::Lsn;

/// Why something could not be decoded. Names places, lengths and types, never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not a message of protocol 1. The stream cannot be read on.
    #[error("{message} message: {field} at byte {offset}: {found}")]
    Message {
        /// The message being read, "unknown" before its tag is.
        message: &'static str,
        /// What was being read.
        field: &'static str,
        /// Where it begins, in bytes from the message's tag.
        offset: usize,
        /// What stands there instead.
        found: Found,
    },

    /// A value is not what the reader of its column wants. Concerns this one row only.
    #[error("column {column}: {wanted} is wanted, found {found}")]
    Value {
        /// The column's name.
        column: String,
        /// The types that would be right.
        wanted: &'static str,
        /// What there is instead.
        found: Found,
    },

    /// A row change came before the Relation message that describes its table.
    #[error("a row of relation {relation_id}, which no Relation message has described")]
    UnknownRelation {
        /// The relation's OID.
        relation_id: u32,
    },

    /// A row and its Relation message do not have the same columns.
    #[error("a row of {relation} with {found} columns, its Relation message has {wanted}")]
    ColumnCount {
        /// Schema and name of the table.
        relation: String,
        /// Columns of the Relation message.
        wanted: usize,
        /// Columns of the row.
        found: usize,
    },

    /// A message that belongs into a transaction came outside of one.
    #[error("{message} message outside a transaction")]
    OutsideTransaction {
        /// The message.
        message: &'static str,
    },

    /// A second Begin before the Commit of the first.
    #[error("begin message inside the transaction that commits at {commit_lsn}")]
    InsideTransaction {
        /// The open transaction's commit.
        commit_lsn: Lsn,
    },

    /// A Commit that is not the one its Begin announced.
    #[error("commit message at {found} ends the transaction that commits at {wanted}")]
    OtherCommit {
        /// What Begin said.
        wanted: Lsn,
        /// What Commit says.
        found: Lsn,
    },

    /// A Commit that ends before it begins: nothing at or after its end may be confirmed.
    #[error("commit message at {commit_lsn} with its end at {end_lsn}")]
    CommitEnd {
        /// Where the commit record begins.
        commit_lsn: Lsn,
        /// Where it is said to end.
        end_lsn: Lsn,
    },

    /// Transactions that do not come in the order of their commits.
    #[error(
        "begin message of a transaction that commits at {found}, before the end of the last one at {last_end}"
    )]
    CommitOrder {
        /// Where the last transaction ended.
        last_end: Lsn,
        /// Where this one says it commits.
        found: Lsn,
    },
}

/// The shape of what was found where something else was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Fewer bytes than the field has.
    Short {
        /// Bytes that the field has, as far as known.
        wanted: usize,
        /// Bytes that are left in the message.
        left: usize,
    },
    /// Bytes after the last field.
    LeftOver(usize),
    /// A tag, kind or version that the protocol does not have.
    Byte(u8),
    /// Text without the zero byte that ends it.
    Unended,
    /// Text of so many bytes that is not UTF-8.
    NotUtf8(usize),
    /// A column whose type has this OID; 0 is a domain over a built-in type that has no reader.
    Type(u32),
    /// So many bytes of text, of a type that has a binary form.
    Text(usize),
    /// So many bytes of binary form, which the type does not have.
    Binary(usize),
    /// A number beyond the wanted type.
    OutOfRange,
    /// A number with a fraction.
    NotWhole,
    /// What is no number, or has no end.
    NotFinite,
    /// An unchanged TOAST value, which the stream leaves out.
    Unchanged,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Found::Short { wanted, left } => write!(f, "{wanted} bytes are wanted, {left} are left"),
            Found::LeftOver(bytes) => write!(f, "{bytes} bytes too many"),
            Found::Byte(byte) => write!(f, "the byte {byte:#04x} is not of protocol 1"),
            Found::Unended => f.write_str("text without the zero byte that ends it"),
            Found::NotUtf8(bytes) => write!(f, "{bytes} bytes that are not UTF-8"),
            Found::Type(0) => f.write_str("a domain over another type"),
            Found::Type(oid) => write!(f, "the type with OID {oid}"),
            Found::Text(bytes) => write!(f, "a text form of {bytes} bytes"),
            Found::Binary(bytes) => write!(f, "a binary form of {bytes} bytes"),
            Found::OutOfRange => f.write_str("a number out of its range"),
            Found::NotWhole => f.write_str("a number with a fraction"),
            Found::NotFinite => f.write_str("NaN or an infinity"),
            Found::Unchanged => f.write_str("an unchanged TOAST value, which the stream leaves out"),
        }
    }
}
