//! `walcast init`: state schema, publication, targets, and the slot with the content versions at its
//! snapshot. The order matters: a slot can never read past the making of its publication, and from its own
//! making on the server keeps WAL for it.

use tokio_postgres::Client;

use crate::config::Config;
use crate::error::{Class, Code, Error, Result};
use crate::finding;
use crate::lsn::HistoryId;
use crate::ops::{backfill, rebuild};
use crate::sinks;
use crate::source::migrations::{self, MIGRATIONS};
use crate::source::role::{self, Made};
use crate::source::{PostgresConfig, check, quote, slot, sql};
use crate::state::{State, history};

/// Makes what is missing, touches nothing that is there; with the rows of before on their way if that is asked for.
pub async fn init(config: &Config, with_history: bool) -> Result<()> {
    let mut state = State::new(config.postgres.clone());
    let client = state.client().await?;
    finding::refuse(&check::check_server(client, &config.postgres).await?)?;
    // before anything is made
    finding::refuse(&check::check_before_making(client, &config.postgres).await?)?;
    migrate(client, &config.postgres).await?;
    finding::refuse(&check::check(client, &config.postgres).await?)?;
    publish(client, &config.postgres).await?;
    let_in(client, &config.postgres).await?;
    for mut sink in sinks::admins(config)? {
        sink.prepare().await?;
        tracing::info!(sink = sink.name(), "target ready");
    }
    let (history_id, _) = history::open(&config.postgres, &mut state).await?;
    tracing::info!(slot = history_id.slot, history_id = %history_id.uuid, "slot ready");
    match with_history {
        true => bring_history(config, &mut state, &history_id).await,
        false => Ok(()),
    }
}

/// Has each sink get the rows that were there before, once.
async fn bring_history(config: &Config, state: &mut State, history_id: &HistoryId) -> Result<()> {
    rebuild::count_history(config, history_id).await?;
    backfill::begin_once(config, state.client().await?, history_id).await
}

/// Applies the migrations that this database does not have yet, each in a transaction.
pub async fn migrate(client: &mut Client, config: &PostgresConfig) -> Result<()> {
    let making = check::Making::ask(client, config).await?;
    let transaction = client.transaction().await.map_err(sql::error)?;
    // what is there already is not made, not even IF NOT EXISTS: that takes the right to make it
    let first = format!(
        "SET LOCAL search_path TO {}; SET LOCAL client_min_messages TO warning;
         SELECT pg_advisory_xact_lock(hashtext('walcast migrations'));
         DO $$ BEGIN
           IF to_regnamespace('walcast') IS NULL THEN CREATE SCHEMA walcast; END IF;
           IF to_regclass('walcast.migration') IS NULL THEN
             CREATE TABLE walcast.migration (
               number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TIMESTAMPTZ NOT NULL DEFAULT now());
           END IF;
         END $$",
        quote::identifier(&config.schema)
    );
    transaction.batch_execute(&first).await.map_err(sql::error)?;
    let applied = transaction.query("SELECT number FROM walcast.migration", &[]).await.map_err(sql::error)?;
    let applied = applied.iter().map(|row| sql::get(row, 0)).collect::<Result<Vec<i32>>>()?;
    for (number, name, statements) in MIGRATIONS.iter().filter(|(number, _, _)| !applied.contains(number)) {
        let statements = migrations::for_tables(statements, &config.places(), &making);
        transaction
            .batch_execute(&statements)
            .await
            .map_err(|error| migration_failed(*number, name, error))?;
        let insert = "INSERT INTO walcast.migration (number, name) VALUES ($1, $2)";
        transaction.execute(insert, &[number, name]).await.map_err(sql::error)?;
        tracing::info!("migration {number:04}_{name} applied");
    }
    transaction.commit().await.map_err(sql::error)
}

fn migration_failed(number: i32, name: &str, error: tokio_postgres::Error) -> Error {
    let error = sql::error(error);
    match error.class() {
        Class::Definite => Error::new(Code::MigrationFailed, format!("migration {number:04}_{name} failed"))
            .because(error)
            .hint("mend the cause and run `walcast init` again: nothing of the migration was kept"),
        // a connection that was lost, a lock that took too long
        _ => error,
    }
}

/// The role `walcast`, for who wants to run walcast as it.
async fn let_in(client: &Client, config: &PostgresConfig) -> Result<()> {
    let Some(publication) = slot::publication(client, config).await? else { return Ok(()) };
    let Made { left, is_closed } = role::make(client, config, &publication.places).await?;
    match left.as_slice() {
        [] if is_closed => tracing::info!(
            "role {} may do what `walcast run` needs; to let it in: ALTER ROLE {} LOGIN PASSWORD '…';",
            role::NAME,
            role::NAME
        ),
        [] => {}
        left => tracing::warn!(
            "role {} is not as `walcast run` needs it, and {} may not make it so. To run as it, have this done by who may, and \
             run `walcast init` again: {}",
            role::NAME,
            config.user,
            left.join(" ")
        ),
    }
    Ok(())
}

/// Makes the publication when there is none.
async fn publish(client: &Client, config: &PostgresConfig) -> Result<()> {
    if let Some(publication) = slot::publication(client, config).await? {
        return publication.require_fit().map(drop);
    }
    let making = check::Making::ask(client, config).await?;
    client.batch_execute(&making.making_publication(config)).await.map_err(sql::error)?;
    tracing::info!(publication = config.publication, "publication made");
    Ok(())
}
