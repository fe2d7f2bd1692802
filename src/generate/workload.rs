//! The seeded, endless sequence of transactions. No IO and no clock: the same seed, catalog and times give
//! the same rows.

use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp1, Zipf};
use uuid::Uuid;

use super::text;

/// Playbacks under way at any time.
const SESSIONS: usize = 2_000;
/// Popularity falls with rank to this power: of 10,000 contents the first gets about a tenth of all.
const ZIPF_EXPONENT: f64 = 1.05;
/// One new content row in this many events.
const EVENTS_PER_NEW_CONTENT: u64 = 4_000;
/// One title edit in this many events.
const EVENTS_PER_TITLE_EDIT: u64 = 500;
/// New content comes in among the most popular.
const NEW_CONTENT_RANK_MAX: usize = 50;
/// How long most content has been published.
const CATALOG_AGE: Duration = Duration::from_secs(400 * 24 * 3_600);
/// What a playback without a known length is taken to last.
const UNKNOWN_LENGTH_SECONDS: i32 = 600;

/// A row of `content` to insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewContent {
    pub id: Uuid,
    pub slug: String,
    pub title: String,
    pub content_type: Option<&'static str>,
    pub length_seconds: Option<i32>,
    pub publish_ts: SystemTime,
}

/// Rows of `engagement_events`, column by column as the INSERT wants them; all of one length.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Events {
    pub content_id: Vec<Option<Uuid>>,
    pub user_id: Vec<Option<Uuid>>,
    pub event_type: Vec<&'static str>,
    pub event_ts: Vec<SystemTime>,
    pub duration_ms: Vec<Option<i32>>,
    pub device: Vec<Option<&'static str>>,
    pub raw_payload: Vec<Option<String>>,
}

impl Events {
    pub fn len(&self) -> usize {
        self.event_type.len()
    }
}

/// What is to be committed together: first the content, then the edit, then the events.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    pub new_content: Option<NewContent>,
    pub title_edit: Option<(Uuid, String)>,
    pub events: Events,
}

/// What the workload knows of a content row.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    pub id: Uuid,
    pub length_seconds: Option<i32>,
}

/// The generator's state.
pub struct Workload {
    rng: StdRng,
    /// By popularity, the most popular first.
    catalog: Vec<Known>,
    popularity: Option<Zipf<f64>>,
    sessions: Vec<Session>,
    users: u32,
    events: u64,
}

/// One playback by one person on one device.
#[derive(Debug, Clone, Copy)]
struct Session {
    content: Known,
    user_id: Option<Uuid>,
    device: Option<&'static str>,
    played_ms: i64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Playing,
    Paused,
}

/// One event before it is spread over the columns.
struct Event {
    content_id: Option<Uuid>,
    user_id: Option<Uuid>,
    event_type: &'static str,
    duration_ms: Option<i64>,
    device: Option<&'static str>,
    position_ms: i64,
}

impl Workload {
    /// A workload over content that is there already, in any order.
    pub fn new(seed: u64, users: u32, catalog: Vec<Known>) -> Self {
        let mut workload = Workload {
            rng: StdRng::seed_from_u64(seed),
            catalog,
            popularity: None,
            sessions: Vec::with_capacity(SESSIONS),
            users: users.max(1),
            events: 0,
        };
        workload.popularity_changed();
        workload
    }

    /// How many contents are known.
    pub fn contents(&self) -> usize {
        self.catalog.len()
    }

    /// Content published some time ago, to be inserted before the first transaction.
    pub fn old_content(&mut self, count: usize, now: SystemTime) -> Vec<NewContent> {
        let made: Vec<NewContent> = (0..count)
            .map(|_| {
                let age = CATALOG_AGE.mul_f64(self.rng.random::<f64>());
                self.content(now - age)
            })
            .collect();
        self.catalog.extend(made.iter().map(NewContent::known));
        self.popularity_changed();
        made
    }

    /// A number of rows for the next transaction: from 1 to `rows_max`, each order of magnitude alike.
    pub fn transaction_rows(&mut self, rows_max: u64) -> u64 {
        let rows_max = rows_max.max(1) as f64;
        self.rng.random_range(0.0..=(rows_max + 0.99).ln()).exp() as u64
    }

