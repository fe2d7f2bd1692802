//! The BigQuery sink against the emulator: what a reader sees, and that a crash anywhere changes nothing of it.
//!
//! A crash is played by dropping the sink while one of its calls is held by a proxy before the service, and
//! making a new one: `WALCAST_SEED=7 cargo test --test bigquery` repeats the random ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;
#[path = "support/proxy.rs"]
mod proxy;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_request::{ProtoData, Rows};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_response;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::big_query_write_client::BigQueryWriteClient;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{AppendRowsRequest, ProtoRows};
use proxy::{Fault, Proxy};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use support::{drop_database, env, fresh_database, fresh_name, postgres, run, wait_until};
use tonic::Code;
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, Event, Row};
use walcast::error::{Class, Kind, Result};
use walcast::finding::Verdict;
use walcast::lsn::{Epoch, History, Lsn, Mark, Position, Session};
use walcast::model::content::Content;
use walcast::ops::init::migrate;
use walcast::sink::bigquery::column::Record;
use walcast::sink::bigquery::row::{Encoder, schema};
use walcast::sink::bigquery::{BigQueryConfig, BigQuerySink, Partitioning};
use walcast::sink::{Sink, Written};
use walcast::source::{PostgresConfig, sql};
use walcast::state::State;

const START: Lsn = Lsn(1);
const EVENTS_A_COMMIT: u64 = 10;
const NOTHING: [i64; 0] = [];
const APPEND: &str = "AppendRows";
const FINALIZE: &str = "FinalizeWriteStream";
const COMMIT: &str = "BatchCommitWriteStreams";

/// A dataset, a database, and a proxy before the Storage Write service, all of a test's own.
struct World {
    postgres: PostgresConfig,
    config: BigQueryConfig,
    proxy: Proxy,
    epoch: Epoch,
}

