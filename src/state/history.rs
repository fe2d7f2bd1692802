//! The history id: a slot, the content rows at its snapshot, and the row in `walcast.slot` that ties them
//! together. Made once; never made again silently.

use tokio_postgres::Transaction;
use tokio_postgres::types::{PgLsn, ToSql};
use uuid::Uuid;

use crate::error::{Class, Code, Error, Result};
use crate::event::Content;
use crate::event::place::{Place, Places};
use crate::failpoint::failpoint;
use crate::finding::Finding;
use crate::lsn::{Drained, HistoryId, Lsn, Timelines};
use crate::resume::RESYNC;
use crate::source::PostgresConfig;
use crate::source::connection::{Connection, SystemIdentity};
use crate::source::slot::Publication;
use crate::source::{check, quote, rows, slot, sql};
use crate::state::backfills::{self, Backfill};
use crate::state::{State, drained};

/// What `walcast.slot` says of a slot.
pub(super) struct Known {
    pub(super) history_id: Uuid,
    pub(super) system_id: String,
    timeline: i32,
    publication_oid: u32,
    /// `None` for a history id made before these were kept.
    published_entries: Option<Vec<Option<u32>>>,
    /// Where the stream began; `None` while the slot is being made.
    consistent_point: Option<Lsn>,
    /// How far the server's WAL reaches.
    pub(super) wal_end: Lsn,
    ready: bool,
    /// Whether it is known which rows were there before.
    tells_before: bool,
    pub(super) drained: Option<drained::Note>,
}

impl Known {
    /// The gap in the WAL, for a slot that begins here.
    fn drained(&self, confirmed: Option<Lsn>) -> Option<Drained> {
        self.drained.as_ref()?.gap(confirmed)
    }
}

/// The history id of the configured slot. Makes slot and history id when there are neither; kind `Resync` when they do
/// not belong together.
pub async fn open(config: &PostgresConfig, state: &mut State) -> Result<(HistoryId, Timelines)> {
    let (replication, identity, timelines) = server(config).await?;
    let client = state.client().await?;
    // One process at a time makes a slot; the lock ends with this session at the latest.
    client
        .execute("SELECT pg_advisory_lock(hashtext('walcast'), hashtext($1))", &[&config.slot])
        .await
        .map_err(sql::error)?;
    let opened = open_alone(config, state, replication, &identity, timelines).await;
    let unlock = "SELECT pg_advisory_unlock(hashtext('walcast'), hashtext($1))";
    let unlocked = state.client().await?.execute(unlock, &[&config.slot]).await.map_err(sql::error);
    let opened = opened?;
    unlocked?;
    Ok(opened)
}

async fn open_alone(
    config: &PostgresConfig,
    state: &mut State,
    replication: Connection,
    identity: &SystemIdentity,
    timelines: Timelines,
) -> Result<(HistoryId, Timelines)> {
    let client = state.client().await?;
    let publication = slot::publication(client, config).await?;
    let history_id = match judge(client, config, identity, &timelines, publication.as_ref()).await? {
        Judgement::Whole(history_id, drained) => return Ok((history_id, timelines.with_drained(drained))),
        Judgement::Missing => create(config, state, replication, identity, publication).await?,
        Judgement::HalfMade => {
            tracing::warn!(
                slot = config.slot,
                "an earlier start died while it made the slot; nothing was read from it, making it again"
            );
            slot::drop(client, &config.slot).await?;
            create(config, state, replication, identity, publication).await?
        }
    };
    let known = known(state.client().await?, &config.slot).await?;
    Ok((history_id, timelines.with_drained(known.and_then(|known| known.drained(None)))))
}

/// Where the slot begins; kind `Resync` when it has gone since it was judged.
pub async fn confirmed(config: &PostgresConfig, client: &tokio_postgres::Client) -> Result<Lsn> {
    if let Some(confirmed) = slot::confirmed(client, &config.slot).await? {
        return Ok(confirmed);
    }
    let known = known(client, &config.slot).await?;
    Err(known.map_or_else(|| forgotten(&config.slot), |known| slot_gone(&known, config)))
}

/// Where the stream of a history began.
pub async fn began(client: &tokio_postgres::Client, history_id: &HistoryId) -> Result<Lsn> {
    let query = "SELECT consistent_point FROM walcast.slot WHERE history_id = $1";
    let row = client.query_opt(query, &[&history_id.uuid]).await.map_err(sql::error)?;
    let began = row.map(|row| sql::get::<Option<PgLsn>>(&row, 0)).transpose()?.flatten();
    Ok(began.map_or(Lsn::ZERO, |lsn| Lsn(lsn.into())))
}

