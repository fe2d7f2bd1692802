//! One sink's trouble is that sink's alone: it gets a slot and a stream of its own, the others go on, and once it has caught
//! up nothing of that is left. Whatever crashes in between, every sink has every event once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use walcast::source::sql;

use crate::support::bigquery_server::BigQueryServer;
use crate::support::bigquery_server::fault::{Call, Fault as Refusal};
use crate::support::hold::Hold;
use crate::support::http_server::{Fault, HttpServer};
use crate::support::pair::Pair;
use crate::support::running::Running;
use crate::support::wire::{Weather, Wire};
use crate::support::world::World;
use crate::support::{fresh_database, postgres, run, wait_until};

/// A world whose Redis is behind a wire, with queues that are soon full and breakers that probe soon.
struct Shore {
    redis: Wire,
    world: World,
}

impl Shore {
    async fn new() -> Shore {
        let world = World::new(fresh_database(postgres()).await).await;
        Shore::of(world).await
    }

    async fn of(world: World) -> Shore {
        let world = soon_full(&world);
        world.walcast(["init"]).await.expect(0, &[]);
        let redis = Wire::to(world.redis_port()).await;
        let world = world.with("REDIS_PORT", &redis.port.to_string());
        Shore { redis, world }
    }
}

fn soon_full(world: &World) -> World {
    world
        .with("PIPELINE_QUEUE_BYTES_MAX", "300000")
        .with("BREAKER_PROBE_SECONDS", "1")
        .with("BIGQUERY_COMMIT_SECONDS", "1")
}

/// 4,000 events, which are more than a queue has room for, in transactions that each fit.
async fn overfill(world: &World) {
    for _ in 0..8 {
        world.insert_events(500).await;
    }
}

async fn lane_is(running: &Running, name: &str, state: &str) {
    wait_until(&format!("the lane of {name} is {state}"), async || {
        running.sink(name).await["lane"]["state"] == state
    })
    .await;
}

/// Whatever else was told of it before.
async fn lane_is_lost(running: &Running, name: &str) {
    wait_until(&format!("the lane of {name} is lost"), async || {
        let lane = running.sink(name).await["lane"].clone();
        lane["state"] == "lost" && lane["last_error_code"] == "WC-409"
    })
    .await;
}

async fn has_no_lane(running: &Running, name: &str) {
    wait_until(&format!("{name} has no lane"), async || running.sink(name).await["lane"].is_null()).await;
}

#[tokio::test]
async fn a_sink_that_hangs_holds_up_no_other_and_catches_up() {
    let Shore { redis, world } = Shore::new().await;
    let running = world.start().await;
    world.insert_events(100).await;
    world.wait_until_all_hold(100).await;
    redis.set(Weather::Silent);
    overfill(&world).await;
    wait_until("Kafka holds all", async || world.kafka_events().await.len() >= 4_100).await;
    // the walcast slot moves on; a slot of its own keeps what Redis lacks
    world.all_is_confirmed().await;
    assert!(running.sink("redis").await["lane"].is_object());
    assert_eq!(running.json("/readyz").await["ready"], true, "the stream streams");
    redis.set(Weather::Fair);
    world.wait_until_all_hold(4_100).await;
    has_no_lane(&running, "redis").await;
    world.no_lane_is_left().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(4_110).await;
    world.verify().await;
    running.stop().await;
}

/// Kafka and BigQuery, where they hang in the middle of a write.
#[tokio::test]
async fn each_other_sink_may_hang_too() {
    for (name, failpoint) in [("kafka", "kafka_before_commit"), ("bigquery", "bigquery_before_append")] {
        let Shore { world, .. } = Shore::new().await;
        let hold = Hold::open();
        let running = world.with("FAILPOINTS", &hold.at(failpoint)).start().await;
        world.insert_events(10).await;
        world.wait_until_all_hold(10).await;
        hold.close();
        overfill(&world).await;
        wait_until("Redis counts all", async || world.redis_plays().await >= 4_010).await;
        world.all_is_confirmed().await;
        assert!(running.sink(name).await["lane"].is_object());
        hold.release();
        world.wait_until_all_hold(4_010).await;
        has_no_lane(&running, name).await;
        world.no_lane_is_left().await;
        world.verify().await;
        running.stop().await;
    }
}

