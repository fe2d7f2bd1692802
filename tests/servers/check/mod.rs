//! `walcast check` on real servers: each fault is planted, found, and mended by pasting what the line says.

pub mod operator;

mod command;
mod failover;
mod settings;
mod sinks;
mod tables;
