//! What a sink that has fallen behind may keep of PostgreSQL's WAL, and that it is given up beyond that, alone.

use std::time::Duration;

use serde_json::Value;
use walcast::source::sql;

use crate::support::running::Running;
use crate::support::wire::{Weather, Wire};
use crate::support::world::World;
use crate::support::{run, wait_until};

/// Slots keep the WAL of the whole cluster, and other tests write too.
const BYTES_MAX: &str = "60000000";

struct Limited {
    redis: Wire,
    world: World,
    running: Running,
}

/// Redis has fallen behind, with a slot that may keep little.
async fn fallen_behind(weather: Weather, failpoints: &str) -> Limited {
    let world = World::initialised().await.with("PIPELINE_SINKS", "kafka,redis");
    let redis = Wire::to(world.redis_port()).await;
    let world = world
        .with("PIPELINE_QUEUE_BYTES_MAX", "300000")
        .with("BREAKER_PROBE_SECONDS", "1")
        .with("LANE_WAL_BYTES_MAX", BYTES_MAX)
        .with("REDIS_PORT", &redis.port.to_string());
    let running = world.with("FAILPOINTS", failpoints).start().await;
    world.insert_events(10).await;
    wait_until("Redis counts all", async || world.redis_plays().await >= 10).await;
    redis.set(weather);
    world.insert_events(1_000).await;
    Limited { redis, world, running }
}

async fn lane_of_redis(running: &Running) -> Value {
    let status = running.json("/api/status").await;
    let sinks = status["sinks"].as_array().unwrap();
    sinks.iter().find(|sink| sink["name"] == "redis").unwrap()["lane"].clone()
}

async fn is_given_up(running: &Running) {
    wait_until("what Redis lacks is given up", async || {
        let lane = lane_of_redis(running).await;
        let why = lane["last_error"].as_str().unwrap_or_default().to_owned();
        lane["state"] == "lost" && why.contains("lane.wal_bytes_max") && lane["last_error_code"] == "WC-409"
    })
    .await;
}

async fn no_slot_is_left(world: &World) {
    let client = sql::connect(&world.postgres).await.unwrap();
    let slots = "SELECT count(*) FROM pg_replication_slots JOIN walcast.lane ON slot_name = slot";
    wait_until("its slot is gone", async || {
        client.query_one(slots, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
}

/// More than a slot may keep. WAL is kept from a little before what it is told.
async fn write_more_wal_than_may_be_kept(world: &World) {
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, &format!("SELECT pg_logical_emit_message(false, 'test', repeat('x', {BYTES_MAX}))")).await;
}

#[tokio::test]
async fn a_dead_sink_that_keeps_too_much_wal_is_given_up_and_gets_a_new_start() {
    let Limited { redis, world, running } = fallen_behind(Weather::Cut, "").await;
    wait_until("it has a lane", async || running.is_in_a_lane("redis").await).await;
    write_more_wal_than_may_be_kept(&world).await;
    is_given_up(&running).await;
    no_slot_is_left(&world).await;
    world.walcast(["check"]).await.expect(2, &["WC-409", "given up (it kept more than lane.wal_bytes_max)"]);
    wait_until("Kafka holds all", async || world.kafka_events().await.len() >= 1_010).await;
    // nothing comes to it any more, over a restart too
    running.kill().await;
    redis.set(Weather::Fair);
    let running = world.start().await;
    is_given_up(&running).await;
    running.stop().await;
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 1010 events"]);
    let running = world.start().await;
    world.insert_events(10).await;
    wait_until("Redis counts all", async || world.redis_plays().await >= 1_020).await;
    assert!(lane_of_redis(&running).await.is_null());
    world.verify().await;
    running.stop().await;
}

#[tokio::test]
async fn a_sink_that_is_slower_for_good_is_given_up_while_it_reads() {
    let Limited { redis: _redis, world, running } = fallen_behind(Weather::Slow(20_000), "").await;
    // at 20 kB a second more than it takes in the time of this test
    let client = sql::connect(&world.postgres).await.unwrap();
    let contents = "INSERT INTO content SELECT gen_random_uuid(), 'slow-' || gen_random_uuid(), repeat('t', 500), 'podcast', 100, now()
                    FROM generate_series(1, 4000)";
    run(&client, contents).await;
    wait_until("it has a lane, and reads", async || {
        // other tests' WAL may have been too much already
        ["catching-up", "lost"].contains(&lane_of_redis(&running).await["state"].as_str().unwrap_or_default())
    })
    .await;
    write_more_wal_than_may_be_kept(&world).await;
    is_given_up(&running).await;
    no_slot_is_left(&world).await;
    running.stop().await;
}

#[tokio::test]
async fn a_crash_between_the_record_and_the_slots_end_leaves_no_slot() {
    let Limited { redis: _redis, world, mut running } =
        fallen_behind(Weather::Cut, "lane_given_up=return").await;
    while !running.is_in_a_lane("redis").await && !running.ends_within(Duration::from_millis(50)).await {}
    write_more_wal_than_may_be_kept(&world).await;
    assert_eq!(running.ended().await, None, "{}", running.log.lock().await);
    let again = world.start().await;
    is_given_up(&again).await;
    no_slot_is_left(&world).await;
    again.stop().await;
}
