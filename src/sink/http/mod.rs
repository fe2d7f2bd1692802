//! HTTP: each event posted to an address, alone or in batches, at least once; every repeat has the id of the first.
//!
//! # What is repeated, and how the target knows
//!
//! An HTTP target keeps no checkpoint of ours, so the checkpoint is in PostgreSQL, stored after the answers. Between an answer
//! and that, a crash makes the events come again. The target drops them by their id (`webhook-id`, an idempotency key):
//!
//! - **One event a request**: the id is the event's name, history id and position. It depends on nothing else, so it is the same
//!   after any restart; and since an event is joined with the content row as of its own place in the stream, and nothing in a
//!   template tells the time, so are the bytes.
//! - **A batch**: after a crash the same events may be cut into other batches, since batches follow what was in the queue. Bounds
//!   could be kept the same only by writing them to PostgreSQL before each request; instead *other bytes have another id*: the id is
//!   the first and the last position and a hash of the body (before it is compressed). So an id always stands for the same bytes, and a repeat within a
//!   life of the process (a lost answer) has its id. What a restart cuts anew is told by the records themselves: each has its
//!   event's name (`commit_lsn`, `ordinal`), and by those a receiver of batches drops what it has.
//!
//! # Order
//!
//! The events of one content are never under way at the same time ([`write`]): a request is answered, or has failed for good,
//! before the next one of its lane is sent. A write ends when all its requests are answered, so lanes may be as many as the write needs.
//! What a stale answer or an older instance brings late are repeats, dropped by their ids: there is no fencing token that an HTTP
//! target would check, and none is needed.
//!
//! # Checkpoint
//!
//! What was answered is covered up to the first event that was not; rows that the target refuses ([`write`] tells whose fault a
//! refusal is) are written to `walcast.dead_letter` in the same transaction. It is stored at most [`STORE_EVERY`] after
//! the answers, also while a long write goes on. After an error the sink stores what it knows was answered before it says where it
//! stands, so nothing accepted is ever taken back.

mod check;
mod client;
mod config;
mod encode;
mod progress;
mod read_back;
mod sign;
mod template;
mod write;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::time::Instant;

pub use config::{Compression, Format, HttpConfig};
use write::{Letter, Posting, Target};

use crate::batch::Batch;
use crate::error::{Code, Error, Result};
use crate::lsn::{Checkpoint, Position, Session, StoredCheckpoint};
use crate::resume::SinkName;
use crate::sink::erasure::{Subject, Traces};
use crate::sink::read_back::ReadBack;
use crate::sink::{BatchPolicy, Finding, Guarantee, Sink, SinkAdmin, SinkIdentity, Written};
use crate::source::PostgresConfig;
use crate::state::State;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics;

/// The name in configuration, metrics and state.
pub const NAME: SinkName = SinkName::new("http").rebuilt_by("walcast rebuild http");
const GUARANTEE: Guarantee =
    Guarantee::AtLeastOnce("every repeat of an event has the same id; per content in commit order");
/// How long an answer may count only in memory.
const STORE_EVERY: Duration = Duration::from_millis(200);

/// Posts events.
pub struct HttpSink {
    config: HttpConfig,
    state: State,
    /// Made at the first recovery; what is known of it outlives an error.
    target: Option<Arc<Target>>,
    open: Option<Open>,
    throttle: LogThrottle,
}

/// What a successful `recover` leaves. It outlives errors: what was answered stays answered.
struct Open {
    session: Session,
    /// As PostgreSQL has it.
    stored: Checkpoint,
    /// As the target has answered.
    answered: Checkpoint,
    /// Answered, and beyond that.
    ahead: HashSet<Position>,
    /// Refused rows that are not stored yet.
    letters: Vec<Letter>,
}

impl HttpSink {
    /// A sink that connects at first use; its checkpoint is kept in `postgres`. An error of kind `Config` for settings
    /// that cannot work.
    pub fn new(config: HttpConfig, postgres: &PostgresConfig) -> Result<Self> {
        config.validate()?;
        let state = State::new(postgres.clone());
        Ok(HttpSink { config, state, target: None, open: None, throttle: LogThrottle::default() })
    }

