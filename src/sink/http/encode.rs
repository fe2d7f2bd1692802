//! What is posted: an event's plain record, or a batch of them, or what a template makes of them; its id; its headers.

use std::io::Write;

use bytes::Bytes;
use flate2::GzBuilder;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::config::{Compression, Format, HttpConfig};
use super::template::{Headers, Templates, Unfilled};
use crate::batch::{Batch, Event};
use crate::error::Result;
use crate::event::encoding::{self, Encoding, PayloadForm};
use crate::event::schema::EventRecord;
use crate::lsn::Position;

/// An event in the batch that has its texts.
#[derive(Clone, Copy)]
pub struct Placed<'a> {
    /// The batch.
    pub batch: &'a Batch,
    /// The event.
    pub event: &'a Event,
}

/// One request, as often as it is sent: the same bytes under the same id.
#[derive(Debug, Clone)]
pub struct Request {
    /// The header `webhook-id`.
    pub id: String,
    /// What is signed, and what the hash in an id is of: the body before it is compressed.
    pub payload: Bytes,
    /// What is sent.
    pub body: Bytes,
    /// What the user's templates gave.
    pub headers: Headers,
}

/// Makes requests.
pub struct Encoder {
    encoding: &'static dyn Encoding,
    templates: Templates,
    batch_rows: usize,
    batch_bytes_max: usize,
    format: Format,
    compression: Compression,
}

impl Encoder {
    /// As the settings say.
    pub fn new(config: &HttpConfig) -> Result<Encoder> {
        Ok(Encoder {
            encoding: encoding::json::Json.with_payload(config.raw_payload),
            templates: Templates::new(config)?,
            batch_rows: config.batch_rows,
            batch_bytes_max: config.batch_bytes_max,
            format: config.format,
            compression: config.compression,
        })
    }

