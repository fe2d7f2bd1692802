//! Events as rows of the Storage Write service: protocol buffer messages, and their descriptor.

use std::sync::Arc;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::ProtoSchema;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto};

use uuid::Uuid;

use super::column::{ColumnType, Record, columns, visit_row};
use super::extra::ExtraTable;
use crate::event::extra::{self, Extra};
use crate::event::schema::{Field, Visit};
use crate::lsn::Lsn;

/// What the service must know to read the rows, with these extra columns.
pub fn schema(extra: &ExtraTable) -> ProtoSchema {
    let field = |(index, column): (usize, &Field)| FieldDescriptorProto {
        name: Some(column.name.to_owned()),
        number: Some(index as i32 + 1),
        label: Some(if column.required() { Label::Required } else { Label::Optional } as i32),
        r#type: Some(match ColumnType::of(column) {
            ColumnType::Int64 | ColumnType::Timestamp => Type::Int64,
            ColumnType::Float64 => Type::Double,
            ColumnType::String | ColumnType::Json => Type::String,
        } as i32),
        ..Default::default()
    };
    let mut rows = DescriptorProto {
        name: Some("EngagementEvent".into()),
        field: columns().enumerate().map(field).collect(),
        ..Default::default()
    };
    extra.describe(&mut rows);
    ProtoSchema { proto_descriptor: Some(rows) }
}

/// Encodes rows.
#[derive(Default)]
pub struct Encoder {
    row: Vec<u8>,
    extra: Arc<ExtraTable>,
    /// For the extra columns of a row.
    room: String,
}

impl Encoder {
    /// With these extra columns.
    pub fn new(extra: Arc<ExtraTable>) -> Self {
        Encoder { extra, ..Encoder::default() }
    }

    /// The extra columns that it writes.
    pub fn extra(&self) -> &ExtraTable {
        &self.extra
    }

    /// The row's message: one allocation, of its very size. What is wrong where an extra column does not take its value.
    pub fn encode(&mut self, record: &Record<'_>) -> Result<Vec<u8>, String> {
        self.row.clear();
        let mut fields = Fields { row: &mut self.row, number: 0 };
        visit_row(record, &mut fields);
        if !record.event.extra.is_empty() {
            let number = fields.number;
            self.put_extra(record, number)?;
        }
        Ok(self.row.as_slice().to_vec())
    }

    #[cold]
    fn put_extra(&mut self, record: &Record<'_>, before: u32) -> Result<(), String> {
        let Extra { plain, json } = record.event.extra;
        let (mut taken, texts) = (Ok(()), [plain, json].map(|span| record.batch.text(span)));
        extra::for_each(texts, &mut self.room, |name, json| {
            if taken.is_ok() {
                taken = self.extra.put(before, name, json, &mut self.row);
            }
        });
        taken
    }
}

/// Writes values as the fields of a message, numbered as they come. NULL is a field that is not there.
struct Fields<'o> {
    row: &'o mut Vec<u8>,
    number: u32,
}

impl Fields<'_> {
    #[inline(always)]
    fn put<T>(&mut self, value: Option<T>, put: impl FnOnce(u32, T, &mut Vec<u8>)) {
        self.number += 1;
        if let Some(value) = value {
            put(self.number, value, self.row);
        }
    }
}

impl<'a> Visit<'a> for Fields<'_> {
    #[inline(always)]
    fn int(&mut self, _: &'static Field, value: Option<i64>) {
        self.put(value, put_int);
    }

    #[inline(always)]
    fn count(&mut self, _: &'static Field, value: u64) {
        self.put(Some(value.cast_signed()), put_int);
    }

    #[inline(always)]
    fn float(&mut self, _: &'static Field, value: Option<f64>) {
        self.put(value, put_float);
    }

    #[inline(always)]
    fn text(&mut self, _: &'static Field, value: Option<&'a str>) {
        self.put(value, put_text);
    }

    #[inline(always)]
    fn id(&mut self, _: &'static Field, value: Option<Uuid>) {
        self.put(value, |number, id, row| {
            put_text(number, id.hyphenated().encode_lower(&mut [0; 36]), row);
        });
    }

    #[inline(always)]
    fn time(&mut self, _: &'static Field, value: Option<i64>) {
        self.put(value, put_int);
    }

    #[inline(always)]
    fn json(&mut self, _: &'static Field, value: Option<&'a str>) {
        self.put(value, put_text);
    }

    #[inline(always)]
    fn lsn(&mut self, _: &'static Field, value: Lsn) {
        self.put(Some(value.0.cast_signed()), put_int);
    }
}

