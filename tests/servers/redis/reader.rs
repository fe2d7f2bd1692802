//! Boards as the page reads them: with titles, seldom, and without waiting for a server that is silent.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use walcast::sink::redis::reader::Reader;

use super::told;
use crate::support::redis_server::{Server, connect, fresh_database, id_text, run};
use crate::support::story::{Story, Time};
use crate::support::{self, DEADLINE};

#[tokio::test]
async fn a_board_is_read_with_titles_and_types() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("podcast"), Some(100)).content(2, "Two", None, None).commit();
    story
        .event(Some(1), Some("play"), 0, Some(30_000))
        .event(Some(2), Some("play"), 0, Some(40_000))
        .event(Some(9), Some("play"), 0, Some(10_000))
        .commit();
    told(&config, &story).await;
    let reader = Reader::new(config.clone());
    for name in ["10min", "1h", "24h", "all"] {
        let top = reader.top(name).await.unwrap().unwrap();
        let places: Vec<(&str, f64, Option<&str>, Option<&str>)> = top
            .iter()
            .map(|place| (&*place.id, place.seconds, place.title.as_deref(), place.content_type.as_deref()))
            .collect();
        let (one, two, nine) = (id_text(1), id_text(2), id_text(9));
        let expected = [
            (&*two, 40.0, Some("Two"), None),
            (&*one, 30.0, Some("One"), Some("podcast")),
            (&*nine, 10.0, None, None),
        ];
        assert_eq!(places, expected, "{name}");
    }
    assert!(reader.top("10min:podcast").await.is_none());
    assert!(reader.top("walcast:all").await.is_none());
}

#[tokio::test]
async fn however_many_look_a_board_is_read_once_a_second() {
    let server = Server::start(&[]).await;
    let reader = Reader::new(server.config.clone());
    let readings = async || {
        let stats: String = run(&mut connect(&server.config).await, &["INFO", "commandstats"]).await;
        let line =
            stats.lines().find_map(|line| line.strip_prefix("cmdstat_zrevrange:calls=").map(str::to_owned));
        line.and_then(|line| line.split(',').next().map(|calls| calls.parse::<u32>().unwrap()))
            .unwrap_or_default()
    };
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(900) {
        join_all((0..100).map(|_| async { assert!(reader.top("10min").await.unwrap().unwrap().is_empty()) }))
            .await;
    }
    assert_eq!(readings().await, 1);
    support::wait_until("a later look is another reading", async || {
        reader.top("10min").await.unwrap().unwrap();
        readings().await == 2
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_gone_or_silent_is_told_in_time_and_asked_again_later() {
    let mut server = Server::start(&[]).await;
    let reader = Reader::new(server.config.clone());
    reader.top("10min").await.unwrap().unwrap();
    run::<String>(&mut connect(&server.config).await, &["CLIENT", "PAUSE", "60000", "ALL"]).await;
    let asked = Instant::now();
    // one that waits for its turn is told what the one before it was told
    let told = join_all((0..20).map(|_| reader.top("1h"))).await;
    // each for itself would take 2 s
    assert!(asked.elapsed() < DEADLINE, "{:?}", asked.elapsed());
    for told in told {
        let why = told.unwrap().unwrap_err();
        assert!(why.contains("slow to answer"), "{why}");
    }
    server.crash().await;
    support::wait_until("it is read again", async || reader.top("1h").await.unwrap().is_ok()).await;
    server.kill();
    support::wait_until("it is told that it is gone", async || reader.top("1h").await.unwrap().is_err())
        .await;
}
