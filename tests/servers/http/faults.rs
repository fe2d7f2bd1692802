//! What the target may do, and what becomes of it.

use std::collections::HashSet;
use std::time::Duration;

use walcast::error::{Class, Code, Error};
use walcast::sink::Sink;
use walcast::sink::http::HttpSink;

use super::world::{World, each};
use crate::support::http_server::Fault;
use crate::support::with_schema;

#[tokio::test]
async fn every_event_is_posted_once_under_its_name() {
    with_schema(async |postgres| {
        let world = World::new(postgres, 6).await;
        world.live().await.unwrap();
        world.check_delivered(&[]).await;
        let posted = world.server.posted();
        assert_eq!(posted.len(), 30);
        let first = posted.iter().find(|one| one.records()[0]["event_id"] == 7).unwrap();
        assert_eq!(first.id(), format!("{}:0/C8#2", world.history_id.uuid));
        assert_eq!(
            (first.path.as_str(), first.headers["content-type"].as_str()),
            ("/hook?token=canary", "application/json")
        );
        world.check_delivers(&[]).await;
    })
    .await;
}

const FAULTS: [Fault; 9] = [
    Fault::LoseAnswer,
    Fault::Cut,
    Fault::Reset,
    Fault::SlowBody,
    Fault::Answer(500, ""),
    Fault::Answer(503, ""),
    Fault::Answer(408, ""),
    Fault::Answer(425, ""),
    Fault::Answer(401, ""),
];

