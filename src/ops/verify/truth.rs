//! The events as PostgreSQL has them.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use futures_util::TryStreamExt;
use indicatif::ProgressBar;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::compare::{Replayed, ReplayedLetter};
use super::record::{ANY_PARTITION, Extras, Record, extra_hash, flag, text_hash};
use super::spill::Spill;
use super::sums::Sums;
use crate::backfill::between;
use crate::config::Config;
use crate::error::Result;
use crate::event::place::Place;
use crate::event::privacy::Rule;
use crate::event::schema::{EVENT_FIELDS, EventRecord, EventValues, FieldKind, Origin};
use crate::event::time::time_text;
use crate::event::{Content, Event, Texts, intern};
use crate::lsn::{HistoryId, Lsn, Position};
use crate::quote::identifier;
use crate::sink::read_back::{Part, PartitionOf, Sample};
use crate::source::{rows, slot, sql};
use crate::state::brought::BroughtTo;
use crate::state::marks::EventMarks;
use crate::state::pre_existing::{PreExisting, Xid};
use crate::transform::content_cache::ContentCache;

const BEFORE_ALL: Position = Position { commit_lsn: Lsn::ZERO, ordinal: 0 };

/// A column of local times has an hour twice a year that it does not tell apart, and zones are that far from each other at most
/// when their clocks change.
const LOCAL_TIMES_ARE_OFF_BY: i64 = 3 * 3_600_000_000;

/// The condition that a row belongs to a part, or nearly: [`Part::holds`] says.
pub async fn condition(client: &Client, events: &Place, part: &Part) -> Result<String> {
    let stamp = |micros: i64| time_text(micros).and_then(|text| String::from_utf8(text.into()).ok());
    let since = part.since.and_then(|since| stamp(since.saturating_sub(LOCAL_TIMES_ARE_OFF_BY)));
    let until = part.until.and_then(|until| stamp(until.saturating_add(LOCAL_TIMES_ARE_OFF_BY)));
    let mut condition = "true".to_owned();
    condition.push_str(&between(client, events, [&since, &until]).await?);
    if let Some(Sample { below, .. }) = part.sample {
        let (id, modulus, factor) = (identifier(events.called("id")), Sample::MODULUS, Sample::FACTOR);
        let within = format!("{id} BETWEEN {} AND {}", i64::MIN, i64::MAX);
        let hash = format!("abs(({id} % {modulus})::bigint * {factor} % {modulus})");
        // a numeric that is no id comes too, and is told as what it is
        condition.push_str(&format!(" AND CASE WHEN {within} THEN {hash} < {below} ELSE true END"));
    }
    Ok(condition)
}

/// How many events the snapshot has that meet a condition.
pub async fn count(client: &Client, events: &Place, condition: &str) -> Result<u64> {
    let query = format!("SELECT count(*) FROM {}{}", events.sql(), rows::only(events, Some(condition)));
    let row = client.query_one(&query, &[]).await.map_err(sql::error)?;
    Ok(row.try_get::<_, i64>(0).map_err(sql::error)?.unsigned_abs())
}

/// What one of the partitions by time holds.
#[derive(Debug, Clone, Copy)]
pub struct Partition {
    /// The first time, microseconds since 1970.
    pub from: i64,
    /// The end of its times.
    pub to: i64,
    /// The lowest id in it: rows that it had before it was emptied had lower ones.
    pub first_id: i64,
}

