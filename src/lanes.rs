//! Who keeps the lanes: one task a sink, which gives a sink that has left the main stream a slot and a stream of its own, and
//! lets both go when it is back.
//!
//! ```text
//! fed ── left ──▶ opening ── slot recorded, copied, recorded ──▶ parked ⇄ catching up ── near, offered, reached ──▶ joining ──▶ fed
//!                 (counts)                     (counts no more)                                       (counts again, slot kept)
//! ```
//!
//! At each instant one slot at least keeps what the sink lacks: the walcast slot as long as the sink counts there, the lane's
//! from before it stops counting until the sink holds all that the walcast slot was confirmed up to. What a restart finds is
//! `walcast.lane` alone: joining is not recorded, since a start from the lane's slot is right then too.
//!
//! A sink that begins anew ([`crate::sink::anew`]) leaves too, and has a lane that was opened after it had stopped.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::ServerClock;
use crate::continuity::ContinuityCheck;
use crate::error::{Code, Error, Kind, Result};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Session};
use crate::resume::SinkName;
use crate::sink;
use crate::sink::retry::Backoff;
use crate::source::PostgresConfig;
use crate::source::connection::{Connection, Stream};
use crate::source::heartbeat::{Watch, ask_clock};
use crate::state::lanes::{self, LaneRecord};
use crate::state::{State, history};
use crate::streaming::lane::{Ended, Lane, watermark};
use crate::streaming::{Intake, LaneEnd, Says, Told};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::registry::StatusRegistry;
use crate::telemetry::status::LaneState;
use crate::transform::{Bounds, Transform};

/// A sink that was fed with the others for longer than this before it fell behind again has not come back too early.
const STAYED: Duration = Duration::from_secs(60);
/// How long a lane that caught up stays at the longest, when its sink has fallen behind again and again.
const LINGER_MAX: Duration = Duration::from_secs(600);
/// How often it is asked whether a lane's slot keeps more than it may.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What every lane needs.
#[derive(Clone)]
pub struct KeeperConfig {
    /// The server.
    pub postgres: PostgresConfig,
    /// The bounds of batches.
    pub bounds: Bounds,
    /// The bound of the queue.
    pub queue_bytes_max: usize,
    /// What a lane's slot may keep; 0: all.
    pub wal_bytes_max: u64,
}

/// Keeps the lane of one sink.
pub struct Keeper {
    config: KeeperConfig,
    session: Session,
    state: State,
    sink: SinkName,
    end: LaneEnd,
    record: Option<LaneRecord>,
    registry: StatusRegistry,
    clock: ServerClock,
    backoff: Backoff,
    throttle: LogThrottle,
    attempts: u32,
    /// When the sink was last taken in again, and how long it is to linger before the next time.
    joined_at: Option<Instant>,
    lingers: Duration,
}

impl Keeper {
    /// Of a sink that an earlier life has left in this lane, if in any.
    pub fn new(
        config: &KeeperConfig,
        session: &Session,
        sink: SinkName,
        end: LaneEnd,
        record: Option<LaneRecord>,
        registry: &StatusRegistry,
    ) -> Self {
        Keeper {
            state: State::new(config.postgres.clone()),
            config: config.clone(),
            session: session.clone(),
            sink,
            end,
            record,
            registry: registry.clone(),
            clock: ServerClock::default(),
            backoff: Backoff::default(),
            throttle: LogThrottle::default(),
            attempts: 0,
            joined_at: None,
            lingers: Duration::ZERO,
        }
    }

    /// Runs until the main stream ends (`Ok`), or until an error that concerns more than this sink.
    pub async fn run(mut self) -> Result<()> {
        while let Some(told) = self.end.told.recv().await {
            match told {
                Told::Left => {
                    if !self.apart().await? {
                        return Ok(());
                    }
                }
                // an offer that comes to nobody is closed, and so void
                Told::Offer { .. } | Told::Withdrawn | Told::LetGo => {}
            }
        }
        Ok(())
    }

    /// From when the sink has left the stream until it is fed there again. `false` when the main stream ends meanwhile.
    async fn apart(&mut self) -> Result<bool> {
        self.linger();
        loop {
            let anew = self.end.parting.is_wanted();
            if anew {
                // what it lacks it will not be given: a new slot takes the record's place
                self.record = None;
            }
            if !self.open().await? {
                return Ok(false);
            }
            if anew {
                self.end.parting.has_parted();
            }
            let _ = self.end.says.send((self.end.index, Says::Parted));
            match self.catch_up().await? {
                Ended::Stopped => return Ok(false),
                Ended::GivenBack => continue,
                Ended::Joined => {}
            }
            match self.let_go().await? {
                Joined::Whole => return Ok(true),
                Joined::LeftAgain => {}
                Joined::Stopped => return Ok(false),
            }
        }
    }

