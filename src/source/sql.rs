//! Ordinary SQL sessions: `tokio-postgres` over the same [`connect`] as replication, so that TLS, channel binding,
//! deadlines and the refusal of weak passwords are the same for both.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::types::FromSql;
use tokio_postgres::{Client, Row};

use crate::error::{Code, Error, Result};
use crate::source::PostgresConfig;
use crate::source::auth::{LoginRules, Security, asked_next};
use crate::source::connect::{self, Stream, in_time};
use crate::source::frame::Packet;
use crate::source::server_error::{self, Asked, ServerError};
use crate::source::session;

/// Opens a session for ordinary SQL. The session ends when the client is dropped.
pub async fn connect(config: &PostgresConfig) -> Result<Client> {
    connect_watched(config).await.map(|(client, _)| client)
}

/// As [`connect`], with a receiver that gives the reason when the session ends.
pub async fn connect_watched(config: &PostgresConfig) -> Result<(Client, oneshot::Receiver<Error>)> {
    let (client, connection) = log_in_to_any(config).await?;
    let version = connection.parameter("server_version").and_then(session::major_version).unwrap_or_default();
    let (ended, watched) = oneshot::channel();
    tokio::spawn(async move {
        let reason = match connection.await {
            Ok(()) => Error::new(Code::PostgresUnreachable, "the SQL session was closed"),
            Err(reason) => error(reason),
        };
        // Most sessions are not watched: their users see the next statement fail.
        let _ = ended.send(reason);
    });
    if version >= session::NEWER_VERSION {
        in_time(config, async { client.batch_execute(session::SET_NEWER).await.map_err(error) }).await?;
    }
    Ok((client, watched))
}

/// One of several hosts that takes writes, for all that is to be of one server; one alone whatever it does.
pub async fn choose_host(config: &PostgresConfig) -> Result<PostgresConfig> {
    if config.each_host().len() == 1 {
        return Ok(config.clone());
    }
    let is_standby = |(_, (_, session)): &(PostgresConfig, (Client, Session))| {
        session::is_standby(session.parameter(session::STANDBY))
    };
    let log_in = async |one: PostgresConfig| {
        let session = log_in(&one).await?;
        Ok((one, session))
    };
    Ok(connect::any_host(config, log_in, is_standby).await?.0)
}

/// Sorts an error of a statement by what can be done about it.
pub fn error(error: tokio_postgres::Error) -> Error {
    error_to(Asked::Statement, error)
}

/// Sorts an error by what was asked, and what can be done about it.
pub fn error_to(asked: Asked, error: tokio_postgres::Error) -> Error {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let ours = io.and_then(io::Error::get_ref).and_then(|inner| inner.downcast_ref::<Error>());
    let sorted = match (error.as_db_error(), ours) {
        // without the client's error behind it, which would tell the detail of every refusal
        (Some(refusal), _) => return ServerError::from(refusal).into_error(asked),
        (None, Some(ours)) => return Error::new(ours.code(), ours.chain()).hint(ours.advice()),
        (None, None) if io.is_some() || error.is_closed() => {
            Error::new(Code::PostgresUnreachable, "PostgreSQL cannot be reached")
        }
        (None, None) => Error::new(Code::Protocol, "PostgreSQL answered in another shape than walcast reads"),
    };
    sorted.because(error)
}

/// A row's column.
pub fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T> {
    row.try_get(column).map_err(error)
}

type Session = tokio_postgres::Connection<Stream, LoginGuard>;

/// Of several hosts one that takes writes; one alone whatever it does.
async fn log_in_to_any(config: &PostgresConfig) -> Result<(Client, Session)> {
    let is_standby =
        |(_, session): &(Client, Session)| session::is_standby(session.parameter(session::STANDBY));
    connect::any_host(config, async |one| log_in(&one).await, is_standby).await
}

async fn log_in(config: &PostgresConfig) -> Result<(Client, Session)> {
    let stream = connect::connect(config).await?;
    let guard = GuardLogin(LoginRules::new(config, stream.security()));
    let mut options = tokio_postgres::Config::new();
    options.host(&config.host).port(config.port).dbname(&config.db).user(&config.user);
    options.password(config.password.expose()).options(session::options());
    // "TLS, and no need to ask for it": `connect` has done all that, the guard takes its place
    options.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    let (client, session) =
        options.connect_raw(stream, guard).await.map_err(|error| error_to(Asked::Session, error))?;
    // PgBouncer can be told to leave `options` out (`ignore_startup_parameters`), and row-level security would filter unseen
    match session.parameter("application_name") == Some("walcast") {
        true => Ok((client, session)),
        false => {
            Err(Error::new(Code::Pooler, "the session came without the settings that walcast began it with")
                .hint(server_error::POOLER))
        }
    }
}

/// Puts a [`LoginGuard`] where `tokio-postgres` puts TLS.
struct GuardLogin(LoginRules);

impl TlsConnect<Stream> for GuardLogin {
    type Stream = LoginGuard;
    type Error = Infallible;
    type Future = Ready<Result<LoginGuard, Infallible>>;

    fn connect(self, stream: Stream) -> Self::Future {
        ready(Ok(LoginGuard { stream, rules: self.0, asked: Asked::Login, heard: Some(BytesMut::new()) }))
    }
}

/// Listens to the server until it lets us in: `tokio-postgres` by itself would show the password in clear to
/// whoever asks, and does not tell which of our messages was refused.
struct LoginGuard {
    stream: Stream,
    rules: LoginRules,
    /// What the server's next packet answers.
    asked: Asked,
    /// What of the server's packets has not been looked at; `None` once we are in.
    heard: Option<BytesMut>,
}

impl LoginGuard {
    fn hear(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(heard) = &mut self.heard else { return Ok(()) };
        heard.extend_from_slice(bytes);
        while let Some(mut packet) = Packet::split(heard)? {
            match packet.tag {
                b'R' if self.rules.permit(packet.body.clone())? => {
                    self.heard = None;
                    break;
                }
                b'R' => self.asked = asked_next(&mut packet.body)?,
                b'E' => return Err(ServerError::parse(packet.body)?.into_error(self.asked)),
                _ => {}
            }
        }
        Ok(())
    }
}

impl TlsStream for LoginGuard {
    fn channel_binding(&self) -> ChannelBinding {
        match self.stream.security() {
            Security::Tls { end_point: Some(hash) } => ChannelBinding::tls_server_end_point(hash.clone()),
            _ => ChannelBinding::none(),
        }
    }
}

impl AsyncRead for LoginGuard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let new = buf.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.hear(new).map_err(io::Error::other))
    }
}

impl AsyncWrite for LoginGuard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
