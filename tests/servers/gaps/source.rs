//! The slot, the server, its WAL and the publication.

use tokio_postgres::Client;
use walcast::source::sql;

use super::{
    ends_in_a_resync, kafka_has, start_ends_in_a_resync, streaming_to_kafka, streaming_to_redis, world_of,
};
use crate::support::hold::Hold;
use crate::support::pair::Pair;
use crate::support::services;
use crate::support::wire::{Weather, Wire};
use crate::support::world::World;
use crate::support::{self, run, wait_until};

/// Ends whoever reads the slot, and runs a statement before it can be back.
async fn cut_off_and(client: &Client, world: &World, statement: &str) {
    let slot = &world.postgres.slot;
    let cut = format!(
        "DO $$ BEGIN
           PERFORM pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active;
           {statement};
         END $$"
    );
    // a walcast that was faster than the statement is cut off again
    wait_until("the slot is free for it", async || client.batch_execute(&cut).await.is_ok()).await;
}

#[tokio::test]
async fn a_slot_dropped_while_down_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    streaming_to_redis(&world).await.stop().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, &format!("SELECT pg_drop_replication_slot('{}')", world.postgres.slot)).await;
    start_ends_in_a_resync(&world, &["WC-410", "is gone", "it began at", "WAL is at", "walcast resync"])
        .await;
    assert!(!world.has_slot().await, "a slot is never made again in silence");
}

#[tokio::test]
async fn a_slot_dropped_while_running_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    let running = streaming_to_redis(&world).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let drop = format!("PERFORM pg_drop_replication_slot('{}')", world.postgres.slot);
    cut_off_and(&client, &world, &drop).await;
    ends_in_a_resync(running, &["WC-410", "is gone", "it began at", "WAL is at", "walcast resync"]).await;
    assert!(!world.has_slot().await, "a slot is never made again in silence");
}

/// As dump and restore leave it: the state of one cluster in a database of another.
#[tokio::test]
async fn state_of_another_cluster_is_refused() {
    let origin = world_of(support::postgres(), "redis").await;
    streaming_to_redis(&origin).await.stop().await;
    let there = sql::connect(&origin.postgres).await.unwrap();
    let row: String = {
        let history_id = "SELECT to_jsonb(entry)::text FROM walcast.slot AS entry";
        there.query_one(history_id, &[]).await.unwrap().get(0)
    };
    for with_slot in [false, true] {
        let world = world_of(services::postgres("17", &[]), "redis").await;
        let here = sql::connect(&world.postgres).await.unwrap();
        run(&here, "DELETE FROM walcast.slot").await;
        let restore = "INSERT INTO walcast.slot SELECT (jsonb_populate_record(NULL::walcast.slot,
                         jsonb_set($1::text::jsonb, '{slot}', to_jsonb($2::text)))).*";
        here.execute(restore, &[&row, &world.postgres.slot]).await.unwrap();
        if !with_slot {
            run(&here, &format!("SELECT pg_drop_replication_slot('{}')", world.postgres.slot)).await;
        }
        let systems: Vec<String> = {
            let id = "SELECT system_identifier::text FROM pg_control_system()";
            let ask = async |client: &Client| client.query_one(id, &[]).await.unwrap().get(0);
            vec![ask(&there).await, ask(&here).await]
        };
        let words =
            ["WC-414", systems[0].as_str(), &systems[1], "restored from another cluster", "walcast resync"];
        start_ends_in_a_resync(&world, &words).await;
    }
}

/// Goes on to the next segment of the WAL, 16 MB each.
async fn next_segment(client: &Client) {
    run(client, "SELECT pg_logical_emit_message(true, 'other', repeat('x', 1000)), pg_switch_wal()").await;
}

/// Writes WAL until the server forgets what slots before it still need.
async fn outrun(client: &Client) {
    for _ in 0..6 {
        next_segment(client).await;
    }
    run(client, "CHECKPOINT").await;
}

#[tokio::test]
async fn a_slot_that_lost_its_wal_is_a_gap() {
    let settings = ["max_slot_wal_keep_size=32MB", "max_wal_size=64MB", "min_wal_size=32MB"];
    let server = services::postgres("18:outrun", &settings);
    let words = ["WC-411", "wal_removed", "raise max_slot_wal_keep_size", "walcast resync"];

    let world = world_of(server.clone(), "redis").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    streaming_to_redis(&world).await.stop().await;
    outrun(&client).await;
    start_ends_in_a_resync(&world, &words).await;

    let world = world_of(server, "redis").await;
    let running = streaming_to_redis(&world).await;
    // an open transaction holds the slot back, however much of it is confirmed
    let holding = sql::connect(&world.postgres).await.unwrap();
    run(&holding, "BEGIN; CREATE TABLE held_back (i INT)").await;
    outrun(&client).await;
    ends_in_a_resync(running, &words).await;
    services::command(&["postgres", "18:outrun", "down"]);
}

