//! Streams that are gone, and commits that are not decided.

use std::sync::Arc;

use tonic::Code;
use walcast::batch::Batch;
use walcast::error::{self, Class};
use walcast::lsn::Lsn;
use walcast::sink::Sink;
use walcast::sink::bigquery::BigQuerySink;
use walcast::source::{PostgresConfig, sql};

use super::world::{FAILURES, HOLDS, World, each, stream, stream_of, with_database};
use crate::support::bigquery_server::fault::{Call, Fault};

#[tokio::test]
async fn a_stream_that_is_gone_before_its_commit_is_written_again() {
    let calls = [Call::AppendRows, Call::FinalizeWriteStream, Call::BatchCommitWriteStreams];
    with_database(async |postgres| {
        each(calls, async |call| {
            let world = World::new(postgres, 8).await;
            world.server.next(call, Fault::None);
            world.server.next(call, Fault::Gone);
            let error = world.live().await.unwrap_err();
            assert_eq!(
                (error.code(), error.class()),
                (error::Code::Lost, Class::Rewind),
                "{call:?}: {error:?}"
            );
            world.check();
            world.check_delivers().await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_gone_after_its_commit_is_not_written_again() {
    with_database(async |postgres| {
        each(FAILURES, async |failure| {
            let world = World::new(postgres, 4).await;
            world.server.next(Call::BatchCommitWriteStreams, failure);
            world.server.next(Call::BatchCommitWriteStreams, Fault::Gone);
            let lived = world.live().await;
            assert!(lived.is_err_and(|error| error.code() == error::Code::Lost), "{failure:?}");
            world.check_delivers().await;
        })
        .await;
        each(HOLDS, async |hold| {
            let world = World::new(postgres, 8).await;
            world.server.next(Call::BatchCommitWriteStreams, hold);
            world.crash_at_a_held_call().await;
            world.server.store().expire_all();
            world.check_delivers().await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn nothing_new_is_written_before_an_older_commit_is_decided() {
    with_database(async |postgres| {
        each([Code::PermissionDenied, Code::InvalidArgument, Code::FailedPrecondition], async |code| {
            let world = World::new(postgres, 8).await;
            world.server.next(Call::BatchCommitWriteStreams, Fault::HoldBefore);
            world.crash_at_a_held_call().await;
            world.server.next(Call::BatchCommitWriteStreams, Fault::Refuse(code));
            assert!(world.live().await.is_err(), "whether it is committed is not known: {code:?}");
            assert!(world.seen().is_empty());
            let (server, calls) = (world.server.clone(), world.server.seen(Call::AppendRows).len());
            tokio::spawn(async move { server.release_at(Call::AppendRows, calls + 1).await });
            world.live().await.unwrap();
            world.check_delivers().await;
        })
        .await;
    })
    .await;
}

/// All of these commits are delivered, and PostgreSQL remembers the first four.
async fn restored(postgres: &PostgresConfig, stream: Vec<Arc<Batch>>) -> Arc<World> {
    let world = World::with(postgres, stream, |_| {}).await;
    world.server.next(Call::BatchCommitWriteStreams, Fault::None);
    world.server.next(Call::BatchCommitWriteStreams, Fault::HoldBefore);
    world.crash_at_a_held_call().await;
    let client = sql::connect(postgres).await.unwrap();
    let old = "SELECT checkpoint, intent FROM walcast.progress WHERE history_id = $1";
    let old = client.query_one(old, &[&world.history_id.uuid]).await.unwrap();
    world.live().await.unwrap();
    let restore = "UPDATE walcast.progress SET checkpoint = $2, intent = NULL WHERE history_id = $1";
    let checkpoint = old.get::<_, serde_json::Value>(0);
    client.execute(restore, &[&world.history_id.uuid, &checkpoint]).await.unwrap();
    world
}

#[tokio::test]
async fn a_state_restored_to_an_older_one_doubles_nothing() {
    with_database(async |postgres| {
        each([Fault::None].into_iter().chain(FAILURES), async |fault| {
            let world = restored(postgres, stream(12, "{}")).await;
            world.server.next(Call::Query, fault);
            world.live().await.unwrap();
            world.check_delivers().await;
        })
        .await;
    })
    .await;
}

/// The whole server was restored: what it streams now lies at places of events that only the table has.
#[tokio::test]
async fn a_table_that_was_fed_by_another_stream_is_told_and_left_as_it_is() {
    with_database(async |postgres| {
        let former = stream_of(12, "{}", |number| 100 * (number + 1), |_| 0);
        let other = stream_of(16, "{}", |number| 100 * (number + 1) + 10 * u64::from(number >= 6), |_| 0);
        let world = restored(postgres, former).await;
        let delivered = world.seen();
        for _ in 0..2 {
            let session = world.newest().await;
            let mut sink = BigQuerySink::new(world.config.clone(), postgres);
            let held = sink.recover(&session).await.unwrap().unwrap().checkpoint;
            assert_eq!(held.durable_lsn, Lsn(450));
            let mut told = None;
            for batch in other.iter().filter_map(|batch| batch.beyond(&held)) {
                told = sink.write(&[batch]).await.err();
                if told.is_some() {
                    break;
                }
                assert_eq!(sink.flush().await.unwrap(), None, "a checkpoint before the proof");
            }
            let error = told.expect("the stream was taken for the former one");
            assert_eq!(error.code(), error::Code::SinkAheadOfServer);
            assert!(error.to_string().contains("bigquery holds a last row at 0/4B0#4"), "{error}");
            assert_eq!(world.seen(), delivered);
        }
    })
    .await;
}