impl World {
    async fn new() -> World {
        World::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut BigQueryConfig)) -> World {
        let world = World::without_table(change).await;
        BigQuerySink::new(world.config.clone(), &world.postgres).prepare().await.unwrap();
        world
    }

    async fn without_table(change: impl FnOnce(&mut BigQueryConfig)) -> World {
        let postgres = fresh_database(postgres()).await;
        let mut client = sql::connect(&postgres).await.unwrap();
        migrate(&mut client, &postgres).await.unwrap();
        let (epoch, slot) = (Uuid::new_v4(), postgres.slot.clone());
        let insert = "INSERT INTO walcast.epoch (slot, epoch, system_id, timeline, publication, publication_oid, state)
                      VALUES ($1, $2, '7', 1, 'p', 1, 'ready')";
        client.execute(insert, &[&slot, &epoch]).await.unwrap();
        let proxy = Proxy::start(&env("BIGQUERY_GRPC_URL", "http://127.0.0.1:29060")).await;
        let mut config = BigQueryConfig {
            project_id: env("BIGQUERY_PROJECT_ID", "walcast-local"),
            dataset: fresh_name("d"),
            rest_url: env("BIGQUERY_REST_URL", "http://127.0.0.1:29050"),
            grpc_url: proxy.url().to_owned(),
            ..Default::default()
        };
        change(&mut config);
        World { postgres, config, proxy, epoch: Epoch { epoch, system_id: "7".into(), timeline: 1, slot } }
    }

    /// A new process: the newest instance, recovered.
    async fn start(&self) -> (BigQuerySink, Option<Mark>) {
        let session = self.newest().await;
        let mut sink = BigQuerySink::new(self.config.clone(), &self.postgres);
        let stored = sink.recover(&session).await.unwrap();
        (sink, stored.map(|stored| stored.go_on("bigquery", &session).unwrap()))
    }

    async fn newest(&self) -> Session {
        State::new(self.postgres.clone())
            .take_token(self.epoch.clone(), History::default(), START)
            .await
            .unwrap()
    }

    /// Runs a statement at the emulator; a row's values in order.
    async fn query(&self, query: &str) -> Vec<Vec<Value>> {
        let url = format!("{}/bigquery/v2/projects/{}/queries", self.config.rest_url, self.config.project_id);
        let body = json!({ "query": query, "useLegacySql": false, "timeoutMs": 30_000, "defaultDataset": { "datasetId": self.config.dataset } });
        let answer = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        assert!(answer.get("error").is_none(), "{query}: {answer}");
        let rows = answer["rows"].as_array().cloned().unwrap_or_default();
        let values =
            |row: Value| row["f"].as_array().unwrap().iter().map(|field| field["v"].clone()).collect();
        rows.into_iter().map(values).collect()
    }

    /// The table as the REST service shows it.
    async fn table(&self) -> Value {
        let BigQueryConfig { rest_url, project_id, dataset, table, .. } = &self.config;
        let url = format!("{rest_url}/bigquery/v2/projects/{project_id}/datasets/{dataset}/tables/{table}");
        reqwest::get(url).await.unwrap().json().await.unwrap()
    }

    /// The ids that a reader sees, in order.
    async fn ids(&self) -> Vec<i64> {
        let rows = self.query("SELECT event_id FROM engagement_events ORDER BY event_id").await;
        rows.iter().map(|row| row[0].as_str().unwrap().parse().unwrap()).collect()
    }

    /// Writes what `mark` lacks of the batches, as a driver does, and makes it durable.
    async fn deliver(
        &self,
        sink: &mut BigQuerySink,
        mark: Option<Mark>,
        batches: &[Arc<Batch>],
    ) -> Result<()> {
        let mark = mark.unwrap_or(Mark::at(START));
        let missing: Vec<_> = batches.iter().filter_map(|batch| batch.beyond(&mark)).collect();
        if !missing.is_empty() {
            sink.write(&missing).await?;
        }
        sink.flush().await.map(drop)
    }

    /// A new process takes over and delivers all; then a reader sees each event once.
    async fn check_recovers(&self, batches: &[Arc<Batch>]) {
        let (mut sink, mark) = self.start().await;
        self.deliver(&mut sink, mark, batches).await.unwrap();
        assert_eq!(self.ids().await, ids_of(batches));
        let (_, mark) = self.start().await;
        assert_eq!(mark, batches.last().map(|batch| batch.mark()));
    }

    async fn progress(&self) -> (Option<Value>, Option<Value>) {
        let client = sql::connect(&self.postgres).await.unwrap();
        let row = client.query_opt("SELECT mark, intent FROM walcast.progress", &[]).await.unwrap();
        row.map_or((None, None), |row| (row.get(0), row.get(1)))
    }

    async fn end(self) {
        self.query(&format!("DROP SCHEMA IF EXISTS {} CASCADE", self.config.dataset)).await;
        drop_database(&self.postgres).await;
    }
}

/// Commits of ten events each, a batch a commit; the same every time.
fn batches(count: u64) -> Vec<Arc<Batch>> {
    batches_with(count, |_, _| {})
}

