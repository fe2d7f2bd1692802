//! The `engagement_events` table.

use super::{RowError, TableColumns};
use crate::error::Result;
pub use crate::event::row::Engagement;
use crate::event::row::UncheckedEngagement;
use crate::event::schema::{ENGAGEMENT_EVENTS, EngagementColumn};
use crate::pgoutput::{Relation, Tuple};

/// The columns of `engagement_events`, whatever their order and whatever others there are.
pub struct EngagementTable {
    columns: TableColumns<EngagementColumn>,
}

impl EngagementTable {
    pub(super) fn new(relation: Relation) -> Result<Self> {
        Ok(EngagementTable {
            columns: TableColumns::new(relation, &ENGAGEMENT_EVENTS, EngagementColumn::ALL)?,
        })
    }

    /// Reads a row and holds it against the rules.
    pub fn read<'a>(&self, tuple: &Tuple<'a>) -> Result<Engagement<'a>, RowError> {
        let mut row = UncheckedEngagement::default();
        for value in self.columns.values(tuple)? {
            let (field, column, value) = value?;
            row.put(field, (column, value))?;
        }
        row.checked()
    }

    /// A row that [`Self::read`] refused, for the dead letter: error, table, row as JSON.
    pub fn dead_letter(&self, tuple: &Tuple<'_>, error: RowError) -> (RowError, String, String) {
        self.columns.dead_letter(tuple, error)
    }
}
