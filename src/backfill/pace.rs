//! How fast rows of before go: as the sinks take them, and for a quarter of the time while events come.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::lsn::Lsn;
use crate::source::request::RequestRow;

/// Rows of one read at most, unless more have one id.
const READ_ROWS: i64 = 4_000;
/// The same while events come: a long read takes the source's time from them.
const READ_ROWS_BESIDE_EVENTS: i64 = 500;
/// Rows of one request at most.
const REQUEST_ROWS_MAX: usize = 500;
/// The same while events come, which wait behind it.
const REQUEST_ROWS_BESIDE_EVENTS: usize = 100;
/// Bytes of one request's records at most, unless the rows of one id have more: a request is one batch, before which and behind
/// which batches end.
const REQUEST_BYTES_MAX: usize = 256 << 10;

/// How long no events must have come to be taken as none: they come in transactions, between which many requests fit.
const QUIET: Duration = Duration::from_millis(500);
/// How many times as long as one request took it pauses behind it while events come.
const PAUSE_TIMES: u32 = 3;
/// How long it pauses at most.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The pace of one that brings rows.
pub struct Pace {
    /// How many events had come when that was asked the last time.
    events: u64,
    /// When it was last seen that more had come.
    came: Instant,
    /// Whether that is not long ago.
    beside_events: bool,
    pause_times: u32,
}

impl Default for Pace {
    /// Careful until it is known whether events come.
    fn default() -> Self {
        Pace { events: 0, came: Instant::now(), beside_events: true, pause_times: PAUSE_TIMES }
    }
}

impl Pace {
    /// Of one that keeps a snapshot and a sink away for as long as it lasts: half of the time is its own.
    pub fn hurried() -> Self {
        Pace { pause_times: 1, ..Pace::default() }
    }

    /// How long it pauses behind a request that took so long, when so many events have come by now, those that lanes read included.
    pub fn pause(&mut self, events: u64, now: Instant, took: Duration) -> Duration {
        if std::mem::replace(&mut self.events, events) != events {
            self.came = now;
        }
        self.beside_events = now.duration_since(self.came) < QUIET;
        if self.beside_events { (took * self.pause_times).min(PAUSE_MAX) } else { Duration::ZERO }
    }

    /// Whether events came when that was asked the last time.
    pub fn gives_way(&self) -> bool {
        self.beside_events
    }

    /// How many rows are read at once at most; by small steps where `rows_per_second` bounds them.
    pub fn read_rows(&self, rows_per_second: Option<u32>) -> i64 {
        let rows = if self.beside_events { READ_ROWS_BESIDE_EVENTS } else { READ_ROWS };
        rows_per_second.map_or(rows, |rate| i64::from(rate / 5).clamp(1, rows))
    }

    /// How many rows one request has at most.
    pub fn request_rows(&self) -> usize {
        if self.beside_events { REQUEST_ROWS_BESIDE_EVENTS } else { REQUEST_ROWS_MAX }
    }

    /// Whether there is room for one more request, where `waiting` bytes wait in the fullest queue, which may hold
    /// `queue_bytes_max`, and `in_flight` are on their way there. The rest is for events, of which many may come at once. While none
    /// come it is more than a sink collects for one write by default. A queue that is too small for that takes one at a time.
    pub fn has_room(&self, queue_bytes_max: usize, waiting: u64, in_flight: usize) -> bool {
        let eighths = if self.beside_events { 2 } else { 5 };
        let filled = waiting + in_flight as u64;
        filled == 0 || filled + REQUEST_BYTES_MAX as u64 <= (queue_bytes_max / 8 * eighths) as u64
    }
}

/// Requests that the stream has not brought yet: where each lies, and how large its batch is.
#[derive(Default)]
pub(super) struct InFlight(pub(super) VecDeque<(Lsn, usize)>);

