//! What an operator asks for: is it running, how far is each sink, and what is wrong, in one sentence.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Kind};
use crate::lsn::{Lsn, Position};
use crate::state::dead_letters::LetterCount;

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
    /// What all sinks hold that are fed together, and PostgreSQL was told of the walcast slot.
    pub confirmed_lsn: Lsn,
    /// The sinks, in the order of the pipeline.
    pub sinks: Vec<SinkLine>,
    /// Dead letters that are not done with, by sink and reason.
    #[serde(default)]
    pub dead_letters: Vec<LetterCount>,
    /// Rows of before walcast on their way to some sinks; `None` while no backfill is open.
    #[serde(default)]
    pub backfill: Option<BackfillLine>,
    /// What is wrong, worst first, each in a sentence that ends with what to do.
    pub problems: Vec<String>,
    /// The first of them.
    pub problem: Option<String>,
}

/// How far an open backfill is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackfillLine {
    /// running or paused.
    pub state: String,
    /// Whom it is for.
    pub sinks: Vec<String>,
    /// Rows sent.
    pub rows: u64,
    /// About how many there are.
    pub estimated_rows: u64,
    /// Where the only sink is filled anew: asked, stopped or marked until its target is emptied, then emptied; counting for one that
    /// keeps sums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuild: Option<String>,
    /// Whether that sink is not emptied, and is brought only what it lacks.
    #[serde(default)]
    pub missing: bool,
}

/// What the pipeline does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It asks the sinks where they stand and opens the stream.
    #[default]
    Starting,
    /// Another instance reads the slot; it takes over when that one ends.
    Waiting,
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
    /// Control messages that were ignored since this process started: somebody else's.
    #[serde(default)]
    pub ignored_control_messages_total: u64,
    /// Time since a heartbeat came back through the WAL; `None` before the first.
    pub heartbeat_age_seconds: Option<f64>,
    /// What stopped the stream the last time; `None` while it streams.
    pub last_error: Option<String>,
    /// Its code, which `walcast explain` tells more about.
    pub last_error_code: Option<Code>,
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
    /// How far the server has sent the stream; `None` while nobody reads it, or where our role may not see that.
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
    /// For how long the oldest transaction that has written is open, of all databases, prepared ones included; `None`
    /// where there is none, or where our role may not see it (`sees_sessions`).
    pub oldest_transaction_seconds: Option<f64>,
    /// Whether our role sees the sessions of other roles (`pg_read_all_stats`).
    pub sees_sessions: bool,
    /// Our role, as SQL writes it.
    pub role: String,
    /// The slots of `synchronized_standby_slots` that no standby reads: PostgreSQL sends us nothing beyond what these
    /// standbys have. Empty when this slot is not kept on standbys.
    pub missing_standbys: Vec<String>,
    /// For how long there have been any; 0 when there are none.
    pub standby_wait_seconds: f64,
    /// Transactions that outgrew `logical_decoding_work_mem` and went through the server's disk while decoding.
    pub spill_transactions_total: u64,
    /// Their bytes; a transaction read again counts again.
    pub spill_bytes_total: u64,
    /// How often decoding outgrew `logical_decoding_work_mem` (PostgreSQL 19).
    pub memory_exceeded_total: Option<u64>,
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SinkLine {
    /// Its name.
    pub name: String,
    /// What it promises of each event, such as `exactly once, …`.
    pub guarantee: String,
    /// Whether it takes rows.
    pub state: SinkState,
    /// Up to where it holds everything durably.
    pub durable_lsn: Lsn,
    /// The last event it holds durably.
    pub position: Option<Position>,
    /// WAL received that it does not hold yet.
    pub lag_bytes: u64,
    /// The part of it that waits in this process until the sink is given it.
    pub queue_lag_bytes: u64,
    /// The part of it that the sink was given.
    pub delivery_lag_bytes: u64,
    /// Age of the oldest committed row that it was given and does not hold; 0 when there is none.
    pub lag_seconds: f64,
    /// Age of the newest heartbeat whose place it holds durably: how old the newest is that it has for certain, also
    /// while no rows come. `None` before the first.
    pub heartbeat_age_seconds: Option<f64>,
    /// How long that heartbeat took from its commit until it was held.
    pub heartbeat_seconds: Option<f64>,
    /// Batches waiting for it or in its hands.
    pub queue_bytes: u64,
    /// Whether its full queue stops the reading.
    pub backpressure: bool,
    /// Rows it took since this process started.
    pub rows_total: u64,
    /// Why it does not take rows; `None` while it does.
    pub last_error: Option<String>,
    /// Its code, which `walcast explain` tells more about.
    pub last_error_code: Option<Code>,
    /// For how long it has not taken rows; `None` while it does.
    pub failing_seconds: Option<f64>,
    /// What is wrong with its target although it takes rows, and what to do.
    pub trouble: Option<String>,
    /// Whether its circuit breaker lets rows go to the target.
    pub breaker: BreakerState,
    /// While that is open: the time until the target is asked again.
    pub next_probe_seconds: Option<f64>,
    /// The stream of its own that feeds it, or waits to; `None` while it is fed with the others.
    pub lane: Option<LaneLine>,
}

