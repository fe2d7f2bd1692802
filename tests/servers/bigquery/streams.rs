//! Streams that break, and rows that the service refuses.

use std::collections::BTreeSet;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_request::{ProtoData, Rows};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::big_query_write_client::BigQueryWriteClient;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    AppendRowsRequest, ProtoRows, append_rows_response,
};
use tonic::Code;
use walcast::batch::Batch;
use walcast::error::{self, Class};
use walcast::sink::Sink;
use walcast::sink::bigquery::column::Record;
use walcast::sink::bigquery::encode::{Encoder, schema};
use walcast::sink::bigquery::extra::ExtraTable;
use walcast::source::sql;

use super::proxy::Fault;
use super::world::{EVENTS_A_COMMIT, World, batches, batches_with, ids_of};
use crate::support::env;

const NOTHING: [i64; 0] = [];
const APPEND: &str = "AppendRows";
const FINALIZE: &str = "FinalizeWriteStream";

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
        assert_eq!((error.code(), error.class()), (error::Code::Lost, Class::Rewind), "{method}");
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
    assert_eq!(error.code(), error::Code::Lost);
    assert!(error.to_string().contains("11 rows in a stream that was given 10"), "{error}");
    assert_eq!((world.ids().await, world.progress().await), (vec![], (None, None)));
    world.check_recovers(&batches).await;
    world.end().await;
}

/// Puts the batch's first row into the stream once more, as a request that was thought lost might.
async fn append_again(stream: &str, batch: &Batch) {
    let record = Record { event: batch.events().next().unwrap(), batch, epoch: "e", ingested_at: 0 };
    let row = ProtoRows { serialized_rows: vec![Encoder::default().encode(&record).unwrap()] };
    let request = AppendRowsRequest {
        write_stream: stream.to_owned(),
        offset: Some(EVENTS_A_COMMIT as i64),
        rows: Some(Rows::ProtoRows(ProtoData {
            writer_schema: Some(schema(&ExtraTable::default())),
            rows: Some(row),
        })),
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
        let (mut sink, checkpoint) = world.start().await;
        world.deliver(&mut sink, checkpoint, &make()).await.unwrap();
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
    assert_eq!(sink.flush().await.unwrap(), Some(batches[0].checkpoint()));
    assert_eq!(world.ids().await, NOTHING);
    let client = sql::connect(&world.postgres).await.unwrap();
    let count = "SELECT count(*), count(*) FILTER (WHERE reason = 'too_large') FROM walcast.dead_letter";
    let row = client.query_one(count, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (10, 1));
    world.end().await;
}
