//! The rows of the source tables, and of the content versions that walcast keeps, by SQL. Statements have their columns
//! from the lists in [`crate::event::schema`]. Numbers and times come as they are, and are read as those of the stream are:
//! what is a value there is the same here, and what is none is none.

use std::error::Error;
use std::ops::Range;

use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use crate::error::Result;
use crate::event::extra::{self, Extra};
use crate::event::place::{Place, Places};
use crate::event::privacy::Privacy;
use crate::event::row::{Cell, Engagement, RowError, UncheckedContent, UncheckedEngagement};
use crate::event::schema::{CONTENT, ContentColumn, EngagementColumn, Reads, SourceColumn};
use crate::event::zone::Zone;
use crate::event::{Content, Span};
use crate::pgoutput::{Column, DecodeError, Timestamp, Value};
use crate::quote::identifier;

/// A column read as [`Reads::Int4`] may be a bigint, or a numeric.
const INT4: &str = "BETWEEN -2147483648 AND 2147483647";

/// A statement that reads all rows of a table that are published and meet a condition: first what `before` names, then
/// the table's columns as they are read.
pub fn select(place: &Place, before: &[&str], condition: Option<&str>) -> String {
    let columns = place.columns().map(|(column, called)| column.read_as(called));
    let columns: Vec<String> = before.iter().map(|name| (*name).to_owned()).chain(columns).collect();
    format!("SELECT {} FROM {}{}", columns.join(", "), place.sql(), only(place, condition))
}

/// The rows that are published, and meet a condition.
pub fn only(place: &Place, condition: Option<&str>) -> String {
    let conditions: Vec<String> =
        place.row_filter.as_deref().into_iter().chain(condition).map(|one| format!("({one})")).collect();
    match conditions.is_empty() {
        true => String::new(),
        false => format!(" WHERE {}", conditions.join(" AND ")),
    }
}

/// Reads nothing of the source tables, and fails where reading them would: a column that is not there, a right that our
/// role lacks, a policy that would hide rows from it.
pub async fn probe(client: &Client, places: &Places) -> Result<()> {
    for place in places.all() {
        let nothing = format!("{} LIMIT 0", select(place, &[], None));
        client.execute(&nothing, &[]).await.map_err(super::sql::error)?;
    }
    Ok(())
}

impl SourceColumn {
    /// Its values, for the reader of this type. All are NULL of a column that is not there.
    fn read_as(&self, called: Option<&str>) -> String {
        let Some(name) = called.map(identifier) else { return format!("NULL::{}", self.stored_type()) };
        match self.reads {
            Reads::Int8 | Reads::Int4 | Reads::Time => name,
            Reads::Uuid => format!("{name}::uuid"),
            Reads::Text | Reads::Json => format!("{name}::text"),
        }
    }

    /// Its name in `walcast.content_version`.
    fn stored_name(&self) -> String {
        match self.reads {
            Reads::Time => identifier(&format!("{}_us", self.name)),
            _ => identifier(self.name),
        }
    }

    /// Its type there.
    fn stored_type(&self) -> &'static str {
        match self.reads {
            Reads::Int8 | Reads::Time => "bigint",
            Reads::Int4 => "integer",
            Reads::Uuid => "uuid",
            Reads::Text | Reads::Json => "text",
        }
    }
}

/// A row of `engagement_events` that has not been held against the rules yet. Where the stream goes by the first value that it
/// refuses, the others are read all the same: they tell which row it is.
#[derive(Default)]
pub struct EngagementRow<'a> {
    row: UncheckedEngagement<'a>,
    refused: Option<RowError>,
    unread: Vec<&'static str>,
}

impl<'a> EngagementRow<'a> {
    /// As [`UncheckedEngagement::checked`].
    pub fn checked(self) -> Result<Engagement<'a>, RowError> {
        self.refused.map_or_else(|| self.row.checked(), Err)
    }

    /// As much of the row as there is, the columns that could not be read or must have a value, and why it is refused, if it is.
    pub fn judged(self) -> (Engagement<'a>, Vec<&'static str>, Option<RowError>) {
        let EngagementRow { row, refused, mut unread } = self;
        let error = refused.or_else(|| row.clone().checked().err());
        let (row, missing) = row.in_part();
        unread.extend(missing);
        unread.sort_unstable();
        unread.dedup();
        (row, unread, error)
    }

    /// As [`UncheckedEngagement::as_it_is`].
    pub fn as_it_is(self) -> Option<(Engagement<'a>, bool)> {
        let (row, keeps_rules) = self.row.as_it_is()?;
        Some((row, keeps_rules && self.refused.is_none()))
    }
}

