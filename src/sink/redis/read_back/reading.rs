//! What Redis holds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redis::{FromRedisValue, Pipeline, Script, Value};
use uuid::Uuid;

use super::CLOCK_SLACK_MICROS;
use super::expected;
use crate::error::{Code, Error, Result};
use crate::event::time;
use crate::lsn::{Checkpoint, HistoryId, Position};
use crate::resume::read_stored;
use crate::sink::redis::ahead::Marks;
use crate::sink::redis::clock::RedisClock;
use crate::sink::redis::connection::{Call, Connection};
use crate::sink::redis::counters::Day;
use crate::sink::redis::window::{Sums, WINDOWS};
use crate::sink::redis::{NAME, RedisConfig, keys, packed, pages};

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../scripts/read.lua")));
static SCAN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../scripts/scan.lua")));

/// Keys read in one script, and boards.
const KEYS_AT_ONCE: usize = 100;
const BOARDS_AT_ONCE: usize = 4;

/// A sink that runs brings the boards up to date at least once a second; this is how long that may take.
const BOARDS_FOLLOW: Duration = Duration::from_millis(1_500);
const BOARDS_FOLLOW_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A board's members and their scores, in seconds as Redis has them.
pub(super) type Scores = HashMap<Uuid, f64>;

/// What Redis holds, each part with the checkpoint that covers it.
#[derive(Default)]
pub struct Reading {
    pub(super) days: HashMap<(Uuid, i32), (Day, u32)>,
    pub(super) minutes: HashMap<i64, (HashMap<String, u64>, u32)>,
    pub(super) totals: HashMap<Uuid, (u64, u32)>,
    pub(super) buckets: [HashMap<i64, Bucket>; WINDOWS.len()],
    pub(super) boards: BTreeMap<String, Scores>,
    /// Which keys lack events, read last.
    pub(super) marks: Marks,
    /// Keys that hold what walcast does not write.
    pub(super) unreadable: Vec<String>,
    /// When reading began, microseconds since 1970.
    pub at: i64,
    /// When the boards were read.
    pub(super) boards_at: i64,
    checkpoints: Vec<Checkpoint>,
}

/// A bucket of a window, read in pages.
#[derive(Default)]
pub(super) struct Bucket {
    pub(super) sums: Sums,
    /// The part that the first page belongs to, and with it all contents that no later page has.
    part: u32,
    /// Contents of later pages.
    later: HashMap<Uuid, u32>,
}

impl Bucket {
    pub(super) fn part(&self, id: &Uuid) -> u32 {
        self.later.get(id).copied().unwrap_or(self.part)
    }
}

impl Reading {
    /// The highest checkpoint of all parts: what came up to it must be known.
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoints
            .iter()
            .fold(Checkpoint::default(), |highest, checkpoint| highest.advanced(*checkpoint))
    }

    /// Whether a part covers what is at `position`.
    pub(super) fn covers(&self, part: u32, position: Position) -> bool {
        self.checkpoints.get(part as usize).is_some_and(|checkpoint| checkpoint.holds(position))
    }

    pub(super) fn seconds(&self) -> i64 {
        self.at / 1_000_000
    }
}

/// A key of ours, by its name.
enum Name {
    Day(Uuid, i32),
    Minute(i64),
    Bucket(usize, i64),
    Board,
}

/// Reads all that a sink of this history id has written. Kind `Resync` when there is no checkpoint of it.
pub async fn read(config: &RedisConfig, history_id: &HistoryId) -> Result<Reading> {
    let mut connection = Connection::open(config).await?;
    let clock = RedisClock::new(None, &mut connection).await?;
    let mut reader = Reader {
        connection,
        checkpoint_key: keys::checkpoint(&history_id.slot),
        history_id,
        reading: Reading { at: clock.now(), ..Reading::default() },
        clock,
    };
    let names = reader.names().await?;
    let (boards, others): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| name.starts_with("top_engagement:"));
    let (buckets, others): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|name| matches!(name_of(name), Some(Name::Bucket(..))));
    for some in others.chunks(KEYS_AT_ONCE) {
        reader.keys(some).await?;
    }
    for bucket in &buckets {
        reader.bucket(bucket).await?;
    }
    reader.totals().await?;
    reader.wait_for_boards().await?;
    reader.boards(boards).await?;
    reader.marks().await?;
    Ok(reader.reading)
}

/// A page of a hash.
struct Page {
    part: u32,
    /// Where the next page begins; `0` after the last.
    next: String,
    /// `None` when the key holds something else.
    fields: Option<Vec<(Vec<u8>, u64)>>,
    /// How long what is packed is, and its beginning.
    packed: (usize, Vec<u8>),
}

struct Reader<'a> {
    connection: Connection,
    checkpoint_key: String,
    history_id: &'a HistoryId,
    clock: RedisClock,
    reading: Reading,
}

