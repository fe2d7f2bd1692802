//! One life of the sink, from `recover` to the first error: a connection, the fence it took, and the memory
//! that is only true while that fence holds.

use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, Value};
use uuid::Uuid;

use super::clock::RedisClock;
use super::connection::{self, Call, Connection};
use super::counters::{DAY_FIELDS, Day};
use super::flush::{Flush, Flushes, Scope};
use super::memory::{Memory, Wanted};
use super::pages::{self, parse};
use super::window::{Step, Sums, WINDOWS, Window};
use super::{Clock, NAME, RedisConfig, keys, packed};
use crate::batch::Batch;
use crate::error::{Code, Error, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, HistoryId, Session, StoredCheckpoint};
use crate::resume::read_stored;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::{REDIS_AHEAD_EVENTS_TOTAL, REDIS_EXPIRED_EVENTS_TOTAL};

/// Boards are refreshed at least this often, so that they do not expire.
const REFRESH_MICROS: i64 = 1_000_000;

/// How often the rows of the leaders of all time are renewed.
const LEADERS_MICROS: i64 = 86_400_000_000;

/// Buckets, or rows, read in one round trip.
const BUCKETS_AT_ONCE: usize = 10;
const ROWS_AT_ONCE: usize = 1_000;

/// How often it is asked again whether the replicas have what was rebuilt.
const AGAIN_EVERY: Duration = Duration::from_secs(1);

/// Contents packed in one script.
const PACKED_AT_ONCE: usize = 5_000;

const TOO_FAR_AHEAD: &str = "events are dated further ahead than redis.future_hours_max allows: they count for all time, and in no day, minute or window";

/// A recovered sink at work.
pub struct Live {
    connection: Connection,
    clock: RedisClock,
    config: RedisConfig,
    fence: Fence,
    history_id: HistoryId,
    /// Whether it is filled anew: what it has counts once that is done.
    rebuilds: bool,
    /// The checkpoint as Redis has it, and its text there; empty while there is none.
    checkpoint: Checkpoint,
    checkpoint_text: String,
    memory: Memory,
    refreshed_at: i64,
    leaders_renewed_at: i64,
    throttle: LogThrottle,
}

struct Fence {
    key: String,
    fencing_token: i64,
    session: String,
}

impl Live {
    /// Takes the fence, and reads what Redis holds.
    pub async fn recover(
        mut connection: Connection,
        config: &RedisConfig,
        session: &Session,
        given: Option<&Clock>,
    ) -> Result<(Live, Option<StoredCheckpoint>)> {
        let fence = Fence::new(keys::checkpoint(&session.history_id.slot), session);
        let mut call = fence.call();
        call.key(keys::rebuild(&session.history_id.slot));
        call.key(keys::former_checkpoint(&session.history_id.slot));
        let answer = connection.run(&connection::CLAIM, &call).await?;
        failpoint!("redis_recover_after_claim");
        let checkpoint_text = answer.into_iter().next().unwrap_or_default();
        let clock = RedisClock::new(given, &mut connection).await?;
        let stored = match checkpoint_text.is_empty() {
            true => {
                refuse_remains(&mut connection, &fence.key, clock.now()).await?;
                None
            }
            false => Some(read_stored(NAME, &fence.key, checkpoint_text.as_bytes())?),
        };
        let checkpoint = stored.as_ref().map_or(Checkpoint::at(session.start), |stored| stored.checkpoint);
        let stands = (checkpoint, checkpoint_text);
        // a flush whose replicas were not waited for may be seen here
        connection.replicated(config.replicas()).await?;
        let mut live = Live::new((connection, clock, config), fence, session, stands);
        live.load().await?;
        Ok((live, stored))
    }

    /// Takes the fence for a rebuild: the key that stands for it takes the checkpoint's place, and nothing is known to be
    /// there.
    pub async fn rebuild(
        mut connection: Connection,
        config: &RedisConfig,
        session: &Session,
    ) -> Result<Live> {
        let fence = Fence::new(keys::rebuild(&session.history_id.slot), session);
        let mut call = Call::default();
        let slot = &session.history_id.slot;
        call.key(keys::checkpoint(slot)).key(&fence.key).key(keys::former_checkpoint(slot));
        call.number(fence.fencing_token).arg(&fence.session);
        connection.run(&connection::REBUILD, &call).await?;
        let clock = RedisClock::new(None, &mut connection).await?;
        let live = Live::new((connection, clock, config), fence, session, Default::default());
        Ok(Live { rebuilds: true, ..live })
    }

