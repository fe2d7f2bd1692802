//! A row: its columns in the order of the Relation message.

use std::fmt;

use super::cursor::Cursor;
use super::{DecodeError, Value};

/// A row, as a slice of its message. Its shape was checked when the message was parsed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    bytes: &'a [u8],
    offset: usize,
    columns: u16,
}

impl<'a> Tuple<'a> {
    /// The values, in the order of the columns of the Relation message.
    #[inline]
    pub fn columns(&self) -> Columns<'a> {
        Columns { cursor: Cursor::new("row", self.offset, self.bytes), left: self.columns }
    }

    /// How many columns the row has.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// Whether the row has no columns, as a row of a table without any.
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Reads a row and proves its shape by walking over it.
    #[inline]
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let columns = cursor.u16("column count")?;
        let (offset, whole) = (cursor.offset(), cursor.rest());
        for _ in 0..columns {
            Value::read(cursor)?;
        }
        let bytes = whole.get(..cursor.offset() - offset).unwrap_or(whole);
        Ok(Tuple { bytes, offset, columns })
    }
}

/// The shape alone: rows are not for logs.
impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tuple({} columns, {} bytes)", self.columns, self.bytes.len())
    }
}

/// Iterates over the values of a row.
pub struct Columns<'a> {
    cursor: Cursor<'a>,
    left: u16,
}

impl<'a> Iterator for Columns<'a> {
    type Item = Result<Value<'a>, DecodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(Value::read(&mut self.cursor))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Columns<'_> {}
