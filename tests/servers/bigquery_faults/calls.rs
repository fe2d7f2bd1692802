//! Calls that fail, are cut, come late, or are made by one who has died.

use std::time::Duration;

use walcast::error::{Class, Code};

use super::world::{CALLS, FAILURES, HOLDS, World, each, pairs, with_database};
use crate::support::bigquery_server::fault::{Call, Fault};

#[tokio::test]
async fn a_call_that_fails_once_in_any_way_is_made_again() {
    with_database(async |postgres| {
        each(pairs(&CALLS, &FAILURES), async |(call, fault)| {
            let world = World::new(postgres, 6).await;
            world.server.next(call, fault);
            let lived = world.live().await;
            assert!(world.server.seen(call).contains(&fault), "{call:?} does not meet {fault:?}");
            assert!(lived.is_ok(), "{call:?} {fault:?}: {lived:?}");
            world.check_delivers().await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn an_append_call_cut_after_some_requests_goes_on_where_it_was() {
    with_database(async |postgres| {
        each(pairs(&[1, 2, 3, 5, 8], &[Fault::CutBefore, Fault::CutAfter]), async |(requests, fault)| {
            let world = World::new(postgres, 8).await;
            (0..requests).for_each(|_| world.server.next(Call::AppendRows, Fault::None));
            (0..2).for_each(|_| world.server.next(Call::AppendRows, fault));
            world.live().await.unwrap();
            assert_eq!(world.seen(), world.wanted());
            world.check_delivers().await;
        })
        .await;
    })
    .await;
}

/// When a held call is done.
#[derive(Debug, Clone, Copy)]
enum Released {
    BeforeTheNextStarts,
    WhenTheNextAppends,
    WhenAllIsDelivered,
}

/// Who made the held call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Caller {
    HasDied,
    WasOnlyPaused,
}

#[tokio::test]
async fn a_crash_or_a_pause_at_any_call_loses_and_doubles_nothing_whenever_the_call_is_done() {
    use Released::{BeforeTheNextStarts, WhenAllIsDelivered, WhenTheNextAppends};
    let stops = pairs(&pairs(&CALLS, &HOLDS), &[Caller::HasDied, Caller::WasOnlyPaused]);
    with_database(async |postgres| {
        each(
            pairs(&stops, &[BeforeTheNextStarts, WhenTheNextAppends, WhenAllIsDelivered]),
            async |(((call, fault), caller), released)| {
                let world = World::new(postgres, 8).await;
                if call != Call::Query {
                    world.server.next(call, Fault::None);
                }
                world.server.next(call, fault);
                let older = world.spawn().await;
                world.is_held().await;
                if caller == Caller::HasDied {
                    older.abort();
                }
                match released {
                    BeforeTheNextStarts => world.server.release(),
                    WhenTheNextAppends => {
                        let (server, calls) =
                            (world.server.clone(), world.server.seen(Call::AppendRows).len());
                        tokio::spawn(async move { server.release_at(Call::AppendRows, calls + 1).await });
                    }
                    WhenAllIsDelivered => {}
                }
                world.live().await.unwrap();
                assert_eq!(world.seen(), world.wanted(), "{call:?} {fault:?} {caller:?} {released:?}");
                world.check_delivers().await;
                if let (Caller::WasOnlyPaused, WhenAllIsDelivered) = (caller, released) {
                    let error = older.await.unwrap().unwrap_err();
                    assert_eq!(error.code(), Code::Fenced, "{call:?} {fault:?}: {error:?}");
                }
                assert_eq!(world.seen(), world.wanted(), "{call:?} {fault:?} {caller:?} {released:?}");
            },
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn an_answer_beyond_the_time_out_is_no_answer() {
    with_database(async |postgres| {
        for (call, fault) in pairs(&CALLS, &HOLDS) {
            let world = World::new(postgres, 8).await;
            world.server.next(call, fault);
            let lives = world.spawn().await;
            world.is_held().await;
            // beyond 120 s, the longest time-out: of the commit
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(130)).await;
            tokio::time::resume();
            if fault == Fault::HoldBefore {
                let (server, calls) = (world.server.clone(), world.server.seen(call).len());
                tokio::spawn(async move { server.release_at(call, calls + 1).await });
            }
            match lives.await.unwrap() {
                Ok(()) => assert_eq!(world.seen(), world.wanted(), "{call:?} {fault:?}"),
                Err(error) => assert_ne!(error.class(), Class::Definite, "{call:?} {fault:?}: {error:?}"),
            }
            world.check_delivers().await;
        }
    })
    .await;
}
