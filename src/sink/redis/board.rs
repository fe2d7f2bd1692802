//! A board: the contents with the most engagement, and what of it Redis shows already. Pure.

use hashbrown::HashMap;
use uuid::Uuid;

/// Contents on a board.
pub const SIZE: usize = 1_000;

/// Keeps the best [`SIZE`] of many changing scores without sorting them all: it watches only the candidates
/// at or above a floor. Enough of them sink below it, and it asks for all scores once more.
#[derive(Debug, Default)]
pub struct Top {
    candidates: HashMap<Uuid, u64>,
    /// Candidates are all that rank at or above this; `None`: all there are.
    floor: Option<(u64, Uuid)>,
}

impl Top {
    /// The content's score is now this; 0 is no score.
    pub fn note(&mut self, id: Uuid, score: u64) {
        if score > 0 && self.floor.is_none_or(|floor| (score, id) >= floor) {
            self.candidates.insert(id, score);
        } else {
            self.candidates.remove(&id);
        }
        if self.candidates.len() > 4 * SIZE {
            self.raise_floor();
        }
    }

    /// Whether contents below the floor may belong to the best: then [`Top::refill`] is due.
    pub fn is_short(&self) -> bool {
        self.floor.is_some() && self.candidates.len() < SIZE
    }

    /// Begins anew with all scores.
    pub fn refill(&mut self, scores: impl Iterator<Item = (Uuid, u64)>) {
        self.floor = None;
        self.candidates = HashMap::new();
        scores.for_each(|(id, score)| self.note(id, score));
    }

    /// The best, in no order.
    pub fn best(&self) -> Vec<(Uuid, u64)> {
        let mut ranked = self.ranked();
        if ranked.len() > SIZE {
            ranked.select_nth_unstable_by(SIZE, |a, b| b.cmp(a));
            ranked.truncate(SIZE);
        }
        ranked.into_iter().map(|(score, id)| (id, score)).collect()
    }

    fn raise_floor(&mut self) {
        let mut ranked = self.ranked();
        let (_, floor, _) = ranked.select_nth_unstable_by(2 * SIZE, |a, b| b.cmp(a));
        let floor = *floor;
        self.floor = Some(floor);
        self.candidates.retain(|id, score| (*score, *id) >= floor);
    }

    fn ranked(&self) -> Vec<(u64, Uuid)> {
        self.candidates.iter().map(|(id, score)| (*score, *id)).collect()
    }
}

/// A board, and what Redis shows of it.
#[derive(Debug)]
pub struct Board {
    /// The ZSET's name.
    pub key: String,
    /// Whether it vanishes when it is not refreshed.
    pub expires: bool,
    /// Whose scores are the highest.
    pub top: Top,
    shown: Option<HashMap<Uuid, u64>>,
    changed: bool,
}

/// What makes the shown board the true one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// How many members Redis must have for this to be right; `None`: begin with an empty key.
    pub expected: Option<usize>,
    /// Members to remove.
    pub gone: Vec<Uuid>,
    /// Members to put, with their scores.
    pub put: Vec<(Uuid, u64)>,
    /// Those of `put` that Redis does not show yet.
    pub joined: Vec<Uuid>,
}

impl Board {
    /// A board of which it is not known what Redis shows.
    pub fn new(key: String, expires: bool) -> Self {
        Board { key, expires, top: Top::default(), shown: None, changed: true }
    }

    /// The content's score is now this.
    pub fn note(&mut self, id: Uuid, score: u64) {
        self.top.note(id, score);
        self.changed = true;
    }

    /// Whether something has changed since the last [`Board::diff`].
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// The members that Redis shows; none when that is not known.
    pub fn shown(&self) -> impl Iterator<Item = &Uuid> {
        self.shown.iter().flat_map(HashMap::keys)
    }

    /// What there is to write; the caller writes it or calls [`Board::doubt`].
    pub fn diff(&mut self) -> Diff {
        let unchanged = !self.changed;
        self.changed = false;
        let expected = self.shown.as_ref().map(HashMap::len);
        if unchanged && expected.is_some() {
            return Diff { expected, ..Diff::default() };
        }
        let best: HashMap<Uuid, u64> = self.top.best().into_iter().collect();
        let shown = self.shown.take().unwrap_or_default();
        let gone = shown.keys().filter(|id| !best.contains_key(*id)).copied().collect();
        let joined = best.keys().filter(|id| !shown.contains_key(*id)).copied().collect();
        let put = best.iter().filter(|(id, score)| shown.get(*id) != Some(score));
        let put = put.map(|(id, score)| (*id, *score)).collect();
        self.shown = Some(best);
        Diff { expected, gone, put, joined }
    }

