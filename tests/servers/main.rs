//! What is true on real servers: `scripts/services run cargo test --test servers`.
//!
//! A test has a database, slot, topics, Redis database and dataset of its own, so that all of them can run at the
//! same time. Most of their time they wait, so more of them than there are cores are quicker (see the Makefile).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod backfill;
mod bad_input;
mod bigquery;
mod bigquery_faults;
mod canary;
mod check;
mod clocks;
mod dashboard;
mod dead_letters;
mod end_to_end;
mod extra;
mod gaps;
mod generate;
mod http;
mod kafka;
mod lane_limit;
mod lane_views;
mod lanes;
mod missing;
mod origins;
mod payloads;
mod pg_upgrade;
mod postgres_19;
mod privacy;
mod rebuild;
mod resync;
mod redis;
mod replays;
mod rights;
mod role;
mod server_words;
mod sessions;
mod source;
mod strangers;
mod tables;
mod telemetry;
mod two_instances;
mod upgrade;
mod values;
mod verify;
mod zones;
