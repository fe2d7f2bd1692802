//! Crashes and outages that have a name.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::kills::{PATIENCE, world};
use crate::support::wire::{Weather, Wire};
use crate::support::{env, run, wait_until};
use crate::{RATE_PER_MINUTE, is_long};
use walcast::source::sql;

/// What is replayed for the sink that is behind joins the content of its own time, not of now.
#[tokio::test]
async fn a_sink_that_is_behind_gets_the_records_that_the_others_got() {
    let world = world().await;
    let port =
        env("BIGQUERY_GRPC_URL", "http://127.0.0.1:29060").rsplit(':').next().unwrap().parse().unwrap();
    let wire = Wire::to(port).await;
    let world = world.with("BIGQUERY_GRPC_URL", &format!("http://127.0.0.1:{}", wire.port));
    world.walcast(["init"]).await.expect(0, &[]);
    wire.set(Weather::Cut);
    let running = world.start().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    for change in [
        "UPDATE content SET title = 'new', length_seconds = 7 WHERE slug = 'slug-1'",
        "UPDATE content SET content_type = 'video', title = 'newer' WHERE slug <> 'slug-3'",
        "ALTER TABLE engagement_events DROP CONSTRAINT engagement_events_content_id_fkey; DELETE FROM content",
        "UPDATE content SET slug = slug || '-again'",
    ] {
        world.insert_events(30).await;
        run(&client, change).await;
    }
    wait_until("Kafka is ahead", async || world.kafka_events().await.len() == 120).await;
    running.kill().await;
    wire.set(Weather::Fair);
    let running = world.start().await;
    world.verify().await;
    let titles = format!("SELECT DISTINCT title FROM {}.engagement_events", world.dataset);
    let titles: BTreeSet<String> =
        world.bigquery(&titles).await.iter().map(|row| row[0].to_string()).collect();
    assert!(titles.len() >= 5, "{titles:?}");
    running.stop().await;
}

/// Redis takes at most a thousand contents in a flush.
#[tokio::test]
async fn a_transaction_over_five_thousand_contents_survives_a_kill_between_each_pair_of_flushes() {
    let world = world().await;
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    let contents = "INSERT INTO content SELECT md5(i::text)::uuid, 's' || i, 't' || i, 'video', 60, now()
                    FROM generate_series(1, 5000) AS i";
    let events = "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
                  SELECT md5((1 + i % 5000)::text)::uuid, 'play', now(), 1000 + i FROM generate_series(1, 10000) AS i";
    run(&client, &format!("BEGIN; {contents}; {events}; COMMIT")).await;
    for life in 0..8 {
        let mut running = world.with("FAILPOINTS", "redis_after_flush=return").spawn();
        assert!(running.ends_within(2 * PATIENCE).await, "life {life}: {}", running.log.lock().await);
    }
    let running = world.start().await;
    world.verify().await;
    running.stop().await;
}

/// The others go on until the blocked sink's queue is full; then all wait, and PostgreSQL is still answered.
#[tokio::test]
async fn a_blocked_sink_holds_the_others_only_once_its_queue_is_full_and_no_connection_breaks() {
    let world = world().await;
    let wire = Wire::to(env("REDIS_PORT", "26379").parse().unwrap()).await;
    let world = world.with_all([
        ("REDIS_PORT".into(), wire.port.to_string()),
        ("PIPELINE_QUEUE_BYTES_MAX".into(), (4 << 20).to_string()),
    ]);
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, &format!("ALTER DATABASE {} SET wal_sender_timeout = '2s'", world.postgres.db)).await;
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;

    wire.set(Weather::Silent);
    let blocked = Instant::now();
    world.insert_events(10).await;
    wait_until("Kafka goes on", async || world.kafka_events().await.len() == 20).await;
    let load = world.generate(RATE_PER_MINUTE);
    wait_until("the queue of Redis is full", async || {
        running.metrics().await.contains("walcast_backpressure_active{sink=\"redis\"} 1")
    })
    .await;
    let kafka = world.kafka_events().await.len();
    let blocked_for = Duration::from_secs(if is_long() { 180 } else { 15 });
    tokio::time::sleep(blocked_for.saturating_sub(blocked.elapsed())).await;
    drop(load);
    assert!(world.kafka_events().await.len() < kafka + 50_000, "queues have no bound");

    wire.set(Weather::Fair);
    world.verify().await;
    let log = running.log.lock().await.clone();
    assert!(!log.contains("starting again"), "{log}");
    running.stop().await;
}
