//! Extra columns as the table has them: added to it when events begin to have them, and written in its types.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gcp_bigquery_client::model::field_type::FieldType;
use gcp_bigquery_client::model::table_field_schema::TableFieldSchema;
use jiff::civil;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto};

use super::encode::{put_bool, put_bytes, put_float, put_int, put_text};
use crate::event::ExtraColumn;
use crate::event::extra::{Shape, is_null, scalar};
use crate::event::time::{micros_of, time_text};
use crate::pgoutput::{Column, oid};

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtraType {
    /// BOOL.
    Bool,
    /// INT64.
    Int64,
    /// FLOAT64.
    Float64,
    /// NUMERIC: 38 digits, of which 9 behind the point.
    Numeric,
    /// BIGNUMERIC: 76 digits, of which 38 behind the point.
    BigNumeric,
    /// STRING.
    String,
    /// BYTES.
    Bytes,
    /// DATE.
    Date,
    /// TIME.
    Time,
    /// DATETIME.
    Datetime,
    /// TIMESTAMP.
    Timestamp,
    /// JSON.
    Json,
    /// One that takes no value of ours.
    Other,
}

/// A column of the table.
#[derive(Debug, Clone)]
pub struct TableColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub column_type: ExtraType,
}

/// The table's columns that extra columns go into. Their place, behind walcast's own columns, is their field number.
#[derive(Debug, Clone, Default)]
pub struct ExtraTable(Vec<TableColumn>);

impl ExtraType {
    /// The type that a column is made with: one that takes every value.
    pub fn wanted(shape: Shape) -> ExtraType {
        match shape {
            Shape::Bool => ExtraType::Bool,
            Shape::Int => ExtraType::Int64,
            Shape::Float => ExtraType::Float64,
            Shape::Decimal(precision, scale) if (0..=9).contains(&scale) && precision - scale <= 29 => {
                ExtraType::Numeric
            }
            Shape::Decimal(precision, scale) if (0..=38).contains(&scale) && precision - scale <= 38 => {
                ExtraType::BigNumeric
            }
            Shape::Numeric | Shape::Decimal(..) | Shape::Text => ExtraType::String,
            Shape::Bytes => ExtraType::Bytes,
            Shape::Date => ExtraType::Date,
            Shape::TimeOfDay => ExtraType::Time,
            Shape::LocalTime => ExtraType::Datetime,
            Shape::Time => ExtraType::Timestamp,
            Shape::Json | Shape::List => ExtraType::Json,
        }
    }

    /// Of a column that is there.
    fn of(field: &TableFieldSchema) -> ExtraType {
        match (&field.r#type, field.mode.as_deref()) {
            (_, Some("REPEATED")) => ExtraType::Other,
            (FieldType::Bool | FieldType::Boolean, _) => ExtraType::Bool,
            (FieldType::Int64 | FieldType::Integer, _) => ExtraType::Int64,
            (FieldType::Float64 | FieldType::Float, _) => ExtraType::Float64,
            (FieldType::Numeric, _) => ExtraType::Numeric,
            (FieldType::Bignumeric, _) => ExtraType::BigNumeric,
            (FieldType::String, _) => ExtraType::String,
            (FieldType::Bytes, _) => ExtraType::Bytes,
            (FieldType::Date, _) => ExtraType::Date,
            (FieldType::Time, _) => ExtraType::Time,
            (FieldType::Datetime, _) => ExtraType::Datetime,
            (FieldType::Timestamp, _) => ExtraType::Timestamp,
            (FieldType::Json, _) => ExtraType::Json,
            _ => ExtraType::Other,
        }
    }