/// A stream counts as a synchronous standby wherever a star stands: each commit would wait for the sinks, theirs too.
#[tokio::test]
async fn a_server_whose_commits_would_wait_for_walcast_is_left_alone() {
    let world = world_of(services::postgres("18:synchronous", &[]), "redis").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let names = async |names: &str| {
        run(&client, &format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await;
        run(&client, "SELECT pg_reload_conf()").await;
    };
    for told in ["*", "FIRST 1 (other, \"Walcast\")"] {
        let mut running = streaming_to_redis(&world).await;
        names(told).await;
        assert_eq!(running.ended().await, Some(2), "{}", running.log.lock().await);
        assert!(running.log.lock().await.contains("WC-215"), "{}", running.log.lock().await);
        for command in ["run", "check", "init"] {
            world.walcast([command]).await.expect(2, &["WC-215", "name the standbys"]);
        }
        names("").await;
    }
    streaming_to_redis(&world).await.stop().await;
    drop((client, world));
    services::command(&["postgres", "18:synchronous", "wipe"]);
}

/// As the snapshot of a disk leaves it: the same cluster and timeline, some time ago.
#[tokio::test]
async fn a_server_restored_from_an_older_state_is_told() {
    let server = services::postgres("18:restored", &[]);
    let copy = |to, from| {
        services::command(&["postgres", "18:restored", "down"]);
        services::command(&["postgres", to, "copy", from]);
        services::postgres("18:restored", &[]);
    };
    let kafka = world_of(server.clone(), "kafka").await;
    let redis = world_of(server, "redis").await;
    streaming_to_kafka(&kafka).await.stop().await;
    streaming_to_redis(&redis).await.stop().await;
    copy("18:backup", "18:restored");
    // further than a server's own doings, its autovacuum's above all, could take it
    next_segment(&sql::connect(&kafka.postgres).await.unwrap()).await;
    streaming_to_kafka(&kafka).await.stop().await;
    for _ in 0..2 {
        streaming_to_redis(&redis).await.stop().await;
    }
    copy("18:restored", "18:backup");
    start_ends_in_a_resync(&kafka, &["WC-405", "kafka holds everything up to", "WAL ends at", "older state"])
        .await;
    // its fence remembers an instance that PostgreSQL has forgotten
    start_ends_in_a_resync(&redis, &["WC-408", "older state", "a newer walcast (fencing token"]).await;
    // Once other rows lie where the lost ones were, and beyond, the stream shows it.
    kafka.insert_events(10).await;
    let client = sql::connect(&kafka.postgres).await.unwrap();
    next_segment(&client).await;
    next_segment(&client).await;
    kafka.insert_events(10).await;
    let events = kafka.kafka_events().await.len();
    for _ in 0..2 {
        start_ends_in_a_resync(&kafka, &["WC-405", "kafka holds a last row at", "WAL has none there"]).await;
    }
    assert_eq!(kafka.kafka_events().await.len(), events, "nothing follows what was lost");
    drop((kafka, redis));
    services::command(&["postgres", "18:restored", "wipe"]);
    services::command(&["postgres", "18:backup", "wipe"]);
}

async fn goes_on_after_a_failover_to_a_level_standby(pair: Pair) {
    let world = world_of(pair.primary.clone(), "kafka,redis,bigquery").await;
    let running = world.start().await;
    world.insert_events(10).await;
    pair.synced(&world).await;
    world.wait_until_all_hold(10).await;
    running.stop().await;
    pair.level(&world).await;
    pair.kill_primary();
    let world = pair.after(&world);
    let waiting = world.spawn();
    waiting.wait_until_told("WC-302").await;
    pair.promote().await;
    waiting.wait_until_streaming().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(20).await;
    waiting.stop().await;
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(30).await;
    running.stop().await;
    drop(world);
    pair.wipe();
}

#[tokio::test]
async fn after_a_failover_to_a_level_standby_walcast_goes_on() {
    goes_on_after_a_failover_to_a_level_standby(Pair::new("level").await).await;
}

#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn after_a_failover_to_a_level_standby_walcast_goes_on_19() {
    goes_on_after_a_failover_to_a_level_standby(Pair::of("19", "level").await).await;
}