/// Appends a float.
#[inline(always)]
pub fn put_float(number: u32, float: f64, row: &mut Vec<u8>) {
    encode_key(number, WireType::SixtyFourBit, row);
    row.extend_from_slice(&float.to_le_bytes());
}

/// Appends true or false.
pub fn put_bool(number: u32, value: bool, row: &mut Vec<u8>) {
    put_int(number, value.into(), row);
}

/// Appends bytes.
pub fn put_bytes(number: u32, bytes: &[u8], row: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, row);
    encode_varint(bytes.len() as u64, row);
    row.extend_from_slice(bytes);
}

/// Appends an integer.
pub fn put_int(number: u32, int: i64, row: &mut Vec<u8>) {
    encode_key(number, WireType::Varint, row);
    encode_varint(int.cast_unsigned(), row);
}

/// Appends a text.
pub fn put_text(number: u32, text: &str, row: &mut Vec<u8>) {
    put_bytes(number, text.as_bytes(), row);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use prost::Message;
    use uuid::Uuid;

    use gcp_bigquery_client::model::table_field_schema::TableFieldSchema;

    use super::super::config::{BigQueryConfig, Partitioning};
    use super::super::table;
    use super::*;
    use crate::batch::{Batch, BatchBuilder, Event, Row};
    use crate::event::samples;
    use crate::lsn::{Checkpoint, Lsn, Position};
    use crate::model::content::Content;

    /// The message as a reader writes it down who knows the columns only from their documentation.
    #[derive(Clone, PartialEq, Message)]
    struct Decoded {
        #[prost(int64, required, tag = "1")]
        event_id: i64,
        #[prost(string, optional, tag = "2")]
        content_id: Option<String>,
        #[prost(string, optional, tag = "3")]
        user_id: Option<String>,
        #[prost(string, optional, tag = "4")]
        event_type: Option<String>,
        #[prost(int64, required, tag = "5")]
        event_ts: i64,
        #[prost(int64, optional, tag = "6")]
        duration_ms: Option<i64>,
        #[prost(string, optional, tag = "7")]
        device: Option<String>,
        #[prost(string, optional, tag = "8")]
        raw_payload: Option<String>,
        #[prost(int64, optional, tag = "9")]
        raw_payload_bytes: Option<i64>,
        #[prost(string, optional, tag = "10")]
        slug: Option<String>,
        #[prost(string, optional, tag = "11")]
        title: Option<String>,
        #[prost(string, optional, tag = "12")]
        content_type: Option<String>,
        #[prost(int64, optional, tag = "13")]
        length_seconds: Option<i64>,
        #[prost(int64, optional, tag = "14")]
        publish_ts: Option<i64>,
        #[prost(double, optional, tag = "15")]
        engagement_seconds: Option<f64>,
        #[prost(double, optional, tag = "16")]
        engagement_pct: Option<f64>,
        #[prost(int64, required, tag = "17")]
        commit_ts: i64,
        #[prost(int64, required, tag = "18")]
        commit_lsn: i64,
        #[prost(int64, required, tag = "19")]
        ordinal: i64,
        #[prost(string, required, tag = "20")]
        epoch: String,
        #[prost(int64, required, tag = "21")]
        bucket_30m: i64,
        #[prost(int64, required, tag = "22")]
        ingested_at: i64,
    }

    fn batch(fill: impl FnOnce(&mut BatchBuilder) -> Event) -> Batch {
        let mut builder = BatchBuilder::new(Checkpoint::default());
        builder.intern("what stands before");
        let event = fill(&mut builder);
        builder.push(Row::Event(event));
        builder.finish(false)
    }

    fn empty_event() -> Event {
        Event::new(Position { commit_lsn: Lsn(7), ordinal: 3 }, 11, 5, -1)
    }

    fn full_event(builder: &mut BatchBuilder) -> Event {
        Event {
            content_id: Some(Uuid::from_u128(1)),
            user_id: Some(Uuid::from_u128(2)),
            event_type: Some(builder.intern("play")),
            duration_ms: Some(1_500),
            device: Some(builder.intern("tv")),
            raw_payload: Some(builder.intern("{}")),
            raw_payload_bytes: Some(2),
            content: Some(Arc::new(Content {
                id: Uuid::from_u128(1),
                slug: Some("s".into()),
                title: Some("t".into()),
                content_type: Some("video".into()),
                length_seconds: Some(3),
                publish_ts: Some(-9),
            })),
            ..empty_event()
        }
    }

    fn record(batch: &Batch) -> Record<'_> {
        Record { event: batch.events().next().unwrap(), batch, epoch: "e", ingested_at: 13 }
    }

    #[test]
    fn a_column_is_null_only_where_it_may_be() {
        let (full, empty) = (batch(full_event), batch(|_| empty_event()));
        let numbers = |batch| {
            let message = Encoder::default().encode(&record(batch)).unwrap();
            let fields = schema(&ExtraTable::default()).proto_descriptor.unwrap().field;
            let known = move |number: &u32| fields.iter().any(|field| field.number() == *number as i32);
            numbers_of(&message).into_iter().filter(known).collect::<Vec<u32>>()
        };
        let required = (1..).zip(columns()).filter(|(_, field)| field.required()).map(|(number, _)| number);
        assert_eq!(numbers(&full), (1..=columns().count() as u32).collect::<Vec<_>>());
        assert_eq!(numbers(&empty), required.collect::<Vec<u32>>());
    }

    /// The field numbers of a message.
    fn numbers_of(mut message: &[u8]) -> Vec<u32> {
        let mut numbers = Vec::new();
        while !message.is_empty() {
            let (number, wire_type) = prost::encoding::decode_key(&mut message).unwrap();
            prost::encoding::skip_field(wire_type, number, &mut message, Default::default()).unwrap();
            numbers.push(number);
        }
        numbers
    }

    #[test]
    fn table_and_descriptor_have_the_same_columns() {
        let table = table::wanted(&BigQueryConfig::default());
        let columns = table.schema.fields().clone().unwrap();
        let fields = schema(&ExtraTable::default()).proto_descriptor.unwrap().field;
        assert_eq!(columns.len(), fields.len());
        let line = |(column, field): (&TableFieldSchema, &FieldDescriptorProto)| {
            assert_eq!(column.name, field.name());
            let (kind, mode) = (format!("{:?}", column.r#type), column.mode.clone().unwrap_or_default());
            let (name, number) = (field.name(), field.number());
            format!("{number:2} {name:18} {kind:9} {mode:8} {:?} {:?}", field.label(), field.r#type())
        };
        let lines: Vec<String> = columns.iter().zip(&fields).map(line).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
         1 event_id           Integer   REQUIRED Required Int64
         2 content_id         String    NULLABLE Optional String
         3 user_id            String    NULLABLE Optional String
         4 event_type         String    NULLABLE Optional String
         5 event_ts           Timestamp REQUIRED Required Int64
         6 duration_ms        Integer   NULLABLE Optional Int64
         7 device             String    NULLABLE Optional String
         8 raw_payload        Json      NULLABLE Optional String
         9 raw_payload_bytes  Integer   NULLABLE Optional Int64
        10 slug               String    NULLABLE Optional String
        11 title              String    NULLABLE Optional String
        12 content_type       String    NULLABLE Optional String
        13 length_seconds     Integer   NULLABLE Optional Int64
        14 publish_ts         Timestamp NULLABLE Optional Int64
        15 engagement_seconds Float     NULLABLE Optional Double
        16 engagement_pct     Float     NULLABLE Optional Double
        17 commit_ts          Timestamp REQUIRED Required Int64
        18 commit_lsn         Integer   REQUIRED Required Int64
        19 ordinal            Integer   REQUIRED Required Int64
        20 epoch              String    REQUIRED Required String
        21 bucket_30m         Integer   REQUIRED Required Int64
        22 ingested_at        Timestamp REQUIRED Required Int64
        ");
    }

    #[test]
    fn rows_descriptor_and_table_are_the_same_as_in_every_release_before() {
        let mut builder = BatchBuilder::new(Checkpoint::default());
        let events = samples::events(2_000, |text| builder.intern(text));
        let batch = builder.finish(false);
        let mut encoder = Encoder::default();
        let record = |event| Record { event, batch: &batch, epoch: "e", ingested_at: 13 };
        let rows: Vec<u8> = events.iter().flat_map(|event| encoder.encode(&record(event)).unwrap()).collect();
        assert_eq!((rows.len(), samples::fingerprint(&rows)), (314_109, 8_181_084_708_181_905_007));
        let descriptor = schema(&ExtraTable::default()).encode_to_vec();
        assert_eq!((descriptor.len(), samples::fingerprint(&descriptor)), (457, 12_395_389_857_920_488_523));
        let tables = [Partitioning::HalfHour, Partitioning::Hour, Partitioning::None].map(|partitioning| {
            let config = BigQueryConfig { project_id: "acme".into(), partitioning, ..Default::default() };
            samples::fingerprint(&serde_json::to_vec(&table::wanted(&config)).unwrap())
        });
        assert_eq!(
            tables,
            [2_806_993_272_517_154_746, 11_620_118_970_924_528_258, 15_259_285_832_457_195_883]
        );
    }

    fn any_text() -> impl Strategy<Value = Option<String>> {
        proptest::option::of(any::<String>())
    }

    proptest! {
        #[test]
        fn a_row_reads_back_as_it_was(
            (id, lsn, ordinal, event_ts, commit_ts) in any::<(i64, u64, u64, i64, i64)>(),
            ids in any::<(Option<u128>, Option<u128>)>(),
            numbers in any::<(Option<u32>, Option<u32>, Option<i32>, Option<i64>)>(),
            texts in (any_text(), any_text(), any_text(), any_text()),
            content in proptest::option::of((any::<String>(), any::<String>())),
        ) {
            let length_seconds = numbers.2;
            let content = content.map(|(slug, title)| Arc::new(Content {
                id: Uuid::from_u128(9), slug: Some(slug), title: Some(title), content_type: texts.3.clone(), length_seconds, publish_ts: numbers.3,
            }));
            let batch = batch(|builder| Event {
                position: Position { commit_lsn: Lsn(lsn), ordinal },
                commit_ts,
                id,
                content_id: ids.0.map(Uuid::from_u128),
                user_id: ids.1.map(Uuid::from_u128),
                event_type: texts.0.as_deref().map(|text| builder.intern(text)),
                event_ts,
                duration_ms: numbers.0.map(i64::from),
                device: texts.1.as_deref().map(|text| builder.intern(text)),
                raw_payload: texts.2.as_deref().map(|text| builder.intern(text)),
                raw_payload_bytes: numbers.1,
                content: content.clone(),
                extra: Default::default(),
            });
            let event = batch.events().next().unwrap();
            let mut encoder = Encoder::default();
            encoder.encode(&record(&batch)).unwrap();
            let row = encoder.encode(&record(&batch));
            let wanted = Decoded {
                event_id: id,
                content_id: ids.0.map(|id| Uuid::from_u128(id).to_string()),
                user_id: ids.1.map(|id| Uuid::from_u128(id).to_string()),
                event_type: texts.0,
                event_ts,
                duration_ms: numbers.0.map(i64::from),
                device: texts.1,
                raw_payload: texts.2,
                raw_payload_bytes: numbers.1.map(i64::from),
                slug: content.as_ref().and_then(|content| content.slug.clone()),
                title: content.as_ref().and_then(|content| content.title.clone()),
                content_type: content.as_ref().and_then(|content| content.content_type.clone()),
                length_seconds: content.as_ref().and(length_seconds).map(i64::from),
                publish_ts: content.as_ref().and(numbers.3),
                engagement_seconds: event.engagement_seconds(),
                engagement_pct: event.engagement_pct(),
                commit_ts,
                commit_lsn: lsn as i64,
                ordinal: ordinal as i64,
                epoch: "e".into(),
                bucket_30m: crate::sink::bigquery::column::bucket_30m(event_ts),
                ingested_at: 13,
            };
            prop_assert_eq!(Decoded::decode(row.unwrap().as_slice()).unwrap(), wanted);
        }
    }
}
