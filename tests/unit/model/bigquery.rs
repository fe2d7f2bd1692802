//! The BigQuery sink's intent protocol: two instances of which PostgreSQL's fencing token knows the newer, write streams
//! that expire, commits whose answer is lost or that the service acts on long after their caller has given up or
//! died, crashes between any two steps, and a PostgreSQL that is restored to what it was.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use super::{breaks, holds};

const EVENTS: usize = 2;
const STREAMS: usize = 3;
const STARTS: u8 = 2;

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    Nothing,
    /// A stream is committed without an intent.
    NoIntent,
    /// A start takes no notice of an intent.
    ForgetsIntent,
    /// A start believes that an intent has been carried out.
    BelievesIntent,
    /// A commit without an answer counts as failed: the rows go into a new stream.
    NewStreamBeforeDecided,
    /// PostgreSQL takes what an older instance says.
    NoToken,
    /// The table is not asked whether a stream that is gone was committed.
    GoneIsCommitted,
    /// The table is not asked what it has beyond the checkpoint.
    NoLookUp,
}

struct Protocol(Broken);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    instances: [Phase; 2],
    starts: u8,
    streams: Vec<Stream>,
    /// What a reader sees: the events, by their place in the slot.
    table: Vec<usize>,
    /// Commits on their way to the service.
    late: BTreeSet<usize>,
    fencing_token: u8,
    checkpoint: usize,
    intent: Option<Intent>,
    restored: bool,
}

/// A write stream, which has the events from `first` to before `end`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stream {
    first: usize,
    end: usize,
    finalized: bool,
    committed: bool,
    gone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Intent {
    stream: usize,
    checkpoint: usize,
}

/// Where an instance is; `fencing_token` is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Down,
    Starting {
        fencing_token: u8,
    },
    /// An earlier run's intent is to be carried out.
    Settling {
        fencing_token: u8,
        intent: Intent,
    },
    /// It was, or was not: the checkpoint that follows is to be stored.
    Settled {
        fencing_token: u8,
        checkpoint: usize,
    },
    /// Nothing is open. `from`: the next event to write; asked of the table or not yet.
    Ready {
        fencing_token: u8,
        checkpoint: usize,
        from: Option<usize>,
    },
    Open {
        fencing_token: u8,
        checkpoint: usize,
        stream: usize,
    },
    Finalized {
        fencing_token: u8,
        checkpoint: usize,
        stream: usize,
    },
    Intended {
        fencing_token: u8,
        checkpoint: usize,
        stream: usize,
    },
    Committed {
        fencing_token: u8,
        stream: usize,
    },
}

/// What came of a commit.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reply {
    Done,
    Gone,
}

#[derive(Debug, Clone, PartialEq)]
enum Action {
    Start(usize),
    Crash(usize),
    /// The instance's next step, with its answer; a new stream takes so many events.
    Step(usize, usize),
    /// Its commit is done, and the answer is lost.
    LoseAnswer(usize),
    /// Its commit is on its way, and it gives up waiting.
    GiveUp(usize),
    /// A commit arrives at last.
    Arrive(usize),
    Expire(usize),
    /// PostgreSQL's state is what it was at first; nobody runs.
    Restore,
}

impl State {
    /// The service's own rules.
    fn commit(&mut self, stream: usize) -> Reply {
        let Stream { first, end, finalized, committed, gone } = self.streams[stream].clone();
        if gone {
            return Reply::Gone;
        }
        assert!(finalized, "nobody commits an open stream");
        if !committed {
            self.table.extend(first..end);
            self.streams[stream].committed = true;
        }
        Reply::Done
    }

    fn table_end(&self) -> usize {
        self.table.iter().max().map_or(0, |last| last + 1)
    }
}

impl Protocol {
    fn is_fenced(&self, state: &State, fencing_token: u8) -> bool {
        fencing_token != state.fencing_token && self.0 != Broken::NoToken
    }

