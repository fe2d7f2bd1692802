//! What a server and a role lack.

use tokio_postgres::Client;
use walcast::finding::Verdict;
use walcast::ops::init;
use walcast::source::{PostgresConfig, check as source_check, sql};

use super::operator::{Line, check, failed, found, mends, paste, survey};
use crate::support::services;
use crate::support::world::World;
use crate::support::{fresh_name, in_fresh_database, run, wait_until};

#[tokio::test]
async fn settings_are_told_and_mended() {
    let server = services::postgres("18:check", &["max_prepared_transactions=5"]);
    in_fresh_database(server, async |config| {
        let client = sql::connect(config).await.unwrap();
        let set = async |setting: &str| {
            paste(&client, &format!("ALTER SYSTEM SET {setting}; SELECT pg_reload_conf()")).await
        };
        let shows = async |name: &str, value: &str| {
            let show = format!("SHOW {name}");
            wait_until("it is set", async || {
                client.query_one(&show, &[]).await.unwrap().get::<_, String>(0) == value
            })
            .await;
        };
        for (name, setting, shown, verdict, words) in [
            ("max_slot_wal_keep_size", "-1", "-1", Verdict::Warn, "is unset"),
            ("max_slot_wal_keep_size", "0", "0", Verdict::Fail, "is 0"),
            ("max_slot_wal_keep_size", "'64MB'", "64MB", Verdict::Warn, "is 64.0 MiB"),
            ("idle_replication_slot_timeout", "'10min'", "10min", Verdict::Warn, "600 s"),
            ("wal_sender_timeout", "'2s'", "2s", Verdict::Warn, "2 s"),
            ("logical_decoding_work_mem", "'64kB'", "64kB", Verdict::Warn, "64.0 KiB"),
        ] {
            set(&format!("{name} = {setting}")).await;
            shows(name, shown).await;
            mends(&client, config, &format!("postgres.{name}"), verdict, words).await;
        }
        prepared_and_open_transactions(config, &client).await;
    })
    .await;
}

async fn prepared_and_open_transactions(config: &PostgresConfig, client: &Client) {
    run(client, "CREATE TABLE t (i int)").await;
    assert_eq!(found(config, "postgres.transactions").await.verdict, Verdict::Ok);
    let writer = sql::connect(config).await.unwrap();
    run(&writer, "BEGIN; INSERT INTO t VALUES (1)").await;
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let line = found(config, "postgres.transactions").await;
    assert_eq!(line.subject, format!("transaction of pid {pid}"));
    mends(client, config, "postgres.transactions", Verdict::Warn, "walcast, idle in transaction").await;
    assert!(writer.simple_query("SELECT 1").await.is_err(), "it was ended");

    let gid = fresh_name("it's");
    run(
        client,
        &format!("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION '{}'", gid.replace('\'', "''")),
    )
    .await;
    let line = found(config, "postgres.prepared_transactions").await;
    assert!(line.message.contains("COMMIT PREPARED"), "{line:?}");
    paste(client, &line.fix.unwrap()).await;
    assert_eq!(found(config, "postgres.transactions").await.verdict, Verdict::Ok);
}

