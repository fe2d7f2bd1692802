//! What one event costs to encode, for Kafka and for BigQuery's Storage Write service.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, Event, Row};
use walcast::event::encoding::Encoding;
use walcast::event::encoding::json::Json;
use walcast::event::schema::EventRecord;
use walcast::lsn::{Checkpoint, Lsn, Position};
use walcast::model::content::Content;
use walcast::sink::bigquery::column::Record;
use walcast::sink::bigquery::encode::Encoder;

const EVENTS: u64 = 1_000;

fn event(builder: &mut BatchBuilder, content: &Arc<Content>, ordinal: u64) -> Event {
    Event {
        extra: Default::default(),
        position: Position { commit_lsn: Lsn(0x16_B374_D848), ordinal },
        commit_ts: 1_767_323_045_600_000,
        id: 4_200_000 + ordinal as i64,
        content_id: Some(content.id),
        user_id: Some(Uuid::from_u128(0x0123_4567_89ab_cdef_u128 << 32 | u128::from(ordinal))),
        event_type: Some(builder.intern("play")),
        event_ts: 1_767_323_045_123_456 + ordinal as i64,
        duration_ms: Some(12_345 + ordinal as i64),
        device: Some(builder.intern("ios")),
        raw_payload: Some(builder.intern(r#"{"app": "4.12.0", "session": "b1946ac9", "network": "wifi"}"#)),
        raw_payload_bytes: Some(59),
        content: Some(Arc::clone(content)),
    }
}

fn batch() -> Batch {
    let content = Arc::new(Content {
        id: Uuid::from_u128(0xfeed_face_dead_beef_u128 << 64),
        slug: Some("the-daily-episode-1017".into()),
        title: Some("The Daily: what we learned this week".into()),
        content_type: Some("podcast".into()),
        length_seconds: Some(1_817),
        publish_ts: Some(1_767_000_000_000_000),
    });
    let mut builder = BatchBuilder::new(Checkpoint::default());
    for ordinal in 0..EVENTS {
        let event = event(&mut builder, &content, ordinal);
        builder.push(Row::Event(event));
    }
    builder.finish(false)
}

fn encode(criterion: &mut Criterion) {
    let batch = batch();
    let mut out = Vec::new();
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(EVENTS));
    group.bench_function("kafka_json", |bencher| {
        bencher.iter(|| {
            for event in batch.events() {
                out.clear();
                Json.event(&EventRecord { event, texts: batch.texts() }, &mut out);
                black_box(&out);
            }
        });
    });
    let history_id = Uuid::from_u128(7).to_string();
    let mut encoder = Encoder::default();
    group.bench_function("bigquery_row", |bencher| {
        bencher.iter(|| {
            for event in batch.events() {
                let record =
                    Record { event, batch: &batch, epoch: &history_id, ingested_at: 1_767_323_046_000_000 };
                drop(black_box(encoder.encode(&record)));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