#[tokio::test]
async fn whatever_fails_once_or_again_and_again_nothing_is_lost() {
    with_schema(async |postgres| {
        let cases = FAULTS.iter().flat_map(|fault| [(fault, 1), (fault, 4)]);
        each(cases, async |(fault, batch_rows)| {
            let world = World::with(postgres, 6, |config| config.batch_rows = batch_rows).await;
            for _ in 0..7 {
                world.server.next(fault.clone());
            }
            world.live().await.unwrap();
            world.check_delivers(&[]).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_refused_row_is_found_in_its_batch_and_given_up_alone() {
    with_schema(async |postgres| {
        let cases = [1, 2, 16].into_iter().flat_map(|batch_rows| [(batch_rows, 1), (batch_rows, 4)]);
        each(cases, async |(batch_rows, concurrency)| {
            let world = World::with(postgres, 12, |config| {
                config.batch_rows = batch_rows;
                config.concurrency = concurrency;
            })
            .await;
            let bad = |id: i64| [0, 13, 14, 31, 59].contains(&id);
            world.server.refuses(move |event| bad(event["event_id"].as_i64()?).then_some(422));
            world.check_delivers(&[0, 13, 14, 31, 59]).await;
            assert!(world.letters().await.values().all(|message| message == "the target answers 422"));
        })
        .await;
    })
    .await;
}

/// What the first write of a new process ends with.
async fn first_error(world: &World) -> Error {
    let mut sink = HttpSink::new(world.config.clone(), &world.postgres).unwrap();
    sink.recover(&world.newest().await).await.unwrap();
    let error = sink.write(&world.stream).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "the sink's own trouble: {error:?}");
    assert!(!error.chain().contains("canary"), "{}", error.chain());
    error
}

#[tokio::test]
async fn a_target_that_is_down_sees_one_request_and_loses_nothing() {
    with_schema(async |postgres| {
        for fault in [Fault::Answer(503, ""), Fault::Cut, Fault::HoldUntaken] {
            let world = World::new(postgres, 6).await;
            world.server.always(fault.clone());
            assert_eq!(first_error(&world).await.code(), Code::HttpUnreachable);
            assert_eq!(world.server.posted().len(), 1, "{fault:?}");
            world.check_delivers(&[]).await;
        }
        let mut world = World::new(postgres, 6).await;
        world.config.url = "http://127.0.0.1:1/".to_owned().into();
        assert_eq!(first_error(&world).await.code(), Code::HttpUnreachable);
    })
    .await;
}

#[tokio::test]
async fn what_is_the_targets_fault_gives_no_row_up() {
    with_schema(async |postgres| {
        let statuses = [301, 302, 307, 308, 401, 403, 404, 405, 410, 415];
        each(statuses, async |status| {
            let world = World::new(postgres, 6).await;
            world.server.always(Fault::Answer(status, "location: http://127.0.0.1:1/canary\r\n"));
            assert_eq!(first_error(&world).await.code(), Code::HttpRefused, "{status}");
            assert!(world.letters().await.is_empty());
            world.check_delivers(&[]).await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_target_that_refuses_every_row_alike_gives_no_row_up() {
    with_schema(async |postgres| {
        let cases = [1, 4].into_iter().flat_map(|rows| [(rows, false), (rows, true)]);
        each(cases, async |(batch_rows, after_some)| {
            let world = World::with(postgres, 12, |config| config.batch_rows = batch_rows).await;
            let mut sink = HttpSink::new(world.config.clone(), &world.postgres).unwrap();
            sink.recover(&world.newest().await).await.unwrap();
            let (first, rest) = world.stream.split_at(if after_some { 3 } else { 0 });
            sink.write(first).await.unwrap();
            for _ in 0..3 {
                world.server.refuses(|_| Some(422));
                assert_eq!(sink.write(rest).await.unwrap_err().code(), Code::HttpRefused);
                sink.recover(&world.newest().await).await.unwrap();
            }
            assert!(world.letters().await.is_empty());
            world.server.refuses(|event| (event["event_id"] == 40).then_some(422));
            world.check_delivers(&[40]).await;
        })
        .await;
    })
    .await;
}

/// The first row that a new process posts is the bad one, and so is the target's only other content.
#[tokio::test]
async fn a_bad_row_at_the_very_beginning_is_found_by_another_contents() {
    with_schema(async |postgres| {
        for concurrency in [1, 4] {
            let world = World::with(postgres, 3, |config| config.concurrency = concurrency).await;
            world.server.refuses(|event| (event["event_id"].as_i64()? < 3).then_some(400));
            world.check_delivers(&[0, 1, 2]).await;
        }
    })
    .await;
}

/// What it says with 429 or 503 is kept to, by everything that would call it.
#[tokio::test]
async fn a_target_is_left_alone_for_as_long_as_it_asks() {
    with_schema(async |postgres| {
        let world = World::new(postgres, 6).await;
        world.server.next(Fault::Answer(429, "retry-after: 1\r\n"));
        world.live().await.unwrap();
        let posted = world.server.posted();
        assert!(
            posted[1].at - posted[0].at >= Duration::from_millis(950),
            "{:?}",
            posted[1].at - posted[0].at
        );
        world.check_delivers(&[]).await;

        let world = World::new(postgres, 6).await;
        let mut sink = HttpSink::new(world.config.clone(), &world.postgres).unwrap();
        let session = world.newest().await;
        sink.recover(&session).await.unwrap();
        sink.write(&world.stream[..2]).await.unwrap();
        world.server.always(Fault::Answer(503, "retry-after: 3600\r\n"));
        let error = sink.write(&world.stream[2..]).await.unwrap_err();
        assert_eq!(error.code(), Code::HttpUnreachable);
        world.server.calm();
        let before = world.server.posted().len();
        for _ in 0..3 {
            let error = sink.recover(&session).await.unwrap_err();
            assert_eq!((error.code(), error.class()), (Code::HttpUnreachable, Class::Transient));
            assert!(error.to_string().contains("asks to be called again in"), "{error}");
        }
        assert_eq!(world.server.posted().len(), before, "nobody called it");
        world.check_delivers(&[]).await;
    })
    .await;
}

/// The rest goes on, and what was answered is not sent again when the request that failed is.
#[tokio::test]
async fn what_was_answered_is_not_sent_again_after_another_requests_error() {
    with_schema(async |postgres| {
        let world = World::with(postgres, 40, |config| config.concurrency = 4).await;
        let mut sink = HttpSink::new(world.config.clone(), &world.postgres).unwrap();
        let session = world.newest().await;
        sink.recover(&session).await.unwrap();
        world.server.refuses(|event| (event["event_id"] == 150).then_some(401));
        let error = sink.write(&world.stream).await.unwrap_err();
        assert_eq!(error.code(), Code::HttpRefused);
        world.server.refuses(|_| None);
        let stored = sink.recover(&session).await.unwrap().unwrap().checkpoint;
        let rest: Vec<_> = world.stream.iter().filter_map(|batch| batch.beyond(&stored)).collect();
        sink.write(&rest).await.unwrap();
        assert_eq!(sink.flush().await.unwrap(), Some(world.stream.last().unwrap().checkpoint()));
        let taken: Vec<_> = world.server.posted().into_iter().filter(|posted| posted.taken).collect();
        let ids: HashSet<&str> = taken.iter().map(|posted| posted.id()).collect();
        assert_eq!(taken.len(), ids.len(), "each event was taken once");
        world.check_delivered(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn an_older_instance_moves_no_checkpoint() {
    with_schema(async |postgres| {
        let world = World::new(postgres, 6).await;
        let mut older = HttpSink::new(world.config.clone(), &world.postgres).unwrap();
        older.recover(&world.newest().await).await.unwrap();
        older.write(&world.stream[..2]).await.unwrap();
        world.live().await.unwrap();
        assert_eq!(older.flush().await.unwrap_err().code(), Code::Fenced);
        world.check_delivers(&[]).await;
    })
    .await;
}
