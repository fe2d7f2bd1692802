//! A server's side of the protocol as bytes, for tests that need no server.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// A whole packet.
pub fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![tag];
    packet.put_u32(4 + body.len() as u32);
    packet.extend_from_slice(body);
    packet
}

/// A CopyData packet with XLogData; all of its LSNs are `lsn`.
pub fn xlog_data(lsn: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.put_u64(lsn);
    body.put_u64(lsn);
    body.put_i64(0);
    body.extend_from_slice(payload);
    packet(b'd', &body)
}

/// A CopyData packet with a keepalive.
pub fn keepalive(wal_end: u64, reply_requested: bool) -> Vec<u8> {
    let mut body = vec![b'k'];
    body.put_u64(wal_end);
    body.put_i64(0);
    body.put_u8(u8::from(reply_requested));
    packet(b'd', &body)
}

/// An ErrorResponse (`E`) or NoticeResponse (`N`).
pub fn report(tag: u8, severity: &str, code: &str, message: &str) -> Vec<u8> {
    let fields = [('S', "severity in some language"), ('V', severity), ('C', code), ('M', message)];
    let body: String = fields.iter().map(|(field, text)| format!("{field}{text}\0")).collect();
    packet(tag, format!("{body}\0").as_bytes())
}

/// An Authentication packet.
pub fn authentication(request: i32, rest: &[u8]) -> Vec<u8> {
    packet(b'R', &[&request.to_be_bytes(), rest].concat())
}

/// A ParameterStatus.
pub fn parameter(name: &str, value: &str) -> Vec<u8> {
    packet(b'S', format!("{name}\0{value}\0").as_bytes())
}

/// A DataRow of texts.
pub fn data_row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_u16(values.len() as u16);
    for value in values {
        body.put_i32(value.map_or(-1, |text| text.len() as i32));
        body.extend_from_slice(value.unwrap_or_default().as_bytes());
    }
    packet(b'D', &body)
}

/// ReadyForQuery.
pub fn ready() -> Vec<u8> {
    packet(b'Z', b"I")
}

/// What a server of this version sends to somebody whom it trusts.
pub fn welcome(version: &str) -> Vec<u8> {
    [authentication(0, b""), parameter("TimeZone", "UTC"), parameter("server_version", version), ready()]
        .concat()
}

/// Reads the client's startup message, which has no tag, and gives its parameters.
pub async fn hear_startup(server: &mut DuplexStream) -> Vec<String> {
    let length = server.read_u32().await.unwrap_or_default() as usize;
    let mut body = vec![0; length.saturating_sub(4)];
    let _ = server.read_exact(&mut body).await;
    let text = String::from_utf8_lossy(body.get(4..).unwrap_or_default()).into_owned();
    text.split('\0').map(str::to_owned).collect()
}

/// Reads one packet of the client; `None` at the end.
pub async fn hear(server: &mut DuplexStream) -> Option<(u8, Bytes)> {
    let tag = server.read_u8().await.ok()?;
    let length = server.read_u32().await.ok()? as usize;
    let mut body = BytesMut::zeroed(length.checked_sub(4)?);
    server.read_exact(&mut body).await.ok()?;
    Some((tag, body.freeze()))
}

/// Sends bytes; a client that has gone does not mind.
pub async fn say(server: &mut DuplexStream, bytes: &[u8]) {
    let _ = server.write_all(bytes).await;
}
