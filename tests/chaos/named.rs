//! Crashes and outages that have a name.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::kills::{PATIENCE, world};
use crate::support::wire::{Weather, Wire};
use crate::support::{DEADLINE, env, run, wait_until, wait_until_within};
use crate::{RATE_PER_MINUTE, is_long};
use tokio_postgres::Client;
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

/// Returns when the reader of the slot has answered PostgreSQL so many seconds from now.
async fn answered_for(client: &Client, slot: &str, seconds: i32) {
    let now = "SELECT clock_timestamp()::text";
    let begun: String = client.query_one(now, &[]).await.unwrap().get(0);
    let answered = "SELECT reply_time >= $1::text::timestamptz + make_interval(secs => $2::int)
                    FROM pg_stat_replication JOIN pg_replication_slots ON pid = active_pid WHERE slot_name = $3";
    let within = Duration::from_secs(seconds as u64) + DEADLINE;
    wait_until_within(within, "PostgreSQL is answered", async || {
        let row = client.query_opt(answered, &[&begun, &seconds, &slot]).await.unwrap();
        row.is_some_and(|row| row.get(0))
    })
    .await;
}

/// A sink that takes nothing and says nothing leaves the others once its queue is full; these go on, and PostgreSQL is answered
/// on both streams, however long that lasts.
#[tokio::test]
async fn a_blocked_sink_leaves_the_others_once_its_queue_is_full_and_no_connection_breaks() {
    let world = world().await.with("PIPELINE_SINKS", "kafka,redis");
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
    wait_until("Redis counts all", async || world.redis_plays().await == 10).await;

    wire.set(Weather::Silent);
    let load = world.generate(RATE_PER_MINUTE);
    wait_until("Redis has left the others", async || running.is_in_a_lane("redis").await).await;
    let end = world.wal_end().await;
    wait_until("the others are confirmed beyond that", async || world.confirmed_lsn().await >= end).await;
    let time_outs = if is_long() { 90 } else { 3 };
    answered_for(&client, &world.postgres.slot, 2 * time_outs).await;
    drop(load);

    wire.set(Weather::Fair);
    world.verify().await;
    let log = running.log.lock().await.clone();
    assert!(!log.contains("starting again"), "{log}");
    running.stop().await;
}
