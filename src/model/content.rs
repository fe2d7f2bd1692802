//! The `content` table.

use uuid::Uuid;

use super::{Reads, RowError, TableColumns, Wanted, missing, writable};
use crate::error::Result;
use crate::pgoutput::{Relation, Tuple, Value};

/// A row of `content`. Every `None` is an SQL NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// `content.id`.
    pub id: Uuid,
    /// `content.slug`.
    pub slug: String,
    /// `content.title`.
    pub title: String,
    /// `content.content_type`: podcast, newsletter, video, or what the database allows besides.
    pub content_type: Option<String>,
    /// `content.length_seconds`.
    pub length_seconds: Option<i32>,
    /// `content.publish_ts`, microseconds since 1970; `None` when it lies outside the years 1 to 9999.
    pub publish_ts: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
enum Field {
    Id,
    Slug,
    Title,
    ContentType,
    LengthSeconds,
    PublishTs,
}

const FIELDS: [(&str, Field, Reads); 6] = [
    ("id", Field::Id, Reads::Uuid),
    ("slug", Field::Slug, Reads::Text),
    ("title", Field::Title, Reads::Text),
    ("content_type", Field::ContentType, Reads::Text),
    ("length_seconds", Field::LengthSeconds, Reads::Integer),
    ("publish_ts", Field::PublishTs, Reads::Time),
];

/// The columns that walcast needs.
pub fn columns() -> impl Iterator<Item = Wanted> {
    FIELDS.iter().map(Wanted::of)
}

/// Their names.
pub fn column_names() -> impl Iterator<Item = &'static str> {
    columns().map(|column| column.name)
}

/// The columns of `content`, whatever their order and whatever others there are.
pub struct ContentTable {
    columns: TableColumns<Field>,
}

impl ContentTable {
    pub(super) fn new(relation: Relation) -> Result<Self> {
        Ok(ContentTable { columns: TableColumns::new(relation, &FIELDS)? })
    }

    /// Reads a row. A large value that an update did not touch is not in the stream: it is taken from
    /// `before`, the row as it was.
    pub fn read(&self, tuple: &Tuple<'_>, before: Option<&Content>) -> Result<Content, RowError> {
        let (mut id, mut slug, mut title) = (None, None, None);
        let (mut content_type, mut length_seconds, mut publish_ts) = (None, None, None);
        for value in self.columns.values(tuple)? {
            let (field, column, value) = value?;
            match (field, value, before) {
                (Field::Slug, Value::Unchanged, Some(before)) => slug = Some(before.slug.clone()),
                (Field::Title, Value::Unchanged, Some(before)) => title = Some(before.title.clone()),
                (Field::ContentType, Value::Unchanged, Some(before)) => {
                    content_type.clone_from(&before.content_type)
                }
                (Field::Id, ..) => id = value.uuid(column)?,
                (Field::Slug, ..) => slug = value.text(column)?.map(str::to_owned),
                (Field::Title, ..) => title = value.text(column)?.map(str::to_owned),
                (Field::ContentType, ..) => content_type = value.text(column)?.map(str::to_owned),
                (Field::LengthSeconds, ..) => length_seconds = value.int4(column)?,
                (Field::PublishTs, ..) => publish_ts = value.timestamptz(column)?,
            }
        }
        Ok(Content {
            id: id.ok_or_else(|| missing("id"))?,
            slug: slug.ok_or_else(|| missing("slug"))?,
            title: title.ok_or_else(|| missing("title"))?,
            content_type,
            length_seconds,
            publish_ts: publish_ts.and_then(writable),
        })
    }

    /// The id alone: of an old row other columns may be missing.
    pub fn id(&self, tuple: &Tuple<'_>) -> Result<Uuid, RowError> {
        for value in self.columns.values(tuple)? {
            if let (Field::Id, column, value) = value? {
                return value.uuid(column)?.ok_or_else(|| missing("id"));
            }
        }
        Err(missing("id"))
    }

    /// A row that cannot be read, for the dead letter: error, table, row as JSON.
    pub fn dead_letter(&self, tuple: &Tuple<'_>, error: RowError) -> (RowError, String, String) {
        self.columns.dead_letter(tuple, error)
    }
}
