//! Bytes to packets to frames, without IO.
//!
//! A *packet* is one message of PostgreSQL's protocol: a tag byte, a length, a body. A *frame* is what
//! a replication stream carries inside its CopyData packets. Bodies are slices of the read buffer: no
//! byte is copied and nothing is allocated for a frame. Whatever the bytes are, the answer is a packet,
//! "more bytes are needed", or an error of [`Kind::Protocol`](crate::error::Kind::Protocol).

use bytes::{Buf, Bytes, BytesMut};

use crate::error::{Code, Error, Result};
use crate::lsn::Lsn;
use crate::source::server_error::ServerError;

/// PostgreSQL's own limit of one message: what `MaxAllocSize` leaves, just below 1 GiB.
pub const PACKET_BYTES_MAX: usize = 0x3fff_ffff;

/// Tag and length.
const HEADER_BYTES: usize = 5;

/// Microseconds from 1970, our zero, to 2000, PostgreSQL's.
pub(crate) const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// What the server sends inside a replication stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// One message of the output plugin.
    XLogData {
        /// Where the change's own WAL record begins. Neither unique nor monotonic: no name for anything.
        wal_start: Lsn,
        /// The end of the WAL on the server at that time.
        wal_end: Lsn,
        /// The server's clock, microseconds since 1970.
        sent_at: i64,
        /// The message, a slice of the read buffer.
        payload: Bytes,
    },
    /// A sign of life. All changes of transactions that ended before `wal_end` have been sent.
    Keepalive {
        /// How far the server has read the WAL.
        wal_end: Lsn,
        /// The server's clock, microseconds since 1970.
        sent_at: i64,
        /// Whether the server wants a status now (it is about to time out, or shuts down).
        reply_requested: bool,
    },
    /// A warning of the server, between two of the others. Unless it is known to be harmless, what follows may lack
    /// something that we asked for.
    Warning(ServerError),
}

impl Frame {
    /// Reads the body of a CopyData packet.
    pub fn parse(mut body: Bytes) -> Result<Frame> {
        match take_u8(&mut body)? {
            b'w' => Ok(Frame::XLogData {
                wal_start: take_lsn(&mut body)?,
                wal_end: take_lsn(&mut body)?,
                sent_at: take_time(&mut body)?,
                payload: body,
            }),
            b'k' => {
                let wal_end = take_lsn(&mut body)?;
                let sent_at = take_time(&mut body)?;
                let reply_requested = take_u8(&mut body)? != 0;
                Ok(Frame::Keepalive { wal_end, sent_at, reply_requested })
            }
            tag => Err(malformed(format!("a replication frame of the unknown kind {}", shown(tag)))),
        }
    }
}

/// One message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub tag: u8,
    pub body: Bytes,
}

impl Packet {
    /// Splits the first packet off, when all of it is there.
    pub fn split(buffer: &mut BytesMut) -> Result<Option<Packet>> {
        let Some(length) = packet_bytes(buffer)? else { return Ok(None) };
        if buffer.len() < length {
            return Ok(None);
        }
        let mut body = buffer.split_to(length).freeze();
        let tag = take_u8(&mut body)?;
        body.advance(HEADER_BYTES - 1);
        Ok(Some(Packet { tag, body }))
    }
}

/// How long the first packet of the buffer is, its header included; `None` before the header is there.
pub(crate) fn packet_bytes(buffer: &[u8]) -> Result<Option<usize>> {
    let Some(&[tag, a, b, c, d]) = buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(HEADER_BYTES - 1..=PACKET_BYTES_MAX).contains(&length) {
        return Err(malformed(format!("a message {} of {length} bytes", shown(tag))));
    }
    Ok(Some(length + 1))
}

/// Takes a byte off the front.
pub(crate) fn take_u8(body: &mut Bytes) -> Result<u8> {
    body.try_get_u8().map_err(|_| cut_short())
}

/// Takes a big-endian 16-bit count off the front.
pub(crate) fn take_u16(body: &mut Bytes) -> Result<u16> {
    body.try_get_u16().map_err(|_| cut_short())
}

/// Takes a big-endian 32-bit number off the front.
pub(crate) fn take_i32(body: &mut Bytes) -> Result<i32> {
    body.try_get_i32().map_err(|_| cut_short())
}

/// Takes `count` bytes off the front.
pub(crate) fn take_bytes(body: &mut Bytes, count: usize) -> Result<Bytes> {
    if body.len() < count {
        return Err(cut_short());
    }
    Ok(body.split_to(count))
}

