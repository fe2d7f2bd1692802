//! The command as a whole: what it says of servers, what it changes, how it looks.

use walcast::source::sql;

use super::operator::{check, failed, of};
use crate::support::world::World;
use crate::support::{fresh_database, postgres, wait_until};

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
    let promised = |id: &&str| *id == "sink.guarantee";
    let (promises, ids): (Vec<&str>, Vec<&str>) =
        lines.iter().map(|line| line.id.as_str()).partition(promised);
    assert_eq!(promises.len(), 4, "content and the three sinks");
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
