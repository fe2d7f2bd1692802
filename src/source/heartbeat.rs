//! The source's own watch: every 10 s a heartbeat through the WAL, and every 5 s a look whether the publication is
//! still what the slot was made for (PostgreSQL 18 skips rows of a missing one, and warns only once).

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use crate::error::{Error, Kind, Result};
use crate::source::slot::Publication;
use crate::source::{PostgresConfig, slot, sql};

/// Prefix of our logical messages.
pub const PREFIX: &str = "walcast";

const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
/// What was done to the publication is to be told within ten seconds.
const LOOK_EVERY: Duration = Duration::from_secs(5);

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
    let publication = published(&client, config).await?;
    let mut heartbeat_due = tokio::time::interval(HEARTBEAT_EVERY);
    let mut look_due = tokio::time::interval(LOOK_EVERY);
    heartbeat_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = &mut session_ended => return Err(ended.unwrap_or_else(|_| Error::new(Kind::Unavailable, "the SQL session ended"))),
            _ = heartbeat_due.tick() => beat(&client).await?,
            _ = look_due.tick() => {
                if published(&client, config).await? != publication {
                    return Err(dropped(config));
                }
            }
        }
    }
}

/// The publication; kind `Resync` when it is not as it must be, since rows may have been left out by now.
async fn published(client: &Client, config: &PostgresConfig) -> Result<Publication> {
    match slot::publication(client, config).await {
        Ok(Some(publication)) => Ok(publication),
        Ok(None) => Err(dropped(config)),
        Err(error) if error.kind() == Kind::Setup => {
            Err(Error::new(Kind::Resync, format!("{error}: rows may be missing from the sinks"))
                .hint(format!("{}; then bring the sinks level with PostgreSQL", error.advice())))
        }
        Err(error) => Err(error),
    }
}

fn dropped(config: &PostgresConfig) -> Error {
    let message = format!(
        "publication {0}, or a table in it, was dropped (and perhaps put back) while streaming",
        config.publication
    );
    Error::new(Kind::Resync, message).hint(
        "the next `walcast run` refuses to start, and says what mends it: the slot cannot read past that place",
    )
}

/// Sends one heartbeat through the WAL. On a standby nothing can be written; there the keepalives' WAL end moves
/// the marks.
pub async fn beat(client: &Client) -> Result<()> {
    let sent = client
        .execute(
            "SELECT CASE WHEN NOT pg_is_in_recovery()
               THEN pg_logical_emit_message(true, $1, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint::text) END",
            &[&PREFIX],
        )
        .await;
    sent.map(drop).map_err(sql::error)
}
