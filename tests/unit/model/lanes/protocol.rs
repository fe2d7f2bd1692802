//! The rules of an instance, step by step. A step says whether the instance lives on; `None` where it cannot be taken now.

use super::*;

impl Lanes {
    fn sweep(&self, state: &mut State, sweep: Sweep) -> Option<Sweep> {
        let listed: BTreeSet<Name> = state.lanes.keys().copied().collect();
        let seen = |names: BTreeSet<Name>| (!names.is_empty()).then_some(names);
        match (sweep, self.0) {
            (Sweep::Begun, Broken::ReadsBeforeItLists) => Some(Sweep::Seen(state.named())),
            (Sweep::Begun, _) => seen(listed).map(Sweep::Seen),
            (Sweep::Seen(named), Broken::ReadsBeforeItLists) => seen(&listed - &named).map(Sweep::Strays),
            (Sweep::Seen(listed), _) => seen(&listed - &state.named()).map(Sweep::Strays),
            (Sweep::Strays(strays), _) => {
                state.lanes.retain(|name, _| !strays.contains(name));
                None
            }
        }
    }

    fn start(&self, state: &mut State, life: &mut Life, index: usize, act: Act) -> Option<bool> {
        let overtaken = life.fencing_token != state.fencing_token;
        life.stage = match life.stage {
            Stage::Found => {
                state.fencing_token += 1;
                life.fencing_token = state.fencing_token;
                Stage::Newest
            }
            Stage::Newest if overtaken => return Some(false),
            Stage::Newest => {
                state.record = state.record.filter(|(_, open)| *open || self.0 == Broken::BelievesOpening);
                life.keeper = state.record.map_or(Keeper::Opening, |_| Keeper::Open);
                life.name = state.record.map_or((0, 0), |(name, _)| name);
                life.sweep = Some(Sweep::Begun);
                Stage::Asking
            }
            Stage::Asking => return Some(self.ask(state, life, act)),
            Stage::Ready if state.reader.is_some_and(|reader| reader > index) => return None,
            Stage::Ready => {
                state.reader = Some(index);
                let from = life.told.max(state.walcast_slot.confirmed);
                life.queue = life.accepted.map(|_| Queue::Main(from));
                Stage::Streaming
            }
            Stage::Streaming => return None,
        };
        Some(true)
    }

    /// Asks the sinks where they stand.
    fn ask(&self, state: &mut State, life: &mut Life, act: Act) -> bool {
        life.stage = Stage::Ready;
        let slot = state.lanes.get(&life.name).map(|slot| slot.confirmed);
        if self.0 == Broken::GoneIsFresh && slot.is_none() {
            life.keeper = Keeper::Opening;
        }
        if life.keeper == Keeper::Open {
            life.start = slot.unwrap_or_default();
        } else if act == Act::SinkIsDead {
            life.counts = self.0 != Broken::DeadIsUncounted;
        } else {
            (life.place, life.counts, life.keeper) = (Place::Fed, true, Keeper::Idle);
            if !life.recover(state) {
                return false;
            }
        }
        life.all_answer = act != Act::AnotherIsDead;
        // The stream begins at the lowest of those that it feeds. One that is dead counts, and is not fed. So an older
        // instance, which has read the slot since this start looked at it, has told it no more than that.
        let (fed, fed_others) = match self.0 {
            Broken::BeginsAtTheDead => (life.counts, life.all_answer),
            _ => (life.place == Place::Fed, true),
        };
        let others = if fed_others { state.others } else { life.confirmed };
        life.told = life.confirmed.max(if fed { life.holds(state).min(others) } else { others });
        true
    }

