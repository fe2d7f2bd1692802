//! `walcast rebuild redis`: fills Redis from PostgreSQL and lets the stream go on from there.
//!
//! A temporary slot's snapshot holds exactly the commits below its consistent point. What they amount to is written
//! to Redis, with that point as the checkpoint: the stream skips what lies below it and adds the rest.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::event::Content;
use crate::event::encoding::Encoding;
use crate::event::encoding::json::Json;
use crate::event::place::{Place, Places};
use crate::event::replayed::Replayed;
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, HistoryId, Lsn, Session};
use crate::ops::verify::pre_existing::{PreExisting, Xid};
use crate::ops::verify::sums::Follow;
use crate::sink;
use crate::sink::SinkAdmin;
use crate::sink::read_back::ReadBack;
use crate::sink::redis::Rebuild;
use crate::source::connection::Connection;
use crate::source::snapshot::Snapshot;
use crate::source::{PostgresConfig, check, rows, slot, sql};
use crate::state::lanes::{self, LaneRecord};
use crate::state::marks::EventMarks;
use crate::state::{State, backfills, dead_letters, history};
use crate::transform::Transform;
use crate::transform::content_cache::ContentCache;

/// Nobody waits for a rebuild to be given up.
const FOREVER: Duration = Duration::from_secs(7 * 86_400);

type Contents = HashMap<Uuid, Arc<Content>>;

/// Rebuilds Redis, with the rows that were there before walcast if that is asked for, or was once. A walcast that runs meanwhile is
/// shut out, and can be started again when this is done.
pub async fn redis(config: &Config, with_history: bool) -> Result<()> {
    let mut state = State::new(config.postgres.clone());
    let (history_id, timelines) = history::find(&config.postgres, state.client().await?).await?;
    let with_history = with_history || has_history(state.client().await?, &history_id).await?;
    let last_id = match with_history {
        true => Some(EventMarks::load(state.client().await?, &history_id).await?.end_of_before()?),
        false => None,
    };
    // what would end it later is found before anybody is shut out
    let places = readable(&config.postgres, state.client().await?).await?;
    Rebuild::check(&config.redis, &config.postgres.slot).await?;
    let confirmed = history::confirmed(&config.postgres, state.client().await?).await?;
    let session = state.take_fencing_token(history_id, timelines, confirmed).await?;
    let mut rebuild = Rebuild::begin(&config.redis, &session).await?;
    tracing::info!("redis is ours alone and empty");
    let snapshot = Snapshot::take(&config.postgres).await?;
    let end = snapshot.consistent_point;
    require_not_ahead(&mut state, config, end).await?;
    let pre_existing = PreExisting::load(&snapshot.client, &session.history_id).await?;
    let mut marks = EventMarks::load(state.client().await?, &session.history_id).await?;
    add_late(&mut marks, &mut state, config, end).await?;
    let contents = contents(&snapshot.client, &places.content).await?;
    // as of the snapshot: those that are sent after it the stream will bring
    let repaired = dead_letters::repaired(&snapshot.client, session.history_id.uuid).await?;
    let repaired = add_repaired(&mut rebuild, &repaired, &contents).await?;
    let known = Known { marks: &marks, pre_existing: &pre_existing, repaired: &repaired, with_history };
    let of_before = fill(&mut rebuild, &snapshot.client, &places.events, &known, &contents).await?;
    let events = rebuild.events();
    if let Some(last_id) = last_id {
        // before Redis is whole: a rebuild that is begun again knows it
        let transaction = state.guarded(&session).await?;
        let sink = sink::redis::NAME.as_str();
        backfills::counted(&transaction, &session.history_id, sink, (last_id, of_before)).await?;
        transaction.commit().await.map_err(sql::error)?;
    }
    failpoint!("redis_rebuild_before_check");
    require_not_ahead(&mut state, config, end).await?;
    rebuild.end(end).await?;
    failpoint!("redis_rebuild_before_lane");
    close_lane(&mut state, &session).await?;
    tracing::info!(events, checkpoint = %end, "redis rebuilt");
    let of_before =
        if with_history { format!(", {of_before} of them from before walcast") } else { String::new() };
    println!("redis holds {events} events{of_before}, all up to {end}; `walcast run` goes on from there");
    Ok(())
}

/// Whether Redis counts the rows of before walcast, and is whole.
pub(super) async fn counts_history(config: &Config, client: &Client, history_id: &HistoryId) -> Result<bool> {
    if !has_history(client, history_id).await? {
        return Ok(false);
    }
    let read = sink::redis::RedisSink::new(config.redis.clone()).read_back();
    let ReadBack::Sums(mut sums) = read else { return Ok(true) };
    match sums.read(history_id).await {
        // a rebuild was broken off, or all is lost since
        Err(error) if [Code::RebuildUnfinished, Code::SinkLostItsData].contains(&error.code()) => Ok(false),
        read => read.map(|_| true),
    }
}

/// Whether Redis is to count the rows of before walcast.
async fn has_history(client: &Client, history_id: &HistoryId) -> Result<bool> {
    let all = backfills::list(client, history_id).await?;
    Ok(all.iter().any(|one| one.sinks.iter().any(|sink| sink == sink::redis::NAME.as_str())))
}