/// The partitions by time that have rows; `None` where the table is not partitioned by time.
pub async fn partitions(client: &Client, events: &Place) -> Result<Option<Vec<Partition>>> {
    let statement = include_str!("../../../sql/partition_ranges.sql");
    let column = events.called("event_ts");
    let found =
        client.query(statement, &[&events.schema, &events.name, &column]).await.map_err(sql::error)?;
    if found.is_empty() {
        return Ok(None);
    }
    let zone = slot::local_times(client, events, column).await?;
    let instant = |micros: i64| zone.map_or(micros, |zone| zone.instant(micros));
    let id = identifier(events.called("id"));
    let mut partitions = Vec::new();
    for row in found {
        let (from, to): (Option<i64>, Option<i64>) = (sql::get(&row, 0)?, sql::get(&row, 1)?);
        // a numeric may be larger
        let within = format!("greatest({}, least({}, min({id})))::bigint", i64::MIN, i64::MAX);
        let first = format!(
            "SELECT CASE WHEN count(*) > 0 THEN {within} END FROM {} WHERE {}",
            events.sql(),
            sql::get::<String>(&row, 2)?
        );
        let first = client.query_one(&first, &[]).await.map_err(sql::error)?;
        if let Some(first_id) = sql::get(&first, 0)? {
            let (from, to) = (from.map_or(i64::MIN, instant), to.map_or(i64::MAX, instant));
            partitions.push(Partition { from, to, first_id });
        }
    }
    Ok(Some(partitions))
}

/// The labels of the enums among the events' columns: the place of each one's field, and the hashes of its labels.
pub async fn labels(client: &Client, events: &Place, extras: &Extras) -> Result<Vec<(usize, HashSet<u32>)>> {
    let query = "SELECT array_agg(enumlabel::text) FROM pg_enum WHERE enumtypid = $1";
    let mut labels = Vec::new();
    for column in slot::columns(client, events).await? {
        let field = events.position(&column.name).and_then(|at| events.table.columns.get(at));
        let at = field.and_then(|field| EVENT_FIELDS.iter().position(|one| one.name == field.name));
        let (at, rule) = match field {
            Some(field) => (at, events.privacy.rule(field.name)),
            None => (extras.field(&column.name), Rule::Keep),
        };
        let hash = |label: &String| match (field, rule) {
            (Some(_), Rule::Hash) => text_hash(&events.privacy.pseudonym(label)),
            (Some(_), _) => text_hash(label),
            (None, _) => extra_hash(&serde_json::Value::from(label.as_str()).to_string()),
        };
        let row = client.query_one(query, &[&column.type_oid]).await.map_err(sql::error)?;
        let found: Option<Vec<String>> = sql::get(&row, 0)?;
        labels.extend(at.zip(found).map(|(at, found)| (at, found.iter().map(hash).collect())));
    }
    Ok(labels)
}

/// What is known of events beside their rows.
pub struct Known<'a> {
    /// Their table.
    pub events: &'a Place,
    /// What is known of them by their ids.
    pub marks: &'a EventMarks,
    /// Which of them were there before walcast, where ids cannot tell.
    pub pre_existing: &'a PreExisting,
    /// Which of those were brought to which sinks.
    pub brought: &'a BroughtTo,
    /// Below all that the stream brings: the contents' versions of before are not known.
    pub start: Position,
    /// The newest versions of the contents.
    pub versions: &'a Versions,
    /// The extra columns that are compared.
    pub extras: &'a Extras,
    /// Where a sink puts them.
    pub partition_of: Option<&'a PartitionOf>,
    /// Which of them are compared.
    pub part: &'a Part,
    /// The same as [`condition`].
    pub condition: &'a str,
}