/// It takes requests, and answers none of them: each comes again, also after a crash.
#[tokio::test(flavor = "multi_thread")]
async fn an_http_target_that_hangs_holds_up_no_other_and_gets_all_in_order() {
    for batch_rows in ["1", "50"] {
        let target = HttpServer::start().await;
        let world = World::new(fresh_database(postgres()).await)
            .await
            .with("PIPELINE_SINKS", "kafka,redis,http")
            .with("HTTP_URL", &target.url())
            .with("HTTP_BATCH_ROWS", batch_rows)
            .with("HTTP_TIMEOUT_MS", "500");
        let Shore { world, .. } = Shore::of(world).await;
        let running = world.start().await;
        world.insert_events(100).await;
        wait_until("the target has all", async || target.event_ids().len() == 100).await;
        target.always(Fault::Hold);
        // its breaker opens long before its queue is full
        for _ in 0..2 {
            world.insert_events(500).await;
        }
        wait_until("Kafka holds all", async || world.kafka_events().await.len() == 1_100).await;
        wait_until("Redis counts all", async || world.redis_plays().await == 1_100).await;
        world.all_is_confirmed().await;
        assert!(running.sink("http").await["lane"].is_object());
        assert!(target.event_ids().len() < 1_100, "it hangs");
        running.kill().await;
        let running = world.start().await;
        lane_is(&running, "http", "parked").await;
        target.calm();
        wait_until("the target has all", async || target.event_ids().len() == 1_100).await;
        has_no_lane(&running, "http").await;
        world.no_lane_is_left().await;
        // the same bytes under each id, and each content's events in order
        target.check();
        let posted = target.posted();
        let ids: BTreeSet<&str> = posted.iter().map(|one| one.id()).collect();
        assert!(ids.len() < posted.len(), "what nobody answered came again");
        world.verify().await;
        running.stop().await;
        let before = target.posted().len();
        world.start().await.stop().await;
        assert_eq!(target.posted().len(), before, "nothing is left to be sent");
    }
}

#[tokio::test]
async fn a_sink_that_is_dead_at_the_first_start_gets_all_in_the_end() {
    let Shore { redis, world } = Shore::new().await;
    redis.set(Weather::Cut);
    let running = world.start().await;
    world.insert_events(1_000).await;
    lane_is(&running, "redis", "parked").await;
    world.all_is_confirmed().await;
    let line = running.sink("redis").await;
    assert!(line["breaker"] == "open" && line["last_error_code"] == "WC-320", "{line}");
    // and so it is found again
    running.kill().await;
    let running = world.start().await;
    world.insert_events(1_000).await;
    lane_is(&running, "redis", "parked").await;
    redis.set(Weather::Fair);
    world.wait_until_all_hold(2_000).await;
    has_no_lane(&running, "redis").await;
    world.no_lane_is_left().await;
    world.verify().await;
    running.stop().await;
}

/// At these steps of a lane's life.
async fn survives_crashes_at(steps: &[&str]) {
    let Shore { redis, world } = Shore::new().await;
    let mut events = 0;
    for step in steps {
        let mut crashes = world.with("FAILPOINTS", &format!("{step}=return")).start().await;
        redis.set(Weather::Cut);
        for _ in 0..4 {
            world.insert_events(500).await;
            events += 500;
        }
        // far enough for the early steps; the later ones are reached when Redis is back
        lane_or_end(&mut crashes).await;
        redis.set(Weather::Fair);
        assert_eq!(crashes.ended().await, None, "{step} is not reached: {}", crashes.log.lock().await);
        let again = world.start().await;
        world.insert_events(10).await;
        events += 10;
        world.wait_until_all_hold(events as usize).await;
        has_no_lane(&again, "redis").await;
        world.no_lane_is_left().await;
        world.verify().await;
        again.stop().await;
    }
}

#[tokio::test]
async fn a_crash_while_a_lane_is_opened_loses_and_doubles_nothing() {
    survives_crashes_at(&["lane_before_record", "lane_before_copy", "lane_after_copy", "lane_after_open"])
        .await;
}

#[tokio::test]
async fn a_crash_while_a_lane_runs_loses_and_doubles_nothing() {
    survives_crashes_at(&["lane_before_run", "lane_after_run", "lane_joining"]).await;
}

