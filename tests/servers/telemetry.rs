//! What the operator is told of the slot, by every version of PostgreSQL.

use crate::support::services;
use std::time::Duration;

use crate::support::{self, DEADLINE, drop_database, fresh_database, fresh_name, run, wait_until};
use tokio_postgres::Client;
use walcast::source::connection::Connection;
use walcast::source::{PostgresConfig, sql};
use walcast::telemetry::lag;
use walcast::telemetry::registry::StatusRegistry;
use walcast::telemetry::status::SlotStatus;

/// Watches the slot of a database of its own while `test` runs.
async fn with_watched_slot(
    server: PostgresConfig,
    test: impl AsyncFnOnce(&PostgresConfig, &Client, &StatusRegistry),
) {
    let postgres = fresh_database(server).await;
    let client = sql::connect(&postgres).await.unwrap();
    run(&client, &format!("CREATE PUBLICATION {} FOR ALL TABLES", postgres.publication)).await;
    let make = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')::text";
    client.query_one(make, &[&postgres.slot]).await.unwrap();
    let registry = StatusRegistry::new();
    let watch = tokio::spawn(lag::watch(postgres.clone(), registry.clone()));
    test(&postgres, &client, &registry).await;
    watch.abort();
    drop_database(&postgres).await;
}

fn slot(registry: &StatusRegistry) -> SlotStatus {
    registry.status().source.slot.unwrap_or_default()
}

/// A role without the right sees no session of others, and the status says that this is why.
#[tokio::test]
async fn what_the_role_may_not_see_is_told() {
    with_watched_slot(support::postgres(), async |postgres, client, registry| {
        wait_until("the slot is seen", async || slot(registry).sees_sessions).await;
        let role = fresh_name("role");
        run(client, &format!("CREATE ROLE {role} LOGIN PASSWORD 'x'")).await;
        let other =
            PostgresConfig { user: role.clone(), password: "x".to_owned().into(), ..postgres.clone() };
        let blind = StatusRegistry::new();
        let watch = tokio::spawn(lag::watch(other, blind.clone()));
        run(client, "BEGIN; CREATE TABLE left_open_too (id int)").await;
        wait_until("those who may see it do", async || slot(registry).oldest_transaction_seconds.is_some())
            .await;
        wait_until("the slot is seen", async || slot(&blind).wal_status == "reserved").await;
        let facts = slot(&blind);
        assert_eq!((facts.sees_sessions, facts.oldest_transaction_seconds), (false, None));
        assert_eq!(facts.role, role);
        run(client, &format!("ROLLBACK; GRANT pg_read_all_stats TO {role}")).await;
        wait_until("the grant is seen", async || slot(&blind).sees_sessions).await;
        watch.abort();
        run(client, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    })
    .await;
}

/// A prepared transaction, or one that a session has open.
async fn an_open_transaction_is_told(postgres: &PostgresConfig, client: &Client, registry: &StatusRegistry) {
    let other = sql::connect(postgres).await.unwrap();
    run(&other, "BEGIN; CREATE TABLE left_open (id int)").await;
    wait_until("the open transaction is told", async || {
        slot(registry).oldest_transaction_seconds.is_some_and(|open| open > 0.0)
    })
    .await;
    run(&other, "ROLLBACK").await;
    let writing = "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = current_database()";
    assert_eq!(client.query_one(writing, &[]).await.unwrap().get::<_, i64>(0), 0);
}

/// The slot is sampled, falls behind, and comes up again.
async fn the_slot_is_told(server: PostgresConfig) {
    with_watched_slot(server, async |postgres, client, registry| {
        wait_until("the slot is seen", async || slot(registry).wal_status == "reserved").await;
        let facts = slot(registry);
        assert_eq!((&facts.name, &facts.database), (&postgres.slot, &postgres.db));
        assert_eq!((facts.active, facts.active_pid, facts.two_phase), (false, None, false));
        assert_eq!((facts.plugin.as_str(), facts.keep_bytes_max), ("pgoutput", None));
        let is_kept_on_standbys = (server_version(client).await >= 17).then_some(false);
        assert_eq!((facts.failover, facts.synced), (is_kept_on_standbys, is_kept_on_standbys));
        let before = slot(registry);
        run(client, "CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)").await;
        wait_until("the lag grows by what was written", async || {
            let now = slot(registry);
            now.confirmed_lag_bytes > before.confirmed_lag_bytes + 1_000_000
                && now.retained_bytes > now.confirmed_lag_bytes
                && now.wal_lsn > before.wal_lsn
                && now.restart_lsn == before.restart_lsn
                && now.catalog_xmin_age_transactions > before.catalog_xmin_age_transactions
        })
        .await;
        an_open_transaction_is_told(postgres, client, registry).await;
        the_walsender_is_told(postgres, registry).await;
        spilling_is_told(postgres, client, registry).await;
        wait_until("its idleness is told", async || slot(registry).inactive_seconds > 0.0).await;
        let advance = "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())::text";
        let behind = slot(registry);
        client.query_one(advance, &[&postgres.slot]).await.unwrap();
        wait_until("its step is seen", async || slot(registry).confirmed_lsn >= behind.wal_lsn).await;
        let now = slot(registry);
        assert_eq!(now.confirmed_lag_bytes, now.wal_lsn.bytes_since(now.confirmed_lsn));
    })
    .await;
}

async fn the_walsender_is_told(postgres: &PostgresConfig, registry: &StatusRegistry) {
    let connection = Connection::connect(postgres).await.unwrap();
    let start = slot(registry).confirmed_lsn;
    let mut stream =
        connection.start_replication(&postgres.slot, &postgres.publication, start).await.unwrap();
    wait_until("it sends", async || {
        let now = slot(registry);
        now.active && now.active_pid.is_some() && now.sent_lsn > Some(now.confirmed_lsn)
    })
    .await;
    stream.send_status(start, start, false).await.unwrap();
    wait_until("its last status update is told", async || {
        let now = slot(registry);
        now.reply_age_seconds.is_some() && now.walsender_state.as_deref() == Some("streaming")
    })
    .await;
    stream.close(start).await.unwrap();
    wait_until("it is gone", async || {
        let now = slot(registry);
        !now.active && now.sent_lsn.is_none() && now.reply_age_seconds.is_none()
    })
    .await;
}

async fn spilling_is_told(postgres: &PostgresConfig, client: &Client, registry: &StatusRegistry) {
    assert_eq!(slot(registry).spill_bytes_total, 0);
    run(client, "SET logical_decoding_work_mem = '64kB'").await;
    let decode = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL,
                  'proto_version', '1', 'publication_names', $2)";
    client.query_one(decode, &[&postgres.slot, &postgres.publication]).await.unwrap();
    wait_until("what did not fit is told", async || {
        let now = slot(registry);
        now.spill_transactions_total >= 1 && now.spill_bytes_total > 1_000_000
    })
    .await;
    let exceeded = slot(registry).memory_exceeded_total;
    assert_eq!(exceeded.map(|times| times > 0), (server_version(client).await >= 19).then_some(true));
}

