//! Filling Redis anew, from all events there are.
//!
//! While it lasts a key of its own, [`keys::rebuild`], takes the place of the checkpoint: everybody else is refused, also
//! after a crash, until a rebuild has ended. The events go through the sink's own flushes and memory, so what is
//! written is what the sink reads. Boards are written at the end, each in one act: readers see the former one (or,
//! after 30 s without a refresh, an empty one) and then the new.

use std::sync::Arc;

use async_trait::async_trait;

use super::connection::{self, Call, Connection};
use super::live::Live;
use super::read_back::is_ours;
use super::{RedisConfig, keys};
use crate::batch::{BatchBuilder, Event, Row};
use crate::error::{Code, Error, Result};
use crate::event::privacy::Privacy;
use crate::event::{Content, Engagement};
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Lsn, Position, Session, StoredCheckpoint};
use crate::sink::recount::Recount;

/// Events handed on together.
const EVENTS_AT_ONCE: usize = 4_096;

/// Keys deleted in one script.
const KEYS_AT_ONCE: usize = 1_000;

/// Redis, about to be filled anew.
pub struct RecountRedis {
    config: RedisConfig,
    work: Option<Work>,
}

/// A rebuild at work.
struct Work {
    live: Live,
    builder: BatchBuilder,
    session: Session,
    events: u64,
}

impl RecountRedis {
    /// Connects at first use.
    pub fn new(config: RedisConfig) -> Self {
        RecountRedis { config, work: None }
    }

    fn work(&mut self) -> Result<&mut Work> {
        self.work.as_mut().ok_or_else(|| Error::new(Code::Unavailable, "redis is to be emptied first"))
    }
}

#[async_trait]
impl Recount for RecountRedis {
    async fn check(&mut self, slot: &str) -> Result<()> {
        refuse_others(&mut Connection::open(&self.config).await?, slot).await
    }

    /// The boards stay until they are shown anew.
    async fn begin(&mut self, session: &Session) -> Result<()> {
        let mut connection = Connection::open(&self.config).await?;
        let live_connection = Connection::open(&self.config).await?;
        let live = Live::rebuild(live_connection, &self.config, session).await?;
        failpoint!("redis_rebuild_after_begin");
        clear(&mut connection, &live.fence_call()).await?;
        failpoint!("redis_rebuild_after_clear");
        let builder = BatchBuilder::new(Checkpoint::default());
        self.work = Some(Work { live, builder, session: session.clone(), events: 0 });
        Ok(())
    }

    async fn add(&mut self, row: &Engagement<'_>, content: Option<Arc<Content>>) -> Result<()> {
        let work = self.work()?;
        let position = Position { commit_lsn: Lsn(1), ordinal: work.events };
        // Redis has nothing of people, and of contents what the rules have left of them already
        let rules = (false, &Privacy::default());
        let event = Event::of(row, (position, 0), content, rules, |text| work.builder.intern(text));
        work.builder.push(Row::Event(event));
        work.events += 1;
        if work.builder.len() < EVENTS_AT_ONCE { Ok(()) } else { work.write().await }
    }

    async fn end(&mut self, end: Lsn) -> Result<()> {
        let work = self.work()?;
        work.write().await?;
        work.live.show().await?;
        failpoint!("redis_rebuild_before_checkpoint");
        let checkpoint = StoredCheckpoint::new(&work.session.history_id, Checkpoint::at(end));
        work.live.rebuilt(&keys::checkpoint(&work.session.history_id.slot), &checkpoint).await?;
        failpoint!("redis_rebuild_after_checkpoint");
        self.work = None;
        Ok(())
    }
}

impl Work {
    async fn write(&mut self) -> Result<()> {
        let batch = Arc::new(self.builder.finish(false));
        self.live.write(&[batch]).await?;
        failpoint!("redis_rebuild_after_write");
        self.live.pack_one().await
    }
}

/// Counters have no slot in their names: those of another slot would go too.
async fn refuse_others(connection: &mut Connection, slot: &str) -> Result<()> {
    for checkpoint in [keys::checkpoint, keys::former_checkpoint] {
        refuse_other(connection, &checkpoint(slot), &checkpoint("*")).await?;
    }
    Ok(())
}

async fn refuse_other(connection: &mut Connection, ours: &str, any: &str) -> Result<()> {
    let mut cursor: u64 = 0;
    loop {
        let mut scan = redis::cmd("SCAN");
        let (next, found): (u64, Vec<String>) =
            connection.ask(scan.arg(cursor).arg("MATCH").arg(any).arg("COUNT").arg(KEYS_AT_ONCE)).await?;
        if let Some(other) = found.iter().find(|name| *name != ours) {
            let message = format!("redis holds the counters of another slot ({other})");
            return Err(Error::new(Code::RedisRemains, message).hint(
                "give walcast a database of its own (redis.db), or delete that key if the slot is no more",
            ));
        }
        cursor = next;
        if cursor == 0 {
            return Ok(());
        }
    }
}

/// Deletes all keys of ours but the boards.
async fn clear(connection: &mut Connection, fence: &Call) -> Result<()> {
    let mut cursor: u64 = 0;
    loop {
        let mut scan = redis::cmd("SCAN");
        let (next, found): (u64, Vec<Vec<u8>>) =
            connection.ask(scan.arg(cursor).arg("COUNT").arg(KEYS_AT_ONCE)).await?;
        let names = found.into_iter().filter_map(|name| String::from_utf8(name).ok());
        let names: Vec<String> = names.filter(|name| is_ours(name)).collect();
        if !names.is_empty() {
            let mut call = Call::default();
            call.append(fence);
            for name in &names {
                call.key(name);
            }
            connection.run(&connection::CLEAR, &call).await?;
        }
        cursor = next;
        if cursor == 0 {
            return Ok(());
        }
    }
}
