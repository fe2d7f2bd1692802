//! A record that a topic or a dead letter holds, read back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walcast::event::encoding::Encoding;
use walcast::event::encoding::json::Json;
use walcast::event::replayed::Replayed;

fuzz_target!(|bytes: &[u8]| {
    let Some(values) = Json.read_event(bytes) else { return };
    let replayed = Replayed::of(&values);
    let _ = (values.position(), values.id(), replayed.commit_ts(), replayed.raw_payload_bytes());
    let _ = (replayed.checked(), replayed.content());
});
