//! Lanes: a sink that falls behind, or is dead from the first start on, gets a slot of its own and gives it back. Two
//! instances, of which the older may stand still anywhere and wake up after the newer has taken over; crashes between any two
//! steps of walcast, of PostgreSQL, which then has forgotten how far its slots were, and of the target, which then has lost
//! what it had only accepted. All other sinks, and the content versions, are as far as the WAL is read.

mod protocol;

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Model, Property};

use super::{breaks, holds};

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    Nothing,
    /// The sink stops counting at the walcast slot as soon as its lane has a slot.
    PartsBeforeItIsOpen,
    /// The sink stops counting as soon as it is left.
    PartsBeforeTheCopy,
    /// The slot is dropped, then its record deleted.
    DropsBeforeItDeletes,
    /// The lane is let go when the sink has accepted what the walcast slot was told.
    AcceptedIsDurable,
    /// The lane is let go as soon as the sink is fed with the others.
    LetsGoAtOnce,
    /// A sink that is fed with the others again does not count.
    JoinsUncounted,
    /// A start takes a lane that was being opened for one that is open.
    BelievesOpening,
    /// Whoever is refused the record does not drop the slot that it has made.
    LeavesItsSlot,
    /// All lanes' slots have one name.
    NameTwice,
    /// Records are read before slots are listed.
    ReadsBeforeItLists,
    /// A sink that does not answer at a start does not count.
    DeadIsUncounted,
    /// A record without its slot counts as none.
    GoneIsFresh,
    /// A start takes a sink that is dead, and counts, for one that it feeds: it begins where the walcast slot did when it
    /// was looked at.
    BeginsAtTheDead,
    /// The lanes' slots are looked at before the walcast slot.
    LanesFirst,
    /// A sink takes a queue that follows on more than it has.
    TakesAnyQueue,
    /// A row that another queue has brought is not passed by.
    TakesTwice,
}

/// What goes wrong beside crashes of walcast and of the target: one at a time, or there are too many runs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    /// An instance stands still, is overtaken, and wakes up.
    Overtaken,
    /// PostgreSQL crashes.
    Server,
    /// The answer of a write is lost, or the write itself.
    Answers,
    /// Content versions are pruned, and PostgreSQL crashes.
    Pruning,
    /// PostgreSQL gives up a lane's slot.
    LostSlot,
}

struct Lanes(Broken, Trouble);

