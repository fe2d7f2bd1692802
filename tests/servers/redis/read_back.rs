//! What `walcast verify` reads of Redis, while the sink goes on writing there.

use std::time::Duration;

use futures_util::future::join_all;
use redis::Script;
use walcast::batch::Row;
use walcast::lsn::Checkpoint;
use walcast::sink::Sink;
use walcast::sink::read_back::{KeyFound, KeyState};
use walcast::sink::redis::read_back::{self, Expected, Reading};
use walcast::sink::redis::{RedisConfig, RedisSink};

use super::told;
use crate::support::redis_server::{connect, fresh_database, run};
use crate::support::story::{Story, Time, session};

/// Packs the bucket KEYS[1], which has one content (ARGV[1]) with a second of engagement, or unpacks it.
const TURN: &str = r"
if redis.call('DEL', KEYS[1]) == 1 then
  redis.call('SET', KEYS[1] .. ':packed', ARGV[1] .. '\232\7')
else
  redis.call('DEL', KEYS[1] .. ':packed')
  redis.call('HSET', KEYS[1], ARGV[1], '1000')
end";

/// What is found otherwise than the story amounts to, boards left out.
pub fn not_as_expected(story: &Story, reading: &Reading) -> Vec<KeyFound> {
    let mut differing = compared(story, reading);
    differing.retain(|found| found.state != KeyState::Same && !found.key.starts_with("top_engagement:"));
    differing
}

/// How everything is found to be.
pub fn compared(story: &Story, reading: &Reading) -> Vec<KeyFound> {
    let mut expected = Expected::new(reading.at);
    for batch in story.beyond(Checkpoint::default(), 100) {
        for row in batch.rows() {
            let Row::Event(event) = row else { continue };
            expected.add(event, event.event_type.map(|span| batch.text(span)));
        }
    }
    let mut compared = Vec::new();
    read_back::differences(expected, &[], reading, &|_| false, &mut |found| compared.push(found));
    compared
}

/// Reads while the sink goes on refreshing its boards.
pub async fn read_beside(sink: &mut RedisSink, config: &RedisConfig, time: &Time) -> Reading {
    const PACE: Duration = Duration::from_millis(100);
    let history_id = session(1).history_id;
    let refreshing = async {
        loop {
            time.pass(PACE.as_micros() as i64);
            sink.tick().await.unwrap();
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::select! {
        reading = read_back::read(config, &history_id) => reading.unwrap(),
        () = refreshing => unreachable!(),
    }
}

#[tokio::test]
async fn a_bucket_that_is_packed_while_it_is_looked_for_is_found() {
    let config = fresh_database().await;
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(1_000)).commit();
    drop(told(&config, &story).await);
    let mut connection = connect(&config).await;
    let buckets: Vec<String> = run(&mut connection, &["KEYS", "walcast:10min:*"]).await;
    // looking through the keys takes some rounds; and nobody refreshes the boards
    let others = "for i = 1, 20000 do redis.call('SET', 'other:' .. i, '') end
        for _, board in ipairs(redis.call('KEYS', 'top_engagement:*')) do redis.call('DEL', board) end";
    let () = Script::new(others).invoke_async(&mut connection).await.unwrap();

    let turning = tokio::spawn(async move {
        let (turn, id) = (Script::new(TURN), uuid::Uuid::from_u128(1));
        loop {
            let mut turn = turn.key(&buckets[0]);
            let () = turn.arg(id.as_bytes().as_slice()).invoke_async(&mut connection).await.unwrap();
        }
    });
    let history_id = session(1).history_id;
    let readings = join_all((0..32).map(|_| read_back::read(&config, &history_id))).await;
    turning.abort();
    for reading in readings {
        assert_eq!(not_as_expected(&story, &reading.unwrap()), []);
    }
}
