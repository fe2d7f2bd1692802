//! A row that no sink can take is kept in PostgreSQL, whatever sinks there are.

use walcast::source::sql;

use crate::support::hold::Hold;
use crate::support::world::World;
use crate::support::{run, wait_until};

const GOOD: &str = "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
                    SELECT id, 'play', now(), 1000 FROM content LIMIT 1";
const BAD: &str = "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
                   SELECT id, 'play', now(), -1 FROM content LIMIT 1";

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_refused_before_the_sinks_is_stored_before_it_is_confirmed() {
    let world = World::initialised().await.with("PIPELINE_SINKS", "redis");
    let client = sql::connect(&world.postgres).await.unwrap();
    let hold = Hold::open();
    let running = world.with("FAILPOINTS", &hold.at("redis_before_flush")).start().await;
    world.insert_events(3).await;
    wait_until("Redis has all", async || world.redis_plays().await == 3).await;
    hold.close();
    run(&client, &format!("{GOOD}; {BAD}; {GOOD}")).await;
    let end = world.wal_end().await;
    let letters = async || -> i64 {
        client.query_one("SELECT count(*) FROM walcast.dead_letter", &[]).await.unwrap().get(0)
    };
    wait_until("the letter is stored", async || letters().await == 1).await;
    hold.reached().await;
    assert!(world.confirmed_lsn().await < end, "Redis does not have the transaction");
    running.kill().await;
    // read again, at first by who knows that it has the letter
    let hold = Hold::closed();
    let again = world.with("FAILPOINTS", &hold.at("redis_before_flush")).start().await;
    hold.reached().await;
    again.kill().await;
    // and then by who has forgotten it: the same letter, not another
    run(&client, "DELETE FROM walcast.progress WHERE sink = 'content'; DELETE FROM walcast.sink WHERE name = 'content'")
        .await;
    assert!(world.confirmed_lsn().await < end, "all of it is to be read again");
    let again = world.start().await;
    wait_until("the slot is confirmed beyond the row", async || world.confirmed_lsn().await >= end).await;
    again.stop().await;
    assert_eq!(world.redis_plays().await, 5);

    let query = "SELECT sink, source_table, reason, state, attempts, commit_ts > now() - interval '1 hour',
                   record::jsonb ? 'duration_ms', ordinal
                 FROM walcast.dead_letter";
    let rows = client.query(query, &[]).await.unwrap();
    assert_eq!(rows.len(), 1, "one letter for one row");
    let text = |column: usize| rows[0].get::<_, String>(column);
    assert_eq!(
        [text(0), text(1), text(2), text(3)],
        ["all", "public.engagement_events", "negative_duration", "open"]
    );
    assert_eq!((rows[0].get::<_, i32>(4), rows[0].get::<_, i64>(7)), (1, 1));
    assert!(rows[0].get::<_, bool>(5) && rows[0].get::<_, bool>(6));
}