#[tokio::test]
async fn a_crash_while_a_lane_is_closed_loses_and_doubles_nothing() {
    survives_crashes_at(&["lane_before_close", "lane_before_drop", "lane_after_drop"]).await;
}

async fn lane_or_end(running: &mut Running) {
    let began = Instant::now();
    while !running.ends_within(Duration::from_millis(50)).await {
        if running.is_in_a_lane("redis").await || began.elapsed() > Duration::from_secs(20) {
            return;
        }
    }
}

#[tokio::test]
async fn two_sinks_may_be_dead_at_once() {
    let Shore { redis, world } = Shore::new().await;
    let bigquery = Hold::open();
    let running = world.with("FAILPOINTS", &bigquery.at("bigquery_before_append")).start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    bigquery.close();
    redis.set(Weather::Silent);
    overfill(&world).await;
    wait_until("Kafka holds all", async || world.kafka_events().await.len() >= 4_010).await;
    world.all_is_confirmed().await;
    for name in ["redis", "bigquery"] {
        assert!(running.sink(name).await["lane"].is_object());
    }
    bigquery.release();
    redis.set(Weather::Fair);
    world.wait_until_all_hold(4_010).await;
    for name in ["redis", "bigquery"] {
        has_no_lane(&running, name).await;
    }
    world.no_lane_is_left().await;
    world.verify().await;
    running.stop().await;
}

/// What only the lane's slot had is gone: that sink says so, and the others go on, over a restart too.
#[tokio::test]
async fn a_lane_that_is_lost_is_its_sinks_trouble_alone() {
    let Shore { redis, world } = Shore::new().await;
    let running = world.start().await;
    redis.set(Weather::Cut);
    for _ in 0..4 {
        world.insert_events(500).await;
    }
    lane_is(&running, "redis", "parked").await;
    world.all_is_confirmed().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "SELECT pg_drop_replication_slot(slot) FROM walcast.lane WHERE sink = 'redis'").await;
    redis.set(Weather::Fair);
    lane_is_lost(&running, "redis").await;
    running.kill().await;
    let running = world.start().await;
    lane_is_lost(&running, "redis").await;
    world.insert_events(100).await;
    wait_until("Kafka holds all", async || world.kafka_events().await.len() >= 2_100).await;
    assert_eq!(running.json("/readyz").await["ready"], true);
    let all = running.json("/readyz?sinks").await;
    assert_eq!(all["ready"], false, "{all}");
    world.all_is_confirmed().await;
    running.stop().await;
}

/// How many connections a dead target sees, whatever its client library likes to do.
#[tokio::test]
async fn a_dead_target_sees_one_probe_at_a_time_on_the_wire() {
    const PROBE_SECONDS: u64 = 2;
    let world = World::new(fresh_database(postgres()).await).await;
    let world = soon_full(&world)
        .with("BREAKER_PROBE_SECONDS", &PROBE_SECONDS.to_string())
        .with("BREAKER_FAILURES_MAX", "1");
    world.walcast(["init"]).await.expect(0, &[]);
    let wires = [
        ("kafka", Wire::to(port_of("KAFKA_BROKERS", 29092)).await),
        ("redis", Wire::to(world.redis_port()).await),
        ("bigquery", Wire::to(port_of("BIGQUERY_REST_URL", 29050)).await),
    ];
    let at = |index: usize| wires[index].1.port;
    let world = world
        .with("KAFKA_BROKERS", &format!("127.0.0.1:{}", at(0)))
        .with("REDIS_PORT", &at(1).to_string())
        .with("BIGQUERY_REST_URL", &format!("http://127.0.0.1:{}", at(2)));
    for (_, wire) in &wires {
        wire.set(Weather::Cut);
    }
    let running = world.start().await;
    for (name, _) in &wires {
        wait_until(&format!("the breaker of {name} is open"), async || {
            running.sink(name).await["breaker"] == "open"
        })
        .await;
    }
    let before: Vec<u64> = wires.iter().map(|(_, wire)| wire.accepted()).collect();
    let began = Instant::now();
    wait_until("each target has seen three probes", async || {
        wires.iter().zip(&before).all(|((_, wire), before)| wire.accepted() >= before + 3)
    })
    .await;
    let probes = began.elapsed().as_secs() / PROBE_SECONDS + 1;
    for ((name, wire), before) in wires.iter().zip(before) {
        let seen = wire.accepted() - before;
        // Kafka's client connects again and again while one probe lasts, and to more than one address of a name
        let most = if *name == "kafka" { 8 } else { 2 };
        assert!(seen <= probes * most, "{name}: {seen} connections in {probes} probes");
    }
    running.kill().await;
}

