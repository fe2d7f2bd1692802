//! Redis: boards over sliding windows, and counters for each content.
//!
//! # The story of a flush
//!
//! [`flush`] cuts the event sequence into prefixes and adds each up. What memory does not know of the keys it
//! changes is read ([`memory`]), the sums are added, and one script writes the *results*, not the increments,
//! together with the checkpoint. The script first checks that nobody has taken over (fencing token), that no earlier
//! connection of ours speaks (session), that the checkpoint is the one we go on from, and that every key is of its
//! type; only then it writes. So a flush happens wholly or not at all, once.
//!
//! Whatever else happens (a lost answer, a lost connection, a refusal) drops memory and connection; `recover`
//! takes a new fence, which shuts out all that is still on its way, reads checkpoint and windows, and goes on from
//! the checkpoint it finds. There is no other repair.
//!
//! Windows move by Redis's own clock ([`clock`]), by which keys expire.
//!
//! Boards are for show: [`boards`] writes only what differs from what Redis shows, and rewrites a board that
//! it finds otherwise. They vanish when walcast stops, rather than be stale.
//!
//! Every key is named in [`keys`].

mod ahead;
mod board;
mod boards;
mod check;
mod clock;
mod config;
pub mod connection;
mod erase;
pub mod flush;
mod keys;
mod live;
pub mod memory;
mod packed;
mod pages;
pub mod read_back;
pub mod reader;
mod recent;
mod recount;
mod counters;
mod server;
pub mod window;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use config::{Durability, RedisConfig};
use connection::Connection;
use live::Live;
use recount::RecountRedis;

use crate::batch::Batch;
use crate::error::{Code, Error, Result};
use crate::lsn::{Checkpoint, Session, StoredCheckpoint};
use crate::resume::SinkName;
use crate::sink::erasure::{Subject, Traces};
use crate::sink::read_back::ReadBack;
use crate::sink::recount::Recount;
use crate::sink::{BatchPolicy, Finding, Guarantee, Sink, SinkAdmin, SinkIdentity, Verdict, Written};

/// The name in configuration, metrics and state.
pub const NAME: SinkName = SinkName::new("redis").rebuilt_by("walcast rebuild redis");
const GUARANTEE: Guarantee =
    Guarantee::ExactlyOnce("in effect: each event counts once in every counter and board");

/// What walcast's user must be allowed, as its ACL says it, and no more. `walcast check` asks for `config|get`, nothing else
/// does; sentinels have `role` and `wait` asked for; the page reads boards by `zrevrange`.
pub const ACL: &str = "~walcast:* ~top_engagement:* ~content:* ~engagement:* ~stats:events:* -@all +append +config|get +del +discard +evalsha +exists +expire +expireat +getrange +hdel +hget +hgetall +hlen +hmget +hscan +hset +info +multi +ping +pttl +role +scan +script|load +select +setbit +strlen +time +ttl +type +unlink +wait +zadd +zcard +zrange +zrem +zrevrange";

/// The statement that allows a user what walcast does.
fn acl(user: &str) -> String {
    format!("ACL SETUSER {user} {ACL}")
}

/// Gives the time, microseconds since 1970.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Keeps boards and counters at Redis.
pub struct RedisSink {
    config: RedisConfig,
    /// Not Redis's own: a test's.
    clock: Option<Clock>,
    live: Option<Live>,
}

impl RedisSink {
    /// A sink that connects at first use.
    pub fn new(config: RedisConfig) -> Self {
        RedisSink { config, clock: None, live: None }
    }

    /// A sink for which it is the time that `clock` says.
    pub fn with_clock(config: RedisConfig, clock: Clock) -> Self {
        RedisSink { config, clock: Some(clock), live: None }
    }

    async fn inspect(&self) -> Result<Vec<Finding>> {
        let mut connection = Connection::open(&self.config).await?;
        check::inspect(&mut connection, &self.config).await
    }
}

impl SinkIdentity for RedisSink {
    fn id(&self) -> SinkName {
        NAME
    }

    fn guarantee(&self) -> Guarantee {
        GUARANTEE
    }
}

#[async_trait]
impl Sink for RedisSink {
    fn batch_policy(&self) -> BatchPolicy {
        BatchPolicy {
            linger: Duration::ZERO,
            write_bytes_max: 4 << 20,
            tick_every: Some(Duration::from_millis(self.config.refresh_ms.max(10))),
        }
    }

    async fn recover(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        self.live = None;
        let connection = Connection::open(&self.config).await?;
        let (live, checkpoint) =
            Live::recover(connection, &self.config, session, self.clock.as_ref()).await?;
        self.live = Some(live);
        Ok(checkpoint)
    }

    async fn begin(&mut self, _session: &Session, _: bool) -> Result<()> {
        // sums are not brought row by row
        Err(Error::new(Code::BackfillUnfit, "redis is filled anew by a command of its own")
            .hint("walcast rebuild redis"))
    }

    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
        // Taken out, and put back only after success: any error leaves nothing to go on with.
        let Some(mut live) = self.live.take() else {
            return Err(Error::new(Code::Unavailable, "redis is to be recovered first"));
        };
        let checkpoint = live.write(batches).await?;
        self.live = Some(live);
        Ok(Written::Durable(checkpoint))
    }

    async fn tick(&mut self) -> Result<Option<Checkpoint>> {
        if let Some(mut live) = self.live.take() {
            live.tick().await?;
            self.live = Some(live);
        }
        Ok(None)
    }

    async fn flush(&mut self) -> Result<Option<Checkpoint>> {
        // every write is durable when it returns
        Ok(None)
    }

    async fn close(&mut self) {
        self.live = None;
    }
}

#[async_trait]
impl SinkAdmin for RedisSink {
    async fn check(&mut self) -> Vec<Finding> {
        self.inspect()
            .await
            .unwrap_or_else(|error| vec![Finding::failed("redis.server", self.config.address(), &error)])
    }

    async fn prepare(&mut self) -> Result<()> {
        for Finding { subject, verdict, message, fix, code, .. } in self.inspect().await? {
            let fix = fix.unwrap_or_default();
            match verdict {
                Verdict::Ok => {}
                Verdict::Warn => tracing::warn!("{subject} {message}: {fix}"),
                Verdict::Fail => {
                    let code = code.unwrap_or(Code::RedisUnfit);
                    return Err(Error::new(code, format!("{subject} {message}")).hint(fix));
                }
            }
        }
        Ok(())
    }

    fn read_back(&self) -> ReadBack {
        ReadBack::Sums(Box::new(read_back::ReadRedis::new(self.config.clone())))
    }

    fn recount(&self) -> Option<Box<dyn Recount>> {
        Some(Box::new(RecountRedis::new(self.config.clone())))
    }

    async fn peek(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        let mut connection = Connection::open(&self.config).await?;
        live::peek(&mut connection, &session.history_id.slot).await
    }

    async fn traces(&mut self, subject: &Subject) -> Result<Traces> {
        let Subject::Content(id) = subject else { return Ok(Traces::default()) };
        let mut connection = Connection::open(&self.config).await?;
        let own = erase::own_keys(&mut connection, id).await?.len() as u64;
        let stays = "its id and its seconds on boards: `walcast rebuild redis` leaves out what PostgreSQL has no more";
        Ok(Traces { found: Some(own), stays: Some(stays.into()) })
    }

    async fn erase(&mut self, subject: &Subject) -> Result<()> {
        let Subject::Content(id) = subject else { return Ok(()) };
        erase::erase(&mut Connection::open(&self.config).await?, id, self.config.replicas()).await
    }
}
