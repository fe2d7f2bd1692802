//! The slot as it is now: who reads it, how much WAL it keeps and may keep, and who else makes it keep some.

use std::time::Duration;

use tokio_postgres::{Client, Row};

use super::server::Server;
use crate::error::{Code, Result};
use crate::finding::Finding;
use crate::size::size;
use crate::source::PostgresConfig;
use crate::source::quote::{identifier, literal};
use crate::source::sql::{self, get};

/// WAL that a slot nobody reads keeps, above which it is told.
const UNREAD_BYTES_MAX: i64 = 64 << 20;
/// A slot with less than this before it is lost is in danger.
pub(super) const SAFE_BYTES_MIN: i64 = 256 << 20;

/// One row of `sql/check_slot.sql`.
pub(super) struct Slot {
    name: String,
    active_pid: Option<i32>,
    reader: Option<String>,
    wal_status: String,
    safe_bytes: Option<i64>,
    retained_bytes: Option<i64>,
    failover: Option<bool>,
    two_phase: bool,
    spill_bytes: Option<i64>,
    /// How often decoding has outgrown its memory; from version 19.
    memory_exceeded: Option<i64>,
    /// What psql takes to send a replication command.
    replication_place: String,
}

impl Slot {
    pub(super) async fn ask(client: &Client, config: &PostgresConfig) -> Result<Option<Slot>> {
        let statement = include_str!("../../../sql/check_slot.sql");
        let row = client.query_opt(statement, &[&config.slot]).await.map_err(sql::error)?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Slot {
            name: config.slot.clone(),
            active_pid: get(&row, 0)?,
            reader: get(&row, 1)?,
            wal_status: get(&row, 2)?,
            safe_bytes: get(&row, 3)?,
            retained_bytes: get(&row, 4)?,
            failover: get(&row, 5)?,
            two_phase: get(&row, 6)?,
            spill_bytes: get(&row, 7)?,
            memory_exceeded: get(&row, 8)?,
            replication_place: format!(
                "host={} port={} dbname={} user={} replication=database",
                config.host, config.port, config.db, config.user
            ),
        }))
    }

    pub(super) fn findings(&self, server: &Server) -> Vec<Finding> {
        let mut findings = vec![self.reading(), self.wal()];
        findings.extend(self.two_phase());
        findings.push(self.failover(server));
        findings
    }

    /// Whether standbys keep it too.
    pub(super) fn fails_over(&self) -> bool {
        self.failover == Some(true)
    }

    fn reading(&self) -> Finding {
        let (id, subject) = ("postgres.slot_reader", format!("reader of slot {}", self.name));
        let kept = self.retained_bytes.unwrap_or_default();
        match self.active_pid {
            Some(pid) => {
                let reader = self.reader.as_deref().filter(|reader| !reader.is_empty()).unwrap_or("somebody");
                Finding::ok(id, subject, format!("{reader}, pid {pid}"))
            }
            None if kept > UNREAD_BYTES_MAX => {
                let message = format!(
                    "nobody: PostgreSQL keeps {} of WAL for it, and more as it comes",
                    size(kept.max(0) as u64)
                );
                Finding::warn(id, subject, message, "walcast run")
            }
            None => Finding::ok(id, subject, "nobody at the moment"),
        }
    }

    fn wal(&self) -> Finding {
        let (id, subject) = ("postgres.slot_wal", format!("WAL of slot {}", self.name));
        let kept = format!(
            "{} kept, {}",
            size(self.retained_bytes.unwrap_or_default().max(0) as u64),
            self.wal_status
        );
        let spilled = self.spill_bytes.filter(|bytes| *bytes > 0);
        let spilled = spilled.map(|bytes| {
            let times =
                self.memory_exceeded.map(|times| format!("{times} times beyond logical_decoding_work_mem, "));
            let times = times.unwrap_or_default();
            format!(", {times}{} of large transactions spilled to disk so far", size(bytes.max(0) as u64))
        });
        let spilled = spilled.unwrap_or_default();
        let keep_more = "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();";
        match self.safe_bytes {
            Some(left) if left < SAFE_BYTES_MIN && self.wal_status != "lost" => {
                let message = format!(
                    "{kept}: it is lost after {} more; see that walcast reads it",
                    size(left.max(0) as u64)
                );
                Finding::warn(id, subject, message, keep_more)
            }
            Some(left) => Finding::ok(
                id,
                subject,
                format!("{kept}, {} before it is lost{spilled}", size(left.max(0) as u64)),
            ),
            None => Finding::ok(id, subject, format!("{kept}{spilled}")),
        }
    }

    fn two_phase(&self) -> Option<Finding> {
        self.two_phase.then(|| {
            Finding::warn(
                "postgres.slot_two_phase",
                format!("two_phase of slot {}", self.name),
                "is on, which walcast does not use: it was not made by walcast as it is now",
                format!("SELECT pg_drop_replication_slot({});", literal(&self.name)),
            )
        })
    }

    /// Whether the slot is still there after a failover.
    fn failover(&self, server: &Server) -> Finding {
        let (id, subject) = ("postgres.failover", format!("failover of slot {}", self.name));
        let standbys = format!("{} standby(s)", server.standbys);
        match (server.standbys, self.failover) {
            (0, _) => Finding::ok(id, subject, "this server has no standby"),
            (_, None) => Finding::warn(
                id,
                subject,
                format!(
                    "{standbys}, and before PostgreSQL 17 a failover loses the slot, unless the extension pg_failover_slots keeps it"
                ),
                "upgrade to PostgreSQL 17, which keeps slots on standbys",
            ),
            (_, Some(false)) => Finding::warn(
                id,
                subject,
                format!("{standbys}, and the slot is not kept there: a failover loses it"),
                format!(
                    "psql '{}' -c 'ALTER_REPLICATION_SLOT {} (FAILOVER true)'",
                    self.replication_place,
                    identifier(&self.name)
                ),
            ),
            (_, Some(true))
                if server.synchronized_standby_slots.as_deref().unwrap_or_default().is_empty() =>
            {
                not_waited_for(id, subject, &standbys, &server.standby_slots)
            }
            (_, Some(true)) => Finding::ok(
                id,
                subject,
                // a standby makes a slot its own only once that has moved
                format!(
                    "{standbys}; the sinks never run ahead of those in synchronized_standby_slots. A failover while one \
                     sink's target is down loses what that one lacks ({}), the others go on",
                    Code::LaneLost
                ),
            ),
        }
    }
}