/// The publication, which is the one that the slot was made for; kind `Resync` when it is not.
pub async fn publication(config: &PostgresConfig, client: &tokio_postgres::Client) -> Result<Publication> {
    let publication = slot::publication(client, config).await?;
    let known = known(client, &config.slot).await?.ok_or_else(|| forgotten(&config.slot))?;
    check_publication(&known, publication.as_ref(), config)?;
    publication.ok_or_else(|| no_publication(config))?.require_fit()
}

/// Why the server does not open the stream, in the catalog's words where it knows more than the refusal says: a slot
/// that is gone, lost its WAL or is of another database, and a `wal_level` that will not do, have one SQLSTATE.
pub async fn why_refused(config: &PostgresConfig, client: &tokio_postgres::Client, refused: Error) -> Error {
    if refused.class() != Class::Definite {
        return refused;
    }
    match look_for_fault(config, client).await {
        Ok(()) => refused,
        Err(found) => found.because(refused),
    }
}

async fn look_for_fault(config: &PostgresConfig, client: &tokio_postgres::Client) -> Result<()> {
    slot::server_facts(client).await?.check_usable()?;
    if let Some(facts) = slot::facts(client, &config.slot).await? {
        facts.check_usable(config)?;
    }
    confirmed(config, client).await?;
    publication(config, client).await.map(drop)
}

/// Whether this database has walcast's schema.
pub async fn is_kept(client: &tokio_postgres::Client) -> Result<bool> {
    let there = client.query_one("SELECT to_regclass('walcast.slot') IS NOT NULL", &[]).await;
    sql::get(&there.map_err(sql::error)?, 0)
}

/// The history of a slot that nobody can read any more, where what the sinks hold can still be told by it.
pub async fn without_slot(
    config: &PostgresConfig,
    client: &tokio_postgres::Client,
) -> Result<Option<(HistoryId, Timelines)>> {
    if !is_kept(client).await? {
        return Ok(None);
    }
    let Some(known) = known(client, &config.slot).await? else { return Ok(None) };
    let (_, identity, timelines) = server(config).await?;
    // after a failover, or put back to an older state, it may have lost what a sink has
    let is_ours = check_system(&known, &identity).is_ok() && known.timeline as u32 == identity.timeline;
    // other tables give their rows ids that were given before
    let publication = slot::publication(client, config).await?;
    let is_ours = is_ours && check_publication(&known, publication.as_ref(), config).is_ok();
    if !(known.ready && known.tells_before && is_ours) {
        return Ok(None);
    }
    let drained = known.drained(None);
    let (system_id, timeline) = (known.system_id, identity.timeline);
    let history_id = HistoryId { uuid: known.history_id, system_id, timeline, slot: config.slot.clone() };
    Ok(Some((history_id, timelines.with_drained(drained))))
}

/// Drops the slot and those of its lanes, nobody may read them, and has the next start make a new one: under the same history, so
/// that what the sinks hold counts on, or under a new one, of which they hold nothing. `asked` is what it begins with.
pub async fn renew(
    config: &PostgresConfig,
    client: &mut tokio_postgres::Client,
    same_history: bool,
    asked: &[Backfill],
) -> Result<()> {
    if slot::facts(client, &config.slot).await?.is_some() {
        slot::drop(client, &config.slot).await?;
    }
    let known = known(client, &config.slot).await?;
    if let Some(known) = &known {
        let lanes = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
           WHERE starts_with(slot_name::text, $1) AND NOT active";
        client.execute(lanes, &[&super::lanes::prefix(known.history_id)]).await.map_err(sql::error)?;
    }
    let (_, identity, _) = server(config).await?;
    let transaction = client.transaction().await.map_err(sql::error)?;
    let history_id = match known {
        Some(known) if same_history => {
            for statement in BEFORE_A_NEW_SLOT {
                transaction.execute(statement, &[&known.history_id]).await.map_err(sql::error)?;
            }
            known.history_id
        }
        known => {
            for table in ["lane", "progress", "sink", "event_mark", "content_version", "slot"] {
                let delete = format!("DELETE FROM walcast.{table} WHERE history_id = $1");
                let former = known.as_ref().map(|known| known.history_id);
                transaction.execute(&delete, &[&former]).await.map_err(sql::error)?;
            }
            let history_id = Uuid::new_v4();
            let (system_id, timeline) = (&identity.system_id, identity.timeline as i32);
            let parameters: [&(dyn ToSql + Sync); 5] =
                [&config.slot, &history_id, system_id, &timeline, &config.publication];
            let insert = "INSERT INTO walcast.slot
               (slot, history_id, system_id, timeline, publication, publication_oid, state, fencing_token)
             VALUES ($1, $2, $3, $4, $5, 0, 'in progress', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)";
            transaction.execute(insert, &parameters).await.map_err(sql::error)?;
            history_id
        }
    };
    for one in asked {
        backfills::queue(&transaction, history_id, one).await?;
    }
    transaction.commit().await.map_err(sql::error)
}

