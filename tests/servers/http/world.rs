//! A target that can fail, and a history of our own in PostgreSQL.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::watch;
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, Event, Row};
use walcast::error::Result;
use walcast::lsn::{Checkpoint, HistoryId, Lsn, Position, Session, Timelines};
use walcast::resume;
use walcast::sink::Sink;
use walcast::sink::breaker::{Breaker, BreakerConfig};
use walcast::sink::driver::Driver;
use walcast::sink::http::{self, HttpConfig, HttpSink};
use walcast::sink::queue::{feed, queue};
use walcast::source::{PostgresConfig, sql};
use walcast::state::State;
use walcast::telemetry::registry::StatusRegistry;

use crate::support::http_server::HttpServer;
use crate::support::{fresh_name, made_up_history};

pub const START: Lsn = Lsn(1);
const EVENTS_A_COMMIT: u64 = 5;
const CONTENTS: u64 = 7;

pub struct World {
    pub server: HttpServer,
    pub postgres: PostgresConfig,
    pub config: HttpConfig,
    pub history_id: HistoryId,
    /// What the slot would send.
    pub stream: Vec<Arc<Batch>>,
}

impl World {
    pub async fn new(postgres: &PostgresConfig, commits: u64) -> World {
        World::with(postgres, commits, |_| {}).await
    }

    pub async fn with(
        postgres: &PostgresConfig,
        commits: u64,
        change: impl FnOnce(&mut HttpConfig),
    ) -> World {
        World::at(HttpServer::start().await, postgres, commits, change).await
    }

    pub async fn at(
        server: HttpServer,
        postgres: &PostgresConfig,
        commits: u64,
        change: impl FnOnce(&mut HttpConfig),
    ) -> World {
        let client = sql::connect(postgres).await.unwrap();
        let history_id = made_up_history(&client, &fresh_name("slot")).await;
        let mut config =
            HttpConfig { url: server.url().into(), timeout_ms: 1_000, concurrency: 4, ..Default::default() };
        change(&mut config);
        World { server, postgres: postgres.clone(), config, history_id, stream: stream(commits) }
    }

    pub async fn newest(&self) -> Session {
        State::new(self.postgres.clone())
            .take_fencing_token(self.history_id.clone(), Timelines::default(), START)
            .await
            .unwrap()
    }

    /// A new process takes over and runs until it has delivered all, or until an error ends it.
    pub async fn live(&self) -> Result<()> {
        let session = self.newest().await;
        let mut sink = HttpSink::new(self.config.clone(), &self.postgres)?;
        let stored = sink.recover(&session).await?;
        let mut state = State::new(self.postgres.clone());
        let registered = state.is_registered(&session, "http").await?;
        let durable = resume::judge(stored.as_ref(), registered, &session, Lsn(u64::MAX))
            .or_refuse(http::NAME, &session)?;
        self.check_checkpoint(durable).await;
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
            // what a test waits for is not the breaker
            breaker: Breaker::seeded(&BreakerConfig { failures_max: 1_000, ..Default::default() }, 1),
            apart: None,
            status: StatusRegistry::new().sink("http", durable),
        };
        for batch in self.stream.iter().filter_map(|batch| batch.beyond(&durable)) {
            sender.send(batch).await.unwrap();
        }
        drop(sender);
        let watching = async {
            while seen.changed().await.is_ok() {
                let checkpoint = seen.borrow_and_update()[0];
                self.check_checkpoint(checkpoint).await;
            }
        };
        tokio::join!(driver.run(), watching).0
    }

    /// What the checkpoint covers was taken, or is a dead letter.
    async fn check_checkpoint(&self, checkpoint: Checkpoint) {
        let taken: HashSet<Position> = self.server.events().iter().map(|(position, _)| *position).collect();
        let letters = self.letters().await;
        for event in self.events().filter(|event| checkpoint.holds(event.position)) {
            let position = event.position;
            let there = taken.contains(&position) || letters.contains_key(&event.id);
            assert!(there, "the checkpoint {checkpoint} is ahead of the target, which has not {position}");
        }
    }

    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.stream.iter().flat_map(|batch| batch.events())
    }

    /// Nothing goes wrong any more: all gets in, but for these, and stays as it is.
    pub async fn check_delivers(&self, letters: &[i64]) {
        self.server.calm();
        for _ in 0..2 {
            self.live().await.unwrap();
            self.check_delivered(letters).await;
        }
        assert_eq!(self.requests_of_another_life().await, 0, "nothing is left to be sent");
    }

    async fn requests_of_another_life(&self) -> usize {
        let before = self.server.posted().len();
        self.live().await.unwrap();
        self.server.posted().len() - before
    }

    pub async fn check_delivered(&self, letters: &[i64]) {
        let wanted: BTreeSet<i64> =
            self.events().map(|event| event.id).filter(|id| !letters.contains(id)).collect();
        let seen: BTreeSet<i64> =
            self.server.events().iter().map(|(_, record)| record["event_id"].as_i64().unwrap()).collect();
        assert_eq!(seen, wanted);
        self.server.check();
        assert_eq!(self.letters().await.into_keys().collect::<Vec<_>>(), letters);
    }

    /// The rows that were given up: id and message.
    pub async fn letters(&self) -> BTreeMap<i64, String> {
        let client = sql::connect(&self.postgres).await.unwrap();
        let query = "SELECT event_id, message FROM walcast.dead_letter
                     WHERE sink = 'http' AND reason = 'refused_by_target' AND history_id = $1
                       AND (record ->> 'event_id')::bigint = event_id";
        let rows = client.query(query, &[&self.history_id.uuid]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

/// Commits of five events each, on seven contents and none.
pub fn stream(commits: u64) -> Vec<Arc<Batch>> {
    let mut builder = BatchBuilder::new(Checkpoint::at(START));
    let mut commit = |number: u64| {
        for ordinal in 0..EVENTS_A_COMMIT {
            let id = number * EVENTS_A_COMMIT + ordinal;
            let position = Position { commit_lsn: Lsn(100 * (number + 1)), ordinal };
            let mut event = Event::new(position, id as i64, id as i64, id as i64);
            event.content_id = (!id.is_multiple_of(11)).then(|| Uuid::from_u128(u128::from(id % CONTENTS)));
            event.event_type = Some(builder.intern("play"));
            event.raw_payload = Some(builder.intern("{\"a\": [1]}"));
            event.raw_payload_bytes = Some(10);
            builder.push(Row::Event(event));
        }
        builder.hold(Lsn(100 * (number + 1) + 50));
        Arc::new(builder.finish(false))
    };
    (0..commits).map(&mut commit).collect()
}

/// Runs some at a time: PostgreSQL has other guests.
pub async fn each<T>(cases: impl IntoIterator<Item = T>, one: impl AsyncFn(T)) {
    let cases = cases.into_iter().map(|case| one(case));
    futures_util::stream::iter(cases).buffer_unordered(8).for_each(|()| async {}).await;
}
