//! The Redis sink against real servers.

mod model;

mod ahead;
mod read_back;
mod boards;
mod contents;
mod crashes;
mod kinds;
mod reader;
mod sentinels;
mod setup;
mod short_scripts;

use std::sync::Arc;

use walcast::batch::Batch;
use walcast::error::{Code, Error};
use walcast::lsn::{Checkpoint, Lsn, StoredCheckpoint};
use walcast::resume::{self, Refusal, Resume};
use walcast::sink::redis::{RedisConfig, RedisSink};
use walcast::sink::{Sink, SinkAdmin, Written};

use crate::support::redis_server::{connect, fresh_database, id_text, public, run};
use crate::support::story::{START, Story, Time, session};

/// A sink that has recovered, and the checkpoint it goes on from.
async fn recovered(config: &RedisConfig, time: &Time, fencing_token: i64) -> (RedisSink, Checkpoint) {
    let mut sink = RedisSink::with_clock(config.clone(), time.clock());
    let stored = sink.recover(&session(fencing_token)).await.unwrap();
    (sink, stored.map_or(Checkpoint::at(START), |stored| stored.checkpoint))
}

/// Writes, and expects it to be durable up to the last batch.
async fn write(sink: &mut RedisSink, batches: &[Arc<Batch>]) {
    if batches.is_empty() {
        return;
    }
    let end = batches
        .iter()
        .fold(Checkpoint::default(), |checkpoint, batch| checkpoint.advanced(batch.checkpoint()));
    match sink.write(batches).await.unwrap() {
        Written::Durable(checkpoint) => assert_eq!(checkpoint, end),
        Written::Accepted => panic!("a flush is durable"),
    }
}

/// Tells a story from the beginning and refreshes the boards.
async fn told(config: &RedisConfig, story: &Story) -> RedisSink {
    let (mut sink, checkpoint) = recovered(config, &story.time, 1).await;
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
    sink.tick().await.unwrap();
    sink
}

/// Redis shows what the story amounts to.
async fn assert_shown(config: &RedisConfig, story: &Story, when: &str) {
    let (mut shown, expected) = (public(config).await, model::expected(story));
    // The board of a type that went empty while nobody was there is left to expire.
    shown.retain(|key, _| !key.starts_with("top_engagement:10min:") || expected.contains_key(key));
    for key in shown.keys().chain(expected.keys()) {
        assert_eq!(shown.get(key), expected.get(key), "{key} {when}");
    }
}

fn refused(result: Result<impl std::fmt::Debug, Error>, code: Code, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.code(), code, "{error:?}");
    assert!(format!("{} {}", error.chain(), error.advice()).contains(words), "{error:?} lacks {words:?}");
}

#[tokio::test]
async fn rows_become_counters_boards_and_a_checkpoint() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("podcast"), Some(100)).content(2, "Two", None, None).commit();
    story
        .event(Some(1), Some("play"), 0, Some(30_000))
        .event(Some(1), Some("finish"), 0, Some(45_500))
        .commit();
    story.event(Some(2), Some("click"), 0, None).event(None, Some("play"), 0, Some(9)).event(
        Some(3),
        None,
        0,
        Some(1),
    );
    story.commit();
    let mut sink = told(&config, &story).await;
    assert_shown(&config, &story, "").await;
    let stored = sink.recover(&session(1)).await.unwrap().unwrap();
    assert_eq!((stored.history_id, stored.checkpoint), (session(1).history_id, story.end()));
}

#[tokio::test]
async fn every_key_expires_as_documented() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story
        .content(1, "One", Some("podcast"), Some(100))
        .event(Some(1), Some("play"), 0, Some(30_000))
        .commit();
    told(&config, &story).await;
    let mut connection = connect(&config).await;
    let now = story.time.now() / 1_000_000;
    let keys: Vec<String> = run(&mut connection, &["KEYS", "*"]).await;
    assert_eq!(keys.len(), 5 + 1 + 1 + 1 + 1 + 3 + 1, "{keys:?}");
    for key in keys {
        let ttl: i64 = run(&mut connection, &["TTL", &key]).await;
        let at = now + ttl;
        let in_a_minute = |seconds: i64| (seconds - 60..=seconds + 60).contains(&ttl);
        let right = match key.split(':').collect::<Vec<_>>().as_slice() {
            ["top_engagement", "all"] | ["walcast", "checkpoint", _] | ["walcast", "all"] => ttl == -1,
            ["top_engagement", ..] => (20..=30).contains(&ttl),
            // it is on the board of all time
            ["content", _] => in_a_minute(32 * 86_400),
            ["engagement", ..] => {
                (at - 2..=at + 2).any(|at| at % 86_400 == 0)
                    && (ttl - 48 * 3600) < 86_402
                    && ttl >= 48 * 3600 - 2
            }
            ["stats", ..] => in_a_minute(2 * 3600 + 30),
            ["walcast", "10min", _] => in_a_minute(3600 + 600),
            ["walcast", "1h", _] => in_a_minute(3600 + 3600),
            ["walcast", "24h", _] => (3600 + 86_400 - 60..=3600 + 86_400 + 1500).contains(&ttl),
            _ => false,
        };
        assert!(right, "{key} lives {ttl} s");
    }
}

