//! What the page shows, made once a second for all its readers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::telemetry::delivery::{Delivery, Failure};
use crate::telemetry::history::{Columns, History, Sample, SinkSample};
use crate::telemetry::latency::Minute;
use crate::telemetry::metrics;
use crate::telemetry::registry::StatusRegistry;
use crate::telemetry::status::{SinkLine, SlotStatus, Status};

const EVERY: Duration = Duration::from_secs(1);
/// Rates of rows are those of the last seconds, the rate of WAL that of the last minutes.
const ROWS_SECONDS: u64 = 5;
const WAL_SECONDS: u64 = 300;
/// Figures of the slot that are older say nothing of now.
const SLOT_AGE_MAX_SECONDS: f64 = 5.0;

/// The status and its figures.
#[derive(Debug, Serialize)]
struct Live<'a> {
    at_ms: i64,
    status: &'a Status,
    figures: Figures,
    /// What the history has new.
    step: Columns,
}

/// What is computed from the history.
#[derive(Debug, Serialize)]
struct Figures {
    /// Engagement events received.
    events_per_second: Option<f64>,
    /// WAL written at the server, ours or not.
    wal_bytes_per_second: Option<f64>,
    /// How long the slot may stand still at this rate until it is lost; `None` while there is no bound, or no rate.
    wal_safe_seconds: Option<f64>,
    /// From commit to receipt over the last minute: half of the transactions, and 99 of a hundred.
    received_p50_ms: Option<f64>,
    received_p99_ms: Option<f64>,
    /// Events without a content row since the process started.
    unknown_content_total: u64,
    /// Which sinks keep PostgreSQL from removing WAL.
    holders: Vec<String>,
    /// In the order of the status.
    sinks: Vec<SinkFigures>,
}

#[derive(Debug, Serialize)]
struct SinkFigures {
    rows_per_second: Option<f64>,
    writes_per_second: Option<f64>,
    /// Of the writes of the last seconds.
    rows_per_write: Option<f64>,
    write_ms: Option<f64>,
    retries_total: u64,
    /// From commit to durable over the last minute.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    latency_objective_ms: u64,
    last_failure: Option<Failure>,
}

/// The newest state of the page, as JSON, and the last hour. Clones are the same.
#[derive(Clone)]
pub struct Page {
    history: Arc<Mutex<History>>,
    newest: watch::Receiver<Arc<Frame>>,
}

/// One moment's state.
#[derive(Debug, Default)]
pub struct Frame {
    /// Milliseconds since 1970, later than those of every frame before; 0 before the first.
    pub at_ms: i64,
    /// Status and figures as JSON.
    pub json: String,
}

impl Page {
    /// The page of a registry, and the work that keeps it: a look a second, until it is dropped.
    pub fn of(registry: StatusRegistry) -> (Page, impl Future<Output = ()> + Send) {
        let history = Arc::new(Mutex::new(History::default()));
        let (frames, newest) = watch::channel(Arc::default());
        let mut recorder = Recorder {
            registry,
            began: Instant::now(),
            history: Arc::clone(&history),
            minutes: Vec::new(),
            received: Minute::default(),
        };
        let keeping = async move {
            let mut due = tokio::time::interval(EVERY);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                due.tick().await;
                frames.send_replace(Arc::new(recorder.look()));
            }
        };
        (Page { history, newest }, keeping)
    }

    /// Changes with every look; closed when no more will come.
    pub fn frames(&self) -> watch::Receiver<Arc<Frame>> {
        self.newest.clone()
    }

    /// The samples after this moment, an hour of them at most.
    pub fn columns(&self, after_ms: i64) -> Columns {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).columns(after_ms)
    }
}

struct Recorder {
    registry: StatusRegistry,
    began: Instant,
    history: Arc<Mutex<History>>,
    /// One for each sink.
    minutes: Vec<Minute>,
    received: Minute,
}

impl Recorder {
    fn look(&mut self) -> Frame {
        let (status, deliveries) = (self.registry.status(), self.registry.deliveries());
        self.minutes.resize_with(deliveries.len().max(self.minutes.len()), Minute::default);
        if let Some(latencies) = metrics::received_latencies() {
            self.received.look(latencies);
        }
        for (minute, delivery) in self.minutes.iter_mut().zip(&deliveries) {
            minute.look(&delivery.latencies);
        }
        let sinks = status.sinks.iter().zip(&deliveries).zip(&self.minutes);
        let sinks = sinks.map(|((line, delivery), minute)| sink_sample(line, delivery, minute));
        let sample = Sample { taken_at: self.began.elapsed(), ..sample(&status, sinks) };
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let at_ms = history.push(sample);
        let figures = figures(&history, &status, &deliveries, &self.received);
        let step = history.columns(at_ms - 1);
        drop(history);
        let json = serde_json::to_string(&Live { at_ms, status: &status, figures, step }).unwrap_or_default();
        Frame { at_ms, json }
    }
}

fn sample(status: &Status, sinks: impl Iterator<Item = SinkSample>) -> Sample {
    let slot = seen_lately(status);
    Sample {
        at_ms: Timestamp::now().as_millisecond(),
        events_total: status.source.events_total,
        wal_lsn: slot.map(|slot| slot.wal_lsn),
        retained_bytes: slot.map(|slot| slot.retained_bytes),
        safe_wal_bytes: slot.and_then(|slot| slot.safe_wal_bytes),
        sinks: sinks.collect(),
        ..Sample::default()
    }
}

