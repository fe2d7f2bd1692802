//! What becomes of the requests that control messages name.

use tokio_postgres::Transaction;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use crate::error::Result;
use crate::lsn::Lsn;
use crate::source::sql;

/// The stream has brought the request's message. What is refused is not done: its letters wait for somebody again.
pub async fn came(transaction: &Transaction<'_>, id: Uuid, commit_lsn: Lsn, refused: bool) -> Result<()> {
    let state = if refused { "refused" } else { "taken" };
    let update = "UPDATE walcast.request SET state = $2, commit_lsn = $3 WHERE id = $1";
    transaction.execute(update, &[&id, &state, &PgLsn::from(commit_lsn.0)]).await.map_err(sql::error)?;
    if refused {
        let reopen = "UPDATE walcast.dead_letter SET state = 'open', changed_at = now()
           WHERE request = $1 AND state = 'replaying'";
        transaction.execute(reopen, &[&id]).await.map_err(sql::error)?;
    }
    Ok(())
}

/// Is done with the requests below `confirmed`, which every sink has passed: who had refused a row again has said so before.
/// Whether there are others left.
pub async fn settle(transaction: &Transaction<'_>, history_id: &Uuid, confirmed: Lsn) -> Result<bool> {
    let statement = include_str!("../../sql/settle_requests.sql");
    let row = transaction.query_one(statement, &[history_id, &PgLsn::from(confirmed.0)]).await;
    sql::get(&row.map_err(sql::error)?, 0)
}
