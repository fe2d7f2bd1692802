//! Whatever is killed, whenever: every committed event is in every sink once.
//!
//! `make chaos KILLS=200 LANE_MINUTES=30` is the long form. `WALCAST_SEED` makes the same plan again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod brokers;
mod failovers;
mod kills;
mod lanes;
mod named;
mod odd;
mod outages;
mod plan;
mod stuck;
mod witness;

/// Events a minute under every series: 3,333 a second.
const RATE_PER_MINUTE: u32 = 200_000;

/// How many kills a series has.
fn kills() -> usize {
    std::env::var("KILLS").map_or(10, |kills| kills.parse().expect("KILLS is a number"))
}

/// Whether there is time for everything.
fn is_long() -> bool {
    kills() >= 200
}
