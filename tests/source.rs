//! The replication transport against real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::{drop_database, fresh_database, run};
use walcast::lsn::Lsn;
use walcast::source::PostgresConfig;
use walcast::source::connection::{Connection, ReplicationStream};
use walcast::source::frame::Frame;
use walcast::source::sql;

/// Reads frames until `count` messages of the plugin have come.
async fn payloads(stream: &mut ReplicationStream, count: usize) -> Vec<bytes::Bytes> {
    let mut payloads = Vec::new();
    while payloads.len() < count {
        match stream.next_frame().unwrap() {
            Some(Frame::XLogData { payload, .. }) => payloads.push(payload),
            Some(Frame::Keepalive { wal_end, reply_requested: true, .. }) => {
                stream.send_status(wal_end, Lsn::ZERO, false).await.unwrap()
            }
            Some(Frame::Keepalive { .. }) => {}
            None => stream.fill().await.unwrap(),
        }
    }
    payloads
}

#[tokio::test]
async fn rows_stream_in_binary() {
    let config = fresh_database(support::postgres()).await;
    stream_rows(&config).await;
    drop_database(&config).await;
}

async fn stream_rows(config: &PostgresConfig) {
    let sql = sql::connect(config).await.unwrap();
    run(&sql, "CREATE TABLE t (id bigint PRIMARY KEY, n int)").await;
    run(&sql, &format!("CREATE PUBLICATION {} FOR TABLE t", config.publication)).await;
    let mut connection = Connection::connect(config).await.unwrap();
    let identity = connection.identify_system().await.unwrap();
    assert_eq!(identity.db.as_deref(), Some(config.db.as_str()));
    let created = connection.create_slot(&config.slot, true).await.unwrap();
    run(&sql, "INSERT INTO t VALUES (1, 2), (3, 4)").await;
    let start = created.consistent_point;
    let mut stream = connection.start_replication(&config.slot, &config.publication, start).await.unwrap();
    let payloads = payloads(&mut stream, 5).await;
    let kinds: String = payloads.iter().map(|payload| char::from(payload[0])).collect();
    assert_eq!(kinds, "BRIIC");
    // relation OID, 'N', two columns: 'b' with 8 bytes, 'b' with 4
    assert_eq!(payloads[3][5..], *b"N\0\x02b\0\0\0\x08\0\0\0\0\0\0\0\x03b\0\0\0\x04\0\0\0\x04");
    let end_lsn = Lsn(u64::from_be_bytes(payloads[4][10..18].try_into().unwrap()));
    stream.close(end_lsn).await.unwrap();
    let state = "SELECT active, confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
    let row = sql.query_one(state, &[&config.slot]).await.unwrap();
    assert_eq!((row.get(0), row.get::<_, String>(1)), (false, end_lsn.to_string()));
}