    /// Its name in SQL.
    pub fn sql(self) -> &'static str {
        match self {
            ExtraType::Bool => "BOOL",
            ExtraType::Int64 => "INT64",
            ExtraType::Float64 => "FLOAT64",
            ExtraType::Numeric => "NUMERIC",
            ExtraType::BigNumeric => "BIGNUMERIC",
            ExtraType::String => "STRING",
            ExtraType::Bytes => "BYTES",
            ExtraType::Date => "DATE",
            ExtraType::Time => "TIME",
            ExtraType::Datetime => "DATETIME",
            ExtraType::Timestamp => "TIMESTAMP",
            ExtraType::Json => "JSON",
            ExtraType::Other => "a type that walcast does not write",
        }
    }

    /// What a row's message has it as.
    fn in_message(self) -> Type {
        match self {
            ExtraType::Bool => Type::Bool,
            ExtraType::Int64 | ExtraType::Timestamp => Type::Int64,
            ExtraType::Date => Type::Int32,
            ExtraType::Float64 => Type::Double,
            ExtraType::Bytes => Type::Bytes,
            ExtraType::Numeric
            | ExtraType::BigNumeric
            | ExtraType::String
            | ExtraType::Time
            | ExtraType::Datetime
            | ExtraType::Json
            | ExtraType::Other => Type::String,
        }
    }

    /// Appends a value, which is not null; `None` when this type does not take it as it is.
    fn put(self, number: u32, json: &str, row: &mut Vec<u8>) -> Option<()> {
        let text = scalar(json).unwrap_or(Cow::Borrowed(json));
        match self {
            ExtraType::Bool => match &*text {
                "true" => put_bool(number, true, row),
                "false" => put_bool(number, false, row),
                _ => return None,
            },
            ExtraType::Int64 => put_int(number, whole(&text).parse().ok()?, row),
            ExtraType::Float64 => put_float(number, float_of(&text)?, row),
            ExtraType::Numeric => put_text(number, decimal(&text, 29, 9)?, row),
            ExtraType::BigNumeric => put_text(number, decimal(&text, 38, 38)?, row),
            ExtraType::String => put_text(number, &text, row),
            ExtraType::Bytes => put_bytes(number, &BASE64.decode(&*text).ok()?, row),
            ExtraType::Date => {
                let days = civil::Date::constant(1970, 1, 1).until(text.parse::<civil::Date>().ok()?).ok()?;
                put_int(number, days.get_days().into(), row);
            }
            ExtraType::Time => {
                text.parse::<civil::Time>().ok()?;
                put_text(number, &text, row);
            }
            ExtraType::Datetime => {
                text.parse::<civil::DateTime>().ok()?;
                put_text(number, text.trim_end_matches('Z'), row);
            }
            ExtraType::Timestamp => put_int(number, micros_of(&text)?, row),
            ExtraType::Json => put_text(number, json, row),
            ExtraType::Other => return None,
        }
        Some(())
    }

    /// What is asked of a row to have this column's value.
    pub fn expression(self, name: &str) -> String {
        match self {
            ExtraType::Timestamp => format!("UNIX_MICROS(`{name}`)"),
            ExtraType::Json => format!("TO_JSON_STRING(`{name}`)"),
            _ => format!("`{name}`"),
        }
    }

    /// The value, as JSON, of what [`Self::expression`] gave.
    pub fn read(self, cell: &str) -> Option<String> {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        Some(match self {
            ExtraType::Bool => cell.to_lowercase(),
            ExtraType::Int64 | ExtraType::Json => cell.to_owned(),
            ExtraType::Timestamp => quoted(&String::from_utf8_lossy(&time_text(cell.parse().ok()?)?)),
            ExtraType::Datetime => {
                quoted(&format!("{:.6}", cell.replace(' ', "T").parse::<civil::DateTime>().ok()?))
            }
            ExtraType::Time => quoted(&format!("{:.6}", cell.parse::<civil::Time>().ok()?)),
            _ => quoted(cell),
        })
    }
}

fn float_of(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => text.parse().ok().filter(|float: &f64| float.is_finite()),
    }
}

/// A number of which nothing stands behind the point, without the point.
fn whole(text: &str) -> &str {
    match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => whole,
        _ => text,
    }
}

/// A decimal number that is kept as it is with so many digits before and behind the point.
fn decimal(text: &str, before: usize, behind: usize) -> Option<&str> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let are_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let fits =
        whole.trim_start_matches('0').len() <= before && fraction.trim_end_matches('0').len() <= behind;
    (fits && !whole.is_empty() && are_digits(whole) && are_digits(fraction)).then_some(text)
}

impl ExtraTable {
    /// Of columns that a table has, those that extra columns go into.
    pub fn of<'a>(fields: &[TableFieldSchema], names: impl Iterator<Item = &'a str>) -> Self {
        let column = |name: &str| {
            let field = fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            Some(TableColumn { name: field.name.clone(), column_type: ExtraType::of(field) })
        };
        ExtraTable(names.filter_map(column).collect())
    }

    /// The columns.
    pub fn columns(&self) -> &[TableColumn] {
        &self.0
    }

    /// Whether there is a column for this one.
    pub fn has(&self, column: &ExtraColumn) -> bool {
        self.0.iter().any(|known| known.name.eq_ignore_ascii_case(&column.name))
    }

    /// Adds the columns to the description of rows.
    pub fn describe(&self, rows: &mut DescriptorProto) {
        for TableColumn { name, column_type } in &self.0 {
            rows.field.push(FieldDescriptorProto {
                name: Some(name.clone()),
                number: Some(rows.field.len() as i32 + 1),
                label: Some(Label::Optional as i32),
                r#type: Some(column_type.in_message() as i32),
                ..Default::default()
            });
        }
    }

    /// Appends a value to a row, `before` being the number of walcast's own columns; what is wrong where its column does not
    /// take it.
    pub fn put(&self, before: u32, name: &str, json: &str, row: &mut Vec<u8>) -> Result<(), String> {
        if is_null(json) {
            return Ok(());
        }
        let mut numbered = (before + 1..).zip(&self.0);
        let Some((number, column)) = numbered.find(|(_, column)| column.name.eq_ignore_ascii_case(name))
        else {
            return Err(format!("column {name}: the table has none"));
        };
        column.column_type.put(number, json, row).ok_or_else(|| {
            let found = match json.as_bytes().first() {
                Some(b'"') => "a text",
                Some(b't' | b'f') => "true or false",
                Some(b'{' | b'[') => "JSON",
                _ => "a number",
            };
            format!("column {name}: {found} that {} does not take as it is", column.column_type.sql())
        })
    }
}

