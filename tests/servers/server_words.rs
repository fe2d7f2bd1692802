//! What PostgreSQL says is for people: the same refusals in another language have the same exit codes, and a warning
//! is what the catalog makes of it.

use std::time::Duration;

use crate::support::running::{Running, send};
use crate::support::world::World;
use crate::support::{
    self, DEADLINE, fresh_database, fresh_name, in_fresh_database, run, services, wait_until,
};
use serde_json::{Value, json};
use tokio_postgres::Client;
use walcast::clock::ServerClock;
use walcast::error::Error;
use walcast::lsn::Lsn;
use walcast::ops::init;
use walcast::source::connection::Connection;
use walcast::source::heartbeat::{Answer, Doubt, Watch};
use walcast::source::server_error::ServerError;
use walcast::source::stream::ReplicationStream;
use walcast::source::{PostgresConfig, slot, sql};
use walcast::state::history;

/// A refusal: what provoked it, and the error.
type Refusals = Vec<(&'static str, Error)>;

fn refused<T>(answer: Result<T, Error>) -> Error {
    answer.err().expect("it is refused")
}

/// Provokes what PostgreSQL refuses, on servers of its own whose messages are in this language.
async fn provoke(language: &str, messages: &'static str) -> Refusals {
    let labels = [format!("de:{language}"), format!("de:{language}-standby")];
    let [primary, standby] = &labels;
    for label in &labels {
        services::command(&["postgres", label, "wipe"]);
    }
    let mut refusals = Refusals::new();

    let server = services::postgres(primary, &[messages, "wal_level=replica"]);
    let mut connection = Connection::connect(&server).await.unwrap();
    refusals.push(("wal_level=replica", refused(connection.create_slot("s", true).await)));
    drop(connection);
    services::command(&["postgres", primary, "down"]);

    let settings = [messages, "max_slot_wal_keep_size=1MB", "max_wal_size=48MB", "min_wal_size=32MB"];
    let server = services::postgres(primary, &settings);
    let world = World::new(PostgresConfig { db: "words".into(), slot: "words".into(), ..server.clone() });
    run(&sql::connect(&server).await.unwrap(), "CREATE DATABASE words").await;
    let world = world.await.with("PIPELINE_SINKS", "redis");
    logins(&server, &mut refusals).await;
    slots(&world, &mut refusals).await;
    drop(world);

    let slot = "SELECT pg_create_physical_replication_slot('standby')";
    run(&sql::connect(&server).await.unwrap(), slot).await;
    services::command(&["postgres", primary, "down"]);
    services::command(&["postgres", standby, "copy", primary, "standby"]);
    services::postgres(primary, &[messages]);
    let source = format!(
        "primary_conninfo='host=127.0.0.1 port={} user=postgres password={}'",
        server.port,
        server.password.expose()
    );
    let follower = services::postgres(standby, &[messages, &source, "primary_slot_name=standby"]);
    let client = sql::connect(&follower).await.unwrap();
    refusals.push((
        "a write on a standby",
        client.batch_execute("CREATE TABLE t ()").await.map_err(sql::error).unwrap_err(),
    ));
    let facts = slot::server_facts(&client).await.unwrap();
    assert_eq!(refused(facts.check_primary()).exit_code(), 1, "it may be promoted");
    for label in &labels {
        services::command(&["postgres", label, "wipe"]);
    }
    refusals
}

async fn logins(server: &PostgresConfig, refusals: &mut Refusals) {
    let wrong = PostgresConfig { password: "wrong".to_owned().into(), ..server.clone() };
    refusals.push(("a wrong password", refused(Connection::connect(&wrong).await)));
    refusals.push(("a wrong password in SQL", refused(sql::connect(&wrong).await)));
    let missing = PostgresConfig { db: "missing".into(), ..server.clone() };
    refusals.push(("a missing database", refused(sql::connect(&missing).await)));
    let admin = sql::connect(server).await.unwrap();
    run(&admin, "CREATE ROLE plain LOGIN PASSWORD 'x'; CREATE ROLE shut NOLOGIN PASSWORD 'x'").await;
    let of =
        |user: &str| PostgresConfig { user: user.into(), password: "x".to_owned().into(), ..server.clone() };
    refusals.push(("no right to replicate", refused(Connection::connect(&of("plain")).await)));
    refusals.push(("no right to log in", refused(sql::connect(&of("shut")).await)));
    run(&admin, "REVOKE CONNECT ON DATABASE engagement FROM public").await;
    refusals.push(("no right to connect", refused(sql::connect(&of("plain")).await)));
}

async fn start_stream(config: &PostgresConfig) -> Result<ReplicationStream, Error> {
    let connection = Connection::connect(config).await?;
    connection.start_replication(&config.slot, &config.publication, Lsn::ZERO).await
}

/// What a start makes of a stream that the server refuses.
async fn start(config: &PostgresConfig, client: &Client) -> Error {
    history::why_refused(config, client, refused(start_stream(config).await)).await
}

async fn slots(world: &World, refusals: &mut Refusals) {
    let config = &world.postgres;
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(config).await.unwrap();

    let elsewhere = PostgresConfig { db: "engagement".into(), ..config.clone() };
    let there = sql::connect(&elsewhere).await.unwrap();
    refusals.push(("a slot of another database", start(&elsewhere, &there).await));

    let mut running = world.start().await;
    run(&client, &format!("ALTER PUBLICATION {} RENAME TO other", config.publication)).await;
    world.insert_events(1).await;
    assert_eq!(running.ended().await, Some(4), "{}", running.log.lock().await);
    slot::wait_until_free(&client, &config.slot, || {}).await.unwrap();
    let mut stream = start_stream(config).await.unwrap();
    let ended = async {
        loop {
            match stream.next_frame() {
                Ok(Some(_)) => {}
                Ok(None) => stream.fill().await.unwrap(),
                Err(error) => return error,
            }
        }
    };
    let ended = tokio::time::timeout(DEADLINE, ended).await.unwrap();
    refusals.push(("a missing publication", ended));

    wait_until("the slot is invalidated", async || {
        let outrun = "SELECT pg_switch_wal(); CREATE TABLE x (); DROP TABLE x; CHECKPOINT";
        let _ = client.batch_execute(outrun).await;
        slot::facts(&client, &config.slot).await.unwrap().unwrap().lost().is_some()
    })
    .await;
    refusals.push(("an invalidated slot", start(config, &client).await));
    let found = world.walcast(["run"]).await;
    found.expect(4, &["can deliver no more"]);
    slot::drop(&client, &config.slot).await.unwrap();
    refusals.push(("a missing slot", start(config, &client).await));
    refusals.push(("a missing slot to drop", refused(slot::drop(&client, &config.slot).await)));
    world.walcast(["run"]).await.expect(4, &["is gone"]);
}

/// PostgreSQL's own words: what an error says, or what it was refused for.
fn words(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    }
}

