//! Decoding a row allocates nothing. A test binary of its own, as the counting allocator is the process's.
#![allow(clippy::unwrap_used)]

#[path = "pgoutput/encode.rs"]
#[allow(dead_code)]
mod encode;
#[path = "pgoutput/engagement.rs"]
mod engagement;

use allocation_counter::measure;
use engagement::Decoder;

#[test]
fn an_insert_is_decoded_without_an_allocation() {
    for binary in [true, false] {
        let payloads = engagement::transaction(1000, binary);
        let mut decoder = Decoder::default();
        let mut decode = |payloads: &[Vec<u8>]| {
            payloads.iter().filter(|payload| decoder.decode(payload).unwrap().is_some()).count()
        };

        let described = measure(|| assert_eq!(decode(&payloads[..2]), 0));
        assert!(described.count_total > 8, "a relation is owned, and the counter counts: {described:?}");

        let rows = measure(|| assert_eq!(decode(&payloads[2..]), 1000));
        assert_eq!(rows.count_total, 0, "binary '{binary}': {rows:?}");
    }
}

#[test]
fn both_forms_give_the_same_event() {
    let (binary, text) = (engagement::transaction(100, true), engagement::transaction(100, false));
    let (mut of_binary, mut of_text) = (Decoder::default(), Decoder::default());
    for (binary, text) in binary.iter().zip(&text) {
        assert_eq!(of_binary.decode(binary).unwrap(), of_text.decode(text).unwrap());
    }
}
