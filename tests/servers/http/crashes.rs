//! kill -9 where it hurts: walcast itself, and its driver in this process while a request is under way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use walcast::source::sql;

use super::world::{World, each};
use crate::support::http_server::{Fault, HttpServer};
use crate::support::story::seeded;
use crate::support::world::World as Walcast;
use crate::support::{DEADLINE, wait_until_within, with_schema};

#[tokio::test]
async fn a_request_whose_answer_nobody_waited_for_comes_again_with_its_id_and_its_bytes() {
    with_schema(async |postgres| {
        for (batch_rows, fault) in [(1, Fault::Hold), (1, Fault::HoldUntaken), (4, Fault::Hold)] {
            let world = Arc::new(World::with(postgres, 6, |config| config.batch_rows = batch_rows).await);
            world.server.always(fault);
            let reached = world.server.reached();
            let crashes = tokio::spawn({
                let world = Arc::clone(&world);
                async move { world.live().await }
            });
            reached.await;
            crashes.abort();
            assert!(crashes.await.unwrap_err().is_cancelled());
            let held = world.server.posted().first().unwrap().clone();
            world.check_delivers(&[]).await;
            let posted = world.server.posted();
            let again: Vec<_> = posted.iter().filter(|one| one.id() == held.id()).collect();
            assert!(again.len() > 1 && again.iter().all(|one| one.body == held.body), "{batch_rows}");
        }
    })
    .await;
}

/// A walcast with this sink alone, and its target.
async fn walcast(server: &HttpServer, batch_rows: usize) -> Walcast {
    let world = Walcast::initialised().await.with("PIPELINE_SINKS", "http");
    let world = world.with("HTTP_BATCH_ROWS", &batch_rows.to_string());
    world.with("HTTP_URL", &server.url()).with("HTTP_CONCURRENCY", "4")
}

async fn ids(world: &Walcast) -> BTreeSet<i64> {
    let client = sql::connect(&world.postgres).await.unwrap();
    let rows = client.query("SELECT id FROM engagement_events", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// All that the source has was taken; then nothing is left to be sent.
async fn check_whole(world: &Walcast, server: &HttpServer) {
    let running = world.start().await;
    let wanted = ids(world).await;
    let all = async || server.event_ids() == wanted;
    wait_until_within(2 * DEADLINE, "the target has all", all).await;
    server.check();
    running.stop().await;
    let before = server.posted().len();
    world.start().await.stop().await;
    assert_eq!(server.posted().len(), before, "an orderly stop leaves nothing to repeat");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_step_loses_nothing() {
    const PLACES: [&str; 11] = [
        "http_before_post=return",
        "http_before_post=3*off->return",
        "http_after_answer=return",
        "http_after_answer=1*off->return",
        "http_after_answer=7*off->return",
        "http_before_store=return",
        "http_before_store=1*off->return",
        "http_after_store=return",
        "http_after_store=1*off->return",
        "driver_before_register=return",
        "driver_after_register=return",
    ];
    let cases = [1, 6].map(|batch_rows| async move {
        let server = HttpServer::start().await;
        let world = walcast(&server, batch_rows).await;
        for place in PLACES {
            let mut running = world.with("FAILPOINTS", place).spawn();
            world.insert_events(5).await;
            world.insert_events(12).await;
            if !running.ends_within(Duration::from_secs(5)).await {
                running.kill().await;
            }
        }
        check_whole(&world, &server).await;
    });
    futures_util::future::join_all(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_any_time_under_load_and_a_target_that_fails_lose_nothing() {
    const FAULTS: [Fault; 6] = [
        Fault::LoseAnswer,
        Fault::Cut,
        Fault::Reset,
        Fault::SlowBody,
        Fault::Answer(503, ""),
        Fault::Answer(429, "retry-after: 1\r\n"),
    ];
    let mut random = seeded();
    let plans: Vec<Vec<(u64, usize)>> = (0..2)
        .map(|_| (0..6).map(|_| (random.random_range(200..1_500), random.random_range(0..20))).collect())
        .collect();
    each(plans.into_iter().zip([1, 50]), async |(plan, batch_rows)| {
        let server = HttpServer::start().await;
        let world = walcast(&server, batch_rows).await;
        let mut load = world.generate(6_000);
        for (lives_for, faults) in plan {
            let running = world.start().await;
            for at in 0..faults {
                server.next(FAULTS[(at * 7 + faults) % FAULTS.len()].clone());
            }
            // not to wait for anything: a kill comes when it comes
            tokio::time::sleep(Duration::from_millis(lives_for)).await;
            running.kill().await;
        }
        load.kill().await.unwrap();
        server.calm();
        check_whole(&world, &server).await;
    })
    .await;
}
