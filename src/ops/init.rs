//! `walcast init`: state schema, publication, targets, and the slot with the content versions at its
//! snapshot. The order matters: a slot can never read past the making of its publication, and from its own
//! making on the server keeps WAL for it.

use tokio_postgres::Client;

use crate::config::Config;
use crate::error::{Class, Code, Error, Result};
use crate::finding;
use crate::sinks;
use crate::source::migrations::{self, MIGRATIONS};
use crate::source::{PostgresConfig, check, quote, slot, sql};
use crate::state::{State, history};

/// Makes what is missing, touches nothing that is there.
pub async fn init(config: &Config) -> Result<()> {
    let mut state = State::new(config.postgres.clone());
    let client = state.client().await?;
    finding::refuse(&check::check_server(client, &config.postgres).await?)?;
    // before anything is made
    finding::refuse(&check::check_tables(client, &config.postgres).await?)?;
    migrate(client, &config.postgres).await?;
    finding::refuse(&check::check(client, &config.postgres).await?)?;
    publish(client, &config.postgres).await?;
    for mut sink in sinks::admins(config)? {
        sink.prepare().await?;
        tracing::info!(sink = sink.name(), "target ready");
    }
    let (history_id, _) = history::open(&config.postgres, &mut state).await?;
    tracing::info!(slot = history_id.slot, history_id = %history_id.uuid, "slot ready");
    Ok(())
}

/// Applies the migrations that this database does not have yet, each in a transaction.
pub async fn migrate(client: &mut Client, config: &PostgresConfig) -> Result<()> {
    let transaction = client.transaction().await.map_err(sql::error)?;
    let first = format!(
        "SET LOCAL search_path TO {}; SET LOCAL client_min_messages TO warning;
         SELECT pg_advisory_xact_lock(hashtext('walcast migrations'));
         CREATE SCHEMA IF NOT EXISTS walcast;
         CREATE TABLE IF NOT EXISTS walcast.migration (
           number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TIMESTAMPTZ NOT NULL DEFAULT now())",
        quote::identifier(&config.schema)
    );
    transaction.batch_execute(&first).await.map_err(sql::error)?;
    for (number, name, statements) in MIGRATIONS {
        let fresh = transaction
            .execute(
                "INSERT INTO walcast.migration (number, name) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                &[&number, &name],
            )
            .await
            .map_err(sql::error)?;
        if fresh == 1 {
            transaction
                .batch_execute(&migrations::for_places(statements, &config.places()))
                .await
                .map_err(sql::error)
                .map_err(|error| {
                    match error.class() {
                        Class::Definite => Error::new(
                            Code::MigrationFailed,
                            format!("migration {number:04}_{name} failed"),
                        )
                        .because(error)
                        .hint(
                            "mend the cause and run `walcast init` again: nothing of the migration was kept",
                        ),
                        // a connection that was lost, a lock that took too long
                        _ => error,
                    }
                })?;
            tracing::info!("migration {number:04}_{name} applied");
        }
    }
    transaction.commit().await.map_err(sql::error)
}

/// Makes the publication when there is none.
async fn publish(client: &Client, config: &PostgresConfig) -> Result<()> {
    if let Some(publication) = slot::publication(client, config).await? {
        return publication.require_fit().map(drop);
    }
    let name = quote::identifier(&config.publication);
    let tables = config.places().all().map(|place| place.sql()).join(", ");
    // a table that is partitioned, or will be one day, comes under its own name
    client
        .batch_execute(&format!(
            "CREATE PUBLICATION {name} FOR TABLE {tables} WITH (publish_via_partition_root = true)"
        ))
        .await
        .map_err(sql::error)?;
    tracing::info!(publication = config.publication, "publication made");
    Ok(())
}
