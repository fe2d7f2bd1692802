//! What a row of the stream means: which of its columns is which of ours.

pub mod content;
pub mod engagement;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use uuid::Uuid;

use crate::error::{Code, Error, Result};
use crate::event::row::Cell;
pub use crate::event::row::RowError;
use crate::event::schema::{CONTENT, ENGAGEMENT_EVENTS, SourceColumn, SourceTable};
use crate::pgoutput::{Column, DecodeError, Relation, Relations, Timestamp, Tuple, Value};
use crate::quote::identifier;
use content::ContentTable;
use engagement::EngagementTable;

/// What a relation of the stream is to us.
pub enum Table {
    /// `content`.
    Content(ContentTable),
    /// `engagement_events`.
    Engagement(EngagementTable),
    /// Any other table that the publication happens to have.
    Other,
}

impl Table {
    /// Its name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Table::Content(_) => CONTENT.name,
            Table::Engagement(_) => ENGAGEMENT_EVENTS.name,
            Table::Other => "other",
        }
    }
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
            name if name == CONTENT.name => Table::Content(ContentTable::new(relation.clone())?),
            name if name == ENGAGEMENT_EVENTS.name => {
                Table::Engagement(EngagementTable::new(relation.clone())?)
            }
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

impl SourceTable {
    /// Where it is, as SQL, when our tables live in `schema`.
    pub fn place(&self, schema: &str) -> String {
        format!("{}.{}", identifier(schema), identifier(self.name))
    }
}

impl SourceColumn {
    /// Why a column of this type cannot be read; `type_oid` is the base type where it is a domain.
    pub fn misfit(&self, type_oid: u32) -> Option<String> {
        let column = Column { name: self.name.to_owned(), type_oid, type_modifier: -1, key: false };
        self.fits(&column).err().map(|error| error.to_string())
    }

    /// The statement that adds it to the table at `place`.
    pub fn add_to(&self, place: &str) -> String {
        format!("ALTER TABLE {place} ADD COLUMN {} {};", identifier(self.name), self.sql_type())
    }

    /// The statement that gives it a type that can be read.
    pub fn retype_in(&self, place: &str) -> String {
        let (column, sql_type) = (identifier(self.name), self.sql_type());
        format!("ALTER TABLE {place} ALTER COLUMN {column} TYPE {sql_type} USING {column}::{sql_type};")
    }
}

/// One of our tables: which of its columns is which of our fields.
pub struct TableColumns<F> {
    relation: Relation,
    fields: Vec<Option<F>>,
}

impl<F: Copy> TableColumns<F> {
    /// `fields` are the table's columns, in the order of its list.
    fn new(relation: Relation, table: &SourceTable, fields: &[F]) -> Result<Self> {
        let wanted = |column: &Column| table.columns.iter().position(|wanted| wanted.name == column.name);
        let has = |wanted: &&SourceColumn| relation.columns.iter().any(|column| column.name == wanted.name);
        let name = format!("{}.{}", relation.namespace, relation.name);
        let place = table.place(&relation.namespace);
        let missing: Vec<&SourceColumn> = table.columns.iter().filter(|wanted| !has(wanted)).collect();
        if !missing.is_empty() {
            let names: Vec<&str> = missing.iter().map(|column| column.name).collect();
            let statements: Vec<String> = missing.iter().map(|column| column.add_to(&place)).collect();
            let message = format!("table {name} as published lacks the column(s) {}", names.join(", "));
            return Err(Error::new(Code::SourceTableUnfit, message).hint(format!(
                "{} If the table has them, the publication leaves them out, and `walcast check` says how to mend that",
                statements.join(" ")
            )));
        }
        let places: Vec<Option<usize>> = relation.columns.iter().map(wanted).collect();
        for (column, at) in relation.columns.iter().zip(&places) {
            let Some(wanted) = at.and_then(|at| table.columns.get(at)) else { continue };
            wanted.fits(column).map_err(|error| {
                Error::new(Code::SourceTableUnfit, format!("table {name} has a column of another type"))
                    .because(error)
                    .hint(wanted.retype_in(&place))
            })?;
        }
        let fields = places.into_iter().map(|at| fields.get(at?).copied()).collect();
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

/// A value of the stream, with the column that it stands in.
impl<'t> Cell<'t> for (&Column, Value<'t>) {
    type Error = DecodeError;

    #[inline(always)]
    fn int8(self) -> Result<Option<i64>, DecodeError> {
        self.1.int8(self.0)
    }

    #[inline(always)]
    fn int4(self) -> Result<Option<i32>, DecodeError> {
        self.1.int4(self.0)
    }

    #[inline(always)]
    fn uuid(self) -> Result<Option<Uuid>, DecodeError> {
        self.1.uuid(self.0)
    }

    #[inline(always)]
    fn text(self) -> Result<Option<&'t str>, DecodeError> {
        self.1.text(self.0)
    }

    #[inline(always)]
    fn time(self) -> Result<Option<Timestamp>, DecodeError> {
        self.1.timestamptz(self.0)
    }

    #[inline(always)]
    fn json(self) -> Result<Option<&'t str>, DecodeError> {
        self.1.json(self.0)
    }
}