fn batches_with(count: u64, change: impl Fn(&mut BatchBuilder, &mut Event)) -> Vec<Arc<Batch>> {
    let content = Arc::new(Content {
        id: Uuid::from_u128(1),
        slug: "the-daily".into(),
        title: "Zażółć gęślą jaźń".into(),
        content_type: Some("podcast".into()),
        length_seconds: Some(200),
        publish_ts: Some(1_700_000_000_000_000),
    });
    let now = now_micros();
    let mut builder = BatchBuilder::new(Mark::at(START));
    let mut batch = |number: u64| {
        for ordinal in 0..EVENTS_A_COMMIT {
            let id = (number * EVENTS_A_COMMIT + ordinal) as i64;
            let mut event = Event {
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

fn ids_of(batches: &[Arc<Batch>]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.events().map(|event| event.id)).collect()
}

fn now_micros() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64
}

#[tokio::test]
async fn rows_are_seen_once_and_only_after_their_commit() {
    let world = World::new().await;
    let (mut sink, mark) = world.start().await;
    assert_eq!(mark, None);
    let batches = batches(4);
    assert_eq!(sink.write(&batches[..2]).await.unwrap(), Written::Accepted);
    assert_eq!(sink.write(&batches[2..3]).await.unwrap(), Written::Accepted);
    assert_eq!(world.ids().await, NOTHING);
    assert_eq!(sink.flush().await.unwrap(), Some(batches[2].mark()));
    assert_eq!(world.ids().await, ids_of(&batches[..3]));
    assert_eq!(sink.flush().await.unwrap(), None, "nothing new");

    sink.write(&batches[3..]).await.unwrap();
    assert_eq!(sink.flush().await.unwrap(), Some(batches[3].mark()));
    assert_eq!(world.ids().await, ids_of(&batches));
    assert!(matches!(world.progress().await, (Some(_), None)), "no intent is left");
    world.end().await;
}

#[tokio::test]
async fn every_column_is_what_the_event_says() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    let batches = batches_with(1, |builder, event| {
        if event.id == 3 {
            event.event_ts = -1_500_000; // before 1970
            event.device = Some(builder.intern("tv"));
            event.user_id = Some(Uuid::from_u128(0xabc));
        }
        if event.id == 4 {
            event.content = None;
            event.content_id = None;
            event.event_type = None;
            event.duration_ms = None;
            event.raw_payload = None;
            event.raw_payload_bytes = None;
        }
    });
    world.deliver(&mut sink, None, &batches).await.unwrap();
    let columns = "content_id, user_id, event_type, UNIX_MICROS(event_ts), duration_ms, device, JSON_VALUE(raw_payload, '$.n'), \
        raw_payload_bytes, slug, title, content_type, length_seconds, UNIX_MICROS(publish_ts), engagement_seconds, \
        engagement_pct, UNIX_MICROS(commit_ts) > 0, commit_lsn, ordinal, epoch, bucket_30m, UNIX_MICROS(ingested_at) > 0";
    let row = |id: i64| format!("SELECT {columns} FROM engagement_events WHERE event_id = {id}");
    let id = |number| json!(Uuid::from_u128(number).to_string());
    let epoch = world.epoch.epoch.to_string();
    assert_eq!(
        json!(world.query(&row(3)).await[0]),
        json!([
            id(1),
            id(0xabc),
            "play",
            "-1500000",
            "3000",
            "tv",
            "3",
            "8",
            "the-daily",
            "Zażółć gęślą jaźń",
            "podcast",
            "200",
            "1700000000000000",
            "3.0",
            "1.5",
            "true",
            "1000",
            "3",
            epoch,
            "9599",
            "true"
        ])
    );
    let row = &world.query(&row(4)).await[0];
    assert_eq!(json!(row[..3]), json!([null, null, null]));
    assert_eq!(json!(row[4..15]), json!(vec![Value::Null; 11]));
    world.end().await;
}

#[tokio::test]
async fn the_question_of_the_readme_has_its_answer() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    let batches = batches_with(1, |_, event| event.event_ts = now_micros());
    world.deliver(&mut sink, None, &batches).await.unwrap();
    let query = format!(
        "SELECT content_type, AVG(engagement_pct) FROM {}.engagement_events WHERE DATE(event_ts) = CURRENT_DATE() GROUP BY content_type",
        world.config.dataset
    );
    // 0 to 9 seconds of 200
    assert_eq!(json!(world.query(&query).await), json!([["podcast", "2.25"]]));
    world.end().await;
}

#[tokio::test]
async fn the_table_is_partitioned_by_half_hours_or_by_hours() {
    for (partitioning, wanted) in [
        (
            Partitioning::HalfHour,
            json!({"field": "bucket_30m", "range": {"start": "0", "end": "9600", "interval": "1"}}),
        ),
        (Partitioning::Hour, json!({"field": "event_ts", "type": "HOUR"})),
    ] {
        let world = World::with(|config| config.partitioning = partitioning).await;
        let table = world.table().await;
        let field = if partitioning == Partitioning::Hour { "timePartitioning" } else { "rangePartitioning" };
        assert_eq!(table[field], wanted);
        assert_eq!(table["clustering"]["fields"], json!(["content_type", "event_type"]));
        let (mut sink, _) = world.start().await;
        let batches = batches(3);
        world.deliver(&mut sink, None, &batches).await.unwrap();
        // events lie a minute apart, back from now
        let span = "TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 630 SECOND), CURRENT_TIMESTAMP()";
        let seen = world.query(&format!("SELECT COUNT(*) FROM engagement_between({span})")).await;
        assert_eq!(json!(seen), json!([["11"]]));

        sink.prepare().await.expect("run again it does nothing");
        let (mut sink, mark) = world.start().await;
        assert_eq!(mark, Some(batches[2].mark()));
        assert!(sink.check().await.iter().all(|finding| finding.verdict != Verdict::Fail));
        world.end().await;
    }
}

