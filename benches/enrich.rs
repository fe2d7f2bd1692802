//! From wire messages to batches: decode, join with content, batch; everything that the reading task does an
//! event, except the socket.
//!
//! `cargo bench --bench enrich`; elements per second are events per second on one core.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/stages/mod.rs"]
mod stages;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use stages::engagement;
use tokio::time::Instant;
use walcast::config::PipelineConfig;
use walcast::event::place::Places;
use walcast::lsn::Lsn;
use walcast::model::content::Content;
use walcast::telemetry::metrics;
use walcast::transform::Transform;
use walcast::transform::content_cache::ContentCache;

const EVENTS: i64 = 20_000;

fn enrich(criterion: &mut Criterion) {
    // What is counted for each event is a part of its cost.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    metrics::install().unwrap();
    let mut group = criterion.benchmark_group("enrich");
    group.throughput(Throughput::Elements(EVENTS as u64));
    let payloads = engagement::transaction(EVENTS);
    group.bench_function("events", |bencher| {
        bencher.iter_batched(transform, |transform| batches(transform, &payloads), BatchSize::LargeInput);
    });
    group.finish();
}

/// Takes the payloads and gives each batch away once it is full, as the pipeline does.
fn batches(mut transform: Transform, payloads: &[Vec<u8>]) -> Transform {
    for payload in payloads {
        transform.apply(payload).unwrap();
        if transform.is_full() {
            drop(black_box(transform.take_batch(Instant::now())));
        }
    }
    drop(black_box(transform.take_rest()));
    transform
}

fn transform() -> Transform {
    let cache = engagement::content_ids().map(content).collect::<ContentCache>();
    Transform::new(&Places::usual("public"), Lsn(50), cache, PipelineConfig::default().bounds())
}

fn content(id: uuid::Uuid) -> Content {
    Content {
        id,
        slug: Some(format!("episode-{id}")),
        title: Some("What we learned this week".into()),
        content_type: Some("podcast".into()),
        length_seconds: Some(1_817),
        publish_ts: Some(1_767_000_000_000_000),
    }
}

criterion_group!(benches, enrich);
criterion_main!(benches);