/// A row of `engagement_events` as [`select`] gives it of the table at `place`, from its first column on.
pub fn engagement<'a>(row: &'a Row, first: usize, place: &'a Place) -> Result<EngagementRow<'a>> {
    let mut read = EngagementRow::default();
    for (column, at) in EngagementColumn::ALL.iter().zip(first..) {
        match read.row.put(*column, SqlCell { row, at, zone: place.zone.as_ref() }) {
            Ok(()) => {}
            Err(Unread::Value(error)) => {
                read.refused.get_or_insert(error.into());
                read.unread.push(column.name());
            }
            Err(Unread::Row(error)) => return Err(super::sql::error(error)),
        }
    }
    Ok(read)
}

/// Writes the extra columns that stand in a row, as the stream's are written, behind what stands in the arena.
pub fn put_extra(
    row: &Row,
    columns: Range<usize>,
    arena: &mut String,
) -> Result<Extra, tokio_postgres::Error> {
    let start = arena.len();
    for at in columns {
        let Some(column) = row.columns().get(at) else { continue };
        let value = row.try_get::<_, Option<Raw<'_>>>(at)?;
        let (type_oid, value) =
            value.map_or((0, Value::Null), |Raw { type_oid, bytes }| (type_oid, Value::Binary(bytes)));
        extra::put_member(column.name(), type_oid, value, arena);
    }
    let plain = Span { start: start as u32, len: (arena.len() - start) as u32 };
    Ok(Extra { plain, json: Span::default() })
}

/// A row of `content` as [`select`] gives it of the table at `place`, from its first column on. `None` for a row that the
/// stream would refuse: walcast knows no such content.
pub fn content(row: &Row, first: usize, place: &Place) -> Result<Option<Content>> {
    let read = read_content(row, first, place.zone.as_ref(), &place.privacy)?;
    Ok(read.and_then(|read| read.checked(&place.privacy).ok()))
}

/// A row of a statement with [`content_statement`], from its first column on.
pub fn kept_content(row: &Row, first: usize) -> Result<Option<Content>> {
    // what it has was judged, and made a pseudonym, when it came
    let read = read_content(row, first, None, &Privacy::default())?;
    Ok(read.and_then(UncheckedContent::kept))
}

fn read_content(
    row: &Row,
    first: usize,
    zone: Option<&Zone>,
    privacy: &Privacy,
) -> Result<Option<UncheckedContent>> {
    let mut read = UncheckedContent::default();
    for (column, at) in ContentColumn::ALL.iter().zip(first..) {
        match read.put(*column, SqlCell { row, at, zone }, privacy) {
            Ok(()) => {}
            Err(Unread::Value(_)) => return Ok(None),
            Err(Unread::Row(error)) => return Err(super::sql::error(error)),
        }
    }
    Ok(Some(read))
}

/// Holds for the rows of `content` that the stream would not refuse: they keep the rules of
/// [`UncheckedContent::checked`], and their numbers can be read.
pub fn content_is_readable(content: &Place) -> String {
    let condition = |(source, called): (&SourceColumn, &str)| {
        let name = identifier(called);
        match source.reads {
            _ if source.required => Some(format!("{name} IS NOT NULL")),
            Reads::Int4 => Some(format!("coalesce({name} {INT4} AND {name} % 1 = 0, true)")),
            _ => None,
        }
    };
    content.present().filter_map(condition).collect::<Vec<_>>().join(" AND ")
}

/// The columns of `walcast.content_version` that a content row is kept in, without its id.
fn kept() -> impl Iterator<Item = (ContentColumn, &'static SourceColumn)> {
    ContentColumn::ALL.iter().copied().zip(CONTENT.columns).filter(|(column, _)| *column != ContentColumn::Id)
}

/// A statement on `walcast.content_version` with the columns of a content row in its place: `{stored}` are their names
/// there, `{arrays}` arrays of their values as parameters from number `first` on.
pub fn content_statement(template: &str, first: usize) -> String {
    let list = |columns: Vec<String>| columns.join(", ");
    template.replace("{stored}", &list(kept().map(|(_, column)| column.stored_name()).collect())).replace(
        "{arrays}",
        &list(
            kept()
                .zip(first..)
                .map(|((_, column), at)| format!("${at}::{}[]", column.stored_type()))
                .collect(),
        ),
    )
}

