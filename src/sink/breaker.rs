//! When a target is tried again, and when it is left alone: the circuit breaker under every sink.
//!
//! Closed, a failure is followed by another try, a little later each time. After so many failures in a row without a step
//! forward, or one that trying again cannot mend, it opens: from then on the target sees one probe at a time, far apart. A
//! probe that succeeds makes it half open: rows go to the target again, and its next durable checkpoint closes it, its next
//! failure opens it.
//!
//! Only a durable checkpoint is a step forward. A target that answers when asked where it stands, and loses or refuses what
//! it is given, is no better than one that does not answer.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
pub use crate::telemetry::status::BreakerState;

/// The wait after a first failure; each further one waits twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// No try while it is closed waits longer.
const LONGEST: Duration = Duration::from_secs(2);

/// `[breaker]`: when a target that fails is left alone.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// How many failures in a row, without anything made durable between, open a sink's circuit breaker.
    pub failures_max: u32,
    /// How long, in seconds, a target with an open breaker is left alone between two probes.
    pub probe_seconds: u64,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        BreakerConfig { failures_max: 5, probe_seconds: 10 }
    }
}

impl BreakerConfig {
    /// Refuses what cannot work.
    pub fn validate(&self) -> Result<()> {
        match (self.failures_max, self.probe_seconds) {
            (0, _) => Err(Error::new(Code::Configuration, "breaker.failures_max is 0")
                .hint("set it to 1 or more: after so many failures the target is left alone")),
            (_, 0) | (_, 3601..) => {
                Err(Error::new(Code::Configuration, "breaker.probe_seconds is not between 1 and 3600")
                    .hint("set how long a dead target is left alone between two probes, in seconds"))
            }
            _ => Ok(()),
        }
    }
}

/// One sink's.
#[derive(Debug)]
pub struct Breaker {
    failures_max: u32,
    probe_every: Duration,
    state: BreakerState,
    failures: u32,
    jitter: StdRng,
}

impl Breaker {
    /// A closed one. The same seed gives the same waits.
    pub fn seeded(config: &BreakerConfig, seed: u64) -> Breaker {
        Breaker {
            failures_max: config.failures_max.max(1),
            probe_every: Duration::from_secs(config.probe_seconds.max(1)),
            state: BreakerState::Closed,
            failures: 0,
            jitter: StdRng::seed_from_u64(seed),
        }
    }

    /// Whether rows go to the target.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// How often it has failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// It failed, and trying again may help unless `hopeless`. How long to leave the target alone now.
    pub fn failed(&mut self, hopeless: bool) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let opens = hopeless || self.state != BreakerState::Closed || self.failures >= self.failures_max;
        if opens {
            self.state = BreakerState::Open;
            // never less than was promised: several walcasts, or sinks, are not to come at one moment
            return self.probe_every.mul_f64(self.jitter.random_range(1.0..=1.2));
        }
        let full = FIRST.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST);
        full.mul_f64(self.jitter.random_range(0.5..=1.0))
    }

    /// The target says where it stands, and it fits. Whether that was a probe.
    pub fn answered(&mut self) -> bool {
        let probed = self.state == BreakerState::Open;
        if probed {
            self.state = BreakerState::HalfOpen;
        }
        probed
    }

    /// Something is durable that was not. Whether it is closed by that.
    pub fn progressed(&mut self) -> bool {
        self.failures = 0;
        std::mem::take(&mut self.state) != BreakerState::Closed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: BreakerConfig = BreakerConfig { failures_max: 5, probe_seconds: 10 };

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Fails { hopeless: bool },
        Answers,
        Progresses,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => any::<bool>().prop_map(|hopeless| Act::Fails { hopeless }),
            4 => Just(Act::Fails { hopeless: false }),
            3 => Just(Act::Answers),
            1 => Just(Act::Progresses),
        ];
        prop::collection::vec(act, 1..60)
    }

    proptest! {
        /// Against what was promised, told without a state machine: from the history of acts alone.
        #[test]
        fn a_dead_target_is_left_alone(acts in acts(), seed: u64) {
            let mut breaker = Breaker::seeded(&CONFIG, seed);
            for (at, act) in acts.iter().enumerate() {
                let since_progress = acts[..=at].rsplit(|act| matches!(act, Act::Progresses)).next().unwrap();
                let failures = since_progress.iter().filter(|act| matches!(act, Act::Fails { .. })).count();
                let hopeless = since_progress.iter().any(|act| matches!(act, Act::Fails { hopeless: true }));
                let was_open = breaker.state() != BreakerState::Closed;
                match *act {
                    Act::Fails { hopeless } => {
                        let wait = breaker.failed(hopeless);
                        let alone = wait >= Duration::from_secs(10) && wait <= Duration::from_secs(12);
                        prop_assert_eq!(alone, breaker.state() == BreakerState::Open);
                        prop_assert!(alone || wait <= LONGEST);
                    }
                    Act::Answers => prop_assert_eq!(breaker.answered(), was_open && matches!(acts[..at].last(), Some(Act::Fails { .. }))),
                    Act::Progresses => prop_assert_eq!(breaker.progressed(), was_open),
                }
                prop_assert_eq!(breaker.state() != BreakerState::Closed, hopeless || failures >= 5);
                let half = breaker.state() == BreakerState::HalfOpen;
                prop_assert_eq!(half, breaker.state() != BreakerState::Closed && matches!(act, Act::Answers));
            }
        }
    }

    #[test]
    fn waits_grow_until_it_opens() {
        let mut breaker = Breaker::seeded(&CONFIG, 1);
        let waits: Vec<Duration> = (0..5).map(|_| breaker.failed(false)).collect();
        assert!(waits.iter().take(4).all(|wait| *wait <= Duration::from_millis(800)), "{waits:?}");
        assert!(waits.iter().take(4).sum::<Duration>() >= Duration::from_millis(750), "{waits:?}");
        assert_eq!((breaker.state(), breaker.failures()), (BreakerState::Open, 5));
        assert!(breaker.answered());
        assert!(breaker.failed(false) >= Duration::from_secs(10), "half open, one failure is enough");
        assert!(breaker.answered() && breaker.progressed());
        assert!(breaker.failed(false) <= FIRST, "what follows is a first failure again");
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        assert!(BreakerConfig::default().validate().is_ok());
        for (failures_max, probe_seconds) in [(0, 10), (5, 0), (5, 3_601)] {
            let error = BreakerConfig { failures_max, probe_seconds }.validate().unwrap_err();
            assert_eq!(error.code(), Code::Configuration);
        }
    }
}
