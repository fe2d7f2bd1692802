//! Redis does nothing else while a command or script runs: none of walcast's may run long, whatever comes at once.
//!
//! The server itself tells what it ran, and for how long.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use walcast::sink::Sink;
use walcast::sink::redis::RedisConfig;

use super::read_back::{not_as_expected, read_beside};
use super::{assert_shown, recovered, told, write};
use crate::support::redis_server::{Server, connect, run};
use crate::support::story::{SECOND, Story, Time};

/// More than one script or command may have at once, whatever it does.
const WORDS_MAX: usize = 26_000;

/// No word may be longer.
const BYTES_MAX: usize = 200_000;

/// What one of them may take beside many other tests, a few in a hundred let off. Alone on a machine they take 20 ms at
/// most: to see that, let it print (`--nocapture`), with `WALCAST_MANY=500000`.
const TIME_MAX: Duration = Duration::from_millis(200);

/// A server that remembers what it ran; not what took less than 100 µs, as the single commands of a script do.
async fn watched() -> Server {
    Server::start(&["slowlog-log-slower-than 100", "slowlog-max-len 1000000"]).await
}

/// One command as the server has it: its time, its words, how it begins.
#[derive(Debug)]
struct Ran {
    time: Duration,
    words: usize,
    /// Of the longest word.
    bytes: usize,
    text: String,
}

/// What the server ran since it was asked last, the longest first.
async fn ran(connection: &mut MultiplexedConnection) -> Vec<Ran> {
    let entries: Vec<Vec<redis::Value>> = run(connection, &["SLOWLOG", "GET", "-1"]).await;
    run::<()>(connection, &["SLOWLOG", "RESET"]).await;
    let mut ran: Vec<Ran> = entries.into_iter().map(Ran::from).collect();
    ran.sort_by_key(|ran| std::cmp::Reverse(ran.time));
    ran
}

impl From<Vec<redis::Value>> for Ran {
    fn from(entry: Vec<redis::Value>) -> Self {
        let mut entry = entry.into_iter().skip(2);
        let (micros, words) = (entry.next().unwrap(), entry.next().unwrap());
        let words: Vec<Vec<u8>> = redis::from_redis_value(words).unwrap();
        let words: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
        // `... (2970 more arguments)`, and of a long word `<its beginning>... (94900 more bytes)`
        let more = |word: &str, of: &str| -> Option<usize> {
            word.strip_suffix(&format!(" more {of})"))?.rsplit_once("... (")?.1.parse().ok()
        };
        Ran {
            time: Duration::from_micros(redis::from_redis_value(micros).unwrap()),
            words: words.len() + words.last().and_then(|last| more(last, "arguments")).unwrap_or_default(),
            bytes: words.iter().filter_map(|word| more(word, "bytes")).max().unwrap_or_default(),
            text: words.iter().take(6).map(|word| word.as_ref()).collect::<Vec<_>>().join(" "),
        }
    }
}

async fn assert_short(config: &RedisConfig, what: &str) {
    let ran = ran(&mut connect(config).await).await;
    for ran in ran.iter().take(3) {
        println!("{what}: {ran:?}");
    }
    if let Some(largest) = ran.iter().max_by_key(|ran| ran.words) {
        assert!(largest.words < WORDS_MAX, "{what}: {largest:?}");
    }
    let long = ran.iter().find(|ran| ran.bytes > BYTES_MAX);
    assert!(long.is_none(), "{what}: {long:?}");
    for whole in ["HGETALL walcast:", "GET walcast:"] {
        let read = ran.iter().find(|ran| ran.text.starts_with(whole));
        assert!(read.is_none(), "{what} reads a large key at once: {read:?}");
    }
    let let_off = 1 + ran.len() / 50;
    if let Some(long) = ran.get(let_off) {
        assert!(long.time < TIME_MAX, "{what}: {long:?}");
    }
}

fn many() -> u128 {
    std::env::var("WALCAST_MANY").map_or(50_000, |text| text.parse().unwrap())
}

#[tokio::test]
async fn a_table_of_contents_is_filled_updated_and_truncated() {
    let server = watched().await;
    let mut story = Story::new(&Time::real());
    for n in 0..many() {
        story.content(n, "some", Some("video"), Some(10));
    }
    story.commit();
    let mut sink = told(&server.config, &story).await;
    assert_short(&server.config, "inserted in one transaction").await;
    let checkpoint = story.end();
    for n in 0..many() {
        story.content(n, "other", Some("podcast"), Some(10));
    }
    story.commit();
    write(&mut sink, &story.beyond(checkpoint, 4_000)).await;
    assert_short(&server.config, "updated in one transaction").await;
    let checkpoint = story.end();
    story.delete(0..many()).event(Some(1), Some("click"), 0, None).commit();
    write(&mut sink, &story.beyond(checkpoint, 4_000)).await;
    assert_short(&server.config, "truncated").await;
    assert_shown(&server.config, &story, "").await;
}

#[tokio::test]
async fn many_contents_with_engagement_at_many_times() {
    let server = watched().await;
    let mut story = Story::new(&Time::real());
    for n in 0..many() {
        story.event(Some(n % 900), Some("play"), (n / 900) as i64 * 7 * SECOND, Some(1_000));
    }
    story.commit();
    let mut sink = told(&server.config, &story).await;
    sink.tick().await.unwrap();
    assert_short(&server.config, "engagement").await;
    assert_shown(&server.config, &story, "").await;
}

/// One bucket has them all, before it is packed and after.
#[tokio::test]
async fn many_contents_at_one_time() {
    let server = watched().await;
    let mut story = Story::new(&Time::real());
    let types: Vec<String> = (0..40).map(|n| format!("type {n}")).collect();
    for n in 0..many() {
        story.content(n, "some", Some(&types[n as usize % 40]), Some(10));
        story.event(Some(n), Some("play"), 0, Some(1_000 + n as i64));
    }
    story.commit();
    let mut sink = told(&server.config, &story).await;
    assert_short(&server.config, "written").await;
    let verified = read_beside(&mut sink, &server.config, &story.time).await;
    assert_eq!(not_as_expected(&story, &verified), []);
    assert_short(&server.config, "verified").await;
    let (mut sink, _) = recovered(&server.config, &story.time, 2).await;
    assert_short(&server.config, "read again").await;
    sink.tick().await.unwrap();
    assert_short(&server.config, "boards written").await;
    story.time.pass(6 * SECOND);
    for _ in 0..4 {
        sink.tick().await.unwrap();
    }
    assert_short(&server.config, "packed").await;
    let verified = read_beside(&mut sink, &server.config, &story.time).await;
    assert_eq!(not_as_expected(&story, &verified), []);
    assert_short(&server.config, "verified when packed").await;
    let (mut sink, _) = recovered(&server.config, &story.time, 3).await;
    assert_short(&server.config, "read again when packed").await;
    story.time.pass(620 * SECOND);
    sink.tick().await.unwrap();
    assert_short(&server.config, "left the window").await;
}