    /// A step of the lane's keeper.
    fn keep(&self, state: &mut State, life: &mut Life) -> Option<bool> {
        let overtaken = life.fencing_token != state.fencing_token;
        let without = |name: Name| state.record.filter(|(named, _)| *named != name);
        life.keeper = match life.keeper {
            Keeper::Idle => return None,
            Keeper::Opening | Keeper::Closing if overtaken => return Some(false),
            Keeper::Opening if life.attempts > 0 && self.1 != Trouble::Answers => return None,
            Keeper::Opening if life.attempts > 1 => return None,
            Keeper::Opening => {
                life.attempts += 1;
                life.name = (life.fencing_token, life.attempts);
                if self.0 == Broken::NameTwice {
                    life.name = (1, 1);
                }
                state.record = Some((life.name, false));
                life.sweep = Some(Sweep::Begun);
                Keeper::Copying
            }
            Keeper::Copying if state.lanes.contains_key(&life.name) => return None,
            Keeper::Copying => {
                let confirmed = state.walcast_slot.confirmed;
                state.lanes.insert(life.name, Slot { confirmed, on_disk: confirmed });
                life.counts &= self.0 != Broken::PartsBeforeItIsOpen;
                Keeper::Copied
            }
            Keeper::Copied if overtaken && self.0 == Broken::LeavesItsSlot => {
                state.stray = true;
                return Some(false);
            }
            Keeper::Copied if overtaken => Keeper::Refused,
            Keeper::Copied => {
                state.record = Some((life.name, true));
                Keeper::Open
            }
            Keeper::Refused => {
                state.lanes.remove(&life.name);
                return Some(false);
            }
            Keeper::Open => {
                life.counts = false;
                Keeper::Parked
            }
            Keeper::Parked => {
                let (accepted, slot) = (life.accepted?, state.lanes.get(&life.name)?);
                if life.queue.is_some() || slot.confirmed > accepted {
                    return None;
                }
                life.queue = Some(Queue::Lane);
                Keeper::Running(slot.confirmed.max(life.holds(state)), None)
            }
            Keeper::Running(at, offer) => {
                life.next_queue = Some(offer.filter(|from| *from <= at)?);
                life.queue = None;
                Keeper::Joining
            }
            Keeper::Joining if life.place == Place::Joining && self.may_let_go(state, life) => {
                life.place = Place::Fed;
                Keeper::Closing
            }
            Keeper::Joining => return None,
            Keeper::Closing if self.0 == Broken::DropsBeforeItDeletes => {
                state.lanes.remove(&life.name);
                Keeper::Dropping
            }
            Keeper::Closing => {
                state.record = without(life.name);
                Keeper::Dropping
            }
            Keeper::Dropping => {
                state.record = without(life.name);
                state.lanes.remove(&life.name);
                if life.place == Place::Left { Keeper::Opening } else { Keeper::Idle }
            }
        };
        Some(true)
    }

    fn may_let_go(&self, state: &State, life: &Life) -> bool {
        match self.0 {
            Broken::LetsGoAtOnce => true,
            Broken::AcceptedIsDurable => life.accepted >= Some(life.told),
            _ => life.holds(state) >= life.told,
        }
    }

    /// The sink takes the next row, or the next queue.
    fn take(&self, state: &mut State, life: &mut Life, reads: bool) -> Option<()> {
        let accepted = life.accepted?;
        let row = match (&mut life.queue, &mut life.keeper) {
            (Some(Queue::Main(next)), _) if reads && *next < state.wal => next,
            (Some(Queue::Lane), Keeper::Running(next, _)) if *next < state.wal => next,
            (Some(_), _) => return None,
            (None, _) => {
                let from = life.next_queue.take()?;
                let follows = from <= accepted || self.0 == Broken::TakesAnyQueue;
                life.queue = follows.then_some(Queue::Main(from));
                return Some(());
            }
        };
        let known = if self.0 == Broken::TakesTwice { state.target.durable } else { accepted };
        if *row >= known {
            state.damaged |= *row != accepted;
            life.accepted = Some(accepted.max(*row + 1));
        }
        *row += 1;
        Some(())
    }

    /// The walcast slot is told what all hold that count.
    fn tell(&self, state: &mut State, life: &mut Life) {
        // one of the others is in PostgreSQL, where an older instance writes no more
        if life.fencing_token == state.fencing_token {
            state.others = state.wal;
        }
        let others = if life.all_answer { state.others } else { life.confirmed };
        life.confirmed = life.confirmed.max(if life.counts { life.holds(state).min(others) } else { others });
        life.told = life.told.max(life.confirmed);
        state.walcast_slot.confirmed = state.walcast_slot.confirmed.max(life.confirmed);
    }

    /// The first look at the slots, or the second and what follows from both.
    fn prune(&self, state: &mut State, life: &mut Life) {
        let lanes = state.named().iter().filter_map(|name| Some(state.lanes.get(name)?.confirmed)).min();
        let (walcast_slot, lanes) = (state.walcast_slot.confirmed, lanes.unwrap_or(usize::MAX));
        let (first, second) = match self.0 {
            Broken::LanesFirst => (lanes, walcast_slot),
            _ => (walcast_slot, lanes),
        };
        match life.looked.take() {
            None => life.looked = Some(first),
            Some(looked) => state.pruned = state.pruned.max(looked.min(second)),
        }
    }

