//! A gap in the WAL in which nothing lies that a sink is to have. `walcast drain` sees that, so that PostgreSQL can be upgraded
//! (pg_upgrade keeps a slot only where nothing is left to be read by it), and the server that pg_upgrade makes goes on behind it.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use super::history::{self, Known};
use crate::error::{Code, Error, Result};
use crate::lsn::{Drained, HistoryId, Lsn, Timelines};
use crate::resume::RESYNC;
use crate::source::connection::SystemIdentity;
use crate::source::{PostgresConfig, slot, sql};

/// What is noted of it.
pub(super) struct Note {
    pub(super) from: Lsn,
    /// `None` until a start or an adoption.
    pub(super) to: Option<Lsn>,
    pub(super) former: Option<String>,
}

impl Note {
    /// The gap, for a slot that begins here.
    pub(super) fn gap(&self, confirmed: Option<Lsn>) -> Option<Drained> {
        Some(Drained { from: self.from, to: self.to.or(confirmed)?, former: self.former.clone() })
    }
}

/// Notes that the sinks have all before `from`, and what is published. What follows is to be read. A sink that has not moved since the
/// last time is judged by both.
pub async fn begin(client: &Client, config: &PostgresConfig, history_id: Uuid, from: Lsn) -> Result<()> {
    let shape = shape(client, config).await?;
    let note = "UPDATE walcast.slot SET drained_from = CASE WHEN $2 <= drained_to THEN drained_from ELSE $2 END,
         drained_to = NULL, drained_shape = $3, former_system_id = CASE WHEN $2 <= drained_to THEN former_system_id END
       WHERE history_id = $1";
    client.execute(note, &[&history_id, &PgLsn::from(from.0), &shape]).await.map_err(sql::error)?;
    Ok(())
}

/// Notes that nobody reads on: what comes behind `to` nobody has seen.
pub async fn end(client: &Client, history_id: Uuid, to: Lsn) -> Result<()> {
    let note = "UPDATE walcast.slot SET drained_to = $2 WHERE history_id = $1 AND drained_to IS NULL";
    client.execute(note, &[&history_id, &PgLsn::from(to.0)]).await.map_err(sql::error)?;
    Ok(())
}

async fn shape(client: &Client, config: &PostgresConfig) -> Result<Option<String>> {
    let publication = slot::publication(client, config).await?;
    let places = publication.ok_or_else(|| history::no_publication(config))?.require_fit()?.places;
    let (content, events) = (places.content.sql(), places.events.sql());
    let query = include_str!("../../sql/publication_shape.sql");
    let row = client.query_opt(query, &[&config.publication, &content, &events]).await.map_err(sql::error)?;
    row.map(|row| sql::get(&row, 0)).transpose()
}

/// A server that another one has become by pg_upgrade.
#[derive(Debug)]
pub struct Adoption {
    /// The history, as it goes on here.
    pub history_id: HistoryId,
    /// How it came to be.
    pub timelines: Timelines,
    /// The system identifier of the former server.
    pub former: String,
    /// Where the slot begins that pg_upgrade has kept; `None` where it has kept none.
    pub slot: Option<Lsn>,
    publication_oid: u32,
    entries: Vec<Option<u32>>,
}

/// What is to be adopted; `None` where this is the server that walcast knows. An error where nothing tells that it has become of
/// that one by pg_upgrade, after `walcast drain`.
pub async fn look(config: &PostgresConfig, client: &Client) -> Result<Option<Adoption>> {
    let Some(known) = history::known(client, &config.slot).await? else {
        return Err(Error::new(Code::NotInitialised, format!("walcast.slot knows no slot {}", config.slot))
            .hint("run `walcast init`"));
    };
    let (_, identity, timelines) = history::server(config).await?;
    if known.system_id == identity.system_id {
        return Ok(None);
    }
    let (from, kept) = (drained_from(&known, &identity)?, kept_slot(config, client).await?);
    if kept.is_some_and(|kept| kept < from) || known.wal_end < from {
        let message = format!(
            "the sinks were level at {from}, and this server's WAL, or what slot {} begins with, is below that",
            config.slot
        );
        return Err(other_server(message));
    }
    let publication = slot::publication(client, config).await?;
    let publication = publication.ok_or_else(|| history::no_publication(config))?.require_fit()?;
    if shape(client, config).await? != shape_then(client, &known).await? {
        let message = format!(
            "publication {} or its tables are others than when the sinks were level",
            config.publication
        );
        return Err(other_server(message));
    }
    let former = known.system_id.clone();
    let drained = Drained { from, to: kept.unwrap_or(from), former: Some(former.clone()) };
    let history_id = HistoryId {
        uuid: known.history_id,
        system_id: identity.system_id,
        timeline: identity.timeline,
        slot: config.slot.clone(),
    };
    Ok(Some(Adoption {
        history_id,
        timelines: timelines.with_drained(Some(drained)),
        former,
        slot: kept,
        publication_oid: publication.identity.oid,
        entries: publication.identity.entries,
    }))
}

fn drained_from(known: &Known, identity: &SystemIdentity) -> Result<Lsn> {
    let drained = known.drained.as_ref().filter(|drained| drained.to.is_none());
    drained.map(|drained| drained.from).ok_or_else(|| {
        other_server(format!(
            "walcast was not drained at system {} before this server, {}, was made of it",
            known.system_id, identity.system_id
        ))
    })
}

fn other_server(message: String) -> Error {
    Error::new(Code::OtherCluster, message).hint(RESYNC)
}

async fn kept_slot(config: &PostgresConfig, client: &Client) -> Result<Option<Lsn>> {
    let Some(facts) = slot::facts(client, &config.slot).await? else { return Ok(None) };
    facts.check_usable(config)?;
    Ok(facts.confirmed_flush_lsn)
}

async fn shape_then(client: &Client, known: &Known) -> Result<Option<String>> {
    let query = "SELECT drained_shape FROM walcast.slot WHERE history_id = $1";
    sql::get(&client.query_one(query, &[&known.history_id]).await.map_err(sql::error)?, 0)
}

impl Adoption {
    /// From here on this is the server that walcast knows. The former one, should it be started again, takes no fencing token of ours.
    pub async fn adopt(&self, client: &Client) -> Result<()> {
        let to = self.timelines.drained().map_or(Lsn::ZERO, |drained| drained.to);
        let note = "UPDATE walcast.slot SET system_id = $2, timeline = $3, publication_oid = $4, published_entries = $5,
             drained_to = $6, former_system_id = $7, fencing_token = fencing_token + 1000000
           WHERE history_id = $1 AND system_id = $7";
        let HistoryId { uuid, system_id, timeline, .. } = &self.history_id;
        let (timeline, to) = (timeline.cast_signed(), PgLsn::from(to.0));
        let noted = client
            .execute(
                note,
                &[uuid, system_id, &timeline, &self.publication_oid, &self.entries, &to, &self.former],
            )
            .await
            .map_err(sql::error)?;
        match noted {
            1 => Ok(()),
            _ => Err(Error::new(Code::Unavailable, "another walcast has adopted it meanwhile")),
        }
    }
}
