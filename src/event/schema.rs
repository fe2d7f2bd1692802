//! What there is: the fields of the records that go out, and the columns of the tables that they are made from. JSON,
//! BigQuery's columns, what `verify` compares, what `check` asks of the tables and the reference are made from these
//! lists; nobody else has names of fields.
//!
//! A list is written once, by a macro, and becomes two things: a table to look at, and a function that gives a record's
//! fields one by one to a [`Visit`], without a call through a pointer for each: that is on the way of every event.

use std::borrow::Cow;

use uuid::Uuid;

use super::zone::Zone;
use super::{ContentChange, Event, Texts, extra};
use crate::lsn::{Lsn, Position};
use crate::pgoutput::{self, Column};

/// A field of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name, in every sink.
    pub name: &'static str,
    /// What its values are.
    pub kind: FieldKind,
    /// Where its values come from.
    pub origin: Origin,
    /// When it is null; empty for never.
    pub null_when: &'static str,
    /// What it holds.
    pub description: &'static str,
}

impl Field {
    /// Whether it is never null.
    pub const fn required(&self) -> bool {
        self.null_when.is_empty()
    }
}

/// What the values of a field are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// A signed integer of 64 bits.
    Int,
    /// An integer of 64 bits that is never negative.
    Count,
    /// A floating-point number of 64 bits.
    Float,
    /// A text.
    Text,
    /// A UUID.
    Id,
    /// A time: microseconds since 1970 UTC.
    Time,
    /// JSON of any shape.
    Json,
    /// A place in the WAL.
    Lsn,
}

/// Where the values of a field come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The event's own row.
    Row,
    /// The content row as the event saw it, alone or with the event's own.
    Content,
    /// The place in the stream, which the row itself does not tell.
    Stream,
    /// What sends it.
    Sink,
}

