//! The pgoutput decoder against an encoder of our own, and against what PostgreSQL 14 to 19 really sent.

mod properties;
mod recorded;
mod rules;
mod story;
