//! Events of every shape, the same in each run: what is made of them is held against what was made of them before.

use std::sync::Arc;

use uuid::Uuid;

use super::{Content, Event, Span};
use crate::lsn::{Lsn, Position};

const TEXTS: [&str; 9] =
    ["play", "", "ios \"x\"", "Zażółć\n", "back\\slash", "\u{0}\u{1f}\u{7f}", "😀", "a/b?c=d&e", "\u{2028}"];
const PAYLOADS: [&str; 6] = ["{}", "null", "17", r#"{"a": [1, 2.50]}"#, r#""text""#, r#"{"ü": {"b": null}}"#];
const NUMBERS: [i64; 8] = [0, 1, -1, 1_500, 86_399_999, i64::MAX, i64::MIN, 1 << 40];
const TIMES: [i64; 7] = [
    0,
    -1,
    1_767_323_045_000_001,
    -62_135_596_800_000_000,
    253_402_300_799_999_999,
    253_402_300_800_000_000,
    i64::MIN,
];

/// So many events; `intern` is where their texts go.
pub(crate) fn events(count: usize, mut intern: impl FnMut(&str) -> Span) -> Vec<Event> {
    let mut draw = Draw(0x2545_F491_4F6C_DD1D);
    (0..count).map(|_| event(&mut draw, &mut intern)).collect()
}

fn event(draw: &mut Draw, intern: &mut impl FnMut(&str) -> Span) -> Event {
    let raw_payload = draw.perhaps(&PAYLOADS);
    let position =
        Position { commit_lsn: Lsn(draw.draw() >> (draw.draw() % 64)), ordinal: draw.draw() >> 40 };
    let mut event = Event::new(position, draw.one(&TIMES), draw.one(&NUMBERS), 0);
    event.content_id = draw.id();
    event.user_id = draw.id();
    event.event_type = draw.perhaps(&TEXTS).map(&mut *intern);
    event.event_ts = draw.one(&TIMES);
    event.duration_ms = draw.perhaps(&NUMBERS);
    event.device = draw.perhaps(&TEXTS).map(&mut *intern);
    event.raw_payload = raw_payload.map(&mut *intern);
    event.raw_payload_bytes = draw.perhaps(&NUMBERS).map(|bytes| bytes as u32);
    event.content = draw.coin().then(|| Arc::new(content(draw)));
    event
}

/// A content row.
pub(crate) fn content(draw: &mut Draw) -> Content {
    Content {
        id: Uuid::from_u64_pair(draw.draw(), draw.draw()),
        slug: Some(draw.one(&TEXTS).to_owned()),
        title: Some(draw.one(&TEXTS).repeat(3)),
        content_type: draw.perhaps(&TEXTS).map(str::to_owned),
        length_seconds: draw.perhaps(&NUMBERS).map(|seconds| seconds as i32),
        publish_ts: draw.perhaps(&TIMES),
    }
}

/// xorshift64.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn coin(&mut self) -> bool {
        !self.draw().is_multiple_of(3)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.draw() as usize % of.len()]
    }

    fn perhaps<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        self.coin().then(|| self.one(of))
    }

    fn id(&mut self) -> Option<Uuid> {
        self.coin().then(|| Uuid::from_u64_pair(self.draw(), self.draw()))
    }
}

/// FNV-1a: the same in every run and version, unlike the standard library's hash.
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
