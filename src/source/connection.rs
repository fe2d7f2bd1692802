//! A replication connection: who the server is, making a slot, and the start of the stream.

use bytes::Bytes;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Code, Error, Result};
use crate::lsn::{Lsn, Timelines};
use crate::source::PostgresConfig;
use crate::source::auth::{Security, authenticate};
use crate::source::connect::{any_host, connect};
use crate::source::frame::{malformed, take_bytes, take_i32, take_text, take_u16};
use crate::source::quote::{identifier, literal};
use crate::source::server_error::{Asked, ServerError};
use crate::source::session;
use crate::source::wire::{Wire, nul, unexpected};

pub use crate::source::connect::Stream;
pub use crate::source::stream::ReplicationStream;

/// The oldest PostgreSQL whose `pgoutput` has the options that we ask for.
const SERVER_VERSION_MIN: u32 = 14;

/// A connection that takes replication commands, one at a time. After a cancelled command it is of no
/// more use.
pub struct Connection<S = Stream> {
    wire: Wire<S>,
    server_version: u32,
    encrypted: bool,
    channel_bound: bool,
    standby: bool,
}

/// What IDENTIFY_SYSTEM answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's identifier: a copy has the same, another cluster has another.
    pub system_id: String,
    /// The timeline: a new one after each promotion.
    pub timeline: u32,
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
        any_host(config, async |one| Connection::connect_to(&one).await, |one| one.standby).await
    }

    async fn connect_to(config: &PostgresConfig) -> Result<Connection> {
        let stream = connect(config).await?;
        let security = stream.security().clone();
        let mut connection = Connection::over(stream, config, &security).await?;
        if connection.server_version >= session::NEWER_VERSION {
            connection.query(session::SET_NEWER, Asked::ReplicationSession).await?;
        }
        Ok(connection)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Logs in over a byte stream that leads to a server.
    pub async fn over(io: S, config: &PostgresConfig, security: &Security) -> Result<Connection<S>> {
        let mut wire = Wire::new(io);
        let parameters = startup_parameters(config);
        frontend::startup_message(parameters, wire.output()).map_err(nul)?;
        wire.flush().await?;
        let channel_bound = authenticate(&mut wire, config, security).await?;
        let encrypted = matches!(security, Security::Tls { .. });
        let mut connection = Connection { wire, server_version: 0, encrypted, channel_bound, standby: false };
        connection.await_ready().await?;
        Ok(connection)
    }

    /// Whether it runs over TLS.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Whether the login was bound to the server's certificate (SCRAM-SHA-256-PLUS), which keeps out those
    /// in between even where `sslmode` asks for no proof of identity.
    pub fn is_channel_bound(&self) -> bool {
        self.channel_bound
    }

    /// IDENTIFY_SYSTEM.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let row = self.query("IDENTIFY_SYSTEM", Asked::Identity).await?;
        Ok(SystemIdentity { system_id: field(&row, 0)?.to_owned(), timeline: parsed(&row, 1)? })
    }

    /// TIMELINE_HISTORY: the timelines that this one grew out of.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<Timelines> {
        if timeline <= 1 {
            return Ok(Timelines::default());
        }
        let row = self.query(&format!("TIMELINE_HISTORY {timeline}"), Asked::Identity).await?;
        Timelines::parse(field(&row, 1)?).ok_or_else(|| malformed("a timeline's history of another shape"))
    }

    /// Makes a logical slot for `pgoutput` and exports its snapshot. Waits until every transaction that
    /// now writes has ended. `failover` is asked for where the server knows it, from 17.
    pub async fn create_slot(&mut self, slot: &str, failover: bool) -> Result<CreatedSlot> {
        let options = match self.server_version {
            ..15 => "EXPORT_SNAPSHOT",
            17.. if failover => "(SNAPSHOT 'export', FAILOVER true)",
            _ => "(SNAPSHOT 'export')",
        };
        self.create(slot, "LOGICAL", options).await
    }

    /// Has a slot, which nobody reads, kept on standbys as well (PostgreSQL 17).
    pub async fn keep_on_standbys(&mut self, slot: &str) -> Result<()> {
        let command = format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", identifier(slot));
        self.query(&command, Asked::CreateSlot).await.map(drop)
    }

    /// As [`Connection::create_slot`], for a slot that ends with this connection.
    pub async fn create_temporary_slot(&mut self, slot: &str) -> Result<CreatedSlot> {
        let options = if self.server_version < 15 { "EXPORT_SNAPSHOT" } else { "(SNAPSHOT 'export')" };
        self.create(slot, "TEMPORARY LOGICAL", options).await
    }

    async fn create(&mut self, slot: &str, kind: &str, options: &str) -> Result<CreatedSlot> {
        let slot = identifier(slot);
        let command = format!("CREATE_REPLICATION_SLOT {slot} {kind} pgoutput {options}");
        let row = self.query(&command, Asked::CreateSlot).await?;
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
                b'E' => return Err(ServerError::parse(packet.body)?.into_error(Asked::StartReplication)),
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
                b'S' => match take_text(&mut packet.body)?.as_str() {
                    "server_version" => {
                        self.server_version = supported_version(&take_text(&mut packet.body)?)?;
                    }
                    session::STANDBY => {
                        self.standby = session::is_standby(Some(&take_text(&mut packet.body)?));
                    }
                    _ => {}
                },
                b'Z' => return Ok(()),
                b'E' => return Err(ServerError::parse(packet.body)?.into_error(Asked::ReplicationSession)),
                b'K' | b'N' => {}
                _ => return Err(unexpected(&packet, "before it was ready")),
            }
        }
    }

    async fn send(&mut self, command: &str) -> Result<()> {
        frontend::query(command, self.wire.output()).map_err(nul)?;
        self.wire.flush().await
    }

    /// Sends a command that answers with one row of texts.
    async fn query(&mut self, command: &str, asked: Asked) -> Result<Vec<Option<String>>> {
        self.send(command).await?;
        let mut answer = Ok(Vec::new());
        loop {
            let packet = match self.wire.next().await {
                Err(_) if answer.is_err() => return answer, // it said why it hangs up
                packet => packet?,
            };
            match packet.tag {
                b'D' => answer = answer.and(row(packet.body)),
                b'E' => answer = Err(ServerError::parse(packet.body)?.into_error(asked)),
                b'Z' => return answer,
                b'T' | b'C' | b'N' | b'S' => {}
                _ => return Err(unexpected(&packet, "in answer to a command")),
            }
        }
    }
}

