//! All boards: one for each window, one for all time, and one for each content type in the first window. Pure.

use hashbrown::HashMap;
use uuid::Uuid;

use super::board::{Board, Diff, SIZE, seconds_text};
use super::connection::Call;
use super::keys;
use super::window::{Ring, WINDOWS};

/// Content types with a board of their own.
const TYPES_MAX: usize = 32;

/// The boards.
pub struct Boards {
    windows: [Board; WINDOWS.len()],
    all: Board,
    types: Vec<(String, Board)>,
    /// The type, as an index of `types`, of contents in the first window.
    type_of: HashMap<Uuid, usize>,
}

/// Members that one script may put on boards or remove: what one board may need.
const MEMBERS_MAX: usize = 2 * SIZE;

/// A refresh on its way: the script call's keys and arguments, and what it is about.
#[derive(Default)]
pub struct Refresh {
    /// The call, without the fence.
    pub call: Call,
    /// Contents that are on the board of all time from now on.
    pub leaders: Vec<Uuid>,
    /// The boards in the call, by [`Boards::at`].
    sent: Vec<usize>,
    members: usize,
}

impl Boards {
    /// Boards without members, of which it is not known what Redis shows.
    pub fn new() -> Self {
        Boards {
            windows: WINDOWS.map(|window| Board::new(keys::board(&window), true)),
            all: Board::new(keys::BOARD_ALL.to_owned(), false),
            types: Vec::new(),
            type_of: HashMap::new(),
        }
    }

    /// The content's engagement since the first event is now this.
    pub fn total(&mut self, id: Uuid, ms: u64) {
        self.all.note(id, ms);
    }

    /// The content is of this type now; `sum` is its engagement in the first window.
    pub fn of_type(&mut self, id: Uuid, content_type: Option<&str>, sum: u64) {
        let index = content_type.filter(|_| sum > 0).and_then(|name| self.type_index(name));
        let before = match index {
            Some(index) => self.type_of.insert(id, index),
            None => self.type_of.remove(&id),
        };
        if before == index {
            return;
        }
        for (index, score) in
            before.map(|index| (index, 0)).into_iter().chain(index.map(|index| (index, sum)))
        {
            if let Some((_, board)) = self.types.get_mut(index) {
                board.note(id, score);
            }
        }
    }

    /// Whether the content's type is known.
    pub fn knows_type_of(&self, id: &Uuid) -> bool {
        self.type_of.contains_key(id)
    }

    /// Takes over what has changed in the windows. Whether there is anything to show that Redis does not.
    pub fn follow(&mut self, rings: &mut [Ring; WINDOWS.len()]) -> bool {
        for (at, (ring, board)) in rings.iter_mut().zip(&mut self.windows).enumerate() {
            for id in ring.take_changed() {
                let sum = ring.sum(&id);
                board.note(id, sum);
                if at > 0 {
                    continue;
                }
                if let Some((_, of_type)) = self.type_of.get(&id).and_then(|index| self.types.get_mut(*index))
                {
                    of_type.note(id, sum);
                }
                if sum == 0 {
                    self.type_of.remove(&id);
                }
            }
            if board.top.is_short() {
                board.top.refill(ring.sums());
            }
        }
        let [first, ..] = rings;
        for (index, (_, board)) in self.types.iter_mut().enumerate() {
            if board.top.is_short() {
                board.top.refill(first.sums().filter(|(id, _)| self.type_of.get(id) == Some(&index)));
            }
        }
        self.each().any(|board| board.changed())
    }

    /// What Redis needs to show the boards as they are, and to keep them; each to be sent in a script of its own.
    pub fn refresh(&mut self) -> Vec<Refresh> {
        let mut refreshes = vec![Refresh::default()];
        for (at, board) in self.each().enumerate() {
            let diff = board.diff();
            if diff.is_idle() {
                continue;
            }
            if refreshes.last().is_none_or(|last| last.members + diff.members() > MEMBERS_MAX) {
                refreshes.push(Refresh::default());
            }
            let Some(refresh) = refreshes.last_mut() else { continue };
            refresh.add(at, board, &diff);
            if !board.expires {
                refresh.leaders = diff.joined;
            }
        }
        refreshes
    }

    /// Redis did not hold what was expected of these boards, numbered as in the call.
    pub fn doubt(&mut self, refresh: &Refresh, numbers: &[String]) {
        let doubtful: Vec<usize> = numbers
            .iter()
            .filter_map(|number| refresh.sent.get(number.parse::<usize>().ok()?).copied())
            .collect();
        self.each().enumerate().filter(|(at, _)| doubtful.contains(at)).for_each(|(_, board)| board.doubt());
    }

    /// The contents on the board of all time, as shown.
    pub fn leaders(&self) -> Vec<Uuid> {
        self.all.shown().copied().collect()
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Board> {
        let types = self.types.iter_mut().map(|(_, board)| board);
        self.windows.iter_mut().chain(std::iter::once(&mut self.all)).chain(types)
    }

    fn type_index(&mut self, name: &str) -> Option<usize> {
        if let Some(index) = self.types.iter().position(|(known, _)| known == name) {
            return Some(index);
        }
        let [first, ..] = &WINDOWS;
        (self.types.len() < TYPES_MAX).then(|| {
            self.types.push((name.to_owned(), Board::new(keys::board_of_type(first, name), true)));
            self.types.len() - 1
        })
    }
}

impl Refresh {
    fn add(&mut self, at: usize, board: &Board, diff: &Diff) {
        self.sent.push(at);
        self.members += diff.members();
        self.call.key(&board.key);
        self.call.number_if(diff.expected).number_if(board.expires.then_some(keys::BOARD_SECONDS));
        self.call.number(diff.gone.len());
        for id in &diff.gone {
            self.call.number(id);
        }
        self.call.number(2 * diff.put.len());
        for (id, ms) in &diff.put {
            self.call.number(seconds_text(*ms)).number(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> Uuid {
        Uuid::from_u128(n as u128)
    }

    fn best(board: &Board) -> HashMap<Uuid, u64> {
        board.top.best().into_iter().collect()
    }

    #[test]
    fn boards_fill_up_again_when_many_contents_leave_the_window() {
        let mut rings = WINDOWS.map(|window| Ring::new(&window, 0));
        let mut boards = Boards::new();
        let contents = 6 * SIZE;
        for n in 0..contents {
            // the best leave first
            let bucket = if n < contents / 2 { 0 } else { -1 };
            let sum = rings[0].add(bucket, id(n), n as u64 + 1, 0);
            boards.of_type(id(n), Some(["podcast", "video"][n % 2]), sum);
        }
        boards.follow(&mut rings);
        assert!(best(&boards.windows[0]).contains_key(&id(contents - 1)));
        rings[0].leave(-1, &[]);
        assert!(boards.follow(&mut rings));
        let expected = (contents / 2 - SIZE..contents / 2).map(|n| (id(n), n as u64 + 1)).collect();
        assert_eq!(best(&boards.windows[0]), expected);
        for (index, (_, board)) in boards.types.iter().enumerate() {
            let of_type = (contents / 2 - 2 * SIZE..contents / 2).filter(|n| n % 2 == index);
            assert_eq!(best(board), of_type.map(|n| (id(n), n as u64 + 1)).collect());
        }
    }

    #[test]
    fn types_without_end_get_no_boards_without_end() {
        let mut boards = Boards::new();
        (0..100).for_each(|n| boards.of_type(id(n), Some(&format!("type {n}")), 1));
        assert_eq!(boards.types.len(), TYPES_MAX);
        assert!(!boards.knows_type_of(&id(99)));
    }
}
