//! Servers besides the main ones, through `scripts/services`.

use std::process::Command;

use walcast::source::PostgresConfig;

/// A PostgreSQL of a version (`15`) or with settings of its own (`18:replica`, `wal_level=replica`), started
/// when it does not run.
pub fn postgres(version: &str, settings: &[&str]) -> PostgresConfig {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");
    let mut up = Command::new(script);
    up.args(["postgres", version, "up"]).args(settings);
    let started = up.output().unwrap();
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let printed = Command::new(script).args(["postgres", version, "env"]).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
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
