//! walcast itself is killed, under load.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::plan::{Death, deaths, failpoints, seeded};
use crate::support::world::World;
use crate::support::{fresh_database, postgres, run};
use crate::{RATE_PER_MINUTE, is_long, kills};
use walcast::source::sql;

/// A life that has not come to its failpoint by then is ended by kill -9.
pub const PATIENCE: Duration = Duration::from_secs(25);

/// Kills until all is compared: BigQuery's emulator takes in less than the load brings.
const SERIES: usize = 20;

pub async fn world() -> World {
    World::new(fresh_database(postgres()).await).await.with("BIGQUERY_COMMIT_SECONDS", "1")
}

#[tokio::test]
async fn every_event_is_everywhere_once_after_kills_at_random_instants_and_at_every_failpoint() {
    let mut rng = seeded();
    let mut reached = BTreeMap::new();
    for (number, deaths) in (1..).zip(deaths(&mut rng, kills()).chunks(SERIES)) {
        println!("series {number}");
        series(&mut rng, deaths, &mut reached).await;
    }
    println!("deaths at failpoints: {reached:?}");
    if is_long() {
        let never: Vec<_> = reached.iter().filter(|(_, deaths)| **deaths == 0).collect();
        assert!(never.is_empty(), "never reached: {never:?}");
    }
}

/// A new world, killed so often under load, is whole in the end.
async fn series(rng: &mut StdRng, deaths: &[Death], reached: &mut BTreeMap<String, u32>) {
    let world = world().await;
    world.walcast(["init"]).await.expect(0, &[]);
    let load = world.generate(RATE_PER_MINUTE);
    for death in deaths {
        if rng.random_bool(0.1) {
            huge_transaction(&world).await;
        }
        let died_there = live(&world, death).await;
        println!("{death}{}", if died_there { "" } else { ": not reached, kill -9" });
        if let Death::At { failpoint, .. } = death {
            *reached.entry(failpoint.clone()).or_insert(0) += u32::from(died_there);
        }
    }
    drop(load);
    let running = world.start().await;
    world.verify().await;
    running.stop().await;
}

/// One life; whether it ended where it was to end.
async fn live(world: &World, death: &Death) -> bool {
    match death {
        Death::After(time) => {
            let mut running = world.spawn();
            assert!(
                !running.ends_within(*time).await,
                "walcast ended by itself: {}",
                running.log.lock().await
            );
            running.kill().await;
            true
        }
        Death::At { failpoint, passes } => {
            let world = world.with("FAILPOINTS", &format!("{failpoint}={passes}*off->return"));
            let mut running = world.spawn();
            if failpoint == "pipeline_before_close" {
                running.wait_until_streaming().await;
                running.send("TERM");
            }
            let died = running.ends_within(PATIENCE).await;
            if !died {
                running.kill().await;
            }
            died
        }
    }
}

/// More rows than a batch takes, in one transaction.
async fn huge_transaction(world: &World) {
    let client = sql::connect(&world.postgres).await.unwrap();
    let insert = "INSERT INTO engagement_events (event_type, event_ts, duration_ms)
                  SELECT 'pause', now(), i FROM generate_series(1, 20000) AS i";
    run(&client, insert).await;
}

#[tokio::test]
async fn a_first_start_may_die_at_each_of_its_steps() {
    let first_steps = |name: &String| name.starts_with("history_id_") || name.starts_with("driver_");
    let steps: Vec<_> = failpoints().into_iter().filter(first_steps).collect();
    assert!(steps.len() >= 6, "{steps:?}");
    let world = world().await;
    world.walcast(["init"]).await.expect(0, &[]);
    world.insert_events(5).await;
    for step in steps.iter().filter(|step| step.starts_with("history_id_")) {
        forget_slot(&world).await;
        die_at(&world, step).await;
        world.insert_events(5).await;
    }
    for step in steps.iter().filter(|step| step.starts_with("driver_")) {
        die_at(&world, step).await;
        world.insert_events(5).await;
    }
    let running = world.start().await;
    world.verify().await;
    running.stop().await;
}

async fn die_at(world: &World, failpoint: &str) {
    let mut running = world.with("FAILPOINTS", &format!("{failpoint}=return")).spawn();
    assert!(
        running.ends_within(2 * PATIENCE).await,
        "{failpoint} is not reached: {}",
        running.log.lock().await
    );
}

/// As it was before any first start; nothing has been read from the slot yet.
async fn forget_slot(world: &World) {
    let client = sql::connect(&world.postgres).await.unwrap();
    let slot = &world.postgres.slot;
    run(
        &client,
        &format!(
            "SELECT pg_drop_replication_slot('{slot}') FROM pg_replication_slots WHERE slot_name = '{slot}'"
        ),
    )
    .await;
    run(&client, "DELETE FROM walcast.slot; DELETE FROM walcast.content_version").await;
}
