//! The events as the table has them.

use async_trait::async_trait;
use uuid::Uuid;

use super::auth::Credentials;
use super::column::ColumnType;
use super::config::BigQueryConfig;
use super::extra::ExtraTable;
use super::rest::Rest;
use crate::error::{Code, Error, Result};
use crate::event::extra::{Wanted, unfit_name};
use crate::event::schema::{EVENT_FIELDS, EventValues, Field, FieldKind, Value};
use crate::lsn::Lsn;
use crate::sink::read_back::{Found, Part, PartitionOf, ReadEvents, Sample, Take};

/// Reads the table, and of its other columns those that are asked for.
pub struct ReadTable(pub BigQueryConfig, pub Wanted);

#[async_trait]
impl ReadEvents for ReadTable {
    async fn read(self: Box<Self>, end: Lsn, part: &Part, mut take: Take) -> Result<()> {
        let ReadTable(config, wanted) = &*self;
        let credentials = match config.rest_url.starts_with("http://") {
            true => Credentials::None,
            false => Credentials::load(&config.credentials_file).await?,
        };
        let rest = Rest::new(config, credentials).await?;
        let extra = match wanted.any() {
            true => extra_columns(&rest, wanted).await?,
            false => ExtraTable::default(),
        };
        let expressions: Vec<String> = expressions().into_iter().chain(extra_expressions(&extra)).collect();
        let (columns, table) = (expressions.join(", "), config.sql_table());
        let query = format!("SELECT {columns} FROM {table} WHERE commit_lsn < {}{}", end.0, only(part));
        let another_shape =
            || Error::new(Code::Protocol, format!("{} gave a row in another shape", config.address()));
        rest.pages(&query, |page| {
            page.iter()
                .try_for_each(|row| take(Found::Event(&decode(row, &extra).ok_or_else(another_shape)?, None)))
        })
        .await
    }

    fn tells_letters(&self) -> bool {
        false
    }

    fn partition_of(&self) -> Option<Box<PartitionOf>> {
        None
    }
}

/// The condition that a row belongs to a part.
fn only(part: &Part) -> String {
    let since = part.since.map(|since| format!(" AND event_ts >= TIMESTAMP_MICROS({since})"));
    let until = part.until.map(|until| format!(" AND event_ts < TIMESTAMP_MICROS({until})"));
    let (modulus, factor) = (Sample::MODULUS, Sample::FACTOR);
    let sample = part.sample.map(|Sample { below, .. }| {
        format!(" AND ABS(MOD(MOD(event_id, {modulus}) * {factor}, {modulus})) < {below}")
    });
    [since, until, sample].into_iter().flatten().collect()
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

/// Of the table's other columns those that are asked for.
async fn extra_columns(rest: &Rest, wanted: &Wanted) -> Result<ExtraTable> {
    let table = rest.table().await?;
    let fields = table.as_ref().and_then(|table| table.schema.fields().as_deref()).unwrap_or_default();
    let names = fields.iter().map(|field| field.name.as_str());
    Ok(ExtraTable::of(fields, names.filter(|name| wanted.asks_for(name) && unfit_name(name).is_none())))
}

fn extra_expressions(extra: &ExtraTable) -> impl Iterator<Item = String> {
    extra.columns().iter().map(|column| column.column_type.expression(&column.name))
}

/// The event that a row is, each cell what an expression gave.
fn decode<'a>(row: &'a [Option<String>], extra: &'a ExtraTable) -> Option<EventValues<'a>> {
    let mut values = EventValues::read(|at, field| match row.get(at)? {
        None => Some(Value::Null),
        Some(cell) => decode_cell(field.kind, cell),
    })?;
    for (column, cell) in extra.columns().iter().zip(row.get(EVENT_FIELDS.len()..)?) {
        if let Some(cell) = cell {
            values.1.push((column.name.as_str().into(), column.column_type.read(cell)?.into()));
        }
    }
    Some(values)
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
