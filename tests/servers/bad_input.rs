//! What is wrong is refused: with the documented exit code, an error that says what to do, nothing lost, and
//! nothing made by accident.

use crate::support::services;
use crate::support::world::World;
use crate::support::{self, fresh_database, run, wait_until};
use walcast::source::connection::Connection;
use walcast::source::sql;

#[tokio::test]
async fn an_unknown_key_is_named_with_its_neighbour() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    let file = world.file("[kafka]\nbroker = \"127.0.0.1:1\"\n");
    let ended = world.walcast(["--config", &file, "config", "show"]).await;
    ended.expect(78, &["WC-102", "broker", "did you mean brokers in [kafka]?"]);
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once() {
    let world = World::initialised().await;
    let ended = world.with("POSTGRES_PASSWORD", "canary-of-a-secret").walcast(["run"]).await;
    ended.expect(2, &["password"]);
    assert!(!ended.output.contains("canary-of-a-secret"), "{}", ended.output);
}

#[tokio::test]
async fn wal_level_replica_is_refused_before_anything_is_made() {
    let server = services::postgres("18:replica", &["wal_level=replica"]);
    let world = World::new(fresh_database(server).await).await;
    world
        .walcast(["init"])
        .await
        .expect(2, &["wal_level: is replica", "ALTER SYSTEM SET wal_level = logical"]);
    let client = sql::connect(&world.postgres).await.unwrap();
    let made = "SELECT count(*) FROM pg_namespace WHERE nspname = 'walcast'";
    assert_eq!(client.query_one(made, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn without_its_publication_nothing_starts() {
    for version in ["15", "18"] {
        let world = World::new(fresh_database(services::postgres(version, &[])).await).await;
        world.walcast(["init"]).await.expect(0, &[]);
        let client = sql::connect(&world.postgres).await.unwrap();
        run(&client, &format!("DROP PUBLICATION {}", world.postgres.publication)).await;
        world.insert_events(1).await;
        let before = world.confirmed_lsn().await;
        world.walcast(["run"]).await.expect(4, &["publication", "dropped"]);
        assert_eq!(world.confirmed_lsn().await, before, "nothing was skipped on {version}");

        run(
            &client,
            &format!(
                "CREATE PUBLICATION {} FOR TABLE content, engagement_events",
                world.postgres.publication
            ),
        )
        .await;
        world.walcast(["run"]).await.expect(4, &["WC-413", "put back", "walcast resync"]);
        assert_eq!(world.confirmed_lsn().await, before, "nothing was skipped on {version}");
    }
}

#[tokio::test]
async fn a_state_schema_of_a_newer_walcast_is_refused() {
    let world = World::new(fresh_database(support::postgres()).await).await.with("PIPELINE_SINKS", "redis");
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "INSERT INTO walcast.migration (number, name) VALUES (9999, 'to_come')").await;
    world.walcast(["run"]).await.expect(2, &["WC-214", "newer walcast"]);
}

/// On a server of its own: no slot at all can be made there meanwhile.
#[tokio::test]
async fn a_slot_that_waits_for_a_transaction_says_for_which() {
    let server = services::postgres("18:writing", &[]);
    let world = World::new(fresh_database(server).await).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "BEGIN; CREATE TABLE written (i INT)").await;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let mut init = world.spawn_command("init");
    let said = format!("pid {pid} for ");
    wait_until("it says for which", async || init.log.lock().await.contains(&said)).await;
    run(&client, "COMMIT").await;
    assert_eq!(init.ended().await, Some(0));
    services::command(&["postgres", "18:writing", "wipe"]);
}

#[tokio::test]
async fn a_server_without_a_slot_or_a_connection_to_spare_is_told() {
    let server = services::postgres("18:full", &["max_replication_slots=1", "max_wal_senders=1"]);
    let world = World::new(fresh_database(server).await).await.with("PIPELINE_SINKS", "redis");
    let client = sql::connect(&world.postgres).await.unwrap();
    let taken = Connection::connect(&world.postgres).await.unwrap();
    world.walcast(["init"]).await.expect(1, &["WC-305", "raise max_wal_senders"]);
    world.walcast(["check"]).await.expect(2, &["WC-305", "ALTER SYSTEM SET max_wal_senders = 6;"]);
    taken.close().await.unwrap();
    run(&client, "SELECT pg_create_physical_replication_slot('theirs')").await;
    world.walcast(["init"]).await.expect(2, &["WC-209", "max_replication_slots"]);
    assert!(!world.has_slot().await);
    run(&client, "SELECT pg_drop_replication_slot('theirs')").await;
    world.walcast(["init"]).await.expect(0, &[]);
    drop(world);
    services::command(&["postgres", "18:full", "wipe"]);
}

#[tokio::test]
async fn a_bigquery_that_cannot_be_reached_or_believes_nothing_is_told() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    let world = world.with("PIPELINE_SINKS", "bigquery");
    let away = world.with("BIGQUERY_REST_URL", "http://127.0.0.1:1");
    away.walcast(["init"]).await.expect(1, &["WC-330"]);
    let key = world.file("{\"type\": \"no kind of key\"}");
    let google = world.with_all(
        [("BIGQUERY_REST_URL", ""), ("BIGQUERY_GRPC_URL", ""), ("BIGQUERY_CREDENTIALS_FILE", &key)]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    google.walcast(["init"]).await.expect(2, &["WC-240", "bigquery.credentials_file"]);
    assert!(!world.has_slot().await, "a slot would keep WAL for nobody");
}

/// What else may listen there.
#[tokio::test]
async fn what_answers_in_place_of_walcast_is_told() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let site = axum::Router::new().fallback(async || "another program");
        axum::serve(listener, site).await.unwrap();
    });
    let world = World::new(fresh_database(support::postgres()).await).await.with("WEB_LISTEN", &address);
    world.walcast(["status"]).await.expect(1, &["WC-900", "is not this walcast"]);
}

