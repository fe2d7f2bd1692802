//! Whatever is killed, cut or replaced: every row counts once.

use rand::RngExt;
use std::time::Instant;

use walcast::error::{Class, Code};
use walcast::sink::redis::{RedisConfig, RedisSink};
use walcast::sink::{Sink, SinkAdmin};

use super::assert_shown;
use super::{recovered, refused, told, write};
use walcast::source::sql;

use crate::support::redis_server::{Server, connect, fresh_database, public, run};
use crate::support::story::{MINUTE, SECOND, Story, Time, seeded, session};
use crate::support::wire::Wire;
use crate::support::world::World;
use crate::support::{self, DEADLINE, wait_until};

/// The same database behind a wire.
async fn wired(config: &RedisConfig) -> (Wire, RedisConfig) {
    let wire = Wire::to(config.port).await;
    let through = RedisConfig { port: wire.port, ..config.clone() };
    (wire, through)
}

#[tokio::test]
async fn random_kills_cuts_and_pauses_leave_what_a_plain_sum_gives() {
    let mut rng = seeded();
    for _ in 0..12 {
        let config = fresh_database().await;
        let (wire, through) = wired(&config).await;
        let mut story = Story::new(&Time::real());
        let mut fencing_token = 1;
        let (mut sink, mut checkpoint) = recovered(&through, &story.time, fencing_token).await;
        for _ in 0..rng.random_range(5..25) {
            // now and then so many that buckets are worth packing
            let many = rng.random_bool(0.15);
            let contents = if many { 400 } else { rng.random_range(1..40) };
            let commits = if many { 30 } else { rng.random_range(0..8) };
            story.improvise(&mut rng, contents, commits);
            match rng.random_range(0..8) {
                0 => story.time.pass(rng.random_range(0..20 * SECOND)),
                1 => story.time.pass(rng.random_range(0..4 * MINUTE)),
                2 => wire.cut_requests_after(rng.random_range(0..20_000)),
                3 => wire.cut_answers_after(rng.random_range(0..300)),
                4 => {
                    fencing_token += 1;
                    (sink, checkpoint) = recovered(&through, &story.time, fencing_token).await;
                }
                _ => {}
            }
            let batches = story.beyond(checkpoint, rng.random_range(1..200));
            let written = sink.write(&batches).await;
            let mut failed = written.and(sink.tick().await).err();
            checkpoint = if failed.is_none() { story.end() } else { checkpoint };
            while let Some(error) = failed {
                assert_eq!(error.class(), Class::Transient, "{error:?}");
                if rng.random_bool(0.7) {
                    wire.mend();
                }
                let stored = sink.recover(&session(fencing_token)).await;
                checkpoint = stored
                    .as_ref()
                    .ok()
                    .and_then(|stored| stored.as_ref())
                    .map_or(checkpoint, |stored| stored.checkpoint);
                failed = stored.err();
            }
            wire.mend();
        }
        let (mut sink, checkpoint) = recovered(&config, &story.time, fencing_token + 1).await;
        write(&mut sink, &story.beyond(checkpoint, 100)).await;
        sink.tick().await.unwrap();
        assert_shown(&config, &story, "").await;
    }
}

