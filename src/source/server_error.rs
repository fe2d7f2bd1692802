//! What PostgreSQL says when it refuses, and the one table of what that means to us.

use bytes::Bytes;

use crate::error::{Code, Error, Result, printable};
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
    /// The file of PostgreSQL's source that reports it, such as `pgoutput.c`.
    pub file: String,
}

/// What was asked of the server when it refused. One SQLSTATE answers many questions, and its text is in the server's
/// language: only the question tells what the refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To take our startup message, and to say how we are to prove who we are.
    Login,
    /// To take a message of SCRAM.
    Scram,
    /// To open the session of somebody whom it has let in.
    Session,
    /// The same, for replication.
    ReplicationSession,
    /// IDENTIFY_SYSTEM, TIMELINE_HISTORY.
    Identity,
    /// CREATE_REPLICATION_SLOT.
    CreateSlot,
    /// START_REPLICATION.
    StartReplication,
    /// The next message of a running stream.
    Stream,
    /// A function of SQL on a slot that is there.
    UseSlot,
    /// Any other statement.
    Statement,
}

use Asked::{
    CreateSlot, Identity, Login, ReplicationSession, Scram, Session, StartReplication, Stream, UseSlot,
};

/// Whom a role without the right to replicate meets.
const REPLICATION: &[Asked] = &[ReplicationSession, Identity, CreateSlot, StartReplication, Stream, UseSlot];

/// One row of the table: what a refusal means and what the operator can do.
struct Meaning {
    /// A SQLSTATE, or its first two letters for the whole class.
    code: &'static str,
    /// Of which questions, where a code has several meanings; mostly empty, for all.
    asked: &'static [Asked],
    means: Code,
    /// Nothing where the kind's general hint is best.
    hint: &'static str,
}

const fn meaning(code: &'static str, asked: &'static [Asked], means: Code, hint: &'static str) -> Meaning {
    Meaning { code, asked, means, hint }
}

const PUBLICATION_MISSING: &str = "the publication is missing, or younger than what the slot must read next: \
    `walcast init` makes both in the right order; docs/operate/resync.md has the steps before it";
const SLOT_LOST: &str = "the slot can deliver no more: \"Make a new slot\" in docs/operate/resync.md has \
    the steps";
const SLOT_MISSING: &str = "run `walcast init` to make the slot; where one was there before, see \
    docs/operate/resync.md first";
const NO_REPLICATION_RIGHT: &str = "let the role replicate: ALTER ROLE <user> REPLICATION (on Amazon RDS and Aurora: \
    GRANT rds_replication TO <user>)";
pub(super) const WAL_LEVEL: &str =
    "ALTER SYSTEM SET wal_level = logical, then restart PostgreSQL (managed services have a switch for it)";
const PASSWORD: &str = "see `postgres.user` and `postgres.password` (POSTGRES_PASSWORD), or set the password anew: \
    ALTER ROLE <user> PASSWORD '…'";
const BETWEEN: &str = "the server's certificate is another one than we were shown: somebody stands between walcast \
    and PostgreSQL, or a proxy ends the TLS; set `postgres.host` and `postgres.port` to PostgreSQL itself";
const PG_HBA: &str = "see `postgres.user` and `postgres.sslmode`, and let it in by pg_hba.conf, for example: \
    host <db> <user> <address> scram-sha-256";
pub(super) const POOLER: &str = "a connection pooler (PgBouncer, Supavisor) answers, and not PostgreSQL: set `postgres.host` and \
    `postgres.port` to PostgreSQL itself";
const READ_ONLY: &str = "a standby takes no writes: walcast goes on when it is promoted";
const CONNECT: &str = "let the role in: GRANT CONNECT ON DATABASE <db> TO <user>";
const STREAM_CEASED: &str = "the next start says whether the slot can still deliver";
const WAL_SENDERS: &str = "raise max_wal_senders (or max_connections), or see who holds the connections: \
    SELECT pid, application_name, state FROM pg_stat_replication";

