//! Cutting the event sequence into flushes, and what each amounts to. Pure.
//!
//! A flush is a prefix of what is not yet at Redis. It ends before it would touch more than [`TOUCHED_MAX`]
//! contents (or days of contents, or minutes), so that one script stays short, and never between rows of one
//! position: its mark is the position of its last row, and every cut is a whole state.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::keys;
use super::tally::{Day, engagement_ms};
use super::window::{Ring, WINDOWS};
use crate::batch::{Batch, Row};
use crate::event::Event;
use crate::lsn::Mark;
use crate::model::content::Content;

/// Contents, days of contents and minutes that one flush may touch, each.
pub const TOUCHED_MAX: usize = 1_000;

/// The rest of the event sequence, cut into flushes.
pub struct Flushes<'a> {
    batches: &'a [Arc<Batch>],
    /// Rows of the first batch that are in an earlier flush.
    taken: usize,
    mark: Mark,
}

/// What a prefix of the event sequence changes.
pub struct Flush<'a> {
    /// What Redis covers once it has this.
    pub mark: Mark,
    /// What happened to each content.
    pub contents: HashMap<Uuid, Touched>,
    /// Events by minute and event type.
    pub minutes: HashMap<(i64, &'a str), u64>,
    /// Events that came after their day's counters had expired.
    pub expired_days: u64,
    /// Events that came after their minute's counters had expired.
    pub expired_minutes: u64,
    days: usize,
}

/// What happened to a content.
#[derive(Default)]
pub struct Touched {
    /// Milliseconds of engagement.
    pub ms: u64,
    /// By day.
    pub days: Vec<(i32, Day)>,
    /// Milliseconds by bucket, for each of [`WINDOWS`].
    pub buckets: [Vec<(i64, u64)>; WINDOWS.len()],
    /// The row as it was last seen, if it was.
    pub row: Option<Seen>,
}

/// A content row at its last event or change.
pub struct Seen {
    /// The row; `None` when it was deleted.
    pub content: Option<Arc<Content>>,
    /// The latest time at which it was in use, microseconds since 1970.
    pub used_at: i64,
}

impl<'a> Flushes<'a> {
    /// All of `batches`, for a Redis that stands at `mark`.
    pub fn new(batches: &'a [Arc<Batch>], mark: Mark) -> Self {
        Flushes { batches, taken: 0, mark }
    }

    /// The next flush; `None` when nothing is left, not even a mark.
    pub fn next(&mut self, rings: &[Ring], now: i64) -> Option<Flush<'a>> {
        let before = self.mark;
        let mut flush = Flush {
            mark: before,
            contents: HashMap::new(),
            minutes: HashMap::new(),
            expired_days: 0,
            expired_minutes: 0,
            days: 0,
        };
        while let Some((batch, rest)) = self.batches.split_first() {
            let batch: &'a Batch = batch;
            for group in batch.rows().get(self.taken..)?.chunk_by(|a, b| a.position() == b.position()) {
                if !flush.has_room_for(group) {
                    flush.mark = self.mark;
                    return Some(flush);
                }
                group.iter().for_each(|row| flush.add(batch, row, rings, now));
                self.taken += group.len();
                self.mark.position = group.last().map(Row::position).max(self.mark.position);
            }
            self.mark = self.mark.advanced(batch.mark());
            self.batches = rest;
            self.taken = 0;
        }
        flush.mark = self.mark;
        (self.mark != before).then_some(flush)
    }
}

impl<'a> Flush<'a> {
    /// Whether these rows of one position can come in. An empty flush takes any number of them.
    fn has_room_for(&self, group: &[Row]) -> bool {
        match group {
            [Row::Event(event)] => self.has_room_for_event(event),
            _ => self.contents.is_empty() || self.contents.len() + group.len() <= TOUCHED_MAX,
        }
    }

    fn has_room_for_event(&self, event: &Event) -> bool {
        let Some(id) = event.content_id else { return self.minutes.len() < TOUCHED_MAX };
        let has_room = self.days < TOUCHED_MAX && self.minutes.len() < TOUCHED_MAX;
        match self.contents.get(&id) {
            Some(touched) => has_room || touched.has_day(keys::day_of(event.event_ts)),
            None => has_room && self.contents.len() < TOUCHED_MAX,
        }
    }

    fn add(&mut self, batch: &'a Batch, row: &Row, rings: &[Ring], now: i64) {
        match row {
            Row::Event(event) => self.add_event(batch, event, rings, now),
            Row::Content(change) => {
                let touched = self.contents.entry(change.id).or_default();
                touched.see(change.after.clone(), change.commit_ts);
            }
            Row::DeadLetter(_) => {}
        }
    }

    fn add_event(&mut self, batch: &'a Batch, event: &Event, rings: &[Ring], now: i64) {
        let event_type = event.event_type.map(|span| batch.text(span));
        let minute = keys::minute_of(event.event_ts);
        if keys::minute_expires_at(minute) * 1_000_000 > now {
            *self.minutes.entry((minute, event_type.unwrap_or("null"))).or_default() += 1;
        } else {
            self.expired_minutes += 1;
        }
        let Some(id) = event.content_id else { return };
        let touched = self.contents.entry(id).or_default();
        if let Some(content) = &event.content {
            touched.see(Some(Arc::clone(content)), event.event_ts);
        }
        touched.add_ms(event, rings);
        let day = keys::day_of(event.event_ts);
        if keys::day_expires_at(day) * 1_000_000 > now {
            self.days += usize::from(touched.add_day(day, &Day::of(event, event_type)));
        } else {
            self.expired_days += 1;
        }
    }
}

impl Touched {
    fn has_day(&self, day: i32) -> bool {
        self.days.iter().any(|(known, _)| *known == day)
    }

    /// Whether the day is new.
    fn add_day(&mut self, day: i32, more: &Day) -> bool {
        if let Some((_, sum)) = self.days.iter_mut().find(|(known, _)| *known == day) {
            sum.add(more);
            return false;
        }
        self.days.push((day, *more));
        true
    }

    fn add_ms(&mut self, event: &Event, rings: &[Ring]) {
        let ms = engagement_ms(event);
        if ms == 0 {
            return;
        }
        self.ms = self.ms.saturating_add(ms);
        for (buckets, ring) in self.buckets.iter_mut().zip(rings) {
            let Some(bucket) = ring.place(event.event_ts) else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bucket) {
                Some((_, sum)) => *sum = sum.saturating_add(ms),
                None => buckets.push((bucket, ms)),
            }
        }
    }

    fn see(&mut self, content: Option<Arc<Content>>, used_at: i64) {
        let used_at = self.row.as_ref().map_or(used_at, |seen| seen.used_at.max(used_at));
        self.row = Some(Seen { content, used_at });
    }
}
