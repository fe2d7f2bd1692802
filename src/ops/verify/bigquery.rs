//! The events as BigQuery has them.

use indicatif::ProgressBar;
use uuid::Uuid;

use super::record::{Field, Record};
use super::spill::Spill;
use crate::error::{Error, Kind, Result};
use crate::lsn::{Lsn, Position};
use crate::sink::bigquery::{BigQueryConfig, scan};

/// What is asked of each row. JSON's SQL NULL would come as the text `null`, which is JSON's own.
const COLUMNS: [&str; 19] = [
    "event_id",
    "content_id",
    "user_id",
    "event_type",
    "UNIX_MICROS(event_ts)",
    "duration_ms",
    "device",
    "TO_JSON_STRING(raw_payload)",
    "raw_payload_bytes",
    "slug",
    "title",
    "content_type",
    "length_seconds",
    "UNIX_MICROS(publish_ts)",
    "engagement_seconds",
    "engagement_pct",
    "UNIX_MICROS(commit_ts)",
    "commit_lsn",
    "ordinal",
];

/// Reads the events below `end`.
pub async fn read(
    config: &BigQueryConfig,
    end: Lsn,
    mut spill: Spill,
    progress: &ProgressBar,
) -> Result<Spill> {
    scan::rows(config, &COLUMNS, end, |page| {
        for row in page {
            let record = event(row).ok_or_else(|| {
                Error::new(Kind::Protocol, format!("{} gave a row in another shape", config.address()))
            })?;
            spill.add(&record)?;
        }
        progress.inc(page.len() as u64);
        Ok(())
    })
    .await?;
    Ok(spill)
}

fn event(row: &[Option<String>]) -> Option<Record> {
    let text = |at: usize| row.get(at).and_then(Option::as_deref);
    let number = |at: usize| text(at).map(str::parse::<i64>).transpose().ok();
    let float = |at: usize| text(at).map(str::parse::<f64>).transpose().ok();
    let id = |at: usize| text(at).map(Uuid::parse_str).transpose().ok();
    let (commit_lsn, ordinal) = (number(17)??.cast_unsigned(), number(18)??.cast_unsigned());
    let event_ts = number(4)??;
    let position = Position { commit_lsn: Lsn(commit_lsn), ordinal };
    let mut record = Record::new(number(0)??, position, event_ts);
    record.set(Field::ContentId, id(1)?);
    record.set(Field::UserId, id(2)?);
    record.set(Field::EventType, text(3));
    record.set(Field::EventTs, Some(event_ts));
    record.set(Field::DurationMs, number(5)?);
    record.set(Field::Device, text(6));
    record.set_json(Field::RawPayload, text(7));
    record.set(Field::RawPayloadBytes, number(8)?);
    record.set(Field::Slug, text(9));
    record.set(Field::Title, text(10));
    record.set(Field::ContentType, text(11));
    record.set(Field::LengthSeconds, number(12)?);
    record.set(Field::PublishTs, number(13)?);
    record.set_float(Field::EngagementSeconds, float(14)?);
    record.set_float(Field::EngagementPct, float(15)?);
    record.set(Field::CommitTs, number(16)?);
    record.set(Field::CommitLsn, Some(commit_lsn));
    record.set(Field::Ordinal, Some(ordinal));
    Some(record)
}
