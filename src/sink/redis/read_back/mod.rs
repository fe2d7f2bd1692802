//! Whether Redis holds what the events amount to: [`Reading`] is what it holds, [`Expected`] what it should, and
//! [`differences`] holds the one against the other.
//!
//! Redis is read in parts, large keys in pages, each in one script together with the checkpoint that covers it: no script
//! runs long. So what is expected of a key is cut at that key's own checkpoint. Boards follow the counters by up to a
//! second: a score must lie between what the events before the reading amount to and what all up to the board's checkpoint
//! do. A key that lacks events which came too early ([`super::ahead`]) must not hold more than expected.

mod expected;
mod reading;

use async_trait::async_trait;
use uuid::Uuid;

pub use expected::{Expected, Later};
use reading::Scores;
pub use reading::{Reading, is_ours, read};

use super::board::{SIZE, seconds_text};
use super::counters::Day;
use super::window::{Sums, WINDOWS};
use super::{RedisConfig, keys};
use crate::error::Result;
use crate::event::Event;
use crate::lsn::{Checkpoint, HistoryId};
use crate::sink::read_back::{KeyFound, KeyState, ReadSums};

/// Keys that expire this soon after the reading are left out: clocks differ.
const EXPIRY_SLACK_SECONDS: i64 = 60;

/// How far walcast's clock may be from ours.
const CLOCK_SLACK_MICROS: i64 = 3_000_000;

/// Reads Redis, and sums up what it should hold.
pub struct ReadRedis {
    config: RedisConfig,
    read: Option<(Reading, Expected)>,
    later: Vec<Later>,
}

impl ReadRedis {
    /// A reader that connects when it reads.
    pub fn new(config: RedisConfig) -> Self {
        ReadRedis { config, read: None, later: Vec::new() }
    }
}

#[async_trait]
impl ReadSums for ReadRedis {
    async fn read(&mut self, history_id: &HistoryId) -> Result<Checkpoint> {
        let reading = read(&self.config, history_id).await?;
        let (checkpoint, expected) = (reading.checkpoint(), Expected::new(reading.at));
        self.read = Some((reading, expected));
        Ok(checkpoint)
    }

    fn add(&mut self, event: &Event, event_type: Option<&str>) {
        if let Some((_, expected)) = &mut self.read {
            expected.add(event, event_type);
        }
    }

    fn add_later(&mut self, event: &Event, event_type: Option<&str>) {
        self.later.push(Later::new(event, event_type));
    }

    fn compare(self: Box<Self>, unsure: &dyn Fn(&Uuid) -> bool, found: &mut dyn FnMut(KeyFound)) {
        if let Some((reading, expected)) = self.read {
            differences(expected, &self.later, &reading, unsure, found);
        }
    }
}

/// Compares all that can be compared. `expected` is of the snapshot, `later` what came after it, up to the reading's
/// checkpoint at least. `unsure` tells the contents whose percents are not known, because their length has changed.
pub fn differences(
    mut expected: Expected,
    later: &[Later],
    reading: &Reading,
    unsure: &dyn Fn(&Uuid) -> bool,
    found: &mut dyn FnMut(KeyFound),
) {
    for key in &reading.unreadable {
        found(KeyFound { state: KeyState::Different, key: key.clone(), fields: Vec::new() });
    }
    boards(&expected, later, reading, found);
    for event in later {
        expected.add_later(event, reading);
    }
    days(&expected, reading, unsure, found);
    minutes(&expected, reading, found);
    totals(&expected, reading, found);
    buckets(&expected, reading, found);
}

fn days(
    expected: &Expected,
    reading: &Reading,
    unsure: &dyn Fn(&Uuid) -> bool,
    found: &mut dyn FnMut(KeyFound),
) {
    let alive = |day: i32| keys::day_expires_at(day) > reading.seconds() + EXPIRY_SLACK_SECONDS;
    for ((id, day), wanted) in expected.days.iter().filter(|((_, day), _)| alive(*day)) {
        let held = reading.days.get(&(*id, *day)).map(|(held, _)| held);
        let mut fields = held.map_or_else(Vec::new, |held| held.differences(wanted));
        if unsure(id) {
            fields.retain(|field| !Day::is_percent(field));
        }
        let more = held.map_or_else(Vec::new, |held| held.beyond(wanted));
        let only_more = fields.iter().all(|field| more.contains(field));
        let mut state = judge(held.is_some(), !fields.is_empty(), only_more);
        if state != KeyState::Same && reading.marks.has_day(id, *day) {
            fields.retain(|field| more.contains(field));
            state = if fields.is_empty() { KeyState::Less } else { KeyState::More };
        }
        found(KeyFound { state, key: keys::engagement(id, *day), fields });
    }
    for (id, day) in reading.days.keys().filter(|key| alive(key.1) && !expected.days.contains_key(key)) {
        found(unexpected(keys::engagement(id, *day)));
    }
}

fn minutes(expected: &Expected, reading: &Reading, found: &mut dyn FnMut(KeyFound)) {
    let alive = |minute: i64| keys::minute_expires_at(minute) > reading.seconds() + EXPIRY_SLACK_SECONDS;
    for (minute, wanted) in expected.minutes.iter().filter(|(minute, _)| alive(**minute)) {
        let held = reading.minutes.get(minute).map(|(held, _)| held);
        let of_wanted = |kind: &String| wanted.get(kind).copied().unwrap_or_default();
        let is_more = || held.is_some_and(|held| held.iter().any(|(kind, count)| *count > of_wanted(kind)));
        let of_held = |kind: &String| held.and_then(|held| held.get(kind)).copied().unwrap_or_default();
        let is_less = wanted.iter().any(|(kind, count)| of_held(kind) < *count);
        let mut state = judge(held.is_some(), held != Some(wanted), !is_less);
        if state != KeyState::Same && reading.marks.has_minute(*minute) {
            state = if is_more() { KeyState::More } else { KeyState::Less };
        }
        found(KeyFound { state, key: keys::minute(*minute), fields: Vec::new() });
    }
    for minute in reading.minutes.keys().filter(|at| alive(**at) && !expected.minutes.contains_key(at)) {
        found(unexpected(keys::minute(*minute)));
    }
}

