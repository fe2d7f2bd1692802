//! How many allocations the way of an event takes. A test binary of its own, as the counting allocator is the
//! process's; what librdkafka allocates in C is not in it.
#![allow(clippy::unwrap_used)]

mod stages;

use allocation_counter::measure;
use stages::Stages;
use stages::engagement::{self, Decoder};
use walcast::event::extra::put_member;
use walcast::pgoutput::{Value, oid};

/// Events of a batch: one for each content there is.
const EVENTS: usize = 1000;

/// Allocations that a batch of [`EVENTS`] takes in each stage, once all is warm.
const WRITTEN_DOWN: [(&str, u64); 5] = [
    ("decode", 0),
    // rows and texts of the batch: made once, and cut to size
    ("enrich", 6),
    // but for what librdkafka allocates in C for the headers
    ("kafka", 0),
    // fifteen a content that a flush touches
    ("redis", 15_126),
    // a row goes to gRPC as a `Vec` of its own
    ("bigquery", EVENTS as u64),
];

#[test]
fn a_batch_takes_the_allocations_that_are_written_down() {
    let payloads = engagement::transactions(4, EVENTS as i64);
    let (cold, warm) = payloads.split_at(2 * EVENTS + 5);
    let (cold, warming) = cold.split_at(EVENTS + 3);
    let mut stages = Stages::new(EVENTS + 1);
    allocations(&mut stages, cold);
    allocations(&mut stages, warming);
    for payloads in warm.chunks(EVENTS + 2) {
        assert_eq!(allocations(&mut stages, payloads), WRITTEN_DOWN);
    }
}

/// What each stage allocates for the one batch that the payloads make.
fn allocations(stages: &mut Stages, payloads: &[Vec<u8>]) -> [(&'static str, u64); 5] {
    let mut batches = Vec::new();
    let counts = [
        ("decode", measure(|| assert_eq!(stages::decode(&mut stages.decoder, payloads), EVENTS))),
        ("enrich", measure(|| batches = stages::enrich(&mut stages.transform, payloads))),
        ("kafka", measure(|| stages::kafka(&mut stages.kafka, &batches))),
        ("redis", measure(|| stages::redis(&mut stages.redis, &batches))),
        ("bigquery", measure(|| stages::bigquery(&mut stages.bigquery, &batches))),
    ];
    assert_eq!(batches.iter().map(|batch| batch.rows().len()).collect::<Vec<_>>(), [EVENTS]);
    counts.map(|(stage, count)| (stage, count.count_total))
}

#[test]
fn an_insert_is_decoded_without_an_allocation() {
    let payloads = engagement::transaction(1000);
    let mut decoder = Decoder::default();
    let mut decode = |payloads: &[Vec<u8>]| {
        payloads.iter().filter(|payload| decoder.decode(payload).unwrap().is_some()).count()
    };

    let described = measure(|| assert_eq!(decode(&payloads[..2]), 0));
    assert!(described.count_total > 8, "a relation is owned, and the counter counts: {described:?}");

    let rows = measure(|| assert_eq!(decode(&payloads[2..]), 1000));
    assert_eq!(rows.count_total, 0, "{rows:?}");
}

#[test]
fn an_extra_column_is_written_without_an_allocation() {
    let values: [(u32, &[u8]); 10] = [
        (oid::INT8, &[0, 0, 0, 0, 0, 0, 0, 7]),
        (oid::FLOAT8, &[0x3f, 0xb9, 0x99, 0x99, 0x99, 0x99, 0x99, 0x9a]),
        (oid::NUMERIC, &[0, 2, 0, 0, 0x40, 0, 0, 2, 0, 12, 0x13, 0x88]),
        (oid::TEXT, b"PL"),
        (oid::BYTEA, b"PL"),
        (oid::DATE, &[0, 0, 0, 7]),
        (oid::TIMESTAMPTZ, &[0, 0, 0, 0, 0, 0, 0, 7]),
        (oid::INTERVAL, &[0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 15]),
        (oid::INET, &[2, 24, 0, 4, 10, 0, 0, 1]),
        (oid::FIRST_USER, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 21, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 7]),
    ];
    let mut out = String::with_capacity(1 << 10);
    let written = measure(|| {
        values.iter().for_each(|(of, bytes)| put_member("x", *of, Value::Binary(bytes), &mut out));
    });
    let wanted = r#",7,0.1,"-12.50","PL","UEw=","2000-01-08","2000-01-01T00:00:00.000007Z","P1Y3M1DT0.000007S","10.0.0.1/24",[7]"#;
    assert_eq!((out.replace("\"x\":", ""), written.count_total), (wanted.to_owned(), 0));
}
