//! `walcast drain` and `walcast adopt`: PostgreSQL is upgraded, and no event is lost or sent twice.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_postgres::Client;
use walcast::source::sql;

use crate::rebuild::{bigquery_has, kafka_has};
use crate::support::world::{Ended, World};
use crate::support::{fresh_database, postgres, run, services, wait_until};

async fn all_have(world: &World, events: i64) {
    kafka_has(world, events).await;
    bigquery_has(world, events).await;
    wait_until("Redis has all", async || world.redis_plays().await == events).await;
    world.verify().await;
}

/// What streamed has stopped, some of it not seen by every sink yet.
async fn streamed(world: &World, from: i64) {
    let running = world.start().await;
    world.insert_events(10).await;
    kafka_has(world, from + 10).await;
    world.insert_events(10).await;
    running.stop().await;
    world.insert_events(10).await;
}

/// A `walcast drain` that has begun to read on.
async fn draining(world: &World, client: &Client) -> JoinHandle<Ended> {
    let drain = tokio::spawn({
        let world = world.clone();
        async move { world.walcast(["drain"]).await }
    });
    let level = format!(
        "SELECT slot.drained_from IS NOT NULL AND slot.drained_to IS NULL AND active AND confirmed_flush_lsn >= pg_current_wal_flush_lsn()
         FROM walcast.slot, pg_replication_slots WHERE slot_name = '{}'",
        world.postgres.slot
    );
    wait_until("nothing is left", async || {
        // what PostgreSQL writes by itself is read too
        run(client, "SELECT pg_logical_emit_message(true, 'other', '')").await;
        client.query_one(&level, &[]).await.unwrap().get::<_, bool>(0)
    })
    .await;
    drain
}

/// A world on a server that is to be upgraded.
async fn before(name: &str, [from, to]: [&str; 2]) -> (World, [String; 2]) {
    let labels = [format!("{from}:{name}-old"), format!("{to}:{name}-new")];
    for label in &labels {
        services::command(&["postgres", label, "wipe"]);
    }
    let server = services::postgres(&labels[0], &[]);
    let world = World::new(server).await.with("BIGQUERY_COMMIT_SECONDS", "1");
    world.walcast(["init"]).await.expect(0, &[]);
    (world, labels)
}

/// The same world on the server that pg_upgrade has made.
fn upgraded(world: &World, labels: &[String; 2]) -> World {
    services::command(&["postgres", &labels[1], "upgrade", &labels[0]]);
    let mut world = world.clone();
    world.postgres.port = services::postgres(&labels[1], &[]).port;
    world
}

async fn all_is_everywhere_once(name: &str, versions: [&str; 2]) {
    let (world, labels) = before(name, versions).await;
    let is_kept_on_standbys = async |world: &World| {
        let client = sql::connect(&world.postgres).await.unwrap();
        let query = "SELECT failover FROM pg_replication_slots WHERE slot_name = $1";
        client.query_one(query, &[&world.postgres.slot]).await.unwrap().get::<_, bool>(0)
    };
    assert!(is_kept_on_standbys(&world).await);
    streamed(&world, 0).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let drain = draining(&world, &client).await;
    drop(client);
    services::command(&["postgres", &labels[0], "down"]);
    drain.await.unwrap().expect(0, &["Stop PostgreSQL now", "PostgreSQL has stopped", "walcast adopt"]);

    let world = upgraded(&world, &labels);
    assert!(is_kept_on_standbys(&world).await);
    world.walcast(["run"]).await.expect(4, &["WC-414", "walcast adopt"]);
    world.insert_events(5).await;
    world
        .walcast(["adopt"])
        .await
        .expect(0, &["has become", "is there, and begins at", "walcast adopt --yes"]);
    world.walcast(["run"]).await.expect(4, &["WC-414"]);
    world.walcast(["adopt", "--yes"]).await.expect(0, &["Adopted: `walcast run` goes on"]);
    world.walcast(["adopt"]).await.expect(0, &["nothing is to be adopted"]);
    for events in [35, 45] {
        let running = world.start().await;
        all_have(&world, events).await;
        world.insert_events(10).await;
        all_have(&world, events + 10).await;
        running.stop().await;
    }
    drop(world);
    labels.iter().for_each(|label| drop(services::command(&["postgres", label, "wipe"])));
}

#[tokio::test]
async fn every_event_is_everywhere_once_before_and_after_pg_upgrade() {
    all_is_everywhere_once("upgraded", ["17", "18"]).await;
}

#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn every_event_is_everywhere_once_before_and_after_pg_upgrade_from_17_to_19() {
    all_is_everywhere_once("upgraded-17", ["17", "19"]).await;
}