/// The values of `{arrays}`: of each column, those of all rows; NULL for a row that is gone.
pub fn content_arrays<'a>(
    rows: impl Iterator<Item = Option<&'a Content>> + Clone,
) -> Vec<Box<dyn ToSql + Send + Sync + 'a>> {
    fn of<'a, T: ToSql + Send + Sync + 'a>(
        rows: impl Iterator<Item = Option<&'a Content>>,
        read: impl Fn(&'a Content) -> Option<T>,
    ) -> Option<Box<dyn ToSql + Send + Sync + 'a>> {
        Some(Box::new(rows.map(|row| row.and_then(&read)).collect::<Vec<_>>()))
    }
    let array = |(column, _)| {
        let rows = rows.clone();
        match column {
            ContentColumn::Id => None,
            ContentColumn::Slug => of(rows, |row| row.slug.as_deref()),
            ContentColumn::Title => of(rows, |row| row.title.as_deref()),
            ContentColumn::ContentType => of(rows, |row| row.content_type.as_deref()),
            ContentColumn::LengthSeconds => of(rows, |row| row.length_seconds),
            ContentColumn::PublishTs => of(rows, |row| row.publish_ts),
        }
    };
    kept().filter_map(array).collect()
}

/// A value of a statement's answer, and the zone of local times.
struct SqlCell<'a> {
    row: &'a Row,
    at: usize,
    zone: Option<&'a Zone>,
}

/// Why a value was not read.
enum Unread {
    /// The stream would refuse it.
    Value(DecodeError),
    /// It is not what the statement was to give.
    Row(tokio_postgres::Error),
}

/// A value in its binary form, which is that of the stream.
struct Raw<'a> {
    type_oid: u32,
    bytes: &'a [u8],
}

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(of: &Type, bytes: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Raw { type_oid: of.oid(), bytes })
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl<'a> SqlCell<'a> {
    fn get<T: FromSql<'a>>(&self) -> Result<Option<T>, Unread> {
        self.row.try_get(self.at).map_err(Unread::Row)
    }

    /// Reads it as one of the stream.
    fn read<T>(
        &self,
        read: impl FnOnce(Value<'a>, &Column) -> Result<Option<T>, DecodeError>,
    ) -> Result<Option<T>, Unread> {
        let Some(Raw { type_oid, bytes }) = self.get()? else { return Ok(None) };
        let column = Column { name: String::new(), type_oid, type_modifier: -1, key: false };
        read(Value::Binary(bytes), &column).map_err(Unread::Value)
    }
}

impl<'a> Cell<'a> for SqlCell<'a> {
    type Error = Unread;

    fn int8(self) -> Result<Option<i64>, Self::Error> {
        self.read(Value::int8)
    }

    fn int4(self) -> Result<Option<i32>, Self::Error> {
        self.read(Value::int4)
    }

    fn uuid(self) -> Result<Option<Uuid>, Self::Error> {
        self.get()
    }

    fn text(self) -> Result<Option<&'a str>, Self::Error> {
        self.get()
    }

    /// Kept contents have microseconds since 1970.
    fn time(self) -> Result<Option<Timestamp>, Self::Error> {
        match self.row.columns().get(self.at).map(|column| column.type_()) {
            Some(&Type::INT8) => Ok(self.get()?.map(Timestamp::At)),
            _ => self
                .read(|value, column| value.time(column, self.zone.map(|zone| |local| zone.instant(local)))),
        }
    }

    fn json(self) -> Result<Option<&'a str>, Self::Error> {
        self.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_every_rule_that_the_stream_keeps() {
        insta::assert_snapshot!(
            content_is_readable(&Places::usual("public").content),
            @r#""id" IS NOT NULL AND "slug" IS NOT NULL AND "title" IS NOT NULL AND coalesce("length_seconds" BETWEEN -2147483648 AND 2147483647 AND "length_seconds" % 1 = 0, true)"#
        );
    }

    #[test]
    fn statements_have_their_columns_from_the_lists() {
        let events = Places::usual("my \"shop\"").events;
        let statement = select(&events, &["xmin"], None);
        assert!(statement.starts_with(r#"SELECT xmin, "id", "content_id"::uuid, "#), "{statement}");
        assert!(statement.ends_with(r#" FROM "my ""shop"""."engagement_events""#), "{statement}");
        let some = ["id", "event_ts"].map(str::to_owned);
        let published = select(&events.published(Some(&some), Some("id > 7")), &[], Some("true"));
        assert!(
            published.contains(r#"NULL::uuid, NULL::uuid, NULL::text, "event_ts", NULL::bigint"#),
            "{published}"
        );
        assert!(published.ends_with(r#""engagement_events" WHERE (id > 7) AND (true)"#), "{published}");
        insta::assert_snapshot!(
            content_statement("{stored} / {arrays}", 6),
            @r#""slug", "title", "content_type", "length_seconds", "publish_ts_us" / $6::text[], $7::text[], $8::text[], $9::integer[], $10::bigint[]"#
        );
    }
}