#[tokio::test]
async fn engagement_between_knows_the_turn_of_the_ring() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    const TURN_MICROS: i64 = 9_600 * 1_800 * 1_000_000;
    let seam = 103 * TURN_MICROS; // where bucket 9,599 meets bucket 0
    let batches = batches_with(1, |_, event| event.event_ts = seam + (event.id - 5) * 1_800_000_000);
    world.deliver(&mut sink, None, &batches).await.unwrap();
    for (from, to, count) in [
        (seam - 2 * 1_800_000_000, seam + 2 * 1_800_000_000, "4"),
        (seam, seam + 1_800_000_000, "1"),
        (seam - 10 * 1_800_000_000, seam, "5"),
        (seam - TURN_MICROS, seam + TURN_MICROS, "10"),
        (seam + TURN_MICROS, seam + TURN_MICROS + 1_800_000_000, "0"),
    ] {
        let query = format!(
            "SELECT COUNT(*) FROM engagement_between(TIMESTAMP_MICROS({from}), TIMESTAMP_MICROS({to}))"
        );
        assert_eq!(json!(world.query(&query).await), json!([[count]]), "{from} {to}");
    }
    world.end().await;
}

#[tokio::test]
async fn rows_appear_by_themselves_after_the_commit_interval() {
    let world = World::with(|config| config.commit_seconds = 1).await;
    let (mut sink, _) = world.start().await;
    let batches = batches(1);
    sink.write(&batches).await.unwrap();
    assert_eq!(sink.tick().await.unwrap(), None, "not yet");
    let sink = tokio::sync::Mutex::new(sink);
    wait_until("a tick commits", async || sink.lock().await.tick().await.unwrap() == Some(batches[0].mark()))
        .await;
    assert_eq!(world.ids().await, ids_of(&batches));
    world.end().await;
}

#[tokio::test]
async fn a_full_stream_does_not_wait() {
    let world = World::with(|config| config.batch_rows_max = 20).await;
    let (mut sink, _) = world.start().await;
    let batches = batches(5);
    assert_eq!(sink.write(&batches).await.unwrap(), Written::Accepted, "the fifth is still open");
    assert_eq!(world.ids().await, ids_of(&batches[..4]));
    assert_eq!(sink.tick().await.unwrap(), Some(batches[3].mark()), "told at the next tick");
    assert_eq!(sink.flush().await.unwrap(), Some(batches[4].mark()));
    assert_eq!(world.ids().await, ids_of(&batches));

    let world_of_bytes = World::with(|config| config.batch_bytes_max = 3_000).await;
    let (mut sink, _) = world_of_bytes.start().await;
    assert!(
        matches!(sink.write(&batches[..2]).await.unwrap(), Written::Durable(mark) if mark == batches[1].mark())
    );
    world.end().await;
    world_of_bytes.end().await;
}

#[tokio::test]
async fn a_heartbeat_is_durable_at_once_or_with_the_open_stream() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    let heartbeat = |lsn| [Arc::new(Batch::empty(Mark::at(Lsn(lsn)), false))];
    assert_eq!(sink.write(&heartbeat(50)).await.unwrap(), Written::Durable(Mark::at(Lsn(50))));
    let (mut sink, mark) = world.start().await;
    assert_eq!(mark, Some(Mark::at(Lsn(50))));

    let batches = batches(1);
    sink.write(&batches).await.unwrap();
    assert_eq!(sink.write(&heartbeat(5_000)).await.unwrap(), Written::Accepted);
    let mark = batches[0].mark().advanced(Mark::at(Lsn(5_000)));
    assert_eq!(sink.flush().await.unwrap(), Some(mark));
    let (_, stored) = world.start().await;
    assert_eq!(stored, Some(mark));
    world.end().await;
}

#[tokio::test]
async fn a_crash_after_the_append_leaves_nothing() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    sink.write(&batches(3)).await.unwrap();
    drop(sink);
    let (_, mark) = world.start().await;
    assert_eq!(mark, None);
    world.check_recovers(&batches(3)).await;
    world.end().await;
}

