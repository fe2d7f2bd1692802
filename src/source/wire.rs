//! Packets over a byte stream.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Error, Kind, Result};
use crate::source::dial::hung_up;
use crate::source::frame::{Packet, malformed, packet_bytes, shown};

/// What the read buffer has without a huge row.
const BUFFER_BYTES: usize = 256 * 1024;

/// The least room that a read is given.
const READ_BYTES_MIN: usize = 64 * 1024;

/// A byte stream with the packets that have been read from it and those still to be written.
pub(crate) struct Wire<S> {
    io: S,
    input: BytesMut,
    output: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(io: S) -> Self {
        Wire { io, input: BytesMut::with_capacity(BUFFER_BYTES), output: BytesMut::new() }
    }

    /// Reads what there is into the buffer, waiting until there is something. Cancel safe.
    pub async fn fill(&mut self) -> Result<()> {
        self.make_room()?;
        match self.io.read_buf(&mut self.input).await {
            Ok(0) => Err(hung_up()),
            Ok(_) => Ok(()),
            Err(error) => Err(hung_up().because(error)),
        }
    }

    /// The next packet if all of it is in the buffer.
    pub fn packet(&mut self) -> Result<Option<Packet>> {
        Packet::split(&mut self.input)
    }

    /// Waits for the next packet. Cancel safe.
    pub async fn next(&mut self) -> Result<Packet> {
        loop {
            if let Some(packet) = self.packet()? {
                return Ok(packet);
            }
            self.fill().await?;
        }
    }

    /// Where packets to be sent are put.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Sends what was put. Cancel safe: a later call goes on with what was not yet taken.
    pub async fn flush(&mut self) -> Result<()> {
        while self.output.has_remaining() {
            match self.io.write_buf(&mut self.output).await {
                Ok(0) => return Err(hung_up()),
                Ok(_) => {}
                Err(error) => return Err(hung_up().because(error)),
            }
        }
        self.io.flush().await.map_err(|error| hung_up().because(error))
    }

    /// Sends what was put and ends our direction.
    pub async fn shutdown(&mut self) -> Result<()> {
        self.flush().await?;
        self.io.shutdown().await.map_err(|error| hung_up().because(error))
    }

    /// Gives the next read room, in step with what really came: the length that a packet claims is
    /// believed only as its bytes arrive. What a huge packet needed is given back after it.
    fn make_room(&mut self) -> Result<()> {
        let missing = packet_bytes(&self.input)?.map_or(0, |length| length.saturating_sub(self.input.len()));
        self.input.reserve(missing.clamp(READ_BYTES_MIN, self.input.len().max(READ_BYTES_MIN)));
        if self.input.len() < READ_BYTES_MIN && self.input.capacity() > 2 * BUFFER_BYTES {
            let mut small = BytesMut::with_capacity(BUFFER_BYTES);
            small.extend_from_slice(&self.input);
            self.input = small;
        }
        Ok(())
    }
}

/// The error of a packet that has no business where it came.
pub(crate) fn unexpected(packet: &Packet, place: &str) -> Error {
    malformed(format!("a message {} {place}", shown(packet.tag)))
}

/// The error of a text that cannot be sent.
pub(crate) fn nul(error: std::io::Error) -> Error {
    Error::new(Kind::Config, "a setting of `postgres` has a NUL character in it")
        .hint("take the NUL character out of the user, password, database, slot or publication name")
        .because(error)
}
