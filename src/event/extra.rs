//! Extra columns: those of the events table that walcast does not know and passes on, each under its own name and as what
//! it is. A value is read once, from its binary form, be it of the stream or of SQL, and written as JSON; that is what sinks
//! and readers make theirs of.

mod value;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Span;
use super::schema::EVENT_FIELDS;
use crate::pgoutput::{Column, Value, oid};

/// How many extra columns a table may have; those beyond are left out.
pub const EXTRA_COLUMNS_MAX: usize = 40;
/// Stands for all columns.
const ALL: &str = "*";
/// Names that BigQuery's table has beside the fields.
const OTHER_NAMES: [&str; 3] = ["epoch", "bucket_30m", "ingested_at"];
/// What names of columns must not begin with in BigQuery.
const RESERVED: [&str; 7] =
    ["_table_", "_file_", "_partition", "_row_timestamp", "__root__", "_colidentifier", "_change_"];

/// What the values of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// True or false.
    Bool,
    /// A whole number of up to 64 bits.
    Int,
    /// A floating-point number.
    Float,
    /// A decimal number of any length.
    Numeric,
    /// A decimal number of at most so many digits, of which so many stand behind the point.
    Decimal(i32, i32),
    /// A text.
    Text,
    /// Bytes.
    Bytes,
    /// A day.
    Date,
    /// A time of day.
    TimeOfDay,
    /// A date and time without a zone.
    LocalTime,
    /// A time.
    Time,
    /// JSON.
    Json,
    /// An array.
    List,
}

/// A column as a relation of the stream, or a table, has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraColumn {
    /// Its name, in the table and in every sink.
    pub name: String,
    /// What its values are.
    pub shape: Shape,
}

/// Which columns are to be passed on: names, or `*`.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    names: Vec<String>,
    /// What a publication that brings some columns only brings.
    published: Option<Vec<String>>,
}

/// A column that is not passed on, and why not.
pub type LeftOut<'a> = (&'a str, String);

/// An event's extra columns: members of a JSON object, with a comma before each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extra {
    /// Those that are no JSON themselves.
    pub plain: Span,
    /// Those that are.
    pub json: Span,
}

impl Extra {
    /// Bytes of both.
    pub fn bytes(&self) -> usize {
        self.plain.len as usize + self.json.len as usize
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.plain.len + self.json.len == 0
    }
}

impl Wanted {
    /// Of a setting.
    pub fn new(names: &[String]) -> Self {
        Wanted { names: names.to_vec(), published: None }
    }

    /// Of them only these are published.
    pub fn published(mut self, columns: Option<&[String]>) -> Self {
        self.published = columns.map(<[String]>::to_vec);
        self
    }

    /// Whether any are wanted.
    pub fn any(&self) -> bool {
        !self.names.is_empty()
    }

    /// Those named, which may not be there.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str).filter(|name| *name != ALL)
    }

    /// Whether a column of this name is asked for, whether or not it can be passed on.
    pub fn asks_for(&self, name: &str) -> bool {
        self.names.iter().any(|wanted| wanted == name || wanted == ALL)
    }

    /// Whether all are, those too that a table does not have yet.
    pub fn asks_for_all(&self) -> bool {
        self.names.iter().any(|wanted| wanted == ALL)
    }

    /// Whether a publication that brings some columns only leaves it out.
    pub fn is_left_out(&self, name: &str) -> bool {
        self.published.as_ref().is_some_and(|columns| !columns.iter().any(|column| column == name))
    }

    /// Of a table's columns, ours left out, those that are passed on; and each other that is asked for, with the reason why
    /// not. In the table's order.
    pub fn split<'a, C: Copy>(
        &self,
        columns: impl Iterator<Item = (&'a Column, C)>,
    ) -> (Vec<(ExtraColumn, C)>, Vec<LeftOut<'a>>) {
        let (mut taken, mut refused) = (Vec::<(ExtraColumn, C)>::new(), Vec::new());
        for (column, with) in columns.filter(|(column, _)| self.asks_for(&column.name)) {
            let twin = taken.iter().find(|(one, _)| one.name.eq_ignore_ascii_case(&column.name));
            let why_not = match (unfit_name(&column.name), Shape::of(column), twin) {
                (Some(why), _, _) => why.to_owned(),
                (_, None, _) => "its type has no form that walcast writes".to_owned(),
                (_, _, Some((one, _))) => format!("BigQuery takes {} for the same name", one.name),
                _ if taken.len() >= EXTRA_COLUMNS_MAX => {
                    format!("{EXTRA_COLUMNS_MAX} extra columns are all that walcast takes")
                }
                _ if self.is_left_out(&column.name) => "the publication leaves it out".to_owned(),
                (None, Some(shape), None) => {
                    taken.push((ExtraColumn { name: column.name.clone(), shape }, with));
                    continue;
                }
            };
            refused.push((column.name.as_str(), why_not));
        }
        (taken, refused)
    }
}

