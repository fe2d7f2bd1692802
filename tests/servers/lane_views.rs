//! What the operator is told of a sink that has fallen behind, by every command that looks, and what mends one that is lost.

use serde_json::Value;
use walcast::source::sql;

use crate::support::running::Running;
use crate::support::wire::{Weather, Wire};
use crate::support::world::World;
use crate::support::{run, wait_until};

async fn redis(running: &Running) -> Value {
    let status = running.json("/api/status").await;
    status["sinks"].as_array().unwrap().iter().find(|sink| sink["name"] == "redis").unwrap().clone()
}

async fn kept_is(running: &Running, wal_status: &str) {
    wait_until(&format!("the slot is {wal_status}"), async || {
        redis(running).await["lane"]["kept"]["wal_status"] == wal_status
    })
    .await;
}

#[tokio::test]
async fn a_sink_in_a_lane_is_told_by_all_and_a_rebuild_mends_one_that_is_lost() {
    let world = World::initialised().await;
    let wire = Wire::to(world.redis_port()).await;
    let cut_off = world
        .with("PIPELINE_QUEUE_BYTES_MAX", "300000")
        .with("BREAKER_PROBE_SECONDS", "1")
        .with("BIGQUERY_COMMIT_SECONDS", "1")
        .with("REDIS_PORT", &wire.port.to_string());
    let running = cut_off.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    wire.set(Weather::Cut);
    world.insert_events(500).await;
    let end = world.wal_end().await;
    wait_until("it is parked", async || redis(&running).await["lane"]["state"] == "parked").await;
    wait_until("the walcast slot moves on", async || world.confirmed_lsn().await >= end).await;
    kept_is(&running, "reserved").await;
    let line = redis(&running).await;
    assert!(line["lane"]["kept"]["retained_bytes"].as_u64() > Some(0), "{line}");
    assert!(line["lane"]["behind_bytes"].as_u64() > Some(0), "{line}");
    assert!(line["breaker"] == "open" && line["failing_seconds"].is_number(), "{line}");
    let metrics = running.metrics().await;
    assert!(metrics.contains("walcast_lane_active{sink=\"redis\"} 1"), "{metrics}");
    assert!(metrics.contains("walcast_lane_lost{sink=\"redis\"} 0"), "{metrics}");
    // asked where it stands by itself, Redis answers here
    let lane = "redis has fallen behind";
    world.walcast(["check"]).await.expect(0, &["lane of redis", "its own slot begins at"]);
    world.walcast(["verify", "--wait-seconds", "1"]).await.expect(1, &[lane, "--wait-seconds"]);

    // it does not run, and so does not notice
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "SELECT pg_drop_replication_slot(slot) FROM walcast.lane WHERE sink = 'redis'").await;
    kept_is(&running, "missing").await;
    let problems = running.json("/api/status").await["problems"].to_string();
    assert!(problems.contains("WC-409") && problems.contains("walcast rebuild"), "{problems}");
    assert!(running.metrics().await.contains("walcast_lane_lost{sink=\"redis\"} 1"));
    world.walcast(["check"]).await.expect(2, &["WC-409", "walcast rebuild redis"]);

    running.stop().await;
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 510 events"]);
    wire.set(Weather::Fair);
    let running = cut_off.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(520).await;
    assert!(redis(&running).await["lane"].is_null());
    world.verify().await;
    running.stop().await;
}
