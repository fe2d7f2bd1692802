//! Counters of a content on a day. Every one is a sum of integers (the last is a maximum), so the order in
//! which events come does not matter and SQL gives the same numbers.

use std::collections::HashMap;

use crate::event::{Event, time};

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

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.last_event_ts.is_none()
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
        let first = before.is_empty();
        let counts = after.counts.into_iter().zip(before.counts).zip(DAY_FIELDS);
        let moved = after.last_event_ts.filter(|_| after.last_event_ts != before.last_event_ts);
        counts
            .filter(move |((now, before), _)| first || now != before)
            .map(|((now, _), field)| (field, now.to_string()))
            .chain(moved.map(|last| ("last_event_ts", keys::time_text(last))))
    }

    /// The fields in which two days differ.
    pub fn differences(&self, other: &Day) -> Vec<&'static str> {
        let counts = self.counts.iter().zip(&other.counts).zip(DAY_FIELDS);
        let unequal = counts.filter(|((one, other), _)| one != other).map(|(_, field)| field);
        let last = (self.last_event_ts != other.last_event_ts).then_some("last_event_ts");
        unequal.chain(last).collect()
    }

    /// The fields that hold more than another day's.
    pub fn beyond(&self, other: &Day) -> Vec<&'static str> {
        let counts = self.counts.iter().zip(&other.counts).zip(DAY_FIELDS);
        let more = counts.filter(|((one, other), _)| one > other).map(|(_, field)| field);
        let last = (self.last_event_ts > other.last_event_ts).then_some("last_event_ts");
        more.chain(last).collect()
    }

    /// Whether a field depends on the content's length.
    pub fn is_percent(field: &str) -> bool {
        field.starts_with("pct_")
    }

    /// Reads all fields of a day; `None` when one holds something else.
    pub fn from_fields(fields: &HashMap<String, String>) -> Option<Day> {
        Day::from_texts(&DAY_FIELDS.map(|field| fields.get(field).cloned())).ok()
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
            day.last_event_ts = Some(time::micros_of(text).ok_or("last_event_ts")?);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::{Lsn, Position};
    use crate::model::content::Content;
    use proptest::prelude::*;
    use std::sync::Arc;
    use uuid::Uuid;

    fn event(duration_ms: Option<i64>, length_seconds: Option<i32>, event_ts: i64) -> Event {
        let content = Content {
            id: Uuid::nil(),
            slug: None,
            title: None,
            content_type: None,
            length_seconds,
            publish_ts: None,
        };
        Event {
            content_id: Some(Uuid::nil()),
            duration_ms,
            content: Some(Arc::new(content)),
            ..Event::new(Position { commit_lsn: Lsn(1), ordinal: 0 }, 0, 0, event_ts)
        }
    }

    fn days() -> impl Strategy<Value = Vec<Day>> {
        let kind =
            prop::sample::select(vec![Some("play"), Some("pause"), Some("finish"), Some("click"), None]);
        let one = (kind, prop::option::of(0i64..10_000_000), prop::option::of(-1i32..9_000), 0i64..1 << 51);
        prop::collection::vec(
            one.prop_map(|(kind, ms, length, ts)| Day::of(&event(ms, length, ts), kind)),
            1..40,
        )
    }

    proptest! {
        #[test]
        fn a_day_is_the_same_in_every_order_and_grouping(days in days(), cut in 0usize..40) {
            let sum = |days: &mut dyn Iterator<Item = &Day>| days.fold(Day::default(), |mut sum, day| { sum.add(day); sum });
            let (left, right) = days.split_at(cut.min(days.len()));
            let mut grouped = sum(&mut right.iter());
            grouped.add(&sum(&mut left.iter().rev()));
            prop_assert_eq!(grouped, sum(&mut days.iter()));
        }

        #[test]
        fn the_fields_written_are_the_day_and_read_back(days in days()) {
            let mut sum = Day::default();
            let mut redis: HashMap<&str, String> = HashMap::new();
            for day in &days {
                redis.extend(sum.grow(day));
                let texts: Vec<Option<String>> = DAY_FIELDS.iter().map(|field| redis.get(field).cloned()).collect();
                prop_assert!(texts.iter().all(Option::is_some), "every field is there from the first event on");
                prop_assert_eq!(Day::from_texts(&texts), Ok(sum));
            }
        }

        #[test]
        fn percent_is_within_half_a_millionth(ms in 0i64..1 << 40, length in 1i32..) {
            let event = event(Some(ms), Some(length), 0);
            let exact = event.engagement_pct().unwrap() * 1e6;
            let rounded = pct_micro(&event).unwrap() as f64;
            prop_assert!((rounded - exact).abs() <= 0.5 + exact * 1e-15, "{} {}", rounded, exact);
        }
    }

    #[test]
    fn halves_round_up_and_missing_parts_give_nothing() {
        assert_eq!(pct_micro(&event(Some(1), Some(3), 0)), Some(33_333));
        assert_eq!(pct_micro(&event(Some(2), Some(3), 0)), Some(66_667));
        assert_eq!(pct_micro(&event(Some(1), Some(200_000), 0)), Some(1), "0.5 rounds up");
        assert_eq!(pct_micro(&event(Some(1), Some(0), 0)), None);
        assert_eq!(pct_micro(&event(None, Some(3), 0)), None);
        assert_eq!(pct_micro(&Event { content: None, ..event(Some(1), Some(3), 0) }), None);
    }

    #[test]
    fn a_foreign_text_is_named_by_its_field() {
        let mut texts = vec![Some("1".to_owned()); 7];
        texts.push(Some("2026-01-02T03:04:05.000000Z".into()));
        assert!(Day::from_texts(&texts).is_ok());
        texts[3] = Some("many".into());
        assert_eq!(Day::from_texts(&texts), Err("clicks"));
    }
}