/// Takes the fields of a record, in the order of their list. `None` is null.
pub trait Visit<'a> {
    /// A signed integer.
    fn int(&mut self, field: &'static Field, value: Option<i64>);
    /// An integer that is never negative.
    fn count(&mut self, field: &'static Field, value: u64);
    /// A floating-point number.
    fn float(&mut self, field: &'static Field, value: Option<f64>);
    /// A text.
    fn text(&mut self, field: &'static Field, value: Option<&'a str>);
    /// A UUID.
    fn id(&mut self, field: &'static Field, value: Option<Uuid>);
    /// A time, microseconds since 1970 UTC.
    fn time(&mut self, field: &'static Field, value: Option<i64>);
    /// JSON, as text.
    fn json(&mut self, field: &'static Field, value: Option<&'a str>);
    /// A place in the WAL.
    fn lsn(&mut self, field: &'static Field, value: Lsn);
}

/// Writes a list of fields down: a field's name, kind, origin and when it is null, what it holds, and how a record has
/// it. `number` is how many there are.
macro_rules! fields {
    (
        $(#[$table_doc:meta])* table $table:ident, number $number:ident;
        $(#[$visit_doc:meta])* visit $visit:ident($record:ident: $of:ty);
        $($name:ident: $kind:ident, $origin:ident, $null_when:literal, $description:literal = $read:expr;)+
    ) => {
        #[doc = concat!("How many fields [`", stringify!($table), "`] has.")]
        pub const $number: usize = [$(stringify!($name)),+].len();

        $(#[$table_doc])*
        pub static $table: [$crate::event::schema::Field; $number] = [$(
            $crate::event::schema::Field {
                name: stringify!($name),
                kind: $crate::event::schema::FieldKind::$kind,
                origin: $crate::event::schema::Origin::$origin,
                null_when: $null_when,
                description: $description,
            }
        ),+];

        $(#[$visit_doc])*
        #[inline(always)]
        pub fn $visit<'a>($record: &$of, to: &mut impl $crate::event::schema::Visit<'a>) {
            $({
                const FIELD: &$crate::event::schema::Field = &$crate::event::schema::Field {
                    name: stringify!($name),
                    kind: $crate::event::schema::FieldKind::$kind,
                    origin: $crate::event::schema::Origin::$origin,
                    null_when: $null_when,
                    description: $description,
                };
                $crate::event::schema::fields!(@put $kind, to, FIELD, $read);
            })+
        }
    };
    (@put Int, $to:ident, $field:ident, $read:expr) => { $to.int($field, $read) };
    (@put Count, $to:ident, $field:ident, $read:expr) => { $to.count($field, $read) };
    (@put Float, $to:ident, $field:ident, $read:expr) => { $to.float($field, $read) };
    (@put Text, $to:ident, $field:ident, $read:expr) => { $to.text($field, $read) };
    (@put Id, $to:ident, $field:ident, $read:expr) => { $to.id($field, $read) };
    (@put Time, $to:ident, $field:ident, $read:expr) => { $to.time($field, $read) };
    (@put Json, $to:ident, $field:ident, $read:expr) => { $to.json($field, $read) };
    (@put Lsn, $to:ident, $field:ident, $read:expr) => { $to.lsn($field, $read) };
}
pub(crate) use fields;

/// What an event's record is made from.
#[derive(Debug, Clone, Copy)]
pub struct EventRecord<'a> {
    /// The event.
    pub event: &'a Event,
    /// Its texts.
    pub texts: Texts<'a>,
}

fields! {
    /// The fields of an event's record, in every sink. Their order is that of BigQuery's columns.
    table EVENT_FIELDS, number EVENT_FIELD_COUNT;
    /// Gives the fields of an event, in the order of [`EVENT_FIELDS`].
    visit visit_event(r: EventRecord<'a>);

    event_id: Int, Row, "", "engagement_events.id" = Some(r.event.id);
    content_id: Id, Row, "the column is null", "engagement_events.content_id, UUID text" = r.event.content_id;
    user_id: Id, Row, "the column is null, or privacy.user_id leaves it out", "engagement_events.user_id, UUID text" = r.event.user_id;
    event_type: Text, Row, "the column is null", "play, pause, finish or click"
        = r.event.event_type.map(|span| r.texts.get(span));
    event_ts: Time, Row, "", "When it happened" = Some(r.event.event_ts);
    duration_ms: Int, Row, "the column is null", "engagement_events.duration_ms" = r.event.duration_ms;
    device: Text, Row, "the column is null, or privacy.device leaves it out", "engagement_events.device"
        = r.event.device.map(|span| r.texts.get(span));
    raw_payload: Json, Row, "the column is null, privacy.raw_payload leaves it out, or the row was too large",
        "engagement_events.raw_payload; NULL when it was too large"
        = r.event.raw_payload.map(|span| r.texts.get(span));
    raw_payload_bytes: Int, Row, "the column raw_payload is null, or left out by privacy.raw_payload",
        "Size of raw_payload, also when it was left out"
        = r.event.raw_payload_bytes.map(i64::from);
    slug: Text, Content, "there was no such content, or privacy.slug leaves it out", "content.slug when the event was written"
        = r.event.content.as_deref().and_then(|content| content.slug.as_deref());
    title: Text, Content, "there was no such content, or privacy.title leaves it out", "content.title when the event was written"
        = r.event.content.as_deref().and_then(|content| content.title.as_deref());
    content_type: Text, Content, "there was no such content, or the column is null",
        "content.content_type: podcast, newsletter or video"
        = r.event.content.as_deref().and_then(|content| content.content_type.as_deref());
    length_seconds: Int, Content, "there was no such content, or the column is null", "content.length_seconds"
        = r.event.content.as_deref().and_then(|content| content.length_seconds).map(i64::from);
    publish_ts: Time, Content, "there was no such content, or the column is null or lies outside the years 1 to 9999",
        "content.publish_ts"
        = r.event.content.as_deref().and_then(|content| content.publish_ts);
    engagement_seconds: Float, Row, "duration_ms is null", "duration_ms / 1000" = r.event.engagement_seconds();
    engagement_pct: Float, Content, "engagement_seconds or length_seconds is null, or length_seconds is not above 0",
        "engagement_seconds / length_seconds * 100"
        = r.event.engagement_pct();
    commit_ts: Time, Stream, "", "When the event's transaction committed" = Some(r.event.commit_ts);
    commit_lsn: Lsn, Stream, "", "Where that commit lies in the WAL" = r.event.position.commit_lsn;
    ordinal: Count, Stream, "", "The change's index within its transaction" = r.event.position.ordinal;
}

/// What a content row's record is made from.
#[derive(Debug, Clone, Copy)]
pub struct ContentRecord<'a> {
    /// The change.
    pub change: &'a ContentChange,
    /// The row after it.
    pub content: &'a super::Content,
}

fields! {
    /// The fields of a content row's record.
    table CONTENT_FIELDS, number CONTENT_FIELD_COUNT;
    /// Gives the fields of a content row, in the order of [`CONTENT_FIELDS`].
    visit visit_content(r: ContentRecord<'a>);

    id: Id, Row, "", "content.id" = Some(r.change.id);
    slug: Text, Row, "privacy.slug leaves it out", "content.slug" = r.content.slug.as_deref();
    title: Text, Row, "privacy.title leaves it out", "content.title" = r.content.title.as_deref();
    content_type: Text, Row, "the column is null", "content.content_type: podcast, newsletter or video"
        = r.content.content_type.as_deref();
    length_seconds: Int, Row, "the column is null", "content.length_seconds" = r.content.length_seconds.map(i64::from);
    publish_ts: Time, Row, "the column is null, or lies outside the years 1 to 9999", "content.publish_ts"
        = r.content.publish_ts;
    commit_ts: Time, Stream, "", "When the change's transaction committed" = Some(r.change.commit_ts);
    commit_lsn: Lsn, Stream, "", "Where that commit lies in the WAL" = r.change.position.commit_lsn;
    ordinal: Count, Stream, "", "The change's index within its transaction" = r.change.position.ordinal;
}

/// A field's place in [`EVENT_FIELDS`]. Evaluated as a constant, a name that no field has does not compile.
pub const fn event_field(name: &str) -> usize {
    let mut at = 0;
    while at < EVENT_FIELD_COUNT && !same(EVENT_FIELDS[at].name, name) {
        at += 1;
    }
    assert!(at < EVENT_FIELD_COUNT, "no field of an event has this name");
    at
}

const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// A field's value, read back from a sink.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Null.
    Null,
    /// A signed integer.
    Int(i64),
    /// An integer that is never negative.
    Count(u64),
    /// A floating-point number.
    Float(f64),
    /// A text.
    Text(Cow<'a, str>),
    /// A UUID.
    Id(Uuid),
    /// A time, microseconds since 1970 UTC.
    Time(i64),
    /// JSON, as text.
    Json(Cow<'a, str>),
    /// A place in the WAL.
    Lsn(Lsn),
}

/// An event as a sink gives it back: a value for each of [`EVENT_FIELDS`], or `None` where it cannot be told; and its extra
/// columns, by name, as JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct EventValues<'a>(pub [Option<Value<'a>>; EVENT_FIELD_COUNT], pub ExtraValues<'a>);

/// Names of extra columns, each with its value as JSON.
pub type ExtraValues<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

impl Default for EventValues<'_> {
    fn default() -> Self {
        EventValues([const { None }; EVENT_FIELD_COUNT], Vec::new())
    }
}

impl<'a> EventValues<'a> {
    /// The values that go out for this event.
    pub fn of(record: &EventRecord<'a>) -> Self {
        let mut values = Collect { values: EventValues::default(), next: 0 };
        visit_event(record, &mut values);
        let extra = &record.event.extra;
        if !extra.is_empty() {
            let members = [extra.plain, extra.json].map(|span| record.texts.get(span));
            let EventValues(_, to) = &mut values.values;
            extra::for_each(members, &mut String::new(), |name, value| {
                to.push((name.to_owned().into(), value.to_owned().into()));
            });
        }
        values.values
    }

    /// From a value for each field, by its place; `None` when a field that is never null has none, or is null.
    pub fn read(mut value: impl FnMut(usize, &'static Field) -> Option<Value<'a>>) -> Option<Self> {
        let mut values = EventValues::default();
        for (at, (field, place)) in EVENT_FIELDS.iter().zip(&mut values.0).enumerate() {
            let value = value(at, field)?;
            if field.required() && value == Value::Null {
                return None;
            }
            *place = Some(value);
        }
        Some(values)
    }

    /// `event_id`.
    pub fn id(&self) -> Option<i64> {
        match self.0[const { event_field("event_id") }] {
            Some(Value::Int(id)) => Some(id),
            _ => None,
        }
    }

    /// `event_ts`.
    pub fn event_ts(&self) -> Option<i64> {
        match self.0[const { event_field("event_ts") }] {
            Some(Value::Time(micros)) => Some(micros),
            _ => None,
        }
    }

    /// `commit_lsn` and `ordinal`.
    pub fn position(&self) -> Option<Position> {
        let [commit_lsn, ordinal] = const { [event_field("commit_lsn"), event_field("ordinal")] };
        match (&self.0[commit_lsn], &self.0[ordinal]) {
            (Some(Value::Lsn(commit_lsn)), Some(Value::Count(ordinal))) => {
                Some(Position { commit_lsn: *commit_lsn, ordinal: *ordinal })
            }
            _ => None,
        }
    }

    /// Makes fields untold.
    pub fn forget(&mut self, which: impl Fn(&Field) -> bool) {
        let fields = EVENT_FIELDS.iter().zip(&mut self.0);
        fields.filter(|(field, _)| which(field)).for_each(|(_, value)| *value = None);
    }
}

struct Collect<'a> {
    values: EventValues<'a>,
    next: usize,
}

impl<'a> Collect<'a> {
    fn put(&mut self, value: Option<Value<'a>>) {
        if let Some(place) = self.values.0.get_mut(self.next) {
            *place = Some(value.unwrap_or(Value::Null));
        }
        self.next += 1;
    }
}

impl<'a> Visit<'a> for Collect<'a> {
    fn int(&mut self, _: &'static Field, value: Option<i64>) {
        self.put(value.map(Value::Int));
    }

    fn count(&mut self, _: &'static Field, value: u64) {
        self.put(Some(Value::Count(value)));
    }

    fn float(&mut self, _: &'static Field, value: Option<f64>) {
        self.put(value.map(Value::Float));
    }

    fn text(&mut self, _: &'static Field, value: Option<&'a str>) {
        self.put(value.map(|text| Value::Text(text.into())));
    }

    fn id(&mut self, _: &'static Field, value: Option<Uuid>) {
        self.put(value.map(Value::Id));
    }

    fn time(&mut self, _: &'static Field, value: Option<i64>) {
        self.put(value.map(Value::Time));
    }

    fn json(&mut self, _: &'static Field, value: Option<&'a str>) {
        self.put(value.map(|text| Value::Json(text.into())));
    }

    fn lsn(&mut self, _: &'static Field, value: Lsn) {
        self.put(Some(Value::Lsn(value)));
    }
}

/// A table that walcast reads.
#[derive(Debug)]
pub struct SourceTable {
    /// Its name.
    pub name: &'static str,
    /// What its rows are.
    pub description: &'static str,
    /// The columns that walcast needs. Others may be there.
    pub columns: &'static [SourceColumn],
}

/// A column that walcast needs.
#[derive(Debug)]
pub struct SourceColumn {
    /// Its name.
    pub name: &'static str,
    /// What its values are read as.
    pub reads: Reads,
    /// Whether a row is nothing without it.
    pub required: bool,
    /// What it holds.
    pub description: &'static str,
}

/// What a column's values are read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// An integer of up to 64 bits.
    Int8,
    /// An integer that has to fit into 32 bits.
    Int4,
    /// A UUID.
    Uuid,
    /// A text.
    Text,
    /// A time.
    Time,
    /// JSON.
    Json,
}

/// Writes a table's columns down, and an enum of them in the same order.
macro_rules! source_table {
    (
        $table:ident $table_name:literal $table_description:literal, columns $columns:ident;
        $($name:literal $column:ident: $reads:ident $need:ident $description:literal,)+
    ) => {
        #[doc = concat!("A column of `", $table_name, "`.")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $columns {
            $(#[doc = concat!("`", $name, "`.")] $column,)+
        }

        impl $columns {
            /// All, in the order of the table's list.
            pub const ALL: &'static [Self] = &[$(Self::$column),+];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$column => $name,)+
                }
            }
        }

        #[doc = concat!("`", $table_name, "`.")]
        pub static $table: SourceTable = SourceTable {
            name: $table_name,
            description: $table_description,
            columns: &[$(SourceColumn {
                name: $name,
                reads: Reads::$reads,
                required: source_table!(@ $need),
                description: $description,
            }),+],
        };
    };
    (@ required) => { true };
    (@ optional) => { false };
}

source_table! {
    CONTENT "content" "What people engage with. An event shows the row as it was when the event was written.",
    columns ContentColumn;
    "id" Id: Uuid required "Which content it is",
    "slug" Slug: Text required "Its name in addresses",
    "title" Title: Text required "Its title",
    "content_type" ContentType: Text optional "podcast, newsletter or video",
    "length_seconds" LengthSeconds: Int4 optional "How long it is; percentages need it",
    "publish_ts" PublishTs: Time optional "When it was published",
}

source_table! {
    ENGAGEMENT_EVENTS "engagement_events" "The events. Each insert is one; updates and deletes mean nothing.",
    columns EngagementColumn;
    "id" Id: Int8 required "Which event it is",
    "content_id" ContentId: Uuid optional "The content engaged with",
    "user_id" UserId: Uuid optional "Who did it",
    "event_type" EventType: Text optional "play, pause, finish or click",
    "event_ts" EventTs: Time required "When it happened: within the years 1 to 9999, or the row is a dead letter",
    "duration_ms" DurationMs: Int8 optional "How long, in milliseconds: not negative, or the row is a dead letter",
    "device" Device: Text optional "With what",
    "raw_payload" RawPayload: Json optional "Whatever else is known",
}

/// The tables that walcast reads.
pub static SOURCE_TABLES: [&SourceTable; 2] = [&CONTENT, &ENGAGEMENT_EVENTS];

impl SourceTable {
    /// The names of its columns.
    pub fn column_names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.columns.iter().map(|column| column.name)
    }
}

impl SourceColumn {
    /// The type that it best has, in SQL.
    pub const fn sql_type(&self) -> &'static str {
        match self.reads {
            Reads::Int8 => "bigint",
            Reads::Int4 => "integer",
            Reads::Uuid => "uuid",
            Reads::Text => "text",
            Reads::Time => "timestamptz",
            Reads::Json => "jsonb",
        }
    }

    /// The types that it may have, in words.
    pub const fn accepts(&self) -> &'static str {
        match self.reads {
            Reads::Int8 => "smallint, integer, bigint; numeric that is whole and within 64 bits",
            Reads::Int4 => "smallint, integer; bigint and numeric that are whole and within 32 bits",
            Reads::Uuid => "uuid",
            Reads::Text => "text, varchar, char(n), name, an enum",
            Reads::Time => "timestamptz; timestamp where postgres.timestamp_zone names its zone",
            Reads::Json => "json, jsonb",
        }
    }

    /// Whether a column's values are local times, which can be read as this where their zone is named.
    pub fn wants_zone(&self, column: &Column) -> bool {
        let null = pgoutput::Value::Null;
        let of_any_zone = || null.time(column, Some(|local| local));
        self.reads == Reads::Time && null.timestamptz(column).is_err() && of_any_zone().is_ok()
    }

    /// Whether a column's values can be read as this; its type is the base type where it is a domain.
    /// `zone` is that of local times.
    pub fn fits(&self, column: &Column, zone: Option<&Zone>) -> Result<(), pgoutput::DecodeError> {
        let null = pgoutput::Value::Null;
        match self.reads {
            Reads::Int8 => null.int8(column).map(drop),
            Reads::Int4 => null.int4(column).map(drop),
            Reads::Uuid => null.uuid(column).map(drop),
            Reads::Text => null.text(column).map(drop),
            Reads::Time => null.time(column, zone.map(|zone| |local| zone.instant(local))).map(drop),
            Reads::Json => null.json(column).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fields_place_is_found_by_its_name() {
        for (at, field) in EVENT_FIELDS.iter().enumerate() {
            assert_eq!(event_field(field.name), at);
        }
    }

    #[test]
    fn a_field_that_is_never_null_has_to_be_there() {
        let told = |missing: &str| {
            EventValues::read(|_, field| match field.kind {
                _ if field.name == missing => Some(Value::Null),
                FieldKind::Lsn => Some(Value::Lsn(Lsn(7))),
                FieldKind::Count => Some(Value::Count(3)),
                FieldKind::Time => Some(Value::Time(5)),
                _ => Some(Value::Int(1)),
            })
        };
        for field in &EVENT_FIELDS {
            assert_eq!(told(field.name).is_none(), field.required(), "{}", field.name);
        }
        let values = told("device").unwrap();
        assert_eq!((values.id(), values.event_ts()), (Some(1), Some(5)));
        assert_eq!(values.position(), Some(Position { commit_lsn: Lsn(7), ordinal: 3 }));
    }
}
