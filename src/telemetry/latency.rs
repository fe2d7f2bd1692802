//! Latencies by size, cheap enough to count each transaction, and their quantiles over the last minute.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Eight buckets for each doubling: a quantile is read within 7 % of what it is.
const PER_DOUBLING: usize = 8;
/// Up to 2^37 microseconds, 38 hours; what is longer counts as that.
const OCTAVE_MAX: u32 = 36;
const BUCKETS: usize = (OCTAVE_MAX as usize - 1) * PER_DOUBLING;
/// One a second: what the minute is made of.
const SNAPSHOTS: usize = 61;

/// Counts since the process started, by size. Recording is one addition.
pub struct Latencies([AtomicU32; BUCKETS]);

impl Default for Latencies {
    fn default() -> Self {
        Latencies([const { AtomicU32::new(0) }; BUCKETS])
    }
}

impl Latencies {
    /// One more of this length.
    pub fn record(&self, seconds: f64) {
        if let Some(count) = self.0.get(bucket_of((seconds * 1e6) as u64)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counts(&self) -> Counts {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

type Counts = Box<[u32]>;

/// The last minute of some [`Latencies`], looked at once a second. About 70 kB.
#[derive(Default)]
pub struct Minute(VecDeque<Counts>);

impl Minute {
    /// Looks at them once more.
    pub fn look(&mut self, latencies: &Latencies) {
        if self.0.len() >= SNAPSHOTS {
            self.0.pop_front();
        }
        self.0.push_back(latencies.counts());
    }

    /// The length that this share of the minute's latencies does not pass; `None` when there were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let (oldest, newest) = (self.0.front()?, self.0.back()?);
        let counts = || newest.iter().zip(oldest).map(|(new, old)| u64::from(new.wrapping_sub(*old)));
        let total: u64 = counts().sum();
        let wanted = ((total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = |count| {
            seen += count;
            seen >= wanted
        };
        counts().position(reached).map(|bucket| Duration::from_micros(middle_of(bucket)))
    }
}

fn bucket_of(micros: u64) -> usize {
    let octave = micros.max(1).ilog2().min(OCTAVE_MAX);
    if octave < 3 {
        return micros as usize;
    }
    let within = (micros >> (octave - 3)).min(15) as usize - PER_DOUBLING;
    (octave as usize - 2) * PER_DOUBLING + within
}

fn middle_of(bucket: usize) -> u64 {
    if bucket < PER_DOUBLING {
        return bucket as u64;
    }
    let width = 1 << (bucket / PER_DOUBLING - 1);
    (PER_DOUBLING + bucket % PER_DOUBLING) as u64 * width + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_in_the_bucket_whose_middle_is_close_to_it() {
        for micros in
            (0..2_000).chain((11..37).flat_map(|power| [(1 << power) - 1, 1 << power, 3 << (power - 1)]))
        {
            let middle = middle_of(bucket_of(micros));
            assert!(middle.abs_diff(micros) <= micros / 14 + 1, "{micros} is read as {middle}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_last_minute() {
        let (latencies, mut minute) = (Latencies::default(), Minute::default());
        latencies.record(3_000.0);
        minute.look(&latencies);
        assert_eq!(minute.quantile(0.5), None, "what was before it was looked at is not of this minute");
        (0..98).for_each(|_| latencies.record(0.010));
        (0..2).for_each(|_| latencies.record(7.0));
        minute.look(&latencies);
        let about = |share: f64, seconds: f64| {
            let found = minute.quantile(share).map(|found| found.as_secs_f64()).unwrap_or_default();
            assert!((found / seconds - 1.0).abs() < 0.07, "{share}: {found} and not {seconds}");
        };
        about(0.5, 0.010);
        about(0.98, 0.010);
        about(0.99, 7.0);
        (0..SNAPSHOTS).for_each(|_| minute.look(&latencies));
        assert_eq!((minute.quantile(0.5), minute.0.len()), (None, SNAPSHOTS));
    }
}
