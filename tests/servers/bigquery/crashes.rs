//! A crash, a pause or a lost answer at any step loses nothing and doubles nothing.

use std::time::Duration;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::Code;
use walcast::error::{self, Class};
use walcast::lsn::Checkpoint;
use walcast::sink::Sink;
use walcast::sink::bigquery::{BigQuerySink, Partitioning};
use walcast::source::sql;

use super::proxy::Fault;
use super::world::{EVENTS_A_COMMIT, START, World, batches, ids_of};
use crate::support::run;

const NOTHING: [i64; 0] = [];
const APPEND: &str = "AppendRows";
const FINALIZE: &str = "FinalizeWriteStream";
const COMMIT: &str = "BatchCommitWriteStreams";

#[tokio::test]
async fn a_crash_after_the_append_leaves_nothing() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    sink.write(&batches(3)).await.unwrap();
    drop(sink);
    let (_, checkpoint) = world.start().await;
    assert_eq!(checkpoint, None);
    world.check_recovers(&batches(3)).await;
    world.end().await;
}

/// Writes, and crashes in the flush where the fault holds it.
async fn crash(world: &World, method: &'static str, fault: Fault) {
    let (mut sink, checkpoint) = world.start().await;
    assert_eq!(checkpoint, None);
    sink.write(&batches(3)).await.unwrap();
    world.proxy.next(method, fault);
    tokio::select! {
        ended = sink.flush() => panic!("not held: {ended:?}"),
        () = world.proxy.reached(method) => {}
    }
    drop(sink);
    world.proxy.forget();
}

#[tokio::test]
async fn a_crash_after_finalize_leaves_nothing() {
    let world = World::new().await;
    crash(&world, FINALIZE, Fault::HoldAfter).await;
    assert!(matches!(world.progress().await, (None, None)));
    let (_, checkpoint) = world.start().await;
    assert_eq!((checkpoint, world.ids().await), (None, vec![]));
    world.check_recovers(&batches(4)).await;
    world.end().await;
}

#[tokio::test]
async fn a_crash_after_the_intent_is_mended_by_the_commit() {
    let world = World::new().await;
    crash(&world, COMMIT, Fault::HoldBefore).await;
    assert!(matches!(world.progress().await, (None, Some(_))));
    let (_, checkpoint) = world.start().await;
    assert_eq!((checkpoint, world.ids().await), (Some(batches(3)[2].checkpoint()), ids_of(&batches(3))));
    world.check_recovers(&batches(4)).await;
    world.end().await;
}

#[tokio::test]
async fn a_crash_between_commit_and_checkpoint_is_mended_by_the_same_commit() {
    let world = World::new().await;
    crash(&world, COMMIT, Fault::HoldAfter).await;
    assert!(matches!(world.progress().await, (None, Some(_))));
    assert_eq!(world.ids().await, ids_of(&batches(3)));
    let (_, checkpoint) = world.start().await;
    assert_eq!(checkpoint, Some(batches(3)[2].checkpoint()));
    world.check_recovers(&batches(4)).await;
    world.end().await;
}

#[tokio::test]
async fn when_the_intents_stream_is_gone_the_table_tells() {
    for (fault, committed) in [(Fault::HoldAfter, true), (Fault::HoldBefore, false)] {
        for partitioning in [Partitioning::HalfHour, Partitioning::Hour] {
            let world = World::with(|config| config.partitioning = partitioning).await;
            crash(&world, COMMIT, fault).await;
            world.proxy.next(COMMIT, Fault::Refuse(Code::NotFound));
            world.proxy.next("GetWriteStream", Fault::Refuse(Code::NotFound));
            let (_, checkpoint) = world.start().await;
            assert_eq!(checkpoint, committed.then(|| batches(3)[2].checkpoint()));
            assert!(matches!(world.progress().await, (_, None)), "settled for good");
            world.check_recovers(&batches(4)).await;
            world.end().await;
        }
    }
}

#[tokio::test]
async fn a_stream_in_no_state_to_be_committed_was_committed_or_is_not_given_up() {
    let world = World::new().await;
    crash(&world, COMMIT, Fault::HoldAfter).await;
    world.proxy.next(COMMIT, Fault::RefuseFor(StorageErrorCode::InvalidStreamState));
    let (_, checkpoint) = world.start().await;
    assert_eq!(checkpoint, Some(batches(3)[2].checkpoint()));
    world.end().await;

    let world = World::new().await;
    crash(&world, COMMIT, Fault::HoldBefore).await;
    world.proxy.next(COMMIT, Fault::RefuseFor(StorageErrorCode::InvalidStreamState));
    let mut sink = BigQuerySink::new(world.config.clone(), &world.postgres);
    let error = sink.recover(&world.newest().await).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "asked again, and no other stream meanwhile: {error:?}");
    assert!(matches!(world.progress().await, (None, Some(_))), "the intent stands");
    world.check_recovers(&batches(4)).await;
    world.end().await;
}

