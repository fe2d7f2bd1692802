//! What PostgreSQL says when it refuses, and the one table of what that means to us.

use bytes::Bytes;

use crate::error::{Error, Kind, Result};
use crate::source::frame::{take_text, take_u8};

/// An ErrorResponse or NoticeResponse. `Display` is its message, its detail and its SQLSTATE, without what can
/// be a row's value.
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
    "ALTER SYSTEM SET wal_level = logical, then restart PostgreSQL (managed services have a switch for it)";
const PASSWORD: &str = "see `postgres.user` and `postgres.password` (POSTGRES_PASSWORD), or set the password anew: \
    ALTER ROLE <user> PASSWORD '…'";
const BETWEEN: &str = "the server's certificate is another one than we were shown: somebody stands between walcast \
    and PostgreSQL, or a proxy ends the TLS; set `postgres.host` and `postgres.port` to PostgreSQL itself";
const PG_HBA: &str = "see `postgres.user` and `postgres.sslmode`, and let it in by pg_hba.conf, for example: \
    host <db> <user> <address> scram-sha-256";
const POOLER: &str = "a connection pooler (PgBouncer, Supavisor) answers, and not PostgreSQL: set `postgres.host` and \
    `postgres.port` to PostgreSQL itself";
const STANDBY: &str =
    "this server is a standby: walcast goes on when it is promoted; or set `postgres.host` to the primary";
const WAL_SENDERS: &str = "raise max_wal_senders (or max_connections), or see who holds the connections: \
    SELECT pid, application_name, state FROM pg_stat_replication";

/// The first row that fits says it.
const MEANINGS: &[Meaning] = &[
    meaning("25006", "", Kind::Unavailable, STANDBY),
    // the deadlines of an open transaction: it is rolled back, and can be tried again
    meaning("25P0", "", Kind::Unavailable, ""),
    meaning("28P01", "", Kind::Setup, PASSWORD),
    meaning("28", "channel binding", Kind::Setup, BETWEEN),
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
    meaning("08P01", "startup parameter", Kind::Setup, POOLER),
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
        // Class 22 (data exception) has the value in its message, class 23 (integrity constraint) in its detail.
        match self.code.get(..2) {
            Some("22") => f.write_str("a value is refused")?,
            Some("23") => f.write_str(&self.message)?,
            _ if self.detail.is_empty() => f.write_str(&self.message)?,
            _ => write!(f, "{}: {}", self.message, self.detail)?,
        }
        write!(f, " ({})", self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: &str, message: &str, detail: &str) -> Error {
        let (code, message, detail) = (code.to_owned(), message.to_owned(), detail.to_owned());
        ServerError { code, message, detail, ..Default::default() }.into_error()
    }

    /// What PostgreSQL 14 to 18 really say, and what it must mean.
    #[test]
    fn values_of_rows_are_never_shown() {
        for (code, message, detail) in [
            ("22P02", "invalid input syntax for type uuid: \"canary\"", ""),
            (
                "23503",
                "insert or update violates foreign key constraint",
                "Key (content_id)=(canary) is not present",
            ),
        ] {
            let error = said(code, message, detail);
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
            assert!(error.to_string().contains(code), "{error}");
        }
    }

    #[test]
    fn every_refusal_has_its_kind() {
        let invalidated = "This slot has been invalidated because it exceeded the maximum reserved size.";
        for (code, message, detail, kind) in [
            ("28P01", "password authentication failed for user \"walcast\"", "", Kind::Setup),
            (
                "28000",
                "no pg_hba.conf entry for host \"1.2.3.4\", user \"a\", database \"b\", no encryption",
                "",
                Kind::Setup,
            ),
            ("3D000", "database \"engagement\" does not exist", "", Kind::Setup),
            ("42501", "must be superuser or replication role to start walsender", "", Kind::Setup),
            (
                "42501",
                "permission denied to start WAL sender",
                "Only roles with the REPLICATION attribute may start a WAL sender process.",
                Kind::Setup,
            ),
            ("55000", "logical decoding requires wal_level >= logical", "", Kind::Setup),
            ("55000", "logical decoding requires \"wal_level\" >= \"logical\"", "", Kind::Setup),
            ("55000", "replication slot \"s\" was not created in this database", "", Kind::Setup),
            ("55000", "can no longer get changes from replication slot \"s\"", invalidated, Kind::Resync),
            ("55000", "cannot read from logical replication slot \"s\"", invalidated, Kind::Resync),
            (
                "55000",
                "can no longer access replication slot \"s\"",
                "This replication slot has been invalidated due to \"wal_removed\".",
                Kind::Resync,
            ),
            (
                "55000",
                "skipped loading publication \"p\"",
                "The publication does not exist at this point in the WAL.",
                Kind::Resync,
            ),
            ("42704", "publication \"p\" does not exist", "", Kind::Resync),
            ("42704", "replication slot \"s\" does not exist", "", Kind::Resync),
            ("42704", "type \"t\" does not exist", "", Kind::Setup),
            (
                "58P01",
                "requested WAL segment 000000010000000000000003 has already been removed",
                "",
                Kind::Resync,
            ),
            ("58030", "could not read file", "", Kind::Unavailable),
            ("55006", "replication slot \"s\" is active for PID 7", "", Kind::Unavailable),
            (
                "53300",
                "number of requested standby connections exceeds max_wal_senders (currently 10)",
                "",
                Kind::Unavailable,
            ),
            ("25P03", "terminating connection due to idle-in-transaction timeout", "", Kind::Unavailable),
            ("53400", "all replication slots are in use", "", Kind::Setup),
            ("57P01", "terminating connection due to administrator command", "", Kind::Unavailable),
            ("57P03", "the database system is starting up", "", Kind::Unavailable),
            ("57P04", "database was dropped", "", Kind::Setup),
            ("40001", "could not serialize access", "", Kind::Unavailable),
            ("XX000", "cache lookup failed", "", Kind::Unavailable),
            ("08P01", "invalid message format", "", Kind::Protocol),
            // PgBouncer
            ("08P01", "unsupported startup parameter: replication", "", Kind::Setup),
            ("", "", "", Kind::Setup),
        ] {
            assert_eq!(said(code, message, detail).kind(), kind, "{code} {message}");
        }
    }

    #[test]
    fn the_hint_is_the_statement_that_mends_it() {
        assert!(
            said("55000", "logical decoding requires wal_level >= logical", "")
                .advice()
                .starts_with("ALTER SYSTEM SET wal_level")
        );
        assert!(said("42501", "permission denied to start WAL sender", "").advice().contains("ALTER ROLE"));
        let of_server =
            ServerError { code: "42501".into(), hint: "ask the owner".into(), ..Default::default() };
        assert_eq!(of_server.into_error().advice(), "ask the owner", "where we know nothing better");
    }

    #[test]
    fn fields_are_read_whatever_their_order_and_others_skipped() {
        let body = b"Sfehler\0VERROR\0C42704\0Mno\xffne\0Ddetail\0Hhint\0Ffile.c\0L12\0\0";
        let error = ServerError::parse(Bytes::from_static(body)).unwrap_or_default();
        let wanted = ["ERROR", "42704", "no\u{fffd}ne", "detail", "hint"];
        assert_eq!([&error.severity, &error.code, &error.message, &error.detail, &error.hint], wanted);
        for length in 0..body.len() {
            let cut = Bytes::from_static(body).slice(..length);
            assert_eq!(
                ServerError::parse(cut).err().map(|error| error.kind()),
                Some(Kind::Protocol),
                "{length}"
            );
        }
    }
}
