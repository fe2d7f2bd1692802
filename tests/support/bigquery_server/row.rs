//! Rows as the service reads them: by the descriptor that their writer sent, over the wire types.

use std::collections::BTreeMap;

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::DescriptorProto;
use serde::de::IgnoredAny;

/// What the table keeps of a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    pub event_id: i64,
    pub event_ts: i64,
    pub commit_lsn: i64,
    pub ordinal: i64,
    pub bucket_30m: i64,
    pub epoch: String,
    /// Columns whose names begin with `extra_`.
    pub extra: BTreeMap<String, String>,
}

/// Which field number is which column.
pub struct Layout {
    columns: BTreeMap<u32, String>,
}

impl Layout {
    /// What a writer says of its rows.
    pub fn new(descriptor: &DescriptorProto) -> Self {
        let columns = descriptor.field.iter().map(|field| (field.number() as u32, field.name().to_owned()));
        Layout { columns: columns.collect() }
    }

    /// The columns that it writes.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.columns.values().map(String::as_str)
    }

    /// Reads a row; what is wrong with it otherwise. `required` columns must be there.
    pub fn read(&self, message: &[u8], required: &[String]) -> Result<Row, String> {
        let (mut row, mut seen, mut rest) = (Row::default(), Vec::new(), message);
        let corrupt = |error: prost::DecodeError| format!("not a protocol buffer message: {error}");
        while rest.has_remaining() {
            let (number, wire) = decode_key(&mut rest).map_err(corrupt)?;
            let name = self.columns.get(&number).map_or("", String::as_str);
            seen.push(name);
            match (name, wire) {
                ("raw_payload", WireType::LengthDelimited) => {
                    serde_json::from_slice::<IgnoredAny>(text(&mut rest)?)
                        .map_err(|error| format!("Field raw_payload: invalid JSON: {error}"))?;
                }
                ("epoch", WireType::LengthDelimited) => {
                    row.epoch = String::from_utf8_lossy(text(&mut rest)?).into_owned();
                }
                (extra, WireType::LengthDelimited) if extra.starts_with("extra_") => {
                    let value = String::from_utf8_lossy(text(&mut rest)?).into_owned();
                    row.extra.insert(extra.to_owned(), value);
                }
                (_, WireType::Varint) => {
                    let value = decode_varint(&mut rest).map_err(corrupt)? as i64;
                    row.put(name, value);
                }
                _ => skip_field(wire, number, &mut rest, DecodeContext::default()).map_err(corrupt)?,
            }
        }
        match required.iter().find(|name| !seen.contains(&name.as_str())) {
            Some(name) => Err(format!("Field {name}: the required field is missing.")),
            None => Ok(row),
        }
    }
}

impl Row {
    fn put(&mut self, name: &str, value: i64) {
        match name {
            "event_id" => self.event_id = value,
            "event_ts" => self.event_ts = value,
            "commit_lsn" => self.commit_lsn = value,
            "ordinal" => self.ordinal = value,
            "bucket_30m" => self.bucket_30m = value,
            _ => {}
        }
    }
}

fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let length = decode_varint(rest).map_err(|error| error.to_string())? as usize;
    let (text, behind) = rest.split_at_checked(length).ok_or("a field is cut off")?;
    *rest = behind;
    Ok(text)
}
