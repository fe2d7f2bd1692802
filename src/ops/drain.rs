//! `walcast drain`: every sink is brought level, and the slot is left with nothing to be read.
//!
//! The sinks' checkpoints are themselves written to PostgreSQL, so a slot that is confirmed up to them always has something left,
//! and pg_upgrade refuses it. So when the sinks have ended, the slot is read on without them: there must be no row any more, and
//! what there is may be confirmed. That goes on until PostgreSQL is stopped, which waits until its reader has all.

use std::time::Duration;

use tokio_postgres::{Client, Row};

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::failpoint::failpoint;
use crate::lsn::Lsn;
use crate::ops::terminal::print;
use crate::pgoutput::Message;
use crate::pipeline;
use crate::shutdown::Shutdown;
use crate::source::connection::Connection;
use crate::source::frame::Frame;
use crate::source::stream::ReplicationStream;
use crate::source::{request, slot, sql};
use crate::state::{drained, history};
use crate::telemetry::registry::StatusRegistry;

/// How often it is looked whether all has been received.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often the slot is opened again after the connection was lost, and how often it is: longer than wal_sender_timeout by default.
const AGAIN_EVERY: Duration = Duration::from_secs(1);
const AGAIN_TRIES: u32 = 90;
/// A server that is unreachable so often in a row has stopped.
const UNREACHABLE_MAX: u32 = 3;

/// Ends when PostgreSQL is stopped, or at `shutdown`.
pub async fn drain(config: &Config, mut shutdown: Shutdown) -> Result<()> {
    let client = sql::connect(&config.postgres).await?;
    let (history_id, _) = history::find(&config.postgres, &client).await?;
    refuse_reader(config, &client).await?;
    if !level(config, slot::wal_insert_lsn(&client).await?, &mut shutdown).await? {
        return Ok(());
    }
    refuse_open(&client, history_id.uuid).await?;
    failpoint!("drain_before_note");
    let from = history::confirmed(&config.postgres, &client).await?;
    // the slot is ours before anything is noted of it
    let mut reading = Reading::open(config, from).await?;
    if history::confirmed(&config.postgres, &client).await? != from {
        return Err(Error::new(Code::SlotBusy, format!("slot {} was read meanwhile", config.postgres.slot))
            .hint("stop `walcast run`, and each that waits for it, and drain again"));
    }
    drained::begin(&client, &config.postgres, history_id.uuid, from).await?;
    failpoint!("drain_after_note");
    let end = slot::wal_insert_lsn(&client).await?;
    let read = read_on(config, &mut reading, end, &mut shutdown).await;
    if matches!(read, Ok(Ended::WithTheServer)) {
        return Ok(());
    }
    // else an upgrade would count on what nobody has seen
    let noted = drained::end(&client, history_id.uuid, reading.upto).await;
    reading.close().await;
    read?;
    noted
}

/// How the reading ended.
enum Ended {
    WithTheServer,
    BeforeIt,
}

async fn refuse_reader(config: &Config, client: &Client) -> Result<()> {
    match slot::facts(client, &config.postgres.slot).await?.and_then(|facts| facts.active_pid) {
        None => Ok(()),
        Some(pid) => {
            let message = format!("slot {} is read by process {pid}", config.postgres.slot);
            Err(Error::new(Code::SlotBusy, message)
                .hint("stop `walcast run`, and each that waits for it: this takes their place"))
        }
    }
}

/// Feeds the sinks until they have all up to `end`. `false` when that was broken off.
async fn level(config: &Config, end: Lsn, shutdown: &mut Shutdown) -> Result<bool> {
    let registry = StatusRegistry::new();
    let (stop, stopped) = Shutdown::manual();
    let mut running = std::pin::pin!(pipeline::run(config, &registry, stopped));
    let is_level = tokio::select! {
        ended = &mut running => return ended.map(|()| false),
        () = received(&registry, end) => true,
        () = shutdown.wait() => false,
    };
    stop.signal();
    tokio::select! {
        ended = &mut running => ended?,
        () = shutdown.again() => {
            stop.signal();
            running.await?;
        }
    }
    let status = registry.status();
    match status.sinks.iter().find(|sink| sink.durable_lsn < end) {
        Some(sink) if is_level => {
            let message = format!("{} holds all up to {}, and is to hold {end}", sink.name, sink.durable_lsn);
            Err(Error::new(Code::SinksBehind, message)
                .hint("see with `walcast run` and `walcast status` what holds it up, and drain then"))
        }
        _ => Ok(is_level),
    }
}

