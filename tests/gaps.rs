//! Where what the sinks hold and what the slot can still deliver do not meet, walcast stops with exit code 4: it
//! says so within ten seconds, with both positions and what mends it, and no event is skipped in silence.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/services.rs"]
mod services;
mod support;
#[path = "support/world.rs"]
mod world;

use std::time::{Duration, Instant};

use support::{fresh_database, run, wait_until};
use tokio_postgres::Client;
use walcast::source::sql;
use world::{Running, World};

/// How soon a fault that can be noticed must have ended the process.
const SOON: Duration = Duration::from_secs(10);

/// The process ends soon with exit code 4, and says these words.
async fn ends_in_a_resync(mut running: Running, words: &[&str]) {
    let begun = Instant::now();
    let code = running.ended().await;
    let took = begun.elapsed();
    wait_until("all is said", async || running.log.lock().await.contains("what to do: ")).await;
    let log = running.log.lock().await;
    assert_eq!(code, Some(4), "{log}");
    for word in words {
        assert!(log.contains(word), "no {word:?} in: {log}");
    }
    assert!(took <= SOON, "it took {took:?}");
}

/// A start ends soon with exit code 4, and says these words.
async fn start_ends_in_a_resync(world: &World, words: &[&str]) {
    ends_in_a_resync(world.spawn(), words).await;
}

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

/// A world that has streamed some events, and is running.
async fn streaming(world: &World) -> Running {
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    running
}

#[tokio::test]
async fn a_slot_dropped_while_down_is_a_gap() {
    let world = World::initialised().await;
    streaming(&world).await.stop().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, &format!("SELECT pg_drop_replication_slot('{}')", world.postgres.slot)).await;
    start_ends_in_a_resync(&world, &["is gone", "DELETE FROM walcast.epoch", "walcast init"]).await;
    assert!(!world.has_slot().await, "a slot is never made again in silence");
}

#[tokio::test]
async fn a_slot_dropped_while_running_is_a_gap() {
    let world = World::initialised().await;
    let running = streaming(&world).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let drop = format!("PERFORM pg_drop_replication_slot('{}')", world.postgres.slot);
    cut_off_and(&client, &world, &drop).await;
    ends_in_a_resync(running, &["is gone", "DELETE FROM walcast.epoch", "walcast init"]).await;
    assert!(!world.has_slot().await, "a slot is never made again in silence");
}

/// As dump and restore leave it: the state of one cluster in a database of another.
#[tokio::test]
async fn state_of_another_cluster_is_refused() {
    let origin = World::initialised().await;
    let (_, there) = (streaming(&origin).await.stop().await, sql::connect(&origin.postgres).await.unwrap());
    let row: String = {
        let epoch = "SELECT to_jsonb(entry)::text FROM walcast.epoch AS entry";
        there.query_one(epoch, &[]).await.unwrap().get(0)
    };
    for with_slot in [false, true] {
        let world = World::new(fresh_database(services::postgres("17", &[])).await).await;
        world.walcast(["init"]).await.expect(0, &[]);
        let here = sql::connect(&world.postgres).await.unwrap();
        run(&here, "DELETE FROM walcast.epoch").await;
        let restore = "INSERT INTO walcast.epoch SELECT (jsonb_populate_record(NULL::walcast.epoch,
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
        let words = [systems[0].as_str(), &systems[1], "restored from another cluster", "walcast init"];
        start_ends_in_a_resync(&world, &words).await;
    }
}
