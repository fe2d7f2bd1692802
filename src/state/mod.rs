//! walcast's state in PostgreSQL (schema `walcast`): who may write, and the checkpoints and intents of sinks
//! whose target cannot keep them. Every write is guarded by the fencing token.

pub mod backfills;
pub mod brought;
pub mod dead_letters;
pub mod drained;
pub mod extra;
pub mod history;
pub mod lanes;
pub mod marks;
pub mod pre_existing;
pub mod requests;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_postgres::types::{Json, PgLsn, Type};
use tokio_postgres::{Client, Transaction};

use crate::error::{Code, Error, Result};
use crate::lsn::{Checkpoint, HistoryId, Lsn, Session, StoredCheckpoint, Timelines};
use crate::resume::{SinkName, read_stored, unreadable};
use crate::source::{PostgresConfig, sql};

/// One session to the state schema, opened again when it was lost. Each user has its own.
pub struct State {
    config: PostgresConfig,
    client: Option<Client>,
}

/// The locks of an instance that hangs in the middle of a transaction must not keep the next one waiting.
const IN_TRANSACTION: &str = "SET idle_in_transaction_session_timeout = '5s'";

impl State {
    /// A state that connects at first use.
    pub fn new(config: PostgresConfig) -> Self {
        State { config, client: None }
    }

    /// Another session to the same state.
    pub fn another(&self) -> State {
        State::new(self.config.clone())
    }

    /// The slot whose state it is.
    pub fn slot(&self) -> &str {
        &self.config.slot
    }

