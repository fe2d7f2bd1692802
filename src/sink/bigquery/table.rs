//! The table as it must be, and how one that is there differs.

use std::fmt;

use gcp_bigquery_client::model::clustering::Clustering;
use gcp_bigquery_client::model::field_type::FieldType;
use gcp_bigquery_client::model::range_partitioning::RangePartitioning;
use gcp_bigquery_client::model::range_partitioning_range::RangePartitioningRange;
use gcp_bigquery_client::model::table::Table;
use gcp_bigquery_client::model::table_field_schema::TableFieldSchema;
use gcp_bigquery_client::model::table_schema::TableSchema;
use gcp_bigquery_client::model::time_partitioning::TimePartitioning;

use super::column::{BUCKETS, ColumnType, columns};
use super::config::{BigQueryConfig, Partitioning};
use crate::error::{Code, Error, Result};
use crate::event::schema::Field;
use crate::finding::Finding;

const CLUSTERING: [&str; 2] = ["content_type", "event_type"];

/// The table as walcast makes it.
pub fn wanted(config: &BigQueryConfig) -> Table {
    let fields = columns().map(field).collect();
    let mut table = Table::new(&config.project_id, &config.dataset, &config.table, TableSchema::new(fields));
    table.description =
        Some("Engagement events with their content, one row an event; written by walcast".into());
    table.clustering =
        Some(Clustering { fields: Some(CLUSTERING.iter().map(|name| (*name).to_owned()).collect()) });
    match config.partitioning {
        Partitioning::HalfHour => {
            table.range_partitioning = Some(RangePartitioning {
                field: Some("bucket_30m".into()),
                range: Some(RangePartitioningRange {
                    start: "0".into(),
                    end: BUCKETS.to_string(),
                    interval: "1".into(),
                }),
            });
        }
        Partitioning::Hour => {
            table.time_partitioning = Some(TimePartitioning::per_hour().field("event_ts"));
        }
        Partitioning::None => {}
    }
    table
}

/// Kind `Setup`, naming the first difference and its fix, when rows cannot be written to `table` as they are
/// meant. Columns of the user's own are welcome as long as they may be NULL.
pub fn verify(config: &BigQueryConfig, table: &Table) -> Result<()> {
    let fields = table.schema.fields().as_deref().unwrap_or_default();
    for column in columns() {
        let found = fields.iter().find(|field| field.name.eq_ignore_ascii_case(column.name));
        verify_column(config, column, found)?;
    }
    let ours = |field: &&TableFieldSchema| columns().any(|c| c.name.eq_ignore_ascii_case(&field.name));
    if let Some(field) = fields.iter().find(|field| !ours(field) && is_required(field)) {
        return Err(differs(
            config,
            &format!("column {} is REQUIRED, and walcast does not know it", field.name),
        )
        .hint(format!(
            "ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL",
            config.sql_table(),
            field.name
        )));
    }
    verify_partitioning(config, table)
}

/// When the table was made, milliseconds since 1970: one of the same name that is made anew has another time.
pub fn made_ms(table: &Table) -> Option<i64> {
    table.creation_time.as_deref()?.parse().ok()
}

/// What the operator is told of a table that is as it must be.
pub fn describe(table: &Table) -> String {
    format!("has walcast's columns, is partitioned by {}", Partitions::of(table))
}

/// A warning when the table will be full one day: BigQuery keeps 10,000 partitions at most.
pub fn lifetime(config: &BigQueryConfig, table: &Table) -> Option<Finding> {
    let time = table.time_partitioning.as_ref()?;
    time.expiration_ms.is_none().then(|| {
        Finding::warn(
            "bigquery.lifetime",
            config.address(),
            "takes no more rows after 416 days: 10,000 hours are all partitions that a table can have",
            format!("ALTER TABLE {} SET OPTIONS (partition_expiration_days = 400)", config.sql_table()),
        )
    })
}