fn not_waited_for(id: &'static str, subject: String, standbys: &str, slots: &[String]) -> Finding {
    let message = format!(
        "{standbys}, and synchronized_standby_slots is empty: after a failover the sinks may hold what the standby never got"
    );
    match slots {
        [] => Finding::warn(
            id,
            subject,
            message + "; give the standby a slot of its own (primary_slot_name) first",
            "SELECT pg_create_physical_replication_slot('standby');",
        ),
        slots => {
            let names = slots.join(",");
            Finding::warn(
                id,
                subject,
                message,
                format!(
                    "ALTER SYSTEM SET synchronized_standby_slots = {}; SELECT pg_reload_conf();",
                    literal(&names)
                ),
            )
        }
    }
}

/// Transactions open for at least this long that have written: the slot keeps all WAL since the oldest began, and none
/// is made while they last.
pub(super) async fn open_transactions(client: &Client, longer_than: Duration) -> Result<Vec<Finding>> {
    let statement = include_str!("../../../sql/check_transactions.sql");
    let rows = client.query(statement, &[&longer_than.as_secs_f64()]).await.map_err(sql::error)?;
    if rows.is_empty() {
        let message = format!("none that has written is open for {} s", longer_than.as_secs());
        return Ok(vec![Finding::ok("postgres.transactions", "postgres transactions", message)]);
    }
    rows.iter().map(open_transaction).collect()
}

fn open_transaction(row: &Row) -> Result<Finding> {
    let (pid, gid): (Option<i32>, Option<String>) = (get(row, 0)?, get(row, 1)?);
    let database = get::<Option<String>>(row, 2)?.unwrap_or_default();
    let (seconds, who): (i64, String) = (get(row, 3)?, get(row, 4)?);
    let holds = format!(
        "has written and is open for {seconds} s ({who}, database {database}): all WAL since then is kept"
    );
    Ok(match (pid, gid) {
        (_, Some(gid)) => {
            let gid = literal(&gid);
            let fix = format!("ROLLBACK PREPARED {gid};");
            let message = format!("{holds}; COMMIT PREPARED {gid} keeps what it did");
            Finding::warn(
                "postgres.prepared_transactions",
                format!("prepared transaction {gid}"),
                message,
                fix,
            )
        }
        (pid, None) => {
            let pid = pid.unwrap_or_default();
            let fix = format!("SELECT pg_terminate_backend({pid});");
            Finding::warn("postgres.transactions", format!("transaction of pid {pid}"), holds, fix)
        }
    })
}