/// Writes, and crashes in the flush where the fault holds it.
async fn crash(world: &World, method: &'static str, fault: Fault) {
    let (mut sink, mark) = world.start().await;
    assert_eq!(mark, None);
    sink.write(&batches(3)).await.unwrap();
    world.proxy.next(method, fault);
    tokio::select! {
        ended = sink.flush() => panic!("not held: {ended:?}"),
        () = world.proxy.reached(method) => {}
    }
    drop(sink);
    world.proxy.forget();
}

#[tokio::test]
async fn a_crash_after_finalize_leaves_nothing() {
    let world = World::new().await;
    crash(&world, FINALIZE, Fault::HoldAfter).await;
    assert!(matches!(world.progress().await, (None, None)));
    let (_, mark) = world.start().await;
    assert_eq!((mark, world.ids().await), (None, vec![]));
    world.check_recovers(&batches(4)).await;
    world.end().await;
}

#[tokio::test]
async fn a_crash_after_the_intent_is_mended_by_the_commit() {
    let world = World::new().await;
    crash(&world, COMMIT, Fault::HoldBefore).await;
    assert!(matches!(world.progress().await, (None, Some(_))));
    let (_, mark) = world.start().await;
    assert_eq!((mark, world.ids().await), (Some(batches(3)[2].mark()), ids_of(&batches(3))));
    world.check_recovers(&batches(4)).await;
    world.end().await;
}

#[tokio::test]
async fn a_crash_between_commit_and_mark_is_mended_by_the_same_commit() {
    let world = World::new().await;
    crash(&world, COMMIT, Fault::HoldAfter).await;
    assert!(matches!(world.progress().await, (None, Some(_))));
    assert_eq!(world.ids().await, ids_of(&batches(3)));
    let (_, mark) = world.start().await;
    assert_eq!(mark, Some(batches(3)[2].mark()));
    world.check_recovers(&batches(4)).await;
    world.end().await;
}

#[tokio::test]
async fn when_the_intents_stream_is_gone_the_table_tells() {
    for (fault, committed) in [(Fault::HoldAfter, true), (Fault::HoldBefore, false)] {
        for partitioning in [Partitioning::HalfHour, Partitioning::Hour] {
            let world = World::with(|config| config.partitioning = partitioning).await;
            crash(&world, COMMIT, fault).await;
            world.proxy.next(COMMIT, Fault::Refuse(Code::NotFound));
            world.proxy.next("GetWriteStream", Fault::Refuse(Code::NotFound));
            let (_, mark) = world.start().await;
            assert_eq!(mark, committed.then(|| batches(3)[2].mark()));
            assert!(matches!(world.progress().await, (_, None)), "settled for good");
            world.check_recovers(&batches(4)).await;
            world.end().await;
        }
    }
}

#[tokio::test]
async fn a_stream_in_no_state_to_be_committed_was_committed_or_is_not_given_up() {
    let world = World::new().await;
    crash(&world, COMMIT, Fault::HoldAfter).await;
    world.proxy.next(COMMIT, Fault::RefuseFor(StorageErrorCode::InvalidStreamState));
    let (_, mark) = world.start().await;
    assert_eq!(mark, Some(batches(3)[2].mark()));
    world.end().await;

    let world = World::new().await;
    crash(&world, COMMIT, Fault::HoldBefore).await;
    world.proxy.next(COMMIT, Fault::RefuseFor(StorageErrorCode::InvalidStreamState));
    let mut sink = BigQuerySink::new(world.config.clone(), &world.postgres);
    let error = sink.recover(&world.newest().await).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "asked again, and no other stream meanwhile: {error:?}");
    assert!(matches!(world.progress().await, (None, Some(_))), "the intent stands");
    world.check_recovers(&batches(4)).await;
    world.end().await;
}