    /// The next transaction. Its new content may be used by later ones only once it is committed.
    pub fn transaction(&mut self, rows: u64, now: SystemTime) -> Transaction {
        let before = self.events;
        let due = |every: u64| (before + rows) / every > before / every;
        let new_content = due(EVENTS_PER_NEW_CONTENT).then(|| self.publish(now));
        let title_edit = due(EVENTS_PER_TITLE_EDIT).then(|| self.edit()).flatten();
        let mut events = Events::default();
        for _ in 0..rows {
            let event = self.event();
            self.push(&mut events, event, now);
        }
        self.events += rows;
        Transaction { new_content, title_edit, events }
    }

    fn content(&mut self, published: SystemTime) -> NewContent {
        let title = text::title(&mut self.rng);
        let (content_type, length_seconds) = text::kind_and_length(&mut self.rng);
        NewContent {
            id: random_uuid(&mut self.rng),
            slug: text::slug(&title, self.rng.random()),
            title,
            content_type,
            length_seconds,
            publish_ts: published,
        }
    }

    fn publish(&mut self, now: SystemTime) -> NewContent {
        let content = self.content(now);
        let rank = self.rng.random_range(0..=self.catalog.len().min(NEW_CONTENT_RANK_MAX));
        self.catalog.insert(rank, content.known());
        self.popularity_changed();
        content
    }

    fn edit(&mut self) -> Option<(Uuid, String)> {
        let content = self.popular()?;
        Some((content.id, format!("{} (updated)", text::title(&mut self.rng))))
    }

    fn popularity_changed(&mut self) {
        self.popularity = Zipf::new(self.catalog.len() as f64, ZIPF_EXPONENT).ok();
    }

    fn popular(&mut self) -> Option<Known> {
        let rank = self.popularity?.sample(&mut self.rng) as usize;
        self.catalog.get(rank.saturating_sub(1)).copied()
    }

    fn event(&mut self) -> Event {
        match self.rng.random_range(0..100) {
            0..3 => self.click(None),
            3..13 => {
                let content = self.popular();
                self.click(content)
            }
            _ => self.playback(),
        }
    }

    fn click(&mut self, content: Option<Known>) -> Event {
        Event {
            content_id: content.map(|content| content.id),
            user_id: self.user(),
            event_type: "click",
            duration_ms: self.rng.random_ratio(1, 3).then(|| self.rng.random_range(200..8_000)),
            device: text::device(&mut self.rng),
            position_ms: 0,
        }
    }

    fn playback(&mut self) -> Event {
        let slot = self.rng.random_range(0..SESSIONS);
        let current = self.sessions.get(slot).copied();
        let gone = current.is_none_or(|session| session.state != State::New && self.rng.random_ratio(1, 5));
        let Some(mut session) = (if gone { self.session() } else { current }) else {
            return self.click(None);
        };
        let (event_type, duration_ms) = self.advance(&mut session);
        let event = Event {
            content_id: Some(session.content.id),
            user_id: session.user_id,
            event_type,
            duration_ms,
            device: session.device,
            position_ms: session.played_ms,
        };
        let ended = event_type == "finish";
        let next = if ended { self.session() } else { Some(session) };
        match (self.sessions.get_mut(slot), next) {
            (Some(place), Some(session)) => *place = session,
            (None, Some(session)) => self.sessions.push(session),
            (_, None) => {}
        }
        event
    }

    fn session(&mut self) -> Option<Session> {
        let content = self.popular()?;
        let user_id = self.user();
        Some(Session {
            content,
            user_id,
            device: text::device(&mut self.rng),
            played_ms: 0,
            state: State::New,
        })
    }