    fn new(
        (connection, clock, config): (Connection, RedisClock, &RedisConfig),
        fence: Fence,
        session: &Session,
        (checkpoint, checkpoint_text): (Checkpoint, String),
    ) -> Live {
        Live {
            memory: Memory::new(clock.now()),
            connection,
            clock,
            config: config.clone(),
            fence,
            history_id: session.history_id.clone(),
            rebuilds: false,
            checkpoint,
            checkpoint_text,
            refreshed_at: i64::MIN,
            leaders_renewed_at: i64::MIN,
            throttle: LogThrottle::default(),
        }
    }

    /// A script call that begins with the fence.
    pub fn fence_call(&self) -> Call {
        self.fence.call()
    }

    /// Shows the boards as they are now.
    pub async fn show(&mut self) -> Result<()> {
        let now = self.advance().await?;
        self.memory.boards.follow(&mut self.memory.rings);
        self.refresh_boards(now).await
    }

    /// Ends a rebuild.
    pub async fn rebuilt(&mut self, checkpoint_key: &str, checkpoint: &StoredCheckpoint) -> Result<()> {
        let mut call = self.fence.call();
        call.key(checkpoint_key).arg(checkpoint.to_json());
        self.connection.run(&connection::REBUILT, &call).await?;
        // what was counted is not counted again because a replica is away
        loop {
            match self.connection.replicated(self.config.replicas()).await {
                Err(error) if error.code() == Code::RedisNotReplicated => {
                    if let Some(repeated) = self.throttle.say(&error.to_string()) {
                        tracing::warn!(code = %error.code(), repeated, "the rebuilt Redis waits: {}", error.told());
                    }
                    tokio::time::sleep(AGAIN_EVERY).await;
                }
                replicated => return replicated,
            }
        }
    }

    /// Writes all batches, flush by flush; gives the checkpoint of the last.
    pub async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Checkpoint> {
        let now = self.advance().await?;
        let mut flushes = Flushes::new(batches, self.checkpoint);
        let horizon = self.config.horizon(now);
        while let Some(flush) = flushes.next(&Scope { memory: &self.memory, now, horizon }) {
            self.flush(flush, now).await?;
        }
        failpoint!("redis_before_replicas");
        if !self.rebuilds {
            self.connection.replicated(self.config.replicas()).await?;
        }
        Ok(self.checkpoint)
    }

    /// Lets time pass: windows move, one idle bucket is packed, boards are refreshed.
    pub async fn tick(&mut self) -> Result<()> {
        let now = self.advance().await?;
        self.pack_one().await?;
        let changed = self.memory.boards.follow(&mut self.memory.rings);
        if changed || has_passed(REFRESH_MICROS, self.refreshed_at, now) {
            self.refresh_boards(now).await?;
        }
        Ok(())
    }

    async fn flush(&mut self, flush: Flush<'_>, now: i64) -> Result<()> {
        self.read(&flush, now).await?;
        self.count_left_out(&flush);
        let checkpoint = flush.checkpoint;
        let checkpoint_text = StoredCheckpoint::new(&self.history_id, checkpoint).to_json();
        let mut call = self.fence.call();
        call.key(keys::AHEAD).arg(&self.checkpoint_text).arg(&checkpoint_text);
        self.memory.apply(flush, now, &mut call);
        failpoint!("redis_before_flush");
        self.connection.run(&connection::FLUSH, &call).await?;
        failpoint!("redis_after_flush");
        self.checkpoint = checkpoint;
        self.checkpoint_text = checkpoint_text;
        Ok(())
    }

    /// Moves the windows to the time that it is now, and gives that.
    async fn advance(&mut self) -> Result<i64> {
        let now = self.clock.time(&mut self.connection).await?;
        for (at, window) in WINDOWS.iter().enumerate() {
            let Some(ring) = self.memory.rings.get_mut(at) else { continue };
            if ring.is_ahead_of(now) {
                ring.turn_back(now);
                let buckets: Vec<i64> = ring.buckets().collect();
                self.load_buckets(at, &buckets, now).await?;
                continue;
            }
            let Some(Step { leaving, coming }) = ring.step(now) else { continue };
            for (bucket, is_packed) in leaving {
                let gone = match is_packed {
                    true => read_packed(&mut self.connection, window, bucket).await?,
                    false => Vec::new(),
                };
                ring.leave(bucket, &gone);
            }
            ring.advance(now);
            ring.forget_idle(now);
            self.load_buckets(at, &coming, now).await?;
        }
        self.load_types().await?;
        Ok(now)
    }

