//! Watches the replication slot, and those that sinks have alone, from the server's side, once a second, on a session of its
//! own.
//!
//! Nothing depends on it: when the server cannot be asked the figures grow old (and say how old), and it
//! tries again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, Row, Statement};

use crate::error::{Code, Result};
use crate::lsn::Lsn;
use crate::source::{PostgresConfig, slot, sql};
use crate::state::backfills::{self, Backfill};
use crate::state::dead_letters;
use crate::telemetry::herald::Herald;
use crate::telemetry::registry::StatusRegistry;
use crate::telemetry::status::{BackfillLine, LaneSlot, SlotStatus};

const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const RECONNECT_AFTER: Duration = Duration::from_secs(2);
/// How often dead letters are counted.
const LETTERS_EVERY_SAMPLES: u32 = 5;
/// An answer later than this is as good as none: the session is opened anew.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Puts on the registry what the server says of the slot, until it is dropped.
pub async fn watch(postgres: PostgresConfig, registry: StatusRegistry) {
    let mut seen = Seen {
        active: Instant::now(),
        waits_since: None,
        herald: Herald::default(),
        lost_lanes: HashSet::new(),
    };
    loop {
        if let Err(error) = sample_while_connected(&postgres, &registry, &mut seen).await {
            tracing::debug!(error = error.chain(), "the slot cannot be watched");
        }
        tokio::time::sleep(RECONNECT_AFTER).await;
    }
}

/// What the samples have shown so far.
struct Seen {
    /// When somebody last read the slot.
    active: Instant,
    /// Since when PostgreSQL waits for a standby.
    waits_since: Option<Instant>,
    herald: Herald,
    /// The slots of lanes of which it was said that they are lost.
    lost_lanes: HashSet<String>,
}

impl Seen {
    /// Adds what the server does not know by itself: for how long.
    fn complete(&mut self, slot: &mut SlotStatus) {
        if slot.active {
            self.active = Instant::now();
        } else if slot.inactive_seconds == 0.0 {
            slot.inactive_seconds = self.active.elapsed().as_secs_f64();
        }
        self.waits_since = match slot.missing_standbys.is_empty() {
            true => None,
            false => Some(self.waits_since.unwrap_or_else(Instant::now)),
        };
        slot.standby_wait_seconds = self.waits_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        self.herald.see(slot);
    }

    /// Says once that what a sink lacks is gone: a lane that does not run has not noticed.
    fn see_lost(&mut self, kept: &LaneSlot) {
        if self.lost_lanes.insert(kept.slot.clone()) {
            let why = kept.invalidation_reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
            tracing::error!(
                code = %Code::LaneLost,
                "the slot {} of one sink is {}{why}: what that sink lacks is gone from the stream, and the others go on; \
                 `walcast check` says how to go on",
                kept.slot,
                kept.wal_status
            );
        }
    }
}

