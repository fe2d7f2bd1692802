//! Cutting the event sequence into flushes, and what each amounts to. Pure.
//!
//! Redis does nothing else while a script runs. So a flush ends before it would touch more than [`TOUCHED_MAX`] contents
//! (or days of contents, or minutes), or cost Redis more than [`COST_MAX`], or carry more than [`TEXT_MAX`] of text.
//!
//! A flush is a prefix of what is not yet at Redis, and never ends between rows of one position: its checkpoint is the
//! position of its last row, and every cut is a whole state. There is one exception. A truncation gives as many rows of
//! one position as there were contents. Its first rows go ahead in flushes of their own that leave the checkpoint where it
//! is. Whoever goes on from there does the same again, and content rows are absolute: twice is as once.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use uuid::Uuid;

use super::counters::{Day, engagement_ms};
use super::memory::Memory;
use super::window::{Ring, WINDOWS};
use super::{ahead, keys};
use crate::batch::{Batch, Row};
use crate::event::Event;
use crate::lsn::Checkpoint;
use crate::model::content::Content;

/// Contents, days of contents and minutes that one flush may touch, each.
pub const TOUCHED_MAX: usize = 1_000;

/// What one flush may cost Redis: a word (key, field or value) is 1, a key that is new some more. That is 10 ms to 15 ms.
pub const COST_MAX: usize = 24_000;

/// See [`super::memory::Memory::apply`] for what is sent.
const ROW_COST: usize = 36;
const NEW_DAY_COST: usize = 36;
const DAY_COST: usize = 13;
const MINUTE_COST: usize = 5;
const TOTAL_COST: usize = 2;
const CELL_COST: usize = 2;
/// A bucket of the future may have no other content.
const FUTURE_CELL_COST: usize = 6;
const MARK_COST: usize = 2;

/// Bytes of content rows and event types that one flush may carry. A flush of one row may carry more.
pub const TEXT_MAX: usize = 1 << 20;

/// The rest of the event sequence, cut into flushes.
pub struct Flushes<'a> {
    batches: &'a [Arc<Batch>],
    /// Rows of the first batch that are in an earlier flush.
    taken: usize,
    checkpoint: Checkpoint,
}

/// What decides in which keys an event counts.
pub struct Scope<'a> {
    /// The windows, and what Redis has already.
    pub memory: &'a Memory,
    /// Microseconds since 1970.
    pub now: i64,
    /// The latest time at which an event counts by its time, microseconds since 1970.
    pub horizon: i64,
}