impl InFlight {
    /// The stream has come this far.
    pub(super) fn received(&mut self, received: Lsn) {
        while self.0.front().is_some_and(|(sent, _)| *sent < received) {
            self.0.pop_front();
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Rows by requests, each with the last id of which it has all rows.
pub(super) fn groups(rows: Vec<(i64, RequestRow)>, rows_max: usize) -> Vec<(i64, Vec<RequestRow>)> {
    let mut groups: Vec<(i64, Vec<RequestRow>)> = Vec::new();
    let mut bytes = 0;
    for (id, row) in rows {
        let size = row.record.len();
        match groups.last_mut() {
            Some((last, group))
                if *last == id || group.len() < rows_max && bytes + size <= REQUEST_BYTES_MAX =>
            {
                bytes += size;
                *last = id;
                group.push(row);
            }
            _ => {
                bytes = size;
                groups.push((id, vec![row]));
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_by_small_steps_until_no_events_come() {
        let (mut pace, now, took) = (Pace::default(), Instant::now(), Duration::from_millis(20));
        assert_eq!((pace.read_rows(None), pace.request_rows()), (500, 100));
        assert_eq!(pace.pause(7, now, took), took * 3);
        // the next transaction is on its way
        assert_eq!(pace.pause(7, now + QUIET / 2, took), took * 3);
        assert_eq!(pace.pause(7, now + QUIET, took), Duration::ZERO);
        assert_eq!((pace.read_rows(None), pace.request_rows()), (4_000, 500));
        assert_eq!([1, 50, 1_000_000].map(|rate| pace.read_rows(Some(rate))), [1, 10, 4_000]);
        assert_eq!(pace.pause(8, now + 2 * QUIET, Duration::from_secs(7)), PAUSE_MAX);
        assert_eq!((pace.read_rows(None), pace.request_rows()), (500, 100));
    }

    #[test]
    fn a_queue_keeps_room_for_events_whatever_its_size() {
        let mut pace = Pace::default();
        for (later, eighths) in [(Duration::ZERO, 2), (QUIET, 5)] {
            pace.pause(1, Instant::now() + later, Duration::ZERO);
            for queue in [64 << 10, 1 << 20, 8 << 20, 64 << 20] {
                // what is on its way may be in any sink's queue a moment later
                let (mut waiting, mut in_flight) = (0, 0);
                while pace.has_room(queue, waiting, in_flight) {
                    in_flight += REQUEST_BYTES_MAX;
                    if in_flight == 4 * REQUEST_BYTES_MAX {
                        waiting += std::mem::take(&mut in_flight) as u64;
                    }
                }
                let filled = waiting as usize + in_flight;
                assert!(filled <= (queue / 8 * eighths).max(REQUEST_BYTES_MAX), "{filled} of {queue}");
                assert!(filled >= REQUEST_BYTES_MAX, "one at a time always goes");
            }
        }
    }

    fn row(bytes: usize) -> RequestRow {
        RequestRow { record: "x".repeat(bytes), joins: true, refused: None }
    }

    #[test]
    fn a_request_is_bounded_and_never_ends_between_two_rows_of_one_id() {
        let half = REQUEST_BYTES_MAX / 2;
        let rows = [1, 2, 3, 3, 3, 4].map(|id| (id, row(half))).to_vec();
        let groups = groups(rows, REQUEST_ROWS_MAX);
        let shape: Vec<(i64, usize)> = groups.iter().map(|(last, rows)| (*last, rows.len())).collect();
        assert_eq!(shape, [(2, 2), (3, 3), (4, 1)]);
        assert!(super::groups(Vec::new(), 1).is_empty());
        let small = super::groups([1, 2, 2, 3].map(|id| (id, row(1))).to_vec(), 2);
        let shape: Vec<(i64, usize)> = small.iter().map(|(last, rows)| (*last, rows.len())).collect();
        assert_eq!(shape, [(2, 3), (3, 1)]);
    }
}
