//! The stream of a slot.

use bytes::Bytes;
use tokio_postgres::Client;
use walcast::error::{Code, Error};
use walcast::lsn::Lsn;
use walcast::source::PostgresConfig;
use walcast::source::connection::{Connection, ReplicationStream};
use walcast::source::frame::Frame;
use walcast::source::{slot, sql};

use super::{expect, server};
use crate::support::{DEADLINE, fresh_name, in_fresh_database, postgres, run, wait_until};

/// A table `t`, its publication, the slot, and a stream from the slot's beginning.
async fn stream_of_t(config: &PostgresConfig) -> (Client, ReplicationStream) {
    let client = sql::connect(config).await.unwrap();
    run(&client, "CREATE TABLE t (id bigint PRIMARY KEY, body text)").await;
    run(&client, &format!("CREATE PUBLICATION {} FOR TABLE t", config.publication)).await;
    let created = create_slot(config).await;
    let connection = Connection::connect(config).await.unwrap();
    let stream = connection.start_replication(&config.slot, &config.publication, created).await;
    (client, stream.unwrap())
}

async fn create_slot(config: &PostgresConfig) -> Lsn {
    let mut connection = Connection::connect(config).await.unwrap();
    let created = connection.create_slot(&config.slot, true).await.unwrap();
    connection.close().await.unwrap();
    created.consistent_point
}

