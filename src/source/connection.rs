//! A replication connection: who the server is, making a slot, and the start of the stream.

use bytes::Bytes;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Error, Kind, Result};
use crate::lsn::Lsn;
use crate::source::PostgresConfig;
use crate::source::auth::{Security, authenticate};
use crate::source::dial::{dial, in_time};
use crate::source::frame::{malformed, take_bytes, take_i32, take_text, take_u16};
use crate::source::quote::{identifier, literal};
use crate::source::server_error::ServerError;
use crate::source::wire::{Wire, nul, unexpected};

pub use crate::source::dial::Stream;
pub use crate::source::stream::ReplicationStream;

/// The oldest PostgreSQL whose `pgoutput` has the options that we ask for.
const SERVER_VERSION_MIN: u32 = 14;

/// A connection that takes replication commands, one at a time. After a cancelled command it is of no
/// more use.
pub struct Connection<S = Stream> {
    wire: Wire<S>,
    server_version: u32,
}

/// What IDENTIFY_SYSTEM answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's identifier: a copy has the same, another cluster has another.
    pub system_id: String,
    /// The timeline: a new one after each promotion.
    pub timeline: u32,
    /// The end of the WAL on the server's disk.
    pub wal_flush: Lsn,
    /// The database that we are connected to.
    pub db: Option<String>,
}

/// What CREATE_REPLICATION_SLOT answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Transactions that commit at or after this LSN are in the stream, all before are in the snapshot.
    pub consistent_point: Lsn,
    /// The snapshot's name for `SET TRANSACTION SNAPSHOT`. It is gone after the next command on this
    /// connection, and with it.
    pub snapshot: String,
}

impl Connection {
    /// Connects and logs in, within ten seconds.
    pub async fn connect(config: &PostgresConfig) -> Result<Connection> {
        in_time(config, async {
            let stream = dial(config).await?;
            let security = stream.security().clone();
            Connection::over(stream, config, &security).await
        })
        .await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Logs in over a byte stream that leads to a server.
    pub async fn over(io: S, config: &PostgresConfig, security: &Security) -> Result<Connection<S>> {
        let mut wire = Wire::new(io);
        let parameters = startup_parameters(config);
        frontend::startup_message(parameters, wire.output()).map_err(nul)?;
        wire.flush().await?;
        authenticate(&mut wire, config, security).await?;
        let mut connection = Connection { wire, server_version: 0 };
        connection.await_ready().await?;
        Ok(connection)
    }

    /// The server's major version, such as 18.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// IDENTIFY_SYSTEM.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let row = self.query("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity {
            system_id: field(&row, 0)?.to_owned(),
            timeline: parsed(&row, 1)?,
            wal_flush: parsed(&row, 2)?,
            db: row.get(3).cloned().flatten(),
        })
    }

    /// Makes a logical slot for `pgoutput` and exports its snapshot. Waits until every transaction that
    /// now writes has ended. `failover` is asked for where the server knows it, from 17.
    pub async fn create_slot(&mut self, slot: &str, failover: bool) -> Result<CreatedSlot> {
        let options = match self.server_version {
            ..15 => "EXPORT_SNAPSHOT",
            17.. if failover => "(SNAPSHOT 'export', FAILOVER true)",
            _ => "(SNAPSHOT 'export')",
        };
        let slot = identifier(slot);
        let row = self.query(&format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput {options}")).await?;
        Ok(CreatedSlot { consistent_point: parsed(&row, 1)?, snapshot: field(&row, 2)?.to_owned() })
    }

    /// Starts the stream of all transactions that end after `start` (or after the slot's confirmed LSN,
    /// where that is greater).
    pub async fn start_replication(
        mut self,
        slot: &str,
        publication: &str,
        start: Lsn,
    ) -> Result<ReplicationStream<S>> {
        let slot = identifier(slot);
        let publication = literal(&identifier(publication));
        self.send(&format!(
            "START_REPLICATION SLOT {slot} LOGICAL {start} \
             (proto_version '1', publication_names {publication}, binary 'true', messages 'true')"
        ))
        .await?;
        loop {
            let packet = self.wire.next().await?;
            match packet.tag {
                b'W' => return Ok(ReplicationStream::new(self.wire)),
                b'E' => return Err(ServerError::parse(packet.body)?.into_error()),
                b'N' | b'S' => {}
                _ => return Err(unexpected(&packet, "in answer to START_REPLICATION")),
            }
        }
    }

    /// Takes leave.
    pub async fn close(mut self) -> Result<()> {
        frontend::terminate(self.wire.output());
        self.wire.shutdown().await
    }

    /// Reads what the server tells of itself until it takes commands.
    async fn await_ready(&mut self) -> Result<()> {
        loop {
            let mut packet = self.wire.next().await?;
            match packet.tag {
                b'S' if take_text(&mut packet.body)? == "server_version" => {
                    self.server_version = major_version(&take_text(&mut packet.body)?)?;
                }
                b'Z' => return Ok(()),
                b'E' => return Err(ServerError::parse(packet.body)?.into_error()),
                b'S' | b'K' | b'N' => {}
                _ => return Err(unexpected(&packet, "before it was ready")),
            }
        }
    }

    async fn send(&mut self, command: &str) -> Result<()> {
        frontend::query(command, self.wire.output()).map_err(nul)?;
        self.wire.flush().await
    }

    /// Sends a command that answers with one row of texts.
    async fn query(&mut self, command: &str) -> Result<Vec<Option<String>>> {
        self.send(command).await?;
        let mut answer = Ok(Vec::new());
        loop {
            let packet = match self.wire.next().await {
                Err(_) if answer.is_err() => return answer, // it said why it hangs up
                packet => packet?,
            };
            match packet.tag {
                b'D' => answer = answer.and(row(packet.body)),
                b'E' => answer = Err(ServerError::parse(packet.body)?.into_error()),
                b'Z' => return answer,
                b'T' | b'C' | b'N' | b'S' => {}
                _ => return Err(unexpected(&packet, "in answer to a command")),
            }
        }
    }
}