#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn every_event_is_everywhere_once_before_and_after_pg_upgrade_from_18_to_19() {
    all_is_everywhere_once("upgraded-18", ["18", "19"]).await;
}

#[tokio::test]
async fn a_slot_that_pg_upgrade_has_not_kept_is_made_anew_and_the_sinks_keep_what_they_hold() {
    let (world, labels) = before("slotless", ["17", "18"]).await;
    streamed(&world, 0).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let drain = draining(&world, &client).await;
    services::command(&["postgres", &labels[0], "down"]);
    drain.await.unwrap().expect(0, &[]);

    let world = upgraded(&world, &labels);
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, &format!("SELECT pg_drop_replication_slot('{}')", world.postgres.slot)).await;
    world.insert_events(5).await;
    let told = ["was not kept", "kafka       holds all", "a new slot is to be made"];
    world.walcast(["adopt", "--yes"]).await.expect(0, &told);
    world.walcast(["run"]).await.expect(4, &["WC-410", "walcast resync"]);
    world.walcast(["resync", "--yes", "--detach"]).await.expect(0, &[]);
    let running = world.start().await;
    all_have(&world, 35).await;
    world.insert_events(10).await;
    all_have(&world, 45).await;
    running.stop().await;
    drop(world);
    labels.iter().for_each(|label| drop(services::command(&["postgres", label, "wipe"])));
}

#[tokio::test]
async fn a_server_that_was_not_drained_is_not_adopted() {
    let (world, labels) = before("undrained", ["17", "18"]).await;
    let running = world.start().await;
    world.insert_events(10).await;
    kafka_has(&world, 10).await;
    running.stop().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    // by hand, as far as PostgreSQL asks for it
    let advance = "SELECT pg_replication_slot_advance($1::text::name, pg_current_wal_flush_lsn())";
    client.execute(advance, &[&world.postgres.slot]).await.unwrap();
    drop(client);
    services::command(&["postgres", &labels[0], "down"]);
    let world = upgraded(&world, &labels);
    world.walcast(["adopt", "--yes"]).await.expect(4, &["WC-414", "was not drained", "walcast resync"]);
    drop(world);
    labels.iter().for_each(|label| drop(services::command(&["postgres", label, "wipe"])));
}

#[tokio::test]
async fn whoever_drains_and_does_not_upgrade_goes_on_where_he_was() {
    let world = World::new(fresh_database(postgres()).await).await.with("BIGQUERY_COMMIT_SECONDS", "1");
    world.walcast(["init"]).await.expect(0, &[]);
    let client = Arc::new(sql::connect(&world.postgres).await.unwrap());
    streamed(&world, 0).await;
    for (events, killed) in [(30, None), (60, Some("drain_before_note")), (90, Some("drain_after_note"))] {
        if let Some(failpoint) = killed {
            let ended = world.with("FAILPOINTS", &format!("{failpoint}=return")).walcast(["drain"]).await;
            assert_ne!(ended.code, Some(0), "{failpoint} was not passed");
        }
        let running = world.spawn_command("drain");
        let level = format!(
            "SELECT drained_to IS NULL AND confirmed_flush_lsn > drained_from FROM walcast.slot JOIN pg_replication_slots ON slot_name = slot
             WHERE slot = '{}' AND drained_from IS NOT NULL",
            world.postgres.slot
        );
        wait_until("it reads on", async || {
            let read = client.query_opt(&level, &[]).await.unwrap();
            read.is_some_and(|row| row.get::<_, bool>(0))
        })
        .await;
        match killed {
            // the slot begins behind what the sinks hold
            Some(_) => running.kill().await,
            None => {
                // one that has waited meanwhile goes on as well
                let waiting = world.spawn();
                wait_until("it waits", async || waiting.log.lock().await.contains("waiting for its end"))
                    .await;
                running.stop().await;
                waiting.wait_until_streaming().await;
                waiting.stop().await;
            }
        }
        streamed(&world, events).await;
        let running = world.start().await;
        all_have(&world, events + 30).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn rows_that_still_come_are_told_and_stay_in_the_slot() {
    let world = World::new(fresh_database(postgres()).await).await.with("BIGQUERY_COMMIT_SECONDS", "1");
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    streamed(&world, 0).await;
    let reading = world.start().await;
    world.walcast(["drain"]).await.expect(1, &["WC-303", "stop `walcast run`"]);
    reading.stop().await;
    let drain = draining(&world, &client).await;
    world.insert_events(1).await;
    drain.await.unwrap().expect(2, &["WC-256", "a row of the publication has come", "stop who writes"]);
    let running = world.start().await;
    all_have(&world, 31).await;
    running.stop().await;
}
