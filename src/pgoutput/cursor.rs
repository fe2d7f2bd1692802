//! Reads a message's bytes front to back.

use super::{DecodeError, Found};
use crate::lsn::Lsn;

/// What is left of one message. Each read names its field, so that an error can say where it stood.
pub(super) struct Cursor<'a> {
    message: &'static str,
    offset: usize,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Reads `bytes`, which begin `offset` bytes into a message of this name.
    pub(super) fn new(message: &'static str, offset: usize, bytes: &'a [u8]) -> Self {
        Cursor { message, offset, rest: bytes }
    }

    /// Once the tag is known, errors name the message.
    pub(super) fn rename(&mut self, message: &'static str) {
        self.message = message;
    }

    /// Bytes from the message's tag to the next read.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// All that is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(u8::from_be_bytes)
    }

    #[inline]
    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.array(field).map(i32::from_be_bytes)
    }

    pub(super) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_be_bytes)
    }

    pub(super) fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        self.array(field).map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    /// Bytes with their length before them.
    #[inline]
    pub(super) fn counted(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.u32(field)? as usize;
        self.bytes(length, field)
    }

    /// Text up to a zero byte.
    pub(super) fn text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let Some(length) = self.rest.iter().position(|&byte| byte == 0) else {
            return Err(self.error(field, Found::Unended));
        };
        let text = self.rest.get(..length).map(std::str::from_utf8);
        let Some(Ok(text)) = text else {
            return Err(self.error(field, Found::NotUtf8(length)));
        };
        self.bytes(length + 1, field)?;
        Ok(text)
    }

    /// Nothing may be left.
    #[inline]
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(self.error("end", Found::LeftOver(bytes))),
        }
    }

    /// The next `length` bytes.
    #[inline]
    pub(super) fn bytes(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
            return Err(self.short(length, field));
        };
        self.offset += length;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let Some((bytes, rest)) = self.rest.split_first_chunk() else {
            return Err(self.short(N, field));
        };
        self.offset += N;
        self.rest = rest;
        Ok(*bytes)
    }

    #[cold]
    fn short(&self, wanted: usize, field: &'static str) -> DecodeError {
        self.error(field, Found::Short { wanted, left: self.rest.len() })
    }

    /// The error that something else than `field` stands at the next read.
    #[cold]
    pub(super) fn error(&self, field: &'static str, found: Found) -> DecodeError {
        DecodeError::Message { message: self.message, field, offset: self.offset, found }
    }

    /// The error that the byte just read is none that `field` may have.
    #[cold]
    pub(super) fn wrong_byte(&self, field: &'static str, byte: u8) -> DecodeError {
        let offset = self.offset.saturating_sub(1);
        DecodeError::Message { message: self.message, field, offset, found: Found::Byte(byte) }
    }
}
