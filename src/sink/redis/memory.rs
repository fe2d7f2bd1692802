//! What Redis holds, as far as this instance needs to know it to write absolute values: the windows and
//! boards whole, and the counters that were in use lately.
//!
//! Memory is never ahead of Redis for longer than one script call: when that fails, memory is dropped and
//! read again. Pure.

use std::borrow::Cow;
use std::sync::Arc;

use hashbrown::HashMap;
use uuid::Uuid;

use super::boards::Boards;
use super::connection::Call;
use super::counters::Day;
use super::flush::{Flush, Seen, Touched};
use super::keys;
use super::recent::Recent;
use super::window::{Ring, WINDOWS};
use crate::event::schema::{CONTENT_FIELD_COUNT, ContentRecord, Field, Origin, Visit, visit_content};
use crate::event::{Content, ContentChange};
use crate::lsn::{Lsn, Position};

/// Days of contents remembered, at least.
const DAYS_KEPT: usize = 100_000;
/// Totals and rows of contents remembered, at least.
const CONTENTS_KEPT: usize = 100_000;
/// Minutes remembered, at least.
const MINUTES_KEPT: usize = 2_000;

/// Fields and values of one HSET: far below what Lua can unpack.
const WORDS_MAX: usize = 2_000;

/// What Redis holds.
pub struct Memory {
    /// The windows.
    pub rings: [Ring; WINDOWS.len()],
    /// The boards.
    pub boards: Boards,
    days: Recent<(Uuid, i32), Day>,
    totals: Recent<Uuid, u64>,
    minutes: Recent<i64, HashMap<String, u64>>,
    rows: Recent<Uuid, Row>,
}

/// A content row as Redis has it.
struct Row {
    /// `None`: there may be something else, or nothing.
    content: Option<Arc<Content>>,
    /// Unix seconds.
    expires_at: i64,
}

/// Something to read from Redis before a flush can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The counters of a content on a day.
    Day(Uuid, i32),
    /// The counters of a minute.
    Minute(i64),
    /// The engagement with a content since the first event.
    Total(Uuid),
    /// When a content row expires.
    Row(Uuid),
    /// A bucket of the future, of [`WINDOWS`] by index.
    Bucket(usize, i64),
}

impl Memory {
    /// A memory that knows nothing, with windows that end at `now`.
    pub fn new(now: i64) -> Self {
        Memory {
            rings: WINDOWS.map(|window| Ring::new(&window, now)),
            boards: Boards::new(),
            days: Recent::new(DAYS_KEPT),
            totals: Recent::new(CONTENTS_KEPT),
            minutes: Recent::new(MINUTES_KEPT),
            rows: Recent::new(CONTENTS_KEPT),
        }
    }