    async fn post(&mut self, target: &Target, batches: &[Arc<Batch>]) -> Result<()> {
        let open = self.open.as_mut().ok_or_else(not_recovered)?;
        let posting = Posting::new(target, open.session.history_id.uuid, batches, &open.ahead);
        let mut failed = posting.begin().await.err();
        if failed.is_some() {
            posting.stop();
        }
        let mut lanes = posting.run();
        let mut store_at = Instant::now() + STORE_EVERY;
        loop {
            tokio::select! {
                ended = lanes.next() => match ended {
                    None => break,
                    Some(Ok(())) => {}
                    Some(Err(error)) => {
                        posting.stop();
                        failed.get_or_insert(error);
                    }
                },
                () = tokio::time::sleep_until(store_at) => {
                    open.learn(&posting, &mut self.throttle);
                    if let Err(error) = open.store(&mut self.state).await {
                        posting.stop();
                        failed.get_or_insert(error);
                    }
                    store_at = Instant::now() + STORE_EVERY;
                }
            }
        }
        open.learn(&posting, &mut self.throttle);
        match failed {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    async fn store(&mut self) -> Result<Option<Checkpoint>> {
        match &mut self.open {
            None => Ok(None),
            Some(open) => open.store(&mut self.state).await,
        }
    }
}

impl Open {
    /// Takes over how far a write has come.
    fn learn(&mut self, posting: &Posting<'_>, throttle: &mut LogThrottle) {
        self.answered = posting.covered(self.answered);
        self.ahead.retain(|position| !self.answered.holds(*position));
        self.ahead.extend(posting.ahead_of(&self.answered));
        for letter in posting.letters() {
            metrics::dead_letter(progress::REFUSED);
            if let Some(repeated) = throttle.say(&letter.message) {
                let repeated = (repeated > 0).then_some(repeated);
                tracing::warn!(position = %letter.position, reason = letter.message, repeated, "http refuses a row; kept in walcast.dead_letter");
            }
            self.letters.push(letter);
        }
    }

    /// Makes what was answered durable; `Some` when that moved the checkpoint.
    async fn store(&mut self, state: &mut State) -> Result<Option<Checkpoint>> {
        if self.answered == self.stored {
            return Ok(None);
        }
        let covered = self.letters.iter().filter(|letter| self.answered.holds(letter.position));
        progress::store(state, &self.session, self.answered, covered).await?;
        self.letters.retain(|letter| !self.answered.holds(letter.position));
        self.stored = self.answered;
        Ok(Some(self.stored))
    }
}

impl SinkIdentity for HttpSink {
    fn id(&self) -> SinkName {
        NAME
    }

    fn guarantee(&self) -> Guarantee {
        GUARANTEE
    }
}

#[async_trait]
impl Sink for HttpSink {
    fn batch_policy(&self) -> BatchPolicy {
        BatchPolicy {
            linger: Duration::from_millis(self.config.linger_ms),
            write_bytes_max: if self.config.batch_rows > 1 { 4 << 20 } else { 1 << 20 },
            tick_every: Some(STORE_EVERY),
        }
    }

    async fn recover(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        let target = match &self.target {
            Some(target) => target,
            None => self.target.insert(Arc::new(Target::new(&self.config)?)),
        };
        target.may_be_called()?;
        // what this process knows to be answered counts, whatever error came after it
        if self.open.as_ref().is_some_and(|open| open.session.fencing_token == session.fencing_token) {
            self.store().await?;
        } else {
            self.open = None;
        }
        drop(self.state.guarded(session).await?);
        let (stored, _) = self.state.progress::<()>(session, NAME).await?;
        // without one it is fed from the beginning
        let begins = Checkpoint::at(session.start);
        let checkpoint = stored.as_ref().map_or(begins, |stored| stored.checkpoint);
        self.open.get_or_insert_with(|| Open {
            session: session.clone(),
            stored: checkpoint,
            answered: checkpoint,
            ahead: HashSet::new(),
            letters: Vec::new(),
        });
        Ok(stored)
    }

    /// What the receiver has is its own; only the checkpoint is forgotten.
    async fn begin(&mut self, session: &Session, _: bool) -> Result<()> {
        self.open = None;
        self.recover(session).await?;
        let nothing = Checkpoint::default();
        self.open = Some(Open {
            session: session.clone(),
            stored: nothing,
            answered: nothing,
            ahead: HashSet::new(),
            letters: Vec::new(),
        });
        Ok(())
    }

    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
        let target = self.target.clone().ok_or_else(not_recovered)?;
        self.post(&target, batches).await?;
        Ok(Written::Accepted)
    }

    async fn tick(&mut self) -> Result<Option<Checkpoint>> {
        self.store().await
    }

    async fn flush(&mut self) -> Result<Option<Checkpoint>> {
        self.store().await
    }

    async fn close(&mut self) {
        self.open = None;
    }
}

#[async_trait]
impl SinkAdmin for HttpSink {
    async fn check(&mut self) -> Vec<Finding> {
        check::inspect(&self.config).await
    }

    async fn prepare(&mut self) -> Result<()> {
        // there is nothing to make; a target that is down is this sink's trouble, and no hindrance to others
        Ok(())
    }

    fn would_go(&self) -> Option<String> {
        Some("the target keeps what it has, and gets every row again, under another id".to_owned())
    }

    fn read_back(&self) -> ReadBack {
        match self.config.verify_url.expose().is_empty() {
            true => ReadBack::Acknowledged,
            false => ReadBack::Events(Box::new(read_back::ReadReceiver(self.config.clone()))),
        }
    }

    async fn peek(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        Ok(self.state.progress::<()>(session, NAME).await?.0)
    }

    async fn traces(&mut self, _subject: &Subject) -> Result<Traces> {
        Ok(Traces::staying("what the receiver was sent is with whoever runs it"))
    }
}

fn not_recovered() -> Error {
    Error::new(Code::Unavailable, "http is to be recovered first")
}
