//! Packets over a byte stream.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Code, Error, Result};
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
    Error::new(Code::Configuration, "a setting of `postgres` has a NUL character in it")
        .hint("take the NUL character out of the user, password, database, slot or publication name")
        .because(error)
}

/// The error of a connection that ended.
pub(crate) fn hung_up() -> Error {
    Error::new(Code::PostgresUnreachable, "the connection to PostgreSQL broke")
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::source::script;

    #[tokio::test]
    async fn a_huge_packet_is_read_and_its_memory_given_back() -> Result<()> {
        const HUGE: usize = 20 << 20;
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(client);
        let sending = tokio::spawn(async move {
            let mut sent = true;
            for body in [vec![7; HUGE], vec![8; 100_000], vec![9; 10]] {
                sent &= server.write_all(&script::packet(b'd', &body)).await.is_ok();
            }
            (sent, server)
        });
        for (length, byte) in [(HUGE, 7), (100_000, 8), (10, 9)] {
            let packet = wire.next().await?;
            assert_eq!(packet.body.len(), length);
            assert!(packet.body.iter().all(|&one| one == byte));
        }
        wire.make_room()?;
        assert!(wire.input.capacity() <= 2 * BUFFER_BYTES, "{} bytes", wire.input.capacity());
        assert!(sending.await.is_ok_and(|(sent, _)| sent));
        Ok(())
    }

    #[tokio::test]
    async fn a_length_is_believed_only_as_its_bytes_come() -> Result<()> {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(client);
        script::say(&mut server, b"d\x3f\xff\xff\xf0").await;
        for come in [5, 1000, 200_000, 700_000] {
            script::say(&mut server, &vec![7; come - wire.input.len().max(5)]).await;
            while wire.input.len() < come {
                wire.fill().await?;
            }
            assert_eq!(wire.packet()?, None);
            wire.make_room()?;
            assert!(wire.input.capacity() <= 2 * BUFFER_BYTES + 4 * come, "{}", wire.input.capacity());
        }
        Ok(())
    }

    #[tokio::test]
    async fn the_read_buffer_is_used_again() -> Result<()> {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(client);
        let there = wire.input.as_ptr_range().start as usize;
        for _ in 0..100 {
            script::say(&mut server, &script::packet(b'd', &[7; 50_000])).await;
            let packet = wire.next().await?;
            let place = packet.body.as_ptr() as usize;
            assert!((there..there + BUFFER_BYTES).contains(&place), "another buffer was allocated");
        }
        Ok(())
    }
}