#[tokio::test]
async fn refusals_in_german_have_the_exit_codes_of_those_in_english() {
    let english = provoke("english", "lc_messages='C'").await;
    let german = provoke("german", "lc_messages='de_DE.UTF-8'").await;
    let wanted = [
        ("wal_level=replica", 2),
        ("a wrong password", 2),
        ("a wrong password in SQL", 2),
        ("a missing database", 2),
        ("no right to replicate", 2),
        ("no right to log in", 2),
        ("no right to connect", 2),
        ("a slot of another database", 2),
        ("a missing publication", 4),
        ("an invalidated slot", 4),
        ("a missing slot", 4),
        ("a missing slot to drop", 4),
        ("a write on a standby", 1),
    ];
    for refusals in [&english, &german] {
        let codes: Vec<_> = refusals.iter().map(|(what, error)| (*what, error.exit_code())).collect();
        assert_eq!(codes, wanted);
    }
    for ((what, english), (_, german)) in english.iter().zip(&german) {
        assert_eq!((english.kind(), english.advice()), (german.kind(), german.advice()), "{what}");
        assert_ne!(words(english), words(german), "{what}: it is not in another language");
    }
}

/// A server that waits for a standby warns again and again, with the SQLSTATE of a publication that is skipped.
#[tokio::test]
async fn a_stream_that_waits_for_a_standby_goes_on_when_it_is_there() {
    services::command(&["postgres", "18:awaited", "wipe"]);
    let server = services::postgres("18:awaited", &["synchronized_standby_slots='standby'"]);
    let world = World::new(fresh_database(server).await).await.with("PIPELINE_SINKS", "redis");
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    for exists in [false, true] {
        if exists {
            run(&client, "SELECT pg_create_physical_replication_slot('standby', true)").await;
        }
        let running = world.start().await;
        let before = (world.redis_plays().await, world.confirmed_lsn().await);
        world.insert_events(10).await;
        let words = "waits for the standby of slot standby";
        wait_until("it says what PostgreSQL waits for", async || running.log.lock().await.contains(words))
            .await;
        // PostgreSQL warns again and again in the meantime
        wait_until("it has waited for three seconds", async || standby_wait_seconds(&running).await >= 3.0)
            .await;
        let said = running.log.lock().await.matches(words).count();
        assert_eq!(said, 1, "it is said once, not at each warning");
        assert_eq!((world.redis_plays().await, world.confirmed_lsn().await), before);
        waits_are_shown(&world, &running, true).await;
        let none = "ALTER SYSTEM SET synchronized_standby_slots = ''";
        run(&client, none).await;
        run(&client, "SELECT pg_reload_conf()").await;
        wait_until("Redis has all", async || world.redis_plays().await == before.0 + 10).await;
        waits_are_shown(&world, &running, false).await;
        running.stop().await;
        run(&client, "ALTER SYSTEM RESET synchronized_standby_slots").await;
        run(&client, "SELECT pg_reload_conf()").await;
    }
    drop(world);
    services::command(&["postgres", "18:awaited", "wipe"]);
}