async fn sample_while_connected(
    postgres: &PostgresConfig,
    registry: &StatusRegistry,
    seen: &mut Seen,
) -> Result<()> {
    let client = sql::connect(postgres).await?;
    let statement = client.prepare(include_str!("../../sql/slot_lag.sql")).await.map_err(sql::error)?;
    let of_lanes = client.prepare(include_str!("../../sql/lane_slots.sql")).await.map_err(sql::error)?;
    let mut due = tokio::time::interval(SAMPLE_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut samples: u32 = 0;
    loop {
        due.tick().await;
        let lanes = registry.lane_slots();
        let asked = async {
            let slot = sample(&client, &statement, &postgres.slot).await?;
            Ok((slot, sample_lanes(&client, &of_lanes, lanes).await?))
        };
        let Ok(sampled) = tokio::time::timeout(ANSWER_WITHIN, asked).await else { return Ok(()) };
        let (mut slot, lanes) = sampled?;
        seen.complete(&mut slot);
        registry.slot(slot);
        // a schema of an older version tells none
        if samples.is_multiple_of(LETTERS_EVERY_SAMPLES)
            && let Ok(Ok(counts)) =
                tokio::time::timeout(ANSWER_WITHIN, dead_letters::counts(&client, &postgres.slot)).await
        {
            registry.dead_letters(counts);
            if let Ok(Ok(open)) =
                tokio::time::timeout(ANSWER_WITHIN, backfills::open_of(&client, &postgres.slot)).await
            {
                registry.backfill(open.map(backfill));
            }
        }
        samples = samples.wrapping_add(1);
        for kept in &lanes {
            if registry.lane_kept(kept) {
                seen.see_lost(kept);
            }
        }
    }
}

fn backfill(open: Backfill) -> BackfillLine {
    let missing = open.keeps_below().is_some();
    let Backfill { state, sinks, rows, estimated_rows, rebuild, .. } = open;
    let rebuild = rebuild.map(|rebuild| rebuild.step.as_str().to_owned());
    BackfillLine { state: state.to_string(), sinks, rows, estimated_rows, rebuild, missing }
}

/// Asks once for all lanes, if there are any.
async fn sample_lanes(client: &Client, statement: &Statement, lanes: Vec<String>) -> Result<Vec<LaneSlot>> {
    if lanes.is_empty() {
        return Ok(Vec::new());
    }
    let rows = client.query(statement, &[&lanes]).await.map_err(sql::error)?;
    let found: Vec<LaneSlot> = rows.iter().map(read_lane).collect::<Result<_, _>>().map_err(sql::error)?;
    let missing = |slot| LaneSlot {
        slot,
        wal_status: "missing".to_owned(),
        safe_wal_bytes: Some(0),
        ..LaneSlot::default()
    };
    let of =
        |slot: String| found.iter().find(|kept| kept.slot == slot).cloned().unwrap_or_else(|| missing(slot));
    Ok(lanes.into_iter().map(of).collect())
}

fn read_lane(row: &Row) -> Result<LaneSlot, tokio_postgres::Error> {
    let count = |column| {
        row.try_get::<_, Option<i64>>(column).map(|number| number.map(|number| number.max(0) as u64))
    };
    let wal_status: String = row.try_get("wal_status")?;
    Ok(LaneSlot {
        slot: row.try_get("slot")?,
        active: row.try_get("active")?,
        invalidation_reason: row.try_get("invalidation_reason")?,
        retained_bytes: count("retained_bytes")?.unwrap_or_default(),
        safe_wal_bytes: if wal_status == "lost" { Some(0) } else { count("safe_wal_size")? },
        wal_status,
    })
}

/// Asks once. Before PostgreSQL 17 the server does not know for how long a slot has been inactive: 0 then.
async fn sample(client: &Client, statement: &Statement, name: &str) -> Result<SlotStatus> {
    let row = client.query_opt(statement, &[&name]).await.map_err(sql::error)?;
    let missing =
        SlotStatus { name: name.to_owned(), wal_status: "missing".to_owned(), ..Default::default() };
    let mut status = row.map_or(Ok(missing), |row| read(name, &row)).map_err(sql::error)?;
    if status.failover == Some(true) {
        status.missing_standbys = slot::missing_standbys(client).await?;
    }
    Ok(status)
}

fn read(slot: &str, row: &Row) -> Result<SlotStatus, tokio_postgres::Error> {
    let number = |column| row.try_get::<_, Option<i64>>(column);
    let count = |column| number(column).map(|number| number.map(|number| number.max(0) as u64));
    let lsn = |column| number(column).map(|lsn| lsn.map(|lsn| Lsn(lsn as u64)));
    let seconds = |column| row.try_get::<_, Option<f64>>(column).map(|age| age.map(|age| age.max(0.0)));
    let wal_lsn = lsn("wal_lsn")?.unwrap_or_default();
    let confirmed_lsn = lsn("confirmed_lsn")?.unwrap_or_default();
    let restart_lsn = lsn("restart_lsn")?;
    let wal_status: String = row.try_get("wal_status")?;
    let lost = wal_status == "lost";
    Ok(SlotStatus {
        name: slot.to_owned(),
        plugin: row.try_get::<_, Option<_>>("plugin")?.unwrap_or_default(),
        database: row.try_get::<_, Option<_>>("database")?.unwrap_or_default(),
        active: row.try_get("active")?,
        active_pid: row.try_get("active_pid")?,
        walsender_state: row.try_get("walsender_state")?,
        inactive_seconds: seconds("inactive_seconds")?.unwrap_or_default(),
        wal_status,
        invalidation_reason: row.try_get("invalidation_reason")?,
        wal_lsn,
        confirmed_lsn,
        restart_lsn,
        sent_lsn: lsn("sent_lsn")?,
        reply_age_seconds: seconds("reply_age_seconds")?,
        // A lost slot keeps no WAL, and has no place to start from.
        retained_bytes: restart_lsn.map_or(0, |restart| wal_lsn.bytes_since(restart)),
        confirmed_lag_bytes: wal_lsn.bytes_since(confirmed_lsn),
        safe_wal_bytes: if lost { Some(0) } else { count("safe_wal_size")? },
        keep_bytes_max: count("keep_bytes_max")?,
        catalog_xmin_age_transactions: count("catalog_xmin_age")?,
        oldest_transaction_seconds: seconds("oldest_transaction_seconds")?,
        sees_sessions: row.try_get("sees_sessions")?,
        role: row.try_get("role")?,
        missing_standbys: Vec::new(),
        standby_wait_seconds: 0.0,
        spill_transactions_total: count("spill_txns")?.unwrap_or_default(),
        spill_bytes_total: count("spill_bytes")?.unwrap_or_default(),
        memory_exceeded_total: count("memory_exceeded")?,
        two_phase: row.try_get("two_phase")?,
        failover: row.try_get("failover")?,
        synced: row.try_get("synced")?,
        age_seconds: 0.0,
    })
}