/// A slot's: the fencing token of whoever has made it, and its attempt.
type Name = (u8, u8);

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct State {
    instances: [Option<Life>; 2],
    starts: usize,
    fencing_token: u8,
    wal: usize,
    walcast_slot: Slot,
    /// Who reads the walcast slot.
    reader: Option<usize>,
    lanes: BTreeMap<Name, Slot>,
    /// The name, and whether it is open.
    record: Option<(Name, bool)>,
    target: Target,
    /// What all other sinks have made durable.
    others: usize,
    /// Below this only the newest content versions are left.
    pruned: usize,
    damaged: bool,
    stray: bool,
    lost: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Slot {
    confirmed: usize,
    on_disk: usize,
}

/// The rows that the sink has, and the newest instance that it knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Target {
    durable: usize,
    fencing_token: u8,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Life {
    stage: Stage,
    fencing_token: u8,
    /// Where the slot begins that the sink is judged by.
    start: usize,
    /// Whether all other sinks have answered.
    all_answer: bool,
    sweep: Option<Sweep>,
    /// What the sink has accepted; `None` while it does not answer.
    accepted: Option<usize>,
    queue: Option<Queue>,
    /// The queue that comes next, and what it follows on.
    next_queue: Option<usize>,
    place: Place,
    counts: bool,
    /// What the walcast slot may be told.
    confirmed: usize,
    /// What it was told at the most, by whomever.
    told: usize,
    keeper: Keeper,
    /// The lane's slot.
    name: Name,
    attempts: u8,
    /// The first of two looks at the slots.
    looked: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Stage {
    /// The walcast slot was looked at.
    #[default]
    Found,
    Newest,
    Asking,
    Ready,
    Streaming,
}

/// How far a sweep is: slots were listed (or records read, if that comes first); or it is known which to drop.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Sweep {
    Begun,
    Seen(BTreeSet<Name>),
    Strays(BTreeSet<Name>),
}

/// What the sink takes from; the main stream's with the next row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Queue {
    Main(usize),
    Lane,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Place {
    Fed,
    #[default]
    Left,
    Offered,
    Joining,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Keeper {
    #[default]
    Idle,
    Opening,
    Copying,
    Copied,
    /// It was overtaken: the slot that it has made is to be dropped.
    Refused,
    /// The sink need not count any more.
    Open,
    Parked,
    /// With the next row of its stream, and what the queue follows on that it was offered.
    Running(usize, Option<usize>),
    Joining,
    Closing,
    Dropping,
}

/// What an instance may do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    /// A step of a start or of the lane's keeper; at a start all sinks answer.
    Step,
    SinkIsDead,
    AnotherIsDead,
    LoseAnswer,
    LoseWrite,
    Answer,
    Take,
    Store,
    Tell,
    Leave,
    Near,
    Hear,
    LaneTells,
    LaneEnds,
    Prune,
}

#[derive(Debug, Clone, PartialEq)]
enum Action {
    Start(usize),
    Act(usize, Act),
    Write,
    /// PostgreSQL puts its slots on disk.
    Checkpoint,
    ServerCrashes,
    TargetCrashes,
    LoseSlot,
}

impl State {
    fn named(&self) -> BTreeSet<Name> {
        self.record.iter().map(|(name, _)| *name).collect()
    }

    fn slots(&mut self) -> impl Iterator<Item = &mut Slot> {
        std::iter::once(&mut self.walcast_slot).chain(self.lanes.values_mut())
    }

    fn lives(&self) -> impl Iterator<Item = &Life> {
        self.instances.iter().flatten()
    }

    /// Whether a start could bring the sink all that it lacks.
    fn is_whole(&self) -> bool {
        let begins = match self.record {
            Some((name, true)) => self.lanes.get(&name),
            _ => Some(&self.walcast_slot),
        };
        self.lost || begins.is_some_and(|slot| slot.confirmed <= self.target.durable)
    }
}

impl Life {
    /// The sink goes on from what it has; `false` when it cannot.
    fn recover(&mut self, state: &mut State) -> bool {
        let Target { durable, fencing_token } = state.target;
        if fencing_token > self.fencing_token || durable > 0 && durable < self.start {
            return false;
        }
        state.target.fencing_token = self.fencing_token;
        // one that has nothing is taken for new
        state.damaged |= durable < self.start;
        self.accepted = Some(durable.max(self.start));
        true
    }

    fn holds(&self, state: &State) -> usize {
        self.accepted.map_or(self.start, |_| state.target.durable.max(self.start))
    }

    /// The main stream fills the sink's queue no more.
    fn leave(&mut self) {
        self.keeper = match (self.place, self.keeper) {
            (Place::Fed, Keeper::Idle) => Keeper::Opening,
            (Place::Offered, Keeper::Running(at, _)) => Keeper::Running(at, None),
            (_, Keeper::Joining) => Keeper::Open,
            (_, keeper) => keeper,
        };
        (self.place, self.next_queue) = (Place::Left, None);
        self.queue = self.queue.filter(|queue| *queue == Queue::Lane);
    }
}

impl Model for Lanes {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let rows = if matches!(self.1, Trouble::Server | Trouble::Pruning) { 2 } else { 1 };
        actions.extend((state.wal < rows).then_some(Action::Write));
        actions.extend(match self.1 {
            Trouble::Overtaken => vec![],
            Trouble::Server => vec![Action::TargetCrashes, Action::Checkpoint, Action::ServerCrashes],
            Trouble::LostSlot => vec![Action::TargetCrashes, Action::LoseSlot],
            Trouble::Pruning => vec![Action::ServerCrashes],
            Trouble::Answers => vec![Action::TargetCrashes],
        });
        if state.starts < state.instances.len() {
            actions.push(Action::Start(state.starts));
        }
        for (index, life) in state.instances.iter().enumerate() {
            let acts = life.iter().flat_map(|life| self.acts(state, index, life));
            actions.extend(acts.map(|act| Action::Act(index, act)));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Start(index) => {
                state.starts += 1;
                // whoever stands still from here on has crashed
                if self.1 != Trouble::Overtaken {
                    state.instances[0] = None;
                }
                state.reader = None;
                let start = state.walcast_slot.confirmed;
                state.instances[index] = Some(Life { start, confirmed: start, ..Life::default() });
            }
            Action::Act(index, act) => self.act(&mut state, index, act)?,
            Action::Write => state.wal += 1,
            Action::Checkpoint => state.slots().for_each(|slot| slot.on_disk = slot.confirmed),
            Action::ServerCrashes => {
                state.slots().for_each(|slot| slot.confirmed = slot.on_disk);
                state.reader = None;
                state.instances.iter_mut().flatten().for_each(|life| life.looked = None);
            }
            Action::TargetCrashes => {
                for life in state.instances.iter_mut().flatten() {
                    (life.accepted, life.queue, life.next_queue) = (None, None, None);
                }
            }
            Action::LoseSlot => {
                state.lanes.remove(&state.record.filter(|(_, open)| *open)?.0)?;
                state.lost = true;
            }
        }
        Some(state).filter(|state| state != last)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(WITHOUT_GAP, |_, state: &State| !state.damaged),
            Property::always(WHOLE, |_, state: &State| state.is_whole()),
            Property::always(NAMED_IS_THERE, |_, state: &State| {
                let there = |(name, open): &(Name, bool)| !open || state.lanes.contains_key(name);
                state.lost || state.record.iter().all(there)
            }),
            Property::always(PRUNED, |_, state: &State| state.lost || state.pruned <= state.target.durable),
            Property::always(BEGINS_ABOVE, |_, state: &State| {
                let begins =
                    |life: &&Life| life.stage == Stage::Ready && life.fencing_token == state.fencing_token;
                state.lives().filter(begins).all(|life| state.pruned <= life.told)
            }),
            Property::always(NO_STRAY, |_, state: &State| !state.stray),
            Property::sometimes("a lane is opened and merged", |_, state: &State| {
                state.lives().any(|life| life.attempts > 0 && life.keeper == Keeper::Idle)
            }),
            Property::sometimes("a lane is taken over and brings all", |_, state: &State| {
                let taken_over = |life: &Life| life.attempts == 0 && life.place == Place::Joining;
                state.target.durable > 0 && state.lives().any(taken_over)
            }),
        ];
        if self.1 == Trouble::Overtaken {
            properties
                .push(Property::sometimes("an older instance drops its own slot", |_, state: &State| {
                    state.lives().any(|life| life.keeper == Keeper::Refused)
                }));
        }
        properties
    }
}

