//! The BigQuery sink under its real driver, against a service that fails in every way the real one can.
//!
//! After every fault, and after every crash in between: each event is in the table once, in the stream's order,
//! none is missing, and no checkpoint was ever ahead of the table. `WALCAST_SEED=7 cargo test --test servers
//! bigquery_faults::random` repeats a random plan.
//!
//! Each rule was broken once to see that it is missed:
//!
//! | broken | found by |
//! |---|---|
//! | a commit without an intent | `a_crash_or_a_pause…`, `a_state_restored…`, random plans |
//! | a start that forgets the intent | `a_crash_or_a_pause…` |
//! | a start that believes the intent | all with a crash |
//! | something new before an older commit is decided | `nothing_new_is_written…` |
//! | no fencing token guard | `a_crash_or_a_pause…`, random plans |
//! | no look into the table after a start | `a_state_restored…` |
//! | a stream that is gone counts as committed | `a_stream_that_is_gone…`, random plans |
//! | a checkpoint that is reported before its commit | `a_call_that_fails_once…` |
//! | a stream that goes on when a column comes | `a_column_is_made…` |
//! | requests cut anew after a broken call | `a_request_from_before_a_refusal…` |

mod world;

mod calls;
mod extra;
mod random;
mod rows;
mod service;
mod streams;
