//! A board: the contents with the most engagement, and what of it Redis shows already. Pure.

use std::collections::HashMap;

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
        let gone = shown.keys().filter(|id| !best.contains_key(id)).copied().collect();
        let joined = best.keys().filter(|id| !shown.contains_key(id)).copied().collect();
        let put = best.iter().filter(|(id, score)| shown.get(id) != Some(score));
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
    /// Whether Redis has nothing and is to have nothing.
    pub fn is_idle(&self) -> bool {
        self.expected == Some(0) && self.put.is_empty()
    }
}

/// Milliseconds as seconds, exactly: `61.5`.
pub fn seconds_text(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}
