//! The last hour, a sample a second, in bounded memory: about 2 MB with five sinks.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use crate::lsn::Lsn;

/// How many samples are kept: an hour of them.
pub const SAMPLES_MAX: usize = 3_600;

/// How things were at one moment. Totals count from the start of this process.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Milliseconds since 1970; of each sample another.
    pub at_ms: i64,
    /// The same by a clock that nobody sets, from any beginning: rates are told by it.
    pub taken_at: Duration,
    /// Engagement events received.
    pub events_total: u64,
    /// The server's WAL end; `None` when the server has not been seen lately.
    pub wal_lsn: Option<Lsn>,
    /// WAL that the slot keeps.
    pub retained_bytes: Option<u64>,
    /// WAL that may still be written before the slot is lost; `None` also while there is no such bound.
    pub safe_wal_bytes: Option<u64>,
    /// The sinks, in the order of the pipeline: one that is there stays at its place.
    pub sinks: Vec<SinkSample>,
}

/// How one sink was.
#[derive(Debug, Clone, Copy, Default)]
pub struct SinkSample {
    /// Rows that it took.
    pub rows_total: u64,
    /// Writes with rows that it took.
    pub writes_total: u64,
    /// Rows of those writes.
    pub written_rows_total: u64,
    /// How long all of those writes took.
    pub write_micros_total: u64,
    /// Age of its oldest row that was not durable.
    pub lag_ms: f64,
    /// Batches that waited for it.
    pub queue_bytes: u64,
    /// Commit to durable over the minute before; `None` when nothing became durable in it.
    pub p50_ms: Option<f64>,
    /// The same, for the slowest of a hundred.
    pub p99_ms: Option<f64>,
}

/// The samples of the last hour.
#[derive(Debug, Default)]
pub struct History(VecDeque<Sample>);

/// Samples as columns, for charts: the n-th number of each column is of the n-th moment.
#[derive(Debug, Default, Serialize)]
pub struct Columns {
    /// Milliseconds since 1970.
    pub at_ms: Vec<i64>,
    /// Since the sample before.
    pub events_per_second: Vec<Option<f64>>,
    /// See [`Sample`].
    pub retained_bytes: Vec<Option<u64>>,
    /// See [`Sample`].
    pub safe_wal_bytes: Vec<Option<u64>>,
    /// In the order of the pipeline.
    pub sinks: Vec<SinkColumns>,
}

/// One sink's columns.
#[derive(Debug, Default, Serialize)]
pub struct SinkColumns {
    /// Since the sample before.
    pub rows_per_second: Vec<Option<f64>>,
    /// See [`SinkSample`].
    pub lag_ms: Vec<Option<f64>>,
    /// See [`SinkSample`].
    pub queue_bytes: Vec<Option<u64>>,
    /// See [`SinkSample`].
    pub p99_ms: Vec<Option<f64>>,
}

impl History {
    /// One more; the oldest goes when there are too many. The clock may go back, samples do not: their times go at half the
    /// speed until the clock has come up.
    pub fn push(&mut self, mut sample: Sample) -> i64 {
        if let Some(last) = self.0.back() {
            let passed = sample.taken_at.saturating_sub(last.taken_at).as_millis();
            sample.at_ms = sample.at_ms.max(last.at_ms + (passed as i64 / 2).max(1));
        }
        if self.0.len() >= SAMPLES_MAX {
            self.0.pop_front();
        }
        let at_ms = sample.at_ms;
        self.0.push_back(sample);
        at_ms
    }

    /// The newest.
    pub fn last(&self) -> Option<&Sample> {
        self.0.back()
    }

    /// By how much a total has grown a second over the last so many seconds, or since it is known.
    pub fn rate(&self, seconds: u64, total: impl Fn(&Sample) -> Option<u64>) -> Option<f64> {
        let last = self.0.back()?;
        let span = Duration::from_secs(seconds) + Duration::from_millis(500);
        let since =
            self.0.iter().rev().take_while(|sample| last.taken_at.saturating_sub(sample.taken_at) <= span);
        let first = since.filter(|sample| total(sample).is_some()).last()?;
        per_second(first, last, &total)
    }

    /// What came after this moment.
    pub fn columns(&self, after_ms: i64) -> Columns {
        let mut columns = Columns::default();
        let newest = self.0.back().map_or(0, |sample| sample.sinks.len());
        columns.sinks.resize_with(newest, SinkColumns::default);
        let first = self.0.partition_point(|sample| sample.at_ms <= after_ms);
        for at in first..self.0.len() {
            let Some(sample) = self.0.get(at) else { break };
            columns.push(at.checked_sub(1).and_then(|before| self.0.get(before)), sample);
        }
        columns
    }
}

