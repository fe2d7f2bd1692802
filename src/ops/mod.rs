//! The commands, one a file.

pub mod run;
pub mod init;
pub mod check;
mod terminal;
pub mod status;
pub mod verify;
pub mod rebuild;
