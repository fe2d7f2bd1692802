//! Every metric: its name, what it counts, and how it is counted. Prometheus reads them at `/metrics`.
//!
//! Counting before [`install`] was called does nothing, so tests and the other commands need no recorder.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use metrics::{Counter, Histogram, Unit, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::error::{Code, Error, Result};
use crate::event::schema::{CONTENT, ENGAGEMENT_EVENTS};
use crate::telemetry::latency::Latencies;

/// Names, and one table with all of them.
macro_rules! metrics {
    ($($kind:ident $name:ident = $text:literal, $unit:ident, $help:literal;)*) => {
        $(#[doc = $help] pub const $name: &str = $text;)*

        /// Every metric: name, kind, unit, meaning.
        pub const ALL: &[Metric] = &[
            $(Metric { name: $text, kind: MetricKind::$kind, unit: Unit::$unit, help: $help },)*
        ];
    };
}

metrics! {
    Gauge BUILD_INFO = "walcast_build_info", Count, "Always 1. The label `version` is walcast's version.";

    Gauge SLOT_ACTIVE = "walcast_slot_active", Count, "1 while a process reads the replication slot, else 0.";
    Gauge SLOT_INACTIVE_SECONDS = "walcast_slot_inactive_seconds", Seconds, "Time since anybody last read the slot. 0 while it is read.";
    Gauge SLOT_RETAINED_BYTES = "walcast_slot_retained_bytes", Bytes, "WAL that PostgreSQL keeps on disk for the slot.";
    Gauge SLOT_CONFIRMED_LAG_BYTES = "walcast_slot_confirmed_lag_bytes", Bytes, "WAL from the slot's confirmed LSN to the end of the WAL.";
    Gauge SLOT_SAFE_WAL_BYTES = "walcast_slot_safe_wal_bytes", Bytes, "WAL that can still be written before PostgreSQL may remove what the slot needs. Infinite without max_slot_wal_keep_size.";
    Gauge SLOT_WAL_STATUS = "walcast_slot_wal_status", Count, "1 for the slot's current status, 0 for the other statuses. Label `status`: reserved, extended, unreserved, lost or missing.";
    Gauge SLOT_SAMPLE_AGE_SECONDS = "walcast_slot_sample_age_seconds", Seconds, "Age of the walcast_slot_ figures. It grows while PostgreSQL does not answer.";
    Gauge SLOT_KEEP_MAX_BYTES = "walcast_slot_keep_max_bytes", Bytes, "The server's max_slot_wal_keep_size. Infinite when it is not set.";
    Gauge SLOT_FAILOVER = "walcast_slot_failover", Count, "1 if PostgreSQL keeps the slot on standbys too (PostgreSQL 17 and newer), else 0.";
    Gauge SLOT_STANDBY_WAIT_SECONDS = "walcast_slot_standby_wait_seconds", Seconds, "For how long PostgreSQL has held the stream back for a standby that synchronized_standby_slots names and that is not connected. 0 while it does not.";
    Gauge SLOT_REPLY_AGE_SECONDS = "walcast_slot_reply_age_seconds", Seconds, "Time since PostgreSQL last received a status update from walcast. 0 while nobody reads the slot, or without the right pg_read_all_stats.";
    Gauge SLOT_CATALOG_XMIN_AGE_TRANSACTIONS = "walcast_slot_catalog_xmin_age_transactions", Count, "Age, in transactions, of the oldest catalog rows that vacuum keeps for the slot.";
    Counter SLOT_SPILLED_TRANSACTIONS_TOTAL = "walcast_slot_spilled_transactions_total", Count, "Transactions larger than logical_decoding_work_mem, which PostgreSQL wrote to its disk while decoding.";
    Counter SLOT_SPILLED_BYTES_TOTAL = "walcast_slot_spilled_bytes_total", Bytes, "Bytes of transactions that PostgreSQL wrote to its disk while decoding.";
    Counter SLOT_MEMORY_EXCEEDED_TOTAL = "walcast_slot_memory_exceeded_total", Count, "How often decoding outgrew logical_decoding_work_mem. 0 before PostgreSQL 19, which tells it.";
    Gauge WAL_LSN = "walcast_wal_lsn", Bytes, "End of the server's WAL.";
    Gauge SENT_LSN = "walcast_sent_lsn", Bytes, "How far the walsender has sent. Absent without the right pg_read_all_stats.";
    Gauge RESTART_LSN = "walcast_restart_lsn", Bytes, "Oldest WAL that PostgreSQL keeps for the slot.";

    Gauge STREAMING = "walcast_streaming", Count, "1 while walcast reads the slot, else 0.";
    Gauge CONFIRMED_LSN = "walcast_confirmed_lsn", Bytes, "The confirmed LSN: the lowest durable LSN of the sinks that are fed together, as told to PostgreSQL for the walcast slot.";
    Gauge RECEIVED_LSN = "walcast_received_lsn", Bytes, "How far walcast has received the stream.";
    Gauge SOURCE_LAG_BYTES = "walcast_source_lag_bytes", Bytes, "WAL that the server has written and walcast has not received.";
    Gauge HEARTBEAT_AGE_SECONDS = "walcast_heartbeat_age_seconds", Seconds, "Time since a heartbeat last came back through the WAL. Absent before the first one.";
    Histogram SOURCE_COMMIT_TO_RECEIVE_SECONDS = "walcast_source_commit_to_receive_seconds", Seconds, "Time from a transaction's commit to its receipt. One sample for each transaction that was not replicated to the source from elsewhere: such a commit's time is another server's.";
    Counter EVENTS_TOTAL = "walcast_events_total", Count, "Row changes received, by table and operation.";
    Counter SKIPPED_CHANGES_TOTAL = "walcast_skipped_changes_total", Count, "Row changes that walcast does not deliver (updates and deletes of events, other tables), by table and operation.";
    Counter UNKNOWN_CONTENT_EVENTS_TOTAL = "walcast_unknown_content_events_total", Count, "Events whose content row does not exist. They are delivered with null content fields.";
    Counter OVERSIZED_ROWS_TOTAL = "walcast_oversized_rows_total", Count, "Events larger than pipeline.row_bytes_max, and events whose Kafka record would be too large with raw_payload. They are delivered without it: the former everywhere, the latter to Kafka.";
    Counter DEAD_LETTERS_TOTAL = "walcast_dead_letters_total", Count, "Rows that became dead letters, by reason.";    Counter CONTROL_MESSAGES_TOTAL = "walcast_control_messages_total", Count, "Control messages received, by outcome: taken, refused (in one transaction with changes of the source tables), or ignored (not ours).";

    Gauge BACKFILL_ROWS = "walcast_backfill_rows", Count, "Rows of before walcast that the open backfill has sent. Absent before the first one.";
    Gauge BACKFILL_ESTIMATED_ROWS = "walcast_backfill_estimated_rows", Count, "About how many rows the open backfill is to send.";
    Gauge DEAD_LETTERS_OPEN = "walcast_dead_letters_open", Count, "Dead letters that wait for somebody, by sink (all: refused before the sinks) and reason.";

    Gauge SINK_DURABLE_LSN = "walcast_sink_durable_lsn", Bytes, "The sink's durable LSN, by sink.";
    Gauge SINK_LAG_BYTES = "walcast_sink_lag_bytes", Bytes, "WAL that walcast has received and that is not durable in the sink, by sink.";
    Gauge SINK_QUEUE_LAG_BYTES = "walcast_sink_queue_lag_bytes", Bytes, "The part of walcast_sink_lag_bytes that the sink was not given yet: in its queue, or in PostgreSQL while it has a slot of its own. By sink.";
    Gauge SINK_DELIVERY_LAG_BYTES = "walcast_sink_delivery_lag_bytes", Bytes, "The part of walcast_sink_lag_bytes that the sink is writing, by sink.";
    Gauge SINK_LAG_SECONDS = "walcast_sink_lag_seconds", Seconds, "Age of the oldest committed row that the sink was given and that is not durable, by sink. 0 when there is none. What was replicated to the source from elsewhere ages from its receipt.";
    Gauge SINK_UP = "walcast_sink_up", Count, "1 while the sink takes rows, 0 while walcast retries it or it is blocked, by sink.";
    Gauge SINK_BLOCKED = "walcast_sink_blocked", Count, "1 while a retry cannot help the sink, by sink.";
    Gauge SINK_HEARTBEAT_AGE_SECONDS = "walcast_sink_heartbeat_age_seconds", Seconds, "Age of the newest heartbeat that lies below the sink's durable LSN, by sink. Absent before the first one.";
    Gauge SINK_HEARTBEAT_SECONDS = "walcast_sink_heartbeat_seconds", Seconds, "Time from that heartbeat's commit until the sink's durable LSN passed it, by sink.";
    Gauge QUEUE_BYTES = "walcast_queue_bytes", Bytes, "Batches that wait for the sink or that it is writing, by sink.";
    Gauge BREAKER_OPEN = "walcast_sink_breaker_open", Count, "1 while the sink's circuit breaker keeps rows from its target, by sink.";
    Gauge LANE_ACTIVE = "walcast_lane_active", Count, "1 while the sink has a replication slot of its own, by sink.";
    Gauge LANE_LOST = "walcast_lane_lost", Count, "1 while the slot of a sink alone can bring no more, by sink.";
    Gauge LANE_BEHIND_BYTES = "walcast_lane_behind_bytes", Bytes, "WAL between what a sink's own stream has received and what the others have, by sink.";
    Gauge LANE_RETAINED_BYTES = "walcast_lane_retained_bytes", Bytes, "WAL that PostgreSQL keeps for the slot of a sink alone, by sink.";
    Gauge LANE_SAFE_WAL_BYTES = "walcast_lane_safe_wal_bytes", Bytes, "WAL that can still be written before PostgreSQL may remove what that slot needs, by sink. Infinite without max_slot_wal_keep_size, or without such a slot.";
    Gauge BACKPRESSURE_ACTIVE = "walcast_backpressure_active", Count, "1 while the sink's full queue stops the reading, by sink.";
    Counter SINK_BATCHES_TOTAL = "walcast_sink_batches_total", Count, "Successful writes, by sink.";
    Counter SINK_ROWS_TOTAL = "walcast_sink_rows_total", Count, "Rows written, by sink.";
    Counter SINK_RETRIES_TOTAL = "walcast_sink_retries_total", Count, "Retries after an error, by sink.";
    Counter SINK_ERRORS_TOTAL = "walcast_sink_errors_total", Count, "Errors, by sink and kind.";
    Counter REDIS_EXPIRED_EVENTS_TOTAL = "walcast_redis_expired_events_total", Count, "Events that arrived after the Redis key they count in had expired, by key (engagement or stats:events).";
    Counter REDIS_AHEAD_EVENTS_TOTAL = "walcast_redis_ahead_events_total", Count, "Events dated further ahead than redis.future_hours_max. In Redis they count for all time, and in no day, minute or window.";
    Counter HTTP_REQUESTS_TOTAL = "walcast_http_requests_total", Count, "Requests that the HTTP sink has sent, by answer: taken, refused, later (408, 425, 429, 5xx), shut (an answer that any event would get), or none.";
    Gauge KAFKA_OPEN_TRANSACTION_SECONDS = "walcast_kafka_open_transaction_seconds", Seconds, "How long the partition's first open transaction has been open, by topic and partition. 0 once it has ended. A value far above the transaction timeout means that it hangs.";
    Gauge KAFKA_HIDDEN_RECORDS = "walcast_kafka_hidden_records", Count, "Records that read_committed readers cannot see yet (from the last stable offset to the high watermark), by topic and partition.";
    Gauge KAFKA_HUNG_TRANSACTIONS = "walcast_kafka_hung_transactions", Count, "Transactions in walcast's topics that have been open for longer than their timeout allows.";
    Gauge KAFKA_TRANSACTION_LIMIT_SECONDS = "walcast_kafka_transaction_limit_seconds", Seconds, "How long a transaction in walcast's topics may be open when all is well: kafka.transaction_timeout_ms, and 10 s for the brokers to notice.";
    Histogram SINK_QUEUE_SECONDS = "walcast_sink_queue_seconds", Seconds, "Time from the receipt of a batch's first row until the sink is given the batch, by sink. One sample for each batch.";
    Histogram SINK_DELIVERY_SECONDS = "walcast_sink_delivery_seconds", Seconds, "Time from then until the rows are durable in the sink, by sink. One sample for each write that becomes durable.";
    Histogram END_TO_END_LATENCY_SECONDS = "walcast_end_to_end_latency_seconds", Seconds, "Time from a transaction's commit (its receipt, if it was replicated to the source from elsewhere) until its rows are durable in the sink, by sink. One sample for each write that becomes durable.";
}

/// Edges of the latency histograms, in seconds; 5 s is the promise.
const LATENCY_EDGES_SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Samples of histograms wait in memory until they are sorted into their buckets.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// One line of [`ALL`].
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The name, with `walcast_` before it and the unit after it.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// Of what.
    pub unit: Unit,
    /// One sentence.
    pub help: &'static str,
}