    /// The session, opened when there is none.
    pub async fn client(&mut self) -> Result<&mut Client> {
        let open = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.connect().await?,
        };
        Ok(self.client.insert(open))
    }

    async fn connect(&self) -> Result<Client> {
        let client = sql::connect(&self.config).await?;
        client.batch_execute(IN_TRANSACTION).await.map_err(sql::error)?;
        Ok(client)
    }

    /// A transaction in which nobody can become a newer instance than `session`; an error of kind
    /// `Fenced` when somebody has. A server that does not know this instance yet is another one than before, as after a
    /// failover behind one address: what it holds is asked anew.
    pub async fn guarded(&mut self, session: &Session) -> Result<Transaction<'_>> {
        let transaction = self.client().await?.transaction().await.map_err(sql::error)?;
        let newest = transaction
            .query_typed_opt(
                "SELECT fencing_token FROM walcast.slot WHERE slot = $1 AND history_id = $2 FOR SHARE",
                &[(&session.history_id.slot, Type::TEXT), (&session.history_id.uuid, Type::UUID)],
            )
            .await
            .map_err(sql::error)?
            .map(|row| sql::get::<i64>(&row, 0))
            .transpose()?;
        match newest {
            Some(fencing_token) if fencing_token == session.fencing_token => Ok(transaction),
            Some(fencing_token) if fencing_token < session.fencing_token => Err(Error::new(
                Code::PostgresUnreachable,
                "another server answers than the one before, with an older state",
            )),
            Some(_) => Err(Error::new(Code::Fenced, "a newer walcast has taken over this slot")),
            None => Err(history::forgotten(&session.history_id.slot)),
        }
    }

    /// Makes this process the newest instance: from here on no older one can change any target.
    /// After a failover the fencing token jumps: the new primary may not know the last ones of the old.
    pub async fn take_fencing_token(
        &mut self,
        history_id: HistoryId,
        timelines: Timelines,
        start: Lsn,
    ) -> Result<Session> {
        let row = self
            .client()
            .await?
            .query_one(
                "UPDATE walcast.slot
                 SET fencing_token = fencing_token + CASE WHEN timeline = $3 THEN 1 ELSE 1000000 END,
                   drained_from = CASE WHEN drained_to IS NOT NULL OR drained_from <= $4 OR is_read THEN drained_from END,
                   drained_to = coalesce(drained_to, CASE WHEN drained_from <= $4 AND NOT is_read THEN $4 END)
                 -- not what `walcast drain` is about to see
                 FROM (SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active) AS is_read) AS reader
                 WHERE slot = $1 AND history_id = $2 RETURNING fencing_token, timeline",
                &[&history_id.slot, &history_id.uuid, &(history_id.timeline as i32), &PgLsn::from(start.0)],
            )
            .await
            .map_err(sql::error)?;
        let settled_timeline = sql::get::<i32>(&row, 1)?.cast_unsigned();
        Ok(Session { fencing_token: sql::get(&row, 0)?, history_id, timelines, settled_timeline, start })
    }

    /// Remembers that all sinks have been recovered on the server's timeline.
    pub async fn settle(&mut self, session: &Session) -> Result<()> {
        if session.settled_timeline == session.history_id.timeline {
            return Ok(());
        }
        let transaction = self.guarded(session).await?;
        let timeline = session.history_id.timeline.cast_signed();
        transaction
            .execute(
                "UPDATE walcast.slot SET timeline = $2 WHERE slot = $1",
                &[&session.history_id.slot, &timeline],
            )
            .await
            .map_err(sql::error)?;
        transaction.commit().await.map_err(sql::error)
    }

    /// The end of the WAL that is safe on the server's disk; all that was ever sent to us lies below.
    pub async fn wal_end(&mut self) -> Result<Lsn> {
        let row = self.client().await?.query_one("SELECT pg_current_wal_flush_lsn()", &[]).await;
        Ok(Lsn(sql::get::<PgLsn>(&row.map_err(sql::error)?, 0)?.into()))
    }

    /// Whether a sink has ever made a checkpoint of this history id durable.
    pub async fn is_registered(&mut self, session: &Session, sink: &str) -> Result<bool> {
        let row = self
            .client()
            .await?
            .query_opt(
                "SELECT 1 FROM walcast.sink WHERE history_id = $1 AND name = $2",
                &[&session.history_id.uuid, &sink],
            )
            .await
            .map_err(sql::error)?;
        Ok(row.is_some())
    }

    /// Remembers that a sink has made its first checkpoint durable.
    pub async fn register_sink(&mut self, session: &Session, sink: &str, first: Checkpoint) -> Result<()> {
        let transaction = self.guarded(session).await?;
        transaction
            .execute(
                "INSERT INTO walcast.sink (history_id, name, first_checkpoint) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                &[&session.history_id.uuid, &sink, &Json(first)],
            )
            .await
            .map_err(sql::error)?;
        transaction.commit().await.map_err(sql::error)
    }

    /// What is kept for a sink: its checkpoint and its open intent.
    pub async fn progress<I: DeserializeOwned>(
        &mut self,
        session: &Session,
        sink: SinkName,
    ) -> Result<(Option<StoredCheckpoint>, Option<I>)> {
        let row = self
            .client()
            .await?
            .query_opt(
                "SELECT checkpoint, intent FROM walcast.progress WHERE history_id = $1 AND sink = $2",
                &[&session.history_id.uuid, &sink.as_str()],
            )
            .await
            .map_err(sql::error)?;
        let Some(row) = row else { return Ok((None, None)) };
        let place = "walcast.progress";
        let stored = |at| {
            row.try_get::<_, Option<serde_json::Value>>(at).map_err(|error| unreadable(sink, place, error))
        };
        let read =
            |checkpoint: serde_json::Value| read_stored(sink, place, checkpoint.to_string().as_bytes());
        let checkpoint = stored(0)?.map(read).transpose()?;
        let intent = stored(1)?.map(serde_json::from_value).transpose();
        Ok((checkpoint, intent.map_err(|error| unreadable(sink, place, error))?))
    }
}

/// Stores a sink's checkpoint and intent, inside a guarded transaction.
pub async fn store_progress<I: Serialize + std::fmt::Debug + Sync>(
    transaction: &Transaction<'_>,
    session: &Session,
    sink: SinkName,
    checkpoint: Option<&StoredCheckpoint>,
    intent: Option<&I>,
) -> Result<()> {
    transaction
        .execute(
            "INSERT INTO walcast.progress (history_id, sink, checkpoint, intent) VALUES ($1, $2, $3, $4)
             ON CONFLICT (history_id, sink) DO UPDATE SET checkpoint = $3, intent = $4, updated_at = now()",
            &[&session.history_id.uuid, &sink.as_str(), &checkpoint.map(Json), &intent.map(Json)],
        )
        .await
        .map_err(sql::error)?;
    Ok(())
}
