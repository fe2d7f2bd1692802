//! Posting what one write has: as many requests at once as allowed, the events of one content one after the other, and for
//! each refusal the question whose fault it is.
//!
//! **Whose fault.** An outage never makes dead letters. Answers that are the same for every row ([`Answer::Shut`],
//! [`Answer::Later`], none at all) are errors of the sink. A refused batch is halved until the refused row is alone. Even then
//! the row is given up only after the target has taken, *since that refusal*, the last request that it took before (a repeat,
//! which it drops by its id), and has refused the row again, some times in turn. A target that refuses every row alike refuses that one too.
//! Where nothing was taken since the start, the first event of another content is posted in its place.
//!
//! **After an error** the next write begins with one request alone, sent once: a target that is down sees no more than that.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use hyper::StatusCode;
use rand::RngExt;
use tokio::time::Instant;
use uuid::Uuid;

use super::client::{Answer, Client};
use super::config::HttpConfig;
use super::encode::{Encoder, Placed, Request};
use super::template::Unfilled;
use crate::batch::{Batch, Event, Origin};
use crate::error::{Code, Error, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Position};
use crate::telemetry::metrics;

/// A request is sent so often before the sink's driver hears of it, and no more once this time has passed.
const TRIES: u32 = 4;
const TRY_FOR: Duration = Duration::from_secs(2);
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longer than this nothing waits in here: the driver shows it meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(2);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);
/// A row is refused so often again, with something taken each time between, before it is given up: behind one address may be
/// several servers, one of which is broken.
const JUDGED_TIMES: u32 = 3;
/// So many contents are tried to find one event that the target takes.
const WITNESSES_MAX: usize = 8;

/// Why the target, or a template, does not take a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    Answered(StatusCode),
    Unfilled(String),
}

/// The target, and what is known of it.
pub struct Target {
    client: Client,
    encoder: Encoder,
    concurrency: usize,
    batch_rows: usize,
    /// It has answered since the last error.
    well: AtomicBool,
    /// Before this it is not to be called.
    not_before: Mutex<Option<Instant>>,
    /// The last request that it took.
    taken: Mutex<Option<Arc<Request>>>,
}

/// A row that the target refuses, for `walcast.dead_letter`.
#[derive(Debug)]
pub struct Letter {
    /// The event's name.
    pub position: Position,
    /// The event's id.
    pub event_id: i64,
    /// When its transaction committed, microseconds since 1970.
    pub commit_ts: i64,
    /// Where it was at first, when it came again.
    pub origin: Option<Origin>,
    /// How it was refused.
    pub message: String,
    /// The event as JSON.
    pub record: String,
}

impl Target {
    /// As the settings say; connects at the first request.
    pub fn new(config: &HttpConfig) -> Result<Target> {
        Ok(Target {
            client: Client::new(config)?,
            encoder: Encoder::new(config)?,
            concurrency: config.concurrency,
            batch_rows: config.batch_rows,
            well: AtomicBool::new(false),
            not_before: Mutex::default(),
            taken: Mutex::default(),
        })
    }

    /// An error while the target has asked to be left alone for longer than somebody would wait.
    pub fn may_be_called(&self) -> Result<Duration> {
        let not_before = *lock(&self.not_before);
        let wait = not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        if wait <= WAIT_MAX {
            return Ok(wait);
        }
        let message = format!("{} asks to be called again in {wait:.0?}", self.client.address());
        Err(Error::new(Code::HttpUnreachable, message)
            .hint("nothing to do: it is called when it says (its Retry-After)"))
    }

    /// Sends it until there is an answer that trying again would not change; `None` when it was taken.
    async fn deliver(&self, request: &Arc<Request>) -> Result<Option<Refusal>> {
        let began = Instant::now();
        for tries in 1.. {
            match self.try_once(request).await {
                Err(error) if tries >= TRIES || began.elapsed() > TRY_FOR || self.is_shut(&error) => {
                    return Err(error);
                }
                Err(_) => tokio::time::sleep(jittered(tries)).await,
                answered => return answered,
            }
        }
        Ok(None)
    }

    fn is_shut(&self, error: &Error) -> bool {
        error.code() != Code::HttpUnreachable || self.may_be_called().is_err()
    }