#[tokio::test]
async fn the_command_of_the_readme_works_as_it_stands() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(61_500)).event(Some(2), Some("play"), 0, Some(3_000)).commit();
    told(&config, &story).await;
    let (port, db) = (config.port.to_string(), config.db.to_string());
    let mut command = std::process::Command::new("redis-cli");
    command.args(["-h", &config.host, "-p", &port, "-n", &db, "-a", config.password.expose()]);
    command.args(["ZRANGE", "top_engagement:10min", "0", "-1", "WITHSCORES"]);
    let output = command.output().unwrap();
    let lines = format!("{}\n3\n{}\n61.5\n", id_text(2), id_text(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), lines);
}

#[tokio::test]
async fn a_batch_without_rows_moves_the_checkpoint() {
    let config = fresh_database().await;
    let time = Time::real();
    let (mut sink, _) = recovered(&config, &time, 1).await;
    write(&mut sink, &[Arc::new(Batch::empty(Checkpoint::at(walcast::lsn::Lsn(5000)), true))]).await;
    assert_eq!(recovered(&config, &time, 1).await.1, Checkpoint::at(walcast::lsn::Lsn(5000)));
}

#[tokio::test]
async fn a_checkpoint_of_another_history_id_is_told_as_it_is() {
    let config = fresh_database().await;
    let time = Time::real();
    let mut story = Story::new(&time);
    story.event(Some(1), Some("play"), 0, Some(1)).commit();
    told(&config, &story).await;
    let mut other = session(2);
    other.history_id.uuid = uuid::Uuid::from_u128(8);
    let mut sink = RedisSink::with_clock(config.clone(), time.clock());
    let stored = sink.recover(&other).await.unwrap();
    assert_eq!(stored, Some(StoredCheckpoint::new(&session(1).history_id, story.end())));
    let judged = resume::judge(stored.as_ref(), true, &other, Lsn(u64::MAX));
    assert!(matches!(judged, Resume::Refused(Refusal::OtherHistory(_))), "{judged:?}");
}

#[tokio::test]
async fn counters_without_a_checkpoint_are_not_added_to() {
    let time = Time::real();
    // an event without a content leaves nothing but its minute
    for content in [Some(1), None] {
        let config = fresh_database().await;
        let mut story = Story::new(&time);
        story.event(content, Some("play"), 0, Some(1)).commit();
        told(&config, &story).await;
        run::<i64>(&mut connect(&config).await, &["DEL", "walcast:checkpoint:walcast"]).await;
        let mut sink = RedisSink::with_clock(config.clone(), time.clock());
        refused(sink.recover(&session(2)).await, Code::RedisRemains, "walcast rebuild redis");
        refused(sink.peek(&session(2)).await, Code::RedisRemains, "walcast rebuild redis");
    }
}

#[tokio::test]
async fn a_key_that_has_what_walcast_did_not_write_is_named() {
    let config = fresh_database().await;
    let time = Time::real();
    let mut story = Story::new(&time);
    story.event(Some(1), Some("play"), 0, Some(1)).commit();
    told(&config, &story).await;
    let mut connection = connect(&config).await;
    let buckets: Vec<String> = run(&mut connection, &["KEYS", "walcast:10min:*"]).await;
    for bucket in buckets.iter().filter(|key| !key.ends_with(":packed")) {
        run::<i64>(&mut connection, &["HSET", bucket, "canary", "x"]).await;
    }
    let mut sink = RedisSink::with_clock(config.clone(), time.clock());
    refused(sink.recover(&session(2)).await, Code::RedisKeyUnreadable, "holds");
}

#[tokio::test]
async fn a_sink_that_was_not_recovered_writes_nothing() {
    let config = fresh_database().await;
    let mut sink = RedisSink::new(config.clone());
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(1)).commit();
    refused(sink.write(&story.all()).await, Code::Unavailable, "recovered");
    assert_eq!(sink.tick().await.unwrap(), None);
    assert!(public(&config).await.is_empty());
}