/// The first row that fits says it. Where the catalog knows more (of a slot that cannot be read above all), whoever asked
/// looks there.
const MEANINGS: &[Meaning] = &[
    meaning("25006", &[], Code::PostgresStandby, READ_ONLY),
    // the deadlines of an open transaction: it is rolled back, and can be tried again
    meaning("25P0", &[], Code::Unavailable, ""),
    meaning("28P01", &[], Code::PostgresLogin, PASSWORD),
    // PostgreSQL refuses a wrong password with the code above: this is of the channel binding
    meaning("28", &[Scram], Code::PostgresLogin, BETWEEN),
    meaning("28", &[], Code::PostgresLogin, PG_HBA),
    meaning("3D000", &[], Code::DatabaseMissing, "see `postgres.db`, or make it: CREATE DATABASE <db>"),
    meaning("42501", REPLICATION, Code::PostgresRights, NO_REPLICATION_RIGHT),
    meaning("42501", &[Session], Code::PostgresRights, CONNECT),
    meaning("42501", &[], Code::PostgresRights, ""),
    meaning(
        "42602",
        &[],
        Code::Configuration,
        "slot names are made of lower-case letters, digits and underscores",
    ),
    meaning("42704", &[Stream], Code::PublicationChanged, PUBLICATION_MISSING),
    meaning("42704", &[StartReplication, UseSlot], Code::SlotGone, SLOT_MISSING),
    meaning(
        "42710",
        &[CreateSlot],
        Code::SlotUnfit,
        "the slot is there already: `walcast check` tells whose it is",
    ),
    meaning(
        "53400",
        &[],
        Code::SlotsExhausted,
        "raise max_replication_slots, or drop slots that nobody reads any more",
    ),
    meaning("55000", &[CreateSlot], Code::WalLevel, WAL_LEVEL),
    // a server that shuts down while it waits for a standby says this, too
    meaning("55000", &[Stream], Code::Unavailable, STREAM_CEASED),
    meaning("22023", &[Stream], Code::Unavailable, STREAM_CEASED),
    meaning("55006", &[], Code::SlotBusy, "another instance reads the slot: walcast goes on when it lets go"),
    meaning("53300", &[], Code::ConnectionsExhausted, WAL_SENDERS),
    meaning("57P04", &[], Code::DatabaseMissing, "the database was dropped: see `postgres.db`"),
    // a file is not there: of the WAL, or of what the slot has put by
    meaning("58P01", &[StartReplication, Stream], Code::SlotInvalidated, SLOT_LOST),
    // no PostgreSQL finds fault with our startup message
    meaning("08P01", &[Login], Code::Pooler, POOLER),
    meaning("08P01", &[], Code::Protocol, ""),
    // connection exception, insufficient resources, operator intervention, transaction rollback, system
    // error, internal error
    meaning("08", &[], Code::PostgresUnreachable, ""),
    meaning("53", &[], Code::Unavailable, ""),
    meaning("57", &[], Code::PostgresUnreachable, ""),
    meaning("40", &[], Code::Unavailable, ""),
    meaning("58", &[], Code::Unavailable, ""),
    meaning("XX", &[], Code::Unavailable, "see PostgreSQL's log"),
    meaning("", &[], Code::Prerequisite, ""),
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
                b'F' => &mut error.file,
                _ => &mut String::new(),
            };
            *field = take_text(&mut body)?;
        }
    }

    /// Sorts it by what was asked, and what can be done about it.
    pub fn into_error(self, asked: Asked) -> Error {
        let (code, hint) = self.meaning(asked);
        let error = Error::new(code, format!("PostgreSQL: {self}"));
        match (hint, self.hint) {
            ("", theirs) if theirs.is_empty() => error,
            ("", theirs) => error.hint(printable(theirs)),
            (ours, _) => error.hint(ours),
        }
    }

    fn meaning(&self, asked: Asked) -> (Code, &'static str) {
        let fits = |row: &&Meaning| {
            self.code.starts_with(row.code) && (row.asked.is_empty() || row.asked.contains(&asked))
        };
        MEANINGS.iter().find(fits).map_or((Code::Prerequisite, ""), |row| (row.means, row.hint))
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
            file: error.file().unwrap_or_default().to_owned(),
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
    use crate::error::Kind;

    const ALL: [Asked; 10] = [
        Login,
        Scram,
        Session,
        ReplicationSession,
        Identity,
        CreateSlot,
        StartReplication,
        Stream,
        UseSlot,
        Asked::Statement,
    ];

    fn said(code: &str, asked: Asked) -> Error {
        // in no language that anybody could be tempted to read
        let (code, message, detail) = (code.to_owned(), "ἄλφα".to_owned(), "βῆτα".to_owned());
        ServerError { code, message, detail, ..Default::default() }.into_error(asked)
    }

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
            let (code, message, detail) = (code.to_owned(), message.to_owned(), detail.to_owned());
            let error = ServerError { code: code.clone(), message, detail, ..Default::default() }
                .into_error(Asked::Statement);
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
            assert!(error.to_string().contains(&code), "{error}");
        }
    }

    #[test]
    fn every_refusal_has_its_code() {
        for (code, means) in [
            ("28P01", Code::PostgresLogin),
            ("28000", Code::PostgresLogin),
            ("3D000", Code::DatabaseMissing),
            ("42501", Code::PostgresRights),
            ("53400", Code::SlotsExhausted),
            ("57P04", Code::DatabaseMissing),
            ("", Code::Prerequisite),
            ("42602", Code::Configuration),
            ("25006", Code::PostgresStandby),
            ("25P03", Code::Unavailable),
            ("40001", Code::Unavailable),
            ("53300", Code::ConnectionsExhausted),
            ("55006", Code::SlotBusy),
            ("57P01", Code::PostgresUnreachable),
            ("57P03", Code::PostgresUnreachable),
            ("58030", Code::Unavailable),
            ("XX000", Code::Unavailable),
        ] {
            for asked in ALL {
                assert_eq!(said(code, asked).code(), means, "{code} {asked:?}");
            }
        }
    }

    /// What PostgreSQL 14 to 18 say to each question, and what it must mean there.
    #[test]
    fn a_code_of_several_meanings_means_what_was_asked() {
        for (code, asked, means, hint) in [
            // SCRAM channel binding check failed; SCRAM channel binding negotiation error
            ("28000", Scram, Code::PostgresLogin, BETWEEN),
            // no pg_hba.conf entry for host …; role … is not permitted to log in
            ("28000", Login, Code::PostgresLogin, PG_HBA),
            ("28000", Session, Code::PostgresLogin, PG_HBA),
            // permission denied to start WAL sender; permission denied to use replication slots
            ("42501", ReplicationSession, Code::PostgresRights, NO_REPLICATION_RIGHT),
            ("42501", CreateSlot, Code::PostgresRights, NO_REPLICATION_RIGHT),
            ("42501", UseSlot, Code::PostgresRights, NO_REPLICATION_RIGHT),
            // permission denied for database …
            ("42501", Session, Code::PostgresRights, CONNECT),
            // replication slot … does not exist
            ("42704", StartReplication, Code::SlotGone, SLOT_MISSING),
            ("42704", UseSlot, Code::SlotGone, SLOT_MISSING),
            // publication … does not exist
            ("42704", Stream, Code::PublicationChanged, PUBLICATION_MISSING),
            // type … does not exist
            ("42704", Asked::Statement, Code::Prerequisite, Kind::Setup.policy().hint),
            // logical decoding requires "wal_level" >= "logical"
            ("55000", CreateSlot, Code::WalLevel, WAL_LEVEL),
            // the same; slot of another database; slot invalidated: the catalog tells
            ("55000", StartReplication, Code::Prerequisite, Kind::Setup.policy().hint),
            // replication slot … does not have active_pid, from a server that shuts down
            ("55000", Stream, Code::Unavailable, STREAM_CEASED),
            ("22023", Stream, Code::Unavailable, STREAM_CEASED),
            // requested WAL segment … has already been removed
            ("58P01", Stream, Code::SlotInvalidated, SLOT_LOST),
            ("58P01", Asked::Statement, Code::Unavailable, Kind::Unavailable.policy().hint),
            // PgBouncer: unsupported startup parameter: replication
            ("08P01", Login, Code::Pooler, POOLER),
            ("08P01", Asked::Statement, Code::Protocol, Kind::Protocol.policy().hint),
        ] {
            let error = said(code, asked);
            assert_eq!((error.code(), error.advice()), (means, hint), "{code} {asked:?}");
        }
    }

    #[test]
    fn where_we_know_nothing_better_the_servers_own_hint_counts() {
        let refusal =
            ServerError { code: "42501".into(), hint: "ask the owner".into(), ..Default::default() };
        assert_eq!(refusal.into_error(Asked::Statement).advice(), "ask the owner");
    }

    #[test]
    fn fields_are_read_whatever_their_order_and_others_skipped() {
        let body = b"Sfehler\0VERROR\0C42704\0Mno\xffne\0Ddetail\0Hhint\0Ffile.c\0L12\0\0";
        let error = ServerError::parse(Bytes::from_static(body)).unwrap_or_default();
        let wanted = ["ERROR", "42704", "no\u{fffd}ne", "detail", "hint", "file.c"];
        let read = [&error.severity, &error.code, &error.message, &error.detail, &error.hint, &error.file];
        assert_eq!(read, wanted);
        for length in 0..body.len() {
            let cut = Bytes::from_static(body).slice(..length);
            assert_eq!(
                ServerError::parse(cut).err().map(|error| error.code()),
                Some(Code::Protocol),
                "{length}"
            );
        }
    }
}