/// What a prefix of the event sequence changes.
pub struct Flush<'a> {
    /// What Redis covers once it has this.
    pub checkpoint: Checkpoint,
    /// What happened to each content.
    pub contents: HashMap<Uuid, Touched>,
    /// Events by minute and event type.
    pub minutes: HashMap<(i64, &'a str), u64>,
    /// Events that came after their day's counters had expired.
    pub expired_days: u64,
    /// Events that came after their minute's counters had expired.
    pub expired_minutes: u64,
    /// Events dated beyond the horizon.
    pub ahead: u64,
    /// The bits of the keys that lack them (see [`super::ahead`]).
    pub marks: HashSet<u32>,
    days: usize,
    cost: usize,
    text: usize,
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
    /// All of `batches`, for a Redis that stands at `checkpoint`.
    pub fn new(batches: &'a [Arc<Batch>], checkpoint: Checkpoint) -> Self {
        Flushes { batches, taken: 0, checkpoint }
    }

    /// The next flush; `None` when nothing is left, not even a checkpoint.
    pub fn next(&mut self, scope: &Scope<'_>) -> Option<Flush<'a>> {
        let before = self.checkpoint;
        let mut flush = Flush {
            checkpoint: before,
            contents: HashMap::new(),
            minutes: HashMap::new(),
            expired_days: 0,
            expired_minutes: 0,
            ahead: 0,
            marks: HashSet::new(),
            days: 0,
            cost: 0,
            text: 0,
        };
        while let Some((batch, rest)) = self.batches.split_first() {
            let batch: &'a Batch = batch;
            let rest_of_batch = batch.rows().get(self.taken..).unwrap_or_default();
            for group in rest_of_batch.chunk_by(|a, b| a.position() == b.position()) {
                if !flush.has_room_for(group) {
                    if self.checkpoint == before {
                        self.go_ahead(batch, group, scope, &mut flush);
                    }
                    flush.checkpoint = self.checkpoint;
                    return Some(flush);
                }
                let position = group.last().map(Row::position);
                debug_assert!(position.is_some_and(|position| !self.checkpoint.holds(position)));
                group.iter().for_each(|row| flush.add(batch, row, scope));
                self.taken += group.len();
                self.checkpoint.position = position.max(self.checkpoint.position);
            }
            self.checkpoint = self.checkpoint.advanced(batch.checkpoint());
            self.batches = rest;
            self.taken = 0;
        }
        flush.checkpoint = self.checkpoint;
        (self.checkpoint != before).then_some(flush)
    }

    /// Takes the first of too many rows of one position into an empty flush, which leaves the checkpoint as it is.
    fn go_ahead(&mut self, batch: &'a Batch, group: &[Row], scope: &Scope<'_>, flush: &mut Flush<'a>) {
        debug_assert!(group.len() > TOUCHED_MAX);
        let some = group.iter().take(TOUCHED_MAX);
        self.taken += some.len();
        for row in some {
            debug_assert!(matches!(row, Row::Content(_)), "an event would count twice");
            flush.add(batch, row, scope);
        }
    }
}

impl<'a> Flush<'a> {
    /// Whether these rows of one position can come in. An empty flush has room for [`TOUCHED_MAX`] of them.
    fn has_room_for(&self, group: &[Row]) -> bool {
        if self.cost >= COST_MAX || self.text >= TEXT_MAX {
            return false;
        }
        match group {
            [Row::Event(event)] => self.has_room_for_event(event),
            _ => self.contents.len() + group.len() <= TOUCHED_MAX,
        }
    }

    fn has_room_for_event(&self, event: &Event) -> bool {
        if self.minutes.len() >= TOUCHED_MAX {
            return false;
        }
        let Some(id) = event.content_id else { return true };
        match self.contents.get(&id) {
            Some(touched) => self.days < TOUCHED_MAX || touched.has_day(keys::day_of(event.event_ts)),
            None => self.days < TOUCHED_MAX && self.contents.len() < TOUCHED_MAX,
        }
    }

    fn add(&mut self, batch: &'a Batch, row: &Row, scope: &Scope<'_>) {
        match row {
            Row::Event(event) => self.add_event(batch, event, scope),
            Row::Content(change) => {
                let touched = self.contents.entry(change.id).or_default();
                self.cost += touched.row.as_ref().map_or(ROW_COST, |_| 0);
                self.text += touched.see(change.after.clone(), change.commit_ts.min(scope.horizon));
            }
            Row::DeadLetter(_) | Row::EventChange(_) => {}
        }
    }

    fn add_event(&mut self, batch: &'a Batch, event: &Event, scope: &Scope<'_>) {
        let ahead = event.event_ts > scope.horizon;
        if ahead {
            self.add_ahead(event);
        } else {
            self.add_minute(batch, event, scope);
        }
        let Some(id) = event.content_id else { return };
        let touched = self.contents.entry(id).or_default();
        if let Some(content) = &event.content {
            if touched.row.is_none() && !scope.memory.shows(content) {
                self.cost += ROW_COST;
            }
            self.text += touched.see(Some(Arc::clone(content)), event.event_ts.min(scope.horizon));
        }
        self.cost += touched.add_ms(event, if ahead { &[] } else { &scope.memory.rings });
        if ahead {
            return;
        }
        let day = keys::day_of(event.event_ts);
        if keys::day_expires_at(day) * 1_000_000 > scope.now {
            let event_type = event.event_type.map(|span| batch.text(span));
            if touched.add_day(day, &Day::of(event, event_type)) {
                self.days += 1;
                self.cost += if scope.memory.knows_day(&id, day) { DAY_COST } else { NEW_DAY_COST };
            }
        } else {
            self.expired_days += 1;
        }
    }

    fn add_ahead(&mut self, event: &Event) {
        self.ahead += 1;
        let day = event.content_id.map(|id| ahead::day_bit(&id, keys::day_of(event.event_ts)));
        for bit in day.into_iter().chain([ahead::minute_bit(keys::minute_of(event.event_ts))]) {
            self.cost += MARK_COST * usize::from(self.marks.insert(bit));
        }
    }

    fn add_minute(&mut self, batch: &'a Batch, event: &Event, scope: &Scope<'_>) {
        let event_type = event.event_type.map(|span| batch.text(span));
        let minute = keys::minute_of(event.event_ts);
        if keys::minute_expires_at(minute) * 1_000_000 > scope.now {
            let count = self.minutes.entry((minute, event_type.unwrap_or("null"))).or_default();
            if *count == 0 {
                self.cost += MINUTE_COST;
                self.text += event_type.map_or(0, str::len);
            }
            *count += 1;
        } else {
            self.expired_minutes += 1;
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

    /// How much more that costs.
    fn add_ms(&mut self, event: &Event, rings: &[Ring]) -> usize {
        let ms = engagement_ms(event);
        if ms == 0 {
            return 0;
        }
        let mut cost = if self.ms == 0 { TOTAL_COST } else { 0 };
        self.ms = self.ms.saturating_add(ms);
        for (buckets, ring) in self.buckets.iter_mut().zip(rings) {
            let Some(bucket) = ring.place(event.event_ts) else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bucket) {
                Some((_, sum)) => *sum = sum.saturating_add(ms),
                None => {
                    buckets.push((bucket, ms));
                    cost += if bucket > *ring.buckets().end() { FUTURE_CELL_COST } else { CELL_COST };
                }
            }
        }
        cost
    }

    /// How much text is new.
    fn see(&mut self, content: Option<Arc<Content>>, used_at: i64) -> usize {
        let (same, used_at) = match &self.row {
            Some(Seen { content: Some(shown), used_at: at }) => {
                (content.as_ref().is_some_and(|content| Arc::ptr_eq(content, shown)), used_at.max(*at))
            }
            Some(Seen { content: None, used_at: at }) => (content.is_none(), used_at.max(*at)),
            None => (false, used_at),
        };
        let text = content.as_ref().filter(|_| !same).map_or(0, |content| text_of(content));
        self.row = Some(Seen { content, used_at });
        text
    }
}

/// Bytes of a content row's texts.
fn text_of(content: &Content) -> usize {
    [&content.slug, &content.title, &content.content_type].into_iter().flatten().map(String::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, ContentChange};
    use crate::lsn::{Lsn, Position};
    use proptest::prelude::*;

    const NOW: i64 = 1_767_323_045_000_000;
    const HORIZON: i64 = 48 * 3_600_000_000;

    /// A commit: rows of the stream, each one event, or several content rows of one position.
    type Commit = Vec<Result<(Option<u16>, i64), u8>>;

    fn commits() -> impl Strategy<Value = Vec<Commit>> {
        let event = (prop::option::weighted(0.9, 0u16..3_000), -200_000i64..200_000).prop_map(Ok);
        let row = prop_oneof![30 => event, 1 => (1u8..5).prop_map(Err)];
        prop::collection::vec(prop::collection::vec(row, 0..1_500), 1..6)
    }

    fn event(position: Position, content: Option<u16>, age_seconds: i64) -> Event {
        Event {
            content_id: content.map(|n| Uuid::from_u128(n.into())),
            duration_ms: Some(1),
            ..Event::new(position, NOW, 0, NOW - age_seconds * 1_000_000)
        }
    }

    fn batches(commits: &[Commit], rows_max: usize) -> Vec<Arc<Batch>> {
        let mut builder = BatchBuilder::new(Checkpoint::at(Lsn(1)));
        let mut batches = Vec::new();
        for (n, commit) in commits.iter().enumerate() {
            let commit_lsn = Lsn(100 * (n as u64 + 1));
            for (ordinal, row) in commit.iter().enumerate() {
                let position = Position { commit_lsn, ordinal: ordinal as u64 };
                match row {
                    Ok((content, age)) => builder.push(Row::Event(event(position, *content, *age))),
                    Err(count) => (0..*count).for_each(|id| {
                        let id = Uuid::from_u128(id.into());
                        let change = ContentChange { position, commit_ts: NOW, id, after: None };
                        builder.push(Row::Content(change));
                    }),
                }
                if builder.len() >= rows_max {
                    batches.push(Arc::new(builder.finish(false)));
                }
            }
            builder.hold(Lsn(commit_lsn.0 + 50));
        }
        batches.push(Arc::new(builder.finish(false)));
        batches
    }

    /// Sums by content, and by content and day: what is wanted of flushes in the end.
    #[derive(Debug, Default, PartialEq)]
    struct Sum {
        ms: HashMap<Uuid, u64>,
        days: HashMap<(Uuid, i32), Day>,
        minutes: HashMap<i64, u64>,
        expired: (u64, u64),
    }

    impl Sum {
        fn add(&mut self, flush: &Flush<'_>) {
            for (id, touched) in &flush.contents {
                *self.ms.entry(*id).or_default() += touched.ms;
                for (day, sum) in &touched.days {
                    self.days.entry((*id, *day)).or_default().add(sum);
                }
            }
            for ((minute, _), count) in &flush.minutes {
                *self.minutes.entry(*minute).or_default() += count;
            }
            self.expired.0 += flush.expired_days;
            self.expired.1 += flush.expired_minutes;
        }
    }

    fn flushes(batches: &[Arc<Batch>], checkpoint: Checkpoint) -> Vec<Flush<'_>> {
        let mut flushes = Flushes::new(batches, checkpoint);
        let memory = Memory::new(NOW);
        std::iter::from_fn(|| flushes.next(&Scope { memory: &memory, now: NOW, horizon: NOW + HORIZON }))
            .collect()
    }

    fn sum(flushes: &[Flush<'_>]) -> Sum {
        flushes.iter().fold(Sum::default(), |mut sum, flush| {
            sum.add(flush);
            sum
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
        #[test]
        fn whoever_goes_on_from_any_flush_adds_what_is_left(commits in commits(), rows_max in 1usize..3_000, again in 1usize..3_000) {
            let all = batches(&commits, rows_max);
            let start = Checkpoint::at(Lsn(1));
            let flushes = flushes(&all, start);
            let whole = sum(&flushes);
            let end = all.last().unwrap().checkpoint();
            prop_assert_eq!(flushes.last().map_or(start, |flush| flush.checkpoint), end);
            let mut checkpoint = start;
            for (n, flush) in flushes.iter().enumerate() {
                prop_assert!(flush.contents.len() <= TOUCHED_MAX && flush.days <= TOUCHED_MAX && flush.minutes.len() <= TOUCHED_MAX);
                prop_assert!(flush.checkpoint.covers(&checkpoint) && flush.checkpoint != checkpoint);
                checkpoint = flush.checkpoint;
                let mut resumed = sum(&flushes[..=n]);
                let rest: Vec<_> = batches(&commits, again).iter().filter_map(|batch| batch.beyond(&checkpoint)).collect();
                super::tests::flushes(&rest, checkpoint).iter().for_each(|flush| resumed.add(flush));
                prop_assert_eq!(&resumed, &whole, "from {}", checkpoint);
            }
        }
    }

    #[test]
    fn too_many_rows_of_one_position_go_ahead_and_leave_the_checkpoint() {
        let mut builder = BatchBuilder::new(Checkpoint::at(Lsn(1)));
        let at = |ordinal| Position { commit_lsn: Lsn(100), ordinal };
        builder.push(Row::Event(event(at(0), None, 0)));
        for id in 0..2 * TOUCHED_MAX + 1 {
            let id = Uuid::from_u128(id as u128);
            builder.push(Row::Content(ContentChange { position: at(1), commit_ts: NOW, id, after: None }));
        }
        builder.push(Row::Event(event(at(2), Some(1), 0)));
        let batches = [Arc::new(builder.finish(false))];
        let flushes = flushes(&batches, Checkpoint::at(Lsn(1)));
        let ends: Vec<_> =
            flushes.iter().map(|flush| (flush.contents.len(), flush.checkpoint.position)).collect();
        assert_eq!(
            ends,
            [(0, Some(at(0))), (TOUCHED_MAX, Some(at(0))), (TOUCHED_MAX, Some(at(0))), (2, Some(at(2)))]
        );
        assert!(flushes[1..3].iter().all(|flush| flush.minutes.is_empty()), "no event goes ahead");
    }

    #[test]
    fn engagement_with_many_contents_at_many_times_makes_many_flushes() {
        let mut builder = BatchBuilder::new(Checkpoint::at(Lsn(1)));
        for ordinal in 0..60_000u64 {
            let position = Position { commit_lsn: Lsn(100), ordinal };
            let content = Some((ordinal % 300) as u16);
            builder.push(Row::Event(event(position, content, 3 * (ordinal / 300) as i64)));
        }
        let batches = [Arc::new(builder.finish(false))];
        let flushes = flushes(&batches, Checkpoint::at(Lsn(1)));
        assert!(flushes.len() > 1);
        for flush in flushes {
            let cells: usize =
                flush.contents.values().flat_map(|touched| &touched.buckets).map(Vec::len).sum();
            assert!(cells * CELL_COST < flush.cost && flush.cost < COST_MAX + 100, "{}", flush.cost);
        }
    }

    #[test]
    fn long_titles_make_many_flushes() {
        let mut builder = BatchBuilder::new(Checkpoint::at(Lsn(1)));
        for ordinal in 0..50 {
            let content = Arc::new(Content {
                id: Uuid::from_u128(ordinal.into()),
                slug: None,
                title: Some("t".repeat(TEXT_MAX / 10)),
                content_type: None,
                length_seconds: None,
                publish_ts: None,
            });
            let position = Position { commit_lsn: Lsn(100), ordinal };
            let change = ContentChange { position, commit_ts: NOW, id: content.id, after: Some(content) };
            builder.push(Row::Content(change));
        }
        let batches = [Arc::new(builder.finish(false))];
        let flushes = flushes(&batches, Checkpoint::at(Lsn(1)));
        assert_eq!(flushes.iter().map(|flush| flush.contents.len()).collect::<Vec<_>>(), [11, 11, 11, 11, 6]);
    }

    #[test]
    fn what_comes_after_its_counters_expired_is_left_out_and_told() {
        let mut builder = BatchBuilder::new(Checkpoint::at(Lsn(1)));
        for (ordinal, hours) in [0, 3, 100].into_iter().enumerate() {
            let position = Position { commit_lsn: Lsn(100), ordinal: ordinal as u64 };
            builder.push(Row::Event(event(position, Some(1), hours * 3600)));
        }
        let batches = [Arc::new(builder.finish(false))];
        let flush = flushes(&batches, Checkpoint::at(Lsn(1))).remove(0);
        assert_eq!((flush.expired_minutes, flush.expired_days), (2, 1));
        assert_eq!((flush.minutes.len(), flush.days), (1, 1), "{:?}", flush.minutes);
        assert_eq!(flush.contents[&Uuid::from_u128(1)].ms, 3, "all of them count for all time");
    }

    #[test]
    fn what_is_dated_too_far_ahead_counts_for_all_time_and_is_marked() {
        let mut builder = BatchBuilder::new(Checkpoint::at(Lsn(1)));
        let hours = [0, -48, -49, -24 * 3_650];
        for (ordinal, (age, content)) in
            hours.iter().flat_map(|age| [(age, Some(1)), (age, None)]).enumerate()
        {
            let position = Position { commit_lsn: Lsn(100), ordinal: ordinal as u64 };
            builder.push(Row::Event(event(position, content, age * 3600)));
        }
        let batches = [Arc::new(builder.finish(false))];
        let flush = flushes(&batches, Checkpoint::at(Lsn(1))).remove(0);
        assert_eq!((flush.ahead, flush.marks.len(), flush.minutes.len(), flush.days), (4, 4, 2, 2));
        let touched = &flush.contents[&Uuid::from_u128(1)];
        assert_eq!((touched.ms, touched.buckets[2].len()), (4, 2), "all of them count for all time");
    }

    #[test]
    fn a_checkpoint_alone_is_a_flush() {
        let batches = [Arc::new(Batch::empty(Checkpoint::at(Lsn(9)), false))];
        let flushes = flushes(&batches, Checkpoint::at(Lsn(1)));
        assert_eq!(
            flushes.iter().map(|flush| flush.checkpoint).collect::<Vec<_>>(),
            [Checkpoint::at(Lsn(9))]
        );
    }
}
