//! Which extra columns events have, and since which event: a column has values in old rows too that no sink was ever given.

use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Transaction};

use crate::error::Result;
use crate::event::ExtraColumn;
use crate::event::extra::Wanted;
use crate::event::place::Place;
use crate::lsn::{HistoryId, Lsn, Position};
use crate::source::sql;

/// Keeps the columns that events have from one of them on; those that are kept already as they are keep their beginning.
pub async fn store(
    transaction: &Transaction<'_>,
    history_id: &HistoryId,
    events: &Place,
    (since, columns): (Position, &[ExtraColumn]),
) -> Result<()> {
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let shapes: Vec<String> = columns.iter().map(|column| column.shape.to_string()).collect();
    let (lsn, ordinal) = (PgLsn::from(since.commit_lsn.0), since.ordinal as i64);
    let statement = include_str!("../../sql/store_extra_columns.sql");
    transaction
        .execute(
            statement,
            &[&history_id.uuid, &events.schema, &events.name, &names, &shapes, &lsn, &ordinal],
        )
        .await
        .map_err(sql::error)?;
    Ok(())
}

/// Forgets those that are no longer asked for: events will come without them.
pub async fn forget(transaction: &Transaction<'_>, history_id: &HistoryId, wanted: &Wanted) -> Result<()> {
    let query = "SELECT name FROM walcast.extra_column WHERE history_id = $1";
    let rows = transaction.query(query, &[&history_id.uuid]).await.map_err(sql::error)?;
    let mut names = rows.iter().map(|row| sql::get(row, 0)).collect::<Result<Vec<String>>>()?;
    names.retain(|name| !wanted.asks_for(name));
    if !names.is_empty() {
        let delete = "DELETE FROM walcast.extra_column WHERE history_id = $1 AND name = ANY ($2)";
        transaction.execute(delete, &[&history_id.uuid, &names]).await.map_err(sql::error)?;
    }
    Ok(())
}

/// Those that are still there as they were, each with the first event that has it.
pub async fn load(
    client: &Client,
    history_id: &HistoryId,
    events: &Place,
) -> Result<Vec<(String, Position)>> {
    let statement = include_str!("../../sql/extra_columns.sql");
    let rows = client
        .query(statement, &[&history_id.uuid, &events.schema, &events.name])
        .await
        .map_err(sql::error)?;
    let column = |row: &tokio_postgres::Row| {
        let commit_lsn = Lsn(sql::get::<PgLsn>(row, 1)?.into());
        let ordinal = sql::get::<i64>(row, 2)?.unsigned_abs();
        Ok((sql::get(row, 0)?, Position { commit_lsn, ordinal }))
    };
    rows.iter().map(column).collect()
}