#[tokio::test]
async fn after_a_lost_answer_the_running_sink_settles_and_goes_on() {
    let world = World::new().await;
    let session = world.newest().await;
    let mut sink = BigQuerySink::new(world.config.clone(), &world.postgres);
    sink.recover(&session).await.unwrap();
    let batches = batches(4);
    sink.write(&batches[..3]).await.unwrap();
    // the retry of the commit is refused for good, as if its stream were of an unknown kind
    world.proxy.next(COMMIT, Fault::LoseAnswer);
    world.proxy.next(COMMIT, Fault::Refuse(Code::InvalidArgument));
    assert!(sink.flush().await.is_err());
    assert!(sink.write(&batches[3..]).await.is_err(), "not before it is recovered");
    let stored = sink.recover(&session).await.unwrap().unwrap();
    assert_eq!(stored.checkpoint, batches[2].checkpoint());
    world.deliver(&mut sink, Some(stored.checkpoint), &batches).await.unwrap();
    assert_eq!(world.ids().await, ids_of(&batches));
    world.end().await;
}

#[tokio::test]
async fn an_older_instance_changes_nothing() {
    let world = World::new().await;
    let (mut older, _) = world.start().await;
    let all = batches(3);
    older.write(&all[..2]).await.unwrap();
    let (mut newer, checkpoint) = world.start().await;
    let error = older.flush().await.unwrap_err();
    assert_eq!(error.code(), error::Code::Fenced);
    assert_eq!(world.ids().await, NOTHING);
    world.deliver(&mut newer, checkpoint, &all).await.unwrap();
    assert_eq!(world.ids().await, ids_of(&all));
    world.end().await;
}

#[tokio::test]
async fn a_paused_instances_commit_is_the_newer_ones_too() {
    let world = World::new().await;
    let (mut older, _) = world.start().await;
    let all = batches(4);
    older.write(&all[..2]).await.unwrap();
    world.proxy.next(COMMIT, Fault::HoldBefore);
    let older = tokio::spawn(async move { older.flush().await });
    world.proxy.reached(COMMIT).await;

    let (mut newer, checkpoint) = world.start().await;
    assert_eq!(checkpoint, Some(all[1].checkpoint()), "what the older one was about to do is done");
    newer.write(&all[2..3]).await.unwrap();
    world.proxy.release();
    assert_eq!(older.await.unwrap().unwrap_err().code(), error::Code::Fenced);
    world.deliver(&mut newer, Some(all[2].checkpoint()), &all).await.unwrap();
    assert_eq!(world.ids().await, ids_of(&all));
    world.end().await;
}

#[tokio::test]
async fn a_state_older_than_the_table_writes_nothing_twice() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    let all = batches(5);
    world.deliver(&mut sink, None, &all[..1]).await.unwrap();
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "CREATE TABLE backup AS SELECT * FROM walcast.progress").await;
    world.deliver(&mut sink, Some(all[0].checkpoint()), &all[..3]).await.unwrap();
    run(&client, "DELETE FROM walcast.progress; INSERT INTO walcast.progress SELECT * FROM backup").await;

    let (mut sink, checkpoint) = world.start().await;
    assert_eq!(checkpoint, Some(all[0].checkpoint()));
    // a write that is there wholly, one that is there in part, and one that is not
    sink.write(&all[1..2]).await.unwrap();
    sink.write(&all[2..4]).await.unwrap();
    sink.write(&all[4..]).await.unwrap();
    assert_eq!(sink.flush().await.unwrap(), Some(all[4].checkpoint()));
    assert_eq!(world.ids().await, ids_of(&all));

    run(&client, "DELETE FROM walcast.progress").await;
    world.check_recovers(&all).await;
    world.end().await;
}

#[tokio::test]
async fn random_crashes_and_faults_leave_each_event_once() {
    let seed = std::env::var("WALCAST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("WALCAST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::with(|config| {
        config.batch_rows_max = 45;
        config.append_bytes_max = 2_000;
    })
    .await;
    let all = batches(40);
    for life in 0..12 {
        let (mut sink, checkpoint) = world.start().await;
        let checkpoint = checkpoint.unwrap_or(Checkpoint::at(START));
        let missing: Vec<_> = all.iter().filter_map(|batch| batch.beyond(&checkpoint)).collect();
        let method = [APPEND, FINALIZE, COMMIT][rng.random_range(0..3)];
        let fault = [Fault::HoldBefore, Fault::HoldAfter, Fault::LoseAnswer][rng.random_range(0..3)];
        world.proxy.next(method, fault);
        let deadline = Duration::from_millis(rng.random_range(20..800));
        let mut rest = missing.as_slice();
        let live = async {
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rng.random_range(1..=rest.len().min(6)));
                sink.write(now).await.unwrap();
                if rng.random_bool(0.3) {
                    sink.flush().await.unwrap();
                }
                rest = later;
            }
            sink.flush().await.unwrap();
        };
        let _ = tokio::time::timeout(deadline, live).await;
        drop(sink);
        world.proxy.release();
        let seen = world.ids().await;
        assert_eq!(seen, ids_of(&all)[..seen.len()], "a prefix, life {life}, seed {seed}");
        if seen.len() == all.len() * EVENTS_A_COMMIT as usize {
            break;
        }
    }
    world.check_recovers(&all).await;
    world.end().await;
}
