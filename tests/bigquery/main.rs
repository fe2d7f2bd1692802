//! The BigQuery sink against the emulator: what a reader sees, and that a crash anywhere changes nothing of it.
//!
//! A crash is played by dropping the sink while one of its calls is held by a proxy before the service, and
//! making a new one: `WALCAST_SEED=7 cargo test --test bigquery` repeats the random ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/mod.rs"]
mod support;

mod world;

mod crashes;
mod rows;
mod streams;
mod table;