/// A sink that has fallen behind alone, and the stream of its own that brings it back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneLine {
    /// What it does.
    pub state: LaneState,
    /// For how long it has been there.
    pub seconds: f64,
    /// Its replication slot; empty while that is made.
    pub slot: String,
    /// How far it has been received.
    pub received_lsn: Lsn,
    /// WAL between there, or what the sink holds while nothing is read, and the end of what the other sinks are fed.
    pub behind_bytes: u64,
    /// How long it takes at the present pace until it has caught up; `None` while that is not foreseeable.
    pub catch_up_seconds: Option<f64>,
    /// What PostgreSQL says of its slot; `None` before it was asked.
    pub kept: Option<LaneSlot>,
    /// Why it does not run; `None` while it does.
    pub last_error: Option<String>,
    /// Its code.
    pub last_error_code: Option<Code>,
}

/// What PostgreSQL says of a lane's slot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneSlot {
    /// Its name.
    pub slot: String,
    /// Whether somebody reads it.
    pub active: bool,
    /// reserved, extended, unreserved or lost; `missing` when there is no such slot.
    pub wal_status: String,
    /// Why it is lost, where the server says so.
    pub invalidation_reason: Option<String>,
    /// WAL kept because of it.
    pub retained_bytes: u64,
    /// WAL that may still be written before it is lost; `None` while there is no such bound.
    pub safe_wal_bytes: Option<u64>,
}

/// What a lane does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaneState {
    /// Its slot is made; until it is there, the walcast slot keeps the WAL.
    #[default]
    Opening,
    /// Its slot keeps the WAL, and nothing is read: the sink takes nothing.
    Parked,
    /// It feeds the sink.
    CatchingUp,
    /// The sink is fed with the others again; the slot goes when it holds what they do.
    Joining,
    /// Its slot can bring no more: the sink is to be made anew.
    Lost,
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

/// Whether rows go to the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// They do.
    #[default]
    Closed,
    /// The target is left alone, but for a probe now and then.
    Open,
    /// A probe has succeeded: rows go to it, and the first that are durable close it.
    HalfOpen,
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
            let ok = sink.state == SinkState::Ok && sink.lane.is_none();
            let lane = sink.lane.as_ref();
            let why = lane
                .and_then(|lane| lane.last_error.clone())
                .or_else(|| sink.last_error.clone())
                .or_else(|| Some(format!("it has fallen behind, and its own stream is {}", lane?.state)))
                .unwrap_or_else(|| format!("it is {}", sink.state));
            ReadyCheck { name: format!("sink {}", sink.name), ok, why: (!ok).then_some(why) }
        });
        std::iter::once(source).chain(sinks).collect()
    }

    /// Whether events flow from the source.
    pub fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }

    /// Whether events flow into every sink.
    pub fn is_ready(&self) -> bool {
        self.checks().iter().all(|check| check.ok)
    }

    /// The sinks that keep PostgreSQL from removing WAL of the walcast slot: those that hold least of what was received, unless
    /// all hold the same. What a sink lacks that has a slot of its own is kept by that one.
    pub fn holders(&self) -> Vec<&str> {
        let counting = || self.sinks.iter().filter(|sink| sink.counts());
        let held = || counting().map(|sink| sink.durable_lsn);
        let (Some(lowest), highest) = (held().min(), held().max()) else { return Vec::new() };
        let apart = highest > Some(lowest) || self.sinks.len() == 1;
        let holds =
            |sink: &&SinkLine| apart && sink.durable_lsn == lowest && lowest < self.source.received_lsn;
        counting().filter(holds).map(|sink| sink.name.as_str()).collect()
    }
}

impl SinkLine {
    /// Whether the walcast slot keeps what it lacks: also while its lane is made, and until that is let go.
    pub fn counts(&self) -> bool {
        self.lane.as_ref().is_none_or(LaneLine::counts)
    }

    /// Whether the stream can bring no more of what it lacks.
    pub fn is_lost(&self) -> bool {
        self.lane.as_ref().is_some_and(LaneLine::is_lost)
    }
}

impl LaneLine {
    fn counts(&self) -> bool {
        matches!(self.state, LaneState::Opening | LaneState::Joining)
    }

    /// Whether what only its slot had is gone. PostgreSQL may say so before the lane runs into it. Another error that trying
    /// again does not help leaves the slot as it is.
    pub fn is_lost(&self) -> bool {
        let resync = self.last_error_code.is_some_and(|code| code.kind() == Kind::Resync);
        let gone = |kept: &LaneSlot| matches!(kept.wal_status.as_str(), "lost" | "missing");
        self.state == LaneState::Lost && resync || !self.counts() && self.kept.as_ref().is_some_and(gone)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::Waiting => "waiting for the instance that reads the slot",
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

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half open",
        })
    }
}

impl fmt::Display for LaneState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LaneState::Opening => "opening",
            LaneState::Parked => "parked",
            LaneState::CatchingUp => "catching up",
            LaneState::Joining => "joining",
            LaneState::Lost => "lost",
        })
    }
}