/// Returns when all sinks are fed together and have been given all up to `end`.
async fn received(registry: &StatusRegistry, end: Lsn) {
    loop {
        let status = registry.status();
        let together = !status.sinks.is_empty() && status.sinks.iter().all(|sink| sink.lane.is_none());
        if status.is_streaming() && together && status.source.received_lsn >= end {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What has a slot of its own, or is on its way, is not level.
async fn refuse_open(client: &Client, history_id: uuid::Uuid) -> Result<()> {
    let query = "SELECT format('%s has a slot of its own', sink) FROM walcast.lane WHERE history_id = $1
       UNION ALL SELECT format('a backfill or rebuild of %s is %s', array_to_string(sinks, ', '), state) FROM walcast.backfill
         WHERE history_id = $1 AND state IN ('waiting', 'running', 'paused')";
    let open: Vec<Row> = client.query(query, &[&history_id]).await.map_err(sql::error)?;
    match open.first() {
        None => Ok(()),
        Some(row) => Err(Error::new(Code::RowsStillCome, sql::get::<String>(row, 0)?)
            .hint("let `walcast run` end that, or cancel it, and drain then")),
    }
}

/// Reads the slot on from where the sinks have all, and confirms what is no row.
async fn read_on(config: &Config, reading: &mut Reading, end: Lsn, shutdown: &mut Shutdown) -> Result<Ended> {
    let slot = &config.postgres.slot;
    let mut told = false;
    loop {
        let read = tokio::select! {
            read = reading.read() => read,
            () = shutdown.wait() => {
                print(&format!(
                    "Ended before PostgreSQL: pg_upgrade would refuse slot {slot}. `walcast run` goes on; to upgrade, run `walcast drain` again.\n"
                ));
                return Ok(Ended::BeforeIt);
            }
        };
        match read {
            Ok(()) if !told && reading.upto >= end => {
                told = true;
                print(&format!(
                    "Every sink is level with PostgreSQL at {}, and slot {slot} has nothing left. Stop PostgreSQL now (pg_ctl stop -m fast); \
                     this ends with it.\n",
                    reading.upto
                ));
            }
            Ok(()) => {}
            // as from a server that is stopped, or by a network that is cut
            Err(error) if told && error.code() == Code::PostgresUnreachable => {
                if let Some(again) = Reading::again(config, reading.upto).await? {
                    *reading = again;
                    continue;
                }
                print(&format!(
                    "PostgreSQL has stopped, and slot {slot} has nothing left up to {}. After pg_upgrade: walcast adopt\n",
                    reading.upto
                ));
                return Ok(Ended::WithTheServer);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The slot, read without sinks.
struct Reading {
    stream: ReplicationStream,
    /// What is confirmed.
    upto: Lsn,
    /// Whether a transaction has begun.
    inside: bool,
}

impl Reading {
    async fn open(config: &Config, from: Lsn) -> Result<Reading> {
        let (slot, publication) = (&config.postgres.slot, &config.postgres.publication);
        let connection = Connection::connect(&config.postgres).await?;
        let stream = connection.start_replication(slot, publication, from).await?;
        Ok(Reading { stream, upto: from, inside: false })
    }

    /// The same after the connection was lost; `None` when the server has stopped.
    async fn again(config: &Config, from: Lsn) -> Result<Option<Reading>> {
        let mut unreachable = 0;
        for _ in 0..AGAIN_TRIES {
            match Reading::open(config, from).await {
                Ok(reading) => return Ok(Some(reading)),
                Err(error) if error.code() == Code::PostgresUnreachable => unreachable += 1,
                // our former session, of which the server does not know yet that it is gone
                Err(error) if error.code() == Code::SlotBusy => unreachable = 0,
                Err(error) => return Err(error),
            }
            if unreachable == UNREACHABLE_MAX {
                return Ok(None);
            }
            tokio::time::sleep(AGAIN_EVERY).await;
        }
        Err(Error::new(
            Code::SlotBusy,
            format!("slot {} is still read by a lost session", config.postgres.slot),
        )
        .hint("run `walcast drain` again"))
    }

    /// Lets go of the slot, where the server is still there.
    async fn close(self) {
        let _ = self.stream.close(self.upto).await;
    }

    /// Reads what is there, and confirms it. Cancel safe.
    async fn read(&mut self) -> Result<()> {
        let mut heard = false;
        while let Some(frame) = self.stream.next_frame()? {
            heard = true;
            match frame {
                Frame::XLogData { payload, .. } => self.take(&payload)?,
                Frame::Keepalive { wal_end, .. } if !self.inside => self.upto = self.upto.max(wal_end),
                Frame::Keepalive { .. } | Frame::Warning(_) => {}
            }
        }
        if heard {
            self.stream.send_status(self.upto, self.upto, false).await?;
        }
        self.stream.fill().await
    }

    fn take(&mut self, payload: &[u8]) -> Result<()> {
        let broken =
            |error| Error::new(Code::Protocol, "the replication stream cannot be decoded").because(error);
        let found = match Message::parse(payload).map_err(broken)? {
            Message::Begin { .. } => {
                self.inside = true;
                return Ok(());
            }
            Message::Commit { end_lsn, .. } => {
                (self.inside, self.upto) = (false, self.upto.max(end_lsn));
                return Ok(());
            }
            Message::Insert { .. }
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Truncate { .. } => "a row of the publication has come",
            Message::Logical { prefix, .. } if prefix == request::PREFIX => "a request of walcast's has come",
            _ => return Ok(()),
        };
        let message = format!("{found} after {}, when all sinks were level", self.upto);
        Err(Error::new(Code::RowsStillCome, message).hint("stop who writes, and run `walcast drain` again"))
    }
}
