//! The BigQuery sink under its real driver, against a service that fails in every way the real one can.
//!
//! After every fault, and after every crash in between: each event is in the table once, in the stream's order,
//! none is missing, and no mark was ever ahead of the table.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/bigquery_server/mod.rs"]
mod bigquery_server;
mod support;

use std::sync::Arc;

use bigquery_server::fault::{Call, Fault};
use bigquery_server::{BigQueryServer, Row as Seen};
use support::{drop_database, fresh_database, fresh_name, postgres};
use tokio::sync::watch;
use tonic::Code;
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, Event, Row};
use walcast::error::Result;
use walcast::lsn::{Epoch, Lsn, Mark, Position, Session};
use walcast::ops::init::migrate;
use walcast::sink::Sink;
use walcast::sink::bigquery::{BigQueryConfig, BigQuerySink};
use walcast::sink::driver::Driver;
use walcast::sink::queue::queue;
use walcast::source::{PostgresConfig, sql};
use walcast::state::State;
use walcast::telemetry::status::Board;

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
    async fn new(postgres: &PostgresConfig, commits: u64) -> World {
        let client = sql::connect(postgres).await.unwrap();
        let (epoch, slot) = (Uuid::new_v4(), fresh_name("slot"));
        let insert = "INSERT INTO walcast.epoch (slot, epoch, system_id, timeline, publication, publication_oid, state)
                      VALUES ($1, $2, '7', 1, 'p', 1, 'ready')";
        client.execute(insert, &[&slot, &epoch]).await.unwrap();
        let server = BigQueryServer::start().await;
        let config = BigQueryConfig {
            project_id: "project".into(),
            rest_url: server.url(),
            grpc_url: server.url(),
            batch_rows_max: 20,
            append_bytes_max: 700,
            ..Default::default()
        };
        BigQuerySink::new(config.clone(), postgres).prepare().await.unwrap();
        let epoch = Epoch { epoch, system_id: "7".into(), timeline: 1, slot };
        World { server, postgres: postgres.clone(), config, epoch, stream: stream(commits) }
    }

    /// A new process takes over and runs until it has delivered all, or until an error ends it.
    async fn live(&self) -> Result<()> {
        let session = State::new(self.postgres.clone()).take_token(self.epoch.clone(), START).await?;
        let mut sink = BigQuerySink::new(self.config.clone(), &self.postgres);
        let stored = sink.recover(&session).await?;
        let held = stored.map(|stored| stored.go_on("bigquery", &session)).transpose()?;
        self.drive(session, sink, held.unwrap_or(Mark::at(START))).await
    }

    async fn drive(&self, session: Session, sink: BigQuerySink, held: Mark) -> Result<()> {
        self.check_mark(held);
        let mut state = State::new(self.postgres.clone());
        let registered = state.is_registered(&session, "bigquery").await?;
        let (sender, receiver) = queue(1 << 20);
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

    fn rows(&self) -> Vec<Seen> {
        self.server.rows(&self.config.table_path())
    }

    fn positions(&self) -> Vec<Position> {
        let position =
            |row: Seen| Position { commit_lsn: Lsn(row.commit_lsn as u64), ordinal: row.ordinal as u64 };
        self.rows().into_iter().map(position).collect()
    }

    fn wanted(&self) -> Vec<Position> {
        self.stream.iter().flat_map(|batch| batch.events().map(|event| event.position)).collect()
    }

    /// What is in the table is what the stream begins with, and the mark is not ahead of it.
    fn check_mark(&self, mark: Mark) {
        let (wanted, seen) = (self.wanted(), self.positions());
        assert!(wanted.starts_with(&seen), "a gap, a double or another order: {seen:?}");
        let held = wanted.iter().filter(|position| mark.holds(**position)).count();
        assert!(held <= seen.len(), "the mark {mark} is ahead of the table, which has {} rows", seen.len());
    }

    /// Nothing goes wrong any more: all gets in, and stays as it is.
    async fn check_delivers(&self) {
        self.server.calm();
        for _ in 0..2 {
            self.live().await.unwrap();
            assert_eq!(self.positions(), self.wanted());
        }
    }
}

fn stream(commits: u64) -> Vec<Arc<Batch>> {
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
                raw_payload: Some(builder.intern("{}")),
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

/// Runs a test with a database that goes afterwards.
async fn with_database(test: impl AsyncFnOnce(&PostgresConfig)) {
    let postgres = fresh_database(postgres()).await;
    let mut client = sql::connect(&postgres).await.unwrap();
    migrate(&mut client, &postgres).await.unwrap();
    test(&postgres).await;
    drop_database(&postgres).await;
}

#[tokio::test]
async fn a_call_that_fails_once_in_any_way_is_made_again() {
    let faults = [
        Fault::Refuse(Code::Unavailable),
        Fault::Refuse(Code::ResourceExhausted),
        Fault::LoseAnswer,
        Fault::CutBefore,
        Fault::CutAfter,
    ];
    let calls = [
        Call::CreateWriteStream,
        Call::AppendRows,
        Call::FinalizeWriteStream,
        Call::BatchCommitWriteStreams,
        Call::Query,
    ];
    with_database(async |postgres| {
        let one = async |call: Call, fault: Fault| {
            let world = World::new(postgres, 6).await;
            world.server.next(call, fault);
            let lived = world.live().await;
            assert!(world.server.seen(call).contains(&fault), "{call:?} does not meet {fault:?}");
            assert!(lived.is_ok(), "{call:?} {fault:?}: {lived:?}");
            world.check_delivers().await;
        };
        let all = calls.into_iter().flat_map(|call| faults.map(|fault| (call, fault)));
        futures_util::future::join_all(all.map(|(call, fault)| one(call, fault))).await;
    })
    .await;
}