/// Reads all events of the snapshot that `client` is in.
pub async fn read(
    config: &Config,
    client: &Client,
    known: &Known<'_>,
    mut spill: Spill,
    sums: &mut [Sums],
    progress: &ProgressBar,
) -> Result<Spill> {
    let Extras(extras) = known.extras;
    let names: Vec<String> = extras.iter().map(|(name, _)| identifier(name)).collect();
    let before: Vec<&str> = std::iter::once("xmin").chain(names.iter().map(String::as_str)).collect();
    let query = rows::select(known.events, &before, Some(known.condition));
    let rows = client.query_raw(&query, std::iter::empty::<i32>()).await.map_err(sql::error)?;
    let mut rows = std::pin::pin!(rows);
    let mut texts = String::new();
    while let Some(row) = rows.try_next().await.map_err(sql::error)? {
        texts.clear();
        progress.inc(1);
        let Some((source, keeps_rules)) = rows::engagement(&row, before.len(), known.events)?.as_it_is()
        else {
            continue;
        };
        if !known.part.holds(source.id, source.event_ts) {
            continue;
        }
        let content = source.content_id.and_then(|id| known.versions.content(&id)).cloned();
        let rules = (true, &known.events.privacy);
        let mut event = Event::of(&source, (BEFORE_ALL, 0), content, rules, |text| intern(&mut texts, text));
        event.extra = rows::put_extra(&row, 1..before.len(), &mut texts).map_err(sql::error)?;
        let event = EventRecord { event: &event, texts: Texts(&texts) };
        let mut record = record(config, known, &event, source.text_bytes() + event.event.extra.bytes());
        let before = match known.marks.was_before(record.id) {
            Some(before) => before,
            None => known.pre_existing.saw(row.try_get::<_, Xid>(0).map_err(sql::error)?),
        };
        for (flag, holds) in [
            (flag::BEFORE, before),
            (flag::TOUCHED, known.marks.touched.contains(record.id)),
            (flag::RENAMED, known.marks.renamed.contains(record.id)),
        ] {
            record.flags |= if holds { flag } else { 0 };
        }
        if !keeps_rules {
            record.flags |= flag::REFUSED;
        }
        record.brought = known.brought.to(record.id, event.event.event_ts, before);
        spill.add(&record)?;
        if !record.has(flag::REFUSED) {
            let event_type = event.event.event_type.map(|span| event.texts.get(span));
            let counts = |sink| !before || record.brought & known.brought.bit(sink) != 0;
            let counting = sums.iter_mut().filter(|sums| counts(sums.sink()));
            counting.for_each(|sums| sums.add(event.event, event_type));
        }
    }
    Ok(spill)
}

/// What the source tells of an event: its row, and its content if it has seen the newest version. A row whose texts are
/// too large goes on without its payload.
fn record(config: &Config, known: &Known<'_>, event: &EventRecord<'_>, text_bytes: usize) -> Record {
    let content_id = event.event.content_id;
    let seen = content_id.map(|id| known.versions.position(&id));
    let mut values = EventValues::of(event);
    values.forget(|field| field.origin == Origin::Stream);
    if seen == Some(None) {
        values.forget(|field| field.origin == Origin::Content);
    }
    if text_bytes > config.pipeline.row_bytes_max {
        values.forget(|field| field.kind == FieldKind::Json);
    }
    let newest = seen.flatten().unwrap_or(BEFORE_ALL).max(known.start);
    let mut record = Record::new(event.event.id, newest, event.event.event_ts);
    record.take(&values);
    record.take_extra(&values, known.extras, |_| true);
    if let Some(id) = content_id {
        record.partition =
            known.partition_of.map_or(ANY_PARTITION, |partition_of| partition_of(&id.to_string()));
    }
    record
}

/// The newest version of every content row: what every event after it has seen.
pub struct Versions(HashMap<Uuid, Version>);

struct Version {
    position: Position,
    /// The row; `None` when it was deleted.
    content: Option<Arc<Content>>,
}

impl Versions {
    /// Reads them. Not from the snapshot: the sink that keeps them may lag behind it, and was waited for.
    pub async fn load(client: &Client, history_id: &HistoryId) -> Result<Versions> {
        let template = include_str!("../../../sql/newest_content_versions.sql");
        let query = rows::content_statement(template, 0);
        let rows = client.query_raw(&query, [history_id.uuid]).await.map_err(sql::error)?;
        let mut rows = std::pin::pin!(rows);
        let mut versions = HashMap::new();
        while let Some(row) = rows.try_next().await.map_err(sql::error)? {
            versions.insert(sql::get(&row, 3)?, version(&row)?);
        }
        Ok(Versions(versions))
    }

    /// The rows, for those who join events with them.
    pub fn cache(&self) -> ContentCache {
        self.0.values().filter_map(|version| version.content.as_deref().cloned()).collect()
    }

