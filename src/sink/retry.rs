//! How long to wait before trying again.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Exponential backoff with jitter: about 0.1 s, 0.2 s, 0.4 s … 10 s, each between half and all of it.
#[derive(Debug)]
pub struct Backoff {
    attempts: u32,
    waited: Duration,
    jitter: StdRng,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::seeded(rand::random())
    }
}

impl Backoff {
    /// The same seed gives the same waits.
    pub fn seeded(seed: u64) -> Self {
        Backoff { attempts: 0, waited: Duration::ZERO, jitter: StdRng::seed_from_u64(seed) }
    }

    /// The wait before the next try.
    pub fn next_wait(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.attempts.min(16)).min(LONGEST);
        self.attempts += 1;
        self.waited = full.mul_f64(self.jitter.random_range(0.5..=1.0));
        self.waited
    }

    /// How often it was tried in a row.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// It worked: the next failure is a first one.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// It worked for a time: the next failure is a first one when that was longer than the wait before it, so
    /// that what fails again and again waits at least half of the time.
    pub fn worked_for(&mut self, time: Duration) {
        if time > self.waited {
            self.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_start_over() {
        let mut backoff = Backoff::default();
        assert!(backoff.next_wait() <= FIRST);
        let late = (0..40).map(|_| backoff.next_wait()).last().unwrap_or_default();
        assert!(late >= LONGEST / 2 && late <= LONGEST, "{late:?}");
        backoff.reset();
        assert!(backoff.next_wait() <= FIRST);
    }

    #[test]
    fn what_held_for_longer_than_it_was_waited_for_has_worked() {
        let mut backoff = Backoff::default();
        let waited = (0..7).map(|_| backoff.next_wait()).last().unwrap_or_default();
        backoff.worked_for(waited / 2);
        assert!(backoff.next_wait() > FIRST);
        backoff.worked_for(LONGEST * 2);
        assert!(backoff.next_wait() <= FIRST);
    }
}
