//! Every run of the three protocols that decide over loss and doubles, not only those that chance finds: small
//! models, searched through wholly. For each rule there is a switch that breaks it, and a test that the search
//! then finds the damage.

mod bigquery;
mod lanes;
mod watermark;

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model};

/// All promises are kept in every run, and what must be possible is.
fn holds<M>(model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    let checker = model.checker().spawn_bfs().join();
    checker.assert_properties();
    println!("{} states", checker.unique_state_count());
}

/// The search finds a run that breaks this promise.
fn breaks<M>(model: M, promise: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    let found = HasDiscoveries::AnyOf([promise].into());
    let checker = model.checker().finish_when(found).spawn_bfs().join();
    let path = checker.assert_any_discovery(promise);
    println!("{:?}", path.into_actions());
}