#[tokio::test]
async fn after_a_lost_answer_the_running_sink_settles_and_goes_on() {
    let world = World::new().await;
    let session = world.newest().await;
    let mut sink = BigQuerySink::new(world.config.clone(), &world.postgres);
    sink.recover(&session).await.unwrap();
    let batches = batches(4);
    sink.write(&batches[..3]).await.unwrap();
    // the retry of the commit is refused for good, as if its stream were of an unknown kind
    world.proxy.next(COMMIT, Fault::LoseAnswer);
    world.proxy.next(COMMIT, Fault::Refuse(Code::InvalidArgument));
    assert!(sink.flush().await.is_err());
    assert!(sink.write(&batches[3..]).await.is_err(), "not before it is recovered");
    let stored = sink.recover(&session).await.unwrap().unwrap();
    assert_eq!(stored.mark, batches[2].mark());
    world.deliver(&mut sink, Some(stored.mark), &batches).await.unwrap();
    assert_eq!(world.ids().await, ids_of(&batches));
    world.end().await;
}

#[tokio::test]
async fn an_older_instance_changes_nothing() {
    let world = World::new().await;
    let (mut older, _) = world.start().await;
    let all = batches(3);
    older.write(&all[..2]).await.unwrap();
    let (mut newer, mark) = world.start().await;
    let error = older.flush().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Fenced);
    assert_eq!(world.ids().await, NOTHING);
    world.deliver(&mut newer, mark, &all).await.unwrap();
    assert_eq!(world.ids().await, ids_of(&all));
    world.end().await;
}

#[tokio::test]
async fn a_paused_instances_commit_is_the_newer_ones_too() {
    let world = World::new().await;
    let (mut older, _) = world.start().await;
    let all = batches(4);
    older.write(&all[..2]).await.unwrap();
    world.proxy.next(COMMIT, Fault::HoldBefore);
    let older = tokio::spawn(async move { older.flush().await });
    world.proxy.reached(COMMIT).await;

    let (mut newer, mark) = world.start().await;
    assert_eq!(mark, Some(all[1].mark()), "what the older one was about to do is done");
    newer.write(&all[2..3]).await.unwrap();
    world.proxy.release();
    assert_eq!(older.await.unwrap().unwrap_err().kind(), Kind::Fenced);
    world.deliver(&mut newer, Some(all[2].mark()), &all).await.unwrap();
    assert_eq!(world.ids().await, ids_of(&all));
    world.end().await;
}

#[tokio::test]
async fn a_broken_append_connection_is_made_again() {
    let world = World::with(|config| config.append_bytes_max = 700).await;
    let (mut sink, _) = world.start().await;
    let batches = batches(5);
    world.proxy.next(APPEND, Fault::LoseAnswer);
    world.proxy.next(APPEND, Fault::Refuse(Code::Unavailable));
    world.proxy.next(APPEND, Fault::LoseAnswer);
    sink.write(&batches).await.unwrap();
    assert_eq!(world.proxy.stopped(APPEND), 3);
    sink.flush().await.unwrap();
    assert_eq!(world.ids().await, ids_of(&batches));
    world.end().await;
}

#[tokio::test]
async fn a_lost_stream_is_told_as_lost() {
    for method in [APPEND, FINALIZE] {
        let world = World::new().await;
        let (mut sink, _) = world.start().await;
        let batches = batches(2);
        world.proxy.next(method, Fault::Refuse(Code::NotFound));
        let error = match sink.write(&batches).await {
            Ok(_) => sink.flush().await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!((error.kind(), error.class()), (Kind::Lost, Class::Rewind), "{method}");
        assert_eq!(world.ids().await, NOTHING);
        world.check_recovers(&batches).await;
        world.end().await;
    }
}

#[tokio::test]
async fn a_stream_with_a_row_too_many_is_never_committed() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    let batches = batches(1);
    sink.write(&batches).await.unwrap();
    let route = world.proxy.route(APPEND);
    let stream = route.strip_prefix("write_stream=").expect("the service routes by the stream");
    append_again(stream, &batches[0]).await;
    let error = sink.flush().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Lost);
    assert!(error.to_string().contains("11 rows in a stream that was given 10"), "{error}");
    assert_eq!((world.ids().await, world.progress().await), (vec![], (None, None)));
    world.check_recovers(&batches).await;
    world.end().await;
}