/// It takes rows all the time, and fewer than come.
#[tokio::test]
async fn a_sink_that_is_slower_than_the_stream_stays_in_its_lane() {
    let world = World::new(fresh_database(postgres()).await).await.with("PIPELINE_SINKS", "kafka,redis");
    let Shore { redis, world } = Shore::of(world).await;
    let running = world.start().await;
    world.insert_events(10).await;
    wait_until("Redis counts all", async || world.redis_plays().await >= 10).await;
    redis.set(Weather::Slow(2_500));
    // many times what Redis takes, on a machine with much else to do too
    let mut turns = tokio::time::interval(Duration::from_secs(1));
    let began = Instant::now();
    let mut events = 10;
    let mut joined = 0;
    while began.elapsed() < Duration::from_secs(15) {
        turns.tick().await;
        world.insert_events(3_000).await;
        events += 3_000;
        joined += u32::from(running.sink("redis").await["lane"]["state"] == "joining");
    }
    assert!(running.sink("redis").await["lane"].is_object());
    assert_eq!(joined, 0, "it does not come back as long as it cannot keep up");
    world.all_is_confirmed().await;
    redis.set(Weather::Fair);
    wait_until("Redis counts all", async || world.redis_plays().await >= events).await;
    has_no_lane(&running, "redis").await;
    world.verify().await;
    running.stop().await;
}

/// An instance that is paused between two steps of a lane wakes up after another has taken over.
async fn wakes_up_after_a_takeover_at(step: &str) {
    let Shore { redis, world } = Shore::new().await;
    let hold = Hold::open();
    let mut old = world.with("FAILPOINTS", &hold.at(step)).start().await;
    world.insert_events(100).await;
    world.wait_until_all_hold(100).await;
    hold.close();
    redis.set(Weather::Cut);
    for _ in 0..4 {
        world.insert_events(500).await;
    }
    if !old.is_in_a_lane("redis").await {
        lane_or_end(&mut old).await;
    }
    redis.set(Weather::Fair);
    hold.reached().await;
    old.send("STOP");
    hold.release();
    let client = sql::connect(&world.postgres).await.unwrap();
    let readers = "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots
        WHERE active_pid IS NOT NULL AND (slot_name = $1 OR slot_name IN (SELECT slot FROM walcast.lane))";
    client.query(readers, &[&world.postgres.slot]).await.unwrap();
    let new = world.start().await;
    world.insert_events(100).await;
    old.send("CONT");
    let code = old.ended().await;
    assert_eq!(code, Some(5), "{step}: {}", old.log.lock().await);
    world.wait_until_all_hold(2_200).await;
    has_no_lane(&new, "redis").await;
    new.stop().await;
    // what the old one may have left, the next start drops
    let next = world.start().await;
    world.no_lane_is_left().await;
    world.verify().await;
    next.stop().await;
}

#[tokio::test]
async fn an_old_instance_that_wakes_up_before_its_copy_changes_nothing() {
    wakes_up_after_a_takeover_at("lane_before_copy").await;
    wakes_up_after_a_takeover_at("lane_after_copy").await;
}

#[tokio::test]
async fn an_old_instance_that_wakes_up_before_its_drop_changes_nothing() {
    wakes_up_after_a_takeover_at("lane_before_close").await;
    wakes_up_after_a_takeover_at("lane_before_drop").await;
}

