//! The way of an event, once, for callgrind: see `scripts/instructions.py`.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/stages/mod.rs"]
mod stages;

use stages::{Stages, engagement};
use walcast::config::PipelineConfig;
use walcast::telemetry::metrics;

const TRANSACTIONS: i64 = 200;
const EVENTS_EACH: i64 = 100;

fn main() {
    // what is counted for each event is a part of its cost
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    metrics::install().unwrap();
    let payloads = engagement::transactions(TRANSACTIONS, EVENTS_EACH);
    let mut stages = Stages::new(PipelineConfig::default().batch_rows_max);
    let events = stages::decode(&mut stages.decoder, &payloads);
    let batches = stages::enrich(&mut stages.transform, &payloads);
    stages::kafka(&mut stages.kafka, &batches);
    stages::redis(&mut stages.redis, &batches);
    stages::bigquery(&mut stages.bigquery, &batches);
    println!("{events} events");
}