/// Puts the batch's first row into the stream once more, as a request that was thought lost might.
async fn append_again(stream: &str, batch: &Batch) {
    let record = Record { event: batch.events().next().unwrap(), batch, epoch: "e", ingested_at: 0 };
    let row = ProtoRows { serialized_rows: vec![Encoder::default().encode(&record)] };
    let request = AppendRowsRequest {
        write_stream: stream.to_owned(),
        offset: Some(EVENTS_A_COMMIT as i64),
        rows: Some(Rows::ProtoRows(ProtoData { writer_schema: Some(schema()), rows: Some(row) })),
        ..Default::default()
    };
    let url = env("BIGQUERY_GRPC_URL", "http://127.0.0.1:29060");
    let mut client = BigQueryWriteClient::connect(url).await.unwrap();
    let answers = client.append_rows(futures_util::stream::iter([request])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    assert!(matches!(answer.response, Some(append_rows_response::Response::AppendResult(_))), "{answer:?}");
}

#[tokio::test]
async fn a_refused_row_becomes_a_dead_letter_and_the_others_arrive() {
    // small requests, so that others are on their way behind the refused one
    let world = World::with(|config| config.append_bytes_max = 700).await;
    let bad: BTreeSet<i64> = [0, 13, 14, 29].into();
    let make = || {
        batches_with(3, |builder, event| {
            if bad.contains(&event.id) {
                // what PostgreSQL calls JSON, BigQuery may not
                event.raw_payload = Some(builder.intern("{\"n\": "));
            }
        })
    };
    let (mut sink, _) = world.start().await;
    sink.write(&make()).await.unwrap();
    let client = sql::connect(&world.postgres).await.unwrap();
    let letters = async || {
        let query = "SELECT event_id, commit_lsn::text, ordinal, reason, message FROM walcast.dead_letter WHERE sink = 'bigquery' ORDER BY 1";
        client.query(query, &[]).await.unwrap()
    };
    drop(sink);
    assert!(letters().await.is_empty(), "kept together with the commit");

    for _ in 0..2 {
        let (mut sink, mark) = world.start().await;
        world.deliver(&mut sink, mark, &make()).await.unwrap();
    }
    let wanted: Vec<i64> = (0..30).filter(|id| !bad.contains(id)).collect();
    assert_eq!(world.ids().await, wanted);
    let letters = letters().await;
    assert_eq!(letters.iter().map(|row| row.get::<_, i64>(0)).collect::<BTreeSet<_>>(), bad);
    assert_eq!(letters[1].get::<_, &str>(1), "0/7D0");
    assert_eq!(letters[1].get::<_, i64>(2), 3);
    assert!(letters[1].get::<_, &str>(4).contains("raw_payload"), "{:?}", letters[1]);
    world.end().await;
}

#[tokio::test]
async fn a_row_too_large_and_a_commit_of_nothing_but_refused_rows() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    let large = format!("\"{}\"", "x".repeat(10 << 20));
    let batches = batches_with(1, |builder, event| {
        event.raw_payload = Some(builder.intern(if event.id == 5 { &large } else { "nonsense" }));
    });
    sink.write(&batches).await.unwrap();
    assert_eq!(sink.flush().await.unwrap(), Some(batches[0].mark()));
    assert_eq!(world.ids().await, NOTHING);
    let client = sql::connect(&world.postgres).await.unwrap();
    let count = "SELECT count(*), count(*) FILTER (WHERE reason = 'too_large') FROM walcast.dead_letter";
    let row = client.query_one(count, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (10, 1));
    world.end().await;
}

#[tokio::test]
async fn a_state_older_than_the_table_writes_nothing_twice() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    let all = batches(5);
    world.deliver(&mut sink, None, &all[..1]).await.unwrap();
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "CREATE TABLE backup AS SELECT * FROM walcast.progress").await;
    world.deliver(&mut sink, Some(all[0].mark()), &all[..3]).await.unwrap();
    run(&client, "DELETE FROM walcast.progress; INSERT INTO walcast.progress SELECT * FROM backup").await;

    let (mut sink, mark) = world.start().await;
    assert_eq!(mark, Some(all[0].mark()));
    // a write that is there wholly, one that is there in part, and one that is not
    sink.write(&all[1..2]).await.unwrap();
    sink.write(&all[2..4]).await.unwrap();
    sink.write(&all[4..]).await.unwrap();
    assert_eq!(sink.flush().await.unwrap(), Some(all[4].mark()));
    assert_eq!(world.ids().await, ids_of(&all));

    run(&client, "DELETE FROM walcast.progress").await;
    world.check_recovers(&all).await;
    world.end().await;
}