    /// What the session does next, and how long it had played without a break until then.
    fn advance(&mut self, session: &mut Session) -> (&'static str, Option<i64>) {
        if session.state != State::Playing {
            session.state = State::Playing;
            return ("play", self.rng.random_ratio(9, 10).then_some(0));
        }
        let length_ms = i64::from(session.content.length_seconds.unwrap_or(UNKNOWN_LENGTH_SECONDS)) * 1_000;
        let left_ms = (length_ms - session.played_ms).max(1_000) as f64;
        let (event_type, share) = if self.rng.random_ratio(11, 20) {
            session.state = State::Paused;
            ("pause", self.rng.random_range(0.02..0.6))
        } else if self.rng.random_ratio(1, 25) {
            ("finish", self.rng.random_range(1.0..2.5)) // heard parts of it again
        } else {
            ("finish", self.rng.random_range(0.9..1.0))
        };
        let played_ms = (left_ms * share) as i64;
        session.played_ms += played_ms;
        (event_type, Some(played_ms))
    }

    /// Nobody in particular, now and then.
    fn user(&mut self) -> Option<Uuid> {
        if self.rng.random_ratio(8, 100) {
            return None;
        }
        let number = u64::from(self.rng.random_range(0..self.users));
        Some(random_uuid(&mut StdRng::seed_from_u64(number)))
    }

    fn push(&mut self, events: &mut Events, event: Event, now: SystemTime) {
        events.event_ts.push(self.event_ts(now));
        events.raw_payload.push(text::payload(&mut self.rng, event.position_ms));
        events.content_id.push(event.content_id);
        events.user_id.push(event.user_id);
        events.event_type.push(event.event_type);
        events.duration_ms.push(event.duration_ms.map(|duration_ms| duration_ms.min(i32::MAX.into()) as i32));
        events.device.push(event.device);
    }

    /// Just now as a rule; sometimes minutes to hours late; rarely by a clock that runs ahead.
    fn event_ts(&mut self, now: SystemTime) -> SystemTime {
        match self.rng.random_range(0..1_000) {
            0..15 => now - Duration::from_secs_f64(self.rng.random_range(60_f64.ln()..21_600_f64.ln()).exp()),
            15..18 => now + Duration::from_millis(self.rng.random_range(500..30_000)),
            _ => {
                let behind: f64 = Exp1.sample(&mut self.rng);
                now - Duration::from_secs_f64((0.3 * behind).min(10.0))
            }
        }
    }
}

impl NewContent {
    /// What the workload keeps of it.
    fn known(&self) -> Known {
        Known { id: self.id, length_seconds: self.length_seconds }
    }
}