    /// The request for the first of these events, and how many it has: as many as one may have.
    pub fn request(&self, history: &Uuid, events: &[Placed<'_>]) -> (usize, Result<Request, Unfilled>) {
        let (mut records, mut ends) = (Vec::new(), Vec::new());
        for Placed { batch, event } in events.iter().take(self.batch_rows) {
            self.encoding.event(&EventRecord { event, texts: batch.texts() }, &mut records);
            if records.len() > self.batch_bytes_max && !ends.is_empty() {
                break;
            }
            ends.push(records.len());
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let records: Vec<&[u8]> =
            starts.zip(&ends).map(|(start, end)| records.get(start..*end).unwrap_or_default()).collect();
        let taken = events.get(..records.len()).unwrap_or_default();
        (taken.len(), self.of_records(history, taken, &records))
    }

    fn of_records(
        &self,
        history: &Uuid,
        events: &[Placed<'_>],
        records: &[&[u8]],
    ) -> Result<Request, Unfilled> {
        let place = match (events.first(), events.last()) {
            (Some(first), Some(last)) if self.batch_rows > 1 => {
                format!("{history}:{}:{}", first.event.position, last.event.position)
            }
            (Some(first), _) => event_id(history, first.event.position),
            (None, _) => String::new(),
        };
        let (body, headers) = self.templates.fill(&place, records)?;
        let payload: Bytes = body.map_or_else(|| self.joined(records), String::into_bytes).into();
        let id = match self.batch_rows {
            1 => place,
            // bounds may differ after a restart, and with other settings what is between them: see the module `http`
            _ => format!("{place}:{}", hash(&payload)),
        };
        let body = self.compressed(&payload);
        Ok(Request { id, payload, body, headers })
    }

    fn joined(&self, records: &[&[u8]]) -> Vec<u8> {
        match (self.batch_rows, self.format) {
            (1, _) => records.concat(),
            (_, Format::Json) => [b"[", records.join(&b","[..]).as_slice(), b"]"].concat(),
            (_, Format::Ndjson) => {
                records.iter().flat_map(|record| [record, &b"\n"[..]]).collect::<Vec<_>>().concat()
            }
        }
    }

    fn compressed(&self, payload: &Bytes) -> Bytes {
        match self.compression {
            Compression::None => payload.clone(),
            Compression::Gzip => {
                let mut gzip: GzEncoder<Vec<u8>> =
                    GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::new(GZIP_LEVEL));
                // a Vec takes all that is written to it
                gzip.write_all(payload).and_then(|()| gzip.finish()).unwrap_or_default().into()
            }
            Compression::Zstd => zstd::bulk::compress(payload, ZSTD_LEVEL).unwrap_or_default().into(),
        }
    }

    /// The event as a dead letter has it.
    pub fn letter(&self, Placed { batch, event }: &Placed<'_>) -> String {
        let mut record = Vec::new();
        let encoding = self.encoding.with_payload(PayloadForm::Json);
        encoding.event(&EventRecord { event, texts: batch.texts() }, &mut record);
        String::from_utf8_lossy(&record).into_owned()
    }
}

const GZIP_LEVEL: u32 = 3;
const ZSTD_LEVEL: i32 = 1;

/// The id of one event: its name.
fn event_id(history: &Uuid, position: Position) -> String {
    format!("{history}:{position}")
}

fn hash(payload: &[u8]) -> String {
    let digest = Sha256::digest(payload);
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use serde_json::Value;

    use super::*;
    use crate::batch::{BatchBuilder, Row};
    use crate::lsn::{Checkpoint, Lsn};

    fn batch(events: u64) -> Batch {
        let mut builder = BatchBuilder::new(Checkpoint::at(Lsn(1)));
        for ordinal in 0..events {
            let position = Position { commit_lsn: Lsn(0x20), ordinal };
            builder.push(Row::Event(Event::new(position, 0, ordinal as i64, 0)));
        }
        builder.finish(false)
    }

    fn request(config: &HttpConfig, batch: &Batch) -> (usize, Request) {
        let events: Vec<Placed<'_>> = batch.events().map(|event| Placed { batch, event }).collect();
        let (taken, request) = Encoder::new(config).unwrap().request(&Uuid::nil(), &events);
        (taken, request.unwrap())
    }

    #[test]
    fn an_event_alone_is_its_record_and_its_id_is_its_name() {
        let (taken, request) = request(&HttpConfig::default(), &batch(3));
        assert_eq!((taken, request.id.as_str()), (1, "00000000-0000-0000-0000-000000000000:0/20#0"));
        let record: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!((&record["event_id"], &record["commit_lsn"]), (&0.into(), &"0/20".into()));
    }

    #[test]
    fn a_batch_is_an_array_or_lines_and_its_id_changes_with_its_bytes() {
        let mut config = HttpConfig { batch_rows: 2, ..Default::default() };
        let (taken, array) = request(&config, &batch(3));
        assert_eq!((taken, serde_json::from_slice::<Vec<Value>>(&array.body).unwrap().len()), (2, 2));
        assert!(array.id.starts_with("00000000-0000-0000-0000-000000000000:0/20#0:0/20#1:"), "{}", array.id);
        assert_eq!(request(&config, &batch(2)).1.id, array.id);
        config.format = Format::Ndjson;
        let (_, lines) = request(&config, &batch(2));
        assert_eq!(lines.body.iter().filter(|byte| **byte == b'\n').count(), 2);
        assert_ne!(lines.id, array.id, "other bytes, another id");
    }

    #[test]
    fn a_batch_ends_before_it_is_too_large() {
        let config = HttpConfig { batch_rows: 100, batch_bytes_max: 1_000, ..Default::default() };
        let (taken, made) = request(&config, &batch(50));
        assert!(taken > 1 && made.body.len() <= 1_000 + taken, "{taken} of {} bytes", made.body.len());
        let config = HttpConfig { batch_rows: 100, batch_bytes_max: 1, ..Default::default() };
        assert_eq!(request(&config, &batch(50)).0, 1);
    }

    #[test]
    fn compressed_bodies_are_the_same_each_time() {
        let plain = request(&HttpConfig::default(), &batch(1)).1.body;
        for compression in [Compression::Gzip, Compression::Zstd] {
            let config = HttpConfig { compression, ..Default::default() };
            let [one, other] = [0, 1].map(|_| request(&config, &batch(1)).1.body);
            assert_eq!(one, other);
            let mut read = Vec::new();
            match compression {
                Compression::Gzip => {
                    flate2::read::GzDecoder::new(&one[..]).read_to_end(&mut read).unwrap();
                }
                _ => read = zstd::bulk::decompress(&one, 10_000).unwrap(),
            }
            assert_eq!(read, plain);
        }
    }
}
