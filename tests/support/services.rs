//! Servers besides the main ones, through `scripts/services`.

use std::process::Command;

use walcast::source::PostgresConfig;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services");

/// Runs `scripts/services` with these arguments; what it printed.
pub fn command(arguments: &[&str]) -> String {
    run(arguments, &[])
}

fn run(arguments: &[&str], settings: &[(&'static str, String)]) -> String {
    let ended = Command::new(SCRIPT).args(arguments).envs(settings.iter().cloned()).output().unwrap();
    assert!(ended.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

/// A set of all servers of a test's own, which it may kill. Goes down when it is dropped.
pub struct Servers {
    settings: Vec<(&'static str, String)>,
}

impl Servers {
    /// Starts the set of this name with empty data, on the usual ports moved by `port_shift`. `settings` are further
    /// variables of the script.
    pub fn start(name: &str, port_shift: u16, settings: &[(&'static str, String)]) -> Servers {
        Servers::start_some(name, port_shift, settings, &[])
    }

    /// The same with these servers alone.
    pub fn start_some(
        name: &str,
        port_shift: u16,
        settings: &[(&'static str, String)],
        names: &[&str],
    ) -> Servers {
        let set = [("SERVICES_SET", name.to_owned()), ("SERVICES_PORT_SHIFT", port_shift.to_string())];
        let servers = Servers { settings: [&set, settings].concat() };
        servers.command(&["wipe"]);
        servers.command(&[&["up"], names].concat());
        servers
    }

    /// `scripts/services` for this set; what it printed.
    pub fn command(&self, arguments: &[&str]) -> String {
        run(arguments, &self.settings)
    }

    /// What reaches these servers: names and values of the environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = self.command(&["env"]);
        pairs
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// kill -9, and up again with the data that there is.
    pub fn crash(&self, name: &str) {
        self.command(&["kill", name]);
        self.command(&["up", name]);
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let down = Command::new(SCRIPT).arg("wipe").envs(self.settings.iter().cloned()).output();
        if !down.is_ok_and(|down| down.status.success()) {
            eprintln!("{:?} could not be stopped", self.settings);
        }
    }
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