fn random_uuid(rng: &mut StdRng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const NOW: Duration = Duration::from_secs(1_790_000_000);

    fn drawn(seed: u64, rows: u64) -> (Vec<NewContent>, Vec<Transaction>) {
        let now = SystemTime::UNIX_EPOCH + NOW;
        let mut workload = Workload::new(seed, 5_000, Vec::new());
        let contents = workload.old_content(2_000, now);
        let mut transactions = Vec::new();
        let mut made = 0;
        while made < rows {
            let size = workload.transaction_rows(1_000).min(rows - made);
            transactions.push(workload.transaction(size, now));
            made += size;
        }
        (contents, transactions)
    }

    fn events(transactions: &[Transaction]) -> impl Iterator<Item = (&Events, usize)> {
        transactions.iter().flat_map(|t| (0..t.events.len()).map(move |index| (&t.events, index)))
    }

    #[test]
    fn the_same_seed_gives_the_same_rows() {
        assert!(drawn(7, 3_000) == drawn(7, 3_000));
        assert!(drawn(7, 3_000) != drawn(8, 3_000));
    }

    #[test]
    fn transactions_have_all_sizes() {
        let (_, transactions) = drawn(1, 30_000);
        let sizes: Vec<usize> = transactions.iter().map(|t| t.events.len()).collect();
        assert!(sizes.iter().all(|size| (1..=1_000).contains(size)));
        for range in [1..2, 2..10, 10..100, 100..500, 500..1_001] {
            assert!(sizes.iter().any(|size| range.contains(size)), "{range:?}");
        }
    }

    #[test]
    fn some_content_is_far_more_popular_than_most() {
        let (_, transactions) = drawn(2, 50_000);
        let mut counts = HashMap::<Uuid, u32>::new();
        for (events, index) in events(&transactions) {
            if let Some(id) = events.content_id[index] {
                *counts.entry(id).or_default() += 1;
            }
        }
        let mut counts: Vec<u32> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let total: u32 = counts.iter().sum();
        let of_ten: u32 = counts.iter().take(10).sum();
        assert!((0.2..0.5).contains(&(f64::from(of_ten) / f64::from(total))), "{of_ten} of {total}");
        assert!(counts.len() > 1_500, "{}", counts.len());
    }

    #[test]
    fn every_kind_of_event_has_its_share() {
        let (_, transactions) = drawn(3, 50_000);
        let now = SystemTime::UNIX_EPOCH + NOW;
        let share = |test: &dyn Fn(&Events, usize) -> bool| {
            events(&transactions).filter(|(events, index)| test(events, *index)).count() as f64 / 50_000.0
        };
        type Test = &'static dyn Fn(&Events, usize) -> bool;
        let kinds: [(&str, std::ops::Range<f64>, Test); 9] = [
            ("play", 0.35..0.60, &|events, i| events.event_type[i] == "play"),
            ("pause", 0.15..0.35, &|events, i| events.event_type[i] == "pause"),
            ("finish", 0.10..0.30, &|events, i| events.event_type[i] == "finish"),
            ("click", 0.10..0.16, &|events, i| events.event_type[i] == "click"),
            ("no content", 0.02..0.04, &|events, i| events.content_id[i].is_none()),
            ("no user", 0.06..0.10, &|events, i| events.user_id[i].is_none()),
            ("no device", 0.02..0.04, &|events, i| events.device[i].is_none()),
            ("no payload", 0.03..0.05, &|events, i| events.raw_payload[i].is_none()),
            ("no duration", 0.05..0.20, &|events, i| events.duration_ms[i].is_none()),
        ];
        for (kind, expected, test) in kinds {
            assert!(expected.contains(&share(test)), "{kind}: {}", share(test));
        }
        let late = share(&|events, i| events.event_ts[i] < now - Duration::from_secs(60));
        assert!((0.01..0.02).contains(&late), "late: {late}");
        let early = share(&|events, i| events.event_ts[i] > now);
        assert!((0.001..0.005).contains(&early), "in the future: {early}");
        assert!(events(&transactions).all(|(events, i)| events.duration_ms[i].is_none_or(|ms| ms >= 0)));
    }

    #[test]
    fn payloads_are_json_of_about_130_bytes() {
        let (_, transactions) = drawn(4, 20_000);
        let mut sizes: Vec<usize> = events(&transactions)
            .filter_map(|(events, index)| events.raw_payload[index].as_deref())
            .map(|json| {
                serde_json::from_str::<serde_json::Value>(json).unwrap();
                json.len()
            })
            .collect();
        sizes.sort_unstable();
        assert!((110..150).contains(&sizes[sizes.len() / 2]), "{}", sizes[sizes.len() / 2]);
        assert!(sizes[sizes.len() - 1] > 2_000);
    }

    #[test]
    fn slugs_and_ids_are_unique_and_some_content_is_incomplete() {
        let (contents, _) = drawn(5, 1);
        let slugs: std::collections::HashSet<_> = contents.iter().map(|content| &content.slug).collect();
        assert_eq!(slugs.len(), contents.len());
        assert!(contents.iter().any(|content| content.content_type.is_none()));
        assert!(contents.iter().any(|content| content.length_seconds.is_none()));
        assert!(contents.iter().any(|content| !content.title.is_ascii()));
    }

    #[test]
    fn content_changes_while_events_come() {
        let (_, transactions) = drawn(6, 8_000);
        assert_eq!(transactions.iter().filter(|t| t.new_content.is_some()).count(), 2);
        assert!(transactions.iter().filter(|t| t.title_edit.is_some()).count() > 5);
        let fresh = transactions.iter().find_map(|t| t.new_content.as_ref()).unwrap().id;
        assert!(events(&transactions).any(|(events, index)| events.content_id[index] == Some(fresh)));
    }
}
