//! The events as PostgreSQL has them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::TryStreamExt;
use indicatif::ProgressBar;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::before::{Before, Xid};
use super::record::{Field, Record, flag};
use super::spill::Spill;
use crate::config::Config;
use crate::error::Result;
use crate::event::Event;
use crate::lsn::{Epoch, Lsn, Position};
use crate::model::content::Content;
use crate::sink::kafka;
use crate::sink::redis::audit::Expected;
use crate::source::{PostgresConfig, quote, sql};
use crate::transform::content_cache::ContentCache;

const BEFORE_ALL: Position = Position { commit_lsn: Lsn::ZERO, ordinal: 0 };

/// How many events the snapshot has.
pub async fn count(client: &Client, config: &PostgresConfig) -> Result<u64> {
    let query = format!("SELECT count(*) FROM {}.engagement_events", quote::identifier(&config.schema));
    let row = client.query_one(&query, &[]).await.map_err(sql::error)?;
    Ok(row.try_get::<_, i64>(0).map_err(sql::error)?.unsigned_abs())
}

/// Reads all events of the snapshot that `client` is in. `versions` are the newest of the contents.
pub async fn read(
    config: &Config,
    client: &Client,
    before: &Before,
    versions: &Versions,
    mut spill: Spill,
    mut expected: Option<&mut Expected>,
    progress: &ProgressBar,
) -> Result<Spill> {
    let query = include_str!("../../../sql/verify_events.sql")
        .replace("{schema}", &quote::identifier(&config.postgres.schema));
    let rows = client.query_raw(&query, std::iter::empty::<i32>()).await.map_err(sql::error)?;
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = rows.try_next().await.map_err(sql::error)? {
        let record = record(config, before, versions, &row).map_err(sql::error)?;
        spill.add(&record)?;
        if let Some(expected) = expected.as_mut().filter(|_| !record.has(flag::BEFORE | flag::REFUSED)) {
            let event = event(&row, versions).map_err(sql::error)?;
            expected.add(&event, row.try_get(4).map_err(sql::error)?);
        }
        progress.inc(1);
    }
    Ok(spill)
}

fn record(
    config: &Config,
    before: &Before,
    versions: &Versions,
    row: &Row,
) -> Result<Record, tokio_postgres::Error> {
    let content_id: Option<Uuid> = row.try_get(2)?;
    let event_ts: Option<i64> = row.try_get(5)?;
    let duration_ms: Option<i64> = row.try_get(6)?;
    let texts = [row.try_get::<_, Option<&str>>(4)?, row.try_get(7)?, row.try_get(8)?];
    let [event_type, device, raw_payload] = texts;
    let mut record = Record::new(row.try_get(1)?, BEFORE_ALL, event_ts.unwrap_or_default());
    record.set(Field::ContentId, content_id);
    record.set(Field::UserId, row.try_get::<_, Option<Uuid>>(3)?);
    record.set(Field::EventType, event_type);
    record.set(Field::EventTs, event_ts);
    record.set(Field::DurationMs, duration_ms);
    record.set(Field::Device, device);
    record.set(Field::RawPayloadBytes, raw_payload.map(|text| text.len() as i64));
    let bytes: usize = texts.iter().flatten().map(|text| text.len()).sum();
    if bytes <= config.pipeline.row_bytes_max {
        record.set_json(Field::RawPayload, raw_payload);
    }
    record.set_float(Field::EngagementSeconds, duration_ms.map(|ms| ms as f64 / 1000.0));
    versions.join(&mut record, content_id, duration_ms);
    if let Some(id) = content_id {
        record.partition = kafka::scan::partition(&config.kafka, &id.to_string());
    }
    if before.saw(row.try_get::<_, Xid>(0)?) {
        record.flags |= flag::BEFORE;
    }
    if event_ts.is_none() || duration_ms.is_some_and(|ms| ms < 0) {
        record.flags |= flag::REFUSED;
    }
    Ok(record)
}

/// The event as a counter sees it.
fn event(row: &Row, versions: &Versions) -> Result<Event, tokio_postgres::Error> {
    let content_id: Option<Uuid> = row.try_get(2)?;
    Ok(Event {
        position: BEFORE_ALL,
        commit_ts: 0,
        id: row.try_get(1)?,
        content_id,
        user_id: None,
        event_type: None,
        event_ts: row.try_get::<_, Option<i64>>(5)?.unwrap_or_default(),
        duration_ms: row.try_get(6)?,
        device: None,
        raw_payload: None,
        raw_payload_bytes: None,
        content: content_id.and_then(|id| versions.content(&id)).cloned(),
    })
}

/// The newest version of every content row: what every event after it has seen.
pub struct Versions(HashMap<Uuid, Version>);

struct Version {
    /// The version's place, and its fields.
    record: Record,
    /// The row; `None` when it was deleted.
    content: Option<Arc<Content>>,
}

