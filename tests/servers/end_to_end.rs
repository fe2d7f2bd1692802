//! The whole service on real servers, run as users run it.

use crate::support::services;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::world::World;
use crate::support::{DEADLINE, fresh_database, run, wait_until};
use walcast::lsn::Lsn;
use walcast::source::sql;

#[tokio::test]
async fn every_event_reaches_every_sink_once_over_restarts_and_kills() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(100).await;
    world.wait_until_all_hold(100).await;
    running.stop().await;
    world.insert_events(100).await;
    let running = world.start().await;
    world.wait_until_all_hold(200).await;
    world.insert_events(1000).await;
    running.kill().await;
    let running = world.start().await;
    world.wait_until_all_hold(1200).await;
    running.stop().await;
    world.check_each_once(1200).await;
}

#[tokio::test]
async fn the_sinks_show_the_joined_record() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(3).await;
    world.wait_until_all_hold(3).await;
    for event in world.kafka_events().await {
        let content = event["content_id"].as_str().unwrap();
        let number = content.chars().last().unwrap();
        assert_eq!(event["title"], format!("title {number}"));
        assert_eq!(
            (event["engagement_seconds"].as_f64(), event["engagement_pct"].as_f64()),
            (Some(1.0), Some(1.0))
        );
        assert_eq!(event["raw_payload"]["i"].as_i64(), event["event_id"].as_i64());
    }
    let query = format!(
        "SELECT content_type, AVG(engagement_pct) FROM {}.engagement_events WHERE DATE(event_ts) = CURRENT_DATE() GROUP BY content_type",
        world.dataset
    );
    let rows = world.bigquery(&query).await;
    assert_eq!((rows[0][0].as_str(), rows[0][1].as_str()), (Some("podcast"), Some("1.0")));
    let mut redis = world.redis().await;
    let range =
        || redis::cmd("ZRANGE").arg("top_engagement:10min").arg(0).arg(-1).arg("WITHSCORES").to_owned();
    wait_until("the board shows all three", async || {
        let mut redis = world.redis().await;
        let board: Vec<(String, f64)> = range().query_async(&mut redis).await.unwrap();
        board.len() == 3 && board.iter().all(|(_, seconds)| *seconds == 1.0)
    })
    .await;
    let title: String = redis::cmd("HGET")
        .arg("content:00000000-0000-0000-0000-000000000001")
        .arg("title")
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(title, "title 1");
    running.stop().await;
}

#[tokio::test]
async fn versions_of_content_that_no_start_can_ask_for_are_deleted() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let running = world.start().await;
    world.insert_events(1).await;
    for title in ["first", "second"] {
        run(&client, &format!("UPDATE content SET title = '{title}'")).await;
    }
    let insert =
        "INSERT INTO content (id, slug, title, publish_ts) VALUES (gen_random_uuid(), 'gone', '', now())";
    run(&client, insert).await;
    run(&client, "DELETE FROM content WHERE slug = 'gone'").await;
    world.insert_events(1).await;
    world.wait_until_all_hold(2).await;
    running.stop().await;
    assert_eq!(world.content_versions().await, 3 * 3 + 2, "all are there while they may be asked for");

    // a life prunes at its first flush what the ones before it have left
    let running = world.start().await;
    world.insert_events(1).await;
    wait_until("one version of each row is left", async || world.content_versions().await == 3).await;
    running.stop().await;
}

#[tokio::test]
async fn an_event_replayed_after_content_changed_sees_it_as_it_was() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(3).await;
    world.wait_until_all_hold(3).await;
    running.stop().await;
    // While walcast is down: an event, then a change of its content, then another event.
    world.insert_events(1).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "UPDATE content SET title = 'changed', length_seconds = 50").await;
    world.insert_events(1).await;
    let running = world.start().await;
    world.wait_until_all_hold(5).await;
    let mut titles: Vec<(i64, String)> = world
        .kafka_events()
        .await
        .iter()
        .map(|event| (event["event_id"].as_i64().unwrap(), event["title"].as_str().unwrap().to_owned()))
        .collect();
    titles.sort();
    assert_eq!((titles[3].1.as_str(), titles[4].1.as_str()), ("title 2", "changed"));
    running.stop().await;
}

