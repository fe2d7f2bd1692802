//! What the integration tests share: where the servers are, and how to wait.
#![allow(dead_code)]

use std::time::{Duration, Instant};

use walcast::source::PostgresConfig;

/// A setting of `scripts/services env`: from the environment, else its default there.
pub fn setting(name: &str) -> String {
    let default = match name {
        "POSTGRES_HOST" | "REDIS_HOST" => "127.0.0.1",
        "POSTGRES_PORT" => "25432",
        "POSTGRES_USER" => "postgres",
        "POSTGRES_PASSWORD" | "REDIS_PASSWORD" => "walcast",
        "KAFKA_BROKERS" => "127.0.0.1:29092",
        "REDIS_PORT" => "26379",
        other => panic!("{other} has no default: run the tests with `make test`"),
    };
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// The server's own settings, for this database.
pub fn postgres(db: &str) -> PostgresConfig {
    PostgresConfig {
        host: setting("POSTGRES_HOST"),
        port: setting("POSTGRES_PORT").parse().expect("POSTGRES_PORT is a number"),
        user: setting("POSTGRES_USER"),
        password: setting("POSTGRES_PASSWORD").into(),
        db: db.into(),
        ..PostgresConfig::default()
    }
}

/// Waits for the condition; panics, naming it, when the deadline passes first.
pub async fn wait_until<F: Future<Output = bool>>(what: &str, deadline: Duration, condition: impl Fn() -> F) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
