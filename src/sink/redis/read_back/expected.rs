//! What Redis should hold.

use std::collections::HashMap;

use uuid::Uuid;

use super::reading::Reading;
use crate::event::Event;
use crate::lsn::Position;
use crate::sink::redis::ahead::Marks;
use crate::sink::redis::counters::{Day, engagement_ms};
use crate::sink::redis::keys;
use crate::sink::redis::window::{Sums, WINDOWS, Window};

/// Sums of events, as far as Redis keeps them. Its size goes with the contents, as Redis' own does, not with the
/// events.
pub struct Expected {
    pub(super) days: HashMap<(Uuid, i32), Day>,
    pub(super) minutes: HashMap<i64, HashMap<String, u64>>,
    pub(super) totals: Sums,
    pub(super) buckets: [HashMap<i64, Sums>; WINDOWS.len()],
    /// When Redis was read: what had expired then is left out.
    at: i64,
}

/// What is kept of an event that came after the snapshot.
pub struct Later {
    position: Position,
    content_id: Option<Uuid>,
    event_type: Option<String>,
    event_ts: i64,
    ms: u64,
    day: Day,
}

impl Later {
    /// Keeps the event.
    pub fn new(event: &Event, event_type: Option<&str>) -> Self {
        Later {
            position: event.position,
            content_id: event.content_id,
            event_type: event_type.map(str::to_owned),
            event_ts: event.event_ts,
            ms: engagement_ms(event),
            day: Day::of(event, event_type),
        }
    }

    /// The event's content and its milliseconds of engagement.
    pub(super) fn engagement(&self) -> Option<(Uuid, u64)> {
        self.content_id.map(|id| (id, self.ms))
    }
}

impl Expected {
    /// Of no event, for a reading at this time, microseconds since 1970.
    pub fn new(at: i64) -> Self {
        Expected {
            days: HashMap::new(),
            minutes: HashMap::new(),
            totals: Sums::new(),
            buckets: Default::default(),
            at,
        }
    }

    /// Adds an event of the snapshot.
    pub fn add(&mut self, event: &Event, event_type: Option<&str>) {
        self.add_where(&Later::new(event, event_type), None);
    }

    /// Adds an event that came after the snapshot to those keys whose reading covers it. A key that was not there
    /// is compared as of the snapshot.
    pub fn add_later(&mut self, event: &Later, reading: &Reading) {
        self.add_where(event, Some(reading));
    }

    fn add_where(&mut self, event: &Later, reading: Option<&Reading>) {
        let covered = |part: Option<u32>| match reading {
            None => true,
            Some(reading) => part.is_some_and(|part| reading.covers(part, event.position)),
        };
        let minute = keys::minute_of(event.event_ts);
        if keys::minute_expires_at(minute) * 1_000_000 > self.at
            && covered(reading.and_then(|reading| Some(reading.minutes.get(&minute)?.1)))
        {
            let event_type = event.event_type.as_deref().unwrap_or("null");
            *entry(self.minutes.entry(minute).or_default(), event_type) += 1;
        }
        let Some(id) = event.content_id else { return };
        let day = keys::day_of(event.event_ts);
        if keys::day_expires_at(day) * 1_000_000 > self.at
            && covered(reading.and_then(|reading| Some(reading.days.get(&(id, day))?.1)))
        {
            self.days.entry((id, day)).or_default().add(&event.day);
        }
        if event.ms == 0 {
            return;
        }
        if covered(reading.and_then(|reading| Some(reading.totals.get(&id)?.1))) {
            add(self.totals.entry(id).or_default(), event.ms);
        }
        for (at, (window, buckets)) in WINDOWS.iter().zip(&mut self.buckets).enumerate() {
            let bucket = window.bucket_of(event.event_ts);
            // what the boards may show: some buckets to either side of the window
            let near = window.bucket_of(self.at) - super::super::window::BUCKETS - 2;
            let part = |reading: &Reading| Some(reading.buckets.get(at)?.get(&bucket)?.part(&id));
            if bucket >= near && covered(reading.and_then(part)) {
                add(buckets.entry(bucket).or_default().entry(id).or_default(), event.ms);
            }
        }
    }

    /// What a window's board shows at least and at most of these events, when the clock that moves it is within
    /// `slack` of `at`. Sums that may lack events have no least.
    pub(super) fn window_at(&self, window: usize, at: i64, slack: i64, marks: &Marks) -> (Sums, Sums) {
        let (mut least, mut most) = (Sums::new(), Sums::new());
        let (Some(buckets), Some(of)) = (self.buckets.get(window), WINDOWS.get(window)) else {
            return (least, most);
        };
        let (early, late) = (of.buckets_at(at - slack), of.buckets_at(at + slack));
        for (bucket, sums) in buckets {
            let (in_early, in_late) = (early.contains(bucket), late.contains(bucket));
            let day = of.day_of(*bucket);
            for (id, ms) in sums {
                if in_early && in_late && !marks.has_day(id, day) {
                    add(least.entry(*id).or_default(), *ms);
                }
                if in_early || in_late {
                    add(most.entry(*id).or_default(), *ms);
                }
            }
        }
        (least, most)
    }
}

/// Redis is not given more than there can be.
pub(super) fn add(sum: &mut u64, ms: u64) {
    *sum = sum.saturating_add(ms);
}

fn entry<'a>(counts: &'a mut HashMap<String, u64>, name: &str) -> &'a mut u64 {
    if !counts.contains_key(name) {
        counts.insert(name.to_owned(), 0);
    }
    counts.entry(name.to_owned()).or_default()
}

impl Window {
    /// The bucket of a time.
    pub(super) fn bucket_of(&self, micros: i64) -> i64 {
        micros.div_euclid(self.bucket_seconds * 1_000_000)
    }

    /// The day that a bucket lies in.
    pub(super) fn day_of(&self, bucket: i64) -> i32 {
        keys::day_of(bucket.saturating_mul(self.bucket_seconds * 1_000_000))
    }

    /// The buckets of the window at a time.
    pub(super) fn buckets_at(&self, micros: i64) -> std::ops::RangeInclusive<i64> {
        let current = self.bucket_of(micros);
        current - super::super::window::BUCKETS + 1..=current
    }
}
