//! The way to the server.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::error::{Error, Kind, Result};
use crate::source::PostgresConfig;
use crate::source::auth::Security;

/// How long it may take from the first packet to being let in.
pub(crate) const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A connection to PostgreSQL, before any message of its protocol proper.
pub struct Stream {
    tcp: TcpStream,
    security: Security,
}

/// Connects.
pub(crate) async fn dial(config: &PostgresConfig) -> Result<Stream> {
    let tcp = TcpStream::connect((config.host.as_str(), config.port)).await.map_err(|error| {
        Error::new(Kind::Unavailable, format!("cannot reach PostgreSQL at {}:{}", config.host, config.port))
            .because(error)
    })?;
    tcp.set_nodelay(true).map_err(|error| Error::new(Kind::Unavailable, "socket").because(error))?;
    Ok(Stream { tcp, security: Security::Plain })
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
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
