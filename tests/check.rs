//! `walcast check` on real servers: each fault is planted, found, and mended by pasting what the line says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/pair.rs"]
mod pair;
#[path = "support/services.rs"]
mod services;
mod support;
#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use pair::Pair;
use serde::Deserialize;
use support::{fresh_database, fresh_name, in_fresh_database, postgres, run, wait_until};
use tokio_postgres::Client;
use walcast::finding::{Finding, Verdict};
use walcast::ops::init;
use walcast::source::{PostgresConfig, check as source_check, sql};
use world::World;

/// One line of `walcast check --json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Line {
    id: String,
    subject: String,
    verdict: String,
    message: String,
    fix: Option<String>,
}

/// Exit code and lines.
async fn check(world: &World) -> (Option<i32>, Vec<Line>) {
    let ended = world.walcast(["check", "--json"]).await;
    let lines = serde_json::Deserializer::from_str(&ended.output).into_iter().next();
    (ended.code, lines.unwrap_or_else(|| panic!("no JSON: {}", ended.output)).unwrap())
}

fn of<'a>(lines: &'a [Line], id: &str, subject: &str) -> &'a Line {
    let mut found = lines.iter().filter(|line| line.id == id && line.subject.contains(subject));
    found.next().unwrap_or_else(|| panic!("no {id} of {subject} in {lines:#?}"))
}

fn failed(lines: &[Line]) -> Vec<&str> {
    lines.iter().filter(|line| line.verdict == "fail").map(|line| line.id.as_str()).collect()
}

/// What an operator does with a fix that is SQL.
async fn paste(client: &Client, fix: &str) {
    for statement in fix.trim_end_matches(';').split("; ") {
        run(client, statement).await;
    }
}

/// What an operator does with a fix for the environment.
fn exported(world: &World, fix: &str) -> World {
    let pairs = fix.strip_prefix("export ").unwrap_or_else(|| panic!("{fix}")).split(' ');
    world.with_all(pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    }))
}

/// What the source check alone finds, in this process.
async fn survey(config: &PostgresConfig) -> Vec<Finding> {
    let client = sql::connect(config).await.unwrap();
    source_check::survey(&client, config, Duration::ZERO).await
}

async fn found(config: &PostgresConfig, id: &str) -> Finding {
    let findings = survey(config).await;
    findings
        .iter()
        .find(|finding| finding.id == id)
        .unwrap_or_else(|| panic!("no {id} in {findings:#?}"))
        .clone()
}

/// Sees the fault, pastes the fix, sees that it is mended.
async fn mends(client: &Client, config: &PostgresConfig, id: &str, verdict: Verdict, words: &str) {
    let line = found(config, id).await;
    assert_eq!(line.verdict, verdict, "{line:?}");
    assert!(line.message.contains(words), "{words}: {line:?}");
    paste(client, &line.fix.unwrap()).await;
    support::wait_until("it is mended", async || found(config, id).await.verdict == Verdict::Ok).await;
}

// --- before anything exists

#[tokio::test]
async fn before_anything_exists_each_line_says_what_makes_it() {
    let world = World::new(fresh_database(postgres()).await).await;
    let (code, lines) = check(&world).await;
    assert_eq!(code, Some(2));
    for (id, subject) in [
        ("postgres.table", "content"),
        ("postgres.table", "engagement_events"),
        ("postgres.state", "walcast"),
        ("kafka.topic", "events"),
        ("kafka.topic", "progress"),
    ] {
        assert_eq!(of(&lines, id, subject).verdict, "fail");
        assert_eq!(of(&lines, id, subject).fix.as_deref(), Some("walcast init"));
    }
    for id in ["bigquery.dataset", "bigquery.table"] {
        assert_eq!(of(&lines, id, "bigquery").fix.as_deref(), Some("walcast init"));
    }
    for line in &lines {
        assert_eq!(line.fix.is_none(), line.verdict == "ok", "{line:?}");
    }
    world.walcast(["init"]).await.expect(0, &[]);
    let (code, lines) = check(&world).await;
    assert_eq!((code, failed(&lines)), (Some(0), vec![]), "{lines:#?}");
    assert_eq!(of(&lines, "postgres.slot", "slot").verdict, "ok");
    assert!(of(&lines, "sink.position", "kafka").message.starts_with("nothing yet"));
}

