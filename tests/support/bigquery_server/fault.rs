//! What goes wrong, and when: a plan that tests write call by call, or that chance draws from a seed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tonic::Code;

/// What a client can ask for. An AppendRows call counts anew with each of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    CreateWriteStream,
    AppendRows,
    GetWriteStream,
    FinalizeWriteStream,
    BatchCommitWriteStreams,
    FlushRows,
    GetDataset,
    CreateDataset,
    DeleteDataset,
    GetTable,
    CreateTable,
    GetRoutine,
    Query,
}

/// What befalls a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Nothing, after all: lets one call pass.
    None,
    /// This is the answer; nothing is done.
    Refuse(Code),
    /// It is done; the answer is UNAVAILABLE.
    LoseAnswer,
    /// Nothing is done; all connections break.
    CutBefore,
    /// It is done; all connections break.
    CutAfter,
    /// It waits until released and is done then, whether anybody still waits for it or not.
    HoldBefore,
    /// It is done; the answer waits until released.
    HoldAfter,
    /// It is done; the answer comes so much later.
    Late(Duration),
    /// The stream that is named has expired.
    Gone,
    /// Its schema is one that the service has not heard of yet.
    OldSchema,
}

/// Faults to come.
#[derive(Default)]
pub struct Plan {
    written: BTreeMap<Call, VecDeque<Fault>>,
    delays: BTreeMap<Call, Duration>,
    chance: Option<Chance>,
}

struct Chance {
    seed: u64,
    rate: f64,
    faults: Vec<Fault>,
    /// One a kind of call, so that what one meets does not hang on how many others came between.
    dice: BTreeMap<Call, StdRng>,
}

impl Plan {
    /// The next call of this kind that has no fault yet gets this one.
    pub fn next(&mut self, call: Call, fault: Fault) {
        self.written.entry(call).or_default().push_back(fault);
    }

    /// Every call of this kind is answered so much later.
    pub fn delay(&mut self, call: Call, by: Duration) {
        self.delays.insert(call, by);
    }

    /// From here on a call meets one of these faults at this rate (0.0 to 1.0), drawn from the seed.
    pub fn draw(&mut self, seed: u64, rate: f64, faults: &[Fault]) {
        self.chance = Some(Chance { seed, rate, faults: faults.to_vec(), dice: BTreeMap::new() });
    }

    /// What befalls this call.
    pub fn fault(&mut self, call: Call) -> Fault {
        let written = self.written.get_mut(&call).and_then(VecDeque::pop_front);
        let drawn = || self.chance.as_mut().and_then(|chance| chance.draw(call));
        let always = || self.delays.get(&call).map(|by| Fault::Late(*by));
        written.or_else(drawn).or_else(always).unwrap_or(Fault::None)
    }
}

impl Chance {
    fn draw(&mut self, call: Call) -> Option<Fault> {
        let dice =
            self.dice.entry(call).or_insert_with(|| StdRng::seed_from_u64(self.seed ^ (call as u64) << 32));
        let meets = dice.random_bool(self.rate);
        let fault = self.faults.choose(dice).copied();
        fault.filter(|fault| meets && fault.can_befall(call))
    }
}

impl Fault {
    fn can_befall(self, call: Call) -> bool {
        use Call::{AppendRows, BatchCommitWriteStreams, FinalizeWriteStream, FlushRows, GetWriteStream};
        match self {
            Fault::Gone => {
                matches!(
                    call,
                    AppendRows | BatchCommitWriteStreams | FinalizeWriteStream | FlushRows | GetWriteStream
                )
            }
            Fault::OldSchema => call == AppendRows,
            _ => true,
        }
    }
}
