//! No value that PostgreSQL takes stops the stream, and all readers of it see the same.

use walcast::source::sql;

use crate::support::world::World;
use crate::support::{run, wait_until};

/// Calendars end where some libraries' instants do not reach.
#[tokio::test]
async fn times_work_to_the_last_microsecond_of_the_year_9999() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let insert = "
        INSERT INTO content (id, slug, title, content_type, length_seconds, publish_ts) VALUES
          ('00000000-0000-0000-0000-000000000001', 'first', 'first', 'podcast', 100, '0001-01-01 00:00:00+00'),
          ('00000000-0000-0000-0000-000000000002', 'last', 'last', 'podcast', 100, '9999-12-31 23:59:59.999999+00')
        ON CONFLICT DO NOTHING;
        INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
        SELECT content.id, 'play', at, 1000 FROM content,
          unnest('{0001-01-01 00:00:00+00, 9999-12-30 22:00:00+00, 9999-12-31 00:00:00+00, 9999-12-31 23:59:59.999999+00}'::timestamptz[]) AS at";
    let running = world.start().await;
    run(&client, insert).await;
    world.verify().await;
    running.stop().await;
    let running = world.start().await;
    run(&client, insert).await;
    world.verify().await;
    running.stop().await;
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 16 events"]);
    let running = world.start().await;
    run(&client, insert).await;
    world.verify().await;
    running.stop().await;
}

/// What JSON allows and jsonb does not: half of a surrogate pair. A service that refuses it refuses that row alone.
#[tokio::test]
async fn half_a_surrogate_pair_is_at_most_one_sinks_dead_letter() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "ALTER TABLE engagement_events ALTER raw_payload TYPE json USING raw_payload::json").await;
    let running = world.start().await;
    world.insert_events(3).await;
    run(
        &client,
        r#"INSERT INTO engagement_events (event_type, event_ts, duration_ms, device, raw_payload)
           VALUES ('play', now(), 1000, 'tv', '{"canary-payload":"canary\ud800"}')"#,
    )
    .await;
    world.insert_events(3).await;
    wait_until("BigQuery has the others", async || world.bigquery_ids().await.len() >= 6).await;
    world.verify().await;
    let log = running.log.lock().await.clone();
    assert!(!log.contains("canary"), "{log}");
    running.stop().await;
}
