//! The service that the other tests rely on keeps its own rules.

use std::collections::BTreeSet;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::StorageError;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode as Reason;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::write_stream::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto};
use tonic::Code;
use walcast::sink::bigquery::BigQueryConfig;

use crate::support::bigquery_server::BigQueryServer;
use crate::support::bigquery_server::row::Layout;
use crate::support::bigquery_server::store::{NotAppended, Store, Table};

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
