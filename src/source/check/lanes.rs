//! The slots that sinks have alone when they fall behind: those that there are, and whether there is room for more.

use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::slot::SAFE_BYTES_MIN;
use crate::error::{Code, Result};
use crate::finding::Finding;
use crate::lsn::Lsn;
use crate::size::size;
use crate::source::sql::{self, get};

/// A sink that has a slot of its own, or is to get one.
#[derive(Debug)]
pub struct Lane {
    /// The sink.
    pub sink: String,
    /// That slot.
    pub slot: String,
    /// Whether that slot keeps what the sink lacks; else the walcast slot does.
    pub open: bool,
    /// Where it begins; `None` when it can bring no more.
    pub confirmed: Option<Lsn>,
    wal_status: String,
    reason: Option<String>,
    retained_bytes: i64,
    safe_bytes: Option<i64>,
}

/// The lanes of a history.
pub async fn lanes(client: &Client, history_id: Uuid) -> Result<Vec<Lane>> {
    let statement = include_str!("../../../sql/check_lanes.sql");
    let rows = client.query(statement, &[&history_id]).await.map_err(sql::error)?;
    rows.iter().map(Lane::read).collect()
}

impl Lane {
    fn read(row: &Row) -> Result<Lane> {
        let wal_status: String = get(row, 3)?;
        let confirmed = get::<Option<i64>>(row, 5)?.map(|lsn| Lsn(lsn.max(0) as u64));
        Ok(Lane {
            sink: get(row, 0)?,
            slot: get(row, 1)?,
            open: get(row, 2)?,
            confirmed: confirmed.filter(|_| !is_lost(&wal_status)),
            wal_status,
            reason: get(row, 4)?,
            retained_bytes: get(row, 6)?,
            safe_bytes: get(row, 7)?,
        })
    }

    /// What is told of it; `fresh_start` makes its sink whole.
    pub fn finding(&self, fresh_start: &str) -> Finding {
        let (id, subject) = ("sink.lane", format!("lane of {}", self.sink));
        let Lane { slot, wal_status, .. } = self;
        if !self.open {
            return Finding::ok(
                id,
                subject,
                "is being opened: until then the walcast slot keeps what it lacks",
            );
        }
        if is_lost(wal_status) {
            let reason = self.reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
            let message =
                format!("{slot} is {wal_status}{reason}: what {} lacks is gone from the stream", self.sink);
            return Finding::fail(Code::LaneLost, id, subject, message, fresh_start);
        }
        let kept = size(self.retained_bytes.max(0) as u64);
        let message = format!(
            "has fallen behind: {slot} ({wal_status}) keeps {kept} of WAL for it, and the other sinks go on"
        );
        match self.safe_bytes {
            Some(left) if left < SAFE_BYTES_MIN => Finding::warn(
                id,
                subject,
                format!("{message}; it is lost after {} more", size(left.max(0) as u64)),
                "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();",
            ),
            _ => Finding::warn(id, subject, message, "walcast status"),
        }
    }
}

fn is_lost(wal_status: &str) -> bool {
    matches!(wal_status, "lost" | "missing" | "given up")
}

/// Whether each of so many sinks can get a slot and a walsender of its own.
pub async fn room(client: &Client, slot: &str, history_id: Option<Uuid>, sinks: usize) -> Result<Finding> {
    let has_lane = match history_id {
        Some(id) => lanes(client, id).await?.iter().filter(|lane| lane.confirmed.is_some()).count(),
        None => 0,
    };
    let row = client
        .query_one(include_str!("../../../sql/check_lane_room.sql"), &[&slot])
        .await
        .map_err(sql::error)?;
    let wanted = sinks.saturating_sub(has_lane) as i64;
    Ok(judge_room(&Room {
        slots: get(&row, 0)?,
        senders: get(&row, 1)?,
        wanted,
        max: (get(&row, 2)?, get(&row, 3)?),
    }))
}

/// What is free once the walcast slot is there and read, and what all sinks could want at once.
struct Room {
    slots: i64,
    senders: i64,
    wanted: i64,
    max: (i64, i64),
}

fn judge_room(room: &Room) -> Finding {
    let (id, subject) = ("postgres.lanes", "postgres room for lanes");
    let Room { slots, senders, wanted, max } = room;
    let free = format!("{} slots and {} walsenders are free", slots.max(&0), senders.max(&0));
    let lacking = wanted - slots.min(senders);
    if lacking <= 0 {
        return Finding::ok(id, subject, format!("{free} for sinks that fall behind"));
    }
    let raise = [("max_replication_slots", slots, max.0), ("max_wal_senders", senders, max.1)];
    let raise = raise
        .iter()
        .filter(|(_, free, _)| *free < wanted)
        .map(|(name, free, max)| format!("ALTER SYSTEM SET {name} = {};", max + wanted - *free));
    let fix = raise.collect::<Vec<_>>().join(" ");
    let message = format!(
        "{free}, and {wanted} sinks may want one of each: one that falls behind and gets none holds up the WAL for all; a \
         change needs a restart"
    );
    Finding::warn(id, subject, message, fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Verdict;

    fn lane(wal_status: &str) -> Lane {
        Lane {
            sink: "redis".into(),
            open: true,
            confirmed: Some(Lsn(1)),
            slot: "walcast_lane_a_redis_7_1".into(),
            wal_status: wal_status.into(),
            reason: None,
            retained_bytes: 3 << 20,
            safe_bytes: Some(1 << 40),
        }
    }

    #[test]
    fn a_lane_says_what_its_slot_keeps_and_when_that_is_gone() {
        let told = |lane: &Lane| {
            let finding = lane.finding("walcast rebuild redis");
            (finding.verdict, finding.code, finding.message, finding.fix.unwrap_or_default())
        };
        let (verdict, _, message, fix) = told(&lane("reserved"));
        assert_eq!((verdict, fix.as_str()), (Verdict::Warn, "walcast status"));
        assert!(message.contains("(reserved) keeps 3.0 MiB of WAL for it"), "{message}");
        let (_, _, message, fix) = told(&Lane { safe_bytes: Some(1 << 20), ..lane("extended") });
        assert!(message.ends_with("it is lost after 1.0 MiB more") && fix.contains("max_slot_wal_keep_size"));
        let lost = Lane { reason: Some("idle_timeout".into()), confirmed: None, ..lane("lost") };
        let (verdict, code, message, fix) = told(&lost);
        assert_eq!((verdict, code), (Verdict::Fail, Some(Code::LaneLost)));
        assert!(message.contains("is lost (idle_timeout)") && fix == "walcast rebuild redis", "{message}");
        let (verdict, ..) = told(&Lane { open: false, ..lane("missing") });
        assert_eq!(verdict, Verdict::Ok);
    }

    #[test]
    fn each_sink_may_want_a_slot_and_a_sender() {
        let judged = |slots, senders, wanted| judge_room(&Room { slots, senders, wanted, max: (10, 20) });
        assert_eq!(judged(3, 3, 3).verdict, Verdict::Ok);
        let few = judged(1, 2, 3);
        assert_eq!(few.verdict, Verdict::Warn);
        assert_eq!(
            few.fix.as_deref(),
            Some("ALTER SYSTEM SET max_replication_slots = 12; ALTER SYSTEM SET max_wal_senders = 21;")
        );
        assert_eq!(judged(9, -1, 1).fix.as_deref(), Some("ALTER SYSTEM SET max_wal_senders = 22;"));
    }
}
