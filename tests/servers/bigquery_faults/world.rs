//! A service that can fail, and a history of our own in PostgreSQL.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Code;
use walcast::batch::{Batch, BatchBuilder, Event, Row};
use walcast::error::Result;
use walcast::lsn::{Checkpoint, HistoryId, Lsn, Position, Session, Timelines};
use walcast::resume;
use walcast::sink::bigquery::{self, BigQueryConfig, BigQuerySink};
use walcast::sink::breaker::{Breaker, BreakerConfig};
use walcast::sink::driver::Driver;
use walcast::sink::queue::{feed, queue};
use walcast::sink::{Sink, SinkAdmin};
use walcast::source::{PostgresConfig, sql};
use walcast::state::State;
use walcast::telemetry::registry::StatusRegistry;

use crate::support::bigquery_server::BigQueryServer;
use crate::support::bigquery_server::Row as Seen;
use crate::support::bigquery_server::fault::{Call, Fault};
pub use crate::support::with_schema as with_database;
use crate::support::{DEADLINE, fresh_name, made_up_history};

pub const START: Lsn = Lsn(1);
pub const EVENTS_A_COMMIT: u64 = 5;

/// A service, and a history of our own in PostgreSQL.
pub struct World {
    pub server: BigQueryServer,
    pub postgres: PostgresConfig,
    pub config: BigQueryConfig,
    pub history_id: HistoryId,
    /// What the slot would send.
    pub stream: Vec<Arc<Batch>>,
}

impl World {
    pub async fn new(postgres: &PostgresConfig, commits: u64) -> Arc<World> {
        World::with(postgres, stream(commits, "{}"), |_| {}).await
    }

    pub async fn with(
        postgres: &PostgresConfig,
        stream: Vec<Arc<Batch>>,
        change: impl FnOnce(&mut BigQueryConfig),
    ) -> Arc<World> {
        let client = sql::connect(postgres).await.unwrap();
        let history_id = made_up_history(&client, &fresh_name("slot")).await;
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
        Arc::new(World { server, postgres: postgres.clone(), config, history_id, stream })
    }

    /// A new process takes over and runs until it has delivered all, or until an error ends it.
    pub async fn live(&self) -> Result<()> {
        self.live_as(self.newest().await).await
    }

    pub async fn newest(&self) -> Session {
        State::new(self.postgres.clone())
            .take_fencing_token(self.history_id.clone(), Timelines::default(), START)
            .await
            .unwrap()
    }

    pub async fn live_as(&self, session: Session) -> Result<()> {
        let mut sink = BigQuerySink::new(self.config.clone(), &self.postgres);
        let stored = sink.recover(&session).await?;
        let durable = resume::judge(stored.as_ref(), false, &session, Lsn(u64::MAX))
            .or_refuse(bigquery::NAME, &session)?;
        self.drive(session, sink, durable).await
    }

    pub async fn drive(&self, session: Session, sink: BigQuerySink, durable: Checkpoint) -> Result<()> {
        self.check_checkpoint(durable);
        let mut state = State::new(self.postgres.clone());
        let registered = state.is_registered(&session, "bigquery").await?;
        let (feeder, feed) = feed(durable);
        let (sender, queue) = queue(256 << 20, durable);
        feeder.send(queue).ok().unwrap();
        drop(feeder);
        let (checkpoints, mut seen) = watch::channel(vec![durable]);
        let driver = Driver {
            sink: Box::new(sink),
            feed,
            session,
            durable,
            checkpoints,
            index: 0,
            unregistered: (!registered).then_some(state),
            breaker: Breaker::seeded(&BreakerConfig::default(), 1),
            apart: None,
            status: StatusRegistry::new().sink("bigquery", durable),
        };
        for batch in self.stream.iter().filter_map(|batch| batch.beyond(&durable)) {
            sender.send(batch).await.unwrap();
        }
        drop(sender);
        let watching = async {
            while seen.changed().await.is_ok() {
                let checkpoint = seen.borrow_and_update()[0];
                self.check_checkpoint(checkpoint);
            }
        };
        tokio::join!(driver.run(), watching).0
    }

    /// The same in the background; aborting the task is the process's crash.
    pub async fn spawn(self: &Arc<Self>) -> JoinHandle<Result<()>> {
        let (world, session) = (Arc::clone(self), self.newest().await);
        tokio::spawn(async move { world.live_as(session).await })
    }

    /// A process dies while a call of its is durable.
    pub async fn crash_at_a_held_call(self: &Arc<Self>) {
        let crashes = self.spawn().await;
        self.is_held().await;
        crashes.abort();
    }