#[tokio::test]
async fn the_slot_is_never_ahead_of_a_sink_while_under_load() {
    let world = World::initialised().await;
    let running = world.start().await;
    // After each commit: the WAL's end, and how many events there are below it.
    let committed = Arc::new(Mutex::new(Vec::<(Lsn, usize)>::new()));
    let enough = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (world, committed, enough) = (world.clone(), Arc::clone(&committed), Arc::clone(&enough));
        async move {
            let mut events = 0;
            while !enough.load(Ordering::Relaxed) {
                world.insert_events(20).await;
                events += 20;
                let end = world.wal_end().await;
                committed.lock().unwrap().push((end, events));
            }
            events
        }
    });
    let mut seen = 0;
    for _ in 0..5 {
        // The slot first: whatever is below it must be in the sinks already.
        let mut confirmed = Lsn::ZERO;
        let below = |confirmed: Lsn| {
            let committed = committed.lock().unwrap();
            committed
                .iter()
                .filter(|(end, _)| *end <= confirmed)
                .map(|(_, events)| *events)
                .max()
                .unwrap_or(0)
        };
        let begun = Instant::now();
        while below(confirmed) <= seen {
            confirmed = world.confirmed_lsn().await;
            assert!(begun.elapsed() < Duration::from_secs(60), "the slot does not move");
        }
        seen = below(confirmed);
        world.check_all_hold_at_least(seen).await;
    }
    enough.store(true, Ordering::Relaxed);
    let events = load.await.unwrap();
    world.wait_until_all_hold(events).await;
    running.stop().await;
}

#[tokio::test]
async fn foreign_wal_while_idle_moves_the_slot() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(1).await;
    world.wait_until_all_hold(1).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "CREATE TABLE foreign_table (text TEXT)").await;
    // the second time the slot stands in foreign WAL already
    for _ in 0..2 {
        run(&client, "INSERT INTO foreign_table SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
            .await;
        let end = world.wal_end().await;
        wait_until("the slot has passed the foreign WAL", async || world.confirmed_lsn().await >= end).await;
    }
    running.stop().await;
    let running = world.start().await;
    world.insert_events(1).await;
    world.wait_until_all_hold(2).await;
    running.stop().await;
}

#[tokio::test]
async fn a_fast_shutdown_of_postgresql_is_not_held_up() {
    let server = services::postgres("17:shutdown", &[]);
    let world = World::new(fresh_database(server).await).await;
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    let load = tokio::spawn({
        let client = sql::connect(&world.postgres).await.unwrap();
        async move {
            let insert = "INSERT INTO engagement_events (event_type, event_ts) SELECT 'play', now() FROM generate_series(1, 100)";
            while client.batch_execute(insert).await.is_ok() {}
        }
    });
    wait_until("events flow", async || !world.kafka_events().await.is_empty()).await;
    let begun = Instant::now();
    services::command(&["postgres", "17:shutdown", "down"]);
    // a minute if it waits for its wal_sender_timeout
    assert!(begun.elapsed() < DEADLINE, "the shutdown took {:?}", begun.elapsed());
    load.await.unwrap();
    services::command(&["postgres", "17:shutdown", "up"]);
    let client = sql::connect(&world.postgres).await.unwrap();
    let count =
        client.query_one("SELECT count(*) FROM engagement_events", &[]).await.unwrap().get::<_, i64>(0);
    wait_until("every event is in Kafka", async || world.kafka_events().await.len() as i64 >= count).await;
    assert_eq!(world.kafka_events().await.len() as i64, count);
    running.stop().await;
    services::command(&["postgres", "17:shutdown", "down"]);
}

/// True end to end: what is timed went through PostgreSQL's WAL, and rows are not needed for it.
#[tokio::test]
async fn heartbeats_are_timed_to_every_sink_while_no_rows_come() {
    let world = World::initialised().await;
    let running = world.start().await;
    for sink in ["content", "kafka", "redis", "bigquery"] {
        let took = format!("walcast_sink_heartbeat_seconds{{sink=\"{sink}\"}} ");
        wait_until(&took, async || {
            let metrics = running.metrics().await;
            let line = metrics.lines().find_map(|line| line.strip_prefix(&took));
            line.is_some_and(|seconds| (0.0..60.0).contains(&seconds.parse::<f64>().unwrap()))
        })
        .await;
    }
    running.stop().await;
}

#[tokio::test]
async fn an_error_that_comes_again_and_again_is_one_line_and_then_a_count() {
    let world = World::initialised().await;
    let running = world.with("REDIS_PORT", "1").spawn();
    wait_until("the count is told", async || running.log.lock().await.contains("repeated\":")).await;
    let log = running.log.lock().await.clone();
    let ours = |line: &&str| line.contains("does not answer as it should") && line.contains("sink::driver");
    let told: Vec<&str> = log.lines().filter(ours).collect();
    assert_eq!(told.len(), 2, "{log}");
    let count = told[1].split("repeated\":").nth(1).unwrap();
    let count: u64 = count.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
    assert!(count >= 3, "{count}");
    running.kill().await;
}
