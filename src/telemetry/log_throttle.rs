//! Folds repeated log lines: the first is written, then how often it came again, at growing intervals.

use std::time::{Duration, Instant};

const FIRST_INTERVAL: Duration = Duration::from_secs(10);
const LONGEST_INTERVAL: Duration = Duration::from_secs(600);
/// So many different lines are known at a time; of more, the one not heard of for longest is forgotten.
const LINES_MAX: usize = 32;

/// The lines of one place in the code, told apart by their text without its digits.
#[derive(Debug, Default)]
pub struct LogThrottle(Vec<Line>);

#[derive(Debug)]
struct Line {
    text: String,
    heard_at: Instant,
    said_at: Instant,
    interval: Duration,
    unsaid: u64,
}

impl LogThrottle {
    /// Whether to write this line now: `Some` of how often it came since it was written last, and was left out.
    pub fn say(&mut self, text: &str) -> Option<u64> {
        self.say_at(text, Instant::now())
    }

    fn say_at(&mut self, text: &str, now: Instant) -> Option<u64> {
        let known = self.0.iter_mut().find(|line| is_same(&line.text, text));
        if let Some(line) = known.filter(|line| now - line.heard_at < LONGEST_INTERVAL) {
            return line.again(now);
        }
        self.0.retain(|line| !is_same(&line.text, text));
        if self.0.len() >= LINES_MAX
            && let Some(oldest) = (0..self.0.len()).min_by_key(|at| self.0.get(*at).map(|line| line.heard_at))
        {
            self.0.swap_remove(oldest);
        }
        let text = text.to_owned();
        self.0.push(Line { text, heard_at: now, said_at: now, interval: FIRST_INTERVAL, unsaid: 0 });
        Some(0)
    }
}

impl Line {
    fn again(&mut self, now: Instant) -> Option<u64> {
        self.heard_at = now;
        self.unsaid += 1;
        if now - self.said_at < self.interval {
            return None;
        }
        self.said_at = now;
        self.interval = (self.interval * 2).min(LONGEST_INTERVAL);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Positions, counts and waits differ from line to line; what went wrong does not.
fn is_same(one: &str, other: &str) -> bool {
    let letters = |text| str::bytes(text).filter(|byte| !byte.is_ascii_digit());
    letters(one).eq(letters(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn an_hour_of_one_error_makes_few_lines_and_loses_no_count() {
        let (mut throttle, start) = (LogThrottle::default(), Instant::now());
        let said: Vec<(u64, u64)> = (0..3_600)
            .filter_map(|second| {
                let text = format!("no broker answers within {second} s");
                throttle.say_at(&text, after(start, second)).map(|times| (second, times))
            })
            .collect();
        let at: Vec<u64> = said.iter().map(|(second, _)| *second).collect();
        assert_eq!(at, [0, 10, 30, 70, 150, 310, 630, 1230, 1830, 2430, 3030]);
        let told: u64 = said.iter().map(|(_, times)| times).sum();
        assert_eq!(told, 3030, "each that came after the first is counted in the next line");
    }

    #[test]
    fn different_errors_are_told_at_once_and_each_is_folded() {
        let (mut throttle, start) = (LogThrottle::default(), Instant::now());
        for second in 0..10 {
            let told = [
                throttle.say_at("refused", after(start, second)),
                throttle.say_at("late", after(start, second)),
            ];
            assert_eq!(told, if second == 0 { [Some(0), Some(0)] } else { [None, None] });
        }
    }

    #[test]
    fn what_has_been_quiet_for_long_is_news_again() {
        let (mut throttle, start) = (LogThrottle::default(), Instant::now());
        assert_eq!(throttle.say_at("refused", start), Some(0));
        assert_eq!(throttle.say_at("refused", after(start, 1)), None);
        assert_eq!(throttle.say_at("refused", after(start, 700)), Some(0));
        assert_eq!(throttle.say_at("refused", after(start, 701)), None);
    }

    #[test]
    fn memory_is_bounded_and_the_quietest_is_forgotten() {
        let (mut throttle, start) = (LogThrottle::default(), Instant::now());
        for at in 0..LINES_MAX as u64 {
            let text = "x".repeat(at as usize + 1);
            assert_eq!(throttle.say_at(&text, after(start, at)), Some(0));
        }
        assert_eq!(throttle.say_at("y", after(start, 40)), Some(0));
        assert_eq!(throttle.0.len(), LINES_MAX);
        assert_eq!(throttle.say_at("xx", after(start, 41)), Some(1), "still known, and counted");
        assert_eq!(throttle.say_at("x", after(start, 41)), Some(0), "forgotten");
    }
}
