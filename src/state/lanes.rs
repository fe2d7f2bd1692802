//! Which sinks have a slot of their own, and those slots: what is done to them, in an order that a crash at any instant
//! leaves whole.
//!
//! No fencing token can guard a slot function (a transaction that has written may make no slot). So a slot's name has the
//! token in it and is never used twice; it is recorded before the slot is made; whoever has made one looks whether it is
//! still the newest, and drops it if not; each start drops those that no record names.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use crate::error::{Code, Error, Kind, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Lsn, Session};
use crate::source::connection::Connection;
use crate::source::server_error::Asked;
use crate::source::slot::SlotFacts;
use crate::source::{PostgresConfig, slot, sql};
use crate::state::State;

const DROP_TRIES: u32 = 20;
const DROP_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A sink's slot of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneRecord {
    /// The sink.
    pub sink: String,
    /// The slot.
    pub slot: String,
    /// Whether that has kept more than it may, and is not needed any more.
    pub given_up: bool,
}

/// The lanes that an earlier life has left open. One that was still being opened is given up: its sink counts at the walcast
/// slot. So are those of sinks that are not `wanted` any more, and slots that no record names.
pub async fn take_over(state: &mut State, session: &Session, wanted: &[&str]) -> Result<Vec<LaneRecord>> {
    let transaction = state.guarded(session).await?;
    let given_up = transaction
        .query(
            "DELETE FROM walcast.lane WHERE history_id = $1 AND (state = 'opening' OR sink <> ALL ($2)) RETURNING sink, state",
            &[&session.history_id.uuid, &wanted],
        )
        .await
        .map_err(sql::error)?;
    let open = transaction
        .query(
            "SELECT sink, slot, state = 'given_up' FROM walcast.lane WHERE history_id = $1",
            &[&session.history_id.uuid],
        )
        .await
        .map_err(sql::error)?;
    transaction.commit().await.map_err(sql::error)?;
    for row in &given_up {
        let (sink, was): (String, String) = (sql::get(row, 0)?, sql::get(row, 1)?);
        if was == "open" {
            tracing::warn!(
                sink,
                "the sink is not configured any more: the slot that kept what it lacks is dropped"
            );
        }
    }
    failpoint!("lane_after_take_over");
    let open: Vec<LaneRecord> = open
        .iter()
        .map(|row| {
            Ok(LaneRecord { sink: sql::get(row, 0)?, slot: sql::get(row, 1)?, given_up: sql::get(row, 2)? })
        })
        .collect::<Result<_>>()?;
    sweep(state.client().await?, session).await?;
    Ok(open)
}

/// Drops our slots that no record names, or one that is given up. One that is still read is left for the next time. The slots are looked at before the
/// records: a record is there before its slot is, and a name never comes again, so that not even an instance that has been
/// overtaken can drop what somebody needs.
pub async fn sweep(client: &Client, session: &Session) -> Result<()> {
    let slots = client
        .query(
            "SELECT slot_name::text FROM pg_replication_slots WHERE starts_with(slot_name::text, $1) AND NOT active",
            &[&prefix(session.history_id.uuid)],
        )
        .await
        .map_err(sql::error)?;
    let slots = slots.iter().map(|row| sql::get(row, 0)).collect::<Result<Vec<String>>>()?;
    if slots.is_empty() {
        return Ok(());
    }
    let strays = client
        .query(
            "SELECT slot FROM unnest($1::text[]) AS slot
             WHERE slot NOT IN (SELECT slot FROM walcast.lane WHERE state <> 'given_up')",
            &[&slots],
        )
        .await
        .map_err(sql::error)?;
    for row in &strays {
        let stray: String = sql::get(row, 0)?;
        tracing::info!(slot = stray, "dropping a lane's slot that nobody needs any more");
        drop_slot(client, &stray).await?;
    }
    Ok(())
}