fn sink_sample(line: &SinkLine, delivery: &Delivery, minute: &Minute) -> SinkSample {
    SinkSample {
        rows_total: line.rows_total,
        writes_total: delivery.writes_total(),
        written_rows_total: delivery.written_rows_total(),
        write_micros_total: delivery.write_micros_total(),
        lag_ms: line.lag_seconds * 1e3,
        queue_bytes: line.queue_bytes,
        p50_ms: milliseconds(minute, 0.5),
        p99_ms: milliseconds(minute, 0.99),
    }
}

fn figures(history: &History, status: &Status, deliveries: &[Arc<Delivery>], received: &Minute) -> Figures {
    let wal_bytes_per_second = history.rate(WAL_SECONDS, |sample| sample.wal_lsn.map(|lsn| lsn.0));
    let safe = seen_lately(status).and_then(|slot| slot.safe_wal_bytes);
    Figures {
        events_per_second: history.rate(ROWS_SECONDS, |sample| Some(sample.events_total)),
        wal_bytes_per_second,
        wal_safe_seconds: wal_bytes_per_second
            .filter(|rate| *rate > 0.0)
            .and_then(|rate| safe.map(|bytes| bytes as f64 / rate)),
        received_p50_ms: milliseconds(received, 0.5),
        received_p99_ms: milliseconds(received, 0.99),
        unknown_content_total: metrics::unknown_contents(),
        holders: status.holders().into_iter().map(str::to_owned).collect(),
        sinks: deliveries
            .iter()
            .enumerate()
            .map(|(at, delivery)| sink_figures(history, at, delivery))
            .collect(),
    }
}

fn sink_figures(history: &History, at: usize, delivery: &Delivery) -> SinkFigures {
    let rate =
        |total: fn(&SinkSample) -> u64| history.rate(ROWS_SECONDS, |sample| sample.sinks.get(at).map(total));
    let writes = rate(|sink| sink.writes_total);
    let each = |of: fn(&SinkSample) -> u64| Some(rate(of)? / writes.filter(|writes| *writes > 0.0)?);
    let now = history.last().and_then(|sample| sample.sinks.get(at));
    SinkFigures {
        rows_per_second: rate(|sink| sink.rows_total),
        writes_per_second: writes,
        rows_per_write: each(|sink| sink.written_rows_total),
        write_ms: each(|sink| sink.write_micros_total).map(|micros| micros / 1e3),
        retries_total: delivery.retries_total(),
        p50_ms: now.and_then(|sink| sink.p50_ms),
        p99_ms: now.and_then(|sink| sink.p99_ms),
        latency_objective_ms: delivery.promised().as_millis() as u64,
        last_failure: delivery.last_failure(),
    }
}

fn seen_lately(status: &Status) -> Option<&SlotStatus> {
    status.source.slot.as_ref().filter(|slot| slot.age_seconds <= SLOT_AGE_MAX_SECONDS)
}

fn milliseconds(minute: &Minute, share: f64) -> Option<f64> {
    minute.quantile(share).map(|length| length.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::lsn::{Checkpoint, Lsn, Position};
    use crate::telemetry::queue_gauge::QueueGauge;

    fn look(recorder: &mut Recorder) -> Value {
        serde_json::from_str(&recorder.look().json).unwrap_or_default()
    }

    #[test]
    fn figures_are_of_the_last_seconds_and_the_last_minute() {
        let registry = StatusRegistry::new();
        let mut recorder = Recorder {
            registry: registry.clone(),
            began: Instant::now(),
            history: Arc::default(),
            minutes: Vec::new(),
            received: Minute::default(),
        };
        registry.streaming(true);
        look(&mut recorder);
        let mut kafka = registry.sink("kafka", Checkpoint::at(Lsn(1)));
        assert_eq!(look(&mut recorder)["figures"]["sinks"][0]["latency_objective_ms"], 5_000);
        let position = |ordinal| Position { commit_lsn: Lsn(0x10), ordinal };
        let committed = tokio::time::Instant::now() - Duration::from_millis(40);
        kafka.takes(committed);
        kafka.wrote([(position(0), committed), (position(1), committed)]);
        kafka.durable(Checkpoint { position: Some(position(1)), durable_lsn: Lsn(0x20) });
        registry.source(Lsn(0x30), Lsn(0x20));
        registry.queue("kafka", QueueGauge::full(9));
        let now = look(&mut recorder);
        let sink = &now["figures"]["sinks"][0];
        assert_eq!(
            (&sink["rows_per_write"], &now["figures"]["holders"]),
            (&Value::from(2.0), &serde_json::json!(["kafka"]))
        );
        let p99 = sink["p99_ms"].as_f64().unwrap_or_default();
        assert!((37.0..400.0).contains(&p99), "{p99}");
        assert_eq!(now["status"]["sinks"][0]["queue_bytes"], 9);
        let columns = recorder.history.lock().map(|history| history.columns(0)).unwrap_or_default();
        assert_eq!(columns.at_ms.len(), 3);
        assert_eq!(
            columns.sinks.first().map(|sink| sink.queue_bytes.clone()),
            Some(vec![None, Some(0), Some(9)])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_comes_every_second_until_the_keeping_ends() {
        let (page, keeping) = Page::of(StatusRegistry::new());
        let keeping = tokio::spawn(keeping);
        let mut frames = page.frames();
        for _ in 0..3 {
            assert!(frames.changed().await.is_ok());
        }
        assert_eq!(page.columns(0).at_ms.last(), Some(&frames.borrow().at_ms));
        keeping.abort();
        while frames.changed().await.is_ok() {}
    }
}