/// What does not outlive a slot, by the history: the contents, which are read anew, lanes, and what was on its way in the WAL.
const BEFORE_A_NEW_SLOT: [&str; 9] = [
    // beyond whatever a target has seen of a server that was put back
    "UPDATE walcast.slot SET state = 'in progress', drained_to = coalesce(drained_to, drained_from),
       fencing_token = greatest(fencing_token, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
     WHERE history_id = $1",
    "DELETE FROM walcast.content_version WHERE history_id = $1",
    "DELETE FROM walcast.progress WHERE history_id = $1 AND sink = 'content'",
    "DELETE FROM walcast.sink WHERE history_id = $1 AND name = 'content'",
    "DELETE FROM walcast.event_mark WHERE history_id = $1 AND kind = 'since'",
    "DELETE FROM walcast.lane WHERE history_id = $1",
    "UPDATE walcast.backfill SET state = 'cancelled', changed_at = now()
     WHERE history_id = $1 AND state IN ('waiting', 'running', 'paused')",
    "UPDATE walcast.dead_letter SET state = 'open', changed_at = now()
     WHERE history_id = $1 AND state = 'replaying'
       AND request IN (SELECT id FROM walcast.request WHERE history_id = $1 AND state = 'sent')",
    "DELETE FROM walcast.request WHERE history_id = $1 AND state = 'sent'",
];

/// Of a slot whose row is gone.
pub(super) fn forgotten(slot: &str) -> Error {
    Error::new(Code::HistoryForgotten, format!("walcast.slot no longer knows slot {slot}"))
        .hint(format!("somebody made walcast forget it: see whether that was meant; {RESYNC}"))
}

/// The history id of the configured slot, when there is one, and the timelines before its own; changes nothing. Kind
/// `Resync` when slot and history id do not belong together.
pub async fn find(
    config: &PostgresConfig,
    client: &tokio_postgres::Client,
) -> Result<(HistoryId, Timelines)> {
    let (_, identity, timelines) = server(config).await?;
    let publication = slot::publication(client, config).await?;
    match judge(client, config, &identity, &timelines, publication.as_ref()).await? {
        Judgement::Whole(history_id, drained) => Ok((history_id, timelines.with_drained(drained))),
        Judgement::Missing | Judgement::HalfMade => Err(Error::new(
            Code::NotInitialised,
            format!("slot {} has not been made yet: nothing was delivered", config.slot),
        )
        .hint("run `walcast init`")),
    }
}

/// What `walcast check` says of publication and slot; changes nothing.
pub async fn check(config: &PostgresConfig, client: &tokio_postgres::Client) -> Result<Vec<Finding>> {
    let publication = slot::publication(client, config).await?;
    let mut findings = Vec::new();
    let (id, subject) = ("postgres.publication", format!("publication {}", config.publication));
    let fault = publication.as_ref().map(|publication| publication.fault.as_ref());
    findings.push(match fault {
        Some(None) => Finding::ok(id, subject, "has both tables and all operations"),
        None => Finding::fail(Code::PublicationUnfit, id, subject, "does not exist", "walcast init"),
        Some(Some(fault)) => Finding::failed(id, subject, fault),
    });
    let (_, identity, timelines) = server(config).await?;
    let (id, subject) = ("postgres.slot", format!("slot {}", config.slot));
    findings.push(match judge(client, config, &identity, &timelines, publication.as_ref()).await {
        Ok(Judgement::Whole(history_id, _)) => Finding::ok(id, subject, format!("belongs to {history_id}")),
        Ok(Judgement::Missing) => Finding::warn(
            id,
            subject,
            "does not exist yet; the first `walcast run` makes it too",
            "walcast init",
        ),
        Ok(Judgement::HalfMade) => Finding::warn(
            id,
            subject,
            "was being made when a start died; the next `walcast run` makes it too",
            "walcast init",
        ),
        Err(error) => Finding::failed(id, subject, &error),
    });
    Ok(findings)
}

/// A replication connection, whose it is, and how its timeline came to be.
pub(super) async fn server(config: &PostgresConfig) -> Result<(Connection, SystemIdentity, Timelines)> {
    let mut replication = Connection::connect(config).await?;
    let identity = replication.identify_system().await?;
    let timelines = replication.timeline_history(identity.timeline).await?;
    Ok((replication, identity, timelines))
}

/// How slot and history id stand to each other.
enum Judgement {
    Whole(HistoryId, Option<Drained>),
    Missing,
    HalfMade,
}

/// Kind `Resync` or `Setup` when they do not belong together.
async fn judge(
    client: &tokio_postgres::Client,
    config: &PostgresConfig,
    identity: &SystemIdentity,
    timelines: &Timelines,
    publication: Option<&Publication>,
) -> Result<Judgement> {
    let facts = slot::facts(client, &config.slot).await?;
    if let Some(facts) = &facts {
        facts.check_usable(config)?;
    }
    let known = known(client, &config.slot).await?;
    if let Some(known) = known.as_ref().filter(|known| known.ready) {
        check_system(known, identity)?;
        check_timeline(known, identity, timelines)?;
    }
    match (known, facts) {
        (Some(known), Some(facts)) if known.ready => {
            check_publication(&known, publication, config)?;
            let drained = known.drained(facts.confirmed_flush_lsn);
            let (system_id, timeline) = (known.system_id, identity.timeline);
            let (uuid, slot) = (known.history_id, config.slot.clone());
            Ok(Judgement::Whole(HistoryId { uuid, system_id, timeline, slot }, drained))
        }
        (Some(known), None) if known.ready => Err(slot_gone(&known, config)),
        (None, Some(_)) => Err(slot_not_ours(config)),
        (Some(_), Some(_)) => Ok(Judgement::HalfMade),
        (_, None) => Ok(Judgement::Missing),
    }
}

pub(super) async fn known(client: &tokio_postgres::Client, slot: &str) -> Result<Option<Known>> {
    let row = client
        .query_opt(
            "SELECT history_id, system_id, timeline, publication_oid, published_entries, consistent_point,
               CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
               state = 'ready', last_id_before IS NOT NULL, drained_from, drained_to, former_system_id
             FROM walcast.slot WHERE slot = $1",
            &[&slot],
        )
        .await
        .map_err(sql::error)?;
    let Some(row) = row else { return Ok(None) };
    let lsn = |at| Ok(sql::get::<Option<PgLsn>>(&row, at)?.map(|lsn| Lsn(lsn.into())));
    let (to, former) = (lsn(10)?, sql::get(&row, 11)?);
    Ok(Some(Known {
        history_id: sql::get(&row, 0)?,
        system_id: sql::get(&row, 1)?,
        timeline: sql::get(&row, 2)?,
        publication_oid: sql::get(&row, 3)?,
        published_entries: sql::get(&row, 4)?,
        consistent_point: lsn(5)?,
        wal_end: Lsn(sql::get::<PgLsn>(&row, 6)?.into()),
        ready: sql::get(&row, 7)?,
        tells_before: sql::get(&row, 8)?,
        drained: lsn(9)?.map(|from| drained::Note { from, to, former }),
    }))
}

/// Looked at before the slot: a database restored elsewhere has none, and that is not what is wrong with it.
fn check_system(known: &Known, identity: &SystemIdentity) -> Result<()> {
    let (theirs, ours) = (&known.system_id, &identity.system_id);
    if theirs == ours {
        return Ok(());
    }
    let message = format!("walcast.slot is of system {theirs}, this server is {ours}");
    Err(Error::new(Code::OtherCluster, message)
        .hint(format!(
            "if pg_upgrade has made this server of that one, `walcast adopt`; if this database was restored from another \
             cluster, {RESYNC}"
        )))
}

/// Its own timeline, or one that it grew out of; how far each checkpoint of that one counts is for the checkpoint to say.
fn check_timeline(known: &Known, identity: &SystemIdentity, timelines: &Timelines) -> Result<()> {
    let (theirs, ours) = (known.timeline as u32, identity.timeline);
    if theirs == ours || timelines.left_at(theirs).is_some() {
        return Ok(());
    }
    let message = format!(
        "walcast.slot is of timeline {theirs}, this server is on {ours} and did not grow out of that one"
    );
    Err(Error::new(Code::OtherTimeline, message)
        .hint("set postgres.host to the newest primary: this server has parted from what walcast has read"))
}

fn check_publication(
    known: &Known,
    publication: Option<&Publication>,
    config: &PostgresConfig,
) -> Result<()> {
    let is_same = |publication: &Publication| {
        publication.identity.oid == known.publication_oid
            && known.published_entries.as_ref().is_none_or(|entries| *entries == publication.identity.entries)
    };
    if publication.is_some_and(is_same) {
        return Ok(());
    }
    let message = format!(
        "publication {}, or a table in it, was dropped (and perhaps put back) after slot {} was made",
        config.publication, config.slot
    );
    Err(Error::new(Code::PublicationChanged, message)
        .hint(format!("the slot cannot read past that place: {RESYNC}")))
}

/// That the publication was seen to leave out one of our tables (EXCEPT): once it is taken back, nothing in the catalog tells
/// that rows are lacking. No entry has the number 0, so that every start is refused until a new slot is made.
pub async fn remember_left_out(config: &PostgresConfig) -> Result<()> {
    let client = sql::connect(config).await?;
    let facts = slot::publication_facts(&client, &config.publication).await?;
    if facts.is_none_or(|facts| !facts.leaves_out_ours(config)) {
        return Ok(());
    }
    let note = "UPDATE walcast.slot SET published_entries = '{0,0}' WHERE slot = $1 AND state = 'ready'";
    client.execute(note, &[&config.slot]).await.map(drop).map_err(sql::error)
}

pub(super) fn no_publication(config: &PostgresConfig) -> Error {
    Error::new(Code::PublicationUnfit, format!("publication {} does not exist", config.publication))
        .hint("run `walcast init`")
}

fn slot_gone(known: &Known, config: &PostgresConfig) -> Error {
    Error::new(
        Code::SlotGone,
        format!(
            "replication slot {} is gone, and with it the WAL that was not delivered: it began at {}, the server's \
             WAL is at {}, and what of it the sinks hold their own checkpoints tell",
            config.slot,
            known.consistent_point.unwrap_or_default(),
            known.wal_end
        ),
    )
    .hint(RESYNC)
}

fn slot_not_ours(config: &PostgresConfig) -> Error {
    Error::new(
        Code::SlotNotOurs,
        format!(
            "replication slot {} exists, but walcast did not make it: what it has delivered is unknown",
            config.slot
        ),
    )
    .hint(format!(
        "choose another postgres.slot, or drop it: SELECT pg_drop_replication_slot({}); if walcast's schema was lost, {RESYNC}",
        quote::literal(&config.slot)
    ))
}

/// Marks the history id "in progress", makes the slot, fills the content versions under the slot's snapshot, marks
/// the history id "ready". A crash at any point leaves "in progress", which the next start clears away.
async fn create(
    config: &PostgresConfig,
    state: &mut State,
    mut replication: Connection,
    identity: &SystemIdentity,
    publication: Option<Publication>,
) -> Result<HistoryId> {
    let publication = publication.ok_or_else(|| no_publication(config))?.require_fit()?;
    let client = state.client().await?;
    let places = check::readable(client, config, &publication.places).await?;
    let history_id = HistoryId {
        // one that was to be made has its name already
        uuid: known(client, &config.slot).await?.map_or_else(Uuid::new_v4, |known| known.history_id),
        system_id: identity.system_id.clone(),
        timeline: identity.timeline,
        slot: config.slot.clone(),
    };
    // beyond whatever a target has seen of a slot of this name that is forgotten: no instance starts a million times a second
    client
        .execute(
            "INSERT INTO walcast.slot (slot, history_id, system_id, timeline, publication, publication_oid, published_entries,
               state, fencing_token)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'in progress', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
             ON CONFLICT (slot) DO UPDATE SET history_id = $2, system_id = $3, timeline = $4, publication = $5,
               publication_oid = $6, published_entries = $7, state = 'in progress', consistent_point = NULL,
               snapshot = NULL",
            &[
                &history_id.slot,
                &history_id.uuid,
                &history_id.system_id,
                &(history_id.timeline as i32),
                &config.publication,
                &publication.identity.oid,
                &publication.identity.entries,
            ],
        )
        .await
        .map_err(sql::error)?;
    failpoint!("history_id_before_slot");
    let created = slot::made(client, replication.create_slot(&config.slot, true)).await?;
    failpoint!("history_id_after_slot");
    fill(&places, state, &history_id, &created.snapshot, created.consistent_point).await?;
    tracing::info!(slot = config.slot, consistent_point = %created.consistent_point, "slot made");
    Ok(history_id)
}