/// What can be done with a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Samples by size.
    Histogram,
}

/// Makes this process count. Called again it gives the same handle. Inside a tokio runtime, which it needs
/// for its upkeep.
pub fn install() -> Result<PrometheusHandle> {
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(installed) = INSTALLED.get() {
        return Ok(installed.handle.clone());
    }
    let failed =
        |error| Error::new(Code::Prerequisite, "the metrics recorder cannot be installed").because(error);
    let handle = ALL
        .iter()
        .filter(|metric| metric.kind == MetricKind::Histogram)
        .map(|metric| metric.name)
        .try_fold(PrometheusBuilder::new(), |builder, name| {
            builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), &LATENCY_EDGES_SECONDS)
        })
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(failed)?;
    describe_all();
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    tokio::spawn(upkeep(handle.clone()));
    Ok(INSTALLED.get_or_init(|| Installed::new(handle)).handle.clone())
}

/// Tells the recorder what each metric means.
pub fn describe_all() {
    for metric in ALL {
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, metric.unit, metric.help),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.unit, metric.help),
            MetricKind::Histogram => metrics::describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
}

async fn upkeep(handle: PrometheusHandle) {
    let mut due = tokio::time::interval(UPKEEP_EVERY);
    loop {
        due.tick().await;
        handle.run_upkeep();
    }
}

