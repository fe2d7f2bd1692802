//! What a slot sends, each payload behind its length as in `tests/data/pgoutput`: from bytes to batches of events.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tokio::time::Instant;
use walcast::config::PipelineConfig;
use walcast::event::place::Places;
use walcast::lsn::Lsn;
use walcast::transform::Transform;
use walcast::transform::content_cache::ContentCache;

fuzz_target!(|bytes: &[u8]| {
    let bounds = PipelineConfig::default().bounds();
    let mut transform = Transform::new(&Places::usual("public"), Lsn(50), ContentCache::default(), bounds);
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = after.len().min(u32::from_be_bytes(*length) as usize);
        let (payload, after) = after.split_at(length);
        rest = after;
        if transform.apply(payload).is_err() {
            break;
        }
        if transform.asks().is_some() {
            transform.answered(None);
        }
        while transform.take_batch(Instant::now()).is_some() {}
    }
    while transform.take_rest().is_some() {}
});
