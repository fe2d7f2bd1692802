//! The decoder alone, in memory: inserts of `engagement_events` from payload to position and eight columns.
//!
//! `cargo bench --bench decode`; elements per second are inserts per second on one core.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/stages/mod.rs"]
mod stages;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use stages::engagement::{self, Decoder};
use walcast::pgoutput::Message;

/// More bytes than the caches near a core hold.
const INSERTS: i64 = 20_000;

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(INSERTS as u64));
    let payloads = engagement::transaction(INSERTS);
    group.bench_function("parse", |bencher| {
        bencher.iter(|| payloads.iter().for_each(|payload| drop(black_box(Message::parse(payload)))));
    });
    group.bench_function("all columns", |bencher| {
        bencher.iter(|| {
            let mut decoder = Decoder::default();
            for payload in &payloads {
                black_box(decoder.decode(payload).unwrap());
            }
        });
    });
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