/// A row change was received. `op`: insert, update, delete or truncate.
pub fn event_received(table: &'static str, op: &'static str) {
    if let Some(installed) = INSTALLED.get() {
        installed.events.at(table, op).increment(1);
    }
    if table == ENGAGEMENT_EVENTS.name && op == "insert" {
        ENGAGEMENTS.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many engagement events this process has received.
pub fn engagements_received() -> u64 {
    ENGAGEMENTS.load(Ordering::Relaxed)
}

/// A row change was received that means nothing to us.
pub fn change_skipped(table: &'static str, op: &'static str) {
    if let Some(installed) = INSTALLED.get() {
        installed.skipped.at(table, op).increment(1);
    }
}

/// An event has no content row.
pub fn unknown_content() {
    UNKNOWN_CONTENTS.fetch_add(1, Ordering::Relaxed);
    if let Some(installed) = INSTALLED.get() {
        installed.unknown_content.increment(1);
    }
}

/// How many events this process has received that have none.
pub fn unknown_contents() -> u64 {
    UNKNOWN_CONTENTS.load(Ordering::Relaxed)
}

/// An event went on without its payload.
pub fn oversized_row() {
    if let Some(installed) = INSTALLED.get() {
        installed.oversized.increment(1);
    }
}

/// A row went to the dead letters.
pub fn dead_letter(reason: &'static str) {
    dead_letters(reason, 1);
}

/// Rows became dead letters.
pub fn dead_letters(reason: &'static str, rows: u64) {
    counter!(DEAD_LETTERS_TOTAL, "reason" => reason).increment(rows);
}

/// The HTTP sink has sent a request, and this was the answer.
pub fn http_request(answer: &'static str) {
    counter!(HTTP_REQUESTS_TOTAL, "answer" => answer).increment(1);
}

/// What becomes of a control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TicketFate {
    /// What it asks for is done.
    Taken,
    /// It came with other changes.
    Refused,
    /// It is not ours.
    Ignored,
}

/// A control message was received.
pub fn ticket(fate: TicketFate) {
    let outcome = match fate {
        TicketFate::Taken => "taken",
        TicketFate::Refused => "refused",
        TicketFate::Ignored => "ignored",
    };
    if fate == TicketFate::Ignored {
        IGNORED_TICKETS.fetch_add(1, Ordering::Relaxed);
    }
    counter!(CONTROL_MESSAGES_TOTAL, "outcome" => outcome).increment(1);
}

/// How many control messages this process has ignored, since they are not ours.
pub fn ignored_tickets() -> u64 {
    IGNORED_TICKETS.load(Ordering::Relaxed)
}

/// A transaction came in whole, so long after its commit.
pub fn commit_received(after: Duration) {
    if let Some(installed) = INSTALLED.get() {
        let seconds = after.as_secs_f64();
        installed.commit_to_receive.record(seconds);
        installed.received.record(seconds);
    }
}

/// From commit to receipt, of each transaction since [`install`].
pub fn received_latencies() -> Option<&'static Latencies> {
    INSTALLED.get().map(|installed| &installed.received)
}

