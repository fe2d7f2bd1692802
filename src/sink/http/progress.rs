//! What PostgreSQL keeps for this sink: the checkpoint and refused rows.

use tokio_postgres::Transaction;
use tokio_postgres::types::PgLsn;

use super::NAME;
use super::write::Letter;
use crate::error::Result;
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Session, StoredCheckpoint};
use crate::source::sql;
use crate::state::{State, store_progress};

/// How rows that the target refuses are called in metrics and in `walcast.dead_letter`.
pub const REFUSED: &str = "refused_by_target";

/// Stores the checkpoint and the refused rows that it covers at once, unless a newer instance has taken over (kind `Fenced`).
pub async fn store(
    state: &mut State,
    session: &Session,
    checkpoint: Checkpoint,
    letters: impl Iterator<Item = &Letter>,
) -> Result<()> {
    failpoint!("http_before_store");
    let transaction = state.guarded(session).await?;
    for letter in letters {
        insert_dead_letter(&transaction, session, letter).await?;
    }
    let stored = StoredCheckpoint::new(&session.history_id, checkpoint);
    store_progress(&transaction, session, NAME, Some(&stored), None::<&()>).await?;
    transaction.commit().await.map_err(sql::error)?;
    failpoint!("http_after_store");
    Ok(())
}

async fn insert_dead_letter(transaction: &Transaction<'_>, session: &Session, letter: &Letter) -> Result<()> {
    transaction
        .execute(
            include_str!("../../../sql/insert_dead_letter.sql"),
            &[
                &NAME.as_str(),
                &session.history_id.uuid,
                &PgLsn::from(letter.position.commit_lsn.0),
                &(letter.position.ordinal as i64),
                &letter.event_id,
                &REFUSED,
                &letter.message,
                &letter.record,
            ],
        )
        .await
        .map_err(sql::error)?;
    Ok(())
}