async fn fill(
    places: &Places,
    state: &mut State,
    history_id: &HistoryId,
    snapshot: &str,
    consistent_point: Lsn,
) -> Result<()> {
    let transaction = state
        .client()
        .await?
        .build_transaction()
        .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
        .start()
        .await
        .map_err(sql::error)?;
    transaction
        .batch_execute(&format!("SET TRANSACTION SNAPSHOT {}", quote::literal(snapshot)))
        .await
        .map_err(sql::error)?;
    let content = keep_contents(&transaction, &places.content, history_id).await?;
    tracing::info!(content, "content rows kept as the stream begins");
    let (id, events) = (quote::identifier(places.events.called("id")), &places.events);
    // one that is a numeric may be no number of 64 bits: such rows are refused
    let last_id = format!(
        "SELECT coalesce(trunc(max({id})::numeric)::bigint, {0}) FROM {1} WHERE {id} BETWEEN {0} AND {2}",
        i64::MIN,
        events.sql(),
        i64::MAX
    );
    let last_id: i64 = sql::get(&transaction.query_one(&last_id, &[]).await.map_err(sql::error)?, 0)?;
    transaction
        .execute(
            "UPDATE walcast.slot SET state = 'ready', consistent_point = $2, snapshot = pg_current_snapshot(),
               last_id_before = coalesce(last_id_before, $3)
             WHERE slot = $1",
            &[&history_id.slot, &PgLsn::from(consistent_point.0), &last_id],
        )
        .await
        .map_err(sql::error)?;
    failpoint!("history_id_before_ready");
    transaction.commit().await.map_err(sql::error)?;
    failpoint!("history_id_after_ready");
    Ok(())
}