/// As a defect of ours would: nothing is lost, and the next start goes on.
#[tokio::test]
async fn a_sink_that_breaks_down_ends_walcast_and_loses_nothing() {
    let world = World::new(fresh_database(support::postgres()).await).await.with("PIPELINE_SINKS", "redis");
    world.walcast(["init"]).await.expect(0, &[]);
    let mut running = world.with("FAILPOINTS", "redis_before_flush=panic").spawn();
    world.insert_events(10).await;
    let code = running.ended().await;
    let log = running.log.lock().await.clone();
    assert!(code == Some(1) && log.contains("WC-901"), "{code:?} {log}");
    let running = world.start().await;
    wait_until("Redis has all", async || world.redis_plays().await == 10).await;
    running.stop().await;
}

#[tokio::test]
async fn a_slot_older_than_its_publication_is_refused() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(
        &client,
        &format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", world.postgres.slot),
    )
    .await;
    world
        .walcast(["init"])
        .await
        .expect(4, &["WC-412", "walcast did not make it", "pg_drop_replication_slot"]);
}

/// What stands in a migration's way is told, and mended when it is gone.
#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_half_made() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "CREATE SCHEMA walcast; CREATE TABLE walcast.sink (theirs int)").await;
    world.walcast(["init"]).await.expect(2, &["WC-212", "migration", "already exists", "nothing"]);
    run(&client, "DROP TABLE walcast.sink").await;
    world.walcast(["init"]).await.expect(0, &[]);
}

#[tokio::test]
async fn what_needs_a_slot_is_refused_before_it_is_made() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    let slot = &world.postgres.slot;
    run(&client, &format!("SELECT pg_drop_replication_slot('{slot}'); DELETE FROM walcast.slot")).await;
    world.walcast(["rebuild", "redis"]).await.expect(2, &["WC-213", "has not been made yet", "walcast init"]);
}

#[tokio::test]
async fn a_slot_of_another_database_is_refused() {
    let other = World::initialised().await;
    let mut postgres = fresh_database(support::postgres()).await;
    postgres.slot = other.postgres.slot.clone();
    let world = World::new(postgres).await;
    world.walcast(["init"]).await.expect(2, &["belongs to the database", &other.postgres.db]);
}

#[tokio::test]
async fn a_table_without_a_column_that_we_need_is_refused() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "ALTER TABLE engagement_events DROP COLUMN duration_ms").await;
    world.walcast(["run"]).await.expect(2, &["engagement_events", "duration_ms"]);
    world.walcast(["check"]).await.expect(2, &["FAIL", "duration_ms"]);
}

#[tokio::test]
async fn a_topic_with_eight_partitions_is_refused_and_no_slot_is_made() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    world.create_topic("events", 8).await;
    world.walcast(["init"]).await.expect(2, &["8 partitions", "16"]);
    assert!(!world.has_slot().await, "a slot would keep WAL for nobody");
}

#[tokio::test]
async fn redis_with_a_wrong_password_is_refused() {
    let world = World::initialised().await;
    world.with("REDIS_PASSWORD", "wrong").walcast(["run"]).await.expect(2, &["redis", "password"]);
    world.with("REDIS_PASSWORD", "").walcast(["run"]).await.expect(2, &["redis", "password"]);
}

#[tokio::test]
async fn a_bigquery_table_of_another_schema_is_refused_and_left_alone() {
    let world = World::new(fresh_database(support::postgres()).await).await;
    world.bigquery(&format!("CREATE SCHEMA {}", world.dataset)).await;
    world.bigquery(&format!("CREATE TABLE {}.engagement_events (event_id STRING)", world.dataset)).await;
    world.walcast(["init"]).await.expect(2, &["engagement_events", "event_id"]);
    assert!(!world.has_slot().await, "a slot would keep WAL for nobody");
}

#[tokio::test]
async fn a_slot_moved_by_hand_is_a_gap_and_said_so() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    running.stop().await;
    world.insert_events(1).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let moved =
        format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", world.postgres.slot);
    run(&client, &moved).await;
    world.walcast(["run"]).await.expect(4, &["WC-401", "holds everything up to", "the slot begins at"]);
}

/// As they are where the table had no NOT NULL, and a length in another unit.
#[tokio::test(flavor = "multi_thread")]
async fn content_rows_that_cannot_be_read_stop_nothing() {
    let world = World::new(fresh_database(support::postgres()).await).await.with("PIPELINE_SINKS", "redis");
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, include_str!("../../migrations/0001_source.sql")).await;
    run(
        &client,
        "ALTER TABLE content ALTER title DROP NOT NULL, ALTER length_seconds TYPE bigint;
         INSERT INTO content (id, slug, title, length_seconds, publish_ts)
         SELECT gen_random_uuid(), 'slug of ' || title, nullif(title, 'untitled'), length, now()
         FROM (VALUES ('untitled', 60), ('long', 3000000000), ('good', 60), ('no length', NULL)) AS row (title, length)",
    )
    .await;
    world.walcast(["init"]).await.expect(0, &[]);
    world.walcast(["check"]).await.expect(0, &["has 2 that walcast leaves out"]);
    let running = world.start().await;
    run(
        &client,
        "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
         SELECT id, 'play', now(), 1000 FROM content",
    )
    .await;
    world.verify().await;
    running.stop().await;
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 4 events"]);
    assert_eq!(world.content_versions().await, 2);
}
