//! The source's own watch: a heartbeat through the WAL every 10 s, and once a minute a look whether the
//! publication is still what the slot was made for (PostgreSQL 18 skips rows of a missing one silently).

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::error::{Error, Kind, Result};
use crate::source::{PostgresConfig, slot, sql};

/// Prefix of our logical messages.
pub const PREFIX: &str = "walcast";

const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
const LOOK_EVERY_HEARTBEATS: u32 = 6;

/// Runs until the session is lost or something is wrong with the source; gives the reason. The end of this
/// ordinary session is also how a shutdown of the server is noticed: the stream itself is held open by the
/// server until we have confirmed all, which sinks with their marks in that database no longer can.
pub async fn watch(config: &PostgresConfig) -> Error {
    match watching(config).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn watching(config: &PostgresConfig) -> Result<std::convert::Infallible> {
    let (client, mut session_ended) = sql::connect_watched(config).await?;
    let publication = slot::publication(&client, config).await?;
    let mut heartbeat_due = tokio::time::interval(HEARTBEAT_EVERY);
    heartbeat_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0_u32;
    loop {
        tokio::select! {
            ended = &mut session_ended => return Err(ended.unwrap_or_else(|_| Error::new(Kind::Unavailable, "the SQL session ended"))),
            _ = heartbeat_due.tick() => {}
        }
        beat(&client).await?;
        count = count.wrapping_add(1);
        if count.is_multiple_of(LOOK_EVERY_HEARTBEATS)
            && slot::publication(&client, config).await? != publication
        {
            return Err(Error::new(
                Kind::Resync,
                format!(
                    "publication {} was dropped (and perhaps made again) while streaming",
                    config.publication
                ),
            ));
        }
    }
}

/// Sends one heartbeat through the WAL. On a standby nothing can be written; there the keepalives' WAL end moves
/// the marks.
pub async fn beat(client: &tokio_postgres::Client) -> Result<()> {
    let sent = client
        .execute(
            "SELECT CASE WHEN NOT pg_is_in_recovery()
               THEN pg_logical_emit_message(true, $1, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint::text) END",
            &[&PREFIX],
        )
        .await;
    sent.map(drop).map_err(sql::error)
}
