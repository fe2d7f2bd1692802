//! Filling Redis anew, from all events there are.
//!
//! While it lasts a key of its own, [`keys::rebuild`], takes the place of the checkpoint: everybody else is refused, also
//! after a crash, until a rebuild has ended. The events go through the sink's own flushes and memory, so what is
//! written is what the sink reads. Boards are written at the end, each in one act: readers see the former one (or,
//! after 30 s without a refresh, an empty one) and then the new.

use std::sync::Arc;

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

/// Events handed on together.
const EVENTS_AT_ONCE: usize = 4_096;

/// Keys deleted in one script.
const KEYS_AT_ONCE: usize = 1_000;

/// A rebuild at work.
pub struct Rebuild {
    live: Live,
    builder: BatchBuilder,
    session: Session,
    events: u64,
}

impl Rebuild {
    /// Refuses a Redis that a rebuild would do harm to; changes nothing.
    pub async fn check(config: &RedisConfig, slot: &str) -> Result<()> {
        refuse_others(&mut Connection::open(config).await?, slot).await
    }

    /// Shuts everybody else out, and empties what walcast has written except the boards. `session` must have the
    /// newest fencing token.
    pub async fn begin(config: &RedisConfig, session: &Session) -> Result<Rebuild> {
        let mut connection = Connection::open(config).await?;
        let live_connection = Connection::open(config).await?;
        let live = Live::rebuild(live_connection, config, session).await?;
        failpoint!("redis_rebuild_after_begin");
        clear(&mut connection, &live.fence_call()).await?;
        failpoint!("redis_rebuild_after_clear");
        let builder = BatchBuilder::new(Checkpoint::default());
        Ok(Rebuild { live, builder, session: session.clone(), events: 0 })
    }

    /// Adds an event with its content; its own place does not matter.
    pub async fn add(&mut self, row: &Engagement<'_>, content: Option<Arc<Content>>) -> Result<()> {
        let position = Position { commit_lsn: Lsn(1), ordinal: self.events };
        // Redis has nothing of people, and of contents what the rules have left of them already
        let rules = (false, &Privacy::default());
        let event = Event::of(row, (position, 0), content, rules, |text| self.builder.intern(text));
        self.builder.push(Row::Event(event));
        self.events += 1;
        if self.builder.len() < EVENTS_AT_ONCE { Ok(()) } else { self.write().await }
    }

    async fn write(&mut self) -> Result<()> {
        let batch = Arc::new(self.builder.finish(false));
        self.live.write(&[batch]).await?;
        failpoint!("redis_rebuild_after_write");
        self.live.pack_one().await
    }

    /// Shows the boards, and sets the checkpoint: all below `end` is in.
    pub async fn end(mut self, end: Lsn) -> Result<()> {
        self.write().await?;
        self.live.show().await?;
        failpoint!("redis_rebuild_before_checkpoint");
        let checkpoint = StoredCheckpoint::new(&self.session.history_id, Checkpoint::at(end));
        self.live.rebuilt(&keys::checkpoint(&self.session.history_id.slot), &checkpoint).await?;
        failpoint!("redis_rebuild_after_checkpoint");
        Ok(())
    }

    /// How many events were added.
    pub fn events(&self) -> u64 {
        self.events
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