/// What the names of all lanes' slots of a history begin with: slots are of a whole cluster.
pub fn prefix(history_id: Uuid) -> String {
    let id = history_id.simple().to_string();
    format!("walcast_lane_{}_", id.get(..12).unwrap_or_default())
}

/// Makes a slot for a sink, which is to count at the walcast slot until this has returned: the copy begins there, at or below
/// what the sink holds. `attempt` was never used by this instance.
pub async fn open(
    config: &PostgresConfig,
    state: &mut State,
    session: &Session,
    sink: &'static str,
    attempt: u32,
) -> Result<LaneRecord> {
    let slot = format!("{}{sink}_{}_{attempt}", prefix(session.history_id.uuid), session.fencing_token);
    let record = LaneRecord { sink: sink.to_owned(), slot, given_up: false };
    failpoint!("lane_before_record");
    write(state, session, &record, "opening").await?;
    // an earlier attempt may have left one
    sweep(state.client().await?, session).await?;
    failpoint!("lane_before_copy");
    copy(state.client().await?, &session.history_id.slot, &record.slot).await?;
    failpoint!("lane_after_copy");
    if is_kept_on_standbys(state.client().await?, &session.history_id.slot).await? {
        // a copy is not, whatever it was made of
        Connection::connect(config).await?.keep_on_standbys(&record.slot).await?;
    }
    if let Err(error) = write(state, session, &record, "open").await {
        // whoever has become newer may not know of it; where the outcome is unknown, the record may stand
        if error.kind() == Kind::Fenced {
            drop_slot(state.client().await?, &record.slot).await?;
        }
        return Err(error);
    }
    failpoint!("lane_after_open");
    Ok(record)
}

async fn write(state: &mut State, session: &Session, record: &LaneRecord, to: &str) -> Result<()> {
    let transaction = state.guarded(session).await?;
    transaction
        .execute(
            "INSERT INTO walcast.lane (history_id, sink, slot, state) VALUES ($1, $2, $3, $4)
             ON CONFLICT (history_id, sink) DO UPDATE SET slot = $3, state = $4, since = now()",
            &[&session.history_id.uuid, &record.sink, &record.slot, &to],
        )
        .await
        .map_err(sql::error)?;
    transaction.commit().await.map_err(sql::error)
}

async fn is_kept_on_standbys(client: &Client, slot: &str) -> Result<bool> {
    // PostgreSQL before 17 has no such column
    let kept = "SELECT coalesce((to_jsonb(s) ->> 'failover')::boolean, false) FROM pg_replication_slots s WHERE slot_name = $1";
    let row = client.query_opt(kept, &[&slot]).await.map_err(sql::error)?;
    row.as_ref().map_or(Ok(false), |row| sql::get(row, 0))
}

async fn copy(client: &Client, from: &str, to: &str) -> Result<()> {
    let copied =
        client.execute("SELECT pg_copy_logical_replication_slot($1, $2, false)", &[&from, &to]).await;
    copied.map(drop).map_err(|error| sql::error_to(Asked::UseSlot, error))
}

/// Lets a lane go whose sink counts at the walcast slot again, and holds all that this was confirmed up to. Done again, it
/// does nothing.
pub async fn close(state: &mut State, session: &Session, record: &LaneRecord) -> Result<()> {
    failpoint!("lane_before_close");
    let transaction = state.guarded(session).await?;
    transaction
        .execute(
            "DELETE FROM walcast.lane WHERE history_id = $1 AND sink = $2 AND slot = $3",
            &[&session.history_id.uuid, &record.sink, &record.slot],
        )
        .await
        .map_err(sql::error)?;
    transaction.commit().await.map_err(sql::error)?;
    failpoint!("lane_before_drop");
    if !drop_slot(state.client().await?, &record.slot).await? {
        return Err(Error::new(Code::SlotBusy, format!("slot {} is still read", record.slot)));
    }
    failpoint!("lane_after_drop");
    Ok(())
}

