//! Dead letters that are sent again arrive once, whatever happens on the way.

use std::panic::{AssertUnwindSafe, resume_unwind};

use futures_util::{FutureExt, StreamExt, stream};
use serde_json::Value;
use tokio_postgres::Client;
use walcast::source::sql;

use crate::support::bigquery_server::BigQueryServer;
use crate::support::hold::Hold;
use crate::support::http_server::HttpServer;
use crate::support::running::Running;
use crate::support::wire::{Weather, Wire};
use crate::support::world::World;
use crate::support::{fresh_database, postgres, run, services, wait_until};

const BAD: &str = "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
                   SELECT id, 'play', now(), -1 FROM content LIMIT 1";
/// In Kafka's JSON its device takes six bytes a character.
const LARGE: &str = "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms, device)
                     SELECT id, 'play', now(), 1000, repeat(chr(1), 60000) FROM content LIMIT 1";
/// Events that go on without ado.
const GOOD: i64 = 3;

/// A world with a few events, and the refused rows that `bad` makes, in letters.
struct Letters {
    world: World,
    client: Client,
}

impl Letters {
    async fn new(world: World, bad: &str) -> Letters {
        let running = world.start().await;
        world.insert_events(GOOD).await;
        let client = sql::connect(&world.postgres).await.unwrap();
        run(&client, bad).await;
        let end = world.wal_end().await;
        wait_until("all is confirmed", async || world.confirmed_lsn().await >= end).await;
        running.stop().await;
        Letters { world, client }
    }

    async fn of_all(sinks: &str) -> Letters {
        Letters::new(World::initialised().await.with("PIPELINE_SINKS", sinks), BAD).await
    }

