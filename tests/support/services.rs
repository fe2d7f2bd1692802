//! Servers besides the main ones, through `scripts/services`.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::process::Command;

use walcast::source::PostgresConfig;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");

/// Runs `scripts/services` with these arguments; what it printed.
pub fn command(arguments: &[&str]) -> String {
    let ended = Command::new(SCRIPT).args(arguments).output().unwrap();
    assert!(ended.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

/// A PostgreSQL of a version (`15`) or with settings of its own (`18:replica`, `wal_level=replica`), started
/// when it does not run.
pub fn postgres(version: &str, settings: &[&str]) -> PostgresConfig {
    command(&[&["postgres", version, "up"], settings].concat());
    let printed = command(&["postgres", version, "env"]);
    let value = |name: &str| {
        let line = printed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{name} is not in {printed}")).to_owned()
    };
    PostgresConfig {
        host: value("POSTGRES_HOST"),
        port: value("POSTGRES_PORT").parse().unwrap(),
        db: value("POSTGRES_DB"),
        user: value("POSTGRES_USER"),
        password: value("POSTGRES_PASSWORD").into(),
        ..Default::default()
    }
}