/// Why no extra column can have this name; `None` when it can.
pub fn unfit_name(name: &str) -> Option<&'static str> {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let lower = name.to_ascii_lowercase();
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if name == ALL {
        None
    } else if !letters || name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
        Some("its name has other characters than letters, digits and _")
    } else if EVENT_FIELDS.iter().any(|field| is(field.name)) || OTHER_NAMES.iter().any(|other| is(other)) {
        Some("a field of walcast's own has this name")
    } else if RESERVED.iter().any(|reserved| lower.starts_with(reserved)) {
        Some("BigQuery keeps names that begin so for itself")
    } else {
        None
    }
}

impl Shape {
    /// Those that a word tells.
    const NAMED: [(&'static str, Shape); 12] = [
        ("bool", Shape::Bool),
        ("int", Shape::Int),
        ("float", Shape::Float),
        ("numeric", Shape::Numeric),
        ("text", Shape::Text),
        ("bytes", Shape::Bytes),
        ("date", Shape::Date),
        ("time of day", Shape::TimeOfDay),
        ("local time", Shape::LocalTime),
        ("time", Shape::Time),
        ("json", Shape::Json),
        ("array", Shape::List),
    ];

    /// Of a column of this type; `None` for one that is not passed on.
    pub fn of(column: &Column) -> Option<Shape> {
        Some(match column.type_oid {
            oid::BOOL => Shape::Bool,
            oid::INT2 | oid::INT4 | oid::INT8 => Shape::Int,
            oid::FLOAT4 | oid::FLOAT8 => Shape::Float,
            oid::NUMERIC if column.type_modifier < 4 => Shape::Numeric,
            oid::NUMERIC => {
                let packed = column.type_modifier - 4;
                // eleven bits with a sign
                Shape::Decimal((packed >> 16) & 0xffff, ((packed & 0x7ff) ^ 1024) - 1024)
            }
            oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::UUID | oid::INET | oid::CIDR => {
                Shape::Text
            }
            oid::INTERVAL => Shape::Text,
            // an enum, mostly
            oid::FIRST_USER.. => Shape::Text,
            oid::BYTEA => Shape::Bytes,
            oid::DATE => Shape::Date,
            oid::TIME => Shape::TimeOfDay,
            oid::TIMESTAMP => Shape::LocalTime,
            oid::TIMESTAMPTZ => Shape::Time,
            oid::JSON | oid::JSONB => Shape::Json,
            array if oid::is_array(array) => Shape::List,
            _ => return None,
        })
    }

    /// In words, for the reference.
    pub fn words(self) -> &'static str {
        match self {
            Shape::Bool => "true or false",
            Shape::Int => "number, whole",
            Shape::Float => "number; `\"NaN\"`, `\"Infinity\"`, `\"-Infinity\"`",
            Shape::Numeric | Shape::Decimal(..) => "text, all its digits",
            Shape::Text => "text",
            Shape::Bytes => "text, base64",
            Shape::Date => "text, `2026-01-02`",
            Shape::TimeOfDay => "text, `03:04:05.678901`",
            Shape::LocalTime => "text, `2026-01-02T03:04:05.678901`",
            Shape::Time => "text, RFC 3339 in UTC with microseconds",
            Shape::Json => "as it stands",
            Shape::List => "an array of such values",
        }
    }
}

impl FromStr for Shape {
    type Err = ();

