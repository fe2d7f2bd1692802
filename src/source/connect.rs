//! The way to the server: TCP, and TLS where it is asked for, alike for replication and ordinary SQL.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::error::{Class, Code, Error, Result};
use crate::source::auth::Security;
use crate::source::frame::{malformed, shown};
use crate::source::wire::hung_up;
use crate::source::{PostgresConfig, SslMode, SslNegotiation, tls};

/// How long it may take from the first packet to being let in.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How long one of several hosts is waited for before the next is asked too.
const HEAD_START: Duration = Duration::from_secs(1);

/// How long the other side may leave bytes unacknowledged, or an idle connection's probes unanswered, before
/// the connection counts as broken.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A connection to PostgreSQL, before any message of its protocol proper.
pub struct Stream {
    io: Io,
    security: Security,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Local(UnixStream),
}

/// Connects.
pub(crate) async fn connect(config: &PostgresConfig) -> Result<Stream> {
    if config.is_local_socket() {
        return local_socket(config).await;
    }
    let mut tcp = TcpStream::connect((config.host.as_str(), config.port)).await.map_err(|error| {
        Error::new(Code::PostgresUnreachable, format!("cannot reach PostgreSQL at {}", place(config)))
            .because(error)
    })?;
    set_options(&tcp).map_err(|error| hung_up().because(error))?;
    if config.sslmode == SslMode::Disable {
        return Ok(Stream { io: Io::Plain(tcp), security: Security::Plain });
    }
    let speaks_tls = match config.sslnegotiation {
        SslNegotiation::Direct => true,
        SslNegotiation::Postgres => ask_for_tls(&mut tcp).await?,
    };
    match (speaks_tls, config.sslmode) {
        (true, _) => {
            let stream = tls::handshake(tcp, config).await?;
            let security = Security::Tls { end_point: tls::end_point(&stream) };
            Ok(Stream { io: Io::Tls(Box::new(stream)), security })
        }
        (false, SslMode::Prefer) => Ok(Stream { io: Io::Plain(tcp), security: Security::Plain }),
        (false, _) => {
            Err(Error::new(Code::PostgresTls, format!("PostgreSQL at {} has no TLS", place(config))).hint(
                "set ssl = on in postgresql.conf with a certificate, or choose another `postgres.sslmode`",
            ))
        }
    }
}

/// A Unix socket, as PostgreSQL names it in its folder. It leads to this machine and has no TLS, as in libpq.
async fn local_socket(config: &PostgresConfig) -> Result<Stream> {
    let path = format!("{}/.s.PGSQL.{}", config.host.trim_end_matches('/'), config.port);
    let socket = UnixStream::connect(&path).await.map_err(|error| {
        Error::new(Code::PostgresUnreachable, format!("cannot reach PostgreSQL at {path}"))
            .hint("see that it runs, and that unix_socket_directories has this folder")
            .because(error)
    })?;
    Ok(Stream { io: Io::Local(socket), security: Security::Plain })
}

/// Why none of several hosts has let us in as the one that takes writes.
#[derive(Default)]
struct Missed(Vec<Error>);

impl Missed {
    /// Goes on to the next host, unless this one's refusal is for good: the next would say the same, or is not to be asked for a
    /// way around it.
    fn note(&mut self, error: Error) -> Result<()> {
        match error.class() {
            Class::Transient => {
                self.0.push(error);
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// This host is a standby.
    fn note_standby(&mut self, config: &PostgresConfig) {
        self.0.push(Error::new(Code::PostgresStandby, format!("{} is a standby", place(config))));
    }

    /// What is told in the end.
    fn into_error(mut self, config: &PostgresConfig) -> Error {
        let Some(last) = self.0.pop() else {
            return Error::new(Code::Configuration, "`postgres.host` names no host");
        };
        if self.0.is_empty() && last.code() != Code::PostgresStandby {
            return last;
        }
        let (code, advice) = (last.code(), last.advice().to_owned());
        let all: Vec<String> = self.0.iter().chain([&last]).map(Error::chain).collect();
        Error::new(code, format!("none of {} takes writes: {}", config.host, all.join("; "))).hint(advice)
    }
}

/// Of several hosts the first that takes writes; one alone whatever it does. One that does not answer within a second holds up the
/// next no longer.
pub(crate) async fn any_host<T, F: Future<Output = Result<T>>>(
    config: &PostgresConfig,
    log_in: impl Fn(PostgresConfig) -> F,
    is_standby: impl Fn(&T) -> bool,
) -> Result<T> {
    let (hosts, mut missed) = (config.each_host(), Missed::default());
    let (mut asked, mut next, mut refused) = (FuturesUnordered::new(), hosts.iter(), None);
    loop {
        let one = next.next();
        asked.extend(one.map(|one| {
            let asking = log_in(one.clone());
            async move { (one, in_time(one, asking).await) }
        }));
        let head_start = async {
            match one {
                Some(_) => tokio::time::sleep(HEAD_START).await,
                // all have been asked
                None => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            answer = asked.next() => answer,
            () = head_start => continue,
        };
        match answer {
            Some((one, Ok(session))) if hosts.len() > 1 && is_standby(&session) => missed.note_standby(one),
            Some((_, Ok(session))) => return Ok(session),
            // for good: no other is asked for a way around it, and those that were may be the primary
            Some((_, Err(error))) => {
                if let Err(error) = missed.note(error) {
                    refused = refused.or(Some(error));
                    next = [].iter();
                }
            }
            None => return Err(refused.unwrap_or_else(|| missed.into_error(config))),
        }
    }
}

/// Gives up on `connecting` after ten seconds.
pub(crate) async fn in_time<T>(
    config: &PostgresConfig,
    connecting: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::time::timeout(CONNECT_DEADLINE, connecting).await.unwrap_or_else(|_| {
        let message =
            format!("PostgreSQL at {} did not let us in within {CONNECT_DEADLINE:?}", place(config));
        Err(Error::new(Code::PostgresUnreachable, message))
    })
}

fn place(config: &PostgresConfig) -> String {
    format!("{}:{}", config.host, config.port)
}

fn set_options(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    let probe_every = SILENCE_MAX / 3;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(probe_every).with_interval(probe_every))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(SILENCE_MAX))?;
    Ok(())
}

/// Whether the server will speak TLS. Its answer is the one byte that is ever read unencrypted.
async fn ask_for_tls(tcp: &mut TcpStream) -> Result<bool> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    tcp.write_all(&request).await.map_err(|error| hung_up().because(error))?;
    match tcp.read_u8().await.map_err(|error| hung_up().because(error))? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        b'E' => {
            Err(Error::new(Code::ConnectionsExhausted, "PostgreSQL has no process to spare for a connection")
                .hint("see PostgreSQL's log"))
        }
        tag => Err(malformed(format!("{} when asked for TLS", shown(tag)))),
    }
}

impl Stream {
    /// What lies under the packets.
    pub fn security(&self) -> &Security {
        &self.security
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Io::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Io::Local(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Io::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            Io::Local(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Io::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Io::Local(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Io::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Io::Local(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