/// What waits is told by the status in both forms and by the metric, and no longer once it is over.
async fn waits_are_shown(world: &World, running: &Running, waits: bool) {
    let asked = world.with("WEB_LISTEN", running.address().await.trim_start_matches("http://"));
    wait_until("the status is as it is", async || {
        let status = asked.walcast(["status", "--json"]).await.output;
        let status: Value = serde_json::from_str(&status).unwrap();
        let slot = &status["source"]["slot"];
        let told = slot["missing_standbys"] == json!(["standby"])
            && slot["standby_wait_seconds"].as_f64() > Some(0.0);
        let over = slot["missing_standbys"] == json!([]) && slot["standby_wait_seconds"] == 0.0;
        let problem = status["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains("for the standby of slot standby"));
        if waits { told && problem } else { over && !problem }
    })
    .await;
    let text = asked.walcast(["status"]).await.output;
    assert_eq!(text.contains("waits for the standby of standby"), waits, "{text}");
    assert_eq!(standby_wait_seconds(running).await > 0.0, waits);
}

async fn standby_wait_seconds(running: &Running) -> f64 {
    let metrics = running.metrics().await;
    let seconds = metrics.lines().find_map(|line| line.strip_prefix("walcast_slot_standby_wait_seconds "));
    seconds.unwrap().parse().unwrap()
}

/// A database's wish for read-only transactions has the SQLSTATE of a standby, and is nothing that walcast must wait for.
#[tokio::test]
async fn a_database_that_is_read_only_by_default_is_no_standby() {
    let world = World::new(fresh_database(support::postgres()).await).await.with("PIPELINE_SINKS", "redis");
    let client = sql::connect(&world.postgres).await.unwrap();
    let database = &world.postgres.db;
    run(&client, &format!("ALTER DATABASE {database} SET default_transaction_read_only = on")).await;
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    world.insert_events(10).await;
    wait_until("Redis has all", async || world.redis_plays().await == 10).await;
    running.stop().await;
}

/// It looks like itself in the catalog, and PostgreSQL 18 has left out what came while it had another name.
#[tokio::test]
async fn a_publication_that_had_another_name_for_a_while_is_a_gap() {
    let server = services::postgres("18", &[]);
    let world = World::new(fresh_database(server).await).await.with("PIPELINE_SINKS", "redis");
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    let (publication, other) = (&world.postgres.publication, fresh_name("other"));
    run(&client, &format!("ALTER PUBLICATION {publication} RENAME TO {other}")).await;
    let before = world.wal_end().await;
    world.insert_events(1).await;
    run(&client, &format!("ALTER PUBLICATION {other} RENAME TO {publication}")).await;
    world.insert_events(1).await;
    for _ in 0..2 {
        let mut running = world.spawn();
        assert_eq!(running.ended().await, Some(4), "{}", running.log.lock().await);
        assert!(world.confirmed_lsn().await <= before, "a row was passed by");
    }
}

/// The process on the server that serves the watch of the source, once it has nothing to do.
async fn watching_process(client: &Client) -> u32 {
    let query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
        AND application_name = 'walcast' AND pid <> pg_backend_pid()
        AND (query LIKE '-- $1 the publication%' OR query LIKE '%pg_logical_emit_message%')";
    let found = async || client.query(query, &[]).await.unwrap().first().map(|row| row.get::<_, i32>(0));
    wait_until("the watch is at work", async || found().await.is_some()).await;
    found().await.unwrap().try_into().unwrap()
}

/// Returns when the server has sent all up to here, and walcast has reported since then, twice: one report may have
/// been on its way.
async fn has_been_given(client: &Client, world: &World, end: Lsn) {
    let slot = &world.postgres.slot;
    let query =
        "SELECT reply_time::text FROM pg_stat_replication JOIN pg_replication_slots ON pid = active_pid
                 WHERE slot_name = $1 AND sent_lsn >= $2::text::pg_lsn";
    let reported = async || -> Option<String> {
        client.query_opt(query, &[slot, &end.to_string()]).await.unwrap().map(|row| row.get(0))
    };
    wait_until("it is sent", async || reported().await.is_some()).await;
    for _ in 0..2 {
        let before = reported().await;
        wait_until("walcast reports", async || reported().await != before).await;
    }
}

/// However long the catalog takes to tell what a warning means.
#[tokio::test]
async fn nothing_after_a_warning_is_handed_on_before_its_meaning_is_known() {
    services::command(&["postgres", "18:doubt", "wipe"]);
    let server = services::postgres("18:doubt", &[]);
    let world = World::new(fresh_database(server.clone()).await).await.with("PIPELINE_SINKS", "redis");
    world.walcast(["init"]).await.expect(0, &[]);
    let mut running = world.start().await;
    world.insert_events(1).await;
    wait_until("Redis has it", async || world.redis_plays().await == 1).await;

    let client = sql::connect(&PostgresConfig { db: world.postgres.db.clone(), ..server }).await.unwrap();
    run(&client, "SET application_name = 'test'").await;
    let watch = watching_process(&client).await;
    send("STOP", watch);
    let (publication, other) = (&world.postgres.publication, fresh_name("other"));
    run(&client, &format!("ALTER PUBLICATION {publication} RENAME TO {other}")).await;
    let before = world.wal_end().await;
    world.insert_events(1).await;
    run(&client, &format!("ALTER PUBLICATION {other} RENAME TO {publication}")).await;
    world.insert_events(1).await;
    has_been_given(&client, &world, world.wal_end().await).await;
    let ended = running.ends_within(Duration::ZERO).await;
    let (plays, confirmed) = (world.redis_plays().await, world.confirmed_lsn().await);
    send("CONT", watch);
    let code = running.ended().await;
    assert!(!ended && plays == 1 && confirmed <= before, "{plays} {confirmed} {}", running.log.lock().await);
    assert_eq!(code, Some(4), "{}", running.log.lock().await);
    drop(world);
    services::command(&["postgres", "18:doubt", "wipe"]);
}

/// The catalog tells a loss from a wait, whatever the warning says.
#[tokio::test]
async fn a_warning_is_a_loss_where_the_catalog_shows_one() {
    in_fresh_database(support::postgres(), async |config| {
        let mut client = sql::connect(config).await.unwrap();
        init::migrate(&mut client, config).await.unwrap();
        let publication = &config.publication;
        run(&client, &format!("CREATE PUBLICATION {publication} FOR TABLE content, engagement_events")).await;
        let known = slot::publication(&client, config).await.unwrap().unwrap().identity;
        let warning = ServerError {
            severity: "WARNING".into(),
            code: "55000".into(),
            message: "ἄλφα".into(),
            ..Default::default()
        };
        let ask = async || {
            let (watch, mut doubts) = Watch::new(known.clone(), ServerClock::default());
            doubts.raise(Doubt::Warning(warning.clone()));
            assert!(doubts.is_pending());
            tokio::select! {
                biased;
                answer = doubts.settled() => match answer {
                    Answer::Harmless(meaning) => Ok(meaning),
                    other => panic!("{other:?}"),
                },
                ended = watch.run(config) => Err(ended.exit_code()),
            }
        };
        assert!(ask().await.unwrap().contains("ἄλφα"));
        run(&client, &format!("DROP PUBLICATION {publication}")).await;
        assert_eq!(ask().await, Err(4));
        run(&client, &format!("CREATE PUBLICATION {publication} FOR TABLE content, engagement_events")).await;
        assert_eq!(ask().await, Err(4), "another one of that name");
    })
    .await;
}
