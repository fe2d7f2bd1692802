//! `content:<id>` and the counters beside it.

use walcast::sink::Sink;

use super::assert_shown;
use super::{recovered, told, write};
use crate::support::redis_server::{connect, fresh_database, id_text, public, run};
use crate::support::story::{HOUR, MINUTE, Story, Time};

async fn ttl(config: &walcast::sink::redis::RedisConfig, key: &str) -> i64 {
    run(&mut connect(config).await, &["TTL", key]).await
}

#[tokio::test]
async fn a_content_row_is_live_and_gone_when_it_is_deleted() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("video"), Some(10)).commit();
    let mut sink = told(&config, &story).await;
    for round in 0..5 {
        let checkpoint = story.end();
        match round {
            0 => story.content(1, "One, renamed", None, None).commit(),
            1 => story.delete([1]).commit(),
            2 => story.event(Some(1), Some("click"), 0, None).commit(),
            3 => story.content(1, "One", Some("video"), Some(11)).delete([1]).commit(),
            _ => story.delete([1]).content(1, "One", Some("video"), Some(12)).commit(),
        };
        write(&mut sink, &story.beyond(checkpoint, 100)).await;
        assert_shown(&config, &story, &format!("round {round}")).await;
    }
}

#[tokio::test]
async fn an_event_brings_the_row_that_it_was_joined_with() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("video"), Some(10)).commit();
    story.rows.clear(); // from before walcast
    story.event(Some(1), Some("click"), 0, None).commit();
    told(&config, &story).await;
    assert_shown(&config, &story, "").await;
}

#[tokio::test]
async fn events_renew_a_content_row_and_never_shorten_its_life() {
    let config = fresh_database().await;
    let key = format!("content:{}", id_text(1));
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("video"), Some(10)).commit();
    let mut sink = told(&config, &story).await;
    let first = ttl(&config, &key).await;
    assert!((48 * 3600..50 * 3600).contains(&first), "{first}");
    story.time.pass(2 * HOUR);
    let checkpoint = story.end();
    story.event(Some(1), Some("click"), 0, None).commit();
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
    let second = ttl(&config, &key).await;
    assert!(second >= first + 2 * 3600 - 60, "{first} then {second}");
    let checkpoint = story.end();
    story.event(Some(1), Some("click"), -30 * HOUR, None).commit();
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
    let third = ttl(&config, &key).await;
    assert!(third >= second + 29 * 3600, "an event from the future: {second} then {third}");
    // one who does not remember
    let (mut sink, checkpoint) = recovered(&config, &story.time, 2).await;
    story.content(1, "One, renamed", Some("video"), Some(10)).commit();
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
    assert!(ttl(&config, &key).await >= third - 60);
    assert_shown(&config, &story, "").await;
}

#[tokio::test]
async fn the_leaders_of_all_time_keep_their_rows() {
    let config = fresh_database().await;
    let key = format!("content:{}", id_text(1));
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("video"), Some(10)).event(Some(1), Some("play"), 0, Some(5)).commit();
    let mut sink = told(&config, &story).await;
    let life = ttl(&config, &key).await;
    assert!(life > 31 * 86_400, "{life}");
    let checkpoint = story.end();
    story.content(1, "One, renamed", Some("video"), Some(10)).commit();
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
    assert!(ttl(&config, &key).await >= life - 60, "a change does not shorten it");
    story.time.pass(25 * HOUR);
    sink.tick().await.unwrap();
    assert!(ttl(&config, &key).await >= life + 24 * 3600, "renewed each day");
}

#[tokio::test]
async fn an_event_that_comes_after_its_counters_have_expired_counts_for_all_time_only() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 80 * HOUR, Some(500)).commit();
    told(&config, &story).await;
    let keys: Vec<String> = public(&config).await.into_keys().collect();
    assert_eq!(keys, ["top_engagement:all"]);
    assert_shown(&config, &story, "").await;
}

#[tokio::test]
async fn a_truncated_table_empties_its_rows() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    for n in 0..5_000 {
        story.content(n, "some", Some("video"), Some(10));
    }
    story.commit();
    let mut sink = told(&config, &story).await;
    let checkpoint = story.end();
    story.delete(0..5_000).event(Some(1), Some("click"), 0, None).commit();
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
    assert_shown(&config, &story, "").await;
    assert_eq!(public(&config).await.len(), 2);
}

#[tokio::test]
async fn counters_are_found_again_when_memory_has_forgotten_them() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    let mut checkpoint = None;
    for fencing_token in 1..4 {
        story
            .event(Some(1), Some("play"), 3 * HOUR, Some(500))
            .event(Some(1), Some("pause"), 9 * MINUTE, Some(1))
            .commit();
        let (mut sink, found) = recovered(&config, &story.time, fencing_token).await;
        assert_eq!(Some(found), checkpoint.or(Some(found)));
        write(&mut sink, &story.beyond(found, 100)).await;
        checkpoint = Some(story.end());
        sink.tick().await.unwrap();
    }
    assert_shown(&config, &story, "").await;
}