/// A heartbeat came back through the WAL.
pub fn heartbeat_received() {
    if let Some(installed) = INSTALLED.get() {
        // 0 is "none yet"
        let millis = installed.since.elapsed().as_millis() as u64 + 1;
        installed.heartbeat_millis.store(millis, Ordering::Relaxed);
    }
}

/// Time since the last heartbeat; `None` before the first.
pub fn heartbeat_age() -> Option<Duration> {
    let installed = INSTALLED.get()?;
    let millis = installed.heartbeat_millis.load(Ordering::Relaxed).checked_sub(1)?;
    Some(installed.since.elapsed().saturating_sub(Duration::from_millis(millis)))
}

/// What one sink's driver counts.
pub struct SinkCounters {
    name: &'static str,
    batches: Counter,
    rows: Counter,
    retries: Counter,
    latency: Histogram,
    queue: Histogram,
    delivery: Histogram,
}

impl SinkCounters {
    /// The counters of the sink with this name.
    pub fn new(name: &'static str) -> Self {
        SinkCounters {
            name,
            batches: counter!(SINK_BATCHES_TOTAL, "sink" => name),
            rows: counter!(SINK_ROWS_TOTAL, "sink" => name),
            retries: counter!(SINK_RETRIES_TOTAL, "sink" => name),
            latency: histogram!(END_TO_END_LATENCY_SECONDS, "sink" => name),
            queue: histogram!(SINK_QUEUE_SECONDS, "sink" => name),
            delivery: histogram!(SINK_DELIVERY_SECONDS, "sink" => name),
        }
    }

