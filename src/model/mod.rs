//! What a row of the stream means: which of its columns is which of ours.

pub mod content;
pub mod engagement;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use uuid::Uuid;

use crate::error::{Code, Error};
use crate::event::Span;
use crate::event::extra::{self, Extra, ExtraColumn, Shape};
use crate::event::place::{Place, Places};
use crate::event::privacy::{Privacy, Rule};
use crate::event::row::Cell;
pub use crate::event::row::RowError;
use crate::event::schema::{CONTENT, ENGAGEMENT_EVENTS, Reads, SourceColumn};
use crate::event::zone::Zone;
use crate::lsn::Lsn;
use crate::pgoutput::{Column, DecodeError, Relation, Relations, Timestamp, Tuple, Value};
use crate::quote::identifier;
use content::ContentTable;
use engagement::EngagementTable;

/// The variable of the environment that names the zone of local times.
const ZONE_VARIABLE: &str = "POSTGRES_TIMESTAMP_ZONE";

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
    places: Places,
    relations: Relations,
    tables: Vec<(u32, Table)>,
}

impl Tables {
    /// No tables yet; ours are at `places`.
    pub fn new(places: &Places) -> Self {
        Tables { places: places.clone(), relations: Relations::default(), tables: Vec::new() }
    }

    /// Takes a Relation message.
    pub fn describe(&mut self, relation: Relation) -> Result<(), UnfitTable> {
        let id = relation.id;
        self.relations.insert(relation);
        let Ok(relation) = self.relations.get(id) else { return Ok(()) };
        let Places { content, events } = &self.places;
        let is = |place: &Place| place.is(&relation.namespace, &relation.name);
        let table = match (is(content), is(events)) {
            (true, _) => Table::Content(ContentTable::new(relation.clone(), content)?),
            (_, true) => Table::Engagement(EngagementTable::new(relation.clone(), events)?),
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

impl SourceColumn {
    /// Why a column of the table at `place` cannot be read as this, and what it takes to mend it. It has the base type where
    /// it is of a domain.
    pub fn misfit(&self, place: &Place, column: &Column) -> Option<String> {
        let error = self.fits(column, place.zone.as_ref()).err()?;
        let rewrite = "to change that, PostgreSQL writes the table anew";
        Some(match (self.reads, self.wants_zone(column)) {
            (Reads::Time, true) => format!(
                "{error} ({rewrite}; in place of 'UTC' stands the zone whose clock it shows. Where {ZONE_VARIABLE} names that \
                 zone, it can stay as it is)"
            ),
            (Reads::Time, false) => {
                format!("{error} ({rewrite}; in place of 'UTC' stands the zone whose clock it shows)")
            }
            _ => format!("{error} ({rewrite})"),
        })
    }

    /// The statement that adds it to the table at `place`, called so.
    pub fn add_to(&self, place: &Place, called: &str) -> String {
        format!("ALTER TABLE {} ADD COLUMN {} {};", place.sql(), identifier(called), self.sql_type())
    }

    /// The statement that gives it a type that can be read. A time without a zone is one only where a zone is named: the
    /// session's own would be a guess.
    pub fn retype_in(&self, place: &Place, called: &str) -> String {
        let (column, sql_type) = (identifier(called), self.sql_type());
        let value = match self.reads {
            Reads::Time => format!("{column}::timestamp AT TIME ZONE 'UTC'"),
            _ => format!("{column}::{sql_type}"),
        };
        format!("ALTER TABLE {} ALTER COLUMN {column} TYPE {sql_type} USING {value};", place.sql())
    }
}

/// A table whose rows, as they stand in the WAL, are not what they should be. What it is like now is another matter: a
/// slot reads what was written with the columns of then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfitTable {
    what: String,
    advice: String,
}

impl UnfitTable {
    #[cold]
    fn lacks(relation: &Relation, place: &Place, missing: &[(&SourceColumn, &str)]) -> Self {
        let there: Vec<&str> = relation.columns.iter().map(|column| &*column.name).collect();
        let names: Vec<&str> = missing.iter().map(|(_, called)| *called).collect();
        let what = format!(
            "rows of {}.{} without the column {} (with {})",
            relation.namespace,
            relation.name,
            names.join(", "),
            there.join(", ")
        );
        let setting = |value: String| format!("{}='{value}'", place.names_variable());
        let renamed = |(column, called): &(&SourceColumn, &str)| {
            let mut others = relation
                .columns
                .iter()
                .filter(|other| !place.knows(&other.name) && column.fits(other, place.zone.as_ref()).is_ok());
            let other = others.next().filter(|_| others.next().is_none());
            let other = other.map_or("<its name then>", |other| &*other.name);
            format!("\"{}\": \"{called},{other}\"", column.name)
        };
        let absent = |(column, called): &(&SourceColumn, &str)| format!("\"{}\": \"{called},\"", column.name);
        let renamed = setting(format!("{{{}}}", missing.iter().map(renamed).collect::<Vec<_>>().join(", ")));
        let mut advice =
            format!("they are kept in the slot. If a column was renamed, say both names: export {renamed}");
        if missing.iter().all(|(column, _)| !column.required) {
            let absent =
                setting(format!("{{{}}}", missing.iter().map(absent).collect::<Vec<_>>().join(", ")));
            advice += &format!("; if it was dropped, let it be null where it is not: export {absent}");
        }
        UnfitTable { what, advice }
    }

    #[cold]
    fn misfits(relation: &Relation, place: &Place, column: &SourceColumn, error: &DecodeError) -> Self {
        let what = format!("rows of {}.{} of another type: {error}", relation.namespace, relation.name);
        let resync = "bring the sinks level with PostgreSQL, and make a new slot: docs/operate/resync.md";
        let wants_zone = relation
            .columns
            .iter()
            .any(|one| place.position(&one.name).is_some() && place.zone.is_none() && column.wants_zone(one));
        let advice = match column.required {
            _ if wants_zone => format!(
                "they are kept in the slot. Name the zone whose clock they show: export {ZONE_VARIABLE}=Europe/Warsaw; or \
                 {resync}"
            ),
            true => resync.to_owned(),
            false => format!(
                "they are kept in the slot. Let the column be null until they are through: export {}='{{\"{}\": \"\"}}'; or \
                 {resync}",
                place.names_variable(),
                column.name
            ),
        };
        UnfitTable { what, advice }
    }

    /// What is told of it, of a transaction that committed there.
    pub fn told(self, xid: u32, commit_lsn: Lsn) -> Error {
        let UnfitTable { what, advice } = self;
        let message = format!("transaction {xid}, which committed at {commit_lsn}, brings {what}");
        Error::new(Code::TableWasUnfit, message).hint(advice)
    }
}

/// One of our tables: which of its columns is which of our fields.
pub struct TableColumns<F> {
    relation: Relation,
    fields: Vec<Option<F>>,
    /// Our names of the columns, theirs where they are not ours.
    names: Vec<String>,
    /// The columns that are passed on.
    extra: Arc<[ExtraColumn]>,
    /// Of each column its place among them.
    extra_at: Vec<Option<usize>>,
    /// Whose clock local times show.
    zone: Option<Zone>,
    /// What of people goes out.
    privacy: Privacy,
    /// Of each column what it is read as where a pseudonym goes out for it.
    hashed: Vec<Option<Reads>>,
}

impl<F: Copy> TableColumns<F> {
    /// `fields` are the table's columns, in the order of its list.
    fn new(relation: Relation, place: &Place, fields: &[F]) -> Result<Self, UnfitTable> {
        let has = |called: &str| relation.columns.iter().any(|column| column.name == called);
        let missing = place.missing(has);
        if !missing.is_empty() {
            return Err(UnfitTable::lacks(&relation, place, &missing));
        }
        let place = place.now(has);
        let places: Vec<Option<usize>> =
            relation.columns.iter().map(|column| place.position(&column.name)).collect();
        let wanted = |at: &Option<usize>| at.and_then(|at| place.table.columns.get(at));
        for (column, at) in relation.columns.iter().zip(&places) {
            let Some(wanted) = wanted(at) else { continue };
            let fits = wanted.fits(column, place.zone.as_ref());
            fits.map_err(|error| UnfitTable::misfits(&relation, &place, wanted, &error))?;
        }
        let ours = |(column, at): (&Column, &Option<usize>)| {
            wanted(at).map_or_else(|| column.name.clone(), |wanted| wanted.name.to_owned())
        };
        let names = relation.columns.iter().zip(&places).map(ours).collect();
        let fields = places.iter().map(|at| fields.get((*at)?).copied()).collect();
        let (extra, left_out) = place.extra.split(place.unknown(relation.columns.iter().zip(0..)));
        for (column, why) in left_out {
            tracing::warn!(column, "an extra column is not passed on: {why}");
        }
        let mut extra_at = vec![None; if extra.is_empty() { 0 } else { relation.columns.len() }];
        for (index, (_, at)) in extra.iter().enumerate() {
            if let Some(place) = extra_at.get_mut(*at) {
                *place = Some(index);
            }
        }
        let extra = extra.into_iter().map(|(column, _): (_, usize)| column).collect();
        let hashed = |at: &Option<usize>| {
            let column = wanted(at).filter(|column| place.privacy.rule(column.name) == Rule::Hash)?;
            Some(column.reads)
        };
        let hashed = places.iter().map(hashed).collect();
        let Place { zone, privacy, .. } = place;
        Ok(TableColumns { relation, fields, names, zone, privacy, hashed, extra, extra_at })
    }

    /// Writes a row's extra columns behind what stands in the arena.
    fn put_extra(&self, tuple: &Tuple<'_>, arena: &mut String) -> Extra {
        let mut put = |json: bool| {
            let start = arena.len();
            let places = self.relation.columns.iter().zip(&self.extra_at);
            for ((column, at), value) in places.zip(tuple.columns()) {
                let extra = at.and_then(|at| self.extra.get(at));
                if let (Some(extra), Ok(value)) = (extra, value)
                    && (extra.shape == Shape::Json) == json
                {
                    extra::put_member(&extra.name, column.type_oid, value, arena);
                }
            }
            Span { start: start as u32, len: (arena.len() - start) as u32 }
        };
        Extra { plain: put(false), json: put(true) }
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

    /// A row that cannot go on: the error, the table's name, and the row as a JSON object of column name (ours, where
    /// the column is) to text, also for numerics, or to `{"$base64": …}` for values that came in binary form. It has no
    /// columns but those that are passed on.
    pub fn dead_letter(&self, tuple: &Tuple<'_>, error: RowError) -> Refused {
        let columns =
            self.relation.columns.iter().zip(tuple.columns()).zip(self.names.iter().zip(&self.hashed));
        let passed_on = |at: usize| {
            let is_there = |place: Option<bool>| place.unwrap_or_default();
            is_there(self.fields.get(at).map(Option::is_some))
                || is_there(self.extra_at.get(at).map(Option::is_some))
        };
        let columns = columns.enumerate().filter(|(at, _)| passed_on(*at));
        let row: serde_json::Map<String, serde_json::Value> = columns
            .map(|(_, ((column, value), (name, hashed)))| {
                let value = match (value, hashed) {
                    (Ok(value), None) => value_json(column, value),
                    (Ok(value), Some(reads)) => self.pseudonym(column, value, *reads),
                    (Err(_), _) => serde_json::Value::Null,
                };
                (name.clone(), value)
            })
            .collect();
        let table = format!("{}.{}", self.relation.namespace, self.relation.name);
        Refused { error, table, row_json: serde_json::Value::Object(row).to_string() }
    }

    /// What goes out for a value. One that cannot be read has no pseudonym, and is not told.
    fn pseudonym(&self, column: &Column, value: Value<'_>, reads: Reads) -> serde_json::Value {
        let pseudonym = match reads {
            Reads::Uuid => value.uuid(column).map(|id| id.map(|id| self.privacy.uuid(id).to_string())),
            Reads::Json => value.json(column).map(|json| json.map(|json| self.privacy.json(json))),
            _ => value.text(column).map(|text| text.map(|text| self.privacy.pseudonym(text))),
        };
        pseudonym.map_or_else(|_| serde_json::json!({ "$withheld": true }), serde_json::Value::from)
    }
}

/// A row that cannot go on.
pub struct Refused {
    /// Why.
    pub error: RowError,
    /// The table, `schema.name`.
    pub table: String,
    /// The row as JSON.
    pub row_json: String,
}

/// A numeric stands there as its text: its bytes could be taken for those of an integer.
fn value_json(column: &Column, value: Value<'_>) -> serde_json::Value {
    if let Ok(Some(number)) = value.numeric(column) {
        return number.to_string().into();
    }
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

/// A value of the stream, with the column that it stands in, and the zone of local times.
impl<'t> Cell<'t> for (&Column, Value<'t>, &Option<Zone>) {
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
        self.1.time(self.0, self.2.as_ref().map(|zone| |local| zone.instant(local)))
    }

    #[inline(always)]
    fn json(self) -> Result<Option<&'t str>, DecodeError> {
        self.1.json(self.0)
    }
}