    /// What must be known before `flush` can be applied, and is not.
    pub fn wanted(&mut self, flush: &Flush<'_>) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for (id, touched) in &flush.contents {
            let days = touched.days.iter().map(|(day, _)| *day);
            wanted.extend(
                days.filter(|day| self.days.get(&(*id, *day)).is_none()).map(|day| Wanted::Day(*id, day)),
            );
            if touched.ms > 0 && self.totals.get(id).is_none() {
                wanted.push(Wanted::Total(*id));
            }
            let row_is_there = touched.row.as_ref().is_some_and(|row| row.content.is_some());
            if row_is_there && self.rows.get(id).is_none() {
                wanted.push(Wanted::Row(*id));
            }
            for (at, (buckets, ring)) in touched.buckets.iter().zip(&self.rings).enumerate() {
                let unknown = buckets.iter().filter(|(bucket, _)| !ring.knows(*bucket));
                wanted.extend(unknown.map(|(bucket, _)| Wanted::Bucket(at, *bucket)));
            }
        }
        let minutes = flush.minutes.keys().map(|(minute, _)| *minute);
        wanted.extend(minutes.filter(|at| self.minutes.get(at).is_none()).map(Wanted::Minute));
        wanted.sort_unstable_by_key(Wanted::rank);
        wanted.dedup();
        wanted
    }

    /// Whether what Redis has of a day is known, and something is there.
    pub fn knows_day(&self, id: &Uuid, day: i32) -> bool {
        self.days.peek(&(*id, day)).is_some_and(|known| !known.is_empty())
    }

    /// Whether Redis is known to show the content as it is.
    pub fn shows(&self, content: &Arc<Content>) -> bool {
        let shown = self.rows.peek(&content.id).and_then(|row| row.content.as_ref());
        shown.is_some_and(|shown| Arc::ptr_eq(shown, content) || shown == content)
    }

    /// Redis has this of a day.
    pub fn learn_day(&mut self, id: Uuid, day: i32, counted: Day) {
        self.days.insert((id, day), counted);
    }

    /// Redis has this of a minute.
    pub fn learn_minute(&mut self, minute: i64, counted: impl IntoIterator<Item = (String, u64)>) {
        self.minutes.insert(minute, counted.into_iter().collect());
    }

    /// Redis has this of all time.
    pub fn learn_total(&mut self, id: Uuid, ms: u64) {
        self.totals.insert(id, ms);
    }

    /// A content row, if it is there, expires at this time.
    pub fn learn_row(&mut self, id: Uuid, expires_at: i64) {
        self.rows.insert(id, Row { content: None, expires_at });
    }

    /// The rows of these contents, where there are any, have been given until this time.
    pub fn renewed(&mut self, ids: &[Uuid], expires_at: i64) {
        for id in ids {
            if let Some(row) = self.rows.get(id) {
                row.expires_at = row.expires_at.max(expires_at);
            }
        }
    }

    /// Takes a flush in, and adds the steps to `call` that bring Redis to the same state.
    pub fn apply(&mut self, flush: Flush<'_>, now: i64, call: &mut Call) {
        call.number(flush.marks.len());
        for bit in &flush.marks {
            call.number(bit);
        }
        let mut totals = Vec::new();
        let mut buckets: HashMap<(usize, i64), Vec<(Uuid, u64)>> = HashMap::new();
        for (id, touched) in flush.contents {
            if let Some(total) = self.add_total(id, touched.ms) {
                totals.push((id, total));
            }
            self.add_to_windows(id, &touched, now, &mut buckets);
            for (day, more) in &touched.days {
                self.add_day(id, *day, more, now, call);
            }
            if let Some(seen) = touched.row {
                self.show(id, seen, now, call);
            }
        }
        set_sums(call, keys::TOTALS, None, &totals);
        for ((at, bucket), sums) in buckets {
            let Some(window) = WINDOWS.get(at) else { continue };
            let expires_at = keys::bucket_expires_at(window, bucket);
            set_sums(call, &keys::bucket(window, bucket), Some(expires_at), &sums);
        }
        self.add_minutes(flush.minutes, call);
    }

    fn add_total(&mut self, id: Uuid, ms: u64) -> Option<u64> {
        let total = self.totals.get(&id).filter(|_| ms > 0)?;
        *total = total.saturating_add(ms);
        self.boards.total(id, *total);
        Some(*total)
    }

    fn add_to_windows(
        &mut self,
        id: Uuid,
        touched: &Touched,
        now: i64,
        written: &mut HashMap<(usize, i64), Vec<(Uuid, u64)>>,
    ) {
        for (at, (buckets, ring)) in touched.buckets.iter().zip(&mut self.rings).enumerate() {
            for (bucket, ms) in buckets {
                let fresh = ring.add(*bucket, id, *ms, now);
                written.entry((at, *bucket)).or_default().push((id, fresh));
            }
        }
    }

    fn add_day(&mut self, id: Uuid, day: i32, more: &Day, now: i64, call: &mut Call) {
        let Some(known) = self.days.get(&(id, day)) else { return };
        let expires_at = keys::day_expires_at(day);
        let tell = known.is_empty() || expires_at - now / 1_000_000 < keys::EXPIRY_SLACK_SECONDS;
        let fields: Vec<_> = known.grow(more).collect();
        if fields.is_empty() {
            return;
        }
        call.key(keys::engagement(&id, day)).number_if(tell.then_some(expires_at)).number(2 * fields.len());
        for (field, text) in fields {
            call.arg(field).arg(text);
        }
    }

    fn add_minutes(&mut self, more: HashMap<(i64, &str), u64>, call: &mut Call) {
        for ((minute, event_type), count) in more {
            let Some(known) = self.minutes.get(&minute) else { continue };
            let sum = known.entry(event_type.to_owned()).or_default();
            *sum = sum.saturating_add(count);
            call.key(keys::minute(minute)).number_if(Some(keys::minute_expires_at(minute)));
            call.number(2).arg(event_type).number(*sum);
        }
    }

    /// Shows a content row, or takes it away; leaves it when Redis has it for long enough.
    fn show(&mut self, id: Uuid, seen: Seen, now: i64, call: &mut Call) {
        let content_type = seen.content.as_ref().and_then(|content| content.content_type.as_deref());
        let [first, ..] = &self.rings;
        self.boards.of_type(id, content_type, first.sum(&id));
        let Some(content) = seen.content else {
            self.rows.remove(&id);
            call.key(keys::content(&id)).arg("").number(0);
            return;
        };
        let until = seen.used_at.max(now) / 1_000_000 + keys::CONTENT_SECONDS;
        let Some(row) = self.rows.get(&id) else { return };
        let same =
            row.content.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, &content) || *shown == content);
        if same && row.expires_at >= until {
            return;
        }
        row.expires_at = row.expires_at.max(until + keys::CONTENT_SLACK_SECONDS);
        set_row(call, &content, row.expires_at);
        row.content = Some(content);
    }
}

