//! A running replication stream.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Error, Kind, Result};
use crate::lsn::Lsn;
use crate::source::dial::Stream;
use crate::source::frame::{Frame, POSTGRES_EPOCH_MICROS};
use crate::source::server_error::ServerError;
use crate::source::wire::{Wire, unexpected};

/// How long [`ReplicationStream::close`] waits for the server to let go of the slot.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// The frames of a slot. Take frames with [`next_frame`](Self::next_frame) until there are none, then
/// [`fill`](Self::fill).
pub struct ReplicationStream<S = Stream> {
    wire: Wire<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ReplicationStream<S> {
    pub(crate) fn new(wire: Wire<S>) -> Self {
        ReplicationStream { wire }
    }

    /// Reads more bytes from the socket into the buffer. Cancel safe. [`Kind::Unavailable`] when the server
    /// has hung up.
    pub async fn fill(&mut self) -> Result<()> {
        self.wire.fill().await
    }

    /// The next frame in the buffer; `None` when no whole one is there. An error ends the stream: it is
    /// what the server said, or [`Kind::Unavailable`] when it ended the stream without a word, as it does
    /// when it shuts down or changes its timeline.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        while let Some(packet) = self.wire.packet()? {
            match packet.tag {
                b'd' => return Frame::parse(packet.body).map(Some),
                b'N' => heed_notice(packet.body)?,
                b'E' => return Err(ServerError::parse(packet.body)?.into_error()),
                b'S' => {}
                b'c' | b'C' | b'Z' => {
                    return Err(Error::new(Kind::Unavailable, "PostgreSQL ended the replication stream"));
                }
                _ => return Err(unexpected(&packet, "in the replication stream")),
            }
        }
        Ok(None)
    }

    /// Tells the server how far we are: `written` is for its statistics, everything up to `flushed` it
    /// need never send again. With `reply` it answers with a keepalive at once. Cancel safe in that a
    /// status half sent is completed before the next.
    pub async fn send_status(&mut self, written: Lsn, flushed: Lsn, reply: bool) -> Result<()> {
        self.put_status(written, flushed, reply);
        self.wire.flush().await
    }

    /// Ends the stream in order: a last status, CopyDone, and reading on until the server has let go of the
    /// slot, so that the next reader finds it free. [`Kind::Unavailable`] when that takes longer than five
    /// seconds; the last status has then been sent all the same.
    pub async fn close(mut self, flushed: Lsn) -> Result<()> {
        self.put_status(flushed, flushed, false);
        frontend::copy_done(self.wire.output());
        tokio::time::timeout(CLOSE_DEADLINE, self.take_leave()).await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Unavailable, "PostgreSQL did not end the replication stream in time"))
        })
    }

    async fn take_leave(&mut self) -> Result<()> {
        self.wire.flush().await?;
        loop {
            let packet = self.wire.next().await?;
            match packet.tag {
                b'Z' => break,
                b'E' => return Err(ServerError::parse(packet.body)?.into_error()),
                _ => {}
            }
        }
        frontend::terminate(self.wire.output());
        self.wire.shutdown().await
    }

    fn put_status(&mut self, written: Lsn, flushed: Lsn, reply: bool) {
        let out = self.wire.output();
        out.put_u8(b'd');
        out.put_u32(4 + 34);
        out.put_u8(b'r');
        out.put_u64(written.max(flushed).0);
        out.put_u64(flushed.0);
        out.put_u64(flushed.0);
        out.put_i64(now_micros() - POSTGRES_EPOCH_MICROS);
        out.put_u8(u8::from(reply));
    }
}

/// A warning from the walsender means that it goes on without something that we asked for.
fn heed_notice(body: Bytes) -> Result<()> {
    let notice = ServerError::parse(body)?;
    if notice.severity == "WARNING" { Err(notice.into_error()) } else { Ok(()) }
}

/// Our clock, microseconds since 1970.
fn now_micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}
