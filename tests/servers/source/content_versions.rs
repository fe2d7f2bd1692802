//! Pruning `walcast.content_version`.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;
use walcast::ops::init::migrate;
use walcast::source::{PostgresConfig, sql};

use super::server;
use crate::support::{in_fresh_database, run};

const PRUNE: &str = include_str!("../../../sql/prune_content_versions.sql");
const HISTORY_ID: Uuid = Uuid::from_u128(2);

/// A database with the state schema.
async fn with_state(config: &PostgresConfig) -> Client {
    let mut client = sql::connect(config).await.unwrap();
    migrate(&mut client, config).await.unwrap();
    client
}

/// How many rows go when the confirmed LSN has moved from one of these to the other.
async fn pruned(client: &Client, then: u64, now: u64) -> u64 {
    client.execute(PRUNE, &[&HISTORY_ID, &PgLsn::from(then), &PgLsn::from(now)]).await.unwrap()
}

#[tokio::test]
async fn only_versions_that_no_start_can_ask_for_are_pruned() {
    in_fresh_database(server("18"), async |config| {
        let client = with_state(config).await;
        run(
            &client,
            "INSERT INTO walcast.content_version (history_id, content_id, commit_lsn, ordinal, deleted)
             SELECT ('00000000-0000-0000-0000-00000000000' || history_id)::uuid,
                    ('00000000-0000-0000-0000-00000000000' || content)::uuid, lsn::pg_lsn, ordinal, deleted
             FROM (VALUES (2, 1, '0/0', 0, false), (2, 1, '0/10', 0, false), (2, 1, '0/10', 1, false),
                          (2, 2, '0/0', 0, false), (2, 2, 'FFFFFFFF/0', 0, false),
                          (2, 3, '0/0', 0, false), (2, 3, '0/10', 0, true),
                          (2, 4, '0/0', 0, false), (2, 4, 'FFFFFFFF/0', 0, true),
                          (3, 1, '0/0', 0, false), (3, 1, '0/20', 0, true))
                  AS version (history_id, content, lsn, ordinal, deleted)",
        )
        .await;
        assert_eq!(pruned(&client, 0, 0x10).await, 0, "all of it may be asked for");
        assert_eq!(pruned(&client, 0x10, 0x30).await, 4);
        assert_eq!(pruned(&client, 0x30, 0x1_0000_0000).await, 0);
        let left = "SELECT right(history_id::text, 1) || right(content_id::text, 1) || ' ' || commit_lsn || '#' || ordinal
                    FROM walcast.content_version ORDER BY history_id, content_id, commit_lsn, ordinal";
        let left: Vec<String> =
            client.query(left, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(
            left,
            ["21 0/10#1", "22 0/0#0", "22 FFFFFFFF/0#0", "24 0/0#0", "24 FFFFFFFF/0#0", "31 0/0#0", "31 0/20#0"]
        );
    })
    .await;
}

/// A slot that was made again: the statistics are those of the former history id, and say that this one has no rows.
#[tokio::test]
async fn pruning_is_quick_whatever_the_statistics_say() {
    in_fresh_database(server("18"), async |config| {
        let client = with_state(config).await;
        let insert = |history_id: u8| {
            format!(
                "INSERT INTO walcast.content_version (history_id, content_id, commit_lsn, ordinal, deleted)
                 SELECT '00000000-0000-0000-0000-00000000000{history_id}', gen_random_uuid(), '0/0', 0, false
                 FROM generate_series(1, 30000)"
            )
        };
        run(&client, &insert(1)).await;
        run(&client, "ANALYZE walcast.content_version").await;
        run(&client, "DELETE FROM walcast.content_version").await;
        run(&client, &insert(2)).await;
        run(
            &client,
            "INSERT INTO walcast.content_version (history_id, content_id, commit_lsn, ordinal, deleted)
             SELECT history_id, content_id, '0/10', 0, false FROM walcast.content_version",
        )
        .await;
        run(&client, "SET statement_timeout = '20s'").await; // comparing all with all takes minutes
        assert_eq!(pruned(&client, 0, 0x30).await, 30_000);
    })
    .await;
}
