//! What an operator asks for: is it running, how far is each sink, and what is wrong, in one sentence.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::lsn::{Lsn, Position};

/// A sink further behind than this is a problem.
const LAG_MAX: Duration = Duration::from_secs(60);
/// PostgreSQL about to remove WAL that the slot needs is a problem.
const SAFE_WAL_BYTES_MIN: u64 = 256 << 20;

/// The state of a running walcast, as `/api/status` answers and `walcast status` reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// walcast's version.
    pub version: String,
    /// What the pipeline does.
    pub state: State,
    /// Since when it does that.
    pub since: Timestamp,
    /// The stream and its slot.
    pub source: SourceStatus,
    /// What all sinks hold, and PostgreSQL was told.
    pub confirmed_lsn: Lsn,
    /// The sinks, in the order of the pipeline.
    pub sinks: Vec<SinkLine>,
    /// The most important thing that is wrong, in one sentence.
    pub problem: Option<String>,
}

/// What the pipeline does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It asks the sinks where they stand and opens the stream.
    #[default]
    Starting,
    /// It reads the slot.
    Streaming,
    /// It waits before it starts again.
    Retrying,
    /// It lets the sinks finish, and ends.
    Draining,
}

/// The stream and its slot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// How far the stream has been received.
    pub received_lsn: Lsn,
    /// Engagement events received since this process started.
    pub events_total: u64,
    /// Time since a heartbeat came back through the WAL; `None` before the first.
    pub heartbeat_age_seconds: Option<f64>,
    /// What stopped the stream the last time; `None` while it streams.
    pub last_error: Option<String>,
    /// What PostgreSQL says of the slot; `None` before it was asked.
    pub slot: Option<SlotStatus>,
}

/// What PostgreSQL says of the replication slot. What an old server does not know, or tells no role without
/// `pg_read_all_stats` (how far the walsender is), is `None`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotStatus {
    /// Its name.
    pub name: String,
    /// Its output plugin.
    pub plugin: String,
    /// The database that it decodes.
    pub database: String,
    /// The walsender that reads it.
    pub active_pid: Option<i32>,
    /// What that walsender does: startup, catchup, streaming, backup or stopping.
    pub walsender_state: Option<String>,
    /// Whether somebody reads it.
    pub active: bool,
    /// How long nobody has.
    pub inactive_seconds: f64,
    /// reserved, extended, unreserved or lost; `missing` when there is no such slot.
    pub wal_status: String,
    /// Why it is lost, where the server says so.
    pub invalidation_reason: Option<String>,
    /// Where the server's WAL ends.
    pub wal_lsn: Lsn,
    /// The slot's confirmed LSN.
    pub confirmed_lsn: Lsn,
    /// From where the server keeps WAL for the slot; `None` once it is lost.
    pub restart_lsn: Option<Lsn>,
    /// How far the walsender has sent.
    pub sent_lsn: Option<Lsn>,
    /// Time since the walsender had our last status update.
    pub reply_age_seconds: Option<f64>,
    /// WAL kept because of the slot.
    pub retained_bytes: u64,
    /// WAL since the confirmed LSN.
    pub confirmed_lag_bytes: u64,
    /// WAL that may still be written before the slot is lost; `None` while there is no such bound.
    pub safe_wal_bytes: Option<u64>,
    /// The server's `max_slot_wal_keep_size`; `None` without a bound.
    pub keep_bytes_max: Option<u64>,
    /// How many transactions old the catalog rows are that vacuum keeps for the slot.
    pub catalog_xmin_age_transactions: Option<u64>,
    /// Transactions that outgrew `logical_decoding_work_mem` and went through the server's disk while decoding.
    pub spill_transactions_total: u64,
    /// Their bytes; a transaction read again counts again.
    pub spill_bytes_total: u64,
    /// Whether prepared transactions are decoded when they are prepared.
    pub two_phase: bool,
    /// Whether it is kept on standbys as well (PostgreSQL 17).
    pub failover: Option<bool>,
    /// Whether it came from a primary's slot (PostgreSQL 17).
    pub synced: Option<bool>,
    /// How old these figures are.
    pub age_seconds: f64,
}

