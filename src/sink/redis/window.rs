//! Sliding windows over event time: a ring of 60 buckets each, and the sum of every content in it.
//!
//! At any time a window is the bucket of now and the 59 before it; it moves by one bucket at once, so what a
//! reader sees is at most one bucket (1.7 % of the window) away from the exact span. An event counts in
//! the bucket of its own time, however late it comes; one whose bucket has left the window does not count,
//! and one from the future waits for its bucket.
//!
//! Memory holds the sums and, of each bucket, only what is not packed: a bucket that is no longer written is
//! packed into one string at Redis ([`super::packed`]) and read again, once, when it leaves the window. So
//! 100,000 contents that are active all day cost a few megabytes here, not 60 times that.
//!
//! Pure: no IO, no clock. Who owns a [`Ring`] brings what Redis has ([`Ring::load`], [`Ring::leave`]) and
//! writes what [`Ring::add`] answers.

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};
use uuid::Uuid;

/// A window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its name in keys.
    pub name: &'static str,
    /// The length of a bucket.
    pub bucket_seconds: i64,
}

/// The windows there are; the first is the one with a board for each content type.
pub const WINDOWS: [Window; 3] = [
    Window { name: "10min", bucket_seconds: 10 },
    Window { name: "1h", bucket_seconds: 60 },
    Window { name: "24h", bucket_seconds: 24 * 60 },
];

/// Buckets of a window.
pub const BUCKETS: i64 = 60;

/// A bucket with fewer contents than this is not worth packing.
const PACK_MIN: usize = 64;

/// More contents than this in the unpacked buckets of one window: the largest is packed at once.
const FRESH_MAX: usize = 200_000;

/// A clock that goes back by so much is followed back.
const BACK_MAX_MICROS: i64 = 5_000_000;

/// A bucket that nobody has written for so long is packed.
const PACK_AFTER_MICROS: i64 = 5_000_000;

/// A bucket of the future that nobody has written for so long is forgotten until its time.
const FORGET_AFTER_MICROS: i64 = 60_000_000;

/// Milliseconds of engagement by content.
pub type Sums = HashMap<Uuid, u64>;

/// One window: its buckets and the sum of every content in it.
pub struct Ring {
    bucket_micros: i64,
    /// The newest bucket of the window: that of now.
    current: i64,
    buckets: BTreeMap<i64, Bucket>,
    sums: Sums,
    changed: HashSet<Uuid>,
    /// Contents have come in by [`Ring::load`] since [`Ring::take_loaded`].
    loaded: bool,
}

/// A bucket whose fresh part is known.
#[derive(Debug, Default)]
struct Bucket {
    fresh: Sums,
    packed: bool,
    written_at: i64,
}

/// What a step of time asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Buckets that leave the window, and whether a part of them is packed.
    pub leaving: Vec<(i64, bool)>,
    /// Buckets that come into it and are to be loaded, perhaps empty.
    pub coming: Vec<i64>,
}

impl Ring {
    /// An empty window at `now`; its buckets are still to be loaded.
    pub fn new(window: &Window, now: i64) -> Self {
        let bucket_micros = window.bucket_seconds * 1_000_000;
        Ring {
            bucket_micros,
            current: now.div_euclid(bucket_micros),
            buckets: BTreeMap::new(),
            sums: Sums::new(),
            changed: HashSet::new(),
            loaded: false,
        }
    }

    /// The buckets of the window now.
    pub fn buckets(&self) -> std::ops::RangeInclusive<i64> {
        self.current - BUCKETS + 1..=self.current
    }

    /// The bucket of a time; `None` when it has left the window.
    pub fn place(&self, micros: i64) -> Option<i64> {
        let bucket = micros.div_euclid(self.bucket_micros);
        (bucket > self.current - BUCKETS).then_some(bucket)
    }

    /// Whether the bucket's fresh part is known, so that [`Ring::add`] may be called.
    pub fn knows(&self, bucket: i64) -> bool {
        self.buckets.contains_key(&bucket)
    }

