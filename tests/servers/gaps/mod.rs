//! Where what the sinks hold and what the slot can still deliver do not meet, walcast stops with exit code 4: it
//! says so within ten seconds, with both positions and what mends it, and no event is skipped in silence.

mod source;
mod targets;

use std::time::{Duration, Instant};

use crate::support::running::Running;
use crate::support::world::World;
use crate::support::{fresh_database, wait_until};
use walcast::source::PostgresConfig;

/// How soon a fault that can be noticed must have ended the process.
const SOON: Duration = Duration::from_secs(10);

/// The process ends soon with exit code 4, and says these words.
async fn ends_in_a_resync(mut running: Running, words: &[&str]) {
    let begun = Instant::now();
    let code = running.ended().await;
    let took = begun.elapsed();
    let log = running.log.lock().await;
    assert_eq!(code, Some(4), "{log}");
    for word in words {
        assert!(log.contains(word), "no {word:?} in: {log}");
    }
    assert!(took <= SOON, "it took {took:?}");
}

/// A start ends soon with exit code 4, and says these words.
async fn start_ends_in_a_resync(world: &World, words: &[&str]) {
    ends_in_a_resync(world.spawn(), words).await;
}

/// A world on a database of its own with only these sinks, after `walcast init`.
async fn world_of(server: PostgresConfig, sinks: &str) -> World {
    let world = World::new(fresh_database(server).await).await.with("PIPELINE_SINKS", sinks);
    world.walcast(["init"]).await.expect(0, &[]);
    world
}

/// Waits until Kafka has so many events.
async fn kafka_has(world: &World, events: usize) {
    wait_until("Kafka has all", async || world.kafka_events().await.len() >= events).await;
}

/// Waits until Redis has counted so many events.
async fn redis_has(world: &World, events: i64) {
    wait_until("Redis has all", async || world.redis_plays().await >= events).await;
}

/// Starts walcast, and lets it bring ten events to Redis.
async fn streaming_to_redis(world: &World) -> Running {
    let running = world.start().await;
    let before = world.redis_plays().await;
    world.insert_events(10).await;
    redis_has(world, before + 10).await;
    running
}

/// Starts walcast, and lets it bring ten events to Kafka.
async fn streaming_to_kafka(world: &World) -> Running {
    let running = world.start().await;
    let before = world.kafka_events().await.len();
    world.insert_events(10).await;
    kafka_has(world, before + 10).await;
    running
}
