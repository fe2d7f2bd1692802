//! What PostgreSQL keeps for this sink: the mark, the intent to commit a stream, and refused rows.

use serde::{Deserialize, Serialize};
use tokio_postgres::Transaction;
use tokio_postgres::types::PgLsn;

use super::NAME;
use super::append::RefusedRow;
use super::column::Footprint;
use crate::error::Result;
use crate::lsn::{Position, Session, StoredMark};
use crate::source::sql;
use crate::state::{State, store_progress};

/// "This finalized stream is going to be committed, and then `mark` holds." Once it is stored, the stream is
/// committed by whoever reads it, however often; nothing else is written before that is settled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Intent {
    /// The write stream.
    pub stream: String,
    /// What the sink holds when the stream is committed.
    pub mark: StoredMark,
    /// The stream's first event.
    pub first: Position,
    /// Where in the table its rows lie: to find out from there, when the stream is gone, whether it was
    /// committed.
    pub footprint: Footprint,
}

/// Stores mark, intent and refused rows at once, unless a newer instance has taken over (kind `Fenced`).
pub async fn store(
    state: &mut State,
    session: &Session,
    mark: Option<&StoredMark>,
    intent: Option<&Intent>,
    refused: &[RefusedRow],
) -> Result<()> {
    let transaction = state.guarded(session).await?;
    for row in refused {
        insert_dead_letter(&transaction, session, row).await?;
    }
    store_progress(&transaction, session, NAME, mark, intent).await?;
    transaction.commit().await.map_err(sql::error)
}

async fn insert_dead_letter(
    transaction: &Transaction<'_>,
    session: &Session,
    row: &RefusedRow,
) -> Result<()> {
    transaction
        .execute(
            include_str!("../../../sql/insert_dead_letter.sql"),
            &[
                &NAME,
                &session.epoch.epoch,
                &PgLsn::from(row.position.commit_lsn.0),
                &(row.position.ordinal as i64),
                &row.event_id,
                &row.reason,
                &row.message,
                &row.record,
            ],
        )
        .await
        .map_err(sql::error)?;
    Ok(())
}
