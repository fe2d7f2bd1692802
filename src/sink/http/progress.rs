//! What PostgreSQL keeps for this sink: the checkpoint and refused rows.

use super::NAME;
use super::write::Letter;
use crate::batch::Origin;
use crate::error::Result;
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Session, StoredCheckpoint};
use crate::source::sql;
use crate::state::{State, dead_letters, store_progress};

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
    let letters: Vec<dead_letters::Letter> = letters.map(kept).collect();
    dead_letters::insert(&transaction, &session.history_id.uuid, NAME.as_str(), &letters).await?;
    let stored = StoredCheckpoint::new(&session.history_id, checkpoint);
    store_progress(&transaction, session, NAME, Some(&stored), None::<&()>).await?;
    transaction.commit().await.map_err(sql::error)?;
    failpoint!("http_after_store");
    Ok(())
}

fn kept(letter: &Letter) -> dead_letters::Letter {
    let (position, request) = Origin::of_letter(letter.position, letter.origin);
    dead_letters::Letter {
        position,
        event_id: Some(letter.event_id),
        table: None,
        commit_ts: letter.commit_ts,
        reason: REFUSED,
        message: letter.message.clone(),
        record: letter.record.clone(),
        event: None,
        unread: Vec::new(),
        request,
    }
}
