//! The HTTP sink under its real driver, against a target that fails in every way a real one can; and walcast itself,
//! killed where it hurts.
//!
//! After every fault and every crash: each event was taken, those of a content in order (a repeat left out), an id never came with
//! other bytes, and no checkpoint was ever ahead of what was taken.

mod crashes;
mod faults;
mod security;

mod world;
mod whole;
