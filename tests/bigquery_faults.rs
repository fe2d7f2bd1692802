//! The BigQuery sink under its real driver, against a service that fails in every way the real one can.
//!
//! After every fault, and after every crash in between: each event is in the table once, in the stream's order,
//! none is missing, and no mark was ever ahead of the table. `WALCAST_SEED=7 cargo test --test bigquery_faults
//! random` repeats a random plan.
//!
//! Each rule was broken once to see that it is missed:
//!
//! | broken | found by |
//! |---|---|
//! | a commit without an intent | `a_crash_or_a_pause…`, `a_state_restored…`, random plans |
//! | a start that forgets the intent | `a_crash_or_a_pause…` |
//! | a start that believes the intent | all with a crash |
//! | something new before an older commit is decided | `nothing_new_is_written…` |
//! | no token guard | `a_crash_or_a_pause…`, random plans |
//! | no look into the table after a start | `a_state_restored…` |
//! | a stream that is gone counts as committed | `a_stream_that_is_gone…`, random plans |
//! | a mark that is reported before its commit | `a_call_that_fails_once…` |
//! | requests cut anew after a broken call | `a_request_from_before_a_refusal…` |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/bigquery_server/mod.rs"]
mod bigquery_server;
mod support;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use bigquery_server::fault::{Call, Fault};
use bigquery_server::row::Layout;
use bigquery_server::store::{NotAppended, Store, Table};
use bigquery_server::{BigQueryServer, Row as Seen};
use futures_util::{FutureExt, StreamExt};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::StorageError;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode as Reason;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::write_stream::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::{DEADLINE, fresh_name, in_fresh_database, postgres};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Code;
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, Event, Row};
use walcast::error::{Class, Kind, Result};
use walcast::lsn::{Epoch, History, Lsn, Mark, Position, Session};
use walcast::ops::init::migrate;
use walcast::sink::Sink;
use walcast::sink::bigquery::{BigQueryConfig, BigQuerySink};
use walcast::sink::driver::Driver;
use walcast::sink::queue::queue;
use walcast::source::{PostgresConfig, sql};
use walcast::state::State;
use walcast::telemetry::board::Board;

const START: Lsn = Lsn(1);
const EVENTS_A_COMMIT: u64 = 5;

/// A service, and a history of our own in PostgreSQL.
struct World {
    server: BigQueryServer,
    postgres: PostgresConfig,
    config: BigQueryConfig,
    epoch: Epoch,
    /// What the slot would send.
    stream: Vec<Arc<Batch>>,
}

impl World {
    async fn new(postgres: &PostgresConfig, commits: u64) -> Arc<World> {
        World::with(postgres, stream(commits, "{}"), |_| {}).await
    }

    async fn with(
        postgres: &PostgresConfig,
        stream: Vec<Arc<Batch>>,
        change: impl FnOnce(&mut BigQueryConfig),
    ) -> Arc<World> {
        let client = sql::connect(postgres).await.unwrap();
        let (epoch, slot) = (Uuid::new_v4(), fresh_name("slot"));
        let insert = "INSERT INTO walcast.epoch (slot, epoch, system_id, timeline, publication, publication_oid, state)
                      VALUES ($1, $2, '7', 1, 'p', 1, 'ready')";
        client.execute(insert, &[&slot, &epoch]).await.unwrap();
        let server = BigQueryServer::start().await;
        let mut config = BigQueryConfig {
            project_id: "project".into(),
            rest_url: server.url(),
            grpc_url: server.url(),
            batch_rows_max: 20,
            append_bytes_max: 700,
            ..Default::default()
        };
        change(&mut config);
        BigQuerySink::new(config.clone(), postgres).prepare().await.unwrap();
        let epoch = Epoch { epoch, system_id: "7".into(), timeline: 1, slot };
        Arc::new(World { server, postgres: postgres.clone(), config, epoch, stream })
    }

    /// A new process takes over and runs until it has delivered all, or until an error ends it.
    async fn live(&self) -> Result<()> {
        self.live_as(self.newest().await).await
    }

    async fn newest(&self) -> Session {
        State::new(self.postgres.clone())
            .take_token(self.epoch.clone(), History::default(), START)
            .await
            .unwrap()
    }

    async fn live_as(&self, session: Session) -> Result<()> {
        let mut sink = BigQuerySink::new(self.config.clone(), &self.postgres);
        let stored = sink.recover(&session).await?;
        let held = stored.map(|stored| stored.go_on("bigquery", &session)).transpose()?;
        self.drive(session, sink, held.unwrap_or(Mark::at(START))).await
    }

