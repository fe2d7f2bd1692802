//! What the server's settings mean for walcast.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::Client;

use crate::error::{Code, Result};
use crate::finding::Finding;
use crate::size::size;
use crate::source::heartbeat;
use crate::source::sql::{self, get};

const GIB: i64 = 1 << 30;
/// Less than this and a sink's short outage loses the slot.
const KEEP_BYTES_MIN: i64 = GIB;
/// What is proposed where nothing is known of the load.
const KEEP_BYTES_PROPOSED: i64 = 10 * GIB;
const DAY_SECONDS: f64 = 86_400.0;
/// walcast answers the server every second; a pause of a few must not end the stream.
const SENDER_TIMEOUT_SECONDS_MIN: f64 = 10.0;
/// PostgreSQL's own default.
const WORK_MEM_BYTES_MIN: i64 = 64 << 20;
/// Boards are drained by walcast's clock, events count by the server's.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(2);
/// The settings' findings end with this, so that they hold at once.
const RELOAD: &str = "SELECT pg_reload_conf();";

/// One row of `sql/check_server.sql`.
pub(super) struct Server {
    slots_max: i32,
    slots: i32,
    senders_max: i32,
    senders: i32,
    /// -1 for no bound.
    keep_bytes: i64,
    idle_timeout_seconds: Option<f64>,
    sender_timeout_seconds: f64,
    work_mem_bytes: i64,
    wal_bytes_per_second: Option<f64>,
    /// How far its clock is ahead of ours, in seconds.
    clock_ahead_seconds: f64,
    sees_others: bool,
    may_beat: bool,
    pub(super) synchronized_standby_slots: Option<String>,
    pub(super) version_num: i32,
    /// Physical slots that a standby reads.
    pub(super) standby_slots: Vec<String>,
    pub(super) standbys: i32,
    idle_slots: Vec<String>,
}

impl Server {
    pub(super) async fn ask(client: &Client) -> Result<Server> {
        let asked = now_seconds();
        let row =
            client.query_one(include_str!("../../../sql/check_server.sql"), &[]).await.map_err(sql::error)?;
        let ours = (asked + now_seconds()) / 2.0;
        Ok(Server {
            slots_max: get(&row, 0)?,
            slots: get(&row, 1)?,
            senders_max: get(&row, 2)?,
            senders: get(&row, 3)?,
            keep_bytes: get(&row, 4)?,
            idle_timeout_seconds: get(&row, 5)?,
            sender_timeout_seconds: get(&row, 6)?,
            work_mem_bytes: get(&row, 7)?,
            wal_bytes_per_second: get(&row, 8)?,
            clock_ahead_seconds: get::<f64>(&row, 9)? - ours,
            sees_others: get(&row, 10)?,
            may_beat: heartbeat::may_beat(client).await?,
            synchronized_standby_slots: get(&row, 11)?,
            version_num: get(&row, 12)?,
            standby_slots: get::<Option<_>>(&row, 13)?.unwrap_or_default(),
            standbys: get(&row, 14)?,
            idle_slots: get::<Option<_>>(&row, 15)?.unwrap_or_default(),
        })
    }

    /// All findings; `slot` is the one of ours, which need not be there.
    pub(super) fn findings(&self, slot: &str, has_slot: bool, user: &str) -> Vec<Finding> {
        let mut findings = vec![
            self.free_slots(slot, has_slot),
            self.free_senders(),
            self.keep_size(),
            self.sender_timeout(),
            self.work_mem(),
            clock(self.clock_ahead_seconds),
            self.heartbeat(user),
            self.sight(user),
        ];
        findings.extend(self.idle_timeout_seconds.map(idle_timeout));
        findings
    }

    fn free_slots(&self, slot: &str, has_slot: bool) -> Finding {
        let (id, subject) = ("postgres.replication_slots", "postgres max_replication_slots");
        let free = self.slots_max - self.slots;
        let message = format!("{} of {} are free", free.max(0), self.slots_max);
        if free > 0 {
            return Finding::ok(id, subject, message);
        }
        let idle = self.idle_slots.iter().filter(|name| *name != slot);
        let idle = match idle.map(String::as_str).collect::<Vec<_>>().join(", ") {
            names if names.is_empty() => String::new(),
            names => format!("; nobody reads {names} (pg_drop_replication_slot drops one)"),
        };
        let fix = format!("ALTER SYSTEM SET max_replication_slots = {};", self.slots_max + 5);
        match has_slot {
            true => {
                let message = format!(
                    "{message}, and `walcast verify` needs one for a moment; a change needs a restart{idle}"
                );
                Finding::warn(id, subject, message, fix)
            }
            false => {
                let message = format!("{message}: none for walcast; a change needs a restart{idle}");
                Finding::fail(Code::SlotsExhausted, id, subject, message, fix)
            }
        }
    }

    fn free_senders(&self) -> Finding {
        let (id, subject) = ("postgres.wal_senders", "postgres max_wal_senders");
        let free = self.senders_max - self.senders;
        let message = format!("{} of {} are free", free.max(0), self.senders_max);
        match free {
            1.. => Finding::ok(id, subject, message),
            _ => Finding::fail(
                Code::ConnectionsExhausted,
                id,
                subject,
                format!(
                    "{message}: walcast's stream finds no place when it starts; a change needs a restart"
                ),
                format!("ALTER SYSTEM SET max_wal_senders = {};", self.senders_max + 5),
            ),
        }
    }