    /// It took a write.
    pub fn wrote(&self, rows: u64) {
        self.batches.increment(1);
        self.rows.increment(rows);
    }

    /// It is given a batch, so long after its first row came.
    pub fn given(&self, after: Duration) {
        self.queue.record(after);
    }

    /// It holds a transaction durably that was committed so many seconds ago, and was given to it so long ago.
    pub fn durable(&self, seconds: f64, given: Duration) {
        self.latency.record(seconds);
        self.delivery.record(given);
    }

    /// It failed.
    pub fn failed(&self, error: &Error) {
        let kind = format!("{:?}", error.kind()).to_lowercase();
        counter!(SINK_ERRORS_TOTAL, "sink" => self.name, "kind" => kind).increment(1);
        if error.class() == crate::error::Class::Transient {
            self.retries.increment(1);
        }
    }
}

/// Handles of what is counted for each row, looked up once.
struct Installed {
    handle: PrometheusHandle,
    since: Instant,
    events: Changes,
    skipped: Changes,
    unknown_content: Counter,
    oversized: Counter,
    commit_to_receive: Histogram,
    received: Latencies,
    heartbeat_millis: AtomicU64,
}

static INSTALLING: Mutex<()> = Mutex::new(());
static INSTALLED: OnceLock<Installed> = OnceLock::new();
static ENGAGEMENTS: AtomicU64 = AtomicU64::new(0);
static IGNORED_TICKETS: AtomicU64 = AtomicU64::new(0);
static UNKNOWN_CONTENTS: AtomicU64 = AtomicU64::new(0);

