//! `walcast rebuild redis`: fills Redis from PostgreSQL and lets the stream go on from there.
//!
//! A temporary slot's snapshot holds exactly the commits below its consistent point. What they amount to is written
//! to Redis, with that point as the mark: the stream skips what lies below it and adds the rest.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::event::Event;
use crate::failpoint::failpoint;
use crate::lsn::{Lsn, Position};
use crate::model::content::Content;
use crate::ops::verify::before::{Before, Xid};
use crate::sink::redis::Rebuild;
use crate::source::snapshot::Snapshot;
use crate::source::{PostgresConfig, quote, sql};
use crate::state::{State, epoch};

type Contents = HashMap<Uuid, Arc<Content>>;

/// Rebuilds Redis. A walcast that runs meanwhile is shut out, and can be started again when this is done.
pub async fn redis(config: &Config) -> Result<()> {
    let mut state = State::new(config.postgres.clone());
    let (epoch, history) = epoch::find(&config.postgres, state.client().await?).await?;
    Rebuild::check(&config.redis, &config.postgres.slot).await?;
    let confirmed = epoch::confirmed(&config.postgres, state.client().await?).await?;
    let session = state.take_token(epoch, history, confirmed).await?;
    let mut rebuild = Rebuild::begin(&config.redis, &session).await?;
    tracing::info!("redis is ours alone and empty");
    let snapshot = Snapshot::take(&config.postgres).await?;
    let end = snapshot.consistent_point;
    require_not_ahead(&mut state, config, end).await?;
    let before = Before::load(&snapshot.client, &session.epoch).await?;
    let contents = contents(&snapshot.client, &config.postgres).await?;
    fill(&mut rebuild, &snapshot.client, &config.postgres, &before, &contents).await?;
    let events = rebuild.events();
    failpoint!("redis_rebuild_before_check");
    require_not_ahead(&mut state, config, end).await?;
    rebuild.end(end).await?;
    tracing::info!(events, mark = %end, "redis rebuilt");
    println!("redis holds {events} events, all up to {end}; `walcast run` goes on from there");
    Ok(())
}

/// What the slot has let go of before Redis' mark, nobody would bring.
async fn require_not_ahead(state: &mut State, config: &Config, end: Lsn) -> Result<()> {
    let confirmed = epoch::confirmed(&config.postgres, state.client().await?).await?;
    if confirmed <= end {
        return Ok(());
    }
    Err(Error::new(
        Kind::Resync,
        format!(
            "slot {} has moved to {confirmed}, beyond {end}, where redis would begin",
            config.postgres.slot
        ),
    )
    .hint("a walcast without the redis sink reads the slot: stop it, and run `walcast rebuild redis` again"))
}

async fn contents(client: &Client, config: &PostgresConfig) -> Result<Contents> {
    let query = include_str!("../../sql/snapshot_content_rows.sql")
        .replace("{schema}", &quote::identifier(&config.schema));
    let rows = client.query_raw(&query, std::iter::empty::<i32>()).await.map_err(sql::error)?;
    let rows = rows.and_then(async |row| content(&row)).map_ok(|content| (content.id, Arc::new(content)));
    rows.try_collect().await.map_err(sql::error)
}

fn content(row: &Row) -> Result<Content, tokio_postgres::Error> {
    Ok(Content {
        id: row.try_get(0)?,
        slug: row.try_get(1)?,
        title: row.try_get(2)?,
        content_type: row.try_get(3)?,
        length_seconds: row.try_get(4)?,
        publish_ts: row.try_get(5)?,
    })
}

/// Adds every event that walcast has streamed, or will not stream again.
async fn fill(
    rebuild: &mut Rebuild,
    client: &Client,
    config: &PostgresConfig,
    before: &Before,
    contents: &Contents,
) -> Result<()> {
    let query =
        include_str!("../../sql/verify_events.sql").replace("{schema}", &quote::identifier(&config.schema));
    let progress = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{pos} events {per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    let rows = client.query_raw(&query, std::iter::empty::<i32>()).await.map_err(sql::error)?;
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = rows.try_next().await.map_err(sql::error)? {
        progress.inc(1);
        if before.saw(row.try_get::<_, Xid>(0).map_err(sql::error)?) {
            continue;
        }
        if let Some(event) = event(&row, contents).map_err(sql::error)? {
            rebuild.add(event, row.try_get(4).map_err(sql::error)?).await?;
        }
    }
    progress.finish_and_clear();
    Ok(())
}

/// The event as a counter sees it, with its content as it is now; `None` for a row that walcast refuses.
fn event(row: &Row, contents: &Contents) -> Result<Option<Event>, tokio_postgres::Error> {
    let (content_id, duration_ms): (Option<Uuid>, Option<i64>) = (row.try_get(2)?, row.try_get(6)?);
    let Some(event_ts) = row.try_get(5)? else { return Ok(None) };
    if duration_ms.is_some_and(|ms| ms < 0) {
        return Ok(None);
    }
    Ok(Some(Event {
        position: Position { commit_lsn: Lsn::ZERO, ordinal: 0 },
        commit_ts: 0,
        id: row.try_get(1)?,
        content_id,
        user_id: None,
        event_type: None,
        event_ts,
        duration_ms,
        device: None,
        raw_payload: None,
        raw_payload_bytes: None,
        content: content_id.and_then(|id| contents.get(&id)).cloned(),
    }))
}
