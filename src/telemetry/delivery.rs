//! What one sink's driver has counted since this process started, for the page's figures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::telemetry::latency::Latencies;

/// From commit to durable, for every sink that has no other promise.
pub const LATENCY_OBJECTIVE: Duration = Duration::from_secs(5);

/// Counts of one sink. Its driver writes, anybody reads, nobody waits.
#[derive(Default)]
pub struct Delivery {
    writes: AtomicU64,
    written_rows: AtomicU64,
    write_micros: AtomicU64,
    retries: AtomicU64,
    objective_millis: AtomicU64,
    /// From a transaction's commit until the sink held it durably.
    pub latencies: Latencies,
    last_failure: Mutex<Option<Failure>>,
}

/// What was wrong with a sink, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// When it was so.
    pub at: Timestamp,
    /// What was wrong, and what to do.
    pub why: String,
}

impl Delivery {
    /// A write of so many rows was taken after this time.
    pub fn wrote(&self, rows: u64, took: Duration) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_rows.fetch_add(rows, Ordering::Relaxed);
        self.write_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// It failed, and is asked again if so said.
    pub fn failed(&self, why: String, again: bool) {
        self.retries.fetch_add(u64::from(again), Ordering::Relaxed);
        let failure = Failure { at: Timestamp::now(), why };
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    /// Within what time of their commit it promises to hold rows.
    pub fn latency_objective(&self, promise: Duration) {
        self.objective_millis.store(promise.as_millis() as u64, Ordering::Relaxed);
    }

    /// Within what time of their commit it promises to hold rows.
    pub fn promised(&self) -> Duration {
        match self.objective_millis.load(Ordering::Relaxed) {
            0 => LATENCY_OBJECTIVE,
            millis => Duration::from_millis(millis),
        }
    }

    /// Writes that had rows and were taken.
    pub fn writes_total(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Rows of these writes.
    pub fn written_rows_total(&self) -> u64 {
        self.written_rows.load(Ordering::Relaxed)
    }

    /// How long all of them took, in microseconds.
    pub fn write_micros_total(&self) -> u64 {
        self.write_micros.load(Ordering::Relaxed)
    }

    /// How often it was asked again after an error.
    pub fn retries_total(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// What was wrong with it the last time, if it ever was.
    pub fn last_failure(&self) -> Option<Failure> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