/// The next transaction with rows, from Begin to Commit, or how the stream ends. Without the descriptions of tables: the
/// server repeats one whenever another session's DDL has it reset its caches.
async fn transaction(stream: &mut ReplicationStream) -> Result<Vec<Bytes>, Error> {
    let reading = async {
        let mut payloads = Vec::new();
        loop {
            match stream.next_frame()? {
                Some(Frame::XLogData { payload, .. }) if payload[0] == b'R' => {}
                Some(Frame::XLogData { payload, .. }) => payloads.push(payload),
                Some(Frame::Keepalive { .. }) => {}
                Some(Frame::Warning(warning)) => panic!("{warning}"),
                None => stream.fill().await?,
            }
            if payloads.last().is_some_and(|payload| payload[0] == b'C') {
                // version 14 also sends transactions that left no row, such as one of autovacuum
                if payloads.len() > 2 {
                    return Ok(payloads);
                }
                payloads.clear();
            }
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.expect("the stream gives nothing more")
}

/// The end of a transaction, from its Commit message.
fn end_lsn(commit: &[u8]) -> Lsn {
    assert_eq!(commit[0], b'C');
    Lsn(u64::from_be_bytes(commit[10..18].try_into().unwrap()))
}

async fn rows_stream(version: &str) {
    in_fresh_database(server(version), async |config| {
        let (client, mut stream) = stream_of_t(config).await;
        run(&client, "INSERT INTO t VALUES (1, 'a'), (513, NULL)").await;
        let payloads = transaction(&mut stream).await.unwrap();
        let kinds: String = payloads.iter().map(|payload| char::from(payload[0])).collect();
        assert_eq!(kinds, "BIIC");
        // after the relation's OID: a new row of two columns, both in binary
        assert_eq!(payloads[1][5..], *b"N\0\x02b\0\0\0\x08\0\0\0\0\0\0\0\x01b\0\0\0\x01a");
        assert_eq!(payloads[2][5..], *b"N\0\x02b\0\0\0\x08\0\0\0\0\0\0\x02\x01n");

        // a status moves the slot while the stream goes on
        let first = end_lsn(&payloads[3]);
        stream.send_status(first, first, false).await.unwrap();
        wait_until("the slot has moved", async || {
            slot::facts(&client, &config.slot).await.unwrap().unwrap().confirmed_flush_lsn == Some(first)
        })
        .await;

        // and so does the end, after which nobody has the slot any more
        run(&client, "INSERT INTO t VALUES (2, 'b')").await;
        let payloads = transaction(&mut stream).await.unwrap();
        let second = end_lsn(&payloads[2]);
        stream.close(second).await.unwrap();
        let facts = slot::facts(&client, &config.slot).await.unwrap().unwrap();
        assert_eq!((facts.active, facts.confirmed_flush_lsn), (false, Some(second)));

        // what was confirmed does not come again
        run(&client, "INSERT INTO t VALUES (3, 'c')").await;
        let connection = Connection::connect(config).await.unwrap();
        let stream = connection.start_replication(&config.slot, &config.publication, Lsn::ZERO).await;
        let payloads = transaction(&mut stream.unwrap()).await.unwrap();
        assert!(payloads[1].ends_with(b"\x03b\0\0\0\x01c"), "{payloads:?}");
    })
    .await;
}

#[tokio::test]
async fn rows_stream_from_14() {
    rows_stream("14").await;
}

#[tokio::test]
async fn rows_stream_from_15() {
    rows_stream("15").await;
}

#[tokio::test]
async fn rows_stream_from_16() {
    rows_stream("16").await;
}

#[tokio::test]
async fn rows_stream_from_17() {
    rows_stream("17").await;
}

#[tokio::test]
async fn rows_stream_from_18() {
    rows_stream("18").await;
}

#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn rows_stream_from_19() {
    rows_stream("19").await;
}

#[tokio::test]
async fn the_snapshot_is_what_was_there_before_the_stream() {
    in_fresh_database(postgres(), async |config| {
        let client = sql::connect(config).await.unwrap();
        run(&client, "CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1)").await;
        let mut connection = Connection::connect(config).await.unwrap();
        let created = connection.create_slot(&config.slot, false).await.unwrap();
        run(&client, "INSERT INTO t VALUES (2)").await;
        let take =
            format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'", created.snapshot);
        run(&client, &take).await;
        let seen = client.query_one("SELECT array_agg(id) FROM t", &[]).await.unwrap();
        assert_eq!(seen.get::<_, Vec<i64>>(0), [1]);
        run(&client, "COMMIT").await;
        assert!(connection.identify_system().await.unwrap().timeline >= 1);
        assert!(client.batch_execute(&take).await.is_err(), "the next command ends the snapshot");
    })
    .await;
}

#[tokio::test]
async fn a_row_of_many_megabytes_comes_whole() {
    in_fresh_database(postgres(), async |config| {
        let (client, mut stream) = stream_of_t(config).await;
        run(&client, "INSERT INTO t VALUES (1, repeat('0123456789abcdef', 2 << 20))").await;
        let payloads = transaction(&mut stream).await.unwrap();
        assert!(payloads[1].len() > 32 << 20 && payloads[1].ends_with(b"0123456789abcdef"));
    })
    .await;
}

#[tokio::test]
async fn the_slot_is_for_one_reader_at_a_time() {
    in_fresh_database(postgres(), async |config| {
        let (_client, stream) = stream_of_t(config).await;
        let second = async || {
            let connection = Connection::connect(config).await.unwrap();
            connection.start_replication(&config.slot, &config.publication, Lsn::ZERO).await
        };
        expect(second().await, Code::SlotBusy, &["is active for PID", "goes on when it lets go"]);
        stream.close(Lsn::ZERO).await.unwrap();
        second().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_is_not_there_is_said_to_be_missing() {
    in_fresh_database(postgres(), async |config| {
        let connection = Connection::connect(config).await.unwrap();
        let started = connection.start_replication("nobody_made_me", "p", Lsn::ZERO).await;
        expect(started, Code::SlotGone, &["nobody_made_me", "does not exist", "walcast init"]);
    })
    .await;
}

#[tokio::test]
async fn a_slot_of_another_database_is_refused() {
    in_fresh_database(postgres(), async |config| {
        create_slot(config).await;
        in_fresh_database(postgres(), async |other| {
            let connection = Connection::connect(other).await.unwrap();
            let started = connection.start_replication(&config.slot, "p", Lsn::ZERO).await;
            expect(started, Code::Prerequisite, &["55000"]);
            // which that is, the catalog tells
            let client = sql::connect(other).await.unwrap();
            let facts = slot::facts(&client, &config.slot).await.unwrap().unwrap();
            let words = ["belongs to the database", "`postgres.db`"];
            expect(facts.check_usable(other), Code::SlotUnfit, &words);
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_is_there_is_not_made_again() {
    in_fresh_database(postgres(), async |config| {
        create_slot(config).await;
        let mut connection = Connection::connect(config).await.unwrap();
        let again = connection.create_slot(&config.slot, false).await;
        expect(again, Code::SlotUnfit, &["already exists"]);
        expect(connection.create_slot("Upper", false).await, Code::Configuration, &["lower-case letters"]);
        connection.identify_system().await.unwrap();
    })
    .await;
}

/// A stream whose publication is gone, and a row in it, as this user.
async fn stream_without_publication(config: &PostgresConfig, user: &PostgresConfig) -> ReplicationStream {
    let (client, stream) = stream_of_t(config).await;
    stream.close(Lsn::ZERO).await.unwrap();
    run(&client, &format!("DROP PUBLICATION {}", config.publication)).await;
    let login = PostgresConfig { db: config.db.clone(), ..user.clone() };
    let connection = Connection::connect(&login).await.unwrap();
    let stream = connection.start_replication(&config.slot, &config.publication, Lsn::ZERO).await.unwrap();
    run(&client, "INSERT INTO t VALUES (1, 'a')").await;
    stream
}

#[tokio::test]
async fn a_missing_publication_ends_the_stream_up_to_17() {
    in_fresh_database(server("15"), async |config| {
        let mut stream = stream_without_publication(config, config).await;
        let ended = transaction(&mut stream).await;
        expect(
            ended,
            Code::PublicationChanged,
            &[&config.publication, "the publication is missing", "resync.md"],
        );
    })
    .await;
}

/// PostgreSQL 18 goes on without the rows, and tells so only by a warning of its output plugin, whatever the role asks
/// to be spared of.
#[tokio::test]
async fn a_missing_publication_is_warned_of_from_18_on() {
    let server = server("18");
    let role = fresh_name("quiet");
    let admin = sql::connect(&server).await.unwrap();
    let make = format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'; ALTER ROLE {role} SET client_min_messages = 'error'"
    );
    run(&admin, &make).await;
    let quiet = PostgresConfig { user: role.clone(), password: "x".to_owned().into(), ..server.clone() };
    for user in [&server, &quiet] {
        in_fresh_database(server.clone(), async |config| {
            let mut stream = stream_without_publication(config, user).await;
            let warning = async {
                loop {
                    match stream.next_frame().unwrap() {
                        Some(Frame::Warning(warning)) => return warning,
                        Some(_) => {}
                        None => stream.fill().await.unwrap(),
                    }
                }
            };
            let warning = tokio::time::timeout(DEADLINE, warning).await.unwrap();
            assert_eq!((warning.code.as_str(), warning.file.as_str()), ("55000", "pgoutput.c"));
        })
        .await;
    }
    run(&admin, &format!("DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_lost_slot_asks_for_a_resync() {
    let config = crate::support::services::postgres(
        "18:lost",
        &["max_slot_wal_keep_size=1MB", "min_wal_size=32MB", "max_wal_size=48MB"],
    );
    in_fresh_database(config, async |config| {
        let (client, stream) = stream_of_t(config).await;
        stream.close(Lsn::ZERO).await.unwrap();
        wait_until("the slot is invalidated", async || {
            run(
                &client,
                "SELECT pg_switch_wal(); CREATE TABLE IF NOT EXISTS x (a int); DROP TABLE x; CHECKPOINT",
            )
            .await;
            slot::facts(&client, &config.slot).await.unwrap().unwrap().lost().is_some()
        })
        .await;
        let facts = slot::facts(&client, &config.slot).await.unwrap().unwrap();
        assert_eq!(facts.invalidation_reason.as_deref(), Some("wal_removed"));
        expect(facts.check_usable(config), Code::SlotInvalidated, &["wal_removed", "max_slot_wal_keep_size"]);
        let connection = Connection::connect(config).await.unwrap();
        let started = connection.start_replication(&config.slot, &config.publication, Lsn::ZERO).await;
        // of many things; whoever asked looks into the catalog, as above
        expect(started, Code::Prerequisite, &["55000"]);
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_terminated_can_be_tried_again() {
    in_fresh_database(postgres(), async |config| {
        let (client, mut stream) = stream_of_t(config).await;
        let facts = slot::facts(&client, &config.slot).await.unwrap().unwrap();
        assert!(facts.active);
        client.query_one("SELECT pg_terminate_backend($1)", &[&facts.active_pid.unwrap()]).await.unwrap();
        expect(transaction(&mut stream).await, Code::PostgresUnreachable, &["57P01"]);
    })
    .await;
}