    /// What the sink, the streams and the keeper do.
    fn live(&self, state: &mut State, life: &mut Life, reads: bool, act: Act) -> Option<bool> {
        let newest = life.fencing_token == state.fencing_token;
        match (act, life.keeper) {
            (Act::Step, _) => return self.keep(state, life),
            (Act::LoseWrite, Keeper::Copied) => life.keeper = Keeper::Opening,
            (Act::LoseAnswer, Keeper::Copied) if newest => {
                self.keep(state, life)?;
                life.keeper = Keeper::Opening;
            }
            (Act::Answer, _) if life.accepted.is_none() => return Some(life.recover(state)),
            (Act::Take, _) => self.take(state, life, reads)?,
            (Act::Store, _) if state.target.fencing_token > life.fencing_token => return Some(false),
            (Act::Store, _) => state.target.durable = state.target.durable.max(life.accepted?),
            (Act::Tell, _) if reads => self.tell(state, life),
            (Act::LaneTells, Keeper::Running(..)) => {
                let holds = life.holds(state).min(state.others);
                let slot = state.lanes.get_mut(&life.name)?;
                slot.confirmed = slot.confirmed.max(holds);
            }
            // what else an older instance does, nobody sees
            _ if !newest => return None,
            (Act::Leave, _) => {
                life.leave();
                life.counts &= self.0 != Broken::PartsBeforeTheCopy;
            }
            (Act::Near, Keeper::Running(at, None)) if reads && life.place == Place::Left => {
                (life.place, life.keeper) = (Place::Offered, Keeper::Running(at, Some(state.wal)));
            }
            (Act::Hear, Keeper::Joining) if life.place == Place::Offered => {
                (life.place, life.counts) = (Place::Joining, self.0 != Broken::JoinsUncounted);
            }
            (Act::LaneEnds, Keeper::Running(..)) => (life.keeper, life.queue) = (Keeper::Open, None),
            (Act::Prune, _) => self.prune(state, life),
            _ => return None,
        }
        Some(true)
    }

    pub(super) fn act(&self, state: &mut State, index: usize, act: Act) -> Option<()> {
        let mut life = state.instances[index].clone()?;
        let reads = state.reader == Some(index);
        let lives = match (life.sweep.take(), life.stage, act) {
            (Some(sweep), _, Act::Step) => {
                life.sweep = self.sweep(state, sweep);
                true
            }
            (sweep, Stage::Streaming, _) => {
                life.sweep = sweep;
                self.live(state, &mut life, reads, act)?
            }
            _ => self.start(state, &mut life, index, act)?,
        };
        state.reader = state.reader.filter(|_| lives || !reads);
        state.instances[index] = lives.then_some(life);
        Some(())
    }

    /// What an instance may be able to do.
    pub(super) fn acts(&self, state: &State, index: usize, life: &Life) -> Vec<Act> {
        let mut acts = vec![Act::Step];
        if life.stage != Stage::Streaming {
            let asks = life.stage == Stage::Asking && life.sweep.is_none();
            acts.extend(asks.then_some(Act::SinkIsDead));
            acts.extend((asks && self.1 == Trouble::Overtaken && index == 1).then_some(Act::AnotherIsDead));
            return acts;
        }
        acts.push(if life.accepted.is_some() { Act::Take } else { Act::Answer });
        acts.extend((life.accepted > Some(state.target.durable)).then_some(Act::Store));
        acts.extend((state.reader == Some(index)).then_some(Act::Tell));
        acts.extend((self.1 == Trouble::Pruning).then_some(Act::Prune));
        acts.extend((life.place != Place::Left).then_some(Act::Leave));
        match life.keeper {
            Keeper::Running(..) => acts.extend([Act::Near, Act::LaneTells, Act::LaneEnds]),
            Keeper::Joining => acts.push(Act::Hear),
            Keeper::Copied if self.1 == Trouble::Answers => acts.extend([Act::LoseAnswer, Act::LoseWrite]),
            _ => {}
        }
        acts
    }
}
