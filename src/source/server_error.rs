//! What PostgreSQL says when it refuses, and the one table of what that means to us.

use bytes::Bytes;

use crate::error::{Error, Kind, Result};
use crate::source::frame::{take_text, take_u8};

/// An ErrorResponse or NoticeResponse. `Display` is its message, its detail and its SQLSTATE.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `FATAL`, `ERROR`, `WARNING`, `NOTICE`, …; never translated.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// One sentence, in the server's language.
    pub message: String,
    /// More of it; may be empty.
    pub detail: String,
    /// The server's own advice; may be empty.
    pub hint: String,
}

/// One row of the table: what a refusal means and what the operator can do.
struct Meaning {
    /// A SQLSTATE, or its first two letters for the whole class.
    code: &'static str,
    /// What the message or its detail must contain, where a code has several meanings; mostly empty.
    says: &'static str,
    kind: Kind,
    /// Nothing where the kind's general hint is best.
    hint: &'static str,
}

const fn meaning(code: &'static str, says: &'static str, kind: Kind, hint: &'static str) -> Meaning {
    Meaning { code, says, kind, hint }
}

const PUBLICATION_MISSING: &str = "the publication is missing, or younger than what the slot must read next: \
    create it, and see the README's section on resynchronising (`walcast init` makes both in the right order)";
const SLOT_LOST: &str = "the slot can deliver no more: drop it (SELECT pg_drop_replication_slot('<slot>')), run \
    `walcast init`, and see the README's section on resynchronising";
const SLOT_MISSING: &str = "run `walcast init` to make the slot; where one was there before, see the README's \
    section on resynchronising first";
const NO_REPLICATION_RIGHT: &str = "let the role replicate: ALTER ROLE <user> REPLICATION";
const WAL_LEVEL: &str =
    "ALTER SYSTEM SET wal_level = 'logical', then restart PostgreSQL (managed services have a switch for it)";
const PASSWORD: &str = "see `postgres.user` and `postgres.password` (POSTGRES_PASSWORD), or set the password anew: \
    ALTER ROLE <user> PASSWORD '…'";
const PG_HBA: &str = "see `postgres.user` and `postgres.sslmode`, and let it in by pg_hba.conf, for example: \
    host <db> <user> <address> scram-sha-256";
const WAL_SENDERS: &str = "raise max_wal_senders (or max_connections), or see who holds the connections: \
    SELECT pid, application_name, state FROM pg_stat_replication";

/// The first row that fits says it.
const MEANINGS: &[Meaning] = &[
    meaning("28P01", "", Kind::Setup, PASSWORD),
    meaning("28", "", Kind::Setup, PG_HBA),
    meaning("3D000", "", Kind::Setup, "see `postgres.db`, or make it: CREATE DATABASE <db>"),
    meaning("42501", "replication", Kind::Setup, NO_REPLICATION_RIGHT),
    meaning("42501", "walsender", Kind::Setup, NO_REPLICATION_RIGHT),
    meaning("42501", "WAL sender", Kind::Setup, NO_REPLICATION_RIGHT),
    meaning("42501", "", Kind::Setup, ""),
    meaning("42602", "", Kind::Config, "slot names are made of lower-case letters, digits and underscores"),
    meaning("42704", "publication", Kind::Resync, PUBLICATION_MISSING),
    meaning("42704", "replication slot", Kind::Resync, SLOT_MISSING),
    meaning(
        "42710",
        "replication slot",
        Kind::Setup,
        "the slot is there already: `walcast check` tells whose it is",
    ),
    meaning(
        "53400",
        "",
        Kind::Setup,
        "raise max_replication_slots, or drop slots that nobody reads any more",
    ),
    meaning("55000", "publication", Kind::Resync, PUBLICATION_MISSING),
    meaning("55000", "wal_level", Kind::Setup, WAL_LEVEL),
    meaning("55000", "no longer", Kind::Resync, SLOT_LOST),
    meaning("55000", "invalidated", Kind::Resync, SLOT_LOST),
    meaning("55000", "exceeded the maximum reserved size", Kind::Resync, SLOT_LOST),
    meaning("55000", "not created in this database", Kind::Setup, "see `postgres.db` and `postgres.slot`"),
    meaning(
        "55006",
        "",
        Kind::Unavailable,
        "another instance reads the slot: walcast goes on when it lets go",
    ),
    meaning("53300", "", Kind::Unavailable, WAL_SENDERS),
    meaning("57P04", "", Kind::Setup, "the database was dropped: see `postgres.db`"),
    meaning("58", "has already been removed", Kind::Resync, SLOT_LOST),
    meaning("08P01", "", Kind::Protocol, ""),
    // connection exception, insufficient resources, operator intervention, transaction rollback, system
    // error, internal error
    meaning("08", "", Kind::Unavailable, ""),
    meaning("53", "", Kind::Unavailable, ""),
    meaning("57", "", Kind::Unavailable, ""),
    meaning("40", "", Kind::Unavailable, ""),
    meaning("58", "", Kind::Unavailable, ""),
    meaning("XX", "", Kind::Unavailable, "see PostgreSQL's log"),
    meaning("", "", Kind::Setup, ""),
];

impl ServerError {
    /// Reads the body of an ErrorResponse or NoticeResponse.
    pub(crate) fn parse(mut body: Bytes) -> Result<ServerError> {
        let mut error = ServerError::default();
        loop {
            let field = match take_u8(&mut body)? {
                0 => return Ok(error),
                b'V' => &mut error.severity,
                b'C' => &mut error.code,
                b'M' => &mut error.message,
                b'D' => &mut error.detail,
                b'H' => &mut error.hint,
                _ => &mut String::new(),
            };
            *field = take_text(&mut body)?;
        }
    }

    /// Sorts it by what can be done about it.
    pub fn into_error(self) -> Error {
        let (kind, hint) = self.meaning();
        let error = Error::new(kind, format!("PostgreSQL: {self}"));
        match (hint, self.hint.as_str()) {
            ("", "") => error,
            ("", hint) | (hint, _) => error.hint(hint),
        }
    }

    fn meaning(&self) -> (Kind, &'static str) {
        let fits = |row: &&Meaning| {
            self.code.starts_with(row.code)
                && (self.message.contains(row.says) || self.detail.contains(row.says))
        };
        MEANINGS.iter().find(fits).map_or((Kind::Setup, ""), |row| (row.kind, row.hint))
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        ServerError {
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().unwrap_or_default().to_owned(),
            hint: error.hint().unwrap_or_default().to_owned(),
        }
    }
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        write!(f, " ({})", self.code)
    }
}
