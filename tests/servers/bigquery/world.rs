//! A dataset, a database and a proxy of a test's own, and what a reader sees there.

use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, Event, Row};
use walcast::error::Result;
use walcast::lsn::{Checkpoint, HistoryId, Lsn, Position, Session, Timelines};
use walcast::model::content::Content;
use walcast::ops::init::migrate;
use walcast::resume;
use walcast::sink::bigquery::{self, BigQueryConfig, BigQuerySink};
use walcast::sink::{Sink, SinkAdmin};
use walcast::source::{PostgresConfig, sql};
use walcast::state::State;

use super::proxy::Proxy;
use crate::support::world::{ask_bigquery, rows_of};
use crate::support::{drop_database, env, fresh_database, fresh_name, made_up_history, postgres};

pub const START: Lsn = Lsn(1);
pub const EVENTS_A_COMMIT: u64 = 10;

/// A dataset, a database, and a proxy before the Storage Write service, all of a test's own.
pub struct World {
    pub postgres: PostgresConfig,
    pub config: BigQueryConfig,
    pub proxy: Proxy,
    pub history_id: HistoryId,
}

impl World {
    pub async fn new() -> World {
        World::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut BigQueryConfig)) -> World {
        let world = World::without_table(change).await;
        BigQuerySink::new(world.config.clone(), &world.postgres).prepare().await.unwrap();
        world
    }

    pub async fn without_table(change: impl FnOnce(&mut BigQueryConfig)) -> World {
        let postgres = fresh_database(postgres()).await;
        let mut client = sql::connect(&postgres).await.unwrap();
        migrate(&mut client, &postgres).await.unwrap();
        let history_id = made_up_history(&client, &postgres.slot).await;
        let proxy = Proxy::start(&env("BIGQUERY_GRPC_URL", "http://127.0.0.1:29060")).await;
        let mut config = BigQueryConfig {
            project_id: env("BIGQUERY_PROJECT_ID", "walcast-local"),
            dataset: fresh_name("d"),
            rest_url: env("BIGQUERY_REST_URL", "http://127.0.0.1:29050"),
            grpc_url: proxy.url().to_owned(),
            ..Default::default()
        };
        change(&mut config);
        World { postgres, config, proxy, history_id }
    }

    /// A new process: the newest instance, recovered.
    pub async fn start(&self) -> (BigQuerySink, Option<Checkpoint>) {
        let session = self.newest().await;
        let mut sink = BigQuerySink::new(self.config.clone(), &self.postgres);
        let stored = sink.recover(&session).await.unwrap();
        let judged = resume::judge(stored.as_ref(), false, &session, Lsn(u64::MAX));
        let checkpoint = judged.or_refuse(bigquery::NAME, &session).unwrap();
        (sink, stored.map(|_| checkpoint))
    }

    pub async fn newest(&self) -> Session {
        State::new(self.postgres.clone())
            .take_fencing_token(self.history_id.clone(), Timelines::default(), START)
            .await
            .unwrap()
    }

    /// Runs a statement at the emulator; a row's values in order.
    pub async fn query(&self, query: &str) -> Vec<Vec<Value>> {
        let project = format!("{}/bigquery/v2/projects/{}", self.config.rest_url, self.config.project_id);
        rows_of(query, &ask_bigquery(&project, query, Some(&self.config.dataset)).await)
    }

    /// The table as the REST service shows it.
    pub async fn table(&self) -> Value {
        let BigQueryConfig { rest_url, project_id, dataset, table, .. } = &self.config;
        let url = format!("{rest_url}/bigquery/v2/projects/{project_id}/datasets/{dataset}/tables/{table}");
        reqwest::get(url).await.unwrap().json().await.unwrap()
    }

    /// The ids that a reader sees, in order.
    pub async fn ids(&self) -> Vec<i64> {
        let rows = self.query("SELECT event_id FROM engagement_events ORDER BY event_id").await;
        rows.iter().map(|row| row[0].as_str().unwrap().parse().unwrap()).collect()
    }

    /// Writes what `checkpoint` lacks of the batches, as a driver does, and makes it durable.
    pub async fn deliver(
        &self,
        sink: &mut BigQuerySink,
        checkpoint: Option<Checkpoint>,
        batches: &[Arc<Batch>],
    ) -> Result<()> {
        let checkpoint = checkpoint.unwrap_or(Checkpoint::at(START));
        let missing: Vec<_> = batches.iter().filter_map(|batch| batch.beyond(&checkpoint)).collect();
        if !missing.is_empty() {
            sink.write(&missing).await?;
        }
        sink.flush().await.map(drop)
    }

    /// A new process takes over and delivers all; then a reader sees each event once.
    pub async fn check_recovers(&self, batches: &[Arc<Batch>]) {
        let (mut sink, checkpoint) = self.start().await;
        self.deliver(&mut sink, checkpoint, batches).await.unwrap();
        assert_eq!(self.ids().await, ids_of(batches));
        let (_, checkpoint) = self.start().await;
        assert_eq!(checkpoint, batches.last().map(|batch| batch.checkpoint()));
    }

    pub async fn progress(&self) -> (Option<Value>, Option<Value>) {
        let client = sql::connect(&self.postgres).await.unwrap();
        let row = client.query_opt("SELECT checkpoint, intent FROM walcast.progress", &[]).await.unwrap();
        row.map_or((None, None), |row| (row.get(0), row.get(1)))
    }

    pub async fn end(self) {
        self.query(&format!("DROP SCHEMA IF EXISTS {} CASCADE", self.config.dataset)).await;
        drop_database(&self.postgres).await;
    }
}

/// Commits of ten events each, a batch a commit; the same every time.
pub fn batches(count: u64) -> Vec<Arc<Batch>> {
    batches_with(count, |_, _| {})
}

pub fn batches_with(count: u64, change: impl Fn(&mut BatchBuilder, &mut Event)) -> Vec<Arc<Batch>> {
    let content = Arc::new(Content {
        id: Uuid::from_u128(1),
        slug: Some("the-daily".into()),
        title: Some("Zażółć gęślą jaźń".into()),
        content_type: Some("podcast".into()),
        length_seconds: Some(200),
        publish_ts: Some(1_700_000_000_000_000),
    });
    let now = now_micros();
    let mut builder = BatchBuilder::new(Checkpoint::at(START));
    let mut batch = |number: u64| {
        for ordinal in 0..EVENTS_A_COMMIT {
            let id = (number * EVENTS_A_COMMIT + ordinal) as i64;
            let mut event = Event {
                extra: Default::default(),
                position: Position { commit_lsn: Lsn(1_000 * (number + 1)), ordinal },
                commit_ts: now,
                id,
                content_id: Some(content.id),
                user_id: None,
                event_type: Some(builder.intern("play")),
                event_ts: now - id * 60_000_000,
                duration_ms: Some(1_000 * id),
                device: None,
                raw_payload: Some(builder.intern(&format!(r#"{{"n": {id}}}"#))),
                raw_payload_bytes: Some(8),
                content: Some(Arc::clone(&content)),
            };
            change(&mut builder, &mut event);
            builder.push(Row::Event(event));
        }
        builder.hold(Lsn(1_000 * (number + 1) + 100));
        Arc::new(builder.finish(false))
    };
    (0..count).map(&mut batch).collect()
}

pub fn ids_of(batches: &[Arc<Batch>]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.events().map(|event| event.id)).collect()
}

pub fn now_micros() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64
}