/// Its rows go in several flushes, of which only the last moves the checkpoint.
#[tokio::test]
async fn a_truncation_is_cut_anywhere_and_ends_whole() {
    let config = fresh_database().await;
    let (wire, through) = wired(&config).await;
    let mut story = Story::new(&Time::real());
    for n in 0..3_500 {
        story.content(n, "some", Some("video"), Some(10));
    }
    story.event(Some(1), Some("play"), 0, Some(1_000)).commit();
    let (mut sink, checkpoint) = recovered(&through, &story.time, 1).await;
    write(&mut sink, &story.beyond(checkpoint, 4_000)).await;
    let before = story.end();
    story.event(Some(1), Some("play"), 0, Some(500)).delete(0..3_500);
    story.event(Some(2), Some("play"), 0, Some(700)).content(3, "again", None, None).commit();
    // a deletion is some 65 bytes
    for cut in [100, 50_000, 110_000, 150_000, 190_000] {
        let found = recovered(&through, &story.time, 1).await;
        sink = found.0;
        wire.cut_requests_after(cut);
        refused(sink.write(&story.beyond(found.1, 4_000)).await, Code::RedisUnreachable, "");
        wire.mend();
    }
    assert_eq!(wire.cuts(), 5);
    let (mut sink, found) = recovered(&through, &story.time, 2).await;
    assert!(found.position > before.position && found != story.end(), "the first event alone is in: {found}");
    write(&mut sink, &story.beyond(found, 4_000)).await;
    sink.tick().await.unwrap();
    assert_shown(&config, &story, "").await;
}

#[tokio::test]
async fn a_truncation_survives_a_kill_between_each_pair_of_its_flushes() {
    let world = World::new(support::fresh_database(support::postgres()).await).await;
    let world = world.with("PIPELINE_SINKS", "redis");
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    let contents = "INSERT INTO content SELECT md5(i::text)::uuid, 's' || i, 't' || i, 'video', 60, now()
                    FROM generate_series(1, 3500) AS i";
    let play = "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
                SELECT md5('1')::uuid, 'play', now(), 1000";
    let running = world.start().await;
    let unbound = "ALTER TABLE engagement_events DROP CONSTRAINT engagement_events_content_id_fkey";
    support::run(&client, &format!("{unbound}; {contents}; {play}")).await;
    wait_until("Redis has all", async || world.redis_plays().await == 1).await;
    running.kill().await;
    support::run(&client, &format!("BEGIN; {play}; TRUNCATE content; {play}; COMMIT")).await;
    for passes in 0..4 {
        let mut running =
            world.with("FAILPOINTS", &format!("redis_after_flush={passes}*off->return")).spawn();
        assert!(running.ends_within(DEADLINE).await, "{passes}: {}", running.log.lock().await);
    }
    let running = world.start().await;
    wait_until("Redis has all", async || world.redis_plays().await == 3).await;
    let rows: Vec<String> = run(&mut world.redis().await, &["KEYS", "content:*"]).await;
    assert!(rows.is_empty(), "{} are left", rows.len());
    running.stop().await;
}

#[tokio::test]
async fn a_lost_answer_counts_nothing_twice() {
    let config = fresh_database().await;
    let (wire, through) = wired(&config).await;
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(1_000)).commit();
    let (mut sink, checkpoint) = recovered(&through, &story.time, 1).await;
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
    let checkpoint = story.end();
    story.event(Some(1), Some("play"), 0, Some(500)).commit();
    wire.cut_answers_after(0);
    refused(sink.write(&story.beyond(checkpoint, 100)).await, Code::RedisUnreachable, "does not answer");
    assert_eq!(wire.cuts(), 1);
    refused(sink.write(&story.beyond(checkpoint, 100)).await, Code::Unavailable, "recovered first");
    wire.mend();
    let stored = sink.recover(&session(1)).await.unwrap().unwrap();
    assert_eq!(stored.checkpoint, story.end(), "the write had arrived");
    assert!(story.beyond(stored.checkpoint, 100).is_empty());
    sink.tick().await.unwrap();
    assert_shown(&config, &story, "").await;
}

#[tokio::test]
async fn what_an_earlier_connection_still_sends_changes_nothing() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(1_000)).commit();
    let (mut sink, checkpoint) = recovered(&config, &story.time, 1).await;
    recovered(&config, &story.time, 1).await;
    refused(sink.write(&story.beyond(checkpoint, 100)).await, Code::RedisChanged, "replaced");
    assert!(public(&config).await.is_empty());
}