impl Versions {
    /// Reads them. Not from the snapshot: the sink that keeps them may lag behind it, and was waited for.
    pub async fn load(client: &Client, epoch: &Epoch) -> Result<Versions> {
        let query = include_str!("../../../sql/newest_content_versions.sql");
        let rows = client.query_raw(query, [epoch.epoch]).await.map_err(sql::error)?;
        let mut rows = std::pin::pin!(rows);
        let mut versions = HashMap::new();
        while let Some(row) = rows.try_next().await.map_err(sql::error)? {
            let (id, version) = version(&row).map_err(sql::error)?;
            versions.insert(id, version);
        }
        Ok(Versions(versions))
    }

    /// The rows, for those who join events with them.
    pub fn cache(&self) -> ContentCache {
        self.0.values().filter_map(|version| version.content.as_deref().cloned()).collect()
    }

    /// The newest version's place; `None` for a content without any.
    pub fn position(&self, id: &Uuid) -> Option<Position> {
        self.0.get(id).map(|version| version.record.position)
    }

    /// The newest version's row.
    pub fn content(&self, id: &Uuid) -> Option<&Arc<Content>> {
        self.0.get(id)?.content.as_ref()
    }

    /// What an event of this content has seen, unless it came before the version.
    fn join(&self, record: &mut Record, content_id: Option<Uuid>, duration_ms: Option<i64>) {
        let version = match content_id {
            None => None,
            Some(id) => match self.0.get(&id) {
                Some(version) => Some(version),
                None => return,
            },
        };
        let (position, length) = match version {
            Some(version) => {
                record.take_content(&version.record);
                (version.record.position, version.length_seconds())
            }
            None => {
                record.take_content(&no_content(BEFORE_ALL));
                (BEFORE_ALL, None)
            }
        };
        record.position = position;
        let length = length.filter(|length| *length > 0);
        let pct = duration_ms.zip(length).map(|(ms, length)| ms as f64 / 1000.0 / f64::from(length) * 100.0);
        record.set_float(Field::EngagementPct, pct);
    }
}

impl Version {
    fn length_seconds(&self) -> Option<i32> {
        self.content.as_ref()?.length_seconds
    }
}

fn version(row: &Row) -> Result<(Uuid, Version), tokio_postgres::Error> {
    let commit_lsn = Lsn(row.try_get::<_, PgLsn>(1)?.into());
    let position = Position { commit_lsn, ordinal: row.try_get::<_, i64>(2)?.unsigned_abs() };
    let id = row.try_get(0)?;
    let mut record = no_content(position);
    if row.try_get(3)? {
        return Ok((id, Version { record, content: None }));
    }
    let content = Content {
        id,
        slug: row.try_get(4)?,
        title: row.try_get(5)?,
        content_type: row.try_get(6)?,
        length_seconds: row.try_get(7)?,
        publish_ts: row.try_get(8)?,
    };
    record.set(Field::Slug, Some(content.slug.as_str()));
    record.set(Field::Title, Some(content.title.as_str()));
    record.set(Field::ContentType, content.content_type.as_deref());
    record.set(Field::LengthSeconds, content.length_seconds.map(i64::from));
    record.set(Field::PublishTs, content.publish_ts);
    Ok((id, Version { record, content: Some(Arc::new(content)) }))
}

fn no_content(position: Position) -> Record {
    let mut record = Record::new(0, position, 0);
    for field in [Field::Slug, Field::Title, Field::ContentType, Field::LengthSeconds, Field::PublishTs] {
        record.set(field, None::<()>);
    }
    record
}

/// The refusals of single sinks, added to what that sink holds.
pub async fn dead_letters(
    client: &Client,
    epoch: &Epoch,
    sink: &str,
    end: Lsn,
    spill: &mut Spill,
) -> Result<()> {
    let query = "SELECT event_id, commit_lsn, ordinal FROM walcast.dead_letter \
                 WHERE sink = $1 AND epoch = $2 AND commit_lsn < $3 AND event_id IS NOT NULL";
    let end = PgLsn::from(end.0);
    for row in client.query(query, &[&sink, &epoch.epoch, &end]).await.map_err(sql::error)? {
        let commit_lsn = Lsn(row.try_get::<_, PgLsn>(1).map_err(sql::error)?.into());
        let ordinal = row.try_get::<_, i64>(2).map_err(sql::error)?.unsigned_abs();
        let id = row.try_get(0).map_err(sql::error)?;
        let mut letter = Record::new(id, Position { commit_lsn, ordinal }, 0);
        letter.flags = flag::LETTER;
        spill.add(&letter)?;
    }
    Ok(())
}

/// A folder for the files that hold the records.
pub fn spill(folder: &Path, events: u64) -> Result<Spill> {
    const EVENTS_AT_ONCE: u64 = 50_000;
    Spill::new(folder, (events / EVENTS_AT_ONCE + 1).min(2_000) as usize)
}