#[tokio::test]
async fn a_server_without_a_free_slot_or_sender_says_so() {
    let server = services::postgres("18:full", &["max_replication_slots=1", "max_wal_senders=1"]);
    in_fresh_database(server, async |config| {
        let client = sql::connect(config).await.unwrap();
        let other = fresh_name("other");
        run(&client, &format!("SELECT pg_create_logical_replication_slot('{other}', 'pgoutput')")).await;
        let line = found(config, "postgres.replication_slots").await;
        assert_eq!(line.verdict, Verdict::Fail);
        assert!(line.message.contains(&other), "{line:?}");
        assert_eq!(line.fix.as_deref(), Some("ALTER SYSTEM SET max_replication_slots = 6;"));
        run(&client, &format!("SELECT pg_drop_replication_slot('{other}')")).await;
        run(&client, &format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", config.slot))
            .await;
        let line = found(config, "postgres.replication_slots").await;
        assert_eq!(line.verdict, Verdict::Warn, "ours is there: {line:?}");
    })
    .await;
}

async fn answers_all_of_it(version: &str) {
    in_fresh_database(services::postgres(version, &[]), async |config| {
        let mut client = sql::connect(config).await.unwrap();
        init::migrate(&mut client, config).await.unwrap();
        run(&client, &format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", config.slot))
            .await;
        for finding in survey(config).await {
            assert_ne!(finding.verdict, Verdict::Fail, "{version}: {finding:?}");
        }
        let server = source_check::check_server(&client, config).await.unwrap();
        let told = server.iter().find(|finding| finding.id == "postgres.version").unwrap();
        // that one has ended
        let verdict = if version == "14" { Verdict::Warn } else { Verdict::Ok };
        assert!(told.verdict == verdict && told.message.starts_with(version), "{told:?}");
    })
    .await;
}

#[tokio::test]
async fn every_version_answers_all_of_it() {
    for version in ["14", "15", "16", "17"] {
        answers_all_of_it(version).await;
    }
}

#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn every_version_answers_all_of_it_19() {
    answers_all_of_it("19").await;
}

// --- standbys

#[tokio::test]
async fn a_role_is_told_what_it_lacks_and_gets_it() {
    let world = World::initialised().await;
    let owner = sql::connect(&world.postgres).await.unwrap();
    let role = fresh_name("role");
    run(&owner, &format!("CREATE ROLE {role} LOGIN PASSWORD 'x'")).await;
    let emit = "pg_logical_emit_message(boolean, text, text, boolean)";
    run(&owner, &format!("REVOKE EXECUTE ON FUNCTION {emit} FROM PUBLIC")).await;
    let as_role = world.with("POSTGRES_USER", &role).with("POSTGRES_PASSWORD", "x");
    let mut told = Vec::new();
    for _ in 0..8 {
        let (_, lines) = check(&as_role).await;
        let wrong = |line: &&Line| {
            line.verdict != "ok"
                && [
                    "postgres.role",
                    "postgres.rights",
                    "postgres.statistics",
                    "postgres.state",
                    "postgres.heartbeat",
                ]
                .contains(&line.id.as_str())
        };
        let Some(line) = lines.iter().find(wrong) else { break };
        told.push(line.id.clone());
        paste(&owner, line.fix.as_ref().unwrap()).await;
    }
    assert_eq!(
        told,
        [
            "postgres.role",
            "postgres.state",
            "postgres.heartbeat",
            "postgres.statistics",
            "postgres.rights",
            "postgres.rights"
        ]
    );
    let (code, lines) = check(&as_role).await;
    assert_eq!((code, failed(&lines)), (Some(0), vec![]), "{lines:#?}");
    run(&owner, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// `check` only warns of it, so `run` goes on too; and has them as soon as it may.
#[tokio::test]
async fn a_role_that_may_not_write_heartbeats_gets_the_events_all_the_same() {
    let world = World::initialised().await.with("PIPELINE_SINKS", "redis");
    let owner = sql::connect(&world.postgres).await.unwrap();
    let role = fresh_name("role");
    let emit = "pg_logical_emit_message(boolean, text, text, boolean)";
    let make = format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x';
         GRANT ALL ON SCHEMA walcast TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA walcast TO {role};
         GRANT ALL ON ALL SEQUENCES IN SCHEMA walcast TO {role};
         GRANT SELECT ON content, engagement_events TO {role};
         REVOKE EXECUTE ON FUNCTION {emit} FROM PUBLIC"
    );
    run(&owner, &make).await;
    let running = world.with("POSTGRES_USER", &role).with("POSTGRES_PASSWORD", "x").start().await;
    let words = "may not write heartbeats";
    wait_until("it says so", async || running.log.lock().await.contains(words)).await;
    world.insert_events(10).await;
    wait_until("Redis has all", async || world.redis_plays().await == 10).await;
    assert!(!running.metrics().await.contains("walcast_heartbeat_age_seconds "));
    run(&owner, &format!("GRANT EXECUTE ON FUNCTION {emit} TO {role}")).await;
    wait_until("a heartbeat comes", async || {
        running.metrics().await.contains("walcast_heartbeat_age_seconds ")
    })
    .await;
    assert_eq!(running.log.lock().await.matches(words).count(), 1, "it is said once");
    running.stop().await;
    run(&owner, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}
