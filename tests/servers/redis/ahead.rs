//! Events dated further ahead than `redis.future_hours_max`.

use walcast::sink::Sink;
use walcast::sink::read_back::KeyState;
use walcast::source::sql;

use super::read_back::{compared, read_beside};
use super::{recovered, refused, told, write};
use crate::support::redis_server::{connect, fresh_database, id_text, public, run};
use crate::support::story::{HOUR, Story, Time};
use crate::support::world::World;
use crate::support::{self, wait_until};
use walcast::error::Code;

/// How many keys there may be of some events: day, minute and three buckets.
const KEYS_OF_AN_EVENT: i64 = 5;

#[tokio::test]
async fn thirty_thousand_events_up_to_ten_years_ahead_take_no_room() {
    let world = World::new(support::fresh_database(support::postgres()).await).await;
    let world = world.with("PIPELINE_SINKS", "redis");
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    let contents = "INSERT INTO content SELECT md5(i::text)::uuid, 's' || i, 't' || i, 'video', 60, now()
                    FROM generate_series(0, 99) AS i";
    let events = "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
                  SELECT md5((i % 100)::text)::uuid, 'play', now() + i * interval '175 minutes', 1000
                  FROM generate_series(0, 29999) AS i";
    let running = world.start().await;
    support::run(&client, &format!("{contents}; {events}")).await;
    let mut redis = world.redis().await;
    let total = uuid::Uuid::from_bytes(md5_of_99(&client).await);
    let mut all = redis::cmd("HGET");
    all.arg("walcast:all").arg(total.as_bytes());
    wait_until("all count for all time", async || {
        all.query_async::<Option<i64>>(&mut redis.clone()).await.unwrap() == Some(300_000)
    })
    .await;
    world.verify().await;
    // of 48 hours are 17 events; the checkpoint, the sums and bits, four boards and one of a type
    let few = 100 + 17 * KEYS_OF_AN_EVENT + 3 + 5;
    let keys: i64 = run(&mut redis, &["DBSIZE"]).await;
    assert!(keys <= few, "{keys} keys");
    let bits: i64 = run(&mut redis, &["MEMORY", "USAGE", "walcast:ahead"]).await;
    assert!(bits < 1_100_000, "{bits} bytes");
    let metrics = running.metrics().await;
    let told = metrics.lines().filter(|line| line.contains("redis_ahead")).collect::<Vec<_>>();
    assert_eq!(told.last(), Some(&"walcast_redis_ahead_events_total 29983"), "{told:?}");
    let log = running.log.lock().await.clone();
    assert!(log.contains("future_hours_max") && log.matches("dated further ahead").count() < 10, "{log}");
    running.stop().await;

    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 30000 events"]);
    let running = world.start().await;
    support::run(&client, events).await;
    wait_until("they count again", async || {
        all.query_async::<Option<i64>>(&mut redis.clone()).await.unwrap() == Some(600_000)
    })
    .await;
    world.verify().await;
    let keys: i64 = run(&mut redis, &["DBSIZE"]).await;
    assert!(keys <= few + 17 * KEYS_OF_AN_EVENT, "{keys} keys");
    running.stop().await;
}

async fn md5_of_99(client: &tokio_postgres::Client) -> [u8; 16] {
    let id: uuid::Uuid = client.query_one("SELECT md5('99')::uuid", &[]).await.unwrap().get(0);
    id.into_bytes()
}

/// What came too early stays out when its time comes, and nobody takes that for a loss.
#[tokio::test]
async fn a_key_that_lacks_what_came_too_early_is_judged_mildly_and_no_other_is() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.time.pass(-60 * HOUR);
    story.event(Some(1), Some("play"), -60 * HOUR, Some(500)).event(None, Some("click"), -60 * HOUR, None);
    story.event(Some(3), Some("play"), -47 * HOUR, Some(50)).commit();
    let mut sink = told(&config, &story).await;
    let checkpoint = story.end();
    story.time.pass(60 * HOUR);
    story.event(Some(1), Some("play"), 0, Some(70)).event(Some(2), Some("play"), 0, Some(80)).commit();
    write(&mut sink, &story.beyond(checkpoint, 100)).await;

    let reading = read_beside(&mut sink, &config, &story.time).await;
    let found = compared(&story, &reading);
    let others: Vec<_> =
        found.iter().filter(|one| ![KeyState::Same, KeyState::Less].contains(&one.state)).collect();
    assert!(others.is_empty(), "{others:?}");
    let less: Vec<_> = found.iter().filter(|one| one.state == KeyState::Less).map(|one| &one.key).collect();
    assert_eq!(less.len(), 1 + 1 + 3, "day, minute, buckets: {less:?}");
    assert!(less.iter().all(|key| !key.contains(&id_text(2))), "{less:?}");

    // neither more than there may be, nor less where nothing came too early
    let mut connection = connect(&config).await;
    let days: Vec<String> = run(&mut connection, &["KEYS", "engagement:*"]).await;
    for (n, plays, state) in [(1, "3", KeyState::More), (2, "0", KeyState::Different)] {
        let day = days.iter().filter(|key| key.contains(&id_text(n))).max().unwrap();
        run::<()>(&mut connection, &["HSET", day, "plays", plays]).await;
        let reading = read_beside(&mut sink, &config, &story.time).await;
        let found = compared(&story, &reading);
        assert!(found.iter().any(|one| one.key == *day && one.state == state), "{found:?}");
        run::<()>(&mut connection, &["HSET", day, "plays", "1"]).await;
    }
}

#[tokio::test]
async fn the_row_of_a_content_does_not_live_as_long_as_a_wrong_clock_says() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("video"), Some(10)).event(Some(1), Some("click"), -80_000 * HOUR, None);
    story.commit();
    told(&config, &story).await;
    let seconds: i64 = run(&mut connect(&config).await, &["TTL", &format!("content:{}", id_text(1))]).await;
    assert!((90 * 3600..100 * 3600).contains(&seconds), "{seconds}");
    assert_eq!(public(&config).await.len(), 1);
}

#[tokio::test]
async fn a_foreign_key_in_the_place_of_the_bits_stops_the_flush_before_it_wrote_anything() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    let (mut sink, checkpoint) = recovered(&config, &story.time, 1).await;
    let mut connection = connect(&config).await;
    run::<i64>(&mut connection, &["RPUSH", "walcast:ahead", "foreign"]).await;
    story.event(Some(1), Some("play"), -80 * HOUR, Some(1)).commit();
    refused(sink.write(&story.beyond(checkpoint, 100)).await, Code::RedisKeyTaken, "walcast:ahead");
    assert!(public(&config).await.is_empty());
    run::<i64>(&mut connection, &["DEL", "walcast:ahead"]).await;
    assert_eq!(sink.recover(&super::session(1)).await.unwrap(), None);
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
}