    /// Takes what Redis has of a bucket: what is not packed, and what is. The packed part may be left out
    /// for a bucket of the future, when `packed` tells whether there is one.
    pub fn load(&mut self, bucket: i64, fresh: Sums, packed: Option<Vec<(Uuid, u64)>>, now: i64) {
        if self.buckets().contains(&bucket) {
            for (id, ms) in fresh.iter().map(|(id, ms)| (*id, *ms)).chain(packed.iter().flatten().copied()) {
                self.grow(id, ms);
                self.loaded = true;
            }
        }
        self.buckets.insert(bucket, Bucket { fresh, packed: packed.is_some(), written_at: now });
    }

    /// Adds milliseconds to a known bucket. Gives the content's whole fresh part of it: what Redis is to
    /// hold.
    pub fn add(&mut self, bucket: i64, id: Uuid, ms: u64, now: i64) -> u64 {
        if self.buckets().contains(&bucket) {
            self.grow(id, ms);
        }
        let known = self.buckets.entry(bucket).or_default();
        known.written_at = now;
        let fresh = known.fresh.entry(id).or_default();
        *fresh = fresh.saturating_add(ms);
        *fresh
    }

    /// Whether the window stands in a bucket that is yet to come, as the clock was set back. A little does not matter: time
    /// comes up.
    pub fn is_ahead_of(&self, now: i64) -> bool {
        now.saturating_add(BACK_MAX_MICROS) < self.current.saturating_mul(self.bucket_micros)
    }

    /// Begins anew at `now`, which is before; its buckets are to be loaded.
    pub fn turn_back(&mut self, now: i64) {
        self.current = now.div_euclid(self.bucket_micros);
        self.buckets.clear();
        self.changed.extend(self.sums.drain().map(|(id, _)| id));
    }

    /// What to do before the window can move to `now`; `None` while it is still in its bucket.
    pub fn step(&self, now: i64) -> Option<Step> {
        let next = now.div_euclid(self.bucket_micros);
        if next <= self.current {
            return None;
        }
        let left = self.buckets.range(..=next - BUCKETS);
        Some(Step {
            leaving: left.filter(|(at, _)| **at <= self.current).map(|(at, b)| (*at, b.packed)).collect(),
            coming: (self.current.max(next - BUCKETS) + 1..=next).collect(),
        })
    }

    /// A bucket leaves the window; `packed` is its packed part.
    pub fn leave(&mut self, bucket: i64, packed: &[(Uuid, u64)]) {
        let fresh = self.buckets.remove(&bucket).map(|bucket| bucket.fresh).unwrap_or_default();
        for (id, ms) in fresh.iter().chain(packed.iter().map(|(id, ms)| (id, ms))) {
            self.shrink(*id, *ms);
        }
    }

    /// Moves the window to `now`, after the leaving buckets have left. What was known of the coming
    /// ones is forgotten: they are to be loaded.
    pub fn advance(&mut self, now: i64) {
        self.current = self.current.max(now.div_euclid(self.bucket_micros));
        let from = *self.buckets().start();
        self.buckets.retain(|at, _| *at >= from);
    }

    /// A bucket to pack now, if there is one: its number and its fresh part.
    pub fn to_pack(&self, now: i64) -> Option<(i64, &Sums)> {
        let crowded = self.buckets.values().map(|bucket| bucket.fresh.len()).sum::<usize>() > FRESH_MAX;
        let idle = |bucket: &Bucket| now - bucket.written_at >= PACK_AFTER_MICROS;
        self.buckets
            .iter()
            .filter(|(at, bucket)| crowded || **at != self.current && idle(bucket))
            .max_by_key(|(_, bucket)| bucket.fresh.len())
            .filter(|(_, bucket)| bucket.fresh.len() >= PACK_MIN)
            .map(|(at, bucket)| (*at, &bucket.fresh))
    }

    /// This much of the bucket's fresh part is packed now.
    pub fn packed(&mut self, bucket: i64, part: &[(Uuid, u64)]) {
        if let Some(bucket) = self.buckets.get_mut(&bucket) {
            for (id, _) in part {
                bucket.fresh.remove(id);
            }
            if bucket.fresh.is_empty() {
                bucket.fresh = Sums::new();
            }
            bucket.packed = true;
        }
    }

    /// Forgets buckets of the future that nobody has written lately: Redis has them.
    pub fn forget_idle(&mut self, now: i64) {
        let current = self.current;
        self.buckets.retain(|at, bucket| *at <= current || now - bucket.written_at < FORGET_AFTER_MICROS);
    }

