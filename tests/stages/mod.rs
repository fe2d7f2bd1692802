//! The way of an event in memory, stage by stage, driven as the service drives it: what lies between the socket
//! and the sockets of the sinks. Each stage is a function of its own, never inlined, so that a profile has it
//! under its name. The input is fixed.
#![allow(dead_code, clippy::unwrap_used)]

pub mod encode;
pub mod engagement;

use std::hint::black_box;
use std::slice;
use std::sync::Arc;

use uuid::Uuid;
use walcast::batch::Batch;
use walcast::config::PipelineConfig;
use walcast::event::place::Places;
use walcast::lsn::{Checkpoint, HistoryId, Lsn, StoredCheckpoint};
use walcast::model::content::Content;
use walcast::model::{Table, Tables};
use walcast::pgoutput::{Message, Transaction};
use walcast::sink::bigquery::column::Record;
use walcast::sink::bigquery::encode::Encoder as BigQueryEncoder;
use walcast::sink::kafka::KafkaConfig;
use walcast::sink::kafka::encode::Encoder as KafkaEncoder;
use walcast::sink::redis::connection::{Call, FLUSH};
use walcast::sink::redis::flush::{Flushes, Scope};
use walcast::sink::redis::memory::{Memory, Wanted};
use walcast::sink::redis::window::Sums;
use walcast::transform::Transform;
use walcast::transform::content_cache::ContentCache;

/// Microseconds since 1970: soon after the last of the events.
const NOW: i64 = 946_684_800_000_000 + 802_000_000_000_000 + 60_000_000;

/// The state of each stage.
pub struct Stages {
    pub decoder: Decoder,
    pub transform: Transform,
    pub kafka: KafkaEncoder,
    pub redis: Redis,
    pub bigquery: BigQueryEncoder,
}

/// What the decoding of a session keeps.
pub struct Decoder {
    transaction: Transaction,
    tables: Tables,
}

/// What the Redis sink keeps while it writes.
pub struct Redis {
    memory: Memory,
    history_id: HistoryId,
    checkpoint: Checkpoint,
    checkpoint_text: String,
}

impl Stages {
    /// A stream that begins here, and batches of so many rows.
    pub fn new(batch_rows_max: usize) -> Self {
        let config = PipelineConfig { batch_rows_max, ..PipelineConfig::default() };
        let cache = engagement::content_ids().map(content).collect::<ContentCache>();
        Stages {
            decoder: Decoder {
                transaction: Transaction::default(),
                tables: Tables::new(&Places::usual("public")),
            },
            transform: Transform::new(&Places::usual("public"), Lsn(50), cache, config.bounds()),
            kafka: KafkaEncoder::new(&KafkaConfig::default(), config.row_bytes_max),
            redis: Redis::new(),
            bigquery: BigQueryEncoder::default(),
        }
    }
}

/// From payload to position and typed columns; gives the number of events.
#[inline(never)]
pub fn decode(decoder: &mut Decoder, payloads: &[Vec<u8>]) -> usize {
    let mut events = 0;
    for payload in payloads {
        let message = Message::parse(payload).unwrap();
        black_box(decoder.transaction.advance(&message).unwrap());
        match message {
            Message::Relation(relation) => decoder.tables.describe(relation).unwrap(),
            Message::Insert { relation_id, new } => {
                if let Table::Engagement(table) = decoder.tables.get(relation_id).unwrap() {
                    black_box(table.read(&new).unwrap());
                    events += 1;
                }
            }
            _ => {}
        }
    }
    events
}

/// From payload to batches of joined events; decodes on the way.
#[inline(never)]
pub fn enrich(transform: &mut Transform, payloads: &[Vec<u8>]) -> Vec<Arc<Batch>> {
    let mut batches = Vec::new();
    for payload in payloads {
        transform.apply(payload).unwrap();
        if transform.is_full() {
            batches.extend(transform.take_rest().map(Arc::new));
        }
    }
    batches.extend(transform.take_rest().map(Arc::new));
    batches
}

/// From batches to Kafka's messages: JSON, key, partition, headers.
#[inline(never)]
pub fn kafka(encoder: &mut KafkaEncoder, batches: &[Arc<Batch>]) {
    for batch in batches {
        for row in batch.rows() {
            black_box(encoder.row(batch, row));
        }
    }
}

/// From batches to the bytes of Redis's script calls, a write a batch. What Redis would have to tell first is
/// nothing but zeros.
#[inline(never)]
pub fn redis(redis: &mut Redis, batches: &[Arc<Batch>]) {
    for batch in batches {
        redis.write(slice::from_ref(batch));
    }
}

/// From batches to the rows of BigQuery's Storage Write service.
#[inline(never)]
pub fn bigquery(encoder: &mut BigQueryEncoder, batches: &[Arc<Batch>]) {
    const HISTORY_ID: &str = "00000000-0000-0000-0000-000000000007";
    for batch in batches {
        for event in batch.events() {
            drop(black_box(encoder.encode(&Record { event, batch, epoch: HISTORY_ID, ingested_at: NOW })));
        }
    }
}

impl Redis {
    fn new() -> Self {
        let (system_id, slot) = ("7000000000000000000".to_owned(), "walcast".to_owned());
        Redis {
            memory: Memory::new(NOW),
            history_id: HistoryId { uuid: Uuid::from_u128(7), system_id, timeline: 1, slot },
            checkpoint: Checkpoint::at(Lsn(50)),
            checkpoint_text: String::new(),
        }
    }

    fn write(&mut self, batches: &[Arc<Batch>]) {
        let mut flushes = Flushes::new(batches, self.checkpoint);
        while let Some(flush) = flushes.next(&Scope { memory: &self.memory, now: NOW, horizon: i64::MAX }) {
            for wanted in self.memory.wanted(&flush) {
                self.learn(wanted);
            }
            self.checkpoint = flush.checkpoint;
            let checkpoint_text = StoredCheckpoint::new(&self.history_id, self.checkpoint).to_json();
            let mut call = Call::default();
            call.key("walcast:checkpoint:walcast")
                .key("walcast:ahead")
                .number(1)
                .arg("session")
                .arg(&self.checkpoint_text)
                .arg(&checkpoint_text);
            self.memory.apply(flush, NOW, &mut call);
            black_box(call.command(&FLUSH).get_packed_command());
            self.checkpoint_text = checkpoint_text;
        }
    }

    fn learn(&mut self, wanted: Wanted) {
        match wanted {
            Wanted::Day(id, day) => self.memory.learn_day(id, day, Default::default()),
            Wanted::Minute(minute) => self.memory.learn_minute(minute, []),
            Wanted::Total(id) => self.memory.learn_total(id, 0),
            Wanted::Row(id) => self.memory.learn_row(id, 0),
            Wanted::Bucket(at, bucket) => self.memory.rings[at].load(bucket, Sums::new(), None, NOW),
        }
    }
}

fn content(id: Uuid) -> Content {
    Content {
        id,
        slug: Some(format!("episode-{id}")),
        title: Some("What we learned this week".into()),
        content_type: Some("podcast".into()),
        length_seconds: Some(1_817),
        publish_ts: Some(1_767_000_000_000_000),
    }
}