/// Takes a zero-terminated text off the front; bytes that are no UTF-8 are replaced.
pub(crate) fn take_text(body: &mut Bytes) -> Result<String> {
    let end = body.iter().position(|&byte| byte == 0).ok_or_else(cut_short)?;
    let text = String::from_utf8_lossy(&body.split_to(end)).into_owned();
    body.advance(1);
    Ok(text)
}

fn take_lsn(body: &mut Bytes) -> Result<Lsn> {
    body.try_get_u64().map(Lsn).map_err(|_| cut_short())
}

fn take_time(body: &mut Bytes) -> Result<i64> {
    body.try_get_i64().map(|micros| micros.saturating_add(POSTGRES_EPOCH_MICROS)).map_err(|_| cut_short())
}

/// The error of bytes that are not PostgreSQL's protocol.
pub(crate) fn malformed(what: impl std::fmt::Display) -> Error {
    Error::new(Code::Protocol, format!("PostgreSQL sent {what}"))
        .hint("see that `postgres.port` is PostgreSQL's own port; if it is, please report this")
}

fn cut_short() -> Error {
    malformed("a message that is shorter than it says")
}

/// A tag as it may be printed: the letter, or the number of what is none.
pub(crate) fn shown(tag: u8) -> String {
    if tag.is_ascii_graphic() { format!("'{}'", char::from(tag)) } else { format!("0x{tag:02x}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::script;

    /// Takes all whole packets off.
    fn drain(buffer: &mut BytesMut, into: &mut Vec<Packet>) -> Result<()> {
        while let Some(packet) = Packet::split(buffer)? {
            into.push(packet);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn packets_are_the_same_however_the_bytes_arrive(
            sent in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..20),
            pieces in prop::collection::vec(1_usize..30, 1..20),
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(|(tag, body)| script::packet(*tag, body)).collect();
            let (mut buffer, mut received, mut rest) = (BytesMut::new(), Vec::new(), bytes.as_slice());
            for length in pieces.iter().cycle() {
                let (piece, later) = rest.split_at(rest.len().min(*length));
                buffer.extend_from_slice(piece);
                drain(&mut buffer, &mut received)?;
                rest = later;
                if rest.is_empty() { break }
            }
            let received: Vec<_> = received.into_iter().map(|packet| (packet.tag, packet.body.to_vec())).collect();
            prop_assert_eq!(received, sent);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut packets = Vec::new();
            let _ = drain(&mut BytesMut::from(bytes.as_slice()), &mut packets);
            let _ = Frame::parse(Bytes::from(bytes));
            for packet in packets {
                let _ = Frame::parse(packet.body);
            }
        }

        #[test]
        fn a_frame_reads_back(lsn: u64, payload in prop::collection::vec(any::<u8>(), 0..50), asks: bool) {
            let mut buffer = BytesMut::from([script::xlog_data(lsn, &payload), script::keepalive(lsn, asks)].concat().as_slice());
            let mut packets = Vec::new();
            drain(&mut buffer, &mut packets)?;
            let frames = packets.into_iter().map(|packet| Frame::parse(packet.body)).collect::<Result<Vec<_>>>()?;
            let (wal_end, sent_at) = (Lsn(lsn), POSTGRES_EPOCH_MICROS);
            prop_assert_eq!(frames, [
                Frame::XLogData { wal_start: wal_end, wal_end, sent_at, payload: payload.into() },
                Frame::Keepalive { wal_end, sent_at, reply_requested: asks },
            ]);
        }
    }

    #[test]
    fn a_frame_cut_short_is_refused() {
        for (whole, least) in [(script::xlog_data(7, b""), 25), (script::keepalive(7, true), 18)] {
            let body = Bytes::from(whole).slice(HEADER_BYTES..);
            assert_eq!(body.len(), least);
            for length in 0..least {
                let error = Frame::parse(body.slice(..length)).err();
                assert_eq!(error.map(|error| error.code()), Some(Code::Protocol), "{length} bytes");
            }
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_its_bytes_come() {
        for length in [0, 3, PACKET_BYTES_MAX as u32 + 1, u32::MAX] {
            let mut bytes = BytesMut::from(&b"d"[..]);
            bytes.extend_from_slice(&length.to_be_bytes());
            assert_eq!(Packet::split(&mut bytes).err().map(|error| error.code()), Some(Code::Protocol));
        }
    }

    #[test]
    fn payloads_are_slices_of_the_read_buffer() {
        let mut buffer = BytesMut::from(script::xlog_data(7, b"payload").as_slice());
        let there = buffer.as_ptr_range();
        let body = Packet::split(&mut buffer).ok().flatten().map(|packet| packet.body).unwrap_or_default();
        assert!(there.contains(&body.as_ptr()));
    }
}
