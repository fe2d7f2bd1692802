//! The table: one list of columns, from which the schema, the wire's descriptor and the rows are made.

use gcp_bigquery_client::Client;
use gcp_bigquery_client::model::clustering::Clustering;
use gcp_bigquery_client::model::dataset::Dataset;
use gcp_bigquery_client::model::field_type::FieldType;
use gcp_bigquery_client::model::range_partitioning::RangePartitioning;
use gcp_bigquery_client::model::range_partitioning_range::RangePartitioningRange;
use gcp_bigquery_client::model::table::Table;
use gcp_bigquery_client::model::table_field_schema::TableFieldSchema;
use gcp_bigquery_client::model::table_schema::TableSchema;
use gcp_bigquery_client::model::time_partitioning::TimePartitioning;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto};

use super::rest;
use super::{BigQueryConfig, Partitioning};
use crate::error::{Error, Kind, Result};

/// Half hours in the ring: 200 days. BigQuery allows 10,000 partitions.
pub const BUCKETS: i64 = 9_600;
const BUCKET_SECONDS: i64 = 1_800;
const CLUSTERING: [&str; 2] = ["content_type", "event_type"];

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// INT64.
    Int,
    /// FLOAT64.
    Float,
    /// STRING.
    Text,
    /// TIMESTAMP; on the wire microseconds since 1970.
    Time,
    /// JSON; on the wire text.
    Json,
}

/// A column. Its place in [`COLUMNS`], from 1, is its number on the wire.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub holds: Holds,
    /// Whether it is never NULL.
    pub required: bool,
}

const fn required(name: &'static str, holds: Holds) -> Column {
    Column { name, holds, required: true }
}

const fn nullable(name: &'static str, holds: Holds) -> Column {
    Column { name, holds, required: false }
}

/// The columns, in the order of the wire.
pub const COLUMNS: [Column; 22] = [
    required("event_id", Holds::Int),
    nullable("content_id", Holds::Text),
    nullable("user_id", Holds::Text),
    nullable("event_type", Holds::Text),
    required("event_ts", Holds::Time),
    nullable("duration_ms", Holds::Int),
    nullable("device", Holds::Text),
    nullable("raw_payload", Holds::Json),
    nullable("raw_payload_bytes", Holds::Int),
    nullable("slug", Holds::Text),
    nullable("title", Holds::Text),
    nullable("content_type", Holds::Text),
    nullable("length_seconds", Holds::Int),
    nullable("publish_ts", Holds::Time),
    nullable("engagement_seconds", Holds::Float),
    nullable("engagement_pct", Holds::Float),
    required("commit_ts", Holds::Time),
    required("commit_lsn", Holds::Int),
    required("ordinal", Holds::Int),
    required("bucket_30m", Holds::Int),
    required("epoch", Holds::Text),
    required("ingested_at", Holds::Time),
];

/// The half hour of a time, on the ring of [`BUCKETS`]: what `MOD(DIV(unix_seconds, 1800), 9600)` gives from
/// 1970 on, and the same ring before.
pub fn bucket_30m(event_ts: i64) -> i64 {
    event_ts.div_euclid(BUCKET_SECONDS * 1_000_000).rem_euclid(BUCKETS)
}

/// The rows' form on the wire.
pub fn descriptor() -> DescriptorProto {
    let field = |(column, number): (&Column, i32)| FieldDescriptorProto {
        name: Some(column.name.to_owned()),
        number: Some(number),
        label: Some(if column.required { Label::Required } else { Label::Optional } as i32),
        r#type: Some(match column.holds {
            Holds::Int | Holds::Time => Type::Int64,
            Holds::Float => Type::Double,
            Holds::Text | Holds::Json => Type::String,
        } as i32),
        ..Default::default()
    };
    DescriptorProto {
        name: Some("Row".to_owned()),
        field: COLUMNS.iter().zip(1..).map(field).collect(),
        ..Default::default()
    }
}

/// Makes dataset and table when they are missing; kind `Setup` when the table is there in another shape.
pub async fn prepare(client: &Client, config: &BigQueryConfig) -> Result<()> {
    if rest::found(client.dataset().get(&config.project_id, &config.dataset).await)?.is_none() {
        let dataset = Dataset::new(&config.project_id, &config.dataset);
        rest::created(client.dataset().create(dataset).await.map(drop))?;
    }
    if find(client, config).await?.is_none() {
        rest::created(client.table().create(wanted(config)).await.map(drop))?;
    }
    let table = find(client, config).await?.ok_or_else(|| missing(config))?;
    check_shape(&table, config)
}