    /// Redis shows something else: the next [`Board::diff`] is the whole board.
    pub fn doubt(&mut self) {
        self.shown = None;
        self.changed = true;
    }
}

impl Diff {
    /// How many members are removed or put.
    pub fn members(&self) -> usize {
        self.gone.len() + self.put.len()
    }

    /// Whether Redis has nothing and is to have nothing.
    pub fn is_idle(&self) -> bool {
        self.expected == Some(0) && self.put.is_empty()
    }
}

/// Milliseconds as seconds, exactly: `61.5`.
pub fn seconds_text(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn id(n: usize) -> Uuid {
        Uuid::from_u128(n as u128 * 0x9E37_79B9_7F4A_7C15)
    }

    fn naive_best(scores: &HashMap<Uuid, u64>) -> BTreeMap<Uuid, u64> {
        let mut ranked: Vec<_> = scores.iter().filter(|(_, score)| **score > 0).collect();
        ranked.sort_unstable_by(|a, b| (b.1, b.0).cmp(&(a.1, a.0)));
        ranked.into_iter().take(SIZE).map(|(id, score)| (*id, *score)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn the_best_are_those_of_sorting_all(
            rounds in prop::collection::vec((0usize..7_000, 1usize..3_000, 0u64..5_000, any::<bool>()), 1..20),
        ) {
            let mut scores: HashMap<Uuid, u64> = HashMap::new();
            let mut top = Top::default();
            for (from, count, score, falling) in rounds {
                for n in from..from + count {
                    let score = if falling { score / 100 } else { score + (n as u64 * 7919) % 1_000 };
                    scores.insert(id(n), score);
                    top.note(id(n), score);
                }
                if top.is_short() {
                    top.refill(scores.iter().map(|(id, score)| (*id, *score)));
                }
                prop_assert!(top.candidates.len() <= 4 * SIZE);
                prop_assert_eq!(top.best().into_iter().collect::<BTreeMap<_, _>>(), naive_best(&scores));
            }
        }

        #[test]
        fn diffs_applied_one_after_the_other_give_the_board(
            rounds in prop::collection::vec((prop::collection::vec((0usize..50, 0u64..4), 0..40), 0u8..6), 1..12),
        ) {
            let mut board = Board::new("top".into(), true);
            let mut scores: HashMap<Uuid, u64> = HashMap::new();
            let mut redis: HashMap<Uuid, u64> = HashMap::from([(id(999), 1)]);
            for (notes, accident) in rounds {
                for (n, score) in notes {
                    scores.insert(id(n), score);
                    board.note(id(n), score);
                }
                if accident == 0 {
                    redis.clear();
                }
                // as the script does it
                let diff = board.diff();
                if diff.expected.is_some_and(|members| members != redis.len()) {
                    board.doubt();
                    continue;
                }
                if diff.expected.is_none() {
                    redis.clear();
                }
                let joined: Vec<Uuid> = diff.put.iter().map(|(id, _)| *id).filter(|id| !redis.contains_key(id)).collect();
                prop_assert_eq!(joined.len(), diff.joined.len());
                diff.gone.iter().for_each(|id| { redis.remove(id); });
                redis.extend(diff.put);
                prop_assert_eq!(redis.clone().into_iter().collect::<BTreeMap<_, _>>(), naive_best(&scores));
            }
        }
    }

    #[test]
    fn what_did_not_change_is_not_written_again() {
        let mut board = Board::new("top".into(), true);
        board.note(id(1), 5);
        board.note(id(2), 6);
        assert_eq!(board.diff().put.len(), 2);
        board.note(id(2), 7);
        let diff = board.diff();
        assert_eq!((diff.expected, diff.put, diff.joined), (Some(2), vec![(id(2), 7)], vec![]));
        assert_eq!(board.diff(), Diff { expected: Some(2), ..Diff::default() });
    }

    #[test]
    fn seconds_are_exact() {
        assert_eq!(seconds_text(61_500), "61.500");
        assert_eq!(seconds_text(7), "0.007");
    }
}
