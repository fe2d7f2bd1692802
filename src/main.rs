//! The `walcast` command.
fn main() {}