    /// Packs one bucket that is at rest, or one of too many.
    pub async fn pack_one(&mut self) -> Result<()> {
        let now = self.clock.now();
        for (ring, window) in self.memory.rings.iter_mut().zip(&WINDOWS) {
            let Some((bucket, fresh)) = ring.to_pack(now) else { continue };
            let fresh: Vec<(Uuid, u64)> = fresh.iter().map(|(id, ms)| (*id, *ms)).collect();
            for part in fresh.chunks(PACKED_AT_ONCE) {
                let mut records = Vec::with_capacity(20 * part.len());
                part.iter().for_each(|(id, ms)| packed::write(id, *ms, &mut records));
                let mut call = self.fence.call();
                call.key(keys::packed(window, bucket)).key(keys::bucket(window, bucket));
                call.arg(records).number(keys::bucket_expires_at(window, bucket));
                for (id, _) in part {
                    call.arg(id.as_bytes());
                }
                failpoint!("redis_before_pack");
                self.connection.run(&connection::PACK, &call).await?;
                ring.packed(bucket, part);
            }
            break;
        }
        Ok(())
    }

    async fn refresh_boards(&mut self, now: i64) -> Result<()> {
        let mut leaders = Vec::new();
        for mut refresh in self.memory.boards.refresh() {
            self.fence.put_before(&mut refresh.call);
            failpoint!("redis_before_boards");
            let doubtful = self.connection.run(&connection::BOARDS, &refresh.call).await?;
            failpoint!("redis_after_boards");
            self.memory.boards.doubt(&refresh, &doubtful);
            leaders.append(&mut refresh.leaders);
        }
        self.refreshed_at = now;
        if has_passed(LEADERS_MICROS, self.leaders_renewed_at, now) {
            leaders = self.memory.boards.leaders();
            self.leaders_renewed_at = now;
        }
        self.renew_leaders(&leaders, now).await
    }