    /// The newest version's place; `None` for a content without any.
    pub fn position(&self, id: &Uuid) -> Option<Position> {
        self.0.get(id).map(|version| version.position)
    }

    /// The newest version's row.
    pub fn content(&self, id: &Uuid) -> Option<&Arc<Content>> {
        self.0.get(id)?.content.as_ref()
    }
}

/// A row of `newest_content_versions.sql`.
fn version(row: &Row) -> Result<Version> {
    let commit_lsn = Lsn(sql::get::<PgLsn>(row, 0)?.into());
    let position = Position { commit_lsn, ordinal: sql::get::<i64>(row, 1)?.unsigned_abs() };
    let content = match sql::get(row, 2)? {
        true => None,
        false => rows::kept_content(row, 3)?.map(Arc::new),
    };
    Ok(Version { position, content })
}

/// Events that a sink alone has refused, below a place.
const DEAD_LETTERS: &str = "FROM walcast.dead_letter WHERE sink = $1 AND history_id = $2 AND commit_lsn < $3 \
                            AND event_id IS NOT NULL AND state <> 'replayed'";

/// How many events a sink alone has refused.
pub async fn dead_letter_count(client: &Client, history_id: &HistoryId, sink: &str, end: Lsn) -> Result<i64> {
    let query = format!("SELECT count(*) {DEAD_LETTERS}");
    let end = PgLsn::from(end.0);
    let row = client.query_one(&query, &[&sink, &history_id.uuid, &end]).await.map_err(sql::error)?;
    sql::get(&row, 0)
}

/// The refusals of single sinks, added to what that sink holds.
pub async fn dead_letters(
    client: &Client,
    history_id: &HistoryId,
    sink: &str,
    end: Lsn,
    spill: &mut Spill,
) -> Result<()> {
    let query = format!("SELECT event_id, commit_lsn, ordinal {DEAD_LETTERS}");
    let end = PgLsn::from(end.0);
    for row in client.query(&query, &[&sink, &history_id.uuid, &end]).await.map_err(sql::error)? {
        let commit_lsn = Lsn(row.try_get::<_, PgLsn>(1).map_err(sql::error)?.into());
        let ordinal = row.try_get::<_, i64>(2).map_err(sql::error)?.unsigned_abs();
        let id = row.try_get(0).map_err(sql::error)?;
        let mut letter = Record::new(id, Position { commit_lsn, ordinal }, 0);
        letter.flags = flag::LETTER | flag::STORED;
        spill.add(&letter)?;
    }
    Ok(())
}

/// The events whose letters were sent again, with whose letters they were; those that were mended for it are no longer what
/// the source has.
pub async fn replayed(client: &Client, history_id: &HistoryId, marks: &mut EventMarks) -> Result<Replayed> {
    let query = "SELECT sink, event_id, state = 'replayed', repair IS NOT NULL, commit_lsn, ordinal FROM walcast.dead_letter \
                 WHERE history_id = $1 AND event_id IS NOT NULL AND state IN ('replayed', 'replaying')";
    let mut replayed = Replayed::new();
    for row in client.query(query, &[&history_id.uuid]).await.map_err(sql::error)? {
        let (whose, id): (String, i64) = (sql::get(&row, 0)?, sql::get(&row, 1)?);
        if sql::get(&row, 3)? {
            marks.touched.insert(id);
        }
        let commit_lsn = Lsn(sql::get::<PgLsn>(&row, 4)?.into());
        let first = Position { commit_lsn, ordinal: sql::get::<i64>(&row, 5)?.unsigned_abs() };
        replayed.insert((whose, id), ReplayedLetter { first, arrived: sql::get(&row, 2)? });
    }
    Ok(replayed)
}

/// A folder for the files that hold the records.
pub fn spill(folder: &Path, events: u64, extras: &Arc<Extras>) -> Result<Spill> {
    const EVENTS_AT_ONCE: u64 = 20_000;
    Spill::new(folder, (events / EVENTS_AT_ONCE + 1).min(2_000) as usize, extras)
}
