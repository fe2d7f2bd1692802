//! What a server's clock shows. PostgreSQL dates commits by its clock, and Redis expires keys by its own: how long ago a commit
//! was, or when a key goes, is told by that clock alone.
//!
//! Our own wall clock is not asked: it may differ, or be set. The server is asked now and then, and our monotonic clock carries
//! on in between what its clock showed. So an age that was found once grows by the second, whatever clock is set meanwhile.
//!
//! A server's clock that was set dates what it does from then on; what it has dated before is still to come, from its WAL. So
//! what it showed stays in force until something comes that is dated anew ([`ServerClock::dated`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Where it is read what a server's clock shows. Clones are the same clock. No call waits.
#[derive(Debug, Clone)]
pub struct ServerClock(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    anchor: Instant,
    /// What the clock showed at the anchor, had it always gone as it does now; microseconds since 1970.
    at_anchor: AtomicI64,
    /// By how much that may be wrong, in microseconds.
    doubt: AtomicI64,
    /// The same of what it was set to, which is not in force yet; [`NONE`] where it was not set.
    set_to: AtomicI64,
    set_to_doubt: AtomicI64,
}

const NONE: i64 = i64::MIN;

/// What a clock showed at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Showing {
    /// The moment.
    pub at: Instant,
    /// Microseconds since 1970.
    pub micros: i64,
}

impl Default for ServerClock {
    /// Our own clock as it is now, until the server has been asked.
    fn default() -> Self {
        let at_anchor = AtomicI64::new(Timestamp::now().as_microsecond());
        ServerClock(Arc::new(Shared {
            anchor: Instant::now(),
            at_anchor,
            doubt: AtomicI64::new(i64::MAX / 4),
            set_to: AtomicI64::new(NONE),
            set_to_doubt: AtomicI64::new(0),
        }))
    }
}

impl ServerClock {
    /// The server was asked at one moment and answered at the other that its clock shows this, microseconds since 1970. What is
    /// known already stays, unless this knows it better: an answer that took its time says little. What contradicts it is in
    /// force from [`Self::turn`] or [`Self::dated`] on.
    pub fn showed(&self, micros: i64, asked: Instant, answered: Instant) {
        let since = |moment: Instant| micros_of(moment.saturating_duration_since(self.0.anchor));
        let (earliest, latest) = (micros - since(answered), micros - since(asked));
        let (middle, doubt) = (earliest.midpoint(latest), (latest - earliest + 1) / 2);
        let (known, known_doubt) =
            (self.0.at_anchor.load(Ordering::Relaxed), self.0.doubt.load(Ordering::Relaxed));
        if (middle - known).abs() > doubt + known_doubt {
            self.0.set_to_doubt.store(doubt, Ordering::Relaxed);
            self.0.set_to.store(middle, Ordering::Relaxed);
            return;
        }
        // it was set right again before anybody has seen what it was set to
        self.0.set_to.store(NONE, Ordering::Relaxed);
        if doubt < known_doubt {
            self.0.at_anchor.store(middle, Ordering::Relaxed);
            self.0.doubt.store(doubt, Ordering::Relaxed);
        }
    }

