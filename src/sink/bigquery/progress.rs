//! What PostgreSQL keeps for this sink: the checkpoint, the intent to commit a stream, and refused rows.

use serde::{Deserialize, Serialize};
use tokio_postgres::error::SqlState;

use super::NAME;
use super::append::RefusedRow;
use super::column::Footprint;
use crate::batch::Origin;
use crate::error::Result;
use crate::lsn::{Position, Session, StoredCheckpoint};
use crate::source::sql;
use crate::state::dead_letters::{self, Letter};
use crate::state::{State, store_progress};

/// "This finalized stream is going to be committed, and then `checkpoint` holds." Once it is stored, the stream is
/// committed by whoever reads it, however often; nothing else is written before that is settled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Intent {
    /// The write stream.
    pub stream: String,
    /// What the sink holds when the stream is committed. `mark` before version 0.2.
    #[serde(alias = "mark")]
    pub checkpoint: StoredCheckpoint,
    /// The stream's first event.
    pub first: Position,
    /// Where in the table its rows lie: to find out from there, when the stream is gone, whether it was
    /// committed.
    pub footprint: Footprint,
}

/// Stores checkpoint, intent and refused rows at once, unless a newer instance has taken over (kind `Fenced`).
pub async fn store(
    state: &mut State,
    session: &Session,
    checkpoint: Option<&StoredCheckpoint>,
    intent: Option<&Intent>,
    refused: &[RefusedRow],
) -> Result<()> {
    let transaction = state.guarded(session).await?;
    let letters: Vec<Letter> = refused.iter().map(letter).collect();
    dead_letters::insert(&transaction, &session.history_id.uuid, NAME.as_str(), &letters).await?;
    store_progress(&transaction, session, NAME, checkpoint, intent).await?;
    transaction.commit().await.map_err(sql::error)
}

/// Whether the checkpoint of this slot says that the table has had an event. Before the first start there is none.
pub async fn has_held_events(state: &mut State) -> Result<bool> {
    let slot = state.slot().to_owned();
    let asked = state
        .client()
        .await?
        .query_opt(
            "SELECT 1 FROM walcast.progress JOIN walcast.slot USING (history_id)
             WHERE slot = $1 AND sink = $2 AND coalesce(intent -> 'checkpoint', checkpoint) #> '{target,last_event}' IS NOT NULL",
            &[&slot, &NAME.as_str()],
        )
        .await;
    match asked {
        Ok(found) => Ok(found.is_some()),
        Err(error) if is_without_schema(&error) => Ok(false),
        Err(error) => Err(sql::error(error)),
    }
}

fn is_without_schema(error: &tokio_postgres::Error) -> bool {
    [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN, SqlState::INVALID_SCHEMA_NAME]
        .iter()
        .any(|state| error.code() == Some(state))
}

fn letter(row: &RefusedRow) -> Letter {
    let RefusedRow { position, event_id, commit_ts, origin, reason, message, record } = row;
    let (position, request) = Origin::of_letter(*position, *origin);
    Letter {
        position,
        event_id: Some(*event_id),
        table: None,
        commit_ts: *commit_ts,
        reason,
        message: message.clone(),
        record: record.clone(),
        event: None,
        unread: Vec::new(),
        request,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_of_version_0_1_is_read() {
        let stored = serde_json::json!({
            "stream": "s",
            "mark": {
                "epoch": "00000000-0000-0000-0000-000000000000", "system_id": "7", "timeline": 1, "slot": "walcast",
                "ordinal_rule": 1, "position": {"commit_lsn": "0/9", "ordinal": 2}, "held": "0/8"
            },
            "first": {"commit_lsn": "0/9", "ordinal": 0},
            "footprint": serde_json::to_value(Footprint::whole()).unwrap(),
        });
        let intent: Intent = serde_json::from_value(stored).unwrap();
        assert_eq!(intent.checkpoint.checkpoint.durable_lsn, crate::lsn::Lsn(8));
    }
}
