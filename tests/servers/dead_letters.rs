//! A row that no sink can take is kept in PostgreSQL, whatever sinks there are.

use serde_json::Value;
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

/// Of the world of the next tests: three rows that go on, and two that do not.
async fn with_two_letters() -> World {
    let world = World::initialised().await.with("PIPELINE_SINKS", "redis");
    let running = world.start().await;
    world.insert_events(3).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, &format!("{BAD}; {BAD}")).await;
    let end = world.wal_end().await;
    wait_until("the slot is confirmed beyond the rows", async || world.confirmed_lsn().await >= end).await;
    let counted = async || -> bool {
        let status = running.json("/api/status").await;
        let letters = &status["dead_letters"][0];
        letters["open"] == 2 && letters["reason"] == "negative_duration" && letters["sink"] == "all"
    };
    wait_until("the letters are counted", counted).await;
    let metrics = running.metrics().await;
    let gauge = r#"walcast_dead_letters_open{sink="all",reason="negative_duration"} 2"#;
    assert!(metrics.contains(gauge), "{metrics}");
    let listen = running.address().await;
    let asking = world.with("WEB_LISTEN", listen.trim_start_matches("http://"));
    asking.walcast(["status"]).await.expect(0, &["all  negative_duration: 2 open"]);
    running.stop().await;
    world
}

async fn names(world: &World, more: &[&str]) -> Vec<String> {
    let listed = world.walcast(["dead-letters", "list", "--json"].iter().chain(more).copied()).await;
    let listed =
        serde_json::Deserializer::from_str(&listed.output).into_iter::<Value>().next().unwrap().unwrap();
    listed.as_array().unwrap().iter().map(|letter| letter["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_shown_and_discarded_without_their_values() {
    let world = with_two_letters().await;
    let ones = names(&world, &[]).await;
    assert_eq!(ones.len(), 2);
    let [first, second] = [&ones[0], &ones[1]];
    for (filter, found) in [
        (vec!["--sink", "all"], 2),
        (vec!["--sink", "redis"], 0),
        (vec!["--reason", "negative_duration", "--since", "1h"], 2),
        (vec!["--since", "2099-01-01T00:00:00Z"], 0),
        (vec!["--state", "discarded"], 0),
        (vec!["--max", "1"], 1),
    ] {
        assert_eq!(names(&world, &filter).await.len(), found, "{filter:?}");
    }
    world
        .walcast(["dead-letters", "list"])
        .await
        .expect(0, &["negative_duration", first, "column duration_ms: a negative number"]);
    world
        .walcast(["dead-letters", "list", "--since", "never"])
        .await
        .expect(64, &["neither a time nor a span"]);

    let shape = world.walcast(["dead-letters", "show", first]).await;
    shape.expect(0, &["duration_ms", "bytes", "public.engagement_events"]);
    let event = "SELECT event::json ->> 'event_ts' FROM walcast.dead_letter LIMIT 1";
    let client = sql::connect(&world.postgres).await.unwrap();
    let stamp: String = client.query_one(event, &[]).await.unwrap().get(0);
    let values = world.walcast(["dead-letters", "show", first, "--values"]).await;
    values.expect(0, &["$base64"]);
    assert!(!shape.output.contains("$base64") && !shape.output.contains(&stamp), "{}", shape.output);
    world.walcast(["dead-letters", "show", "all@0/1#0"]).await.expect(2, &["WC-251", "--state any"]);
    world.walcast(["dead-letters", "show", "all"]).await.expect(64, &["is no dead letter's name"]);

    world.walcast(["dead-letters", "discard"]).await.expect(2, &["no letters are named"]);
    world
        .walcast(["dead-letters", "discard", first, "--dry-run"])
        .await
        .expect(0, &["1 dead letter would be discarded"]);
    assert_eq!(names(&world, &[]).await.len(), 2);
    world.walcast(["dead-letters", "discard", first]).await.expect(0, &["1 dead letter discarded"]);
    world.walcast(["dead-letters", "discard", first]).await.expect(2, &["WC-251"]);
    assert_eq!(names(&world, &[]).await, std::slice::from_ref(second));
    assert_eq!(names(&world, &["--state", "discarded"]).await, std::slice::from_ref(first));
    let running = world.start().await;
    world.verify().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_kafka_is_stored_before_kafka_has_passed_it() {
    let world = World::initialised().await.with("PIPELINE_SINKS", "kafka");
    let client = sql::connect(&world.postgres).await.unwrap();
    let hold = Hold::open();
    let running = world.with("FAILPOINTS", &hold.at("kafka_before_commit")).start().await;
    world.insert_events(3).await;
    wait_until("Kafka has all", async || world.kafka_topic("events").await.len() == 3).await;
    hold.close();
    // each of the characters takes six in JSON
    let large = "INSERT INTO engagement_events (event_type, event_ts, device) VALUES ('play', now(), repeat(chr(1), 900000))";
    run(&client, large).await;
    hold.reached().await;
    let letter =
        "SELECT sink || ' ' || reason || ' ' || event_id || ' ' || attempts FROM walcast.dead_letter";
    let letters = async || -> Vec<String> {
        client.query(letter, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    wait_until("the letter is there", async || !letters().await.is_empty()).await;
    running.kill().await;
    drop(hold);
    let again = world.start().await;
    let end = world.wal_end().await;
    wait_until("all is confirmed", async || world.confirmed_lsn().await >= end).await;
    assert_eq!(letters().await, ["kafka record_too_large 4 1"], "one letter, though the row came twice");
    assert_eq!(world.kafka_topic("dlq").await.len(), 1);
    world.verify().await;
    again.stop().await;
}