#[tokio::test]
async fn servers_that_do_not_answer_are_a_line_each_and_hinder_no_other() {
    let world = World::new(fresh_database(postgres()).await).await;
    let down = [
        ("POSTGRES_PORT", "1", "postgres.server"),
        ("KAFKA_BROKERS", "127.0.0.1:1", "kafka.brokers"),
        ("REDIS_PORT", "1", "redis.server"),
        ("BIGQUERY_REST_URL", "http://127.0.0.1:1", "bigquery.service"),
    ];
    let all = world.with_all(down.map(|(name, value, _)| (name.to_owned(), value.to_owned())));
    let (code, lines) = check(&all.with("KAFKA_TIMEOUT_MS", "1000")).await;
    let ids: Vec<&str> = lines.iter().map(|line| line.id.as_str()).collect();
    let down_and_web: Vec<&str> = down.iter().map(|(.., id)| *id).chain(["web.access"]).collect();
    assert_eq!((code, ids), (Some(2), down_and_web));
    for (name, value, id) in &down[2..3] {
        let (_, lines) = check(&world.with(name, value)).await;
        assert_eq!(of(&lines, id, "").verdict, "fail");
        assert_eq!(of(&lines, "postgres.version", "").verdict, "ok");
        assert_eq!(of(&lines, "bigquery.dataset", "").verdict, "warn");
    }
    let secrets = ["POSTGRES_PASSWORD", "REDIS_PASSWORD", "WEB_TOKEN"]
        .map(|name| (name.to_owned(), "canary-7f".to_owned()));
    let refused = world.with_all(secrets).walcast(["check"]).await;
    refused.expect(2, &["password", "asks for a token"]);
    assert!(!refused.output.contains("canary"), "{}", refused.output);
    let (code, lines) = check(&world.with("POSTGRES_DB", "nowhere")).await;
    assert_eq!((code, of(&lines, "postgres.server", "").verdict.as_str()), (Some(2), "fail"));
    assert!(of(&lines, "postgres.server", "").fix.as_ref().unwrap().contains("CREATE DATABASE"));
}

// --- nothing is changed

/// Everything of the servers that a check could have changed.
async fn state(world: &World) -> Vec<String> {
    let client = sql::connect(&world.postgres).await.unwrap();
    let mut state = Vec::new();
    for query in [
        "SELECT format('%s %s', oid, relname) FROM pg_class WHERE relnamespace NOT IN
           ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) AND relname NOT LIKE 'pg_t%'",
        "SELECT format('%s %s %s', slot_name, confirmed_flush_lsn, active_pid) FROM pg_replication_slots
           WHERE database = current_database()",
        "SELECT format('%s', p) FROM pg_publication AS p",
        "SELECT format('%s', r) FROM pg_publication_rel AS r",
        "SELECT format('%s %s', rolname, rolreplication) FROM pg_roles WHERE rolname = 'walcast'",
        "SELECT format('%s=%s', name, setting) FROM pg_settings WHERE source = 'configuration file'",
        "SELECT query_to_xml('SELECT * FROM ' || oid::regclass, true, true, '')::text FROM pg_class
           WHERE relnamespace::regnamespace::text = 'walcast' AND relkind = 'r'",
    ] {
        let rows = client.query(query, &[]).await.unwrap();
        let mut told: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        told.sort();
        state.extend(told);
    }
    let mut redis = world.redis().await;
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    keys.sort();
    for key in keys {
        let value: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.unwrap();
        state.push(format!("{key} {value:?}"));
    }
    state.extend(world.kafka_topics().await);
    let tables = format!("SELECT table_name FROM `{}`.INFORMATION_SCHEMA.TABLES", world.dataset);
    let answer = world.try_bigquery(&tables).await;
    state.push(format!("{} {}", answer["rows"], answer["error"]["message"]));
    state
}

#[tokio::test]
async fn nothing_is_changed_before_walcast_is_there_and_after() {
    let world = World::new(fresh_database(postgres()).await).await;
    let before = state(&world).await;
    check(&world).await;
    assert_eq!(state(&world).await, before);

    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    world.insert_events(100).await;
    world.wait_until_all_hold(100).await;
    running.stop().await;
    let before = state(&world).await;
    let (code, lines) = check(&world).await;
    assert_eq!((code, failed(&lines)), (Some(0), vec![]));
    assert_eq!(state(&world).await, before);
}

#[tokio::test]
async fn a_running_walcast_does_not_notice() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(50).await;
    world.wait_until_all_hold(50).await;
    for _ in 0..2 {
        let (code, lines) = check(&world).await;
        assert_eq!((code, failed(&lines)), (Some(0), vec![]), "{lines:#?}");
        assert!(of(&lines, "postgres.slot_reader", "").message.starts_with("walcast from 127.0.0.1, pid "));
        for sink in ["content", "kafka", "redis", "bigquery"] {
            assert!(of(&lines, "sink.position", sink).message.starts_with("holds all up to "));
        }
    }
    world.insert_events(50).await;
    world.wait_until_all_hold(100).await;
    let log = running.log.lock().await.clone();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    running.stop().await;
}