#[tokio::test]
async fn an_older_instance_changes_nothing_not_even_a_board() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("podcast"), Some(10)).event(Some(1), Some("play"), 0, Some(1_000)).commit();
    let mut zombie = told(&config, &story).await;
    let mut other_zombie = RedisSink::with_clock(config.clone(), story.time.clock());
    let (mut sink, checkpoint) = recovered(&config, &story.time, 2).await;
    story.event(Some(1), Some("play"), 0, Some(500)).commit();
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
    sink.tick().await.unwrap();
    let mut connection = connect(&config).await;
    run::<i64>(&mut connection, &["DEL", "top_engagement:1h"]).await;
    let before = public(&config).await;

    story.time.pass(2 * SECOND);
    refused(zombie.tick().await, Code::Fenced, "fencing token 2");
    refused(other_zombie.recover(&session(1)).await, Code::Fenced, "fencing token 2");
    let (mut third, checkpoint) = (RedisSink::with_clock(config.clone(), story.time.clock()), checkpoint);
    refused(third.recover(&session(0)).await, Code::Fenced, "leave it alone");
    refused(third.write(&story.beyond(checkpoint, 100)).await, Code::Unavailable, "recovered");
    assert_eq!(public(&config).await, before);
}

#[tokio::test]
async fn an_older_instance_in_the_middle_of_its_work_is_shut_out() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    let (mut zombie, checkpoint) = recovered(&config, &story.time, 1).await;
    let (_sink, _) = recovered(&config, &story.time, 2).await;
    story.event(Some(1), Some("play"), 0, Some(500)).commit();
    refused(zombie.write(&story.beyond(checkpoint, 100)).await, Code::Fenced, "another instance runs");
    assert!(public(&config).await.is_empty());
}

#[tokio::test]
async fn a_restart_finds_the_windows_as_they_were() {
    let config = fresh_database().await;
    let mut rng = seeded();
    let mut story = Story::new(&Time::real());
    let (mut sink, mut checkpoint) = recovered(&config, &story.time, 1).await;
    for round in 0..6 {
        // enough contents that buckets are worth packing
        for n in 0..600 {
            let age = rng.random_range(0..MINUTE);
            story.event(Some(n), Some("play"), age, Some(rng.random_range(1..100_000)));
        }
        story.commit();
        write(&mut sink, &story.beyond(checkpoint, 100)).await;
        checkpoint = story.end();
        story.time.pass(6 * SECOND);
        for _ in 0..40 {
            sink.tick().await.unwrap();
        }
        assert_shown(&config, &story, &format!("round {round}")).await;
        let (next, found) = recovered(&config, &story.time, round + 2).await;
        assert_eq!(found, checkpoint);
        sink = next;
        sink.tick().await.unwrap();
        assert_shown(&config, &story, &format!("after restart {round}")).await;
    }
    let packed: Vec<String> = run(&mut connect(&config).await, &["KEYS", "walcast:10min:*:packed"]).await;
    assert!(packed.len() > 3, "nothing was packed: {packed:?}");
    for minute in (3..=12).step_by(3) {
        story.time.pass(3 * MINUTE);
        sink.tick().await.unwrap();
        assert_shown(&config, &story, &format!("{minute} minutes after the last event")).await;
    }
}

#[tokio::test]
async fn what_was_told_durable_survives_a_crash_of_redis() {
    let mut server = Server::start(&["appendonly yes", "appendfsync always"]).await;
    let mut story = Story::new(&Time::real());
    let mut rng = seeded();
    let (mut sink, mut checkpoint) = recovered(&server.config, &story.time, 1).await;
    for _ in 0..5 {
        story.improvise(&mut rng, 20, 10);
        write(&mut sink, &story.beyond(checkpoint, 100)).await;
        checkpoint = story.end();
        server.crash().await;
        assert_eq!(sink.tick().await.unwrap_err().class(), Class::Transient);
        let stored = sink.recover(&session(1)).await.unwrap().unwrap();
        assert_eq!(stored.checkpoint, checkpoint);
        sink.tick().await.unwrap();
        assert_shown(&server.config, &story, "").await;
    }
}