    /// The instance's next step; `None` when it has none.
    fn step(&self, state: &mut State, phase: Phase, events: usize) -> Option<Phase> {
        Some(match phase {
            Phase::Down => return None,
            Phase::Starting { fencing_token } if self.is_fenced(state, fencing_token) => Phase::Down,
            Phase::Starting { fencing_token } => self.recover(state, fencing_token),
            Phase::Settling { fencing_token, intent } => self.settle(state, fencing_token, intent),
            Phase::Settled { fencing_token, checkpoint } => {
                self.store(state, fencing_token, checkpoint, None)?
            }
            Phase::Ready { fencing_token, checkpoint, from: None } => {
                let beyond = if self.0 == Broken::NoLookUp { 0 } else { state.table_end() };
                Phase::Ready { fencing_token, checkpoint, from: Some(checkpoint.max(beyond)) }
            }
            Phase::Ready { fencing_token, checkpoint, from: Some(first) } => {
                if first >= EVENTS && checkpoint < first {
                    return self.store(state, fencing_token, first, None);
                }
                let end = first + events;
                if end > EVENTS || state.streams.len() == STREAMS {
                    return None;
                }
                state.streams.push(Stream { first, end, finalized: false, committed: false, gone: false });
                Phase::Open { fencing_token, checkpoint, stream: state.streams.len() - 1 }
            }
            Phase::Open { fencing_token, stream, .. } if state.streams[stream].gone => {
                Phase::Starting { fencing_token }
            }
            Phase::Open { fencing_token, checkpoint, stream } => {
                state.streams[stream].finalized = true;
                Phase::Finalized { fencing_token, checkpoint, stream }
            }
            Phase::Finalized { fencing_token, checkpoint, stream } if self.0 == Broken::NoIntent => {
                Phase::Intended { fencing_token, checkpoint, stream }
            }
            Phase::Finalized { fencing_token, checkpoint, stream } => {
                let intent = Intent { stream, checkpoint: state.streams[stream].end };
                match self.store(state, fencing_token, checkpoint, Some(intent))? {
                    Phase::Down => Phase::Down,
                    _ => Phase::Intended { fencing_token, checkpoint, stream },
                }
            }
            Phase::Intended { fencing_token, stream, .. } => match state.commit(stream) {
                Reply::Done => Phase::Committed { fencing_token, stream },
                Reply::Gone => Phase::Starting { fencing_token },
            },
            Phase::Committed { fencing_token, stream } => {
                let end = state.streams[stream].end;
                self.store(state, fencing_token, end, None)?
            }
        })
    }

    fn recover(&self, state: &State, fencing_token: u8) -> Phase {
        match (state.intent, self.0) {
            (None, _) | (Some(_), Broken::ForgetsIntent) => {
                Phase::Ready { fencing_token, checkpoint: state.checkpoint, from: None }
            }
            (Some(intent), Broken::BelievesIntent) => {
                Phase::Settled { fencing_token, checkpoint: intent.checkpoint }
            }
            (Some(intent), _) => Phase::Settling { fencing_token, intent },
        }
    }

    fn settle(&self, state: &mut State, fencing_token: u8, intent: Intent) -> Phase {
        let first = state.streams[intent.stream].first;
        let committed = match state.commit(intent.stream) {
            Reply::Done => true,
            Reply::Gone => self.0 == Broken::GoneIsCommitted || state.table.contains(&first),
        };
        Phase::Settled {
            fencing_token,
            checkpoint: if committed { intent.checkpoint } else { state.checkpoint },
        }
    }

    /// One transaction, in which nobody becomes newer.
    fn store(
        &self,
        state: &mut State,
        fencing_token: u8,
        checkpoint: usize,
        intent: Option<Intent>,
    ) -> Option<Phase> {
        if self.is_fenced(state, fencing_token) {
            return Some(Phase::Down);
        }
        (state.checkpoint, state.intent) = (checkpoint, intent);
        Some(Phase::Ready { fencing_token, checkpoint, from: None })
    }

    /// What an instance does that waited for its commit in vain.
    fn undecided(&self, phase: Phase) -> Option<Phase> {
        match phase {
            Phase::Intended { fencing_token, checkpoint, .. } if self.0 == Broken::NewStreamBeforeDecided => {
                Some(Phase::Ready { fencing_token, checkpoint, from: Some(checkpoint) })
            }
            // the same stream is committed again, by way of a recovery or at once
            Phase::Intended { fencing_token, .. } if self.0 != Broken::NoIntent => {
                Some(Phase::Starting { fencing_token })
            }
            Phase::Intended { .. } | Phase::Settling { .. } => Some(phase),
            _ => None,
        }
    }
}