// --- where the sinks stand

#[tokio::test]
async fn a_sink_that_the_slot_can_no_longer_serve_is_told_with_both_positions() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    running.stop().await;
    world.insert_events(10).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let advance = "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())::text";
    client.query_one(advance, &[&world.postgres.slot]).await.unwrap();
    let (code, lines) = check(&world).await;
    assert_eq!(code, Some(2));
    let slot = world.confirmed_lsn().await.to_string();
    for sink in ["content", "kafka", "redis", "bigquery"] {
        let line = of(&lines, "sink.position", sink);
        assert_eq!(line.verdict, "fail", "{line:?}");
        assert!(line.message.contains(&slot), "{line:?}");
    }
}

#[tokio::test]
async fn a_redis_that_lost_its_data_is_told_and_rebuilt() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    running.stop().await;
    let _: () = redis::cmd("FLUSHDB").query_async(&mut world.redis().await).await.unwrap();
    let (code, lines) = check(&world).await;
    let line = of(&lines, "sink.position", "redis");
    assert_eq!((code, failed(&lines)), (Some(2), vec!["sink.position"]));
    assert!(line.message.contains("lost its data"), "{line:?}");
    assert_eq!(line.fix.as_deref(), Some("walcast rebuild redis"));
    let remains = redis::cmd("HSET").arg("walcast:all").arg("a").arg(1).to_owned();
    let _: i64 = remains.query_async(&mut world.redis().await).await.unwrap();
    let (_, lines) = check(&world).await;
    let line = of(&lines, "sink.position", "redis");
    assert!(line.message.contains("holds counters of walcast"), "{line:?}");
    assert!(line.fix.as_ref().unwrap().contains("database of its own"), "{line:?}");
    world.walcast(["rebuild", "redis"]).await.expect(0, &[]);
    assert_eq!(check(&world).await.0, Some(0));
}