#[tokio::test]
async fn a_new_primary_is_followed_within_five_seconds() {
    let pair = Pair::new("followed").await;
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", pair.primary.port, pair.standby.port);
    let world = world_of(pair.primary.clone(), "kafka,redis").await.with("POSTGRES_HOST", &hosts);
    // the one that streams, and the one that waits for it
    let running = [world.start().await, world.spawn()];
    world.insert_events(10).await;
    pair.synced(&world).await;
    kafka_has(&world, 10).await;
    wait_until("Redis has all", async || world.redis_plays().await == 10).await;
    pair.level(&world).await;
    pair.kill_primary();
    // as long as a longest pause without several hosts
    for one in &running {
        wait_until("it has looked again and again", async || {
            one.log.lock().await.matches("starting again in").count() >= 1
        })
        .await;
    }
    let waited = std::time::Instant::now();
    wait_until("the pauses are as long as they get", async || waited.elapsed().as_secs() >= 12).await;
    pair.promote().await;
    let promoted = std::time::Instant::now();
    wait_until("one of them streams", async || {
        running[0].is_streaming().await || running[1].is_streaming().await
    })
    .await;
    assert!(promoted.elapsed().as_secs_f64() < 5.0, "{:?}", promoted.elapsed());
    let after = pair.after(&world);
    after.insert_events(10).await;
    kafka_has(&after, 20).await;
    wait_until("Redis has all", async || after.redis_plays().await == 20).await;
    for one in running {
        one.kill().await;
    }
    drop((after, world));
    pair.wipe();
}

/// The old primary takes writes beside the new one, and lets nobody in any more in the middle of a start.
#[tokio::test]
async fn a_start_is_of_one_server_where_two_take_writes() {
    let pair = Pair::new("two").await;
    let world = world_of(pair.primary.clone(), "kafka,redis").await;
    let running = world.start().await;
    world.insert_events(10).await;
    pair.synced(&world).await;
    running.stop().await;
    pair.level(&world).await;
    pair.promote().await;
    let after = pair.after(&world);
    let client = sql::connect(&after.postgres).await.unwrap();
    let token = async |client: &Client| -> i64 {
        client.query_one("SELECT fencing_token FROM walcast.slot", &[]).await.unwrap().get(0)
    };
    let known = token(&client).await;
    let (old, hold) = (Wire::to(pair.primary.port).await, Hold::closed());
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", old.port, pair.standby.port);
    let starting = world.with("POSTGRES_HOST", &hosts);
    let starting = starting.with("FAILPOINTS", &hold.at("pipeline_after_recover")).spawn();
    hold.reached().await;
    assert!(old.accepted() > 0, "the old one comes first in the list");
    old.set(Weather::Shut);
    hold.release();
    starting.wait_until_streaming().await;
    after.insert_events(10).await;
    kafka_has(&after, 20).await;
    wait_until("Redis has all", async || after.redis_plays().await == 20).await;
    let streams = starting.log.lock().await.matches("streaming from slot").count();
    assert_eq!(streams, 1, "a stream began with what the other server said");
    assert_ne!(token(&client).await, known, "it streams from a server where it has not begun");
    drop(client);
    starting.stop().await;
    drop((after, world));
    pair.wipe();
}

#[tokio::test]
async fn a_standby_promoted_while_behind_a_sink_is_a_gap() {
    let pair = Pair::new("behind").await;
    let kafka = world_of(pair.primary.clone(), "kafka").await;
    let bigquery = world_of(pair.primary.clone(), "bigquery").await;
    // BigQuery comes to it when the standby hears no more, not of its first checkpoint either
    let fresh = world_of(pair.primary.clone(), "bigquery").await;
    let without = fresh.with("PIPELINE_SINKS", "null").start().await;
    let running = [streaming_to_kafka(&kafka).await, bigquery.start().await];
    bigquery.insert_events(10).await;
    for world in [&kafka, &bigquery, &fresh] {
        pair.synced(world).await;
    }
    without.stop().await;
    // stopped: one that only pauses replays before its promotion what it has received
    services::command(&["postgres", &pair.labels[1], "down"]);
    kafka.insert_events(10).await;
    bigquery.insert_events(10).await;
    let fresh_running = fresh.start().await;
    fresh.insert_events(10).await;
    kafka_has(&kafka, 20).await;
    wait_until("BigQuery has all", async || bigquery.bigquery_count().await == 20).await;
    wait_until("BigQuery has all", async || fresh.bigquery_count().await == 10).await;
    for running in running.into_iter().chain([fresh_running]) {
        running.kill().await;
    }
    pair.kill_primary();
    services::postgres(&pair.labels[1], &[]);
    pair.promote().await;
    for again in [false, true] {
        let words =
            ["WC-404", "kafka holds", "of timeline 1", "on timeline 2, left at", "lost in the failover"];
        start_ends_in_a_resync(&pair.after(&kafka), &words).await;
        let words = ["WC-404", "bigquery holds events up to", "on timeline 2, left at", "DELETE FROM"];
        start_ends_in_a_resync(&pair.after(&bigquery), &words).await;
        start_ends_in_a_resync(&pair.after(&fresh), &words).await;
        assert!(again || pair.after(&kafka).has_slot().await);
    }
    drop((kafka, bigquery, fresh));
    pair.wipe();
}

