//! PostgreSQL at one place of the WAL: a temporary slot, and a session that sees exactly the commits below it.

use tokio_postgres::Client;
use uuid::Uuid;

use crate::error::Result;
use crate::lsn::Lsn;
use crate::source::connection::{Connection, ReplicationStream};
use crate::source::{PostgresConfig, quote, slot, sql};

/// The database as of a consistent point. As long as it is held PostgreSQL keeps the row versions that it sees,
/// and the WAL from there on.
pub struct Snapshot {
    /// The session sees the transactions whose commit record begins below this LSN, and no others.
    pub consistent_point: Lsn,
    /// A session within a read-only transaction at that point.
    pub client: Client,
    replication: Connection,
    slot: String,
}

impl Snapshot {
    /// Takes a snapshot now. Waits until every transaction that now writes has ended, and says so.
    pub async fn take(config: &PostgresConfig) -> Result<Snapshot> {
        let client = sql::connect(config).await?;
        let mut replication = Connection::connect(config).await?;
        let name = format!("walcast_snapshot_{}", Uuid::new_v4().simple());
        let created = slot::made(&client, replication.create_temporary_slot(&name)).await?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; SET LOCAL TimeZone TO 'UTC'",
            quote::literal(&created.snapshot)
        );
        client.batch_execute(&begin).await.map_err(sql::error)?;
        Ok(Snapshot { consistent_point: created.consistent_point, client, replication, slot: name })
    }

    /// Gives up the slot, and the WAL that was kept for it: the session, and the stream of all that was committed
    /// after the snapshot.
    pub async fn follow(self, publication: &str) -> Result<(Client, ReplicationStream)> {
        let start = self.consistent_point;
        let stream = self.replication.start_replication(&self.slot, publication, start).await?;
        Ok((self.client, stream))
    }
}
