//! What a row means: the only place that knows the tables' column names.

pub mod content;
pub mod engagement;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::error::{Error, Kind, Result};
use crate::pgoutput::{Column, DecodeError, Relation, Relations, Timestamp, Tuple, Value};
use content::ContentTable;
use engagement::EngagementTable;

/// Why one row cannot go on as what it should be. It becomes a dead letter; the stream goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    /// A short code for metrics.
    pub reason: &'static str,
    /// Column, shape found, shape wanted; never the value.
    pub message: String,
}

impl From<DecodeError> for RowError {
    fn from(error: DecodeError) -> Self {
        RowError { reason: "undecodable", message: error.to_string() }
    }
}

/// What a relation of the stream is to us.
pub enum Table {
    /// `content`.
    Content(ContentTable),
    /// `engagement_events`.
    Engagement(EngagementTable),
    /// Any other table that the publication happens to have.
    Other,
}

/// The tables of one replication session.
pub struct Tables {
    schema: String,
    relations: Relations,
    tables: Vec<(u32, Table)>,
}

impl Tables {
    /// No tables yet; ours live in `schema`.
    pub fn new(schema: &str) -> Self {
        Tables { schema: schema.to_owned(), relations: Relations::default(), tables: Vec::new() }
    }

    /// Takes a Relation message. Kind `Setup` when one of our tables lacks a column or has another type.
    pub fn describe(&mut self, relation: Relation) -> Result<()> {
        let id = relation.id;
        self.relations.insert(relation);
        let Ok(relation) = self.relations.get(id) else { return Ok(()) };
        let table = match relation.name.as_str() {
            _ if relation.namespace != self.schema => Table::Other,
            "content" => Table::Content(ContentTable::new(relation.clone())?),
            "engagement_events" => Table::Engagement(EngagementTable::new(relation.clone())?),
            _ => Table::Other,
        };
        self.tables.retain(|(known, _)| *known != id);
        self.tables.push((id, table));
        Ok(())
    }

    /// Takes a Type message.
    pub fn describe_type(&mut self, id: u32, namespace: &str, name: &str) {
        self.relations.insert_type(id, namespace, name);
    }

    /// What a row change's relation is.
    pub fn get(&self, relation_id: u32) -> Result<&Table, DecodeError> {
        let found = self.tables.iter().find(|(id, _)| *id == relation_id);
        found.map(|(_, table)| table).ok_or(DecodeError::UnknownRelation { relation_id })
    }
}

/// What a column's values must be readable as.
#[derive(Debug, Clone, Copy)]
enum Reads {
    Integer,
    Uuid,
    Text,
    Time,
    Json,
}

/// A column that walcast needs, for those who look at the table before its changes come.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Its name.
    pub name: &'static str,
    reads: Reads,
}

impl Wanted {
    fn of<F>((name, _, reads): &(&'static str, F, Reads)) -> Self {
        Wanted { name, reads: *reads }
    }

    /// The type that it best has, in SQL.
    pub fn sql_type(&self) -> &'static str {
        match self.reads {
            Reads::Integer => "integer",
            Reads::Uuid => "uuid",
            Reads::Text => "text",
            Reads::Time => "timestamptz",
            Reads::Json => "jsonb",
        }
    }

    /// Why a column of this type cannot be read; `type_oid` is the base type where it is a domain.
    pub fn misfit(&self, type_oid: u32) -> Option<String> {
        let column = Column { name: self.name.to_owned(), type_oid, type_modifier: -1, key: false };
        type_fits(&column, self.reads).err().map(|error| error.to_string())
    }
}

/// One of our tables: which of its columns is which of our fields.
pub struct TableColumns<F> {
    relation: Relation,
    fields: Vec<Option<F>>,
}

impl<F: Copy> TableColumns<F> {
    fn new(relation: Relation, wanted: &[(&str, F, Reads)]) -> Result<Self> {
        let field = |column: &Column| wanted.iter().find(|(name, ..)| *name == column.name);
        let has = |name: &str| relation.columns.iter().any(|column| column.name == name);
        let missing: Vec<&str> = wanted.iter().map(|(name, ..)| *name).filter(|name| !has(name)).collect();
        let table = format!("{}.{}", relation.namespace, relation.name);
        if !missing.is_empty() {
            return Err(Error::new(
                Kind::Setup,
                format!("table {table} as published lacks the column(s) {}", missing.join(", ")),
            )
            .hint("add the columns, or widen the publication's column list; the README has the two tables"));
        }
        for column in &relation.columns {
            if let Some((.., reads)) = field(column) {
                type_fits(column, *reads).map_err(|error| {
                    Error::new(Kind::Setup, format!("table {table} has a column of another type"))
                        .because(error)
                        .hint("change the column's type; the README has the two tables")
                })?;
            }
        }
        let fields =
            relation.columns.iter().map(|column| field(column).map(|(_, field, _)| *field)).collect();
        Ok(TableColumns { relation, fields })
    }

    /// The values of our fields.
    fn values<'r, 't>(
        &'r self,
        tuple: &Tuple<'t>,
    ) -> Result<
        impl Iterator<Item = Result<(F, &'r Column, Value<'t>), DecodeError>> + use<'r, 't, F>,
        DecodeError,
    > {
        let values = self.relation.values(tuple)?;
        Ok(values.zip(&self.fields).filter_map(|(value, field)| match (value, field) {
            (Ok((column, value)), Some(field)) => Some(Ok((*field, column, value))),
            (Ok(_), None) => None,
            (Err(error), _) => Some(Err(error)),
        }))
    }

    /// A row that cannot go on: the error, the table's name, and the row as a JSON object of column name to
    /// text, or to `{"$base64": …}` for values that came in binary form.
    pub fn dead_letter(&self, tuple: &Tuple<'_>, error: RowError) -> (RowError, String, String) {
        let row: serde_json::Map<String, serde_json::Value> = self
            .relation
            .columns
            .iter()
            .zip(tuple.columns())
            .map(|(column, value)| (column.name.clone(), value.map_or(serde_json::Value::Null, value_json)))
            .collect();
        let table = format!("{}.{}", self.relation.namespace, self.relation.name);
        (error, table, serde_json::Value::Object(row).to_string())
    }
}

fn type_fits(column: &Column, reads: Reads) -> Result<(), DecodeError> {
    match reads {
        Reads::Integer => Value::Null.int8(column).map(drop),
        Reads::Uuid => Value::Null.uuid(column).map(drop),
        Reads::Text => Value::Null.text(column).map(drop),
        Reads::Time => Value::Null.timestamptz(column).map(drop),
        Reads::Json => Value::Null.json(column).map(drop),
    }
}

fn value_json(value: Value<'_>) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Unchanged => serde_json::json!({ "$unchanged": true }),
        Value::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => serde_json::json!({ "$base64": BASE64.encode(bytes) }),
        },
        Value::Binary(bytes) => serde_json::json!({ "$base64": BASE64.encode(bytes) }),
    }
}

/// 0001-01-01 and 10000-01-01 in microseconds since 1970: what RFC 3339 and BigQuery can write.
const TIMES: std::ops::Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;

/// Microseconds since 1970 of a time that every sink can write; `None` for infinities and far years.
fn writable(time: Timestamp) -> Option<i64> {
    match time {
        Timestamp::At(micros) if TIMES.contains(&micros) => Some(micros),
        _ => None,
    }
}

fn missing(column: &str) -> RowError {
    RowError { reason: "null", message: format!("column {column}: NULL where a value is wanted") }
}
