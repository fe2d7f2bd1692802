//! The confirmed LSN: three sinks that write whole and half transactions at their own pace, acknowledgements
//! that come late and in any order, and crashes of walcast and of PostgreSQL, which then has forgotten how far
//! its slot was since its last checkpoint. Checkpoints and watermark are the real ones.

use stateright::{Model, Property};
use walcast::lsn::{Checkpoint, Lsn, Position};
use walcast::watermark::Watermark;

use super::{breaks, holds};

const SINKS: [&str; 3] = ["a", "b", "c"];
/// How many rows each transaction has.
const ROWS: [u64; 3] = [2, 1, 2];
const START: Lsn = Lsn(100);

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    Nothing,
    /// The fastest sink decides.
    FastestDecides,
    /// A sink that has a transaction in part says that it has it.
    HalfIsWhole,
    /// A sink says what it holds before it does.
    SaysBeforeItHolds,
    /// A restarted walcast believes the slot, not the sinks.
    BelievesTheSlot,
}

struct Pipeline(Broken);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// What each target has: how many rows of the stream's beginning, and its checkpoint.
    targets: [(usize, Option<Checkpoint>); 3],
    damaged: bool,
    /// What the slot says, and what it says after a crash of PostgreSQL.
    slot: Lsn,
    slot_on_disk: Lsn,
    walcast: Option<Walcast>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Walcast {
    /// Where the slot began when this process started.
    start: Lsn,
    watermark: Watermark,
}

#[derive(Debug, Clone, PartialEq)]
enum Action {
    Start,
    /// The sink writes so many rows more, in one atomic act with its checkpoint.
    Write(usize, usize),
    /// The pipeline hears that the sink holds so much.
    Hear(usize, Lsn),
    /// The server hears what is confirmed.
    Confirm,
    Checkpoint,
    WalcastCrashes,
    PostgresCrashes,
}

/// All events, in order, with the end of their transaction when they are its last.
fn events() -> Vec<(Position, Option<Lsn>)> {
    let mut events = Vec::new();
    for (number, rows) in (0..).zip(ROWS) {
        let commit_lsn = Lsn(START.0 + 10 * number);
        for ordinal in 0..rows {
            let end = (ordinal + 1 == rows).then_some(Lsn(commit_lsn.0 + 10));
            events.push((Position { commit_lsn, ordinal }, end));
        }
    }
    events
}

fn ends() -> Vec<Lsn> {
    events().into_iter().filter_map(|(_, end)| end).collect()
}

impl State {
    fn checkpoint(&self, sink: usize, start: Lsn) -> Checkpoint {
        self.targets[sink].1.unwrap_or(Checkpoint::at(start))
    }

    /// What the server still sends and the sink lacks, as places in the stream.
    fn lacks(&self, sink: usize, walcast: &Walcast) -> Vec<usize> {
        let checkpoint = self.checkpoint(sink, walcast.start);
        let sent = |(_, (position, _)): &(usize, (Position, _))| {
            position.commit_lsn >= walcast.start && !checkpoint.holds(*position)
        };
        events().into_iter().enumerate().filter(sent).map(|(place, _)| place).collect()
    }
}

impl Pipeline {
    fn write(&self, state: &mut State, sink: usize, rows: usize) -> Option<()> {
        let walcast = state.walcast.clone()?;
        let places: Vec<usize> = state.lacks(sink, &walcast).into_iter().take(rows).collect();
        let mut checkpoint = state.checkpoint(sink, walcast.start);
        for place in places {
            let (position, end) = events()[place];
            state.damaged |= place != state.targets[sink].0;
            state.targets[sink].0 = place + 1;
            let half = (self.0 == Broken::HalfIsWhole).then_some(Lsn(position.commit_lsn.0 + 10));
            let durable_lsn = end.or(half).unwrap_or(checkpoint.durable_lsn);
            checkpoint = checkpoint.advanced(Checkpoint { position: Some(position), durable_lsn });
        }
        state.targets[sink].1 = Some(checkpoint);
        Some(())
    }

    fn start(&self, state: &State) -> Walcast {
        let start = state.slot;
        let held = |sink: usize| match self.0 {
            Broken::BelievesTheSlot => *ends().last().unwrap(),
            _ => state.checkpoint(sink, start).durable_lsn,
        };
        let sinks = SINKS.iter().enumerate().map(|(index, name)| (*name, held(index)));
        Walcast { start, watermark: Watermark::new(start, sinks) }
    }

    fn confirmed(&self, state: &State, walcast: &Walcast) -> Lsn {
        match self.0 {
            Broken::FastestDecides => {
                (0..3).map(|sink| state.checkpoint(sink, walcast.start).durable_lsn).max().unwrap()
            }
            _ => walcast.watermark.confirmed(),
        }
    }
}

impl Model for Pipeline {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let (slot, targets) = (START, [(0, None); 3]);
        vec![State { targets, damaged: false, slot, slot_on_disk: slot, walcast: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend([Action::Checkpoint, Action::PostgresCrashes]);
        let Some(walcast) = &state.walcast else { return actions.push(Action::Start) };
        actions.extend([Action::Confirm, Action::WalcastCrashes]);
        for sink in 0..SINKS.len() {
            actions.extend((1..=state.lacks(sink, walcast).len()).map(|rows| Action::Write(sink, rows)));
            let held = match self.0 {
                Broken::SaysBeforeItHolds => *ends().last().unwrap(),
                _ => state.checkpoint(sink, walcast.start).durable_lsn,
            };
            // late and stale ones too
            let heard = ends().into_iter().filter(|end| *end <= held);
            actions.extend(heard.map(|held| Action::Hear(sink, held)));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Start => state.walcast = Some(self.start(last)),
            Action::Write(sink, rows) => self.write(&mut state, sink, rows)?,
            Action::Hear(sink, held) => drop(state.walcast.as_mut()?.watermark.advance(SINKS[sink], held)),
            Action::Confirm => state.slot = last.slot.max(self.confirmed(last, last.walcast.as_ref()?)),
            Action::Checkpoint => state.slot_on_disk = state.slot,
            Action::WalcastCrashes => state.walcast = None,
            Action::PostgresCrashes => {
                state.slot = state.slot_on_disk;
                state.walcast = None;
            }
        }
        Some(state).filter(|state| state != last)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no gap and no double", |_, state: &State| !state.damaged),
            Property::always("nothing is confirmed that a sink lacks", |_, state: &State| {
                let below = events().iter().filter(|(position, _)| position.commit_lsn < state.slot).count();
                state.targets.iter().all(|(rows, _)| *rows >= below)
            }),
            Property::sometimes("all is confirmed", |_, state: &State| {
                state.slot_on_disk == *ends().last().unwrap()
            }),
        ]
    }
}

#[test]
fn nothing_is_confirmed_too_early_in_any_run() {
    holds(Pipeline(Broken::Nothing));
}

#[test]
fn a_broken_rule_is_found() {
    let promise = "nothing is confirmed that a sink lacks";
    breaks(Pipeline(Broken::FastestDecides), promise);
    breaks(Pipeline(Broken::HalfIsWhole), promise);
    breaks(Pipeline(Broken::SaysBeforeItHolds), promise);
    breaks(Pipeline(Broken::BelievesTheSlot), promise);
}