#[tokio::test]
async fn a_table_of_another_shape_is_refused_and_left_alone() {
    let world = World::without_table(|_| {}).await;
    let mut sink = BigQuerySink::new(world.config.clone(), &world.postgres);
    let findings = sink.check().await;
    assert_eq!((findings[0].verdict, findings[0].message.as_str()), (Verdict::Warn, "does not exist yet"));

    world.query(&format!("CREATE SCHEMA {}", world.config.dataset)).await;
    world.query("CREATE TABLE engagement_events (event_id STRING)").await;
    let before = world.table().await;
    let error = sink.prepare().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Setup);
    assert!(error.to_string().contains("column event_id is STRING, not INT64"), "{error}");
    assert!(error.advice().contains("bigquery.table"), "{}", error.advice());
    let findings = sink.check().await;
    let table = findings.iter().find(|finding| finding.id == "bigquery.table").unwrap();
    assert_eq!(table.verdict, Verdict::Fail);
    assert!(table.message.contains("event_id"), "{table:?}");
    assert_eq!(world.table().await, before);
    world.end().await;
}

#[tokio::test]
async fn another_partitioning_is_another_table() {
    let world = World::new().await;
    let config = BigQueryConfig { partitioning: Partitioning::Hour, ..world.config.clone() };
    let error = BigQuerySink::new(config, &world.postgres).prepare().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Setup);
    assert!(error.advice().contains("bigquery.partitioning"), "{}", error.advice());
    world.end().await;
}

#[tokio::test]
async fn check_names_what_cannot_be_reached_and_what_is_not_set() {
    let world = World::without_table(|_| {}).await;
    let check = async |config: BigQueryConfig| BigQuerySink::new(config, &world.postgres).check().await;
    let config = world.config.clone();
    let findings = check(BigQueryConfig { rest_url: "http://127.0.0.1:1".into(), ..config.clone() }).await;
    assert_eq!(findings[0].verdict, Verdict::Fail);
    let findings = check(BigQueryConfig { project_id: String::new(), ..config.clone() }).await;
    assert!(findings[0].message.contains("bigquery.project_id"), "{findings:?}");
    let missing = "/nonexistent/key.json".to_owned();
    let config = BigQueryConfig { grpc_url: String::new(), credentials_file: missing, ..config };
    let findings = check(config).await;
    assert!(findings[0].message.contains("key.json"), "{findings:?}");
    world.end().await;
}

#[tokio::test]
async fn random_crashes_and_faults_leave_each_event_once() {
    let seed = std::env::var("WALCAST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("WALCAST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::with(|config| {
        config.batch_rows_max = 45;
        config.append_bytes_max = 2_000;
    })
    .await;
    let all = batches(40);
    for life in 0..12 {
        let (mut sink, mark) = world.start().await;
        let mark = mark.unwrap_or(Mark::at(START));
        let missing: Vec<_> = all.iter().filter_map(|batch| batch.beyond(&mark)).collect();
        let method = [APPEND, FINALIZE, COMMIT][rng.random_range(0..3)];
        let fault = [Fault::HoldBefore, Fault::HoldAfter, Fault::LoseAnswer][rng.random_range(0..3)];
        world.proxy.next(method, fault);
        let deadline = Duration::from_millis(rng.random_range(20..800));
        let mut rest = missing.as_slice();
        let live = async {
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rng.random_range(1..=rest.len().min(6)));
                sink.write(now).await.unwrap();
                if rng.random_bool(0.3) {
                    sink.flush().await.unwrap();
                }
                rest = later;
            }
            sink.flush().await.unwrap();
        };
        let _ = tokio::time::timeout(deadline, live).await;
        drop(sink);
        world.proxy.release();
        let seen = world.ids().await;
        assert_eq!(seen, ids_of(&all)[..seen.len()], "a prefix, life {life}, seed {seed}");
        if seen.len() == all.len() * EVENTS_A_COMMIT as usize {
            break;
        }
    }
    world.check_recovers(&all).await;
    world.end().await;
}
