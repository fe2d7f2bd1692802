//! Counters of a content on a day. Every one is a sum of integers (the last is a maximum), so the order in
//! which events come does not matter and SQL gives the same numbers.

use crate::event::Event;

use super::keys;

/// The fields of `engagement:<id>:<day>`, in the order of [`Day::from_texts`].
pub const DAY_FIELDS: [&str; 8] =
    ["plays", "pauses", "finishes", "clicks", "engagement_ms", "pct_micro_sum", "pct_count", "last_event_ts"];

/// What happened to one content on one UTC day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Day {
    /// plays, pauses, finishes, clicks, engagement_ms, pct_micro_sum, pct_count.
    counts: [u64; 7],
    /// Microseconds since 1970; `None` before the first event.
    last_event_ts: Option<i64>,
}

impl Day {
    /// What one event adds.
    pub fn of(event: &Event, event_type: Option<&str>) -> Day {
        let kind = |name| u64::from(event_type == Some(name));
        let pct_micro = pct_micro(event);
        Day {
            counts: [
                kind("play"),
                kind("pause"),
                kind("finish"),
                kind("click"),
                engagement_ms(event),
                pct_micro.unwrap_or_default(),
                u64::from(pct_micro.is_some()),
            ],
            last_event_ts: Some(event.event_ts),
        }
    }

    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Day) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count = count.saturating_add(more);
        }
        self.last_event_ts = self.last_event_ts.max(other.last_event_ts);
    }

    /// Adds `more`, and gives the fields that Redis now lacks: all of them the first time.
    pub fn grow(&mut self, more: &Day) -> impl Iterator<Item = (&'static str, String)> + use<> {
        let before = *self;
        self.add(more);
        let after = *self;
        let first = before.last_event_ts.is_none();
        let counts = after.counts.into_iter().zip(before.counts).zip(DAY_FIELDS);
        let moved = after.last_event_ts.filter(|_| after.last_event_ts != before.last_event_ts);
        counts
            .filter(move |((now, before), _)| first || now != before)
            .map(|((now, _), field)| (field, now.to_string()))
            .chain(moved.map(|last| ("last_event_ts", keys::time_text(last))))
    }

    /// Reads the fields' texts back; `Err` names the field that holds something else.
    pub fn from_texts(texts: &[Option<String>]) -> Result<Day, &'static str> {
        let mut day = Day::default();
        for ((count, text), field) in day.counts.iter_mut().zip(texts).zip(DAY_FIELDS) {
            if let Some(text) = text {
                *count = text.parse().map_err(|_| field)?;
            }
        }
        if let Some(text) = texts.get(7).and_then(Option::as_ref) {
            day.last_event_ts = Some(keys::time_of(text).ok_or("last_event_ts")?);
        }
        Ok(day)
    }
}

/// Milliseconds of engagement, 0 where there is no duration.
pub fn engagement_ms(event: &Event) -> u64 {
    event.duration_ms.and_then(|ms| u64::try_from(ms).ok()).unwrap_or_default()
}

/// The event's percent of the content's length in millionths, rounded half up: what SQL calls
/// `round(duration_ms * 100000.0 / length_seconds)`. `None` as for [`Event::engagement_pct`].
fn pct_micro(event: &Event) -> Option<u64> {
    let length = event.content.as_ref()?.length_seconds.filter(|length| *length > 0)?;
    let length = u128::try_from(length).ok()?;
    let ms = u128::try_from(event.duration_ms?).ok()?;
    u64::try_from((ms * 200_000 + length) / (2 * length)).ok()
}
