//! The gauges, set from a status: whenever `/metrics` is read they are what is so then.

use metrics::{counter, gauge};

use crate::state::dead_letters::LetterCount;
use crate::telemetry::metrics as names;
use crate::telemetry::status::{BreakerState, SinkLine, SinkState, SlotStatus, State, Status};

/// Sets all gauges to what this status says. What is not known has no gauge, or keeps its last value.
pub fn set(status: &Status) {
    gauge!(names::STREAMING).set(f64::from(status.state == State::Streaming));
    gauge!(names::CONFIRMED_LSN).set(status.confirmed_lsn.0 as f64);
    gauge!(names::RECEIVED_LSN).set(status.source.received_lsn.0 as f64);
    if let Some(age) = status.source.heartbeat_age_seconds {
        gauge!(names::HEARTBEAT_AGE_SECONDS).set(age);
    }
    if let Some(slot) = &status.source.slot {
        set_slot(slot);
        gauge!(names::SOURCE_LAG_BYTES).set(slot.wal_lsn.bytes_since(status.source.received_lsn) as f64);
    }
    status.sinks.iter().for_each(set_sink);
    if let Some(backfill) = &status.backfill {
        gauge!(names::BACKFILL_ROWS).set(backfill.rows as f64);
        gauge!(names::BACKFILL_ESTIMATED_ROWS).set(backfill.estimated_rows as f64);
    }
    for LetterCount { sink, reason, open, .. } in &status.dead_letters {
        gauge!(names::DEAD_LETTERS_OPEN, "sink" => sink.clone(), "reason" => reason.clone())
            .set(*open as f64);
    }
}

fn set_slot(slot: &SlotStatus) {
    gauge!(names::SLOT_ACTIVE).set(f64::from(slot.active));
    gauge!(names::SLOT_INACTIVE_SECONDS).set(slot.inactive_seconds);
    gauge!(names::SLOT_RETAINED_BYTES).set(slot.retained_bytes as f64);
    gauge!(names::SLOT_CONFIRMED_LAG_BYTES).set(slot.confirmed_lag_bytes as f64);
    gauge!(names::SLOT_SAMPLE_AGE_SECONDS).set(slot.age_seconds);
    gauge!(names::SLOT_SAFE_WAL_BYTES).set(bound(slot.safe_wal_bytes));
    gauge!(names::SLOT_KEEP_MAX_BYTES).set(bound(slot.keep_bytes_max));
    for status in ["reserved", "extended", "unreserved", "lost", "missing"] {
        gauge!(names::SLOT_WAL_STATUS, "status" => status).set(f64::from(slot.wal_status == status));
    }
    gauge!(names::SLOT_FAILOVER).set(f64::from(slot.failover == Some(true)));
    gauge!(names::SLOT_STANDBY_WAIT_SECONDS).set(slot.standby_wait_seconds);
    gauge!(names::SLOT_REPLY_AGE_SECONDS).set(slot.reply_age_seconds.unwrap_or_default());
    let catalog_age = slot.catalog_xmin_age_transactions.unwrap_or_default();
    gauge!(names::SLOT_CATALOG_XMIN_AGE_TRANSACTIONS).set(catalog_age as f64);
    counter!(names::SLOT_SPILLED_TRANSACTIONS_TOTAL).absolute(slot.spill_transactions_total);
    counter!(names::SLOT_SPILLED_BYTES_TOTAL).absolute(slot.spill_bytes_total);
    counter!(names::SLOT_MEMORY_EXCEEDED_TOTAL).absolute(slot.memory_exceeded_total.unwrap_or_default());
    let lsns = [
        (names::WAL_LSN, Some(slot.wal_lsn)),
        (names::SENT_LSN, slot.sent_lsn),
        (names::RESTART_LSN, slot.restart_lsn),
    ];
    for (name, lsn) in lsns {
        if let Some(lsn) = lsn {
            gauge!(name).set(lsn.0 as f64);
        }
    }
}

/// No bound is an infinite one, so that whoever compares needs no case for it.
fn bound(bytes: Option<u64>) -> f64 {
    bytes.map_or(f64::INFINITY, |bytes| bytes as f64)
}

fn set_sink(line: &SinkLine) {
    let set = |name: &'static str, value: f64| gauge!(name, "sink" => line.name.clone()).set(value);
    set(names::SINK_UP, f64::from(line.state == SinkState::Ok));
    set(names::SINK_BLOCKED, f64::from(line.state == SinkState::Blocked));
    set(names::SINK_DURABLE_LSN, line.durable_lsn.0 as f64);
    set(names::SINK_LAG_BYTES, line.lag_bytes as f64);
    set(names::SINK_QUEUE_LAG_BYTES, line.queue_lag_bytes as f64);
    set(names::SINK_DELIVERY_LAG_BYTES, line.delivery_lag_bytes as f64);
    set(names::SINK_LAG_SECONDS, line.lag_seconds);
    if let (Some(age), Some(took)) = (line.heartbeat_age_seconds, line.heartbeat_seconds) {
        set(names::SINK_HEARTBEAT_AGE_SECONDS, age);
        set(names::SINK_HEARTBEAT_SECONDS, took);
    }
    set(names::QUEUE_BYTES, line.queue_bytes as f64);
    set(names::BACKPRESSURE_ACTIVE, f64::from(line.backpressure));
    set(names::BREAKER_OPEN, f64::from(line.breaker != BreakerState::Closed));
    let lane = line.lane.clone().unwrap_or_default();
    set(names::LANE_ACTIVE, f64::from(line.lane.is_some()));
    set(names::LANE_LOST, f64::from(line.is_lost()));
    set(names::LANE_BEHIND_BYTES, lane.behind_bytes as f64);
    let kept = lane.kept.unwrap_or_default();
    set(names::LANE_RETAINED_BYTES, kept.retained_bytes as f64);
    set(names::LANE_SAFE_WAL_BYTES, bound(kept.safe_wal_bytes));
}