/// Redis stands at or beyond the walcast slot now: a slot of its own that it had, or lost, is needed no more.
async fn close_lane(state: &mut State, session: &Session) -> Result<()> {
    let open = check::lanes::lanes(state.client().await?, session.history_id.uuid).await?;
    for lane in open.into_iter().filter(|lane| lane.sink == sink::redis::NAME.as_str()) {
        lanes::close(state, session, &LaneRecord { sink: lane.sink, slot: lane.slot, given_up: false })
            .await?;
    }
    Ok(())
}

/// Rows with low ids that came after all are marked as the stream brings them: those that it has not brought yet are read
/// from the slot, up to the snapshot, and not confirmed.
async fn add_late(marks: &mut EventMarks, state: &mut State, config: &Config, end: Lsn) -> Result<()> {
    if marks.last_id_before.is_none() {
        return Ok(());
    }
    let postgres = &config.postgres;
    slot::wait_until_free(state.client().await?, &postgres.slot, || {}).await?;
    let start = history::confirmed(postgres, state.client().await?).await?;
    let places = history::publication(postgres, state.client().await?).await?.places;
    let connection = Connection::connect(postgres).await?;
    let stream = connection.start_replication(&postgres.slot, &postgres.publication, start).await?;
    let transform = Transform::new(&places, start, ContentCache::default(), config.pipeline.bounds());
    let follow = Follow { stream, transform, start, requests: None };
    follow
        .up_to(Checkpoint::at(end), FOREVER, |batch| {
            batch.events().for_each(|event| marks.inserted(event.id))
        })
        .await
}

/// What the slot has let go of before Redis' checkpoint, nobody would bring.
async fn require_not_ahead(state: &mut State, config: &Config, end: Lsn) -> Result<()> {
    let confirmed = history::confirmed(&config.postgres, state.client().await?).await?;
    if confirmed <= end {
        return Ok(());
    }
    Err(Error::new(
        Code::SlotMovedDuringRebuild,
        format!(
            "slot {} has moved to {confirmed}, beyond {end}, where redis would begin",
            config.postgres.slot
        ),
    )
    .hint("a walcast without the redis sink reads the slot: stop it, and run `walcast rebuild redis` again"))
}

/// The tables as they are now, as far as they are published.
pub(super) async fn readable(config: &PostgresConfig, client: &Client) -> Result<Places> {
    let places = history::publication(config, client).await?.places;
    check::readable(client, config, &places).await
}

async fn contents(client: &Client, content: &Place) -> Result<Contents> {
    let query = rows::select(content, &[], None);
    let found = client.query_raw(&query, std::iter::empty::<i32>()).await.map_err(sql::error)?;
    let mut found = std::pin::pin!(found);
    let mut contents = Contents::new();
    while let Some(row) = found.try_next().await.map_err(sql::error)? {
        let Some(content) = rows::content(&row, 0, content)? else { continue };
        contents.insert(content.id, Arc::new(content));
    }
    Ok(contents)
}

/// What is known of rows by their ids.
struct Known<'a> {
    marks: &'a EventMarks,
    pre_existing: &'a PreExisting,
    /// Rows that went out otherwise than the source has them.
    repaired: &'a HashSet<i64>,
    /// Whether rows that were there before walcast count.
    with_history: bool,
}

/// Adds the rows that were refused, mended and sent again; gives their ids.
async fn add_repaired(
    rebuild: &mut Rebuild,
    records: &[String],
    contents: &Contents,
) -> Result<HashSet<i64>> {
    let mut ids = HashSet::new();
    for record in records {
        let Some(values) = Json.read_event(record.as_bytes()) else { continue };
        let Ok(row) = Replayed::of(&values).checked() else { continue };
        let content = row.content_id.and_then(|id| contents.get(&id)).cloned();
        rebuild.add(&row, content).await?;
        ids.insert(row.id);
    }
    Ok(ids)
}

/// Adds every event that walcast has streamed, or will not stream again; tells how many of them were there before.
async fn fill(
    rebuild: &mut Rebuild,
    client: &Client,
    events: &Place,
    known: &Known<'_>,
    contents: &Contents,
) -> Result<u64> {
    let query = rows::select(events, &["xmin"], None);
    let progress = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{pos} events {per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    let found = client.query_raw(&query, std::iter::empty::<i32>()).await.map_err(sql::error)?;
    let mut found = std::pin::pin!(found);
    let mut of_before = 0;
    while let Some(row) = found.try_next().await.map_err(sql::error)? {
        progress.inc(1);
        let xid = row.try_get::<_, Xid>(0).map_err(sql::error)?;
        let unchecked = rows::engagement(&row, 1, events)?;
        // walcast refuses the others
        let Ok(row) = unchecked.checked() else { continue };
        let was_before = known.marks.was_before(row.id).unwrap_or_else(|| known.pre_existing.saw(xid));
        if was_before && !known.with_history || known.repaired.contains(&row.id) {
            continue;
        }
        of_before += u64::from(was_before);
        let content = row.content_id.and_then(|id| contents.get(&id)).cloned();
        rebuild.add(&row, content).await?;
    }
    progress.finish_and_clear();
    Ok(of_before)
}
