//! The events as BigQuery has them.

use indicatif::ProgressBar;
use uuid::Uuid;

use super::record::Record;
use super::spill::Spill;
use crate::error::{Code, Error, Result};
use crate::event::schema::{EVENT_FIELDS, EventValues, Field, FieldKind, Value};
use crate::lsn::Lsn;
use crate::sink::bigquery::column::ColumnType;
use crate::sink::bigquery::{BigQueryConfig, scan};

/// Reads the events below `end`.
pub async fn read(
    config: &BigQueryConfig,
    end: Lsn,
    mut spill: Spill,
    progress: &ProgressBar,
) -> Result<Spill> {
    scan::rows(config, &expressions(), end, |page| {
        for row in page {
            let record = decode(row).as_ref().and_then(Record::of).ok_or_else(|| {
                Error::new(Code::Protocol, format!("{} gave a row in another shape", config.address()))
            })?;
            spill.add(&record)?;
        }
        progress.inc(page.len() as u64);
        Ok(())
    })
    .await?;
    Ok(spill)
}

/// What is asked of each row, for every field. JSON's SQL NULL would come as the text `null`, which is JSON's own.
fn expressions() -> Vec<String> {
    let expression = |field: &Field| match ColumnType::of(field) {
        ColumnType::Timestamp => format!("UNIX_MICROS({})", field.name),
        ColumnType::Json => format!("TO_JSON_STRING({})", field.name),
        ColumnType::Int64 | ColumnType::Float64 | ColumnType::String => field.name.to_owned(),
    };
    EVENT_FIELDS.iter().map(expression).collect()
}

/// The event that a row is, each cell what an expression gave.
fn decode(row: &[Option<String>]) -> Option<EventValues<'_>> {
    EventValues::read(|at, field| match row.get(at)? {
        None => Some(Value::Null),
        Some(cell) => decode_cell(field.kind, cell),
    })
}

fn decode_cell(kind: FieldKind, cell: &str) -> Option<Value<'_>> {
    let number = || cell.parse::<i64>().ok();
    Some(match kind {
        FieldKind::Int => Value::Int(number()?),
        FieldKind::Count => Value::Count(number()?.cast_unsigned()),
        FieldKind::Lsn => Value::Lsn(Lsn(number()?.cast_unsigned())),
        FieldKind::Time => Value::Time(number()?),
        FieldKind::Float => Value::Float(cell.parse().ok()?),
        FieldKind::Text => Value::Text(cell.into()),
        FieldKind::Json => Value::Json(cell.into()),
        FieldKind::Id => Value::Id(Uuid::parse_str(cell).ok()?),
    })
}
