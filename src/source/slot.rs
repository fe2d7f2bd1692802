//! What the server says of itself, the slot and the publication.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::error::{Error, Kind, Result};
use crate::lsn::Lsn;
use crate::source::{PostgresConfig, sql};

/// A replication slot.
#[derive(Debug, Clone)]
pub struct SlotFacts {
    /// Its output plugin.
    pub plugin: Option<String>,
    /// Its database.
    pub database: Option<String>,
    /// Whether somebody reads it.
    pub active: bool,
    /// Everything below is forgotten.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// reserved, extended, unreserved or lost.
    pub wal_status: Option<String>,
}

/// A publication that is as walcast needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publication {
    /// Its OID: another one for the same name means that it was made again.
    pub oid: u32,
}

/// Such as 180006.
pub async fn server_version_num(client: &Client) -> Result<i32> {
    let row = client
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .await
        .map_err(sql::error)?;
    Ok(row.get(0))
}

/// The slot, if there is one of that name.
pub async fn facts(client: &Client, slot: &str) -> Result<Option<SlotFacts>> {
    let row = client
        .query_opt(
            "SELECT plugin::text, database::text, active, confirmed_flush_lsn, wal_status
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&slot],
        )
        .await
        .map_err(sql::error)?;
    Ok(row.map(|row| SlotFacts {
        plugin: row.get(0),
        database: row.get(1),
        active: row.get(2),
        confirmed_flush_lsn: row.get::<_, Option<PgLsn>>(3).map(|lsn| Lsn(lsn.into())),
        wal_status: row.get(4),
    }))
}

impl SlotFacts {
    /// Refuses a slot of another plugin or database, or one whose WAL is gone.
    pub fn check_usable(&self, config: &PostgresConfig) -> Result<()> {
        let slot = &config.slot;
        if self.plugin.as_deref() != Some("pgoutput") {
            return Err(Error::new(Kind::Setup, format!("slot {slot} is not a logical slot of pgoutput"))
                .hint("choose another postgres.slot"));
        }
        if self.database.as_deref() != Some(config.db.as_str()) {
            let database = self.database.as_deref().unwrap_or_default();
            return Err(Error::new(
                Kind::Setup,
                format!("slot {slot} belongs to the database {database}, not to {}", config.db),
            )
            .hint("choose another postgres.slot, or set postgres.db to the slot's database"));
        }
        if self.wal_status.as_deref() == Some("lost") {
            return Err(Error::new(Kind::Resync, format!("slot {slot} has lost WAL that was not delivered"))
                .hint("raise max_slot_wal_keep_size; bring the sinks level with PostgreSQL, drop the slot and its row in walcast.epoch, then `walcast init`"));
        }
        Ok(())
    }
}

/// The publication, if there is one of that name; kind `Setup` when it lacks one of our tables.
pub async fn publication(client: &Client, config: &PostgresConfig) -> Result<Option<Publication>> {
    let row = client
        .query_opt(
            "SELECT oid, ARRAY(SELECT tablename::text FROM pg_publication_tables
                               WHERE pubname = p.pubname AND schemaname = $2), pubinsert AND pubupdate AND pubdelete AND pubtruncate
             FROM pg_publication AS p WHERE pubname = $1",
            &[&config.publication, &config.schema],
        )
        .await
        .map_err(sql::error)?;
    let Some(row) = row else { return Ok(None) };
    let tables: Vec<String> = row.get(1);
    for table in ["content", "engagement_events"] {
        if !tables.iter().any(|published| published == table) {
            return Err(Error::new(
                Kind::Setup,
                format!(
                    "publication {} does not have the table {}.{table}",
                    config.publication, config.schema
                ),
            )
            .hint(format!("ALTER PUBLICATION {} ADD TABLE {}.{table}", config.publication, config.schema)));
        }
    }
    if !row.get::<_, bool>(2) {
        return Err(Error::new(
            Kind::Setup,
            format!("publication {} leaves out some operations", config.publication),
        )
        .hint(format!(
            "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')",
            config.publication
        )));
    }
    Ok(Some(Publication { oid: row.get(0) }))
}

/// Waits while another process reads the slot: this is how a standby instance waits for its turn.
pub async fn wait_until_free(client: &Client, slot: &str) -> Result<()> {
    let mut said = false;
    while facts(client, slot).await?.is_some_and(|facts| facts.active) {
        if !said {
            tracing::info!(slot, "another process reads the slot; waiting for its end");
            said = true;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// Where the slot begins.
pub async fn confirmed(client: &Client, slot: &str) -> Result<Lsn> {
    facts(client, slot)
        .await?
        .and_then(|facts| facts.confirmed_flush_lsn)
        .ok_or_else(|| Error::new(Kind::Resync, format!("replication slot {slot} is gone")))
}

/// Drops a slot.
pub async fn drop(client: &Client, slot: &str) -> Result<()> {
    client
        .execute("SELECT pg_drop_replication_slot($1)", &[&slot])
        .await
        .map(std::mem::drop)
        .map_err(sql::error)
}
