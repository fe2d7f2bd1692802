//! The messages of PostgreSQL's `pgoutput` plugin, protocol version 1: bytes in, changes at positions out.
//!
//! ```text
//! payload of one XLogData frame
//!   └ Message::parse      every byte checked once, nothing copied
//!       ├ Relation, Type  → Relations      what the columns of a row are
//!       ├ Begin … Commit  → Transaction    the Position of each change
//!       └ Insert, Update, Delete           Tuple → Value → i64, &str, uuid, …
//! ```
//!
//! Invariants:
//! - Input is never trusted: bytes that break the protocol are a [`DecodeError`], never a panic, and never
//!   taken for something else. Nothing may follow a message in its payload.
//! - No allocation a row: a [`Tuple`] and its [`Value`]s are slices of the payload. Only a [`Relation`],
//!   which arrives once a table and session, is owned.
//! - No row value is ever part of an error or of `Debug` output.
//!
//! Deliberately absent: IO, clocks, threads; streaming of open transactions (protocol 2) and two-phase commit
//! (protocol 3), whose messages are refused by name.
//!
//! The session must have `client_encoding = UTF8`, and `DateStyle = ISO` where values may come as text.
//!
//! Format: PostgreSQL manual, "Logical Replication Message Formats"; the tests read recordings of versions 14
//! to 18.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod cursor;
mod error;
mod message;
mod numeric;
mod relation;
pub mod timestamp;
mod transaction;
mod tuple;
mod value;

pub use error::{DecodeError, Found};
pub use message::{Message, OldKind, OldTuple, RelationIds, TruncateOptions};
pub use numeric::Numeric;
pub use relation::{Column, Relation, Relations, ReplicaIdentity};
pub use timestamp::Timestamp;
pub use transaction::Transaction;
pub use tuple::{Columns, Tuple};
pub use value::{Value, oid};