#[tokio::test]
async fn a_server_that_is_gone_or_silent_is_told_in_bounded_time() {
    let mut server = Server::start(&[]).await;
    let mut story = Story::new(&Time::real());
    let (mut sink, checkpoint) = recovered(&server.config, &story.time, 1).await;
    story.event(Some(1), Some("play"), 0, Some(500)).commit();
    server.kill();
    let begun = Instant::now();
    refused(sink.write(&story.beyond(checkpoint, 100)).await, Code::RedisUnreachable, "redis 127.0.0.1");
    refused(sink.recover(&session(1)).await, Code::RedisUnreachable, "see that the server runs");
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());

    // a listener that never answers
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = server.config.clone();
    config.port = silent.local_addr().unwrap().port();
    let begun = Instant::now();
    refused(RedisSink::new(config).prepare().await, Code::RedisUnreachable, "does not answer");
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_that_was_emptied_has_no_checkpoint() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(500)).commit();
    let mut sink = told(&config, &story).await;
    run::<()>(&mut connect(&config).await, &["FLUSHDB"]).await;
    let checkpoint = story.end();
    story.event(Some(1), Some("play"), 0, Some(500)).commit();
    refused(sink.write(&story.beyond(checkpoint, 100)).await, Code::RedisChanged, "deleted");
    assert_eq!(sink.recover(&session(1)).await.unwrap(), None);
    assert!(public(&config).await.is_empty());
}

#[tokio::test]
async fn a_key_of_another_type_stops_the_flush_before_it_wrote_anything() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("podcast"), Some(10)).event(Some(1), Some("play"), 0, Some(500));
    story.event(Some(2), Some("play"), 0, Some(500)).commit();
    told(&config, &story).await;
    let before: Vec<String> = run(&mut connect(&config).await, &["KEYS", "*"]).await;
    let keys = before.iter().filter(|key| !key.starts_with("top_engagement"));
    assert_eq!(keys.clone().count(), 2 + 1 + 1 + 5);
    for key in keys {
        let config = fresh_database().await;
        let (mut sink, checkpoint) = recovered(&config, &story.time, 1).await;
        let mut connection = connect(&config).await;
        run::<i64>(&mut connection, &["DEL", "walcast:checkpoint:walcast"]).await;
        let (mut sink, checkpoint) = match key.starts_with("walcast:checkpoint") {
            true => (sink, checkpoint),
            false => {
                sink.close().await;
                recovered(&config, &story.time, 1).await
            }
        };
        run::<i64>(&mut connection, &["RPUSH", key, "foreign"]).await;
        refused(sink.write(&story.beyond(checkpoint, 100)).await, Code::RedisKeyTaken, key);
        let mut left: Vec<String> = run(&mut connection, &["KEYS", "*"]).await;
        left.retain(|other| other != key && other != "walcast:checkpoint:walcast");
        assert!(left.is_empty(), "{key}: {left:?}");
    }
}

#[tokio::test]
async fn a_foreign_board_is_not_overwritten() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("podcast"), Some(10)).event(Some(1), Some("play"), 0, Some(500)).commit();
    for key in ["top_engagement:10min", "top_engagement:all", "top_engagement:10min:podcast"] {
        let mut connection = connect(&config).await;
        run::<()>(&mut connection, &["FLUSHDB"]).await;
        run::<()>(&mut connection, &["SET", key, "foreign"]).await;
        let (mut sink, checkpoint) = recovered(&config, &story.time, 1).await;
        write(&mut sink, &story.beyond(checkpoint, 100)).await;
        refused(sink.tick().await, Code::RedisKeyTaken, key);
        let boards: Vec<String> = run(&mut connection, &["KEYS", "top_engagement*"]).await;
        assert_eq!(boards, [key]);
    }
}