    async fn try_once(&self, request: &Arc<Request>) -> Result<Option<Refusal>> {
        tokio::time::sleep(self.may_be_called()?).await;
        failpoint!("http_before_post");
        let answer = self.client.send(request).await;
        metrics::http_request(match &answer {
            Ok(answer) => answer.name(),
            Err(_) => "none",
        });
        let answer = answer?;
        failpoint!("http_after_answer");
        let address = self.client.address();
        match answer {
            Answer::Accepted => {
                *lock(&self.taken) = Some(Arc::clone(request));
                Ok(None)
            }
            Answer::Refused(status) => Ok(Some(Refusal::Answered(status))),
            Answer::Later(status, after) => {
                let after = after.map(|after| Instant::now() + after.min(RETRY_AFTER_MAX));
                let mut not_before = lock(&self.not_before);
                *not_before = (*not_before).max(after);
                Err(Error::new(Code::HttpUnreachable, format!("{address} answers {}", status.as_u16())))
            }
            Answer::Shut(status) => Err(shut(address, status)),
        }
    }
}

/// The wait before another try: anything up to a bound that doubles, so that many who wait do not come back at once.
fn jittered(tries: u32) -> Duration {
    let longest = FIRST_WAIT.saturating_mul(1 << tries.saturating_sub(1).min(8));
    longest.mul_f64(rand::rng().random_range(0.0..=1.0))
}

fn shut(address: &str, status: StatusCode) -> Error {
    let fix = match status.as_u16() {
        300..=399 => "walcast follows no redirects: set http.url to the address that it ends at",
        401 | 403 | 407 => {
            "give the target what it asks for: http.headers, http.signing_secrets or a client certificate"
        }
        404 | 405 | 410 | 421 => "correct http.url: nothing takes events there",
        _ => "correct http.content_type, http.format or http.compression to what the target takes",
    };
    Error::new(Code::HttpRefused, format!("{address} answers {} to whatever it is sent", status.as_u16()))
        .hint(fix)
}

/// The events that go one after the other.
struct Lane<'a> {
    events: Vec<Placed<'a>>,
    /// How many of them are taken or given up.
    done: AtomicUsize,
}

impl<'a> Lane<'a> {
    fn rest(&self) -> &[Placed<'a>] {
        self.events.get(self.done.load(Ordering::Relaxed)..).unwrap_or_default()
    }

    fn advance(&self, events: usize) {
        self.done.fetch_add(events, Ordering::Relaxed);
    }
}

/// One write under way.
pub struct Posting<'a> {
    target: &'a Target,
    history: Uuid,
    batches: &'a [Arc<Batch>],
    lanes: Vec<Lane<'a>>,
    letters: Mutex<Vec<Letter>>,
    stopped: AtomicBool,
}