/// The table, if there is one.
pub async fn find(client: &Client, config: &BigQueryConfig) -> Result<Option<Table>> {
    let table = client.table().get(&config.project_id, &config.dataset, &config.table, None).await;
    rest::found(table)
}

fn missing(config: &BigQueryConfig) -> Error {
    Error::new(Kind::Unavailable, format!("BigQuery: table {} is not there yet", config.table_name()))
}

fn wanted(config: &BigQueryConfig) -> Table {
    let fields = COLUMNS
        .iter()
        .map(|column| TableFieldSchema {
            mode: Some(if column.required { "REQUIRED" } else { "NULLABLE" }.to_owned()),
            ..TableFieldSchema::new(column.name, field_type(column.holds))
        })
        .collect();
    let mut table = Table::new(&config.project_id, &config.dataset, &config.table, TableSchema::new(fields));
    table.clustering = Some(Clustering { fields: Some(CLUSTERING.map(str::to_owned).to_vec()) });
    match config.partitioning {
        Partitioning::HalfHour => {
            let range = RangePartitioningRange {
                start: "0".to_owned(),
                end: BUCKETS.to_string(),
                interval: "1".to_owned(),
            };
            table.range_partitioning =
                Some(RangePartitioning { field: Some("bucket_30m".to_owned()), range: Some(range) });
        }
        Partitioning::Hour => {
            table.time_partitioning = Some(TimePartitioning {
                r#type: "HOUR".to_owned(),
                field: Some("event_ts".to_owned()),
                ..Default::default()
            });
        }
    }
    table
}

/// Refuses a table that does not have our columns, partitions and clustering; columns besides ours may be
/// there as long as they may be NULL.
pub fn check_shape(table: &Table, config: &BigQueryConfig) -> Result<()> {
    let name = config.table_name();
    let refuse = |message: String| {
        Err(Error::new(Kind::Setup, format!("BigQuery: table {name} {message}")).hint(format!(
            "set bigquery.table to another name, or mend or drop {name}; walcast makes it when it is missing"
        )))
    };
    let found = table.schema.fields().clone().unwrap_or_default();
    for column in COLUMNS {
        let Some(field) = found.iter().find(|field| field.name == column.name) else {
            return refuse(format!("has no column {}", column.name));
        };
        if !same_type(&field.r#type, column.holds) {
            return refuse(format!(
                "has column {} of type {:?}, not {:?}",
                column.name,
                field.r#type,
                field_type(column.holds)
            ));
        }
    }
    let foreign = |field: &&TableFieldSchema| COLUMNS.iter().all(|column| column.name != field.name);
    if let Some(field) = found.iter().filter(foreign).find(|field| field.mode.as_deref() == Some("REQUIRED"))
    {
        return refuse(format!(
            "has a column {} that may not be NULL and that walcast does not fill",
            field.name
        ));
    }
    check_partitions(table, config).or_else(refuse)
}

fn check_partitions(table: &Table, config: &BigQueryConfig) -> Result<(), String> {
    let by_range = table.range_partitioning.as_ref().and_then(|range| range.field.as_deref());
    let by_time = table.time_partitioning.as_ref().map(|time| (time.r#type.as_str(), time.field.as_deref()));
    let right = match config.partitioning {
        Partitioning::HalfHour => by_range == Some("bucket_30m"),
        Partitioning::Hour => by_time == Some(("HOUR", Some("event_ts"))),
    };
    if !right {
        return Err(format!("is not partitioned as bigquery.partitioning = {} says", config.partitioning));
    }
    let clustering =
        table.clustering.as_ref().and_then(|clustering| clustering.fields.clone()).unwrap_or_default();
    if clustering != CLUSTERING {
        return Err(format!("is not clustered by {}", CLUSTERING.join(", ")));
    }
    Ok(())
}

fn field_type(holds: Holds) -> FieldType {
    match holds {
        Holds::Int => FieldType::Int64,
        Holds::Float => FieldType::Float64,
        Holds::Text => FieldType::String,
        Holds::Time => FieldType::Timestamp,
        Holds::Json => FieldType::Json,
    }
}

fn same_type(found: &FieldType, holds: Holds) -> bool {
    matches!(
        (found, holds),
        (FieldType::Int64 | FieldType::Integer, Holds::Int)
            | (FieldType::Float64 | FieldType::Float, Holds::Float)
            | (FieldType::String, Holds::Text)
            | (FieldType::Timestamp, Holds::Time)
            | (FieldType::Json, Holds::Json)
    )
}