// --- the server's settings, on a server of its own

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
            support::wait_until("it is set", async || {
                client.query_one(&show, &[]).await.unwrap().get::<_, String>(0) == value
            })
            .await;
        };
        for (name, setting, shown, verdict, words) in [
            ("max_slot_wal_keep_size", "-1", "-1", Verdict::Warn, "is unset"),
            ("max_slot_wal_keep_size", "0", "0", Verdict::Fail, "is 0"),
            ("max_slot_wal_keep_size", "'64MB'", "64MB", Verdict::Warn, "is 64 MB"),
            ("idle_replication_slot_timeout", "'10min'", "10min", Verdict::Warn, "600 s"),
            ("wal_sender_timeout", "'2s'", "2s", Verdict::Warn, "2 s"),
            ("logical_decoding_work_mem", "'64kB'", "64kB", Verdict::Warn, "64 kB"),
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

#[tokio::test]
async fn every_version_answers_all_of_it() {
    for version in ["14", "15", "16", "17"] {
        in_fresh_database(services::postgres(version, &[]), async |config| {
            let mut client = sql::connect(config).await.unwrap();
            init::migrate(&mut client, config).await.unwrap();
            run(
                &client,
                &format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", config.slot),
            )
            .await;
            for finding in survey(config).await {
                assert_ne!(finding.verdict, Verdict::Fail, "{version}: {finding:?}");
            }
        })
        .await;
    }
}

// --- standbys

#[tokio::test]
async fn a_failover_that_would_lose_something_is_told_and_mended() {
    let pair = Pair::new("check").await;
    let world = World::new(fresh_database(pair.primary.clone()).await).await.with("PIPELINE_SINKS", "null");
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    support::wait_until("the standby follows", async || {
        let row = client.query_one("SELECT count(*) FROM pg_stat_replication", &[]).await;
        row.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    mends(
        &client,
        &world.postgres,
        "postgres.failover",
        Verdict::Warn,
        "synchronized_standby_slots is empty",
    )
    .await;

    let line = found(&world.postgres, "postgres.failover").await;
    assert_eq!(line.verdict, Verdict::Ok, "{line:?}");
    let shell = |command: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", command]).env("PGPASSWORD", world.postgres.password.expose());
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    };
    let fix = |line: &Finding| line.fix.clone().unwrap();
    // the opposite of the fix, made of one that says it
    let place = format!(
        "host={} port={} dbname={} user={} replication=database",
        world.postgres.host, world.postgres.port, world.postgres.db, world.postgres.user
    );
    shell(&format!(
        r#"psql '{place}' -c 'ALTER_REPLICATION_SLOT "{}" (FAILOVER false)'"#,
        world.postgres.slot
    ));
    let line = found(&world.postgres, "postgres.failover").await;
    assert_eq!(line.verdict, Verdict::Warn);
    assert!(line.message.contains("a failover loses it"), "{line:?}");
    shell(&fix(&line));
    assert_eq!(found(&world.postgres, "postgres.failover").await.verdict, Verdict::Ok);

    let standby = pair.after(&world);
    let line = found(&standby.postgres, "postgres.recovery").await;
    assert_eq!(line.verdict, Verdict::Fail);
    let (code, lines) = check(&exported(&standby, &fix(&line))).await;
    assert_eq!((code, of(&lines, "postgres.recovery", "").verdict.as_str()), (Some(0), "ok"), "{lines:#?}");
    let (code, lines) = check(&standby).await;
    assert_eq!((code, failed(&lines)), (Some(2), vec!["postgres.recovery"]), "{lines:#?}");
    drop((client, standby, world));
    pair.wipe();
}

// --- tables, rights, publication

#[tokio::test]
async fn tables_that_cannot_be_followed_are_told_and_mended() {
    in_fresh_database(postgres(), async |config| {
        let mut client = sql::connect(config).await.unwrap();
        init::migrate(&mut client, config).await.unwrap();
        for (fault, id, words) in [
            ("ALTER TABLE content REPLICA IDENTITY NOTHING", "postgres.replica_identity", "is nothing"),
            (
                "ALTER TABLE engagement_events DROP CONSTRAINT engagement_events_content_id_fkey;
                 ALTER TABLE content DROP CONSTRAINT content_pkey",
                "postgres.replica_identity",
                "is nothing",
            ),
            (
                "CREATE UNIQUE INDEX by_slug ON content (slug); ALTER TABLE content REPLICA IDENTITY USING INDEX by_slug",
                "postgres.replica_identity",
                "is slug without id",
            ),
        ] {
            run(&client, fault).await;
            mends(&client, config, id, Verdict::Fail, words).await;
        }
        columns_are_mended(&client, config).await;
        run(
            &client,
            "ALTER TABLE content DROP COLUMN length_seconds;
             ALTER TABLE content ADD COLUMN length_seconds integer GENERATED ALWAYS AS (7) STORED",
        )
        .await;
        let line = found(config, "postgres.generated_columns").await;
        assert_eq!((line.verdict, line.subject.as_str()), (Verdict::Fail, "column content.length_seconds"));
        paste(&client, &line.fix.unwrap()).await;
        assert!(survey(config).await.iter().all(|finding| finding.id != "postgres.generated_columns"));
    })
    .await;
}

async fn columns_are_mended(client: &Client, config: &PostgresConfig) {
    let of_content = async || {
        let findings = source_check::check(client, config).await.unwrap();
        findings.into_iter().find(|finding| finding.subject == "table public.content").unwrap()
    };
    run(client, "CREATE DOMAIN key AS uuid; CREATE DOMAIN content_key AS key; ALTER TABLE content ALTER id TYPE content_key").await;
    assert_eq!(of_content().await.verdict, Verdict::Ok, "a domain is what it is made of");
    for (fault, words) in [
        (
            "ALTER TABLE content DROP COLUMN slug, DROP COLUMN title",
            "lacks the column slug (text); lacks the column title",
        ),
        ("ALTER TABLE content ALTER publish_ts TYPE timestamp", "publish_ts"),
    ] {
        run(client, fault).await;
        let line = of_content().await;
        assert!(line.verdict == Verdict::Fail && line.message.contains(words), "{line:?}");
        paste(client, &line.fix.unwrap()).await;
        assert_eq!(of_content().await.verdict, Verdict::Ok);
    }
}

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
        ["postgres.role", "postgres.state", "postgres.heartbeat", "postgres.statistics", "postgres.rights"]
    );
    let (code, lines) = check(&as_role).await;
    assert_eq!((code, failed(&lines)), (Some(0), vec![]), "{lines:#?}");
    run(&owner, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_publication_that_leaves_something_out_is_told_and_mended() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let name = &world.postgres.publication;
    for (fault, words) in [
        (format!("ALTER PUBLICATION {name} SET (publish = 'insert')"), "operations"),
        (
            format!("ALTER PUBLICATION {name} SET TABLE content, engagement_events WHERE (id > 7)"),
            "some rows",
        ),
        (
            format!("ALTER PUBLICATION {name} SET TABLE content (id, slug), engagement_events"),
            "the column title",
        ),
        (format!("ALTER PUBLICATION {name} DROP TABLE content"), "does not have the table"),
    ] {
        run(&client, &fault).await;
        let (code, lines) = check(&world).await;
        let line = of(&lines, "postgres.publication", "");
        assert_eq!((code, line.verdict.as_str()), (Some(2), "fail"));
        assert!(line.message.contains(words), "{line:?}");
        paste(&client, line.fix.as_ref().unwrap()).await;
        let (_, lines) = check(&world).await;
        assert_eq!(of(&lines, "postgres.publication", "").verdict, "ok", "{lines:#?}");
    }
}

#[tokio::test]
async fn tables_that_are_published_besides_are_told_and_taken_out() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let name = &world.postgres.publication;
    run(&client, &format!("CREATE TABLE other (i int); ALTER PUBLICATION {name} ADD TABLE other")).await;
    let (code, lines) = check(&world).await;
    let line = of(&lines, "postgres.publication_tables", "");
    assert_eq!((code, line.verdict.as_str()), (Some(0), "warn"));
    assert!(line.message.contains("public.other"), "{line:?}");
    paste(&client, line.fix.as_ref().unwrap()).await;
    let (code, lines) = check(&world).await;
    assert_eq!((code, failed(&lines)), (Some(0), vec![]), "the slot still reads the same: {lines:#?}");
    assert!(lines.iter().all(|line| line.id != "postgres.publication_tables"), "{lines:#?}");

    in_fresh_database(postgres(), async |config| {
        let mut client = sql::connect(config).await.unwrap();
        init::migrate(&mut client, config).await.unwrap();
        run(&client, &format!("CREATE PUBLICATION {} FOR ALL TABLES", config.publication)).await;
        let line = found(config, "postgres.publication_tables").await;
        assert!(line.message.contains("postgres.publication"), "{line:?}");
        paste(&client, &line.fix.unwrap()).await;
        let alone = PostgresConfig { publication: "walcast_alone".into(), ..config.clone() };
        assert!(survey(&alone).await.iter().all(|finding| finding.id != "postgres.publication_tables"));
    })
    .await;
}

