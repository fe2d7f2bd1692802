//! Streams that are gone, and commits that are not decided.

use tonic::Code;
use walcast::error::{Class, Kind};
use walcast::source::sql;

use crate::bigquery_server::fault::{Call, Fault};
use crate::world::{FAILURES, HOLDS, World, each, with_database};

#[tokio::test]
async fn a_stream_that_is_gone_before_its_commit_is_written_again() {
    let calls = [Call::AppendRows, Call::FinalizeWriteStream, Call::BatchCommitWriteStreams];
    with_database(async |postgres| {
        each(calls, async |call| {
            let world = World::new(postgres, 8).await;
            world.server.next(call, Fault::None);
            world.server.next(call, Fault::Gone);
            let error = world.live().await.unwrap_err();
            assert_eq!((error.kind(), error.class()), (Kind::Lost, Class::Rewind), "{call:?}: {error:?}");
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
            assert!(lived.is_err_and(|error| error.kind() == Kind::Lost), "{failure:?}");
            world.check_delivers().await;
        })
        .await;
        each(HOLDS, async |hold| {
            let world = World::new(postgres, 8).await;
            world.server.next(Call::BatchCommitWriteStreams, hold);
            let crashes = world.spawn().await;
            world.is_held().await;
            crashes.abort();
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
            let crashes = world.spawn().await;
            world.is_held().await;
            crashes.abort();
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

#[tokio::test]
async fn a_state_restored_to_an_older_one_doubles_nothing() {
    with_database(async |postgres| {
        each([Fault::None].into_iter().chain(FAILURES), async |fault| {
            let world = World::new(postgres, 12).await;
            world.server.next(Call::BatchCommitWriteStreams, Fault::None);
            world.server.next(Call::BatchCommitWriteStreams, Fault::HoldBefore);
            let crashes = world.spawn().await;
            world.is_held().await;
            crashes.abort();
            let client = sql::connect(postgres).await.unwrap();
            let old = "SELECT mark, intent FROM walcast.progress WHERE epoch = $1";
            let old = client.query_one(old, &[&world.epoch.epoch]).await.unwrap();
            world.live().await.unwrap();
            let restore = "UPDATE walcast.progress SET mark = $2, intent = NULL WHERE epoch = $1";
            let mark = old.get::<_, serde_json::Value>(0);
            client.execute(restore, &[&world.epoch.epoch, &mark]).await.unwrap();
            world.server.next(Call::Query, fault);
            world.live().await.unwrap();
            world.check_delivers().await;
        })
        .await;
    })
    .await;
}