fn verify_column(config: &BigQueryConfig, column: &Field, found: Option<&TableFieldSchema>) -> Result<()> {
    let (name, kind, table) = (column.name, ColumnType::of(column).sql(), config.sql_table());
    let Some(found) = found else {
        let error = differs(config, &format!("column {name} {kind} is missing"));
        return Err(match column.required() {
            true => error.hint(another_table(config)),
            false => error.hint(format!("ALTER TABLE {table} ADD COLUMN {name} {kind}")),
        });
    };
    if type_of(&found.r#type) != Some(ColumnType::of(column)) {
        let has = format!("{:?}", found.r#type).to_uppercase();
        return Err(
            differs(config, &format!("column {name} is {has}, not {kind}")).hint(another_table(config))
        );
    }
    match (is_required(found), column.required()) {
        (true, false) => Err(differs(config, &format!("column {name} is REQUIRED, not NULLABLE"))
            .hint(format!("ALTER TABLE {table} ALTER COLUMN {name} DROP NOT NULL"))),
        (false, true) => Err(differs(config, &format!("column {name} is {}, not REQUIRED", mode(found)))
            .hint(another_table(config))),
        _ if mode(found) == "REPEATED" => {
            Err(differs(config, &format!("column {name} is REPEATED")).hint(another_table(config)))
        }
        _ => Ok(()),
    }
}

fn verify_partitioning(config: &BigQueryConfig, table: &Table) -> Result<()> {
    let wanted = wanted(config);
    let (has, wants) = (Partitions::of(table), Partitions::of(&wanted));
    if has != wants {
        return Err(differs(config, &format!("it is partitioned by {has}, not by {wants}"))
            .hint(format!("set bigquery.partitioning to what it has, or {}", another_table(config))));
    }
    let clustering = table.clustering.as_ref().and_then(|clustering| clustering.fields.as_deref());
    if clustering.unwrap_or_default() != CLUSTERING {
        let has = clustering.map_or("nothing".to_owned(), |fields| fields.join(", "));
        return Err(differs(config, &format!("it is clustered by {has}, not by {}", CLUSTERING.join(", ")))
            .hint(format!(
                "bq update --clustering_fields={} {}:{}.{}",
                CLUSTERING.join(","),
                config.project_id,
                config.dataset,
                config.table
            )));
    }
    Ok(())
}

fn differs(config: &BigQueryConfig, how: &str) -> Error {
    Error::new(
        Code::BigQueryTableUnfit,
        format!("{} is another table than walcast writes: {how}", config.address()),
    )
}

fn another_table(config: &BigQueryConfig) -> String {
    format!(
        "name another table in bigquery.table, or put this one aside: ALTER TABLE {} RENAME TO {}_before",
        config.sql_table(),
        config.table
    )
}

/// How a table is cut into partitions, as far as walcast depends on it.
#[derive(PartialEq)]
enum Partitions<'a> {
    Range(&'a str, [&'a str; 3]),
    Time(&'a str, &'a str),
    None,
}

impl<'a> Partitions<'a> {
    fn of(table: &'a Table) -> Self {
        match (&table.range_partitioning, &table.time_partitioning) {
            (Some(RangePartitioning { field, range: Some(range) }), _) => {
                let range = [&range.start, &range.end, &range.interval].map(String::as_str);
                Partitions::Range(field.as_deref().unwrap_or_default(), range)
            }
            (_, Some(time)) => {
                Partitions::Time(&time.r#type, time.field.as_deref().unwrap_or("_PARTITIONTIME"))
            }
            (_, None) => Partitions::None,
        }
    }
}

impl fmt::Display for Partitions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Partitions::Range(field, [start, end, step]) => {
                write!(f, "{field} from {start} to {end} in steps of {step}")
            }
            Partitions::Time(every, field) => write!(f, "{every} of {field}"),
            Partitions::None => f.write_str("nothing"),
        }
    }
}

fn field(column: &Field) -> TableFieldSchema {
    let mut field = TableFieldSchema::new(
        column.name,
        match ColumnType::of(column) {
            ColumnType::Int64 => FieldType::Integer,
            ColumnType::Float64 => FieldType::Float,
            ColumnType::String => FieldType::String,
            ColumnType::Timestamp => FieldType::Timestamp,
            ColumnType::Json => FieldType::Json,
        },
    );
    field.mode = Some(if column.required() { "REQUIRED" } else { "NULLABLE" }.to_owned());
    field.description = Some(column.description.to_owned());
    field
}

/// The type that a name of BigQuery's (or its older synonym) stands for; `None` for one that no column has.
fn type_of(field: &FieldType) -> Option<ColumnType> {
    match field {
        FieldType::Integer | FieldType::Int64 => Some(ColumnType::Int64),
        FieldType::Float | FieldType::Float64 => Some(ColumnType::Float64),
        FieldType::String => Some(ColumnType::String),
        FieldType::Timestamp => Some(ColumnType::Timestamp),
        FieldType::Json => Some(ColumnType::Json),
        _ => None,
    }
}

fn mode(field: &TableFieldSchema) -> &str {
    field.mode.as_deref().unwrap_or("NULLABLE")
}

fn is_required(field: &TableFieldSchema) -> bool {
    mode(field) == "REQUIRED"
}

