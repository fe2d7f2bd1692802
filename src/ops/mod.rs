//! The commands, one a file.

pub mod run;
pub mod init;
pub mod check;
pub mod explain;
mod terminal;
pub mod status;
pub mod dead_letters;
pub mod verify;
pub mod backfill;
pub mod rebuild;
pub mod resync;
pub mod drain;
pub mod adopt;
pub mod erase;