/// One sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SinkLine {
    /// Its name.
    pub name: String,
    /// Whether it takes rows.
    pub state: SinkState,
    /// Up to where it holds everything durably.
    pub held_lsn: Lsn,
    /// The last event it holds durably.
    pub position: Option<Position>,
    /// WAL received that it does not hold yet.
    pub lag_bytes: u64,
    /// Age of the oldest committed row that it was given and does not hold; 0 when there is none.
    pub lag_seconds: f64,
    /// Batches waiting for it or in its hands.
    pub queue_bytes: u64,
    /// Whether its full queue stops the reading.
    pub backpressure: bool,
    /// Rows it took since this process started.
    pub rows_total: u64,
    /// Why it does not take rows; `None` while it does.
    pub last_error: Option<String>,
}

/// Whether a sink takes rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkState {
    /// It does.
    #[default]
    Ok,
    /// It is tried again.
    Retrying,
    /// Trying again does not help.
    Blocked,
}

/// One condition of being ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyCheck {
    /// `source`, or `sink kafka`.
    pub name: String,
    /// Whether it is met.
    pub ok: bool,
    /// Why not.
    pub why: Option<String>,
}

impl Status {
    /// Everything that must be so for events to flow: the stream, and each sink.
    pub fn checks(&self) -> Vec<ReadyCheck> {
        let streaming = self.state == State::Streaming;
        let why = self.source.last_error.clone().unwrap_or_else(|| format!("it is {}", self.state));
        let source = ReadyCheck { name: "source".into(), ok: streaming, why: (!streaming).then_some(why) };
        let sinks = self.sinks.iter().map(|sink| {
            let ok = sink.state == SinkState::Ok;
            let why = sink.last_error.clone().unwrap_or_else(|| format!("it is {}", sink.state));
            ReadyCheck { name: format!("sink {}", sink.name), ok, why: (!ok).then_some(why) }
        });
        std::iter::once(source).chain(sinks).collect()
    }

    /// Whether events flow into every sink.
    pub fn is_ready(&self) -> bool {
        self.checks().iter().all(|check| check.ok)
    }

    /// What to say first, if anything is wrong.
    pub fn worst_problem(&self) -> Option<String> {
        let slot = self.source.slot.as_ref();
        let slot_gone =
            slot.filter(|slot| matches!(slot.wal_status.as_str(), "lost" | "missing")).map(|slot| {
                let reason =
                    slot.invalidation_reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
                format!("the replication slot {} is {}{reason}", slot.name, slot.wal_status)
            });
        let error = self.source.last_error.as_ref();
        let stream =
            error.filter(|_| self.state != State::Streaming).map(|why| format!("not streaming: {why}"));
        slot_gone
            .or(stream)
            .or_else(|| self.sinks.iter().find_map(SinkLine::failing))
            .or_else(|| slot.and_then(SlotStatus::at_risk))
            .or_else(|| self.sinks.iter().find_map(SinkLine::behind))
    }
}

impl SinkLine {
    fn failing(&self) -> Option<String> {
        let why = self.last_error.as_ref().filter(|_| self.state != SinkState::Ok)?;
        Some(format!("{} takes no rows and holds the WAL back: {why}", self.name))
    }

    fn behind(&self) -> Option<String> {
        let behind = self.lag_seconds > LAG_MAX.as_secs_f64();
        behind.then(|| format!("{} is {:.0} s behind", self.name, self.lag_seconds))
    }
}

impl SlotStatus {
    fn at_risk(&self) -> Option<String> {
        let left = self.safe_wal_bytes.filter(|left| *left < SAFE_WAL_BYTES_MIN)?;
        Some(format!(
            "PostgreSQL removes WAL that the slot {} still needs after {} MB more (max_slot_wal_keep_size)",
            self.name,
            left >> 20
        ))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::Streaming => "streaming",
            State::Retrying => "retrying",
            State::Draining => "draining",
        })
    }
}

impl fmt::Display for SinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SinkState::Ok => "ok",
            SinkState::Retrying => "retrying",
            SinkState::Blocked => "blocked",
        })
    }
}
