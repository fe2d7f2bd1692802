//! A running replication stream.

use std::time::Duration;

use bytes::BufMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::clock::ServerClock;
use crate::error::{Code, Error, Result};
use crate::lsn::Lsn;
use crate::source::connect::Stream;
use crate::source::frame::{Frame, POSTGRES_EPOCH_MICROS};
use crate::source::server_error::{Asked, ServerError};
use crate::source::wire::{Wire, unexpected};

/// How long [`ReplicationStream::close`] waits for the server to let go of the slot.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// The frames of a slot. Take frames with [`next_frame`](Self::next_frame) until there are none, then
/// [`fill`](Self::fill).
pub struct ReplicationStream<S = Stream> {
    wire: Wire<S>,
    clock: ServerClock,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ReplicationStream<S> {
    pub(crate) fn new(wire: Wire<S>) -> Self {
        ReplicationStream { wire, clock: ServerClock::default() }
    }

    /// The same stream, whose status updates are dated by this clock: the server tells their age by its own.
    pub fn dated_by(self, clock: ServerClock) -> Self {
        ReplicationStream { clock, ..self }
    }

    /// A stream over bytes of which the first belongs to a frame: the answer to START_REPLICATION has been read.
    pub fn over(io: S) -> Self {
        ReplicationStream::new(Wire::new(io))
    }

    /// Reads more bytes from the socket into the buffer. Cancel safe. [`Kind::Unavailable`](crate::error::Kind::Unavailable) when the server
    /// has hung up.
    pub async fn fill(&mut self) -> Result<()> {
        self.wire.fill().await
    }

    /// The next frame in the buffer; `None` when no whole one is there. An error ends the stream: it is
    /// what the server said, or [`Kind::Unavailable`](crate::error::Kind::Unavailable) when it ended the stream without a word, as it does
    /// when it shuts down or changes its timeline.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        while let Some(packet) = self.wire.packet()? {
            match packet.tag {
                b'd' => return Frame::parse(packet.body).map(Some),
                b'N' => {
                    let notice = ServerError::parse(packet.body)?;
                    if notice.severity == "WARNING" {
                        return Ok(Some(Frame::Warning(notice)));
                    }
                }
                b'E' => return Err(ServerError::parse(packet.body)?.into_error(Asked::Stream)),
                b'S' => {}
                b'c' | b'C' | b'Z' => {
                    return Err(Error::new(
                        Code::PostgresUnreachable,
                        "PostgreSQL ended the replication stream",
                    ));
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
    /// slot, so that the next reader finds it free. [`Kind::Unavailable`](crate::error::Kind::Unavailable) when that takes longer than five
    /// seconds; the last status has then been sent all the same.
    pub async fn close(mut self, flushed: Lsn) -> Result<()> {
        self.put_status(flushed, flushed, false);
        frontend::copy_done(self.wire.output());
        tokio::time::timeout(CLOSE_DEADLINE, self.take_leave()).await.unwrap_or_else(|_| {
            Err(Error::new(
                Code::PostgresUnreachable,
                "PostgreSQL did not end the replication stream in time",
            ))
        })
    }

    async fn take_leave(&mut self) -> Result<()> {
        self.wire.flush().await?;
        loop {
            let packet = self.wire.next().await?;
            match packet.tag {
                b'Z' => break,
                b'E' => return Err(ServerError::parse(packet.body)?.into_error(Asked::Stream)),
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
        out.put_i64(self.clock.now() - POSTGRES_EPOCH_MICROS);
        out.put_u8(u8::from(reply));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::{Buf, Bytes};
    use tokio::io::DuplexStream;

    use super::*;
    use crate::source::script::{hear, keepalive, packet, ready, report, say, xlog_data};

    fn stream(buffer: usize) -> (ReplicationStream<DuplexStream>, DuplexStream) {
        let (client, server) = tokio::io::duplex(buffer);
        (ReplicationStream::new(Wire::new(client)), server)
    }

    /// All frames until the stream ends, and how it ends.
    async fn read(stream: &mut ReplicationStream<DuplexStream>) -> (Vec<Frame>, Error) {
        let mut frames = Vec::new();
        loop {
            match stream.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => match stream.fill().await {
                    Ok(()) => {}
                    Err(error) => return (frames, error),
                },
                Err(error) => return (frames, error),
            }
        }
    }

    fn some_frames() -> (Vec<u8>, usize) {
        let bytes = [
            keepalive(1, false),
            xlog_data(2, b"B"),
            report(b'N', "NOTICE", "00000", "by the way"),
            packet(b'S', b"TimeZone\0UTC\0"),
            xlog_data(3, &[7; 300]),
            keepalive(4, true),
        ];
        (bytes.concat(), 4)
    }

    #[tokio::test]
    async fn frames_are_the_same_wherever_the_bytes_are_cut() {
        let (bytes, count) = some_frames();
        let (mut whole, mut server) = stream(1 << 16);
        say(&mut server, &bytes).await;
        drop(server);
        let wanted = read(&mut whole).await.0;
        assert_eq!(wanted.len(), count);
        for cut in 0..=bytes.len() {
            let (mut stream, mut server) = stream(1 << 16);
            let (before, after) = bytes.split_at(cut);
            say(&mut server, before).await;
            let mut frames = Vec::new();
            if cut > 0 {
                assert!(stream.fill().await.is_ok());
                while let Ok(Some(frame)) = stream.next_frame() {
                    frames.push(frame);
                }
            }
            say(&mut server, after).await;
            drop(server);
            let (rest, error) = read(&mut stream).await;
            frames.extend(rest);
            assert_eq!((frames, error.code()), (wanted.clone(), Code::PostgresUnreachable), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn a_cancelled_fill_loses_nothing() {
        let (bytes, count) = some_frames();
        let (mut stream, mut server) = stream(3);
        let writing = tokio::spawn(async move { say(&mut server, &bytes).await });
        let (mut frames, mut cancelled) = (Vec::new(), 0);
        while let Ok(next) = stream.next_frame()
            && frames.len() < count
        {
            match next {
                Some(frame) => frames.push(frame),
                None => tokio::select! {
                    biased;
                    () = tokio::task::yield_now() => cancelled += 1,
                    filled = stream.fill() => assert!(filled.is_ok()),
                },
            }
        }
        assert!(frames.len() == count && cancelled > 0 && writing.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_cut_short_is_completed_before_the_next() {
        let (stream, mut server) = stream(10);
        let shown = ServerClock::default();
        shown.showed(7_000_000, tokio::time::Instant::now(), tokio::time::Instant::now());
        let mut stream = stream.dated_by(shown.clone());
        let sent =
            tokio::time::timeout(Duration::from_secs(1), stream.send_status(Lsn(9), Lsn(5), false)).await;
        assert!(sent.is_err(), "nobody reads: only 10 bytes fit");
        let sending = tokio::spawn(async move { stream.send_status(Lsn(3), Lsn(6), true).await });
        for (written, flushed, reply) in [(9, 5, 0), (6, 6, 1)] {
            let (tag, mut body) = hear(&mut server).await.unwrap_or_default();
            assert_eq!((tag, body.len(), body.get_u8()), (b'd', 34, b'r'));
            let (write, flush, apply) = (body.get_u64(), body.get_u64(), body.get_u64());
            assert_eq!((write, flush, apply), (written, flushed, flushed));
            let clock = body.get_i64() + POSTGRES_EPOCH_MICROS;
            assert!((7_000_000..=shown.now()).contains(&clock), "{clock}");
            assert_eq!(body.get_u8(), reply);
        }
        assert!(sending.await.is_ok_and(|sent| sent.is_ok()));
    }

    #[tokio::test]
    async fn a_warning_stands_where_the_server_gave_it() {
        let (mut stream, mut server) = stream(1 << 16);
        let warning = report(b'N', "WARNING", "55000", "skipped loading publication \"p\"");
        say(&mut server, &[xlog_data(2, b"B"), warning, xlog_data(3, b"C")].concat()).await;
        drop(server);
        let (frames, _) = read(&mut stream).await;
        let kinds: Vec<&str> = frames
            .iter()
            .map(|frame| match frame {
                Frame::Warning(warning) => warning.code.as_str(),
                _ => "",
            })
            .collect();
        assert_eq!(kinds, ["", "55000", ""]);
    }

    #[tokio::test]
    async fn the_stream_ends_with_what_the_server_said() {
        for (said, kind) in [
            (packet(b'c', b""), Code::PostgresUnreachable),
            (packet(b'C', b"COPY 0\0"), Code::PostgresUnreachable),
            (report(b'E', "FATAL", "57P01", "terminating connection"), Code::PostgresUnreachable),
            (report(b'E', "ERROR", "42704", "publication \"p\" does not exist"), Code::PublicationChanged),
            (packet(b'd', b"?"), Code::Protocol),
            (packet(b'd', b""), Code::Protocol),
            (packet(b'E', b"no end"), Code::Protocol),
            (b"HTTP/1.1 400 Bad Request".to_vec(), Code::Protocol),
            (Vec::new(), Code::PostgresUnreachable),
        ] {
            let (mut stream, mut server) = stream(1 << 16);
            let (bytes, count) = some_frames();
            say(&mut server, &[bytes, said.clone(), xlog_data(9, b"never read")].concat()).await;
            drop(server);
            let (frames, error) = read(&mut stream).await;
            let extra = usize::from(said.is_empty());
            assert_eq!(
                (frames.len(), error.code()),
                (count + extra, kind),
                "{:?}",
                String::from_utf8_lossy(&said)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_orderly() {
        let (stream, mut server) = stream(1 << 16);
        let closing = tokio::spawn(stream.close(Lsn(77)));
        let (tag, mut body) = hear(&mut server).await.unwrap_or_default();
        body.advance(9);
        assert_eq!((tag, body.get_u64()), (b'd', 77), "a last status");
        assert_eq!(hear(&mut server).await, Some((b'c', Bytes::new())));
        let rest =
            [xlog_data(1, &[0; 9000]), keepalive(2, true), packet(b'c', b""), packet(b'C', b"COPY 0\0")];
        say(&mut server, &rest.concat()).await;
        let second = Duration::from_secs(1);
        assert!(tokio::time::timeout(second, hear(&mut server)).await.is_err(), "the slot is not free yet");
        say(&mut server, &ready()).await;
        assert_eq!(hear(&mut server).await, Some((b'X', Bytes::new())));
        assert_eq!(hear(&mut server).await, None);
        assert!(closing.await.is_ok_and(|closed| closed.is_ok()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_does_not_hold_up_the_end() {
        let (stream, _server) = stream(1 << 16);
        let closed = stream.close(Lsn(77)).await;
        assert_eq!(closed.err().map(|error| error.code()), Some(Code::PostgresUnreachable));
    }
}