impl Reader<'_> {
    /// The names of our keys; both keys of a bucket side by side. A bucket that is packed meanwhile may hide from a scan
    /// under both its names: those of the windows are known without one.
    async fn names(&mut self) -> Result<Vec<String>> {
        let mut names: HashSet<String> = windows(self.reading.at).collect();
        let mut cursor: u64 = 0;
        loop {
            let mut scan = redis::cmd("SCAN");
            let (next, some): (u64, Vec<Vec<u8>>) =
                self.connection.ask(scan.arg(cursor).arg("COUNT").arg(1_000)).await?;
            let texts = some.into_iter().filter_map(|name| String::from_utf8(name).ok());
            names
                .extend(texts.filter(|name| name_of(name).is_some()).map(|name| first_key(&name).to_owned()));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        Ok(names.into_iter().collect())
    }

    async fn keys(&mut self, names: &[String]) -> Result<()> {
        let mut call = Call::default();
        call.key(&self.checkpoint_key);
        let mut asked = Vec::new();
        for name in names {
            call.key(name);
            asked.push(name);
        }
        let mut answers = self.connection.answer(&READ, &call).await?.into_iter();
        let part = self.part(answers.next())?;
        for name in asked {
            if self.take(name, answers.next(), part).is_none() {
                self.reading.unreadable.push(name.clone());
            }
        }
        Ok(())
    }

    /// Takes in what a key holds; `None` when it is not what walcast writes.
    fn take(&mut self, name: &str, held: Option<Value>, part: u32) -> Option<()> {
        let reading = &mut self.reading;
        match name_of(name)? {
            Name::Day(id, day) => {
                let fields: HashMap<String, String> = parse(held)?;
                if !fields.is_empty() {
                    reading.days.insert((id, day), (Day::from_fields(&fields)?, part));
                }
            }
            Name::Minute(minute) => {
                let counts: HashMap<String, u64> = parse(held)?;
                if !counts.is_empty() {
                    reading.minutes.insert(minute, (counts, part));
                }
            }
            Name::Bucket(..) => return None,
            Name::Board => {
                let members: Vec<(String, f64)> = parse(held)?;
                let member = |(id, seconds): (String, f64)| Some((id.parse().ok()?, seconds));
                let members = members.into_iter().map(member).collect::<Option<Scores>>()?;
                reading.boards.insert(name.to_owned(), members);
            }
        }
        Some(())
    }

    /// Reads a bucket: its hash in pages, and what is packed.
    async fn bucket(&mut self, name: &str) -> Result<()> {
        let Some(Name::Bucket(at, number)) = name_of(name) else { return Ok(()) };
        match self.pages(name).await? {
            Some(bucket) => {
                let window = self.reading.buckets.get_mut(at);
                window.map(|window| window.insert(number, bucket));
            }
            None => self.reading.unreadable.push(name.to_owned()),
        }
        Ok(())
    }

    /// `None` when it is not what walcast writes. Between two pages the sink may have packed a part: then what one page has
    /// in the hash the next may have in the string, and reading begins again.
    async fn pages(&mut self, name: &str) -> Result<Option<Bucket>> {
        let key = format!("{name}:packed");
        let (mut bucket, mut pages) = (Bucket::default(), 0);
        let (mut cursor, mut length, mut packed) = ("0".to_owned(), 0, Vec::new());
        loop {
            let page =
                self.page(name, Some(&key), &cursor, if pages == 0 { pages::BYTES } else { 0 }).await?;
            let Page { part, next, fields: Some(fields), packed: (now, beginning) } = page else {
                return Ok(None);
            };
            if pages == 0 {
                (bucket, length, packed) = (Bucket { part, ..Bucket::default() }, now, beginning);
            } else if now != length {
                (pages, cursor) = (0, "0".to_owned());
                continue;
            }
            pages += 1;
            for (id, ms) in fields {
                let Ok(id) = Uuid::from_slice(&id) else { return Ok(None) };
                bucket.sums.insert(id, ms);
                if pages > 1 {
                    bucket.later.insert(id, part);
                }
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
        // It only grows: what was there when the pages were read stays as it was.
        let packed = pages::rest(&mut self.connection, &key, packed).await?;
        let Some(packed) = packed.get(..length.min(packed.len())).and_then(packed::read) else {
            return Ok(None);
        };
        for (id, ms) in packed {
            expected::add(bucket.sums.entry(id).or_default(), ms);
        }
        Ok(Some(bucket))
    }

    async fn page(&mut self, hash: &str, string: Option<&str>, cursor: &str, bytes: usize) -> Result<Page> {
        let mut call = Call::default();
        call.key(&self.checkpoint_key).key(hash);
        if let Some(string) = string {
            call.key(string);
        }
        call.arg(cursor).number(pages::FIELDS).number(bytes);
        let mut answers = self.connection.answer(&SCAN, &call).await?.into_iter();
        let part = self.part(answers.next())?;
        let next = parse(answers.next()).unwrap_or_default();
        let fields = parse(answers.next());
        let packed = (parse(answers.next()).unwrap_or_default(), parse(answers.next()).unwrap_or_default());
        Ok(Page { part, next, fields, packed })
    }

    async fn totals(&mut self) -> Result<()> {
        let mut cursor = "0".to_owned();
        loop {
            let Page { part, next, fields, .. } = self.page(keys::TOTALS, None, &cursor, 0).await?;
            let Some(totals) = fields else {
                self.reading.unreadable.push(keys::TOTALS.to_owned());
                return Ok(());
            };
            for (id, ms) in totals {
                match Uuid::from_slice(&id) {
                    Ok(id) => drop(self.reading.totals.insert(id, (ms, part))),
                    Err(_) => self.reading.unreadable.push(keys::TOTALS.to_owned()),
                }
            }
            cursor = next;
            if cursor == "0" {
                return Ok(());
            }
        }
    }

    /// Waits until the boards have been refreshed once from now on: their time to live tells when that was last.
    async fn wait_for_boards(&mut self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < BOARDS_FOLLOW_MAX {
            tokio::time::sleep(LOOK_EVERY).await;
            let mut refreshed = None;
            for window in &WINDOWS {
                let asked = Instant::now();
                let left: i64 = self.connection.ask(redis::cmd("PTTL").arg(keys::board(window))).await?;
                let age = Duration::from_millis((keys::BOARD_SECONDS * 1000 - left).unsigned_abs());
                if left > 0 {
                    refreshed = Some(refreshed.unwrap_or(true) && asked.duration_since(began) > age);
                }
            }
            // there is no board where nothing happened lately
            if refreshed.unwrap_or(began.elapsed() > BOARDS_FOLLOW) {
                break;
            }
        }
        Ok(())
    }

    async fn boards(&mut self, mut names: Vec<String>) -> Result<()> {
        names.push(keys::BOARD_ALL.to_owned());
        names.extend(WINDOWS.iter().map(keys::board));
        names.sort();
        names.dedup();
        for some in names.chunks(BOARDS_AT_ONCE) {
            self.keys(some).await?;
        }
        self.reading.boards_at = self.clock.time(&mut self.connection).await?;
        Ok(())
    }

    /// Every key that was read lacks no more than what is marked by now.
    async fn marks(&mut self) -> Result<()> {
        let mut pipeline = Pipeline::new();
        pages::ask_string(keys::AHEAD, &mut pipeline);
        let first = self.connection.read(&mut pipeline).await?.into_iter().next();
        let bytes = pages::string(&mut self.connection, keys::AHEAD, first).await?;
        self.reading.marks = Marks::new(bytes.unwrap_or_default());
        Ok(())
    }

    /// The number of the part that came with this checkpoint.
    fn part(&mut self, checkpoint: Option<Value>) -> Result<u32> {
        let text: String = parse(checkpoint).unwrap_or_default();
        let address = &self.checkpoint_key;
        let refused = |code, what: &str| {
            Error::new(code, format!("{NAME}: {address} holds {what}")).hint(NAME.fresh_start())
        };
        if text.is_empty() {
            return Err(refused(Code::SinkLostItsData, "no checkpoint: it has lost its data"));
        }
        let stored = read_stored(NAME, address, text.as_bytes())?;
        if stored.history_id != *self.history_id {
            return Err(refused(Code::OtherHistory, "the checkpoint of another history"));
        }
        self.reading.checkpoints.push(stored.checkpoint);
        Ok(self.reading.checkpoints.len() as u32 - 1)
    }
}

/// Whether walcast keeps its state under this name; boards, which are made of it, left out.
pub fn is_ours(name: &str) -> bool {
    let content = name.strip_prefix("content:").is_some_and(|id| id.parse::<Uuid>().is_ok());
    let state = name_of(name).is_some_and(|name| !matches!(name, Name::Board));
    content || state || name == keys::TOTALS || name == keys::AHEAD
}

/// The keys of all buckets that may be in a window while Redis is read.
fn windows(at: i64) -> impl Iterator<Item = String> {
    WINDOWS.iter().flat_map(move |window| {
        window.buckets_at(at + CLOCK_SLACK_MICROS).map(move |bucket| keys::bucket(window, bucket))
    })
}

/// `walcast:10min:123:packed` lies in the same bucket as `walcast:10min:123`.
fn first_key(name: &str) -> &str {
    name.strip_suffix(":packed").unwrap_or(name)
}

fn name_of(name: &str) -> Option<Name> {
    if let Some(rest) = name.strip_prefix("engagement:") {
        let (id, date) = rest.split_once(':')?;
        return Some(Name::Day(
            id.parse().ok()?,
            keys::day_of(time::micros_of(&format!("{date}T00:00:00Z"))?),
        ));
    }
    if let Some(minute) = name.strip_prefix("stats:events:") {
        return Some(Name::Minute(keys::minute_of(time::micros_of(&format!("{minute}:00Z"))?)));
    }
    if name.starts_with("top_engagement:") {
        return Some(Name::Board);
    }
    let (window, start) = first_key(name).strip_prefix("walcast:")?.split_once(':')?;
    let at = WINDOWS.iter().position(|known| known.name == window)?;
    let start: i64 = start.parse().ok()?;
    Some(Name::Bucket(at, start.div_euclid(WINDOWS.get(at)?.bucket_seconds)))
}

fn parse<T: FromRedisValue>(value: Option<Value>) -> Option<T> {
    redis::from_redis_value(value?).ok()
}