    /// As it is displayed.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(digits) = text.strip_prefix("numeric(").and_then(|rest| rest.strip_suffix(')')) {
            let (precision, scale) = digits.split_once(',').ok_or(())?;
            let number = |digits: &str| digits.parse().map_err(|_| ());
            return Ok(Shape::Decimal(number(precision)?, number(scale)?));
        }
        Shape::NAMED.iter().find(|(name, _)| *name == text).map(|(_, shape)| *shape).ok_or(())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Shape::Decimal(precision, scale) = self {
            return write!(f, "numeric({precision},{scale})");
        }
        f.write_str(Shape::NAMED.iter().find(|(_, shape)| shape == self).map_or("", |(name, _)| name))
    }
}

/// Appends a column as a member, with a comma before it. What has no JSON form, as a time outside the years 1 to 9999, is
/// null.
pub fn put_member(name: &str, type_oid: u32, value: Value<'_>, out: &mut String) {
    for part in [",\"", name, "\":"] {
        out.push_str(part);
    }
    let before = out.len();
    let written = match value {
        Value::Null | Value::Unchanged => None,
        Value::Text(bytes) => value::put(oid::TEXT, bytes, out),
        Value::Binary(bytes) => value::put(type_oid, bytes, out),
    };
    if written.is_none() {
        out.truncate(before);
        out.push_str("null");
    }
}

/// Appends a column whose value is JSON already.
pub fn put_written(name: &str, value: &str, out: &mut String) {
    for part in [",\"", name, "\":", value] {
        out.push_str(part);
    }
}

/// Gives each member's name, and its value as JSON, of members as [`put_member`] has written them. `room` is for their copy.
pub fn for_each(members: [&str; 2], room: &mut String, mut take: impl FnMut(&str, &str)) {
    room.clear();
    members.into_iter().for_each(|members| room.push_str(members));
    if room.is_empty() {
        return;
    }
    room.replace_range(..1, "{");
    room.push('}');
    let read = serde_json::Deserializer::from_str(room).deserialize_map(Members(&mut take));
    debug_assert!(read.is_ok(), "{read:?}");
}

struct Members<'f, F>(&'f mut F);

impl<'de, F: FnMut(&str, &str)> Visitor<'de> for Members<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("extra columns")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some((name, value)) = members.next_entry::<&str, &RawValue>()? {
            (self.0)(name, value.get());
        }
        Ok(())
    }
}

/// Whether a value is null.
pub fn is_null(json: &str) -> bool {
    json.as_bytes() == b"null"
}