// --- Kafka

#[tokio::test]
async fn more_replicas_than_brokers_are_told_and_mended() {
    let world = World::new(fresh_database(postgres()).await).await;
    let wanting = world.with("KAFKA_REPLICATION_FACTOR", "3").with("KAFKA_MIN_INSYNC_REPLICAS", "2");
    let (_, lines) = check(&wanting).await;
    let line = of(&lines, "kafka.brokers", "");
    assert_eq!(line.verdict, "fail");
    let (_, lines) = check(&exported(&wanting, line.fix.as_ref().unwrap())).await;
    assert_eq!(of(&lines, "kafka.brokers", "").verdict, "warn", "one disk is one disk");
    assert_eq!(of(&lines, "kafka.transaction_timeout", "").verdict, "ok");
    assert!(of(&lines, "kafka.transactional_id", "").message.contains(&world.postgres.slot));
}

// --- how it looks

#[tokio::test]
async fn a_person_sees_aligned_lines_and_colours_only_on_a_terminal() {
    let world = World::new(fresh_database(postgres()).await).await;
    let ended = world.walcast(["check"]).await;
    assert_eq!(ended.code, Some(2));
    assert!(!ended.output.contains('\x1b'), "{}", ended.output);
    let place = |line: &str, text: &str| line.find(text).map(|at| line[..at].chars().count());
    let line = |word: &str| ended.output.lines().find(|line| line.contains(word)).unwrap();
    assert_eq!(place(line("postgres wal_level"), "logical"), place(line("postgres version"), "18."));
    assert!(ended.output.lines().any(|line| line == "        walcast init"), "{}", ended.output);

    let on_terminal = world.on_terminal("check").await;
    assert!(on_terminal.contains("\x1b[31mFAIL\x1b[0m"), "{on_terminal}");
    let without = world.with("NO_COLOR", "1").on_terminal("check").await;
    assert!(without.contains("FAIL") && !without.contains('\x1b'), "{without}");
}

#[tokio::test]
async fn it_comes_to_an_end_while_walcast_writes_all_the_time() {
    let world = World::initialised().await;
    let running = world.start().await;
    let _load = world.generate(20_000);
    wait_until("Kafka has events", async || !world.kafka_events().await.is_empty()).await;
    world.walcast(["check"]).await.expect(0, &["position of kafka", "holds all up to"]);
    running.stop().await;
}
