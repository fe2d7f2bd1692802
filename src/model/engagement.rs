//! The `engagement_events` table.

use std::sync::Arc;

use super::{Refused, RowError, TableColumns, UnfitTable};
use crate::event::place::Place;
pub use crate::event::row::Engagement;
use crate::event::row::{UncheckedEngagement, missing};
use crate::event::schema::EngagementColumn;
use crate::event::{Extra, ExtraColumn};
use crate::pgoutput::{Relation, Tuple};

/// The columns of `engagement_events`, whatever their order and whatever others there are.
pub struct EngagementTable {
    columns: TableColumns<EngagementColumn>,
}

impl EngagementTable {
    pub(super) fn new(relation: Relation, place: &Place) -> Result<Self, UnfitTable> {
        Ok(EngagementTable { columns: TableColumns::new(relation, place, EngagementColumn::ALL)? })
    }

    /// Reads a row and holds it against the rules.
    pub fn read<'a>(&self, tuple: &Tuple<'a>) -> Result<Engagement<'a>, RowError> {
        let mut row = UncheckedEngagement::default();
        for value in self.columns.values(tuple)? {
            let (field, column, value) = value?;
            row.put(field, (column, value, &self.columns.zone))?;
        }
        row.checked()
    }

    /// The columns that are passed on as they are.
    pub fn extra_columns(&self) -> &Arc<[ExtraColumn]> {
        &self.columns.extra
    }

    /// Writes a row's extra columns behind what stands in the arena.
    pub fn put_extra(&self, tuple: &Tuple<'_>, arena: &mut String) -> Extra {
        self.columns.put_extra(tuple, arena)
    }

    /// The id alone: of an old row other columns may be missing.
    pub fn id(&self, tuple: &Tuple<'_>) -> Result<i64, RowError> {
        for value in self.columns.values(tuple)? {
            if let (EngagementColumn::Id, column, value) = value? {
                return value.int8(column)?.ok_or_else(|| missing("id"));
            }
        }
        Err(missing("id"))
    }

    /// A row that [`Self::read`] refused, for the dead letter: error, table, row as JSON.
    pub fn dead_letter(&self, tuple: &Tuple<'_>, error: RowError) -> Refused {
        self.columns.dead_letter(tuple, error)
    }

    /// As much of such a row as can be read, and the columns that cannot be.
    pub fn read_partly<'a>(&self, tuple: &Tuple<'a>) -> (Engagement<'a>, Vec<&'static str>) {
        let mut row = UncheckedEngagement::default();
        let mut unread = Vec::new();
        for (field, column, value) in self.columns.values(tuple).into_iter().flatten().flatten() {
            if row.put(field, (column, value, &self.columns.zone)).is_err() {
                unread.push(field.name());
            }
        }
        let (row, missing) = row.in_part();
        unread.extend(missing);
        unread.sort_unstable();
        unread.dedup();
        (row, unread)
    }
}
