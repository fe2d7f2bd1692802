//! What Redis must show, computed in the plainest way from all rows there ever were.

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;
use walcast::batch::Event;

use crate::support::redis_server::Shape;
use crate::support::story::{Story, Told};

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// Everything that readers are promised once the story is told and the boards were refreshed at its time.
pub fn expected(story: &Story) -> BTreeMap<String, Shape> {
    let now = story.time.now();
    let mut shapes = BTreeMap::new();
    for row in &story.rows {
        if let Told::Event(event, event_type) = row {
            count_minute(&mut shapes, event, *event_type);
            count_day(&mut shapes, event, *event_type);
        }
    }
    for content in story.contents.values() {
        let mut fields: BTreeMap<String, String> = BTreeMap::new();
        fields.extend(content.slug.clone().map(|slug| ("slug".into(), slug)));
        fields.extend(content.title.clone().map(|title| ("title".into(), title)));
        fields.extend(content.content_type.clone().map(|text| ("content_type".into(), text)));
        fields.extend(content.length_seconds.map(|length| ("length_seconds".into(), length.to_string())));
        fields.extend(content.publish_ts.map(|at| ("publish_ts".into(), time_text(at))));
        shapes.insert(format!("content:{}", content.id), Shape::Hash(fields));
    }
    let in_window = |seconds: i64| {
        move |at: i64| {
            let bucket = seconds * SECOND / 60;
            let current = now.div_euclid(bucket);
            (current - 59..=current).contains(&at.div_euclid(bucket))
        }
    };
    board(&mut shapes, "top_engagement:10min", story, &in_window(600), &|_| true);
    board(&mut shapes, "top_engagement:1h", story, &in_window(3_600), &|_| true);
    board(&mut shapes, "top_engagement:24h", story, &in_window(86_400), &|_| true);
    board(&mut shapes, "top_engagement:all", story, &|_| true, &|_| true);
    let types = story.contents.values().filter_map(|content| content.content_type.as_deref());
    for content_type in types.collect::<HashSet<_>>() {
        let of_type =
            |id| story.contents.get(&id).is_some_and(|c| c.content_type.as_deref() == Some(content_type));
        let key = format!("top_engagement:10min:{content_type}");
        board(&mut shapes, &key, story, &in_window(600), &of_type);
    }
    shapes
}

fn board(
    shapes: &mut BTreeMap<String, Shape>,
    key: &str,
    story: &Story,
    in_window: &dyn Fn(i64) -> bool,
    belongs: &dyn Fn(Uuid) -> bool,
) {
    let mut sums: BTreeMap<Uuid, u64> = BTreeMap::new();
    for row in &story.rows {
        let Told::Event(event, _) = row else { continue };
        let (Some(id), Some(ms)) = (event.content_id, event.duration_ms) else { continue };
        if in_window(event.event_ts) && belongs(id) {
            *sums.entry(id).or_default() += ms as u64;
        }
    }
    let mut ranked: Vec<_> = sums.into_iter().filter(|(_, ms)| *ms > 0).collect();
    ranked.sort_by_key(|(id, score)| std::cmp::Reverse((*score, *id)));
    ranked.truncate(1_000);
    if !ranked.is_empty() {
        let scores = ranked.into_iter().map(|(id, ms)| (id.to_string(), ms));
        shapes.insert(key.into(), Shape::Board(scores.collect()));
    }
}

/// The story has no event close to the 48 hours: it may be written some time after it was told.
fn is_too_far_ahead(event: &Event) -> bool {
    event.event_ts > event.commit_ts + 48 * 3600 * SECOND
}

fn count_minute(shapes: &mut BTreeMap<String, Shape>, event: &Event, event_type: Option<&str>) {
    if event.event_ts < event.commit_ts - 2 * 3600 * SECOND || is_too_far_ahead(event) {
        return;
    }
    let minute = &time_text(event.event_ts)[..16];
    add(shapes, &format!("stats:events:{minute}"), event_type.unwrap_or("null"), 1);
}

fn count_day(shapes: &mut BTreeMap<String, Shape>, event: &Event, event_type: Option<&str>) {
    let Some(id) = event.content_id else { return };
    let day = event.event_ts.div_euclid(DAY);
    if (day + 3) * DAY <= event.commit_ts || is_too_far_ahead(event) {
        return;
    }
    let key = format!("engagement:{id}:{}", &time_text(event.event_ts)[..10]);
    for (field, name) in [("plays", "play"), ("pauses", "pause"), ("finishes", "finish"), ("clicks", "click")]
    {
        add(shapes, &key, field, u64::from(event_type == Some(name)));
    }
    add(shapes, &key, "engagement_ms", event.duration_ms.unwrap_or_default() as u64);
    let length =
        event.content.as_ref().and_then(|content| content.length_seconds).filter(|length| *length > 0);
    let pct = event.duration_ms.zip(length).map(|(ms, length)| {
        // half up, by way of text rather than of the arithmetic under test
        let exact = ms as u128 * 1_000_000 / length as u128;
        (exact / 10 + u128::from(exact % 10 >= 5)) as u64
    });
    add(shapes, &key, "pct_micro_sum", pct.unwrap_or_default());
    add(shapes, &key, "pct_count", u64::from(pct.is_some()));
    let Some(Shape::Hash(fields)) = shapes.get_mut(&key) else { return };
    let last = fields.entry("last_event_ts".into()).or_default();
    *last = last.clone().max(time_text(event.event_ts));
}

fn add(shapes: &mut BTreeMap<String, Shape>, key: &str, field: &str, more: u64) {
    let shape = shapes.entry(key.into()).or_insert_with(|| Shape::Hash(BTreeMap::new()));
    let Shape::Hash(fields) = shape else { return };
    let count = fields.entry(field.into()).or_insert_with(|| "0".into());
    *count = (count.parse::<u64>().unwrap() + more).to_string();
}

fn time_text(micros: i64) -> String {
    format!("{:.6}", jiff::Timestamp::from_microsecond(micros).unwrap())
}
