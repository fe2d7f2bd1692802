//! A column's value, and its readers for the types that walcast's tables use.
//!
//! A reader wants the column's type to be one of its own, and the value in its binary form, which the server was asked
//! for. Only types that have none come as text: of those that are read here, types made by users. `None` is NULL. An
//! unchanged TOAST value is an error: match on [`Value::Unchanged`] first wherever one may come.

use std::fmt;

use uuid::Uuid;

use super::cursor::Cursor;
use super::numeric::Numeric;
use super::timestamp::Timestamp;
use super::{Column, DecodeError, Found};

/// A value as it stands in a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL NULL; also a column that is left out of an old row's key.
    Null,
    /// A large value (TOAST) that an update did not touch and the stream leaves out. Not a NULL.
    Unchanged,
    /// The text form, in UTF-8, of a type that has no binary form.
    Text(&'a [u8]),
    /// The type's binary form.
    Binary(&'a [u8]),
}

impl<'a> Value<'a> {
    /// Reads an `int2`, `int4` or `int8` column, or a `numeric` one whose value has to be such a number.
    #[inline(always)]
    pub fn int8(self, column: &Column) -> Result<Option<i64>, DecodeError> {
        match is_integer(column.type_oid) {
            true => self.read_as(column, INTEGER, |_| true, integer),
            false => self.whole(column, Ok),
        }
    }

    /// As [`Self::int8`], of a value that has to fit into 32 bits.
    #[inline(always)]
    pub fn int4(self, column: &Column) -> Result<Option<i32>, DecodeError> {
        match is_integer(column.type_oid) {
            true => self.read_as(column, INTEGER, |_| true, |bytes| narrow(integer(bytes)?)),
            false => self.whole(column, narrow),
        }
    }

    /// Reads a `numeric` column.
    pub fn numeric(self, column: &Column) -> Result<Option<Numeric<'a>>, DecodeError> {
        self.read_as(column, "numeric", |oid| oid == oid::NUMERIC, Numeric::parse)
    }

    /// Reads a `uuid` column.
    pub fn uuid(self, column: &Column) -> Result<Option<Uuid>, DecodeError> {
        self.read_as(column, "uuid", |oid| oid == oid::UUID, uuid)
    }

    /// Reads a `text`, `varchar`, `char(n)` (without the blanks at its end) or `name` column, or one of a type that is not built in: an enum
    /// gives its label.
    pub fn text(self, column: &Column) -> Result<Option<&'a str>, DecodeError> {
        match column.type_oid {
            oid::FIRST_USER.. => match self {
                Value::Text(bytes) => utf8(bytes).map(Some).map_err(|found| wrong_value(column, TEXT, found)),
                _ => self.read_as(column, TEXT, |_| true, label),
            },
            // the blanks at the end of char(n) say nothing: PostgreSQL compares it without them, and casts them away
            oid::BPCHAR => {
                let text = self.read_as(column, TEXT, |_| true, utf8)?;
                Ok(text.map(|text| text.trim_end_matches(' ')))
            }
            _ => self.read_as(column, TEXT, is_text, utf8),
        }
    }

    /// Reads a `timestamptz` column.
    pub fn timestamptz(self, column: &Column) -> Result<Option<Timestamp>, DecodeError> {
        self.time(column, None::<fn(i64) -> i64>)
    }

    /// Reads a `timestamptz` column; where `instant` tells which instant a local time is, a `timestamp` one too.
    #[inline(always)]
    pub fn time(
        self,
        column: &Column,
        instant: Option<impl FnOnce(i64) -> i64>,
    ) -> Result<Option<Timestamp>, DecodeError> {
        match column.type_oid {
            oid::TIMESTAMPTZ => self.read_as(column, TIME, |_| true, timestamptz),
            _ => self.local_time(column, instant),
        }
    }

    /// Reads a `json` or `jsonb` column as JSON text.
    pub fn json(self, column: &Column) -> Result<Option<&'a str>, DecodeError> {
        match column.type_oid {
            oid::JSONB => self.read_as(column, JSON, |_| true, jsonb),
            _ => self.read_as(column, JSON, |oid| oid == oid::JSON, utf8),
        }
    }

    /// Integers of PostgreSQL's own are on the way of every event; this stays out of it.
    #[cold]
    #[inline(never)]
    fn whole<T>(
        self,
        column: &Column,
        read: impl FnOnce(i64) -> Result<T, Found>,
    ) -> Result<Option<T>, DecodeError> {
        let whole = |bytes| read(Numeric::parse(bytes)?.whole()?);
        self.read_as(column, INTEGER, |oid| oid == oid::NUMERIC, whole)
    }

    #[cold]
    #[inline(never)]
    fn local_time(
        self,
        column: &Column,
        instant: Option<impl FnOnce(i64) -> i64>,
    ) -> Result<Option<Timestamp>, DecodeError> {
        let fits = |oid| oid == oid::TIMESTAMP && instant.is_some();
        let local = self.read_as(column, TIME, fits, timestamptz)?;
        Ok(match (local, instant) {
            (Some(Timestamp::At(micros)), Some(instant)) => Some(Timestamp::At(instant(micros))),
            (infinite, _) => infinite,
        })
    }

    #[inline]
    fn read_as<T>(
        self,
        column: &Column,
        wanted: &'static str,
        fits: impl FnOnce(u32) -> bool,
        read: impl FnOnce(&'a [u8]) -> Result<T, Found>,
    ) -> Result<Option<T>, DecodeError> {
        let read = match self {
            _ if !fits(column.type_oid) => Err(Found::Type(column.type_oid)),
            Value::Null => return Ok(None),
            Value::Unchanged => Err(Found::Unchanged),
            Value::Text(bytes) => Err(Found::Text(bytes.len())),
            Value::Binary(bytes) => read(bytes),
        };
        read.map(Some).map_err(|found| wrong_value(column, wanted, found))
    }

    #[inline]
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        match cursor.u8("value kind")? {
            b't' => cursor.counted("text value").map(Value::Text),
            b'b' => cursor.counted("binary value").map(Value::Binary),
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            other => Err(cursor.wrong_byte("value kind", other)),
        }
    }
}

