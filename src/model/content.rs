//! The `content` table.

use uuid::Uuid;

use super::{Refused, RowError, TableColumns, UnfitTable};
use crate::event::place::Place;
pub use crate::event::row::Content;
use crate::event::row::{UncheckedContent, missing};
use crate::event::schema::ContentColumn;
use crate::pgoutput::{Relation, Tuple, Value};

/// The columns of `content`, whatever their order and whatever others there are.
pub struct ContentTable {
    columns: TableColumns<ContentColumn>,
}

impl ContentTable {
    pub(super) fn new(relation: Relation, place: &Place) -> Result<Self, UnfitTable> {
        Ok(ContentTable { columns: TableColumns::new(relation, place, ContentColumn::ALL)? })
    }

    /// Reads a row. A large value that an update did not touch is not in the stream: it is taken from
    /// `before`, the row as it was.
    pub fn read(&self, tuple: &Tuple<'_>, before: Option<&Content>) -> Result<Content, RowError> {
        let mut row = UncheckedContent::default();
        for value in self.columns.values(tuple)? {
            let (field, column, value) = value?;
            let kept = before.is_some_and(|before| value == Value::Unchanged && row.keep(field, before));
            if !kept {
                row.put(field, (column, value, &self.columns.zone), &self.columns.privacy)?;
            }
        }
        row.checked(&self.columns.privacy)
    }

    /// The id alone: of an old row other columns may be missing.
    pub fn id(&self, tuple: &Tuple<'_>) -> Result<Uuid, RowError> {
        for value in self.columns.values(tuple)? {
            if let (ContentColumn::Id, column, value) = value? {
                return value.uuid(column)?.ok_or_else(|| missing("id"));
            }
        }
        Err(missing("id"))
    }

    /// A row that cannot be read, for the dead letter: error, table, row as JSON.
    pub fn dead_letter(&self, tuple: &Tuple<'_>, error: RowError) -> Refused {
        self.columns.dead_letter(tuple, error)
    }
}