    /// What it was set to is in force from now on.
    pub fn turn(&self) {
        let set_to = self.0.set_to.swap(NONE, Ordering::Relaxed);
        if set_to != NONE {
            self.0.at_anchor.store(set_to, Ordering::Relaxed);
            self.0.doubt.store(self.0.set_to_doubt.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Something has come that the server dated with this, a moment ago: what its clock was set to is in force when that is
    /// the nearer.
    pub fn dated(&self, micros: i64) {
        let set_to = self.0.set_to.load(Ordering::Relaxed);
        let now = micros_of(self.0.anchor.elapsed());
        let away = |at_anchor: i64| at_anchor.saturating_add(now).abs_diff(micros);
        if set_to != NONE && away(set_to) < away(self.0.at_anchor.load(Ordering::Relaxed)) {
            self.turn();
        }
    }

    /// What it shows now, microseconds since 1970.
    pub fn now(&self) -> i64 {
        self.showing().micros
    }

    /// What it shows now.
    pub fn showing(&self) -> Showing {
        let at = Instant::now();
        let since = micros_of(at.saturating_duration_since(self.0.anchor));
        Showing { at, micros: self.0.at_anchor.load(Ordering::Relaxed).saturating_add(since) }
    }
}

impl Showing {
    /// The moment at which it showed this, had it always gone as it did then.
    pub fn moment(&self, micros: i64) -> Instant {
        let ago = self.micros.saturating_sub(micros);
        let span = Duration::from_micros(ago.unsigned_abs());
        let moment = if ago < 0 { self.at.checked_add(span) } else { self.at.checked_sub(span) };
        moment.unwrap_or(self.at)
    }

    /// How long before that moment it showed this; nothing when that was yet to come.
    pub fn age(&self, micros: i64) -> Duration {
        Duration::from_micros(self.micros.saturating_sub(micros).try_into().unwrap_or(0))
    }
}

fn micros_of(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000;
    const HOUR: i64 = 3_600 * SECOND;

    async fn clock() -> ServerClock {
        let clock = ServerClock::default();
        tokio::time::advance(Duration::from_secs(3)).await;
        clock
    }

    /// An answer that took `took`, with what the clock showed in its middle.
    fn answered(clock: &ServerClock, micros: i64, took: Duration) {
        let now = Instant::now();
        clock.showed(micros, now - took / 2, now + took / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_clock_shows_is_carried_on_between_answers() {
        let clock = clock().await;
        answered(&clock, 7 * HOUR, Duration::from_millis(2));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(clock.now(), 7 * HOUR + 10 * SECOND);
        assert_eq!(clock.clone().showing().age(7 * HOUR), Duration::from_secs(10));
        assert_eq!(clock.showing().age(8 * HOUR), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_is_followed_and_ages_found_before_stay() {
        for jump in [HOUR, -HOUR] {
            let clock = clock().await;
            answered(&clock, 7 * HOUR, Duration::from_millis(2));
            let committed = clock.showing().moment(7 * HOUR - 3 * SECOND);
            tokio::time::advance(Duration::from_secs(10)).await;
            answered(&clock, 7 * HOUR + 10 * SECOND + jump, Duration::from_millis(2));
            // what was dated before comes first, perhaps again after a lost connection
            clock.dated(7 * HOUR - SECOND);
            assert_eq!(clock.showing().age(7 * HOUR - SECOND), Duration::from_secs(11));
            clock.dated(7 * HOUR + 9 * SECOND + jump);
            assert_eq!(clock.now(), 7 * HOUR + 10 * SECOND + jump);
            assert_eq!(committed.elapsed(), Duration::from_secs(13));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_right_at_once_was_never_wrong() {
        let clock = clock().await;
        for off in [0, HOUR, 0] {
            answered(&clock, 7 * HOUR + off, Duration::from_millis(2));
        }
        clock.turn();
        assert_eq!(clock.now(), 7 * HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_took_long_does_not_blur_what_is_known() {
        let clock = clock().await;
        answered(&clock, 7 * HOUR, Duration::from_micros(200));
        answered(&clock, 7 * HOUR + SECOND / 2, Duration::from_secs(2));
        assert_eq!(clock.now(), 7 * HOUR);
        answered(&clock, 7 * HOUR + 2 * SECOND, Duration::from_secs(2));
        clock.turn();
        assert_eq!(clock.now(), 7 * HOUR + 2 * SECOND, "this one contradicts it");
        answered(&clock, 7 * HOUR + SECOND, Duration::from_micros(100));
        assert_eq!(clock.now(), 7 * HOUR + SECOND, "this one knows better");
    }

    proptest! {
        #[test]
        fn any_time_at_all_has_an_age(micros in any::<i64>(), shown in any::<i64>()) {
            let showing = Showing { at: Instant::now(), micros: shown };
            let (moment, age) = (showing.moment(micros), showing.age(micros));
            prop_assert!(micros <= shown || age == Duration::ZERO);
            prop_assert!(moment <= showing.at || micros > shown);
        }

        /// Whatever answers come, what is shown is within the doubt of the last.
        #[test]
        fn the_last_answer_is_never_contradicted(answers in prop::collection::vec((-HOUR..HOUR, 0u64..3_000_000), 1..20)) {
            let clock = ServerClock::default();
            for (micros, took) in answers {
                let now = Instant::now();
                let took = Duration::from_micros(took);
                clock.showed(micros, now, now + took);
                clock.turn();
                let shown = clock.now() - micros_of(now.elapsed());
                let known = clock.0.doubt.load(Ordering::Relaxed);
                prop_assert!((shown + micros_of(took) / 2 - micros).abs() <= micros_of(took) / 2 + known + 50);
            }
        }
    }
}
