//! Plans drawn at random.

use std::panic::{AssertUnwindSafe, resume_unwind};

use futures_util::FutureExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walcast::error::Class;
use walcast::source::PostgresConfig;

use super::world::{EVENTS_A_COMMIT, FAILURES, HOLDS, World, each, stream, with_database};
use crate::support::bigquery_server::fault::Fault;

#[tokio::test]
async fn random_faults_and_crashes_leave_each_event_once() {
    let seeds = match std::env::var("WALCAST_SEED") {
        Ok(seed) => vec![seed.parse().expect("WALCAST_SEED is a number")],
        Err(_) => (0..runs()).map(|_| rand::random::<u32>().into()).collect::<Vec<u64>>(),
    };
    with_database(async |postgres| {
        each(seeds, async |seed| {
            let ran = AssertUnwindSafe(random_run(postgres, seed)).catch_unwind().await;
            if let Err(panic) = ran {
                eprintln!("run it again with WALCAST_SEED={seed}");
                resume_unwind(panic);
            }
        })
        .await;
    })
    .await;
}

/// `make chaos` has more.
fn runs() -> usize {
    std::env::var("KILLS").map_or(60, |kills| 6 * kills.parse::<usize>().expect("KILLS is a number"))
}

async fn random_run(postgres: &PostgresConfig, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let commits = rng.random_range(1..16);
    let world = World::with(postgres, stream(commits, "{}"), |config| {
        config.batch_rows_max = rng.random_range(1..40);
        config.append_bytes_max = rng.random_range(100..1_000);
    })
    .await;
    if rng.random_bool(0.3) {
        let events = (commits * EVENTS_A_COMMIT) as i64;
        world.server.store().refuses = (0..3).map(|_| rng.random_range(0..events)).collect();
    }
    let mut paused = Vec::new();
    for _ in 0..rng.random_range(1..5) {
        let faults = [&FAILURES[..], &HOLDS[..], &[Fault::Gone]].concat();
        world.server.plan().draw(rng.random(), rng.random_range(0.0..0.15), &faults);
        let (calls, held) = (world.server.calls() + rng.random_range(1..30), world.server.held());
        let mut lives = world.spawn().await;
        tokio::select! {
            lived = &mut lives => {
                let error = lived.unwrap().err();
                assert!(error.as_ref().is_none_or(|error| error.class() != Class::Definite), "seed {seed}: {error:?}");
            }
            () = world.server.has_seen(calls) => {}
            () = world.server.holds(held + 1) => {}
        }
        match rng.random_bool(0.8) {
            true => lives.abort(),
            false => paused.push(lives),
        }
        if rng.random_bool(0.1) {
            world.server.store().expire_all();
        }
        if rng.random_bool(0.5) {
            world.server.release();
        }
        world.check();
    }
    world.check_delivers().await;
    for older in paused.into_iter().filter(|older| !older.is_finished()) {
        drop(older.await.unwrap());
    }
    assert_eq!(world.seen(), world.wanted(), "seed {seed}");
}