fn totals(expected: &Expected, reading: &Reading, found: &mut dyn FnMut(KeyFound)) {
    let key = |id: &Uuid| format!("{} {id}", keys::TOTALS);
    for (id, wanted) in &expected.totals {
        let held = reading.totals.get(id).map(|(held, _)| held);
        found(KeyFound {
            state: judge(held.is_some(), held != Some(wanted), held > Some(wanted)),
            key: key(id),
            fields: Vec::new(),
        });
    }
    for id in reading.totals.keys().filter(|id| !expected.totals.contains_key(*id)) {
        found(unexpected(key(id)));
    }
}

/// Only buckets of the window: a late event leaves the others as they are.
fn buckets(expected: &Expected, reading: &Reading, found: &mut dyn FnMut(KeyFound)) {
    let none = Sums::new();
    for ((window, wanted), held) in WINDOWS.iter().zip(&expected.buckets).zip(&reading.buckets) {
        for bucket in window.buckets_at(reading.at + CLOCK_SLACK_MICROS) {
            let wanted = wanted.get(&bucket).unwrap_or(&none);
            let held = held.get(&bucket).map_or(&none, |held| &held.sums);
            if wanted.is_empty() && held.is_empty() {
                continue;
            }
            let may_lack = |id: &Uuid| reading.marks.has_day(id, window.day_of(bucket));
            let state = match (exceeds(held, wanted, |_| true), exceeds(wanted, held, |id| !may_lack(id))) {
                _ if held == wanted => KeyState::Same,
                (false, false) => KeyState::Less,
                (true, false) if wanted.is_empty() => KeyState::Unexpected,
                (true, false) => KeyState::More,
                (_, true) if held.is_empty() => KeyState::Missing,
                (_, true) => KeyState::Different,
            };
            found(KeyFound { state, key: keys::bucket(window, bucket), fields: Vec::new() });
        }
    }
}

/// Whether one side has more than the other of any of these contents.
fn exceeds(one: &Sums, other: &Sums, of: impl Fn(&Uuid) -> bool) -> bool {
    one.iter().any(|(id, ms)| other.get(id).is_none_or(|other| ms > other) && of(id))
}

fn boards(expected: &Expected, later: &[Later], reading: &Reading, found: &mut dyn FnMut(KeyFound)) {
    let mut more = Sums::new();
    for (id, ms) in later.iter().filter_map(Later::engagement) {
        expected::add(more.entry(id).or_default(), ms);
    }
    let totals = &expected.totals;
    Board { key: keys::BOARD_ALL, at_least: totals, at_most: totals, more: &more }
        .compare(reading, true, found);
    for (at, window) in WINDOWS.iter().enumerate() {
        let (at_least, at_most) =
            expected.window_at(at, reading.boards_at, CLOCK_SLACK_MICROS, &reading.marks);
        let key = keys::board(window);
        let board = Board { key: &key, at_least: &at_least, at_most: &at_most, more: &more };
        board.compare(reading, true, found);
        let prefix = format!("{key}:");
        for key in reading.boards.keys().filter(|key| key.starts_with(&prefix)) {
            Board { key, ..board }.compare(reading, false, found);
        }
    }
}

/// What a board may show: each content's sum lies between `at_least` and `at_most` and what came meanwhile.
struct Board<'a> {
    key: &'a str,
    at_least: &'a Sums,
    at_most: &'a Sums,
    more: &'a Sums,
}

impl Board<'_> {
    /// `whole`: every content belongs to it.
    fn compare(&self, reading: &Reading, whole: bool, found: &mut dyn FnMut(KeyFound)) {
        let none = Scores::new();
        let shown = reading.boards.get(self.key).unwrap_or(&none);
        let of = |sums: &Sums, id: &Uuid| sums.get(id).copied().unwrap_or_default();
        let mut tell = |state, id: &Uuid| {
            found(KeyFound { state, key: format!("{} {id}", self.key), fields: Vec::new() });
        };
        for (id, shown) in shown {
            let most = of(self.at_most, id).saturating_add(of(self.more, id));
            let right = score(of(self.at_least, id))..=score(most);
            tell(judge(true, !right.contains(shown), shown > right.end()), id);
        }
        if !whole {
            return;
        }
        let lowest = shown.values().copied().min_by(f64::total_cmp).filter(|_| shown.len() >= SIZE);
        let lowest = lowest.unwrap_or_default();
        for (id, _) in
            self.at_least.iter().filter(|(id, ms)| score(**ms) > lowest && !shown.contains_key(*id))
        {
            tell(KeyState::Missing, id);
        }
    }
}

/// The score, in seconds, that a sum of milliseconds has in Redis: it reads the text that the sink writes as the nearest
/// floating-point number. Calculated in another way, long sums would be next to it.
fn score(ms: u64) -> f64 {
    // digits and a point are a number
    seconds_text(ms).parse().unwrap_or(f64::NAN)
}

fn judge(there: bool, differs: bool, only_more: bool) -> KeyState {
    match (there, differs) {
        (false, _) => KeyState::Missing,
        (true, true) if only_more => KeyState::More,
        (true, true) => KeyState::Different,
        (true, false) => KeyState::Same,
    }
}

fn unexpected(key: String) -> KeyFound {
    KeyFound { state: KeyState::Unexpected, key, fields: Vec::new() }
}