    /// Each letter: its sink, state and tries.
    async fn told(&self) -> Vec<String> {
        let query = "SELECT sink || ' ' || state || ' ' || attempts FROM walcast.dead_letter ORDER BY 1";
        self.client.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn requests(&self) -> i64 {
        self.client.query_one("SELECT count(*) FROM walcast.request", &[]).await.unwrap().get(0)
    }

    async fn replay(&self, more: &[&str]) -> crate::support::world::Ended {
        let arguments = ["dead-letters", "replay", "--since", "1d"];
        self.world.walcast(arguments.iter().chain(more).copied()).await
    }

    async fn wait_until_told(&self, told: &[&str]) {
        wait_until(&format!("the letters are {told:?}"), async || self.told().await == told).await;
    }

    /// The letter of all has arrived, in each sink once, and nothing of the way is left.
    async fn arrives(&self, running: Running) {
        self.wait_until_told(&["all replayed 1"]).await;
        self.has_arrived(running).await;
    }

    async fn has_arrived(&self, running: Running) {
        let events = self.world.kafka_events().await;
        let mut ids: Vec<i64> = events.iter().map(|event| event["event_id"].as_i64().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=GOOD + 1).collect::<Vec<_>>(), "each once");
        assert_eq!(self.requests().await, 0);
        self.world.verify().await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_refused_before_the_sinks_goes_repaired_to_all_of_them_once() {
    let letters = Letters::of_all("kafka,redis,bigquery").await;
    letters.replay(&[]).await.expect(2, &["WC-252", "a negative number", "--set"]);
    letters.replay(&["--set", "duration_ms=5s"]).await.expect(64, &["duration_ms"]);
    letters
        .replay(&["--set", "duration_ms=1000", "--dry-run"])
        .await
        .expect(0, &["1 dead letter would be sent again"]);
    assert_eq!((letters.told().await, letters.requests().await), (vec!["all open 1".to_owned()], 0));
    let running = letters.world.start().await;
    letters
        .replay(&["--set", "duration_ms=1000", "--set", "device=radio"])
        .await
        .expect(0, &["1 dead letter sent again"]);
    letters.replay(&[]).await.expect(0, &["0 dead letters sent again"]);
    letters.wait_until_told(&["all replayed 1"]).await;
    letters.world.wait_until_all_hold(GOOD as usize + 1).await;
    let repaired = |event: &&Value| event["event_id"] == GOOD + 1;
    let events = letters.world.kafka_events().await;
    let event = events.iter().find(repaired).unwrap();
    assert_eq!((&event["duration_ms"], &event["device"]), (&1000.into(), &"radio".into()));
    assert_eq!((&event["title"], &event["engagement_pct"]), (&"title 1".into(), &1.0.into()), "joined");
    letters.has_arrived(running).await;
    // what is filled from PostgreSQL has it too, though the row there is what it was
    letters.world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 4 events"]);
    assert_eq!(letters.world.redis_plays().await, GOOD + 1);
    let running = letters.world.start().await;
    letters.has_arrived(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replays_of_one_letter_are_one() {
    let letters = Letters::of_all("kafka,redis").await;
    let hold = Hold::closed();
    let held = Letters {
        world: letters.world.with("FAILPOINTS", &hold.at("replay_before_commit")),
        client: sql::connect(&letters.world.postgres).await.unwrap(),
    };
    let set = ["--set", "duration_ms=1000"];
    let both = async {
        let second = async {
            hold.reached().await;
            let waiting = async {
                let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
                wait_until("the second waits", async || {
                    letters.client.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == 1
                })
                .await;
                hold.release();
            };
            tokio::join!(letters.replay(&set), waiting).0
        };
        tokio::join!(held.replay(&set), second)
    };
    let (first, second) = both.await;
    first.expect(0, &["1 dead letter sent again"]);
    second.expect(0, &["0 dead letters sent again"]);
    assert_eq!(letters.requests().await, 1);
    letters.arrives(letters.world.start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_at_any_step_of_the_command_is_done_or_is_not() {
    for (step, sent) in
        [("replay_before_request", false), ("replay_before_commit", false), ("replay_after_commit", true)]
    {
        let letters = Letters::of_all("kafka,redis").await;
        let killed = Letters {
            world: letters.world.with("FAILPOINTS", &format!("{step}=return")),
            client: sql::connect(&letters.world.postgres).await.unwrap(),
        };
        let ended = killed.replay(&["--set", "duration_ms=1000"]).await;
        assert_eq!(ended.code, None, "{step}: {}", ended.output);
        let state = if sent { "all replaying 1" } else { "all open 1" };
        letters.wait_until_told(&[state]).await;
        if !sent {
            letters.replay(&["--set", "duration_ms=1000"]).await.expect(0, &["1 dead letter sent again"]);
        }
        letters.arrives(letters.world.start().await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_arrives_once_wherever_walcast_is_killed_on_the_way() {
    let steps = [
        "ticket_before_answer",
        "ticket_after_answer",
        "content_before_commit",
        "content_after_commit",
        "kafka_before_commit",
        "kafka_after_commit",
        "redis_after_flush",
        "pipeline_after_status",
        "requests_before_settled",
        "requests_after_settled",
    ];
    // Most of their time they wait. Their worlds go at the end: that blocks the thread until PostgreSQL has dropped the database, and it
    // drops none while another of them is in the middle of a login.
    stream::iter(steps.map(killed_at)).buffer_unordered(4).collect::<Vec<Letters>>().await;
}

/// The process dies at its first, second and third coming to this place.
async fn killed_at(step: &str) -> Letters {
    let letters = Letters::of_all("kafka,redis").await;
    letters.replay(&["--set", "duration_ms=1000"]).await.expect(0, &["1 dead letter sent again"]);
    let mut deaths = 0;
    for passes in 0..3 {
        let mut running = letters.world.with("FAILPOINTS", &format!("{step}={passes}*off->return")).spawn();
        // it gets so far, or the letter arrives before
        let arrived = async { letters.wait_until_told(&["all replayed 1"]).await };
        tokio::select! {
            _ = running.ended() => deaths += 1,
            () = arrived => running.kill().await,
        }
    }
    assert!(deaths > 0, "{step} is on no way");
    letters.arrives(letters.world.start().await).await;
    letters
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_emit_is_ignored_and_counted() {
    let letters = Letters::of_all("kafka,redis").await;
    let emit = |transactional: bool, text: &str| {
        format!("SELECT pg_logical_emit_message({transactional}, 'walcast.control', '{text}')")
    };
    run(&letters.client, &emit(true, "00000000-0000-0000-0000-000000000000")).await;
    run(&letters.client, &emit(true, "nonsense")).await;
    letters.replay(&["--set", "duration_ms=1000"]).await.expect(0, &["1 dead letter sent again"]);
    let id: uuid::Uuid =
        letters.client.query_one("SELECT id FROM walcast.request", &[]).await.unwrap().get(0);
    run(&letters.client, &emit(true, &id.to_string())).await;
    run(&letters.client, &emit(false, &id.to_string())).await;
    // in a transaction with events, which are none of its business
    run(
        &letters.client,
        &format!("BEGIN; {}; UPDATE content SET title = title; COMMIT", emit(true, &id.to_string())),
    )
    .await;
    let running = letters.world.start().await;
    letters.wait_until_told(&["all replayed 1"]).await;
    let end = letters.world.wal_end().await;
    wait_until("all is confirmed", async || letters.world.confirmed_lsn().await >= end).await;
    let status = running.json("/api/status").await;
    assert_eq!(status["source"]["ignored_control_messages_total"], 5);
    let metrics = running.metrics().await;
    for line in [
        r#"walcast_control_messages_total{outcome="ignored"} 5"#,
        r#"walcast_control_messages_total{outcome="taken"} 1"#,
    ] {
        assert!(metrics.contains(line), "no {line} in {metrics}");
    }
    letters.has_arrived(running).await;
}

/// What `walcast dead-letters replay` does, in SQL, for the one letter there is.
const BY_HAND: &str = "
    INSERT INTO walcast.request (id, history_id, kind, sinks, rows)
    SELECT '11111111-1111-1111-1111-111111111111', history_id, 'replay', '{all}',
      json_build_object('extra', json_build_array(),
        'rows', json_build_array(json_build_object('record', replace(event, '\"duration_ms\":-1', '\"duration_ms\":1000'), 'joins', true)))
    FROM walcast.dead_letter;
    UPDATE walcast.dead_letter SET state = 'replaying', repair = '{}', request = '11111111-1111-1111-1111-111111111111';
    SELECT pg_logical_emit_message(true, 'walcast.control', '11111111-1111-1111-1111-111111111111')";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_among_other_changes_is_refused_and_loses_nothing() {
    for (before, after) in [(GOOD, 0), (0, GOOD), (1, GOOD)] {
        let letters = Letters::of_all("kafka,redis").await;
        let good = |count: i64| {
            format!(
                "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
             SELECT (SELECT id FROM content LIMIT 1), 'play', now(), 1000 FROM generate_series(1, {count})"
            )
        };
        run(&letters.client, &format!("BEGIN; {}; {BY_HAND}; {}; COMMIT", good(before), good(after))).await;
        let running = letters.world.start().await;
        wait_until("it is counted", async || {
            running.metrics().await.contains(r#"walcast_control_messages_total{outcome="refused"} 1"#)
        })
        .await;
        letters.wait_until_told(&["all open 1"]).await;
        let all = (GOOD + before + after) as usize;
        wait_until("the changes go on", async || letters.world.kafka_events().await.len() == all).await;
        wait_until("the request is done with", async || letters.requests().await == 0).await;
        letters.world.verify().await;
        letters.replay(&["--set", "duration_ms=1000"]).await.expect(0, &["1 dead letter sent again"]);
        letters.wait_until_told(&["all replayed 1"]).await;
        assert_eq!(letters.world.kafka_events().await.len(), all + 1);
        letters.world.verify().await;
        running.stop().await;
    }
}

/// The stream brings a commit as soon as it is in the WAL, and nobody sees it before the standby has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_a_standby_is_waited_for() {
    const SERVER: &str = "18:waits";
    let world = World::new(fresh_database(services::postgres(SERVER, &[])).await).await;
    world.walcast(["init"]).await.expect(0, &[]);
    let letters = Letters::new(world.with("PIPELINE_SINKS", "kafka,redis"), BAD).await;
    let standby = async |names: &str| {
        run(&letters.client, &format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await;
        run(&letters.client, "SELECT pg_reload_conf()").await;
        wait_until("the setting holds", async || {
            let row = letters.client.query_one("SHOW synchronous_standby_names", &[]).await.unwrap();
            row.get::<_, String>(0) == names
        })
        .await;
    };
    run(&letters.client, "SET synchronous_commit = local").await;
    let running = letters.world.start().await;
    standby("missing").await;
    let before = letters.world.wal_end().await;
    let waits = sql::connect(&letters.world.postgres).await.unwrap();
    let by_hand = tokio::spawn(async move { run(&waits, &format!("BEGIN; {BY_HAND}; COMMIT")).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%walcast.request%'";
    wait_until("the commit waits", async || {
        letters.client.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    wait_until("the stream has come there", async || {
        let status = running.json("/api/status").await;
        let received =
            status["source"]["received_lsn"].as_str().unwrap().parse::<walcast::lsn::Lsn>().unwrap();
        received > before || status["source"]["ignored_control_messages_total"] != 0
    })
    .await;
    // a status each second says that it lives, for as long as it waits
    let now = letters.client.query_one("SELECT clock_timestamp()::text", &[]).await.unwrap();
    let now: String = now.get(0);
    // of this stream alone: the longer this takes, the longer every commit of every other test waits
    let replied =
        "SELECT coalesce(bool_and(reply_time > $1::text::timestamptz + interval '3 seconds'), false)
        FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = $2";
    let slot = &letters.world.postgres.slot;
    let waited = AssertUnwindSafe(async {
        wait_until("PostgreSQL is answered", async || {
            letters.client.query_one(replied, &[&now, slot]).await.unwrap().get(0)
        })
        .await;
        running.json("/api/status").await["source"]["ignored_control_messages_total"].clone()
    });
    let waited = waited.catch_unwind().await;
    // whatever was found: with a standby missing not even the database can be dropped
    standby("").await;
    by_hand.await.unwrap();
    assert_eq!(waited.unwrap_or_else(|panic| resume_unwind(panic)), 0);
    letters.arrives(running).await;
    drop(letters);
    drop(world);
    services::command(&["postgres", SERVER, "wipe"]);
}

/// Kafka refuses a record that is above its bound; with a larger bound it takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_one_sink_refused_goes_to_that_sink_alone() {
    let world = World::initialised().await.with("PIPELINE_SINKS", "kafka,redis");
    let small = world.with("PIPELINE_ROW_BYTES_MAX", "65536");
    let letters = Letters::new(small, LARGE).await;
    letters.wait_until_told(&["kafka open 1"]).await;
    let running = letters.world.start().await;
    letters.replay(&["--set", "device=x"]).await.expect(2, &["WC-252", "other sinks"]);
    // nothing was mended: it is the same letter, and not another
    letters.replay(&[]).await.expect(0, &["1 dead letter sent again"]);
    letters.wait_until_told(&["kafka open 2"]).await;
    wait_until("the request is done with", async || letters.requests().await == 0).await;
    letters.wait_until_told(&["kafka open 2"]).await;
    letters.world.verify().await;
    // its content changes: what the others have is what Kafka gets
    run(&letters.client, "UPDATE content SET title = 'another'").await;
    running.stop().await;
    let mended = Letters { world: world.clone(), client: sql::connect(&world.postgres).await.unwrap() };
    let running = mended.world.start().await;
    mended.replay(&[]).await.expect(0, &["1 dead letter sent again"]);
    mended.wait_until_told(&["kafka replayed 2"]).await;
    let events = world.kafka_events().await;
    let large = events.iter().find(|event| event["event_id"] == GOOD + 1).unwrap();
    assert_eq!(large["title"], "title 1");
    assert_eq!(world.redis_plays().await, GOOD + 1, "Redis had it before");
    mended.has_arrived(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_bigquery_alone_refused_goes_to_bigquery_alone() {
    let server = BigQueryServer::start().await;
    let world = World::new(fresh_database(postgres()).await)
        .await
        .with("BIGQUERY_REST_URL", &server.url())
        .with("BIGQUERY_GRPC_URL", &server.url())
        .with("PIPELINE_SINKS", "kafka,redis,bigquery");
    world.walcast(["init"]).await.expect(0, &[]);
    server.store().refuses = [2].into();
    let letters = Letters::new(world.clone(), "SELECT 1").await;
    letters.wait_until_told(&["bigquery open 1"]).await;
    let table = server.store().tables.keys().next().unwrap().clone();
    let ids = || {
        let mut ids: Vec<i64> = server.rows(&table).iter().map(|row| row.event_id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(), [1, 3]);
    let running = world.start().await;
    letters.replay(&["--sink", "bigquery"]).await.expect(0, &["1 dead letter sent again"]);
    letters.wait_until_told(&["bigquery open 2"]).await;
    server.store().refuses.clear();
    letters.replay(&["--sink", "bigquery"]).await.expect(0, &["1 dead letter sent again"]);
    letters.wait_until_told(&["bigquery replayed 2"]).await;
    assert_eq!(ids(), [1, 2, 3]);
    assert_eq!(world.kafka_events().await.len(), GOOD as usize);
    assert_eq!(world.redis_plays().await, GOOD);
    world.with("PIPELINE_SINKS", "kafka,redis").verify().await;
    running.stop().await;
}

/// It refuses the row once more, then takes it: posted under another name, and to nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_http_alone_refused_goes_to_http_alone() {
    let target = HttpServer::start().await;
    let world = World::new(fresh_database(postgres()).await)
        .await
        .with("HTTP_URL", &target.url())
        .with("PIPELINE_SINKS", "kafka,redis,http");
    world.walcast(["init"]).await.expect(0, &[]);
    target.refuses(|event| (event["event_id"] == 2).then_some(422));
    let letters = Letters::new(world.clone(), "SELECT 1").await;
    letters.wait_until_told(&["http open 1"]).await;
    let ids = || Vec::from_iter(target.event_ids());
    assert_eq!(ids(), [1, 3]);
    let running = world.start().await;
    // one that the target takes shows that it is not the target's fault
    world.insert_events(1).await;
    wait_until("the target takes rows", async || ids() == [1, 3, 4]).await;
    let others = async || (world.kafka_events().await.len() as i64, world.redis_plays().await);
    wait_until("the others have all", async || others().await == (GOOD + 1, GOOD + 1)).await;
    letters.replay(&["--sink", "http", "--set", "device=x"]).await.expect(2, &["WC-252", "other sinks"]);
    letters.replay(&["--sink", "http"]).await.expect(0, &["1 dead letter sent again"]);
    letters.wait_until_told(&["http open 2"]).await;
    target.refuses(|_| None);
    letters.replay(&["--sink", "http"]).await.expect(0, &["1 dead letter sent again"]);
    letters.wait_until_told(&["http replayed 2"]).await;
    wait_until("the request is done with", async || letters.requests().await == 0).await;
    assert_eq!(ids(), [1, 2, 3, 4]);
    let taken = target.events().iter().filter(|(_, event)| event["event_id"] == 2).count();
    assert_eq!(taken, 1, "once, under one name");
    target.check();
    assert_eq!(others().await, (GOOD + 1, GOOD + 1), "they had it before");
    assert!(world.kafka_topic("dlq").await.is_empty());
    world.verify().await;
    running.stop().await;
}

/// What is sent again while a sink is fed by a stream of its own comes to it there, and its request is kept until then.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_has_fallen_behind_gets_the_row_in_its_lane() {
    let letters = Letters::of_all("kafka,redis").await;
    let redis = Wire::to(letters.world.redis_port()).await;
    let world = letters
        .world
        .with("REDIS_PORT", &redis.port.to_string())
        .with("PIPELINE_QUEUE_BYTES_MAX", "300000")
        .with("BREAKER_PROBE_SECONDS", "1");
    let running = world.start().await;
    redis.set(Weather::Cut);
    wait_until("redis has a lane", async || running.is_in_a_lane("redis").await).await;
    letters.replay(&["--set", "duration_ms=1000"]).await.expect(0, &["1 dead letter sent again"]);
    wait_until("Kafka has the row", async || world.kafka_events().await.len() == GOOD as usize + 1).await;
    let end = world.wal_end().await;
    wait_until("the others are beyond it", async || world.confirmed_lsn().await >= end).await;
    assert_eq!((letters.told().await, letters.requests().await), (vec!["all replaying 1".to_owned()], 1));
    redis.set(Weather::Fair);
    letters.wait_until_told(&["all replayed 1"]).await;
    assert_eq!(world.redis_plays().await, GOOD + 1);
    letters.has_arrived(running).await;
}