#[tokio::test]
async fn a_publication_dropped_while_streaming_is_a_gap() {
    for version in ["16", "18"] {
        for with_rows in [true, false] {
            let world = world_of(services::postgres(version, &[]), "redis").await;
            let running = streaming_to_redis(&world).await;
            let client = sql::connect(&world.postgres).await.unwrap();
            run(&client, &format!("DROP PUBLICATION {}", world.postgres.publication)).await;
            let before = world.wal_end().await;
            if with_rows {
                world.insert_events(1).await;
            }
            ends_in_a_resync(running, &["publication", &world.postgres.publication]).await;
            assert!(!with_rows || world.confirmed_lsn().await <= before, "a row was skipped on {version}");
            start_ends_in_a_resync(&world, &["dropped", "walcast resync"]).await;
        }
    }
}

/// A look at the catalog sees what was there when it began, and what it asks for more sees what is there now.
#[tokio::test]
async fn a_publication_that_is_dropped_while_it_is_looked_at_is_gone() {
    let world = world_of(support::postgres(), "redis").await;
    let looks = sql::connect(&world.postgres).await.unwrap();
    run(&looks, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_publication").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, &format!("DROP PUBLICATION {}", world.postgres.publication)).await;
    let found = walcast::source::slot::publication(&looks, &world.postgres).await.unwrap();
    assert!(found.is_none());
}

#[tokio::test]
async fn a_table_taken_out_of_the_publication_while_streaming_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    let running = streaming_to_redis(&world).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let publication = &world.postgres.publication;
    run(&client, &format!("ALTER PUBLICATION {publication} DROP TABLE engagement_events")).await;
    ends_in_a_resync(running, &["engagement_events", "may be missing", "ADD TABLE"]).await;
}

/// Between two looks, or while walcast is down: the rows of that while are in no stream.
#[tokio::test]
async fn a_table_taken_out_of_the_publication_for_a_moment_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    let running = streaming_to_redis(&world).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let publication = &world.postgres.publication;
    let moment = async {
        run(&client, &format!("ALTER PUBLICATION {publication} DROP TABLE engagement_events")).await;
        world.insert_events(1).await;
        run(&client, &format!("ALTER PUBLICATION {publication} ADD TABLE engagement_events")).await;
    };
    moment.await;
    // a look may fall into that very moment
    ends_in_a_resync(running, &["publication", publication]).await;
    start_ends_in_a_resync(&world, &["WC-413", "put back", "walcast resync"]).await;

    let world = world_of(support::postgres(), "redis").await;
    streaming_to_redis(&world).await.stop().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let publication = &world.postgres.publication;
    run(&client, &format!("ALTER PUBLICATION {publication} DROP TABLE content")).await;
    run(&client, &format!("ALTER PUBLICATION {publication} ADD TABLE content")).await;
    start_ends_in_a_resync(&world, &["WC-413", "put back", "walcast resync"]).await;
}

/// As one that was left behind by a failover looks to a walcast that has followed it.
#[tokio::test]
async fn a_server_that_did_not_grow_out_of_what_was_read_is_refused() {
    let world = world_of(support::postgres(), "redis").await;
    streaming_to_redis(&world).await.stop().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "UPDATE walcast.slot SET timeline = 9").await;
    let words = ["WC-415", "of timeline 9", "did not grow out of", "set postgres.host"];
    start_ends_in_a_resync(&world, &words).await;
}

#[tokio::test]
async fn a_history_that_is_forgotten_while_running_is_a_gap() {
    let world = world_of(support::postgres(), "redis").await;
    let running = streaming_to_redis(&world).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "DELETE FROM walcast.slot").await;
    world.insert_events(10).await;
    ends_in_a_resync(running, &["WC-416", "no longer knows slot", "walcast resync"]).await;
}