/// What a value says, where it is a text, a number, true or false.
pub fn scalar(json: &str) -> Option<Cow<'_, str>> {
    match json.as_bytes().first()? {
        b'"' => {
            let inner = json.get(1..json.len().checked_sub(1)?)?;
            if inner.contains('\\') {
                serde_json::from_str(json).ok().map(Cow::Owned)
            } else {
                Some(inner.into())
            }
        }
        b'{' | b'[' => None,
        _ => Some(json.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPES: [u32; 25] = [
        oid::BOOL,
        oid::BYTEA,
        oid::NAME,
        oid::INT8,
        oid::INT2,
        oid::INT4,
        oid::TEXT,
        oid::CIDR,
        oid::FLOAT4,
        oid::FLOAT8,
        oid::INET,
        oid::BPCHAR,
        oid::VARCHAR,
        oid::DATE,
        oid::TIME,
        oid::TIMESTAMP,
        oid::TIMESTAMPTZ,
        oid::INTERVAL,
        oid::NUMERIC,
        oid::UUID,
        oid::FIRST_USER,
        1007,
        1009,
        1231,
        1185,
    ];

    fn member(type_oid: u32, bytes: &[u8]) -> String {
        let mut out = String::new();
        put_member("x", type_oid, Value::Binary(bytes), &mut out);
        out.strip_prefix(",\"x\":").unwrap().to_owned()
    }

    /// An array of one dimension, of elements that are given as they are.
    fn array(element: u32, elements: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [1, 0, element, elements.len() as u32, 1] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        for element in elements {
            bytes.extend_from_slice(&(element.len() as u32).to_be_bytes());
            bytes.extend_from_slice(element);
        }
        bytes
    }

    #[test]
    fn an_array_is_told_from_what_only_looks_like_one() {
        let two = array(oid::INT2, &[&[0, 1], &[0, 2]]);
        assert_eq!(member(1005, &two), "[1,2]");
        assert_eq!(member(oid::FIRST_USER, &two), "[1,2]");
        assert_eq!(member(1005, two.get(..two.len() - 1).unwrap()), "null");
        assert_eq!(member(oid::FIRST_USER, &[two.as_slice(), &[0]].concat()), "null");
        let endless = [2, 0, 23, u32::MAX / 2, 1, 0, 1].map(u32::to_be_bytes).concat();
        assert_eq!(member(oid::FIRST_USER, &endless), "null");
        // a composite of one integer
        assert_eq!(member(oid::FIRST_USER, &[0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 4, 0, 0, 0, 7]), "null");
    }

    #[test]
    fn numbers_of_many_digits_are_whole() {
        let numeric = |weight: i16, scale: u16, digits: &[u16]| {
            let head = [digits.len() as u16, weight.cast_unsigned(), 0x4000, scale];
            member(
                oid::NUMERIC,
                &head.iter().chain(digits).flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(numeric(0, 2, &[12, 5000]), "\"-12.50\"");
        assert_eq!(numeric(2, 0, &[1]), "\"-100000000\"");
        assert_eq!(numeric(-2, 9, &[1230]), "\"-0.000012300\"");
        let long = numeric(32_767, 0, &[9_999]);
        assert_eq!((long.len(), long.get(..8)), (131_072 + 3, Some("\"-999900")));
        assert_eq!(member(oid::NUMERIC, &[0, 9, 0, 0, 0, 0, 0, 0]), "null", "fewer digits than are said");
    }

    #[test]
    fn a_shape_reads_back() {
        let named = Shape::NAMED.map(|(_, shape)| shape);
        for shape in named.into_iter().chain([Shape::Decimal(38, 9), Shape::Decimal(4, -2)]) {
            assert_eq!(shape.to_string().parse(), Ok(shape));
        }
    }

    #[test]
    fn members_come_back_as_they_were_written() {
        let (mut members, mut room, mut found) = (String::new(), String::new(), Vec::new());
        put_member("a", oid::TEXT, Value::Binary(b"x,\"y\\"), &mut members);
        put_member("b", oid::JSONB, Value::Binary(b"\x01{\"c\": [1e400]}"), &mut members);
        put_member("d", oid::INT2, Value::Null, &mut members);
        let mut take = |name: &str, json: &str| found.push((name.to_owned(), json.to_owned()));
        for_each([&members, ""], &mut room, &mut take);
        for_each(["", ""], &mut room, &mut take);
        let wanted = [("a", r#""x,\"y\\""#), ("b", r#"{"c": [1e400]}"#), ("d", "null")];
        assert_eq!(found, wanted.map(|(name, json)| (name.to_owned(), json.to_owned())));
    }

    #[test]
    fn only_so_many_columns_and_each_name_once() {
        let column =
            |name: &str| Column { name: name.to_owned(), type_oid: oid::TEXT, type_modifier: -1, key: false };
        let mut columns: Vec<Column> = (0..EXTRA_COLUMNS_MAX).map(|at| column(&format!("c{at}"))).collect();
        columns.insert(1, column("C0"));
        columns.push(column("one_more"));
        let (taken, refused) = Wanted::new(&["*".to_owned()]).split(columns.iter().zip(0..));
        let refused: Vec<&str> = refused.iter().map(|(name, _)| *name).collect();
        assert_eq!((taken.len(), refused), (EXTRA_COLUMNS_MAX, vec!["C0", "one_more"]));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_json(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0..TYPES.len()) {
            let json = member(TYPES[at], &bytes);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{}", json);
        }

        #[test]
        fn whatever_stands_in_an_array_is_json(
            elements in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..5),
            at in 0..TYPES.len(),
        ) {
            let elements: Vec<&[u8]> = elements.iter().map(Vec::as_slice).collect();
            let json = member(oid::FIRST_USER, &array(TYPES[at], &elements));
            let found: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert!(found.is_null() || found.as_array().is_some_and(|found| found.len() == elements.len()));
        }
    }
}