    /// A sink that has just come back and falls behind again is to stay for longer.
    fn linger(&mut self) {
        let stayed = self.joined_at.is_none_or(|joined_at| joined_at.elapsed() > STAYED);
        self.lingers = match stayed {
            true => Duration::ZERO,
            false => (self.lingers * 2).clamp(Duration::from_secs(5), LINGER_MAX),
        };
    }

    /// Makes a slot unless there is one.
    async fn open(&mut self) -> Result<bool> {
        while self.record.is_none() {
            self.registry.lane(self.end.name, LaneState::Opening, "");
            self.attempts += 1;
            let opened = tokio::select! {
                biased;
                opened = lanes::open(&self.config.postgres, &mut self.state, &self.session, self.end.name, self.attempts) => opened,
                () = stopped(&mut self.end) => return Ok(false),
            };
            match opened {
                Ok(record) => {
                    self.backoff.reset();
                    tracing::info!(
                        sink = self.end.name,
                        slot = record.slot,
                        "has fallen behind: the other sinks go on without it, and a slot of its own keeps what it lacks"
                    );
                    self.record = Some(record);
                }
                Err(error) => {
                    if !self.wait_after(&error).await? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Feeds the sink from its own slot whenever it takes rows.
    async fn catch_up(&mut self) -> Result<Ended> {
        let not_before = Instant::now() + self.lingers;
        let (mut looks, bytes_max) = (self.state.another(), self.config.wal_bytes_max);
        self.parked();
        if let Some(record) = &self.record
            // one that is lost says so now, and not when its target answers
            && let Err(error) = lanes::confirmed(&mut self.state, record, &self.config.postgres).await
            && !self.wait_after(&error).await?
        {
            return Ok(Ended::Stopped);
        }
        loop {
            let Some(record) = self.record.clone() else { return Ok(Ended::GivenBack) };
            if self.end.parting.is_wanted() {
                return Ok(Ended::GivenBack);
            }
            let ended = tokio::select! {
                ended = self.feed(&record, not_before) => ended,
                () = outgrown(&mut looks, &record, bytes_max) => self.give_up(record).await,
            };
            match ended {
                Ok(Ended::GivenBack) => self.parked(),
                Ok(ended) => return Ok(ended),
                Err(error) => {
                    if !self.wait_after(&error).await? {
                        return Ok(Ended::Stopped);
                    }
                }
            }
        }
    }

    fn parked(&self) {
        let slot = self.record.as_ref().map_or("", |record| &record.slot);
        self.registry.lane(self.end.name, LaneState::Parked, slot);
    }

    /// Waits until the sink takes rows, and feeds it until it is elsewhere. Whoever drops this ends the stream, and the sink asks
    /// for more.
    async fn feed(&mut self, record: &LaneRecord, not_before: Instant) -> Result<Ended> {
        let reach = match wanted(&mut self.end).await {
            Wanted::From(reach) => reach,
            Wanted::Anew => return Ok(Ended::GivenBack),
            Wanted::Nothing => return Ok(Ended::Stopped),
        };
        failpoint!("lane_before_run");
        let (lane, watch) = self.start(record, reach, not_before).await?;
        self.registry.lane(self.end.name, LaneState::CatchingUp, &record.slot);
        let ended = lane.run(&mut self.end, watch.answer(&self.config.postgres)).await;
        failpoint!("lane_after_run");
        ended
    }

    /// Gives up what the slot keeps for the sink; from then on that is lost.
    async fn give_up(&mut self, record: LaneRecord) -> Result<Ended> {
        lanes::give_up(&mut self.state, &self.session, &record).await?;
        let record = self.record.insert(LaneRecord { given_up: true, ..record });
        lanes::confirmed(&mut self.state, record, &self.config.postgres).await.map(|_| Ended::GivenBack)
    }

    /// Opens the lane's stream where its sink and the content versions stand.
    async fn start(
        &mut self,
        record: &LaneRecord,
        reach: Checkpoint,
        not_before: Instant,
    ) -> Result<(Lane<Stream>, Watch)> {
        let postgres = &self.config.postgres;
        let confirmed = lanes::confirmed(&mut self.state, record, postgres).await?;
        let watermark = watermark(confirmed, &self.end.checkpoints.borrow_and_update(), self.end.index);
        let from = watermark.confirmed();
        if !reach.covers(&Checkpoint::at(confirmed)) {
            let message = format!(
                "{} holds everything up to {reach}, and the slot {} begins at {confirmed}",
                self.sink, record.slot
            );
            return Err(Error::new(Code::SinkBelowSlot, message).hint(self.sink.fresh_start()));
        }
        let client = self.state.client().await?;
        let cache = sink::content::load(client, &self.session, from).await?;
        let publication = history::publication(postgres, client).await?;
        ask_clock(client, &self.clock).await?;
        let transform =
            Transform::new(&publication.places, from, cache, self.config.bounds).dated_by(self.clock.clone());
        let connection = Connection::connect(postgres).await?;
        let stream = match connection.start_replication(&record.slot, &postgres.publication, from).await {
            Ok(stream) => stream,
            // the slot was there a moment ago: if it is not, that says more
            Err(refused) => {
                return Err(lanes::confirmed(&mut self.state, record, postgres)
                    .await
                    .err()
                    .unwrap_or(refused));
            }
        };
        let continuity = ContinuityCheck::new(from, [(self.sink, reach)]);
        let (watch, doubts) = Watch::new(publication.identity, self.clock.clone());
        let intake = Intake::new(stream.dated_by(self.clock.clone()), transform, continuity, from, doubts);
        let lane =
            Lane::feed(&self.end, intake, watermark, self.config.queue_bytes_max, not_before, &self.registry);
        Ok((lane, watch))
    }

    /// Keeps the slot until the sink holds what the walcast slot was confirmed up to.
    async fn let_go(&mut self) -> Result<Joined> {
        let Some(record) = self.record.clone() else { return Ok(Joined::Whole) };
        self.registry.lane(self.end.name, LaneState::Joining, &record.slot);
        failpoint!("lane_joining");
        loop {
            match self.end.told.recv().await {
                None => return Ok(Joined::Stopped),
                Some(Told::Left | Told::Withdrawn) => return Ok(Joined::LeftAgain),
                Some(Told::Offer { .. }) => {}
                Some(Told::LetGo) => break,
            }
        }
        while let Err(error) = lanes::close(&mut self.state, &self.session, &record).await {
            if !self.wait_after(&error).await? {
                return Ok(Joined::Stopped);
            }
        }
        self.backoff.reset();
        self.record = None;
        self.joined_at = Some(Instant::now());
        self.registry.no_lane(self.end.name);
        tracing::info!(sink = self.end.name, "has caught up, and is fed with the others again");
        Ok(Joined::Whole)
    }

    /// Says what went wrong and waits before it is tried again; an error that concerns every sink comes back. `false` when the
    /// main stream ends meanwhile.
    async fn wait_after(&mut self, error: &Error) -> Result<bool> {
        if error.kind() == Kind::Fenced || error.code() == Code::HistoryForgotten {
            return Err(Error::new(error.code(), error.to_string()).hint(error.advice()));
        }
        // a right that is missing, or a server that refuses, can be mended: what the slot has is still there
        let lost = error.kind() == Kind::Resync && self.record.is_some();
        self.registry.lane_failed(self.end.name, error, lost);
        let advice = match error.code() {
            Code::LaneLost => self.sink.fresh_start(),
            _ => error.advice().to_owned(),
        };
        let wait = self.backoff.next_wait();
        if let Some(repeated) = self.throttle.say(&error.to_string()) {
            tracing::warn!(
                sink = self.end.name,
                code = %error.code(),
                error = error.chain(),
                repeated = (repeated > 0).then_some(repeated),
                "its own stream is tried again in {wait:.1?}; the other sinks go on: {advice}"
            );
        }
        Ok(tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = stopped(&mut self.end) => false,
        })
    }
}

/// How joining ended.
enum Joined {
    /// The lane is gone.
    Whole,
    /// The sink has fallen behind again before that.
    LeftAgain,
    /// The main stream ends.
    Stopped,
}

/// Waits until the main stream ends. Whatever it tells meanwhile is of no use to a sink that is not fed.
async fn stopped(end: &mut LaneEnd) {
    while end.told.recv().await.is_some() {}
}

/// Waits until a lane's slot keeps more than it may. A server that does not answer is asked again.
async fn outgrown(state: &mut State, record: &LaneRecord, bytes_max: u64) {
    if bytes_max == 0 || record.given_up {
        return std::future::pending().await;
    }
    loop {
        if let Ok(client) = state.client().await
            && let Ok(Some(kept)) = lanes::kept_bytes(client, record).await
            && kept > bytes_max
        {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What a sink is to be given.
enum Wanted {
    /// Rows from here on.
    From(Checkpoint),
    /// Another slot first: it begins anew.
    Anew,
    /// Nothing: the main stream ends.
    Nothing,
}

/// Waits until the sink wants something.
async fn wanted(end: &mut LaneEnd) -> Wanted {
    let LaneEnd { wants, told, parting, .. } = end;
    let wants_some = async |wants: &mut watch::Receiver<Option<Checkpoint>>| {
        wants.wait_for(Option::is_some).await.ok().and_then(|wants| *wants)
    };
    let mut wanting = std::pin::pin!(wants_some(wants));
    loop {
        tokio::select! {
            biased;
            () = parting.wanted() => return Wanted::Anew,
            reach = &mut wanting => return reach.map_or(Wanted::Nothing, Wanted::From),
            told = told.recv() => if told.is_none() { return Wanted::Nothing },
        }
    }
}