/// What was there before the stream is version 0/0#0. How many the stream would not refuse.
async fn keep_contents(
    transaction: &Transaction<'_>,
    content: &Place,
    history_id: &HistoryId,
) -> Result<usize> {
    const ROWS_AT_ONCE: i32 = 1000;
    let statement = rows::content_statement(include_str!("../../sql/snapshot_content.sql"), 3);
    let all = transaction.bind(&rows::select(content, &[], None), &[]).await.map_err(sql::error)?;
    let mut kept = 0;
    loop {
        let some = transaction.query_portal(&all, ROWS_AT_ONCE).await.map_err(sql::error)?;
        if some.is_empty() {
            return Ok(kept);
        }
        let contents = some.iter().filter_map(|row| rows::content(row, 0, content).transpose());
        let contents = contents.collect::<Result<Vec<Content>>>()?;
        let ids: Vec<Uuid> = contents.iter().map(|content| content.id).collect();
        let arrays = rows::content_arrays(contents.iter().map(Some));
        let ours: [&(dyn ToSql + Sync); 2] = [&history_id.uuid, &ids];
        let arrays = arrays.iter().map(|array| &**array as &(dyn ToSql + Sync));
        let parameters: Vec<_> = ours.into_iter().chain(arrays).collect();
        transaction.execute(&statement, &parameters).await.map_err(sql::error)?;
        kept += contents.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_did_not_grow_out_of_what_was_read_is_refused() {
        let known = |timeline| Known {
            history_id: Uuid::nil(),
            system_id: "7".into(),
            timeline,
            publication_oid: 1,
            published_entries: None,
            consistent_point: None,
            wal_end: Lsn(9),
            ready: true,
            tells_before: true,
            drained: None,
        };
        let identity = SystemIdentity { system_id: "7".into(), timeline: 3 };
        let timelines = Timelines::parse("1\t0/5\tno recovery target").unwrap_or_default();
        for (timeline, code) in
            [(3, None), (1, None), (2, Some(Code::OtherTimeline)), (4, Some(Code::OtherTimeline))]
        {
            let judged = check_timeline(&known(timeline), &identity, &timelines);
            assert_eq!(judged.err().map(|error| error.code()), code, "{timeline}");
        }
        assert!(check_system(&known(3), &identity).is_ok());
        let elsewhere = SystemIdentity { system_id: "8".into(), ..identity };
        let refused = check_system(&known(3), &elsewhere);
        assert_eq!(refused.err().map(|error| error.code()), Some(Code::OtherCluster));
        assert_eq!(forgotten("w").code(), Code::HistoryForgotten);
    }
}