/// How much WAL a lane's slot keeps; `None` when it is gone.
pub async fn kept_bytes(client: &Client, record: &LaneRecord) -> Result<Option<u64>> {
    let kept = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = $1";
    let row = client.query_opt(kept, &[&record.slot]).await.map_err(sql::error)?;
    let bytes: Option<i64> = row.as_ref().map_or(Ok(None), |row| sql::get(row, 0))?;
    Ok(bytes.map(|bytes| bytes.max(0) as u64))
}

/// Gives up what only a lane's slot keeps. It is recorded first: then the slot is nobody's, and whoever drops it, however late,
/// does no harm.
pub async fn give_up(state: &mut State, session: &Session, record: &LaneRecord) -> Result<()> {
    let transaction = state.guarded(session).await?;
    transaction
        .execute(
            "UPDATE walcast.lane SET state = 'given_up' WHERE history_id = $1 AND sink = $2 AND slot = $3",
            &[&session.history_id.uuid, &record.sink, &record.slot],
        )
        .await
        .map_err(sql::error)?;
    transaction.commit().await.map_err(sql::error)?;
    failpoint!("lane_given_up");
    // its reader has just been left and may still be there; after that it is dropped with the next strays
    for _ in 0..DROP_TRIES {
        if drop_slot(state.client().await?, &record.slot).await? {
            break;
        }
        tokio::time::sleep(DROP_AGAIN_AFTER).await;
    }
    Ok(())
}

/// Drops a slot unless somebody reads it. Whether it is gone.
async fn drop_slot(client: &Client, slot: &str) -> Result<bool> {
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active";
    let dropped = client.execute(drop, &[&slot]).await;
    // another may have been quicker
    let left = slot::facts(client, slot).await?.is_some();
    match dropped {
        Err(error) if left => Err(sql::error(error)),
        _ => Ok(!left),
    }
}

/// Where a lane's slot begins; kind `Resync` when it can bring no more.
pub async fn confirmed(state: &mut State, record: &LaneRecord, config: &PostgresConfig) -> Result<Lsn> {
    let facts = slot::facts(state.client().await?, &record.slot).await?.filter(|_| !record.given_up);
    let confirmed = facts.as_ref().and_then(|facts| facts.confirmed_flush_lsn);
    let gone = |why: String| {
        Error::new(
            Code::LaneLost,
            format!("{} {why}: what {} lacks is gone from the stream", record.slot, record.sink),
        )
    };
    match facts {
        None if record.given_up => Err(gone("kept more than lane.wal_bytes_max and was given up".into())),
        None => Err(gone("is gone".into())),
        Some(facts) => match facts.lost() {
            Some(why) => Err(gone(format!("was invalidated ({why})"))),
            None => {
                SlotFacts::check_usable(
                    &facts,
                    &PostgresConfig { slot: record.slot.clone(), ..config.clone() },
                )?;
                confirmed.ok_or_else(|| gone("has no place to begin at".into()))
            }
        },
    }
}

/// Below where no stream of this history begins any more. The walcast slot is looked at first: a lane that is opened meanwhile
/// begins there or later.
pub async fn kept_from(client: &Client, session: &Session) -> Result<Option<Lsn>> {
    let Some(main) = slot::confirmed(client, &session.history_id.slot).await? else { return Ok(None) };
    failpoint!("lane_between_looks");
    let lanes = client
        .query_one(
            "SELECT min(confirmed_flush_lsn) FROM walcast.lane JOIN pg_replication_slots ON slot_name = slot
             WHERE history_id = $1",
            &[&session.history_id.uuid],
        )
        .await
        .map_err(sql::error)?;
    let lanes = sql::get::<Option<PgLsn>>(&lanes, 0)?.map(|lsn| Lsn(lsn.into()));
    Ok(Some(lanes.map_or(main, |lanes| main.min(lanes))))
}