impl<'a> Posting<'a> {
    /// The events of these batches, but for those that are done already.
    pub fn new(
        target: &'a Target,
        history: Uuid,
        batches: &'a [Arc<Batch>],
        done: &HashSet<Position>,
    ) -> Posting<'a> {
        let placed = |batch: &'a Batch| batch.events().map(move |event| Placed { batch, event });
        let events = batches.iter().flat_map(|batch| placed(batch));
        let events: Vec<_> = events.filter(|placed| !done.contains(&placed.event.position)).collect();
        let lanes = events.len().div_ceil(target.batch_rows).clamp(1, target.concurrency);
        let mut of_lanes: Vec<Vec<Placed<'a>>> = vec![Vec::new(); lanes];
        for placed in events {
            of_lanes.get_mut(lane_of(placed.event, lanes)).into_iter().for_each(|lane| lane.push(placed));
        }
        let lane = |events| Lane { events, done: AtomicUsize::new(0) };
        Posting {
            target,
            history,
            batches,
            lanes: of_lanes.into_iter().map(lane).collect(),
            letters: Mutex::default(),
            stopped: AtomicBool::new(false),
        }
    }

    /// Where nothing is known of the target: one request alone.
    pub async fn begin(&self) -> Result<()> {
        let first = self.lanes.iter().filter(|lane| !lane.rest().is_empty());
        let first = first.min_by_key(|lane| lane.rest().first().map(|placed| placed.event.position));
        let Some(lane) = first.filter(|_| !self.target.well.load(Ordering::Relaxed)) else { return Ok(()) };
        if let (taken, Ok(request)) = self.target.encoder.request(&self.history, lane.rest())
            && self.target.try_once(&Arc::new(request)).await?.is_none()
        {
            lane.advance(taken);
        }
        self.target.well.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// All lanes; each ends when it has nothing left, with an error, or after [`Self::stop`].
    pub fn run(&self) -> FuturesUnordered<impl Future<Output = Result<()>> + Send> {
        self.lanes.iter().map(|lane| self.post(lane)).collect()
    }

    /// Lets each lane end after the request that is under way.
    pub fn stop(&self) {
        self.target.well.store(false, Ordering::Relaxed);
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// What is covered by somebody who had `before`.
    pub fn covered(&self, before: Checkpoint) -> Checkpoint {
        let first_open = self.lanes.iter().filter_map(|lane| Some(lane.rest().first()?.event.position)).min();
        let mut covered = before;
        for batch in self.batches {
            let is_open = |position: Position| first_open.is_some_and(|open| position >= open);
            if batch.rows().last().is_some_and(|row| is_open(row.position())) {
                let held = batch.rows().iter().map(|row| row.position()).take_while(|at| !is_open(*at));
                covered.position = covered.position.max(held.last());
                break;
            }
            covered = covered.advanced(batch.checkpoint());
        }
        covered
    }

    /// Events that are done and lie beyond `covered`.
    pub fn ahead_of(&self, covered: &Checkpoint) -> HashSet<Position> {
        let done = |lane: &Lane<'a>| lane.events.len() - lane.rest().len();
        let done = self.lanes.iter().flat_map(|lane| lane.events.iter().take(done(lane)));
        done.map(|placed| placed.event.position).filter(|position| !covered.holds(*position)).collect()
    }

    /// The rows that were given up since this was last asked.
    pub fn letters(&self) -> Vec<Letter> {
        std::mem::take(&mut lock(&self.letters))
    }

    async fn post(&self, lane: &Lane<'a>) -> Result<()> {
        // so many of the first events have a refused one among them
        let mut doubtful = 0_usize;
        while !self.stopped.load(Ordering::Relaxed) {
            let rest = lane.rest();
            let most = if doubtful > 0 { (doubtful / 2).max(1) } else { rest.len() };
            let events = rest.get(..most).unwrap_or(rest);
            if events.is_empty() {
                return Ok(());
            }
            let (taken, request) = self.target.encoder.request(&self.history, events);
            let request = request.map(Arc::new);
            let refusal = match &request {
                Ok(request) => self.target.deliver(request).await?,
                Err(Unfilled(told)) => Some(Refusal::Unfilled(told.clone())),
            };
            match refusal {
                None => {
                    lane.advance(taken);
                    doubtful = doubtful.saturating_sub(taken);
                }
                Some(_) if taken > 1 => doubtful = taken,
                Some(refusal) => {
                    self.judge(rest, request.ok().as_ref(), refusal).await?;
                    lane.advance(1);
                    doubtful = 0;
                }
            }
        }
        Ok(())
    }

    /// Whether the first event is to be given up: see the module. An error when it is the target's fault.
    async fn judge(
        &self,
        events: &[Placed<'a>],
        request: Option<&Arc<Request>>,
        refusal: Refusal,
    ) -> Result<()> {
        let Some(suspect) = events.first() else { return Ok(()) };
        if lock(&self.target.taken).is_none() {
            self.find_witness(suspect, events).await?;
        }
        let mut refusal = refusal;
        for _ in 0..if request.is_some() { JUDGED_TIMES } else { 1 } {
            if !self.takes_what_it_took().await? {
                return Err(self.refuses_all(&refusal));
            }
            let Some(request) = request else { break };
            match self.target.deliver(request).await? {
                None => return Ok(()),
                Some(again) => refusal = again,
            }
        }
        let message = match refusal {
            Refusal::Answered(status) => format!("the target answers {}", status.as_u16()),
            Refusal::Unfilled(told) => told,
        };
        lock(&self.letters).push(Letter {
            position: suspect.event.position,
            event_id: suspect.event.id,
            commit_ts: suspect.event.commit_ts,
            origin: suspect.batch.origin(suspect.event.position),
            message,
            record: self.target.encoder.letter(suspect),
        });
        Ok(())
    }

    /// Whether the target takes a repeat of the last request that it took.
    async fn takes_what_it_took(&self) -> Result<bool> {
        let Some(witness) = lock(&self.target.taken).clone() else { return Ok(false) };
        let answered = self.target.deliver(&witness).await?;
        // a target that knows a repeat, and says so in this way, has taken it
        Ok(matches!(answered, None | Some(Refusal::Answered(StatusCode::CONFLICT))))
    }

    /// Posts the first events of other contents until one is taken. Each comes again in its turn.
    async fn find_witness(&self, suspect: &Placed<'a>, events: &[Placed<'a>]) -> Result<()> {
        let mut tried = HashSet::from([suspect.event.content_id]);
        for placed in events {
            if tried.len() > WITNESSES_MAX {
                break;
            }
            if !tried.insert(placed.event.content_id) {
                continue;
            }
            let (_, request) = self.target.encoder.request(&self.history, std::slice::from_ref(placed));
            let Ok(request) = request.map(Arc::new) else { continue };
            if self.target.deliver(&request).await?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn refuses_all(&self, refusal: &Refusal) -> Error {
        let address = self.target.client.address();
        let (message, fix) = match refusal {
            Refusal::Answered(status) => (
                format!("{address} answers {} to every event", status.as_u16()),
                "see in the target's log why; nothing is given up, and all is posted again",
            ),
            Refusal::Unfilled(told) => {
                (told.clone(), "correct the template: no event could be posted with it")
            }
        };
        Error::new(Code::HttpRefused, message).hint(fix)
    }
}

/// Which of so many lanes an event goes through: all of a content through one.
fn lane_of(event: &Event, lanes: usize) -> usize {
    let key = event.content_id.map_or(event.id as u64, |id| {
        let (high, low) = id.as_u64_pair();
        high ^ low
    });
    let mixed = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    (mixed as usize) % lanes.max(1)
}

/// What another may have left half done is not seen: each value is put there whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, Row};
    use crate::lsn::Lsn;

    fn position(commit: u64, ordinal: u64) -> Position {
        Position { commit_lsn: Lsn(commit), ordinal }
    }

    /// Two batches: one transaction whole and the beginning of the next; its end.
    fn batches() -> [Arc<Batch>; 2] {
        let mut builder = BatchBuilder::new(Checkpoint::at(Lsn(1)));
        let event = |commit, ordinal| {
            let mut event = Event::new(position(commit, ordinal), 0, ordinal as i64, 0);
            event.content_id = Some(Uuid::from_u128(ordinal.into()));
            Row::Event(event)
        };
        (0..4).for_each(|ordinal| builder.push(event(10, ordinal)));
        builder.hold(Lsn(11));
        (0..2).for_each(|ordinal| builder.push(event(20, ordinal)));
        let first = Arc::new(builder.finish(false));
        (2..4).for_each(|ordinal| builder.push(event(20, ordinal)));
        builder.hold(Lsn(21));
        [first, Arc::new(builder.finish(false))]
    }

    fn target() -> Target {
        let url = "http://127.0.0.1:1/".to_owned().into();
        Target::new(&HttpConfig { url, concurrency: 3, ..Default::default() }).unwrap()
    }

    #[test]
    fn what_is_covered_ends_before_the_first_event_that_is_not_done() {
        let (batches, target) = (batches(), target());
        let done: HashSet<Position> = HashSet::new();
        let posting = Posting::new(&target, Uuid::nil(), &batches, &done);
        let before = Checkpoint::at(Lsn(5));
        assert_eq!(posting.covered(before), before);
        let mut seen = Vec::new();
        // the lanes go on in turns, as they might
        for _ in 0..8 {
            for lane in &posting.lanes {
                lane.advance(usize::from(!lane.rest().is_empty()));
                let covered = posting.covered(before);
                let open = posting.lanes.iter().flat_map(|lane| lane.rest());
                assert!(open.into_iter().all(|placed| !covered.holds(placed.event.position)), "{covered}");
                let ahead = posting.ahead_of(&covered);
                let left = Posting::new(&target, Uuid::nil(), &batches, &ahead);
                let again: usize = left.lanes.iter().map(|lane| lane.events.len()).sum();
                let done: usize =
                    posting.lanes.iter().map(|lane| lane.events.len() - lane.rest().len()).sum();
                assert!(again >= 8 - done && ahead.len() <= done);
                seen.push(covered);
            }
        }
        assert!(seen.windows(2).all(|pair| pair[1].covers(&pair[0])));
        assert_eq!(seen.last(), Some(&batches[1].checkpoint()));
    }

    #[test]
    fn a_batch_without_rows_is_covered_with_what_is_before_it() {
        let target = target();
        let empty = [Arc::new(Batch::empty(Checkpoint::at(Lsn(99)), false))];
        let posting = Posting::new(&target, Uuid::nil(), &empty, &HashSet::new());
        assert_eq!(posting.covered(Checkpoint::at(Lsn(5))), Checkpoint::at(Lsn(99)));
        let [first, second] = batches();
        let all = [first, second, Arc::clone(&empty[0])];
        let posting = Posting::new(&target, Uuid::nil(), &all, &HashSet::new());
        assert_eq!(posting.covered(Checkpoint::at(Lsn(5))), Checkpoint::at(Lsn(5)));
    }

    #[test]
    fn the_events_of_a_content_share_a_lane() {
        let mut event = Event::new(position(1, 0), 0, 1, 0);
        let mut lanes = HashSet::new();
        for content in 0..1_000_u128 {
            event.content_id = Some(Uuid::from_u128(content));
            event.id = content as i64;
            let lane = lane_of(&event, 16);
            event.id += 1;
            assert_eq!(lane_of(&event, 16), lane);
            lanes.insert(lane);
        }
        assert_eq!(lanes.len(), 16);
    }
}