impl Wanted {
    /// An order that puts equals side by side.
    fn rank(&self) -> (u8, i64, Uuid) {
        match *self {
            Wanted::Day(id, day) => (0, i64::from(day), id),
            Wanted::Minute(minute) => (1, minute, Uuid::nil()),
            Wanted::Total(id) => (2, 0, id),
            Wanted::Row(id) => (3, 0, id),
            Wanted::Bucket(at, bucket) => (4, bucket, Uuid::from_u128(at as u128)),
        }
    }
}

/// A step that sets fields of a hash of sums by content.
fn set_sums(call: &mut Call, key: &str, expires_at: Option<i64>, sums: &[(Uuid, u64)]) {
    for part in sums.chunks(WORDS_MAX / 2) {
        call.key(key).number_if(expires_at).number(2 * part.len());
        for (id, ms) in part {
            call.arg(id.as_bytes()).number(ms);
        }
    }
}

/// Two steps that leave exactly this row.
fn set_row(call: &mut Call, content: &Content, expires_at: i64) {
    let nowhere = Position { commit_lsn: Lsn::ZERO, ordinal: 0 };
    let change = ContentChange { position: nowhere, commit_ts: 0, id: content.id, after: None };
    let mut fields = HashFields(Vec::with_capacity(CONTENT_FIELD_COUNT));
    visit_content(&ContentRecord { change: &change, content }, &mut fields);
    let key = keys::content(&content.id);
    call.key(&key).arg("").number(0);
    call.key(&key).number_if(Some(expires_at)).number(2 * fields.0.len());
    for (field, text) in &fields.0 {
        call.arg(field).arg(text.as_ref());
    }
}

/// The columns of a content row that are not NULL, as texts. The id is in the key.
struct HashFields<'a>(Vec<(&'static str, Cow<'a, str>)>);

impl<'a> HashFields<'a> {
    fn put<T>(&mut self, field: &'static Field, value: Option<T>, text: impl FnOnce(T) -> Cow<'a, str>) {
        if let Some(value) = value.filter(|_| field.origin == Origin::Row && field.name != "id") {
            self.0.push((field.name, text(value)));
        }
    }
}

impl<'a> Visit<'a> for HashFields<'a> {
    fn int(&mut self, field: &'static Field, value: Option<i64>) {
        self.put(field, value, |int| int.to_string().into());
    }

    fn count(&mut self, field: &'static Field, value: u64) {
        self.put(field, Some(value), |count| count.to_string().into());
    }

    fn float(&mut self, field: &'static Field, value: Option<f64>) {
        self.put(field, value, |float| float.to_string().into());
    }

    fn text(&mut self, field: &'static Field, value: Option<&'a str>) {
        self.put(field, value, Cow::from);
    }

    fn id(&mut self, field: &'static Field, value: Option<Uuid>) {
        self.put(field, value, |id| id.to_string().into());
    }

    fn time(&mut self, field: &'static Field, value: Option<i64>) {
        self.put(field, value, |micros| keys::time_text(micros).into());
    }

    fn json(&mut self, field: &'static Field, value: Option<&'a str>) {
        self.put(field, value, Cow::from);
    }

    fn lsn(&mut self, field: &'static Field, value: Lsn) {
        self.put(field, Some(value), |lsn| lsn.to_string().into());
    }
}
