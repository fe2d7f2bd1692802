//! `walcast check` on real servers: each fault is planted, found, and mended by pasting what the line says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/pair.rs"]
mod pair;
#[path = "../support/services.rs"]
mod services;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/world.rs"]
mod world;

mod operator;

mod command;
mod failover;
mod settings;
mod sinks;
mod tables;