impl Installed {
    fn new(handle: PrometheusHandle) -> Self {
        Installed {
            handle,
            since: Instant::now(),
            events: Changes::new(EVENTS_TOTAL),
            skipped: Changes::new(SKIPPED_CHANGES_TOTAL),
            unknown_content: counter!(UNKNOWN_CONTENT_EVENTS_TOTAL),
            oversized: counter!(OVERSIZED_ROWS_TOTAL),
            commit_to_receive: histogram!(SOURCE_COMMIT_TO_RECEIVE_SECONDS),
            received: Latencies::default(),
            heartbeat_millis: AtomicU64::new(0),
        }
    }
}

const TABLES: [&str; 3] = [ENGAGEMENT_EVENTS.name, CONTENT.name, "other"];
const OPS: [&str; 4] = ["insert", "update", "delete", "truncate"];

/// A counter for each table and operation.
struct Changes([[Counter; OPS.len()]; TABLES.len()]);

impl Changes {
    fn new(name: &'static str) -> Self {
        Changes(TABLES.map(|table| OPS.map(|op| counter!(name, "table" => table, "op" => op))))
    }

    fn at(&self, table: &str, op: &str) -> &Counter {
        let [events, content, other] = &self.0;
        let [insert, update, delete, truncate] = match table {
            name if name == ENGAGEMENT_EVENTS.name => events,
            name if name == CONTENT.name => content,
            _ => other,
        };
        match op {
            "insert" => insert,
            "update" => update,
            "delete" => delete,
            _ => truncate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ours_unique_and_end_in_their_unit() {
        let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            assert!(metric.name.starts_with("walcast_"), "{}", metric.name);
            let suffix = match (metric.kind, metric.unit) {
                (MetricKind::Counter, _) => "_total",
                (_, Unit::Seconds) => "_seconds",
                (_, Unit::Bytes) if metric.name.ends_with("_lsn") => "_lsn",
                (_, Unit::Bytes) => "_bytes",
                _ => "",
            };
            assert!(metric.name.ends_with(suffix), "{} without {suffix}", metric.name);
        }
    }

    #[tokio::test]
    async fn what_was_counted_is_rendered_with_its_meaning() {
        let handle = install().unwrap();
        change_skipped("content", "truncate");
        heartbeat_received();
        commit_received(Duration::from_secs(7));
        let counters = SinkCounters::new("metrics-test");
        counters.wrote(12);
        counters.durable(0.003, Duration::from_millis(2));
        counters.failed(&Error::new(Code::Unavailable, "down"));
        let text = handle.render();
        for line in [
            "# TYPE walcast_sink_rows_total counter",
            "# HELP walcast_sink_rows_total Rows written, by sink.",
            r#"walcast_skipped_changes_total{table="content",op="truncate"} 1"#,
            r#"walcast_sink_rows_total{sink="metrics-test"} 12"#,
            r#"walcast_sink_errors_total{sink="metrics-test",kind="unavailable"} 1"#,
            r#"walcast_sink_retries_total{sink="metrics-test"} 1"#,
            r#"walcast_end_to_end_latency_seconds_bucket{sink="metrics-test",le="5"} 1"#,
            r#"walcast_end_to_end_latency_seconds_bucket{sink="metrics-test",le="0.0025"} 0"#,
            r#"walcast_source_commit_to_receive_seconds_bucket{le="5"} 0"#,
            r#"walcast_source_commit_to_receive_seconds_bucket{le="10"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
        assert!(heartbeat_age().unwrap() < Duration::from_secs(60));
    }
}
