//! Rows, columns and requests that the service does not take.

use tonic::Code;
use walcast::error;

use super::world::{FAILURES, World, each, pairs, stream, with_database};
use crate::support::bigquery_server::fault::{Call, Fault};

#[tokio::test]
async fn a_row_that_bigquery_alone_refuses_is_a_dead_letter_and_the_others_go_in() {
    with_database(async |postgres| {
        each(pairs(&[0, 1, 2, 5], &FAILURES), async |(requests, fault)| {
            let world = World::new(postgres, 8).await;
            world.server.store().refuses = [0, 7, 8, 21, 39].into();
            (0..requests).for_each(|_| world.server.next(Call::AppendRows, Fault::None));
            world.server.next(Call::AppendRows, fault);
            match world.live().await {
                Ok(()) => assert_eq!(world.seen(), world.wanted()),
                Err(error) => assert_eq!(error.code(), error::Code::Lost, "{error:?}"),
            }
            world.check_delivers().await;
        })
        .await;
    })
    .await;
}

/// As the emulator does with JSON that its own parser does not take.
#[tokio::test]
async fn a_row_that_is_refused_without_being_named_is_found_and_the_others_go_in() {
    with_database(async |postgres| {
        let refused: [&[i64]; 4] = [&[0], &[39], &[7, 8, 21], &[0, 1, 2, 3, 4, 17, 38, 39]];
        each(pairs(&pairs(&refused, &FAILURES), &[false, true]), async |((refuses, fault), ends_call)| {
            let world = World::new(postgres, 8).await;
            world.server.store().refuses = refuses.iter().copied().collect();
            world.server.store().names_no_row = Some(Code::InvalidArgument);
            world.server.store().ends_call = ends_call;
            (0..3).for_each(|_| world.server.next(Call::AppendRows, Fault::None));
            world.server.next(Call::AppendRows, fault);
            match world.live().await {
                Ok(()) => assert_eq!(world.seen(), world.wanted()),
                Err(error) => assert_eq!(error.code(), error::Code::Lost, "{error:?}"),
            }
            world.check_delivers().await;
        })
        .await;
    })
    .await;
}

/// As a service does that breaks down over a row.
#[tokio::test]
async fn a_row_at_which_the_service_fails_for_ever_is_found_and_the_others_go_in() {
    with_database(async |postgres| {
        each([Code::Internal, Code::Unknown], async |code| {
            let world = World::new(postgres, 8).await;
            world.server.store().refuses = [7, 8, 21].into();
            world.server.store().names_no_row = Some(code);
            world.server.store().ends_call = true;
            world.check_delivers().await;
        })
        .await;
    })
    .await;
}

/// Rows that are all refused alike are not at fault.
#[tokio::test]
async fn a_table_that_refuses_every_row_stops_the_sink_and_no_row_is_a_dead_letter() {
    with_database(async |postgres| {
        for names_no_row in [None, Some(Code::InvalidArgument)] {
            let world = World::new(postgres, 4).await;
            world.server.store().refuses_all = true;
            world.server.store().names_no_row = names_no_row;
            let error = world.live().await.unwrap_err();
            assert_eq!(error.code(), error::Code::BigQueryTableUnfit, "{error:?}");
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
            assert_eq!((world.seen().len(), world.dead_letters().await.len()), (0, 0));
            world.server.store().refuses_all = false;
            world.check_delivers().await;
        }
    })
    .await;
}

/// A request is on its way while rows before it are refused, and its call breaks: it was made of other rows than
/// what is sent at that offset afterwards.
#[tokio::test]
async fn a_request_from_before_a_refusal_puts_no_row_in_whenever_it_arrives() {
    with_database(async |postgres| {
        let world = World::new(postgres, 4).await;
        world.server.store().refuses = [0].into();
        for fault in [Fault::None, Fault::HoldBefore, Fault::CutAfter] {
            world.server.next(Call::AppendRows, fault);
        }
        let lives = world.spawn().await;
        world.is_held().await;
        let server = world.server.clone();
        let arrives = tokio::spawn(async move { server.release_at(Call::AppendRows, 3).await });
        world.server.cut();
        let lived = lives.await.unwrap();
        arrives.abort();
        world.check();
        assert!(
            lived.is_err_and(|error| error.code() == error::Code::Lost),
            "nobody knows what the stream has"
        );
        world.check_delivers().await;
    })
    .await;
}

#[tokio::test]
async fn a_column_that_the_service_has_not_heard_of_yet_is_waited_for() {
    with_database(async |postgres| {
        let world = World::new(postgres, 4).await;
        (0..3).for_each(|_| world.server.next(Call::AppendRows, Fault::OldSchema));
        world.live().await.unwrap();
        assert_eq!(world.seen(), world.wanted());
        world.check_delivers().await;
    })
    .await;
}

#[tokio::test]
async fn a_column_that_is_gone_ends_the_run() {
    with_database(async |postgres| {
        let world = World::new(postgres, 4).await;
        world.server.store().drop_column(&world.config.table_path(), "device");
        let error = world.live().await.unwrap_err();
        assert_eq!(error.code(), error::Code::BigQueryTableUnfit, "{error:?}");
        assert!(error.to_string().contains("device"), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn no_request_is_larger_than_the_service_takes() {
    with_database(async |postgres| {
        let payload = format!("\"{}\"", "x".repeat(1_300_000));
        let world = World::with(postgres, stream(4, &payload), |config| {
            config.append_bytes_max = 9 << 20;
        });
        let world = world.await;
        world.live().await.unwrap();
        assert_eq!(world.seen(), world.wanted());
    })
    .await;
}