    async fn drive(&self, session: Session, sink: BigQuerySink, held: Mark) -> Result<()> {
        self.check_mark(held);
        let mut state = State::new(self.postgres.clone());
        let registered = state.is_registered(&session, "bigquery").await?;
        let (sender, receiver) = queue(256 << 20);
        let (marks, mut seen) = watch::channel(vec![held]);
        let driver = Driver {
            sink: Box::new(sink),
            queue: receiver,
            session,
            held,
            marks,
            index: 0,
            unregistered: (!registered).then_some(state),
            status: Board::new().sink("bigquery", held),
        };
        for batch in self.stream.iter().filter_map(|batch| batch.beyond(&held)) {
            sender.send(batch).await.unwrap();
        }
        drop(sender);
        let watching = async {
            while seen.changed().await.is_ok() {
                let mark = seen.borrow_and_update()[0];
                self.check_mark(mark);
            }
        };
        tokio::join!(driver.run(), watching).0
    }

    /// The same in the background; aborting the task is the process's crash.
    async fn spawn(self: &Arc<Self>) -> JoinHandle<Result<()>> {
        let (world, session) = (Arc::clone(self), self.newest().await);
        tokio::spawn(async move { world.live_as(session).await })
    }

    /// A call of ours is held.
    async fn is_held(&self) {
        let held = tokio::time::timeout(DEADLINE, self.server.holds(1)).await;
        assert!(held.is_ok(), "not within {DEADLINE:?}: no call met its fault");
    }

    /// The events that a reader sees, in the order in which they became visible.
    fn seen(&self) -> Vec<Position> {
        let rows = self.server.rows(&self.config.table_path());
        let lsn = |row: &Seen| Lsn(row.commit_lsn as u64);
        rows.iter().map(|row| Position { commit_lsn: lsn(row), ordinal: row.ordinal as u64 }).collect()
    }

    /// The events that a reader shall see.
    fn wanted(&self) -> Vec<Position> {
        let refuses = self.server.store().refuses.clone();
        let events = self.stream.iter().flat_map(|batch| batch.events());
        events.filter(|event| !refuses.contains(&event.id)).map(|event| event.position).collect()
    }

    /// What is in the table is what the stream begins with.
    fn check(&self) {
        let (wanted, seen) = (self.wanted(), self.seen());
        assert!(wanted.starts_with(&seen), "a gap, a double or another order: {seen:?}");
    }

    /// The same, and the mark is not ahead of it.
    fn check_mark(&self, mark: Mark) {
        self.check();
        let held = self.wanted().iter().filter(|position| mark.holds(**position)).count();
        let seen = self.seen().len();
        assert!(held <= seen, "the mark {mark} is ahead of the table, which has {seen} rows");
    }

    /// Nothing goes wrong any more: all gets in, and stays as it is.
    async fn check_delivers(&self) {
        self.server.calm();
        for _ in 0..2 {
            self.live().await.unwrap();
            assert_eq!(self.seen(), self.wanted());
        }
        assert_eq!(self.dead_letters().await, self.server.store().refuses.clone());
    }

