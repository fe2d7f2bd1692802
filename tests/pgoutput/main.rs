//! The pgoutput decoder against an encoder of our own, and against what PostgreSQL 14 to 18 really sent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod encode;
mod properties;
mod recorded;
mod rules;
mod story;
