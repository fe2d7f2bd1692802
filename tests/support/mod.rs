//! What the tests on real servers share: the servers' addresses, a database of one's own, waiting for a
//! condition.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod bigquery_server;
pub mod browser;
pub mod certificates;
pub mod hold;
pub mod http_server;
pub mod pair;
pub mod redis_server;
pub mod running;
pub mod services;
pub mod story;
pub mod wire;
pub mod world;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio_postgres::Client;
use uuid::Uuid;
use walcast::lsn::HistoryId;
use walcast::ops::init::migrate;
use walcast::source::{PostgresConfig, sql};

/// How long anything may take that a test waits for.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How long a condition is waited for that is no promise of speed: on a small machine many tests run at once, beside a compiler.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A variable of `scripts/services env`, or what the servers have when nobody has changed it.
pub fn env(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// The main PostgreSQL server, as its superuser.
pub fn postgres() -> PostgresConfig {
    PostgresConfig {
        host: env("POSTGRES_HOST", "127.0.0.1"),
        port: env("POSTGRES_PORT", "25432").parse().unwrap(),
        db: env("POSTGRES_DB", "engagement"),
        user: env("POSTGRES_USER", "postgres"),
        password: env("POSTGRES_PASSWORD", "walcast").into(),
        ..Default::default()
    }
}

/// A database of the main server.
pub fn database(db: &str) -> PostgresConfig {
    PostgresConfig { db: db.to_owned(), ..postgres() }
}

/// A name that no other test has.
pub fn fresh_name(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::new_v4().simple())
}

/// Makes an empty database on the server; slot and publication get names of their own too.
pub async fn fresh_database(server: PostgresConfig) -> PostgresConfig {
    let db = fresh_name("test");
    let admin = sql::connect(&server).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {db}")).await.unwrap();
    PostgresConfig { slot: db.clone(), publication: fresh_name("publication"), db, ..server }
}

/// Drops what [`fresh_database`] made, and the slots in it.
pub async fn drop_database(config: &PostgresConfig) {
    let server = PostgresConfig { db: "postgres".into(), ..config.clone() };
    let admin = sql::connect(&server).await.unwrap();
    let slots = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE database = $1 AND NOT active";
    wait_until("the database's slots are gone", async || {
        let _ = admin.query(slots, &[&config.db]).await;
        let left = "SELECT count(*) FROM pg_replication_slots WHERE database = $1";
        admin.query_one(left, &[&config.db]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", config.db)).await.unwrap();
}

/// Runs a test in a database of its own, which goes afterwards however the test ends.
pub async fn in_fresh_database(server: PostgresConfig, test: impl AsyncFnOnce(&PostgresConfig)) {
    let config = fresh_database(server).await;
    let ended = AssertUnwindSafe(test(&config)).catch_unwind().await;
    drop_database(&config).await;
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

/// Runs a test in a database of its own that has walcast's schema.
pub async fn with_schema(test: impl AsyncFnOnce(&PostgresConfig)) {
    in_fresh_database(postgres(), async |postgres| {
        let mut client = sql::connect(postgres).await.unwrap();
        migrate(&mut client, postgres).await.unwrap();
        test(postgres).await;
    })
    .await;
}

/// Makes walcast believe that it has made this slot.
pub async fn made_up_history(client: &Client, slot: &str) -> HistoryId {
    let history_id =
        HistoryId { uuid: Uuid::new_v4(), system_id: "7".into(), timeline: 1, slot: slot.to_owned() };
    let insert = "INSERT INTO walcast.slot (slot, history_id, system_id, timeline, publication, publication_oid, state)
                  VALUES ($1, $2, '7', 1, 'p', 1, 'ready')";
    client.execute(insert, &[&history_id.slot, &history_id.uuid]).await.unwrap();
    history_id
}

/// Runs statements; a failing one fails the test.
pub async fn run(client: &Client, statements: &str) {
    client.batch_execute(statements).await.unwrap();
}

/// Asks again and again until the answer is yes.
pub async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    wait_until_within(PATIENCE, what, condition).await;
}

/// The same, for what takes its time. It asks less often the longer it waits: some questions cost a server more than the
/// work that they wait for.
pub async fn wait_until_within(within: Duration, what: &str, condition: impl AsyncFn() -> bool) {
    let began = Instant::now();
    let asking = async {
        while !condition().await {
            let wait = (began.elapsed() / 8).clamp(Duration::from_millis(10), Duration::from_millis(500));
            tokio::time::sleep(wait).await;
        }
    };
    assert!(tokio::time::timeout(within, asking).await.is_ok(), "not within {within:?}: {what}");
}