    async fn dead_letters(&self) -> BTreeSet<i64> {
        let client = sql::connect(&self.postgres).await.unwrap();
        let query = "SELECT event_id FROM walcast.dead_letter WHERE sink = 'bigquery' AND epoch = $1";
        let rows = client.query(query, &[&self.epoch.epoch]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

fn stream(commits: u64, payload: &str) -> Vec<Arc<Batch>> {
    let mut builder = BatchBuilder::new(Mark::at(START));
    let mut commit = |number: u64| {
        for ordinal in 0..EVENTS_A_COMMIT {
            let id = (number * EVENTS_A_COMMIT + ordinal) as i64;
            let event = Event {
                position: Position { commit_lsn: Lsn(100 * (number + 1)), ordinal },
                commit_ts: id,
                id,
                content_id: None,
                user_id: None,
                event_type: Some(builder.intern("play")),
                event_ts: id * 600_000_000,
                duration_ms: None,
                device: None,
                raw_payload: Some(builder.intern(payload)),
                raw_payload_bytes: Some(2),
                content: None,
            };
            builder.push(Row::Event(event));
        }
        builder.hold(Lsn(100 * (number + 1) + 50));
        Arc::new(builder.finish(false))
    };
    (0..commits).map(&mut commit).collect()
}

/// Runs a test with a database that has walcast's schema.
async fn with_database(test: impl AsyncFnOnce(&PostgresConfig)) {
    in_fresh_database(postgres(), async |postgres| {
        let mut client = sql::connect(postgres).await.unwrap();
        migrate(&mut client, postgres).await.unwrap();
        test(postgres).await;
    })
    .await;
}

/// Runs some at a time: PostgreSQL has other guests.
async fn each<T>(cases: impl IntoIterator<Item = T>, one: impl AsyncFn(T)) {
    let cases = cases.into_iter().map(|case| one(case));
    futures_util::stream::iter(cases).buffer_unordered(8).for_each(|()| async {}).await;
}

fn pairs<A: Copy, B: Copy>(a: &[A], b: &[B]) -> Vec<(A, B)> {
    a.iter().flat_map(|a| b.iter().map(|b| (*a, *b))).collect()
}

const FAILURES: [Fault; 5] = [
    Fault::Refuse(Code::Unavailable),
    Fault::Refuse(Code::ResourceExhausted),
    Fault::LoseAnswer,
    Fault::CutBefore,
    Fault::CutAfter,
];
const HOLDS: [Fault; 2] = [Fault::HoldBefore, Fault::HoldAfter];
const CALLS: [Call; 5] = [
    Call::CreateWriteStream,
    Call::AppendRows,
    Call::FinalizeWriteStream,
    Call::BatchCommitWriteStreams,
    Call::Query,
];

/// The service that the others rely on keeps its own rules.
#[tokio::test]
async fn the_service_commits_finalized_streams_once_and_together() {
    let server = BigQueryServer::start().await;
    let config = BigQueryConfig { project_id: "p".into(), ..Default::default() };
    let table = config.table_path();
    let mut store = server.store();
    store.tables.insert(
        table.clone(),
        Table::new(serde_json::json!({ "schema": { "fields": [
        { "name": "event_id", "mode": "REQUIRED" }
    ] } })),
    );
    let layout = Layout::new(&DescriptorProto {
        field: vec![FieldDescriptorProto {
            name: Some("event_id".into()),
            number: Some(1),
            ..Default::default()
        }],
        ..Default::default()
    });
    let mut create = |kind| store.create(&table, kind).unwrap().name;
    let (one, two, buffered) = (create(Type::Pending), create(Type::Pending), create(Type::Buffered));
    let row = |id: u8| vec![8, id];
    let mut append = |stream: &str, offset, rows: &[Vec<u8>]| {
        store.append(stream, Some(offset), &layout, rows).map_err(|error| match error {
            NotAppended::Refused(status) => Code::from(status.code),
            NotAppended::Rows(rows) => panic!("{rows:?}"),
        })
    };
    assert_eq!(append(&one, 0, &[row(1), row(2)]), Ok(0));
    assert_eq!(append(&one, 0, &[row(1), row(2)]), Err(Code::AlreadyExists));
    assert_eq!(append(&one, 3, &[row(4)]), Err(Code::OutOfRange));
    assert_eq!(append(&two, 0, &[row(3)]), Ok(0));
    assert_eq!(append(&buffered, 0, &[row(4), row(5)]), Ok(0));

    let both = [one.clone(), two.clone()];
    let commit = |store: &mut Store, streams: &[String]| -> Vec<Reason> {
        store.commit(&table, streams).unwrap().stream_errors.iter().map(StorageError::code).collect()
    };
    store.finalize(&one).unwrap();
    assert_eq!(commit(&mut store, &both), [Reason::InvalidStreamState], "two is not finalized");
    assert!(store.tables[&table].rows.is_empty(), "one is not committed without two");
    assert_eq!(store.finalize(&two).unwrap(), 1);
    assert_eq!(commit(&mut store, &both), []);
    assert_eq!(store.tables[&table].commits, [3], "at once");
    assert_eq!(commit(&mut store, &both), [Reason::StreamAlreadyCommitted; 2]);
    store.expire(&one);
    assert_eq!(commit(&mut store, &[one]), [Reason::StreamNotFound]);
    assert_eq!(commit(&mut store, std::slice::from_ref(&buffered)), [Reason::InvalidStreamType]);
    assert!(store.flush(&buffered, 2).is_err());
    store.flush(&buffered, 0).unwrap();
    let ids: Vec<i64> = store.tables[&table].rows.iter().map(|row| row.event_id).collect();
    assert_eq!(
        ids.iter().collect::<BTreeSet<_>>(),
        [1, 2, 3, 4].iter().collect(),
        "up to the offset, and with it"
    );
}

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
                    assert_eq!(error.kind(), Kind::Fenced, "{call:?} {fault:?}: {error:?}");
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
async fn a_row_that_bigquery_alone_refuses_is_a_dead_letter_and_the_others_go_in() {
    with_database(async |postgres| {
        each(pairs(&[0, 1, 2, 5], &FAILURES), async |(requests, fault)| {
            let world = World::new(postgres, 8).await;
            world.server.store().refuses = [0, 7, 8, 21, 39].into();
            (0..requests).for_each(|_| world.server.next(Call::AppendRows, Fault::None));
            world.server.next(Call::AppendRows, fault);
            match world.live().await {
                Ok(()) => assert_eq!(world.seen(), world.wanted()),
                Err(error) => assert_eq!(error.kind(), Kind::Lost, "{error:?}"),
            }
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
        assert!(lived.is_err_and(|error| error.kind() == Kind::Lost), "nobody knows what the stream has");
        world.check_delivers().await;
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
        assert_eq!(error.kind(), Kind::Setup, "{error:?}");
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

#[tokio::test]
async fn random_faults_and_crashes_leave_each_event_once() {
    let seeds = match std::env::var("WALCAST_SEED") {
        Ok(seed) => vec![seed.parse().expect("WALCAST_SEED is a number")],
        Err(_) => (0..RUNS).map(|_| rand::random::<u32>().into()).collect::<Vec<u64>>(),
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

const RUNS: usize = 120;

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