impl Columns {
    fn push(&mut self, before: Option<&Sample>, sample: &Sample) {
        let rate = |total: &dyn Fn(&Sample) -> Option<u64>| {
            before.and_then(|before| per_second(before, sample, total)).map(rounded)
        };
        self.at_ms.push(sample.at_ms);
        self.events_per_second.push(rate(&|sample| Some(sample.events_total)));
        self.retained_bytes.push(sample.retained_bytes);
        self.safe_wal_bytes.push(sample.safe_wal_bytes);
        for (at, columns) in self.sinks.iter_mut().enumerate() {
            let sink = sample.sinks.get(at);
            columns.rows_per_second.push(rate(&|sample| sample.sinks.get(at).map(|sink| sink.rows_total)));
            columns.lag_ms.push(sink.map(|sink| rounded(sink.lag_ms)));
            columns.queue_bytes.push(sink.map(|sink| sink.queue_bytes));
            columns.p99_ms.push(sink.and_then(|sink| sink.p99_ms).map(rounded));
        }
    }
}

fn per_second(from: &Sample, to: &Sample, total: impl Fn(&Sample) -> Option<u64>) -> Option<f64> {
    let seconds = to.taken_at.saturating_sub(from.taken_at).as_secs_f64();
    let grown = total(to)?.saturating_sub(total(from)?);
    (seconds > 0.0).then(|| grown as f64 / seconds)
}

/// One decimal: half the bytes of the answer.
fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: i64, events_total: u64) -> Sample {
        let sinks = vec![SinkSample { rows_total: 2 * events_total, lag_ms: 1.26, ..SinkSample::default() }];
        let taken_at = Duration::from_millis(at_ms as u64);
        Sample { at_ms, taken_at, events_total, sinks, ..Sample::default() }
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let mut history = History::default();
        for second in 0..5_000 {
            history.push(sample(second * 1_000, second as u64));
        }
        let columns = history.columns(i64::MIN);
        assert_eq!((columns.at_ms.len(), columns.at_ms.first()), (SAMPLES_MAX, Some(&1_400_000)));
        assert_eq!(history.columns(4_997_000).at_ms, [4_998_000, 4_999_000]);
        assert!(history.columns(4_999_000).at_ms.is_empty());
    }

    #[test]
    fn rates_are_differences_of_totals_over_the_time_there_is() {
        let mut history = History::default();
        let events = |history: &History, seconds| history.rate(seconds, |sample| Some(sample.events_total));
        history.push(sample(0, 100));
        assert_eq!(events(&history, 5), None, "one sample has no rate");
        history.push(sample(2_000, 500));
        assert_eq!(events(&history, 5), Some(200.0));
        for second in 3..20 {
            history.push(sample(second * 1_000, 500));
        }
        assert_eq!(events(&history, 5), Some(0.0));
        assert_eq!(events(&history, 60), Some(400.0 / 19.0));
        assert_eq!(history.rate(5, |sample| sample.wal_lsn.map(|lsn| lsn.0)), None);
    }

    #[test]
    fn columns_are_of_one_length_also_while_sinks_are_missing() {
        let mut history = History::default();
        let taken_at = Duration::from_millis(500);
        history.push(Sample { at_ms: 500, taken_at, ..Sample::default() });
        history.push(sample(1_000, 0));
        history.push(sample(2_000, 7));
        let columns = history.columns(0);
        assert_eq!(columns.events_per_second, [None, Some(0.0), Some(7.0)]);
        let sink = columns.sinks.first().map(|sink| (sink.rows_per_second.clone(), sink.lag_ms.clone()));
        assert_eq!(sink, Some((vec![None, None, Some(14.0)], vec![None, Some(1.3), Some(1.3)])));
    }

    /// Ten events a second, while the clock jumps by an hour and is set right.
    #[test]
    fn a_clock_that_jumps_turns_no_order_and_changes_no_rate() {
        const HOUR: i64 = 3_600_000;
        for jump in [HOUR, -HOUR] {
            let (mut history, mut times) = (History::default(), Vec::new());
            for second in 0..60 {
                let off = if (20..40).contains(&second) { jump } else { 0 };
                let at_ms = 2 * HOUR + second * 1_000;
                times.push(history.push(Sample { at_ms: at_ms + off, ..sample(at_ms, second as u64 * 10) }));
            }
            assert!(times.is_sorted_by(|one, next| one < next), "{times:?}");
            let rates = history.columns(0).events_per_second;
            assert!(rates.iter().flatten().all(|rate| *rate == 10.0), "{rates:?}");
            assert_eq!(history.rate(30, |sample| Some(sample.events_total)), Some(10.0));
            for second in 60..10_000 {
                times.push(history.push(sample(2 * HOUR + second * 1_000, 0)));
            }
            assert_eq!(times.last(), Some(&(2 * HOUR + 9_999_000)), "it has come up");
        }
    }
}