/// The stream that an instance is about to commit.
fn commits(phase: Phase) -> Option<usize> {
    match phase {
        Phase::Intended { stream, .. } => Some(stream),
        Phase::Settling { intent, .. } => Some(intent.stream),
        _ => None,
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            instances: [Phase::Down; 2],
            starts: 0,
            streams: Vec::new(),
            table: Vec::new(),
            late: BTreeSet::new(),
            fencing_token: 0,
            checkpoint: 0,
            intent: None,
            restored: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, phase) in state.instances.iter().enumerate() {
            match phase {
                // two alike: the first is the one with the lower number
                Phase::Down if state.starts < STARTS && index <= state.starts.into() => {
                    actions.push(Action::Start(index));
                }
                Phase::Down => {}
                Phase::Ready { from: Some(_), .. } => {
                    actions.extend((1..=EVENTS).map(|events| Action::Step(index, events)));
                    actions.push(Action::Crash(index));
                }
                _ => actions.extend([Action::Step(index, 0), Action::Crash(index)]),
            }
            if commits(*phase).is_some() {
                actions.extend([Action::LoseAnswer(index), Action::GiveUp(index)]);
            }
        }
        actions.extend(state.late.iter().map(|stream| Action::Arrive(*stream)));
        let there = |stream: &usize| !state.streams[*stream].gone;
        actions.extend((0..state.streams.len()).filter(there).map(Action::Expire));
        let quiet = state.instances == [Phase::Down; 2] && state.late.is_empty();
        if quiet && !state.restored && state.starts > 0 {
            actions.push(Action::Restore);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Start(index) => {
                state.starts += 1;
                state.fencing_token += 1;
                state.instances[index] = Phase::Starting { fencing_token: state.fencing_token };
            }
            Action::Crash(index) => state.instances[index] = Phase::Down,
            Action::Step(index, events) => {
                state.instances[index] = self.step(&mut state, last.instances[index], events)?;
            }
            Action::LoseAnswer(index) => {
                state.commit(commits(last.instances[index])?);
                state.instances[index] = self.undecided(last.instances[index])?;
            }
            Action::GiveUp(index) => {
                state.late.insert(commits(last.instances[index])?);
                state.instances[index] = self.undecided(last.instances[index])?;
            }
            Action::Arrive(stream) => {
                state.late.remove(&stream);
                state.commit(stream);
            }
            Action::Expire(stream) => state.streams[stream].gone = true,
            Action::Restore => (state.checkpoint, state.intent, state.restored) = (0, None, true),
        }
        Some(state).filter(|state| state != last)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("each event once, in order, without a gap", |_, state: &State| {
                state.table.iter().copied().eq(0..state.table.len())
            }),
            Property::always("the checkpoint is not ahead of the table", |_, state: &State| {
                state.checkpoint <= state.table.len()
            }),
            Property::sometimes("all is delivered, and the checkpoint says so", |_, state: &State| {
                state.table.len() == EVENTS && state.checkpoint == EVENTS && state.intent.is_none()
            }),
            Property::sometimes("two streams deliver all", |_, state: &State| {
                state.streams.iter().filter(|stream| stream.committed).count() == 2
                    && state.checkpoint == EVENTS
            }),
        ]
    }

    /// A broken promise is enough; what follows from it is not of interest.
    fn within_boundary(&self, state: &State) -> bool {
        state.table.len() <= EVENTS + 1
    }
}

#[test]
fn every_run_of_the_intent_protocol_gives_each_event_once() {
    holds(Protocol(Broken::Nothing));
}

#[test]
fn a_broken_rule_gives_an_event_twice() {
    let promise = "each event once, in order, without a gap";
    breaks(Protocol(Broken::NoIntent), promise);
    breaks(Protocol(Broken::ForgetsIntent), promise);
    breaks(Protocol(Broken::NewStreamBeforeDecided), promise);
    breaks(Protocol(Broken::NoToken), promise);
    breaks(Protocol(Broken::NoLookUp), promise);
}

#[test]
fn a_broken_rule_loses_an_event() {
    let promise = "the checkpoint is not ahead of the table";
    breaks(Protocol(Broken::BelievesIntent), promise);
    breaks(Protocol(Broken::GoneIsCommitted), promise);
}