    /// A call of ours is durable.
    pub async fn is_held(&self) {
        let durable = tokio::time::timeout(DEADLINE, self.server.holds(1)).await;
        assert!(durable.is_ok(), "not within {DEADLINE:?}: no call met its fault");
    }

    /// The events that a reader sees, in the order in which they became visible.
    pub fn seen(&self) -> Vec<Position> {
        let rows = self.server.rows(&self.config.table_path());
        let lsn = |row: &Seen| Lsn(row.commit_lsn as u64);
        rows.iter().map(|row| Position { commit_lsn: lsn(row), ordinal: row.ordinal as u64 }).collect()
    }

    /// The events that a reader shall see.
    pub fn wanted(&self) -> Vec<Position> {
        let refuses = self.server.store().refuses.clone();
        let events = self.stream.iter().flat_map(|batch| batch.events());
        events.filter(|event| !refuses.contains(&event.id)).map(|event| event.position).collect()
    }

    /// What is in the table is what the stream begins with.
    pub fn check(&self) {
        let (wanted, seen) = (self.wanted(), self.seen());
        assert!(wanted.starts_with(&seen), "a gap, a double or another order: {seen:?}");
    }

    /// The same, and the checkpoint is not ahead of it.
    pub fn check_checkpoint(&self, checkpoint: Checkpoint) {
        self.check();
        let durable = self.wanted().iter().filter(|position| checkpoint.holds(**position)).count();
        let seen = self.seen().len();
        assert!(durable <= seen, "the checkpoint {checkpoint} is ahead of the table, which has {seen} rows");
    }

    /// Nothing goes wrong any more: all gets in, and stays as it is.
    pub async fn check_delivers(&self) {
        self.server.calm();
        for _ in 0..2 {
            self.live().await.unwrap();
            assert_eq!(self.seen(), self.wanted());
        }
        assert_eq!(self.dead_letters().await, self.server.store().refuses.clone());
    }

    pub async fn dead_letters(&self) -> BTreeSet<i64> {
        let client = sql::connect(&self.postgres).await.unwrap();
        let query = "SELECT event_id FROM walcast.dead_letter WHERE sink = 'bigquery' AND history_id = $1";
        let rows = client.query(query, &[&self.history_id.uuid]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

pub fn stream(commits: u64, payload: &str) -> Vec<Arc<Batch>> {
    stream_of(commits, payload, |number| 100 * (number + 1), |id| id * 600_000_000)
}

/// A stream whose commits lie at these places, each 50 bytes long, with events of these times.
pub fn stream_of(
    commits: u64,
    payload: &str,
    lsn: impl Fn(u64) -> u64,
    event_ts: impl Fn(i64) -> i64,
) -> Vec<Arc<Batch>> {
    let mut builder = BatchBuilder::new(Checkpoint::at(START));
    let mut commit = |number: u64| {
        for ordinal in 0..EVENTS_A_COMMIT {
            let id = (number * EVENTS_A_COMMIT + ordinal) as i64;
            let event = Event {
                extra: Default::default(),
                position: Position { commit_lsn: Lsn(lsn(number)), ordinal },
                commit_ts: id,
                id,
                content_id: None,
                user_id: None,
                event_type: Some(builder.intern("play")),
                event_ts: event_ts(id),
                duration_ms: None,
                device: None,
                raw_payload: Some(builder.intern(payload)),
                raw_payload_bytes: Some(2),
                content: None,
            };
            builder.push(Row::Event(event));
        }
        builder.hold(Lsn(lsn(number) + 50));
        Arc::new(builder.finish(false))
    };
    (0..commits).map(&mut commit).collect()
}

/// Runs some at a time: PostgreSQL has other guests.
pub async fn each<T>(cases: impl IntoIterator<Item = T>, one: impl AsyncFn(T)) {
    let cases = cases.into_iter().map(|case| one(case));
    futures_util::stream::iter(cases).buffer_unordered(8).for_each(|()| async {}).await;
}

pub fn pairs<A: Copy, B: Copy>(a: &[A], b: &[B]) -> Vec<(A, B)> {
    a.iter().flat_map(|a| b.iter().map(|b| (*a, *b))).collect()
}

pub const FAILURES: [Fault; 5] = [
    Fault::Refuse(Code::Unavailable),
    Fault::Refuse(Code::ResourceExhausted),
    Fault::LoseAnswer,
    Fault::CutBefore,
    Fault::CutAfter,
];
pub const HOLDS: [Fault; 2] = [Fault::HoldBefore, Fault::HoldAfter];
pub const CALLS: [Call; 5] = [
    Call::CreateWriteStream,
    Call::AppendRows,
    Call::FinalizeWriteStream,
    Call::BatchCommitWriteStreams,
    Call::Query,
];
