//! Every key that walcast has in Redis: its name, when it expires, and how times are written.

use uuid::Uuid;

use super::window::Window;
use crate::event::time;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
const MINUTE: i64 = 60 * SECOND;

/// HASH of content id (16 bytes) → milliseconds of engagement since the first event. Never expires.
pub const TOTALS: &str = "walcast:all";

/// STRING of bits: which keys lack events that were dated too far ahead (see [`super::ahead`]). Never expires.
pub const AHEAD: &str = "walcast:ahead";

/// ZSET of content id → seconds of engagement since the first event.
pub const BOARD_ALL: &str = "top_engagement:all";

/// How long a content row stays after an event or a change of its own: at least 48 h.
pub const CONTENT_SECONDS: i64 = 48 * 3600;

/// A content row is given this much more, so that it need not be renewed with every event.
pub const CONTENT_SLACK_SECONDS: i64 = 3600;

/// How long the row of a content on the board of all time stays without being renewed.
pub const LEADER_SECONDS: i64 = 32 * 86_400;

/// How long a board lives without a refresh.
pub const BOARD_SECONDS: i64 = 30;

/// HASH of `checkpoint` ([`crate::lsn::StoredCheckpoint`] as JSON), `fencing_token` and `session`. Never expires.
pub fn checkpoint(slot: &str) -> String {
    format!("walcast:checkpoint:{slot}")
}

/// HASH of `token` and `mark`: the checkpoint of version 0.1. Moved when the fence is taken.
pub fn former_checkpoint(slot: &str) -> String {
    format!("walcast:mark:{slot}")
}

/// HASH of `fencing_token`, `session` and `checkpoint` while Redis is rebuilt; until it is gone nobody else writes.
pub fn rebuild(slot: &str) -> String {
    format!("walcast:rebuild:{slot}")
}

/// HASH of content id (16 bytes) → milliseconds in this bucket of the window, beyond what is packed.
pub fn bucket(window: &Window, bucket: i64) -> String {
    format!("walcast:{}:{}", window.name, bucket * window.bucket_seconds)
}

/// STRING of what the bucket held when it was packed (see [`super::packed`]).
pub fn packed(window: &Window, bucket: i64) -> String {
    format!("walcast:{}:{}:packed", window.name, bucket * window.bucket_seconds)
}

/// When the keys of a bucket expire: an hour after it has left the window.
pub fn bucket_expires_at(window: &Window, bucket: i64) -> i64 {
    (bucket + 1 + super::window::BUCKETS) * window.bucket_seconds + 3600
}

/// ZSET of content id → seconds of engagement in the window.
pub fn board(window: &Window) -> String {
    format!("top_engagement:{}", window.name)
}

/// ZSET of content id → seconds of engagement in the window, of one content type.
pub fn board_of_type(window: &Window, content_type: &str) -> String {
    format!("top_engagement:{}:{content_type}", window.name)
}

/// HASH of the content row.
pub fn content(id: &Uuid) -> String {
    content_named(id)
}

/// The same, of an id as it stands on a board.
pub fn content_named(id: impl std::fmt::Display) -> String {
    format!("content:{id}")
}

/// HASH of the counters of one content on one UTC day (see [`super::counters::Day`]).
pub fn engagement(id: &Uuid, day: i32) -> String {
    let date = time_text(i64::from(day) * DAY);
    format!("engagement:{id}:{}", date.get(..10).unwrap_or_default())
}

/// HASH of event type → events of one minute.
pub fn minute(minute: i64) -> String {
    let time = time_text(minute * MINUTE);
    format!("stats:events:{}", time.get(..16).unwrap_or_default())
}

/// The UTC day of a time, counted from 1970-01-01.
pub fn day_of(micros: i64) -> i32 {
    i32::try_from(micros.div_euclid(DAY)).unwrap_or(i32::MAX)
}

/// The minute of a time, counted from 1970.
pub fn minute_of(micros: i64) -> i64 {
    micros.div_euclid(MINUTE)
}

/// Redis is told when a key expires once, and again in the last hour: should its clock be ahead of ours, it has
/// the key no longer, and a write makes it anew.
pub const EXPIRY_SLACK_SECONDS: i64 = 3600;

/// Unix seconds at which the counters of a day expire: 48 h after its end.
pub fn day_expires_at(day: i32) -> i64 {
    (i64::from(day) + 3) * 86_400
}

/// How many minutes the counters of a minute outlive it.
pub const MINUTE_LIVES_MINUTES: i64 = 120;

/// Unix seconds at which the counters of a minute expire: 2 h after its end.
pub fn minute_expires_at(minute: i64) -> i64 {
    (minute + 1 + MINUTE_LIVES_MINUTES) * 60
}

/// Microseconds since 1970 as `2026-01-02T03:04:05.678901Z`.
pub fn time_text(micros: i64) -> String {
    let text = time::time_text(micros).map(Vec::from).unwrap_or_default();
    String::from_utf8(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::redis::window::WINDOWS;

    const TIME: i64 = 1_767_323_045_678_901;

    #[test]
    fn keys_are_named_as_documented() {
        let id = Uuid::nil();
        let [ten_minutes, hour, day] = &WINDOWS;
        assert_eq!(
            engagement(&id, day_of(TIME)),
            "engagement:00000000-0000-0000-0000-000000000000:2026-01-02"
        );
        assert_eq!(minute(minute_of(TIME)), "stats:events:2026-01-02T03:04");
        assert_eq!(content(&id), "content:00000000-0000-0000-0000-000000000000");
        assert_eq!(board(ten_minutes), "top_engagement:10min");
        assert_eq!(board(hour), "top_engagement:1h");
        assert_eq!(board(day), "top_engagement:24h");
        assert_eq!(board_of_type(ten_minutes, "podcast"), "top_engagement:10min:podcast");
        assert_eq!(bucket(ten_minutes, 176_732_304), "walcast:10min:1767323040");
        assert_eq!(packed(hour, 29_455_384), "walcast:1h:1767323040:packed");
        assert_eq!(checkpoint("walcast"), "walcast:checkpoint:walcast");
    }

    #[test]
    fn counters_outlive_their_time_by_what_is_promised() {
        let end_of_day = i64::from(day_of(TIME) + 1) * 86_400;
        assert_eq!(day_expires_at(day_of(TIME)), end_of_day + 48 * 3600);
        let end_of_minute = (minute_of(TIME) + 1) * 60;
        assert_eq!(minute_expires_at(minute_of(TIME)), end_of_minute + 2 * 3600);
    }

    #[test]
    fn a_time_before_1970_lies_in_the_day_it_lies_in() {
        assert_eq!(day_of(-1), -1);
        assert_eq!(engagement(&Uuid::nil(), -1).get(48..), Some("1969-12-31"));
    }
}