    /// The rows of contents on the board of all time outlive the 48 h of others.
    async fn renew_leaders(&mut self, ids: &[Uuid], now: i64) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let expires_at = now / 1_000_000 + keys::LEADER_SECONDS;
        let mut call = self.fence.call();
        ids.iter().for_each(|id| {
            call.key(keys::content(id));
        });
        call.number(expires_at);
        self.connection.run(&connection::RENEW, &call).await?;
        self.memory.renewed(ids, expires_at);
        Ok(())
    }

    /// Reads all that must be whole: the windows and the board of all time. (The types of contents follow
    /// when time next passes.)
    async fn load(&mut self) -> Result<()> {
        let now = self.clock.now();
        for at in 0..WINDOWS.len() {
            let Some(ring) = self.memory.rings.get(at) else { continue };
            let buckets: Vec<i64> = ring.buckets().collect();
            self.load_buckets(at, &buckets, now).await?;
        }
        let mut cursor: u64 = 0;
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(keys::TOTALS).arg(cursor).arg("COUNT").arg(pages::FIELDS);
            let (next, totals): (u64, Vec<(Vec<u8>, u64)>) = self.connection.ask(&scan).await?;
            for (id, ms) in totals {
                let id = Uuid::from_slice(&id).map_err(|_| self.unexpected_field(keys::TOTALS))?;
                self.memory.boards.total(id, ms);
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    async fn load_buckets(&mut self, at: usize, buckets: &[i64], now: i64) -> Result<()> {
        let (Some(window), Some(ring)) = (WINDOWS.get(at), self.memory.rings.get_mut(at)) else {
            return Ok(());
        };
        for some in buckets.chunks(BUCKETS_AT_ONCE) {
            let mut pipeline = Pipeline::new();
            for bucket in some {
                pages::ask_hash(&keys::bucket(window, *bucket), &mut pipeline);
                pages::ask_string(&keys::packed(window, *bucket), &mut pipeline);
            }
            let mut answers = self.connection.read(&mut pipeline).await?.into_iter();
            for bucket in some {
                let key = keys::bucket(window, *bucket);
                let fresh = pages::hash(&mut self.connection, &key, answers.next()).await?;
                let fresh = sums(&self.connection, &key, fresh)?;
                let key = keys::packed(window, *bucket);
                let packed = pages::string(&mut self.connection, &key, answers.next()).await?;
                let packed = packed.map(|bytes| unpack(&self.connection, &key, &bytes)).transpose()?;
                ring.load(*bucket, fresh, packed, now);
            }
        }
        Ok(())
    }

    /// Reads the types of contents that came into the first window otherwise than by an event of ours.
    async fn load_types(&mut self) -> Result<()> {
        let Memory { rings, boards, .. } = &mut self.memory;
        let [first, ..] = rings;
        let ids: Vec<(Uuid, u64)> = match first.take_loaded() {
            true => first.sums().filter(|(id, _)| !boards.knows_type_of(id)).collect(),
            false => return Ok(()),
        };
        for some in ids.chunks(ROWS_AT_ONCE) {
            let mut pipeline = Pipeline::new();
            for (id, _) in some {
                pipeline.cmd("HGET").arg(keys::content(id)).arg("content_type");
            }
            let answers = self.connection.read(&mut pipeline).await?;
            for ((id, sum), answer) in some.iter().zip(answers) {
                let content_type: Option<String> = parse(&self.connection, &keys::content(id), Some(answer))?;
                boards.of_type(*id, content_type.as_deref(), *sum);
            }
        }
        Ok(())
    }

    /// Reads what a flush changes and memory does not know.
    async fn read(&mut self, flush: &Flush<'_>, now: i64) -> Result<()> {
        let wanted = self.memory.wanted(flush);
        if wanted.is_empty() {
            return Ok(());
        }
        let mut pipeline = Pipeline::new();
        wanted.iter().for_each(|wanted| wanted.ask(&mut pipeline));
        let mut answers = self.connection.read(&mut pipeline).await?.into_iter();
        for wanted in wanted {
            self.learn(wanted, &mut answers, now).await?;
        }
        Ok(())
    }

    async fn learn(
        &mut self,
        wanted: Wanted,
        answers: &mut impl Iterator<Item = Value>,
        now: i64,
    ) -> Result<()> {
        let Live { connection, memory, .. } = self;
        match wanted {
            Wanted::Day(id, day) => {
                let key = keys::engagement(&id, day);
                let texts: Vec<Option<String>> = parse(connection, &key, answers.next())?;
                let counted = Day::from_texts(&texts)
                    .map_err(|field| connection.unreadable(&key, &format!("something else in {field}")))?;
                memory.learn_day(id, day, counted);
            }
            Wanted::Minute(minute) => {
                let key = keys::minute(minute);
                let counted = pages::hash(connection, &key, answers.next()).await?;
                let counted =
                    counted.into_iter().map(|(kind, count)| Some((String::from_utf8(kind).ok()?, count)));
                let counted = counted.collect::<Option<Vec<_>>>();
                let counted =
                    counted.ok_or_else(|| connection.unreadable(&key, "a field that is no text"))?;
                memory.learn_minute(minute, counted);
            }
            Wanted::Total(id) => {
                let ms: Option<u64> = parse(connection, keys::TOTALS, answers.next())?;
                memory.learn_total(id, ms.unwrap_or_default());
            }
            Wanted::Row(id) => {
                let seconds: i64 = parse(connection, &keys::content(&id), answers.next())?;
                memory.learn_row(id, now / 1_000_000 + seconds.max(0));
            }
            Wanted::Bucket(at, bucket) => {
                let (Some(window), Some(ring)) = (WINDOWS.get(at), memory.rings.get_mut(at)) else {
                    return Ok(());
                };
                let key = keys::bucket(window, bucket);
                let fresh = pages::hash(connection, &key, answers.next()).await?;
                let fresh = sums(connection, &key, fresh)?;
                let is_packed: bool = parse(connection, &keys::packed(window, bucket), answers.next())?;
                ring.load(bucket, fresh, is_packed.then(Vec::new), now);
            }
        }
        Ok(())
    }

    fn count_left_out(&mut self, flush: &Flush<'_>) {
        for (key, count) in [("engagement", flush.expired_days), ("stats:events", flush.expired_minutes)] {
            if count > 0 {
                metrics::counter!(REDIS_EXPIRED_EVENTS_TOTAL, "key" => key).increment(count);
            }
        }
        if flush.ahead > 0 {
            metrics::counter!(REDIS_AHEAD_EVENTS_TOTAL).increment(flush.ahead);
            if let Some(repeated) = self.throttle.say(TOO_FAR_AHEAD) {
                tracing::warn!(
                    events = flush.ahead,
                    hours = self.config.future_hours_max,
                    repeated = (repeated > 0).then_some(repeated),
                    "{TOO_FAR_AHEAD}"
                );
            }
        }
    }

    fn unexpected_field(&self, key: &str) -> Error {
        self.connection.unreadable(key, "a field that is no content id")
    }
}

impl Fence {
    fn new(key: String, session: &Session) -> Self {
        Fence { key, fencing_token: session.fencing_token, session: Uuid::new_v4().simple().to_string() }
    }

    fn call(&self) -> Call {
        let mut call = Call::default();
        call.key(&self.key).number(self.fencing_token).arg(&self.session);
        call
    }

    fn put_before(&self, call: &mut Call) {
        let rest = std::mem::replace(call, self.call());
        call.append(&rest);
    }
}

impl Wanted {
    fn ask(&self, pipeline: &mut Pipeline) {
        match *self {
            Wanted::Day(id, day) => {
                pipeline.cmd("HMGET").arg(keys::engagement(&id, day)).arg(&DAY_FIELDS);
            }
            Wanted::Minute(minute) => {
                pages::ask_hash(&keys::minute(minute), pipeline);
            }
            Wanted::Total(id) => {
                pipeline.cmd("HGET").arg(keys::TOTALS).arg(id.as_bytes());
            }
            Wanted::Row(id) => {
                pipeline.cmd("TTL").arg(keys::content(&id));
            }
            Wanted::Bucket(at, bucket) => {
                let Some(window) = WINDOWS.get(at) else { return };
                pages::ask_hash(&keys::bucket(window, bucket), pipeline);
                pipeline.cmd("EXISTS").arg(keys::packed(window, bucket));
            }
        }
    }
}

/// The checkpoint as it is now, with the refusals that a start would meet; nobody is shut out.
pub async fn peek(connection: &mut Connection, slot: &str) -> Result<Option<StoredCheckpoint>> {
    let (checkpoint, rebuild) = (keys::checkpoint(slot), keys::rebuild(slot));
    if connection.ask(redis::cmd("EXISTS").arg(&rebuild)).await? {
        return Err(connection.rebuilding(&rebuild));
    }
    let mut text: Option<String> =
        connection.ask(redis::cmd("HGET").arg(&checkpoint).arg("checkpoint")).await?;
    if text.is_none() {
        text = connection.ask(redis::cmd("HGET").arg(keys::former_checkpoint(slot)).arg("mark")).await?;
    }
    let Some(text) = text else {
        let now = RedisClock::new(None, connection).await?.now();
        refuse_remains(connection, &checkpoint, now).await?;
        return Ok(None);
    };
    read_stored(NAME, &checkpoint, text.as_bytes()).map(Some)
}

/// Counters without a checkpoint of ours are somebody else's, or what is left of a checkpoint that was deleted: adding to
/// them would count twice. Events without a content have no total: there are the minutes that have not expired.
async fn refuse_remains(connection: &mut Connection, checkpoint_key: &str, now: i64) -> Result<()> {
    let this = keys::minute_of(now);
    let minutes = (this - keys::MINUTE_LIVES_MINUTES..=this).map(keys::minute);
    let counters: Vec<String> = std::iter::once(keys::TOTALS.to_owned()).chain(minutes).collect();
    if connection.ask::<i64>(redis::cmd("EXISTS").arg(&counters)).await? == 0 {
        return Ok(());
    }
    Err(Error::new(
        Code::RedisRemains,
        format!("redis holds counters of walcast and no {checkpoint_key}: they belong to another slot, or their checkpoint was deleted"),
    )
    .hint("give walcast a database of its own (redis.db), or run `walcast rebuild redis`, which replaces what walcast keeps there"))
}

/// Whether so much time has passed since then, or the clock was set back meanwhile.
fn has_passed(span: i64, since: i64, now: i64) -> bool {
    !(0..span).contains(&now.saturating_sub(since))
}

async fn read_packed(connection: &mut Connection, window: &Window, bucket: i64) -> Result<Vec<(Uuid, u64)>> {
    let key = keys::packed(window, bucket);
    let mut pipeline = Pipeline::new();
    pages::ask_string(&key, &mut pipeline);
    let first = connection.read(&mut pipeline).await?.into_iter().next();
    let bytes = pages::string(connection, &key, first).await?;
    // Gone before its time: this process slept, or the key was deleted. Memory cannot be mended by itself.
    let bytes = bytes.ok_or_else(|| Error::new(Code::RedisChanged, format!("{key} is gone")))?;
    unpack(connection, &key, &bytes)
}

fn unpack(connection: &Connection, key: &str, bytes: &[u8]) -> Result<Vec<(Uuid, u64)>> {
    packed::read(bytes).ok_or_else(|| connection.unreadable(key, "something else than packed sums"))
}

fn sums(connection: &Connection, key: &str, fields: Vec<(Vec<u8>, u64)>) -> Result<Sums> {
    let sums = fields.into_iter().map(|(id, ms)| Ok((Uuid::from_slice(&id)?, ms)));
    sums.collect::<Result<_, uuid::Error>>()
        .map_err(|error| connection.unreadable(key, "a field that is no content id").because(error))
}
