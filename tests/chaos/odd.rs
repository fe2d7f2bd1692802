//! Transactions as nobody writes them on purpose: huge ones, huge rows, very many, interleaved, half undone, with
//! DDL in the middle. Every event arrives once, and memory stays bounded.
//!
//! `KILLS=200`, the long form of the crash tests, makes these as large as the promise is.

use crate::support::run;
use crate::support::running::Running;
use crate::support::world::World;
use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::Client;
use walcast::source::sql;

/// What walcast may take, in megabytes.
const RSS_MAX_MB: u64 = 150;

/// `long` in the long form, else `short`.
fn size(short: u32, long: u32) -> u32 {
    let is_long = std::env::var("KILLS").is_ok_and(|kills| kills.parse::<u32>().unwrap() >= 200);
    if is_long { long } else { short }
}

async fn stage() -> (World, Running, Client) {
    let world = World::initialised().await;
    let running = world.start().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    (world, running, client)
}

/// All is there, and never was there more in memory than allowed.
async fn end(world: World, running: Running, more_mb: u64) {
    world.verify().await;
    let peak = running.peak_rss_mb();
    println!("peak RSS {peak} MB");
    assert!(peak <= RSS_MAX_MB + more_mb, "{peak} MB");
    running.stop().await;
}

const EVENT: &str = "INSERT INTO engagement_events (event_type, event_ts, duration_ms, device, raw_payload)";

#[tokio::test]
async fn a_transaction_of_a_million_rows() {
    let (world, running, client) = stage().await;
    let rows = size(150_000, 1_000_000);
    let select = "SELECT 'play', now(), i, 'tv', jsonb_build_object('i', i, 'note', repeat('x', 80))";
    run(&client, &format!("{EVENT} {select} FROM generate_series(1, {rows}) AS i")).await;
    end(world, running, 0).await;
}

#[tokio::test]
async fn a_row_of_fifty_megabytes_goes_on_without_its_payload() {
    let (world, running, client) = stage().await;
    world.insert_events(3).await;
    let payload = "jsonb_build_object('big', string_agg(md5(i::text), ''))";
    let big =
        format!("{EVENT} SELECT 'play', now(), 1, 'tv', {payload} FROM generate_series(1, 1600000) AS i");
    run(&client, &big).await;
    world.insert_events(3).await;
    world.verify().await;
    let events = world.kafka_events().await;
    let big = events.iter().find(|event| event["raw_payload"].is_null()).expect("an event without payload");
    assert!(big["raw_payload_bytes"].as_i64().unwrap() > 50_000_000, "{}", big["raw_payload_bytes"]);
    end(world, running, 60).await;
}

#[tokio::test]
async fn very_many_transactions_of_one_row() {
    let (world, running, client) = stage().await;
    let count = size(10_000, 100_000);
    let one = format!("{EVENT} VALUES ('click', now(), i, NULL, NULL); COMMIT;");
    run(&client, &format!("DO $$ BEGIN FOR i IN 1..{count} LOOP {one} END LOOP; END $$")).await;
    end(world, running, 0).await;
}

#[tokio::test]
async fn interleaved_copied_and_half_undone_transactions_with_ddl_in_between() {
    let (world, running, first) = stage().await;
    let second = sql::connect(&world.postgres).await.unwrap();
    let events = |from: u32, to: u32| {
        format!("{EVENT} SELECT 'pause', now(), i, 'web', NULL FROM generate_series({from}, {to}) AS i")
    };
    world.insert_events(1).await;
    run(&first, "BEGIN").await;
    run(&second, "BEGIN").await;
    for round in 0..20 {
        run(&first, &events(10 * round, 10 * round + 9)).await;
        run(&second, &events(1_000 + 10 * round, 1_000 + 10 * round + 9)).await;
        run(&second, "UPDATE content SET title = title || '.'; SAVEPOINT s").await;
        run(&second, &events(1, 5)).await;
        run(&second, "DELETE FROM content WHERE slug = 'gone'; ROLLBACK TO SAVEPOINT s").await;
    }
    copy(&first, 500).await;
    run(&second, "COMMIT").await;
    run(&first, "SAVEPOINT outer_one").await;
    run(&first, "TRUNCATE engagement_events; ROLLBACK TO SAVEPOINT outer_one").await;
    run(&first, "COMMIT").await;

    run(&first, "ALTER TABLE engagement_events ADD COLUMN extra TEXT DEFAULT 'more'").await;
    run(&first, &events(1, 50)).await;
    run(&first, "BEGIN").await;
    run(&first, &events(1, 50)).await;
    run(
        &first,
        "ALTER TABLE engagement_events DROP COLUMN extra; ALTER TABLE content ADD COLUMN extra INTEGER",
    )
    .await;
    run(&first, &events(1, 50)).await;
    run(&first, "INSERT INTO content (id, slug, title, publish_ts, extra) VALUES (gen_random_uuid(), 'late', 'late', now(), 1)").await;
    run(&first, "COMMIT").await;
    world.insert_events(10).await;
    end(world, running, 0).await;
}

async fn copy(client: &Client, rows: u32) {
    let copy = "COPY engagement_events (event_type, event_ts, duration_ms) FROM STDIN";
    let mut sink = std::pin::pin!(client.copy_in::<_, Bytes>(copy).await.unwrap());
    let row = |i: u32| Bytes::from(format!("finish\t2026-01-01 00:00:00+00\t{i}\n"));
    for i in 0..rows {
        sink.send(row(i)).await.unwrap();
    }
    sink.finish().await.unwrap();
}