async fn server_version(client: &Client) -> i32 {
    let version = "SELECT current_setting('server_version_num')::int / 10000";
    client.query_one(version, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn the_slot_is_told_by_the_newest_postgres() {
    the_slot_is_told(support::postgres()).await;
}

#[tokio::test]
async fn the_slot_is_told_by_postgres_14() {
    the_slot_is_told(services::postgres("14", &[])).await;
}

#[tokio::test]
async fn the_slot_is_told_by_postgres_15() {
    the_slot_is_told(services::postgres("15", &[])).await;
}

#[tokio::test]
async fn the_slot_is_told_by_postgres_16() {
    the_slot_is_told(services::postgres("16", &[])).await;
}

#[tokio::test]
async fn the_slot_is_told_by_postgres_17() {
    the_slot_is_told(services::postgres("17", &[])).await;
}

#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn the_slot_is_told_by_postgres_19() {
    the_slot_is_told(services::postgres("19", &[])).await;
}

#[tokio::test]
async fn a_lost_session_is_opened_again() {
    with_watched_slot(support::postgres(), async |postgres, client, registry| {
        wait_until("the slot is seen", async || slot(registry).wal_status == "reserved").await;
        let others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                      WHERE datname = $1 AND pid <> pg_backend_pid()";
        let ended: i64 = client.query_one(others, &[&postgres.db]).await.unwrap().get(0);
        assert_eq!(ended, 1);
        run(client, "CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)").await;
        wait_until("it is asked again", async || slot(registry).confirmed_lag_bytes > 1_000_000).await;
        assert!(Duration::from_secs_f64(slot(registry).age_seconds) < DEADLINE);
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_is_not_there_is_told() {
    with_watched_slot(support::postgres(), async |postgres, client, registry| {
        wait_until("the slot is seen", async || slot(registry).wal_status == "reserved").await;
        client.query_one("SELECT pg_drop_replication_slot($1)::text", &[&postgres.slot]).await.unwrap();
        let missing = format!("the replication slot {} is missing", postgres.slot);
        wait_until("it is told", async || {
            registry.status().problem.is_some_and(|problem| problem.starts_with(&missing))
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_slot_is_told_to_run_out_of_wal_and_to_be_lost() {
    let settings = ["max_slot_wal_keep_size=16MB", "min_wal_size=32MB", "max_wal_size=32MB"];
    with_watched_slot(services::postgres("18:keep", &settings), async |postgres, client, registry| {
        wait_until("the slot is seen", async || slot(registry).wal_status == "reserved").await;
        assert!(slot(registry).safe_wal_bytes.is_some_and(|left| (1..=64 << 20).contains(&left)));
        let problem = registry.status().problem.unwrap();
        assert!(problem.contains("max_slot_wal_keep_size"), "{problem}");
        run(client, "CREATE TABLE t (v text)").await;
        let lost = format!("the replication slot {} is lost", postgres.slot);
        wait_until("it is lost", async || {
            run(client, "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 10000)").await;
            run(client, "SELECT pg_switch_wal(); CHECKPOINT").await;
            registry.status().problem.is_some_and(|problem| problem.starts_with(&lost))
        })
        .await;
        assert_eq!(slot(registry).safe_wal_bytes, Some(0));
    })
    .await;
}