/// The shape alone: values are not for logs.
impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("Null"),
            Value::Unchanged => f.write_str("Unchanged"),
            Value::Text(bytes) => write!(f, "Text({} bytes)", bytes.len()),
            Value::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

/// OIDs of the built-in types that are read here or by others (`pg_type.dat`; they never change).
pub mod oid {
    /// Names and OIDs, of each type and of its array.
    macro_rules! types {
        ($($constant:ident $name:literal $oid:literal $array:literal;)+) => {
            $(
                #[doc = concat!("`", $name, "`.")]
                pub const $constant: u32 = $oid;
            )+

            /// The OID of the type that `pg_catalog` holds under this name; an array's is its element's, with `_` before it.
            pub fn by_name(name: &str) -> Option<u32> {
                match name {
                    $($name => Some($oid), concat!("_", $name) => Some($array),)+
                    _ => None,
                }
            }

            /// Whether it is the array of one of these types.
            pub fn is_array(oid: u32) -> bool {
                matches!(oid, $($array)|+)
            }
        };
    }

    types! {
        BOOL "bool" 16 1000;
        BYTEA "bytea" 17 1001;
        NAME "name" 19 1003;
        INT8 "int8" 20 1016;
        INT2 "int2" 21 1005;
        INT4 "int4" 23 1007;
        TEXT "text" 25 1009;
        JSON "json" 114 199;
        CIDR "cidr" 650 651;
        FLOAT4 "float4" 700 1021;
        FLOAT8 "float8" 701 1022;
        INET "inet" 869 1041;
        BPCHAR "bpchar" 1042 1014;
        VARCHAR "varchar" 1043 1015;
        DATE "date" 1082 1182;
        TIME "time" 1083 1183;
        TIMESTAMP "timestamp" 1114 1115;
        TIMESTAMPTZ "timestamptz" 1184 1185;
        INTERVAL "interval" 1186 1187;
        NUMERIC "numeric" 1700 1231;
        UUID "uuid" 2950 2951;
        JSONB "jsonb" 3802 3807;
    }

    /// The first OID that a type made by users can have (`FirstNormalObjectId`).
    pub const FIRST_USER: u32 = 16384;
}

const INTEGER: &str = "int2, int4, int8 or numeric";
const TIME: &str = "timestamptz";
const JSON: &str = "json or jsonb";
const TEXT: &str = "text, varchar or an enum";

fn is_integer(oid: u32) -> bool {
    matches!(oid, oid::INT2 | oid::INT4 | oid::INT8)
}

fn is_text(oid: u32) -> bool {
    matches!(oid, oid::TEXT | oid::VARCHAR | oid::NAME)
}

fn integer(bytes: &[u8]) -> Result<i64, Found> {
    match *bytes {
        [a, b] => Ok(i16::from_be_bytes([a, b]).into()),
        [a, b, c, d] => Ok(i32::from_be_bytes([a, b, c, d]).into()),
        _ => bytes.try_into().map(i64::from_be_bytes).map_err(|_| Found::Binary(bytes.len())),
    }
}

fn narrow(value: i64) -> Result<i32, Found> {
    value.try_into().map_err(|_| Found::OutOfRange)
}

fn uuid(bytes: &[u8]) -> Result<Uuid, Found> {
    Uuid::from_slice(bytes).map_err(|_| Found::Binary(bytes.len()))
}

fn timestamptz(bytes: &[u8]) -> Result<Timestamp, Found> {
    let micros = bytes.try_into().map_err(|_| Found::Binary(bytes.len()))?;
    Ok(Timestamp::of_wire(i64::from_be_bytes(micros)))
}

/// A type made by users may be anything. One whose binary form is not text (a composite, a range) shows itself
/// by zero bytes, which text in PostgreSQL never has.
fn label(bytes: &[u8]) -> Result<&str, Found> {
    if bytes.contains(&0) { Err(Found::Binary(bytes.len())) } else { utf8(bytes) }
}

fn jsonb(bytes: &[u8]) -> Result<&str, Found> {
    match bytes {
        [1, json @ ..] => utf8(json),
        [version, ..] => Err(Found::Byte(*version)),
        [] => Err(Found::Binary(0)),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Found> {
    std::str::from_utf8(bytes).map_err(|_| Found::NotUtf8(bytes.len()))
}

#[cold]
fn wrong_value(column: &Column, wanted: &'static str, found: Found) -> DecodeError {
    DecodeError::Value { column: column.name.clone(), wanted, found }
}