    fn keep_size(&self) -> Finding {
        let (id, subject) = ("postgres.max_slot_wal_keep_size", "postgres max_slot_wal_keep_size");
        let rate = self.wal_bytes_per_second.filter(|rate| *rate >= 1.0);
        let lasts = rate.map(|rate| {
            let hours = self.keep_bytes as f64 / rate / 3600.0;
            format!(", {hours:.1} h of WAL at this server's average of {} a second", size(rate as u64))
        });
        let proposed = rate.map_or(0.0, |rate| rate * DAY_SECONDS) as i64;
        let proposed = proposed.max(KEEP_BYTES_PROPOSED).div_euclid(GIB);
        let fix = format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{proposed}GB'; {RELOAD}");
        match self.keep_bytes {
            -1 => {
                let message = "is unset: while a sink is down, PostgreSQL keeps WAL until its disk is full and it stops; give what the disk has to spare";
                Finding::warn(id, subject, message, fix)
            }
            0 => Finding::fail(
                Code::Prerequisite,
                id,
                subject,
                "is 0: the slot is lost at the first checkpoint that it lags behind",
                fix,
            ),
            bytes if bytes < KEEP_BYTES_MIN => {
                let message = format!(
                    "is {}{}: a short outage of a sink loses the slot",
                    size(bytes.max(0) as u64),
                    lasts.unwrap_or_default()
                );
                Finding::warn(id, subject, message, fix)
            }
            bytes => Finding::ok(
                id,
                subject,
                format!("{}{}", size(bytes.max(0) as u64), lasts.unwrap_or_default()),
            ),
        }
    }

    fn sender_timeout(&self) -> Finding {
        let (id, subject) = ("postgres.wal_sender_timeout", "postgres wal_sender_timeout");
        let seconds = self.sender_timeout_seconds;
        match seconds {
            0.0 => Finding::ok(id, subject, "is off"),
            seconds if seconds >= SENDER_TIMEOUT_SECONDS_MIN => {
                Finding::ok(id, subject, format!("{seconds} s"))
            }
            _ => Finding::warn(
                id,
                subject,
                format!("is {seconds} s: a short pause of network or walcast ends the stream"),
                format!("ALTER SYSTEM SET wal_sender_timeout = '60s'; {RELOAD}"),
            ),
        }
    }

    fn work_mem(&self) -> Finding {
        let (id, subject) = ("postgres.logical_decoding_work_mem", "postgres logical_decoding_work_mem");
        let bytes = size(self.work_mem_bytes.max(0) as u64);
        match self.work_mem_bytes >= WORK_MEM_BYTES_MIN {
            true => Finding::ok(id, subject, bytes),
            false => Finding::warn(
                id,
                subject,
                format!("is {bytes}: PostgreSQL writes larger transactions to disk before walcast gets them"),
                format!("ALTER SYSTEM SET logical_decoding_work_mem = '64MB'; {RELOAD}"),
            ),
        }
    }

    fn heartbeat(&self, user: &str) -> Finding {
        let (id, subject) = ("postgres.heartbeat", "postgres heartbeat");
        match self.may_beat {
            true => Finding::ok(id, subject, "may be written to the WAL"),
            false => Finding::warn(
                id,
                subject,
                "may not be written by this role: lag is not measured end to end",
                format!(
                    "GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text{}) TO {user};",
                    if self.version_num >= 170_000 { ", boolean" } else { "" }
                ),
            ),
        }
    }

    fn sight(&self, user: &str) -> Finding {
        let (id, subject) = ("postgres.statistics", "postgres statistics");
        match self.sees_others {
            true => Finding::ok(id, subject, "this role sees the transactions of others"),
            false => Finding::warn(
                id,
                subject,
                "this role does not see what others run: a transaction that holds the WAL is not named",
                format!("GRANT pg_read_all_stats TO {user};"),
            ),
        }
    }
}

fn clock(ahead_seconds: f64) -> Finding {
    let (id, subject) = ("postgres.clock", "postgres clock");
    let message = match ahead_seconds {
        ahead if ahead.abs() < 0.05 => "agrees with this machine's".to_owned(),
        ahead if ahead > 0.0 => format!("is {ahead:.1} s ahead of this machine's"),
        behind => format!("is {:.1} s behind this machine's", -behind),
    };
    if ahead_seconds.abs() <= CLOCK_SKEW_MAX.as_secs_f64() {
        return Finding::ok(id, subject, message);
    }
    let message = format!(
        "{message}: times in the log, on the page and in BigQuery's ingested_at differ by as much from the commits'; set the clock that is wrong"
    );
    Finding::warn(id, subject, message, "timedatectl set-ntp true")
}

fn idle_timeout(seconds: f64) -> Finding {
    let (id, subject) = ("postgres.idle_replication_slot_timeout", "postgres idle_replication_slot_timeout");
    match seconds {
        0.0 => Finding::ok(id, subject, "is off"),
        seconds if seconds >= DAY_SECONDS => Finding::ok(id, subject, format!("{:.0} h", seconds / 3600.0)),
        _ => Finding::warn(
            id,
            subject,
            format!(
                "is {seconds} s: the slot is lost when walcast is stopped for that long, and that of a sink that has fallen \
                 behind when its target is down for that long"
            ),
            format!("ALTER SYSTEM SET idle_replication_slot_timeout = 0; {RELOAD}"),
        ),
    }
}

fn now_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Verdict;

    #[test]
    fn a_clock_that_differs_is_told() {
        for (ahead, verdict, words) in [
            (0.01, Verdict::Ok, "agrees"),
            (-1.9, Verdict::Ok, "1.9 s behind"),
            (3600.0, Verdict::Warn, "3600.0 s ahead"),
            (-2.5, Verdict::Warn, "2.5 s behind"),
        ] {
            let finding = clock(ahead);
            assert!(finding.verdict == verdict && finding.message.contains(words), "{ahead}: {finding:?}");
        }
    }
}