fn startup_parameters(config: &PostgresConfig) -> impl Iterator<Item = (&str, &str)> {
    let ours: [(&str, &str); 3] =
        [("user", &config.user), ("database", &config.db), ("replication", "database")];
    ours.into_iter().chain(session::SETTINGS)
}

fn supported_version(text: &str) -> Result<u32> {
    match session::major_version(text) {
        Some(version) if version >= SERVER_VERSION_MIN => Ok(version),
        Some(_) => Err(Error::new(Code::PostgresVersion, format!("PostgreSQL {text} is too old"))
            .hint(format!("walcast needs PostgreSQL {SERVER_VERSION_MIN} or newer"))),
        None => Err(malformed("a version that is no number")),
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

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::source::script::{data_row, hear, hear_startup, packet, ready, report, say, welcome};

    async fn connected(version: &str) -> Result<(Connection<DuplexStream>, DuplexStream)> {
        let (client, mut server) = tokio::io::duplex(1 << 16);
        say(&mut server, &welcome(version)).await;
        let connection = Connection::over(client, &PostgresConfig::default(), &Security::Plain).await?;
        let parameters = hear_startup(&mut server).await;
        assert!(parameters.windows(2).any(|pair| pair == ["replication", "database"]), "{parameters:?}");
        assert!(
            parameters.windows(2).any(|pair| pair == ["client_min_messages", "warning"]),
            "{parameters:?}"
        );
        Ok((connection, server))
    }

    /// The command that the client sent.
    async fn command(server: &mut DuplexStream) -> String {
        let (tag, body) = hear(server).await.unwrap_or_default();
        assert_eq!(tag, b'Q');
        String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned()
    }

    fn code<T>(result: Result<T>) -> Option<Code> {
        result.err().map(|error| error.code())
    }

    #[tokio::test]
    async fn the_system_identifies_itself() -> Result<()> {
        let (mut connection, mut server) = connected("18.6 (Debian 18.6-1)").await?;
        let row = data_row(&[Some("7412"), Some("3"), Some("16/B374D848"), None]);
        say(&mut server, &[packet(b'T', b""), row, packet(b'C', b""), ready()].concat()).await;
        let wanted = SystemIdentity { system_id: "7412".into(), timeline: 3 };
        assert_eq!(connection.identify_system().await?, wanted);
        assert_eq!(command(&mut server).await, "IDENTIFY_SYSTEM");
        Ok(())
    }

    #[tokio::test]
    async fn a_slot_is_made_in_the_words_of_the_servers_version() -> Result<()> {
        for (version, failover, options) in [
            ("14.24", true, "EXPORT_SNAPSHOT"),
            ("16.1", true, "(SNAPSHOT 'export')"),
            ("17beta1", true, "(SNAPSHOT 'export', FAILOVER true)"),
            ("18", false, "(SNAPSHOT 'export')"),
        ] {
            let (mut connection, mut server) = connected(version).await?;
            let row = data_row(&[Some("s"), Some("0/10"), Some("00000003-1"), Some("pgoutput")]);
            say(&mut server, &[row, ready()].concat()).await;
            let wanted = CreatedSlot { consistent_point: Lsn(16), snapshot: "00000003-1".into() };
            assert_eq!(connection.create_slot("a\"b", failover).await?, wanted);
            let wanted = format!("CREATE_REPLICATION_SLOT \"a\"\"b\" LOGICAL pgoutput {options}");
            assert_eq!(command(&mut server).await, wanted);
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_stream_is_asked_for_with_quoted_names() -> Result<()> {
        let (connection, mut server) = connected("15.1").await?;
        say(&mut server, &packet(b'W', b"\0\0\0")).await;
        connection.start_replication("s", "it's \"p\"", Lsn(0x1_0000_0002)).await.map(drop)?;
        assert_eq!(
            command(&mut server).await,
            "START_REPLICATION SLOT \"s\" LOGICAL 1/2 (proto_version '1', \
             publication_names '\"it''s \"\"p\"\"\"', binary 'true', messages 'true')"
        );
        Ok(())
    }

    #[tokio::test]
    async fn a_refused_command_leaves_the_connection_usable() -> Result<()> {
        let (mut connection, mut server) = connected("18").await?;
        say(
            &mut server,
            &[report(b'E', "ERROR", "42710", "replication slot \"s\" already exists"), ready()].concat(),
        )
        .await;
        assert_eq!(code(connection.create_slot("s", false).await), Some(Code::SlotUnfit));
        say(&mut server, &[data_row(&[Some("1"), Some("1"), Some("0/0"), Some("d")]), ready()].concat())
            .await;
        assert_eq!(connection.identify_system().await?.system_id, "1");
        Ok(())
    }

    #[tokio::test]
    async fn what_the_server_says_before_it_hangs_up_counts() -> Result<()> {
        let (mut connection, mut server) = connected("18").await?;
        say(&mut server, &report(b'E', "FATAL", "57P04", "dropped")).await;
        drop(server);
        assert_eq!(
            code(connection.identify_system().await),
            Some(Code::PostgresUnreachable),
            "the write fails"
        );

        let (client, mut server) = tokio::io::duplex(1 << 16);
        say(&mut server, &report(b'E', "FATAL", "3D000", "database \"x\" does not exist")).await;
        let config = PostgresConfig::default();
        let refused = Connection::over(client, &config, &Security::Plain).await;
        assert_eq!(code(refused), Some(Code::DatabaseMissing));
        Ok(())
    }

    #[tokio::test]
    async fn answers_in_another_shape_are_errors() -> Result<()> {
        let cases: [Vec<u8>; 5] = [
            ready(),
            [data_row(&[Some("7412")]), ready()].concat(),
            [data_row(&[Some("7412"), Some("x"), Some("0/0"), None]), ready()].concat(),
            [packet(b'D', b"\0\x04\0\0\0\x09abc"), ready()].concat(),
            packet(b'?', b""),
        ];
        for answer in cases {
            let (mut connection, mut server) = connected("18").await?;
            say(&mut server, &answer).await;
            assert_eq!(code(connection.identify_system().await), Some(Code::Protocol), "{answer:?}");
        }
        assert_eq!(code(connected("13.1").await), Some(Code::PostgresVersion));
        assert_eq!(code(connected("new").await), Some(Code::Protocol));
        Ok(())
    }
}