/// The statement that makes `engagement_between`: the rows of a time span, read from its partitions alone.
pub fn function_sql(config: &BigQueryConfig) -> String {
    let table = config.sql_table();
    // whole turns of the ring, more seconds than from the year 1 to 1970: never negative
    let bucket = |time: &str| format!("MOD(DIV((UNIX_SECONDS({time}) + 62208000000), 1800), {BUCKETS})");
    let (first, last) = (bucket("from_ts"), bucket("to_ts"));
    let within_ring = match config.partitioning {
        Partitioning::Hour | Partitioning::None => String::new(),
        Partitioning::HalfHour => format!(
            " AND (TIMESTAMP_DIFF(to_ts, from_ts, SECOND) >= 1800 * ({BUCKETS} - 1)
    OR ({first} <= {last} AND bucket_30m BETWEEN {first} AND {last})
    OR ({first} > {last} AND (bucket_30m >= {first} OR bucket_30m <= {last})))"
        ),
    };
    format!(
        "CREATE TABLE FUNCTION IF NOT EXISTS `{}.{}`.{FUNCTION}(from_ts TIMESTAMP, to_ts TIMESTAMP) AS
  SELECT * FROM {table} WHERE event_ts >= from_ts AND event_ts < to_ts{within_ring}",
        config.project_id, config.dataset
    )
}

/// The table function's name.
pub const FUNCTION: &str = "engagement_between";

#[cfg(test)]
mod tests {
    use super::*;

    fn config(partitioning: Partitioning) -> BigQueryConfig {
        BigQueryConfig { project_id: "acme".into(), partitioning, ..Default::default() }
    }

    fn change(table: &mut Table, name: &str, change: impl Fn(&mut TableFieldSchema)) {
        let mut fields = table.schema.fields().clone().unwrap();
        change(fields.iter_mut().find(|field| field.name == name).unwrap());
        table.schema = TableSchema::new(fields);
    }

    #[test]
    fn what_walcast_makes_passes_and_a_nullable_column_more_too() {
        for partitioning in [Partitioning::HalfHour, Partitioning::Hour] {
            let config = config(partitioning);
            let mut table = wanted(&config);
            assert!(verify(&config, &table).is_ok());
            let mut fields = table.schema.fields().clone().unwrap();
            fields.insert(0, TableFieldSchema::new("note", FieldType::Bytes));
            table.schema = TableSchema::new(fields);
            assert!(verify(&config, &table).is_ok());
        }
    }

    #[test]
    fn each_difference_is_named_with_its_fix() {
        let config = config(Partitioning::HalfHour);
        type Change = fn(&mut Table);
        let cases: [(Change, &str, &str); 8] = [
            (
                |t| change(t, "device", |f| f.name = "gadget".into()),
                "column device STRING is missing",
                "ADD COLUMN device STRING",
            ),
            (
                |t| change(t, "event_id", |f| f.name = "id".into()),
                "column event_id INT64 is missing",
                "bigquery.table",
            ),
            (
                |t| change(t, "event_ts", |f| f.r#type = FieldType::Datetime),
                "event_ts is DATETIME, not TIMESTAMP",
                "bigquery.table",
            ),
            (
                |t| change(t, "slug", |f| f.mode = Some("REQUIRED".into())),
                "slug is REQUIRED, not NULLABLE",
                "DROP NOT NULL",
            ),
            (
                |t| change(t, "slug", |f| f.mode = Some("REPEATED".into())),
                "slug is REPEATED",
                "bigquery.table",
            ),
            (|t| change(t, "epoch", |f| f.mode = None), "epoch is NULLABLE, not REQUIRED", "bigquery.table"),
            (
                |t| {
                    t.range_partitioning = None;
                    t.time_partitioning = Some(TimePartitioning::per_day().field("event_ts"));
                },
                "partitioned by DAY of event_ts, not by bucket_30m from 0 to 9600 in steps of 1",
                "bigquery.partitioning",
            ),
            (
                |t| t.clustering = None,
                "clustered by nothing, not by content_type, event_type",
                "clustering_fields",
            ),
        ];
        for (change, message, fix) in cases {
            let mut table = wanted(&config);
            change(&mut table);
            let error = verify(&config, &table).unwrap_err();
            assert_eq!(error.code(), Code::BigQueryTableUnfit);
            assert!(error.to_string().contains(message), "{error} / {message}");
            assert!(error.advice().contains(fix), "{} / {fix}", error.advice());
        }
    }

    #[test]
    fn a_required_column_that_walcast_does_not_know_is_refused() {
        let config = config(Partitioning::Hour);
        let mut table = wanted(&config);
        let mut fields = table.schema.fields().clone().unwrap();
        let mut tenant = TableFieldSchema::new("tenant", FieldType::String);
        tenant.mode = Some("REQUIRED".into());
        fields.push(tenant);
        table.schema = TableSchema::new(fields);
        let error = verify(&config, &table).unwrap_err();
        assert!(error.to_string().contains("tenant"), "{error}");
    }
}