/// The reference of the types that are passed on, as lines of a table in Markdown.
pub fn reference_markdown() -> String {
    let types: [(&str, u32, i32); 14] = [
        ("`boolean`", oid::BOOL, -1),
        ("`smallint`, `integer`, `bigint`", oid::INT8, -1),
        ("`real`, `double precision`", oid::FLOAT8, -1),
        ("`numeric`", oid::NUMERIC, -1),
        ("`numeric(p,s)`, up to 29 digits before the point and 9 behind", oid::NUMERIC, (12 << 16) + 2 + 4),
        ("`numeric(p,s)`, up to 38 digits before the point and 38 behind", oid::NUMERIC, (40 << 16) + 20 + 4),
        (
            "`text`, `varchar`, `char(n)`, `name`, enums, `uuid`, `inet`, `cidr`, `interval` (ISO 8601)",
            oid::TEXT,
            -1,
        ),
        ("`bytea`", oid::BYTEA, -1),
        ("`date`", oid::DATE, -1),
        ("`time`", oid::TIME, -1),
        ("`timestamp`", oid::TIMESTAMP, -1),
        ("`timestamptz`", oid::TIMESTAMPTZ, -1),
        ("`json`, `jsonb`", oid::JSON, -1),
        ("arrays of these", 1009, -1),
    ];
    let line = |(name, type_oid, type_modifier): (&str, u32, i32)| {
        let column = Column { name: String::new(), type_oid, type_modifier, key: false };
        let shape = Shape::of(&column).unwrap_or(Shape::Text);
        format!("| {name} | {} | {} |\n", shape.words(), ExtraType::wanted(shape).sql())
    };
    types.map(line).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(column_type: ExtraType, json: &str) -> bool {
        column_type.put(1, json, &mut Vec::new()).is_some()
    }

    #[test]
    fn a_type_takes_what_it_keeps_as_it_is_and_nothing_else() {
        use ExtraType::{
            BigNumeric, Bool, Bytes, Date, Datetime, Float64, Int64, Json, Numeric, Time, Timestamp,
        };
        let zeros = |count| "0".repeat(count);
        for (column_type, json, wanted) in [
            (Bool, "true".to_owned(), true),
            (Bool, "1".to_owned(), false),
            (Int64, "-9223372036854775808".to_owned(), true),
            (Int64, "\"7\"".to_owned(), true),
            (Int64, "\"7.00\"".to_owned(), true),
            (Int64, "7.5".to_owned(), false),
            (Int64, "\"seven\"".to_owned(), false),
            (Float64, "\"NaN\"".to_owned(), true),
            (Float64, "\"nan\"".to_owned(), false),
            (Float64, "1e300".to_owned(), true),
            (Float64, "1e400".to_owned(), false),
            (Numeric, format!("\"1{}.5\"", zeros(28)), true),
            (Numeric, format!("\"1{}.5\"", zeros(29)), false),
            (Numeric, "\"0.0000000001\"".to_owned(), false),
            (Numeric, "\"0.1000000000\"".to_owned(), true),
            (Numeric, "\"NaN\"".to_owned(), false),
            (BigNumeric, format!("\"-1{}.{}1\"", zeros(37), zeros(37)), true),
            (BigNumeric, format!("\"1{}\"", zeros(38)), false),
            (Bytes, "\"AA==\"".to_owned(), true),
            (Bytes, "\"A\"".to_owned(), false),
            (Date, "\"9999-12-31\"".to_owned(), true),
            (Date, "\"31.12.9999\"".to_owned(), false),
            (Time, "\"23:59:59.999999\"".to_owned(), true),
            (Time, "\"24:00:00.000000\"".to_owned(), false),
            (Datetime, "\"0001-01-01T00:00:00.000000\"".to_owned(), true),
            (Timestamp, "\"0001-01-01T00:00:00.000000Z\"".to_owned(), true),
            (Timestamp, "\"0001-01-01T00:00:00.000000\"".to_owned(), false),
            (Json, "[1]".to_owned(), true),
        ] {
            assert_eq!(taken(column_type, &json), wanted, "{column_type:?} {json}");
        }
    }
}