    /// Milliseconds of engagement with the content in the window.
    pub fn sum(&self, id: &Uuid) -> u64 {
        self.sums.get(id).copied().unwrap_or_default()
    }

    /// Every content in the window; none with 0.
    pub fn sums(&self) -> impl Iterator<Item = (Uuid, u64)> {
        self.sums.iter().map(|(id, ms)| (*id, *ms))
    }

    /// The contents whose sum has changed since the last call.
    pub fn take_changed(&mut self) -> HashSet<Uuid> {
        std::mem::take(&mut self.changed)
    }

    /// Whether contents came into the window by [`Ring::load`] since the last call.
    pub fn take_loaded(&mut self) -> bool {
        std::mem::take(&mut self.loaded)
    }

    fn grow(&mut self, id: Uuid, ms: u64) {
        let sum = self.sums.entry(id).or_default();
        *sum = sum.saturating_add(ms);
        self.changed.insert(id);
    }

    fn shrink(&mut self, id: Uuid, ms: u64) {
        if let Some(sum) = self.sums.get_mut(&id) {
            *sum = sum.saturating_sub(ms);
            if *sum == 0 {
                self.sums.remove(&id);
            }
            self.changed.insert(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Redis as the owner of a ring uses it: what is fresh and what is packed of each bucket.
    #[derive(Default)]
    struct Store {
        fresh: HashMap<i64, Sums>,
        packed: HashMap<i64, Vec<(Uuid, u64)>>,
    }

    impl Store {
        fn load(&self, ring: &mut Ring, bucket: i64, now: i64) {
            let fresh = self.fresh.get(&bucket).cloned().unwrap_or_default();
            ring.load(bucket, fresh, self.packed.get(&bucket).cloned(), now);
        }

        fn restart(&self, window: &Window, now: i64) -> Ring {
            let mut ring = Ring::new(window, now);
            ring.buckets().for_each(|bucket| self.load(&mut ring, bucket, now));
            ring
        }

        fn advance(&self, ring: &mut Ring, now: i64) {
            if ring.is_ahead_of(now) {
                ring.turn_back(now);
                ring.buckets().for_each(|bucket| self.load(ring, bucket, now));
                return;
            }
            let Some(step) = ring.step(now) else { return };
            for (bucket, packed) in step.leaving {
                let packed = if packed { self.packed[&bucket].clone() } else { Default::default() };
                ring.leave(bucket, &packed);
            }
            ring.advance(now);
            ring.forget_idle(now);
            step.coming.into_iter().for_each(|bucket| self.load(ring, bucket, now));
        }

        fn add(&mut self, ring: &mut Ring, event: &Event, now: i64) {
            let Some(bucket) = ring.place(event.ts) else { return };
            if !ring.knows(bucket) {
                self.load(ring, bucket, now);
            }
            let fresh = ring.add(bucket, event.id, event.ms, now);
            self.fresh.entry(bucket).or_default().insert(event.id, fresh);
        }

        fn pack(&mut self, ring: &mut Ring, bucket: i64, most: usize) {
            let fresh = self.fresh.entry(bucket).or_default();
            let part: Vec<(Uuid, u64)> = fresh.iter().take(most).map(|(id, ms)| (*id, *ms)).collect();
            for (id, _) in &part {
                fresh.remove(id);
            }
            ring.packed(bucket, &part);
            self.packed.entry(bucket).or_default().extend(part);
        }
    }

    #[derive(Debug, Clone)]
    struct Event {
        id: Uuid,
        ts: i64,
        ms: u64,
    }

    #[derive(Debug, Clone)]
    enum Action {
        /// An event that is this much younger (or older) than now.
        Event(u8, i64, u64),
        Pass(i64),
        /// The clock is set back.
        SetBack(i64),
        Pack(usize, usize),
        Restart,
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let age = prop_oneof![4 => -30i64..2, 2 => -700i64..0, 1 => 0i64..800];
        let action = prop_oneof![
            12 => (0u8..6, age, 1u64..100_000).prop_map(|(id, age, ms)| Action::Event(id, age, ms)),
            4 => prop_oneof![5 => 0i64..15, 1 => 0i64..1500].prop_map(Action::Pass),
            1 => prop_oneof![1i64..15, 1i64..1500].prop_map(Action::SetBack),
            1 => (0usize..64, 1usize..6).prop_map(|(nth, most)| Action::Pack(nth, most)),
            1 => Just(Action::Restart),
        ];
        prop::collection::vec(action, 1..120)
    }

    /// What the window must hold: computed from all events there ever were.
    fn expected(window: &Window, events: &[Event], now: i64) -> Sums {
        let bucket = |micros: i64| micros.div_euclid(window.bucket_seconds * 1_000_000);
        let mut sums = Sums::new();
        for event in events {
            if (bucket(now) - BUCKETS + 1..=bucket(now)).contains(&bucket(event.ts)) {
                *sums.entry(event.id).or_default() += event.ms;
            }
        }
        sums
    }

    proptest! {
        #[test]
        fn a_window_is_the_sum_over_its_span_whatever_comes_when(actions in actions(), start in 0i64..1 << 50) {
            let window = &WINDOWS[0];
            let mut now = start;
            let mut store = Store::default();
            let mut ring = store.restart(window, now);
            let mut events = Vec::new();
            let mut followed = Sums::new();
            for action in actions {
                match action {
                    Action::Event(id, age, ms) => {
                        let event = Event { id: Uuid::from_u128(id.into()), ts: now + age * 1_000_000, ms };
                        store.add(&mut ring, &event, now);
                        // one that came too late for the window does not count, also when the clock was wrong
                        events.extend(ring.place(event.ts).map(|_| event));
                    }
                    Action::Pass(seconds) => {
                        now += seconds * 1_000_000;
                        store.advance(&mut ring, now);
                    }
                    Action::SetBack(seconds) => {
                        now -= seconds * 1_000_000;
                        store.advance(&mut ring, now);
                    }
                    Action::Pack(nth, most) => {
                        let known: Vec<i64> = ring.buckets.keys().copied().collect();
                        store.pack(&mut ring, known[nth % known.len()], most);
                    }
                    Action::Restart => {
                        ring = store.restart(window, now);
                        followed.clear();
                    }
                }
                let shown = now.max(ring.buckets().end() * window.bucket_seconds * 1_000_000);
                prop_assert!(shown - now <= BACK_MAX_MICROS);
                let expected = expected(window, &events, shown);
                prop_assert_eq!(&ring.sums().collect::<Sums>(), &expected);
                for id in ring.take_changed() {
                    match ring.sum(&id) {
                        0 => followed.remove(&id),
                        sum => followed.insert(id, sum),
                    };
                }
                prop_assert_eq!(&followed, &expected, "every change of a sum is told");
            }
        }
    }

    #[test]
    fn a_reader_sees_at_most_two_percent_of_the_window_too_much_or_too_little() {
        let seconds = [600, 3_600, 86_400];
        for (window, seconds) in WINDOWS.iter().zip(seconds) {
            assert_eq!(window.bucket_seconds * BUCKETS, seconds, "{}", window.name);
            assert!(window.bucket_seconds * 50 <= seconds, "{}", window.name);
        }
    }

    #[test]
    fn only_buckets_at_rest_are_packed_unless_there_is_too_much() {
        let window = &WINDOWS[0];
        let mut ring = Ring::new(window, 0);
        let id = |n: usize| Uuid::from_u128(n as u128);
        (0..PACK_MIN).for_each(|n| {
            ring.add(-1, id(n), 1, 0);
            ring.add(0, id(n), 1, 0);
        });
        assert!(ring.to_pack(PACK_AFTER_MICROS - 1).is_none(), "still being written");
        assert_eq!(ring.to_pack(PACK_AFTER_MICROS).map(|(bucket, _)| bucket), Some(-1), "never that of now");
        let all: Vec<_> = (0..PACK_MIN).map(|n| (id(n), 1)).collect();
        ring.packed(-1, &all);
        assert!(ring.to_pack(PACK_AFTER_MICROS).is_none());
        (0..=FRESH_MAX).for_each(|n| {
            ring.add(0, id(n), 1, 0);
        });
        assert_eq!(ring.to_pack(0).map(|(bucket, _)| bucket), Some(0), "rather than grow without bound");
    }
}