/// A standby makes a slot its own once that has moved on (PostgreSQL 17 and 18), which that of a parked lane does not: a failover
/// loses it, and with it that sink's rows alone.
#[tokio::test]
async fn a_failover_with_a_parked_lane_is_its_sinks_trouble_alone() {
    let pair = Pair::new("lanes").await;
    let world =
        World::new(fresh_database(pair.primary.clone()).await).await.with("PIPELINE_SINKS", "kafka,redis");
    let Shore { redis, world } = Shore::of(world).await;
    let running = world.start().await;
    world.insert_events(100).await;
    redis.set(Weather::Cut);
    for _ in 0..4 {
        world.insert_events(500).await;
    }
    lane_is(&running, "redis", "parked").await;
    world.all_is_confirmed().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let lane = "SELECT failover FROM pg_replication_slots WHERE slot_name IN (SELECT slot FROM walcast.lane WHERE sink = 'redis')";
    assert!(
        client.query_one(lane, &[]).await.unwrap().get::<_, bool>(0),
        "one that moves is kept on standbys"
    );
    pair.synced(&world).await;
    pair.level(&world).await;
    pair.kill_primary();
    running.kill().await;
    pair.promote().await;
    let after = pair.after(&world);
    redis.set(Weather::Fair);
    let running = after.start().await;
    after.insert_events(100).await;
    wait_until("Kafka holds all", async || after.kafka_events().await.len() >= 2_200).await;
    // a standby that looked at the copy before the walcast slot had moved on has kept it
    wait_until("Redis is whole, or says that it cannot be", async || {
        let line = running.sink("redis").await;
        line["lane"]["state"] == "lost" || line["lane"].is_null() && after.redis_plays().await >= 2_200
    })
    .await;
    match running.sink("redis").await["lane"].is_null() {
        true => after.verify().await,
        false => lane_is_lost(&running, "redis").await,
    }
    after.all_is_confirmed().await;
    running.stop().await;
    pair.wipe();
}

/// Topics and table are made as soon as there is somebody to make them.
#[tokio::test]
async fn targets_that_are_dead_at_the_very_first_start_are_prepared_when_they_answer() {
    let world = World::new(fresh_database(postgres()).await).await;
    let world = soon_full(&world).with("BREAKER_FAILURES_MAX", "1");
    // the tables and the slot, and nothing at the other targets
    world.with("PIPELINE_SINKS", "redis").walcast(["init"]).await.expect(0, &[]);
    let [kafka, bigquery] = [
        Wire::to(port_of("KAFKA_BROKERS", 29092)).await,
        Wire::to(port_of("BIGQUERY_REST_URL", 29050)).await,
    ];
    let world = world
        .with("KAFKA_BROKERS", &format!("127.0.0.1:{}", kafka.port))
        .with("BIGQUERY_REST_URL", &format!("http://127.0.0.1:{}", bigquery.port));
    for wire in [&kafka, &bigquery] {
        wire.set(Weather::Cut);
    }
    let running = world.start().await;
    world.insert_events(1_000).await;
    wait_until("Redis counts all", async || world.redis_plays().await >= 1_000).await;
    for wire in [&kafka, &bigquery] {
        wire.set(Weather::Fair);
    }
    for name in ["kafka", "bigquery"] {
        has_no_lane(&running, name).await;
    }
    world.wait_until_all_hold(1_000).await;
    world.verify().await;
    running.stop().await;
}

fn port_of(name: &str, default: u16) -> u16 {
    let address = std::env::var(name).unwrap_or_default();
    address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(default)
}

/// A lone sink has no lane to be left in: the whole stream begins again, and waits longer each time.
#[tokio::test]
async fn a_lone_table_that_loses_all_that_it_takes_is_not_hammered() {
    let server = BigQueryServer::start().await;
    let world = World::new(fresh_database(postgres()).await)
        .await
        .with("BIGQUERY_REST_URL", &server.url())
        .with("BIGQUERY_GRPC_URL", &server.url())
        .with("BIGQUERY_COMMIT_SECONDS", "1")
        .with("PIPELINE_SINKS", "bigquery");
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    // each life takes longer than the first waits, and comes to nothing at its end
    for _ in 0..30 {
        server.next(Call::BatchCommitWriteStreams, Refusal::Gone);
    }
    world.insert_events(10).await;
    wait_until("it says that this is odd", async || {
        let status = running.json("/api/status").await;
        status["problems"].to_string().contains("look at the target's log")
    })
    .await;
    let tries = server.seen(Call::BatchCommitWriteStreams).len();
    assert!(tries < 10, "{tries}");
    server.calm();
    let table = server.store().tables.keys().next().unwrap().clone();
    wait_until("the table has all", async || server.rows(&table).len() == 10).await;
    running.stop().await;
}