const WITHOUT_GAP: &str = "no gap and no double";
const WHOLE: &str = "a start can bring the sink all that it lacks";
const NAMED_IS_THERE: &str = "the slot that a record names is there";
const PRUNED: &str = "the content versions are there that the sink still needs";
const BEGINS_ABOVE: &str = "a start reads no row whose content versions are gone";
const NO_STRAY: &str = "whoever is refused the record drops the slot that it has made";

#[test]
fn an_instance_that_wakes_up_too_late_does_no_damage() {
    holds(Lanes(Broken::Nothing, Trouble::Overtaken));
}

#[test]
fn a_crash_of_postgresql_takes_nothing_that_a_sink_lacks() {
    holds(Lanes(Broken::Nothing, Trouble::Server));
}

#[test]
fn a_lost_answer_or_slot_takes_nothing_unseen() {
    holds(Lanes(Broken::Nothing, Trouble::Answers));
    holds(Lanes(Broken::Nothing, Trouble::LostSlot));
}

#[test]
fn no_content_version_goes_that_a_sink_still_needs() {
    holds(Lanes(Broken::Nothing, Trouble::Pruning));
}

#[test]
fn a_broken_rule_leaves_a_sink_without_what_it_lacks() {
    breaks(Lanes(Broken::PartsBeforeItIsOpen, Trouble::Answers), WHOLE);
    breaks(Lanes(Broken::PartsBeforeTheCopy, Trouble::Answers), WHOLE);
    breaks(Lanes(Broken::AcceptedIsDurable, Trouble::Answers), WHOLE);
    breaks(Lanes(Broken::LetsGoAtOnce, Trouble::Answers), WHOLE);
    breaks(Lanes(Broken::JoinsUncounted, Trouble::Answers), WHOLE);
    breaks(Lanes(Broken::BelievesOpening, Trouble::Answers), WHOLE);
    breaks(Lanes(Broken::DeadIsUncounted, Trouble::Answers), WHOLE);
    breaks(Lanes(Broken::BeginsAtTheDead, Trouble::Overtaken), WHOLE);
}

#[test]
fn a_broken_rule_drops_a_slot_that_is_needed() {
    breaks(Lanes(Broken::DropsBeforeItDeletes, Trouble::Answers), NAMED_IS_THERE);
    breaks(Lanes(Broken::NameTwice, Trouble::Overtaken), NAMED_IS_THERE);
    breaks(Lanes(Broken::ReadsBeforeItLists, Trouble::Overtaken), NAMED_IS_THERE);
}

#[test]
fn a_broken_rule_leaves_a_slot_behind() {
    breaks(Lanes(Broken::LeavesItsSlot, Trouble::Overtaken), NO_STRAY);
}

#[test]
fn a_broken_rule_gives_a_gap_or_a_double() {
    breaks(Lanes(Broken::GoneIsFresh, Trouble::LostSlot), WITHOUT_GAP);
    breaks(Lanes(Broken::TakesAnyQueue, Trouble::Server), WITHOUT_GAP);
    breaks(Lanes(Broken::TakesTwice, Trouble::Answers), WITHOUT_GAP);
}

#[test]
fn a_broken_rule_prunes_what_a_sink_still_needs() {
    breaks(Lanes(Broken::LanesFirst, Trouble::Pruning), PRUNED);
    breaks(Lanes(Broken::BeginsAtTheDead, Trouble::Pruning), BEGINS_ABOVE);
}