/// Settings that change what the stream says are pinned, whatever the role or database has of its own:
/// the texts of values, and that PostgreSQL 18's warning about a missing publication gets through.
fn startup_parameters(config: &PostgresConfig) -> [(&str, &str); 13] {
    [
        ("user", &config.user),
        ("database", &config.db),
        ("replication", "database"),
        ("application_name", "walcast"),
        ("client_encoding", "UTF8"),
        ("client_min_messages", "warning"),
        ("DateStyle", "ISO"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("extra_float_digits", "3"),
        ("statement_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("idle_session_timeout", "0"),
    ]
}

/// `18.6 (Debian 18.6-1)` → 18.
fn major_version(text: &str) -> Result<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).map_or(text, |end| &text[..end]);
    match digits.parse() {
        Ok(version) if version >= SERVER_VERSION_MIN => Ok(version),
        Ok(_) => Err(Error::new(Kind::Setup, format!("PostgreSQL {text} is too old"))
            .hint(format!("walcast needs PostgreSQL {SERVER_VERSION_MIN} or newer"))),
        Err(_) => Err(malformed("a version that is no number")),
    }
}

/// Reads the body of a DataRow.
fn row(mut body: Bytes) -> Result<Vec<Option<String>>> {
    (0..take_u16(&mut body)?)
        .map(|_| {
            let Ok(length) = usize::try_from(take_i32(&mut body)?) else { return Ok(None) };
            let value = take_bytes(&mut body, length)?;
            Ok(Some(String::from_utf8_lossy(&value).into_owned()))
        })
        .collect()
}

fn field(row: &[Option<String>], column: usize) -> Result<&str> {
    row.get(column).and_then(Option::as_deref).ok_or_else(|| malformed("an answer without the column due"))
}

fn parsed<T: std::str::FromStr>(row: &[Option<String>], column: usize) -> Result<T> {
    field(row, column)?.parse().map_err(|_| malformed("an answer that is no number"))
}
