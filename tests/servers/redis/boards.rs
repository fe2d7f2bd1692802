//! Boards as readers see them.

use walcast::sink::Sink;

use super::{assert_shown, model::expected};
use super::{recovered, told, write};
use crate::support::redis_server::{Shape, connect, fresh_database, public, run};
use crate::support::story::{HOUR, MINUTE, SECOND, Story, Time};

#[tokio::test]
async fn windows_drain_by_the_clock_when_nothing_comes() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("video"), Some(10)).event(Some(1), Some("play"), 0, Some(500)).commit();
    let mut sink = told(&config, &story).await;
    for pass in [5 * MINUTE, 6 * MINUTE, 40 * MINUTE, 10 * MINUTE, 22 * HOUR, 2 * HOUR] {
        story.time.pass(pass);
        sink.tick().await.unwrap();
        let boards = |shapes: std::collections::BTreeMap<String, Shape>| -> Vec<String> {
            shapes.into_keys().filter(|key| key.starts_with("top_engagement")).collect()
        };
        assert_eq!(boards(public(&config).await), boards(expected(&story)));
    }
    assert_eq!(run::<i64>(&mut connect(&config).await, &["EXISTS", "top_engagement:24h"]).await, 0);
    assert_eq!(run::<i64>(&mut connect(&config).await, &["EXISTS", "top_engagement:all"]).await, 1);
}

#[tokio::test]
async fn an_event_from_the_future_counts_when_its_time_has_come() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story
        .content(1, "One", Some("video"), Some(10))
        .event(Some(1), Some("play"), -30 * MINUTE, Some(500))
        .commit();
    let mut sink = told(&config, &story).await;
    for round in 0..8 {
        assert_shown(&config, &story, &format!("round {round}")).await;
        story.time.pass(10 * MINUTE);
        if round == 2 {
            sink = recovered(&config, &story.time, 2).await.0;
        }
        sink.tick().await.unwrap();
    }
}

/// The clock was wrong by an hour, or is now: what a board shows follows it, and no board vanishes.
#[tokio::test]
async fn boards_follow_a_clock_that_is_set_back() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("video"), Some(10));
    // no event is of just now: the seconds by which the clock goes back would put it ahead
    const LATELY: i64 = 20 * SECOND;
    for (content, age) in [(1, LATELY), (1, 40 * MINUTE), (2, LATELY), (2, 3 * HOUR), (3, -30 * MINUTE)] {
        story.event(Some(content), Some("play"), age, Some(500));
    }
    story.commit();
    let mut sink = told(&config, &story).await;
    let mut connection = connect(&config).await;
    for (round, minutes) in [-70, 70, 70, -70, -20, 20].into_iter().enumerate() {
        story.time.pass(minutes * MINUTE);
        sink.tick().await.unwrap();
        assert_shown(&config, &story, &format!("round {round}")).await;
        run::<i64>(&mut connection, &["EXPIRE", "top_engagement:24h", "9"]).await;
        story.time.pass(SECOND);
        sink.tick().await.unwrap();
        let seconds = run::<i64>(&mut connection, &["TTL", "top_engagement:24h"]).await;
        assert!(seconds > 20, "round {round}: it lives {seconds} s");
        story.time.pass(-2 * SECOND);
        run::<i64>(&mut connection, &["EXPIRE", "top_engagement:24h", "9"]).await;
        sink.tick().await.unwrap();
        let seconds = run::<i64>(&mut connection, &["TTL", "top_engagement:24h"]).await;
        assert!(seconds > 20, "round {round}, a little back: it lives {seconds} s");
        let checkpoint = story.end();
        story.event(Some(1 + round as u128 % 3), Some("play"), LATELY, Some(100)).commit();
        write(&mut sink, &story.beyond(checkpoint, 100)).await;
        sink.tick().await.unwrap();
        assert_shown(&config, &story, &format!("round {round}, after a write")).await;
    }
}

#[tokio::test]
async fn a_board_has_the_best_thousand_only() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    for n in 0..3_000 {
        story.event(Some(n), Some("play"), 0, Some((n as i64 * 7919) % 10_007));
    }
    story.commit();
    let mut sink = told(&config, &story).await;
    assert_shown(&config, &story, "").await;
    let checkpoint = story.end();
    for n in 0..1_500 {
        story.event(Some(n * 2), Some("play"), 0, Some((n as i64 * 104_729) % 20_011));
    }
    story.commit();
    write(&mut sink, &story.beyond(checkpoint, 4_000)).await;
    sink.tick().await.unwrap();
    assert_shown(&config, &story, "").await;
}

#[tokio::test]
async fn a_board_that_was_changed_or_expired_is_written_anew() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(500)).event(Some(2), Some("play"), 0, Some(600)).commit();
    let mut sink = told(&config, &story).await;
    let mut connection = connect(&config).await;
    run::<i64>(&mut connection, &["DEL", "top_engagement:10min"]).await;
    run::<i64>(&mut connection, &["ZREM", "top_engagement:all", &crate::support::redis_server::id_text(1)])
        .await;
    story.time.pass(SECOND);
    sink.tick().await.unwrap();
    sink.tick().await.unwrap();
    assert_shown(&config, &story, "").await;
}

#[tokio::test]
async fn boards_are_renewed_each_second_and_else_left_alone() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(500)).commit();
    let mut sink = told(&config, &story).await;
    let mut connection = connect(&config).await;
    let persist = ["PERSIST", "top_engagement:24h"];
    assert_eq!(run::<i64>(&mut connection, &persist).await, 1);
    story.time.pass(SECOND / 2);
    sink.tick().await.unwrap();
    assert_eq!(run::<i64>(&mut connection, &["TTL", "top_engagement:24h"]).await, -1, "nothing had changed");
    story.time.pass(SECOND / 2);
    sink.tick().await.unwrap();
    assert!(run::<i64>(&mut connection, &["TTL", "top_engagement:24h"]).await >= 29);
}

#[tokio::test]
async fn a_content_moves_between_the_boards_of_types() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("video"), Some(10)).content(2, "Two", Some("video"), Some(10));
    story.event(Some(1), Some("play"), 0, Some(500)).event(Some(2), Some("play"), 0, Some(600)).commit();
    let mut sink = told(&config, &story).await;
    for round in 0..4 {
        let checkpoint = story.end();
        match round {
            0 => story.content(1, "One", Some("podcast"), Some(10)).commit(),
            1 => story.content(1, "One", None, Some(10)).commit(),
            2 => story.delete([2]).commit(),
            _ => story.content(2, "Two again", Some("newsletter"), None).commit(),
        };
        write(&mut sink, &story.beyond(checkpoint, 100)).await;
        sink.tick().await.unwrap();
        assert_eq!(public(&config).await, expected(&story), "round {round}");
        let (mut again, _) = recovered(&config, &story.time, round + 2).await;
        again.tick().await.unwrap();
        assert_shown(&config, &story, &format!("round {round} after a restart")).await;
        sink = again;
    }
}
