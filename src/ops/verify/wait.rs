//! Waiting until every sink holds what is to be compared.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::error::{Code, Error, Result};
use crate::lsn::{HistoryId, Lsn};
use crate::source::check::lanes::{self, Lane};
use crate::source::{heartbeat, slot, sql};
use crate::state::backfills;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Returns once each of `sinks` holds all below `end`: the slot's confirmed LSN is the lowest of what those hold that are fed
/// together, and that of its own slot tells what another holds.
/// Nothing is compared before: what is on its way would look as if it were missing.
pub async fn until_held(
    sinks: &[&'static str],
    client: &Client,
    history_id: &HistoryId,
    end: Lsn,
    within: Duration,
) -> Result<()> {
    // an idle stream moves at once by this, instead of at its next own heartbeat
    if let Err(error) = heartbeat::beat(client).await {
        tracing::debug!(error = error.chain(), "no heartbeat");
    }
    let began = Instant::now();
    loop {
        let facts = slot::facts(client, &history_id.slot).await?;
        let confirmed = facts.as_ref().and_then(|facts| facts.confirmed_flush_lsn).unwrap_or_default();
        // after the walcast slot was looked at: from when a sink does not count there until it holds what that one was confirmed
        // up to, it has a record
        let apart = behind_alone(sinks, client, history_id, end).await?;
        let unwritten = unwritten(sinks, client, history_id).await?;
        if confirmed >= end && apart.is_none() && unwritten.is_none() {
            return Ok(());
        }
        if began.elapsed() >= within {
            if let Some(sink) = unwritten {
                return Err(never_written(sink, history_id));
            }
            if let Some(sink) = apart.filter(|_| confirmed >= end) {
                return Err(late_alone(&sink, end, within));
            }
            return Err(late(history_id, confirmed, end, within, facts.is_some_and(|facts| facts.active)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Returns once none of these sinks is being filled anew: until then rows are missing that are still to come.
pub async fn until_rebuilt(
    sinks: &[String],
    client: &Client,
    history_id: &HistoryId,
    within: Duration,
) -> Result<()> {
    let began = Instant::now();
    loop {
        let all = backfills::list(client, history_id).await?;
        let mut to_come = all.into_iter().filter(|one| one.rebuild.is_some() && one.state.is_to_come());
        let sink = to_come.find_map(|one| one.sinks.into_iter().find(|sink| sinks.contains(sink)));
        let Some(sink) = sink else { return Ok(()) };
        if began.elapsed() >= within {
            return Err(being_rebuilt(&sink));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Rows of this sink are still to come.
pub fn being_rebuilt(sink: &str) -> Error {
    Error::new(Code::SinksBehind, format!("nothing was compared: {sink} is being filled anew"))
        .hint("`walcast backfill status` says how far that is; give more time with --wait-seconds")
}

/// A sink that has fallen behind, and whose own slot has not come to `end`.
async fn behind_alone(
    sinks: &[&'static str],
    client: &Client,
    history_id: &HistoryId,
    end: Lsn,
) -> Result<Option<String>> {
    let behind = |lane: &Lane| {
        lane.open
            && sinks.contains(&lane.sink.as_str())
            && lane.confirmed.is_none_or(|confirmed| confirmed < end)
    };
    let lanes = lanes::lanes(client, history_id.uuid).await?;
    Ok(lanes.into_iter().find(behind).map(|lane| lane.sink))
}

fn late_alone(sink: &str, end: Lsn, within: Duration) -> Error {
    Error::new(
        Code::SinksBehind,
        format!(
            "nothing was compared: {sink} has fallen behind, and does not hold all up to {end} within {} s",
            within.as_secs()
        ),
    )
    .hint(format!(
        "`walcast status` says how far {sink} is; give more time with --wait-seconds, or leave it out of pipeline.sinks"
    ))
}

/// A sink that is configured here and was never written by this slot: it would be empty for a reason.
async fn unwritten(
    sinks: &[&'static str],
    client: &Client,
    history_id: &HistoryId,
) -> Result<Option<&'static str>> {
    let query = "SELECT name FROM walcast.sink WHERE history_id = $1";
    let rows = client.query(query, &[&history_id.uuid]).await.map_err(sql::error)?;
    let known: Vec<String> = rows.iter().map(|row| sql::get(row, 0)).collect::<Result<_>>()?;
    Ok(sinks.iter().copied().find(|sink| known.iter().all(|known| known != sink)))
}

fn never_written(sink: &str, history_id: &HistoryId) -> Error {
    let slot = &history_id.slot;
    let message =
        format!("nothing was compared: {sink} is configured here and has never been written by slot {slot}");
    Error::new(Code::SinksBehind, message)
        .hint("start `walcast run` with these sinks, or name those that run in pipeline.sinks")
}

fn late(history_id: &HistoryId, confirmed: Lsn, end: Lsn, within: Duration, active: bool) -> Error {
    let slot = &history_id.slot;
    let (state, hint) = match active {
        true => ("is read", "`walcast status` says which sink is behind; give more time with --wait-seconds"),
        false => ("is read by nobody", "start `walcast run`, and verify again while it runs"),
    };
    Error::new(
        Code::SinksBehind,
        format!(
            "nothing was compared: the sinks hold all up to {confirmed} and not up to {end} within {} s; slot {slot} {state}",
            within.as_secs()
        ),
    )
    .hint(hint)
}
