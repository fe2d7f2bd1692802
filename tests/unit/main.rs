//! What needs no server: the inner parts alone, models searched through, whole runs in simulated time, the web
//! server, and the rules of the house.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../stages/mod.rs"]
mod stages;

mod architecture;
mod docs;
mod model;
mod monitoring;
mod pgoutput;
mod simulation;
mod transform;
mod web;
