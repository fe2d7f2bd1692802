//! What a broker's listener speaks, seen by hand: librdkafka says of a listener that speaks another protocol than it was told
//! only that the connection was closed.
//!
//! Nothing secret is sent, and nothing that is received is believed: the answer is for an error message.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{ClientConnection, SignatureScheme, StreamOwned};

use crate::hop::host_of;
use crate::source::tls;

const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The longest answer that is read: a list of mechanisms, or of requests.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// What a listener speaks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// Kafka's protocol, without TLS.
    InClear(Login),
    /// Kafka's protocol, over TLS.
    OverTls(Login),
    /// TLS with those alone that show a certificate.
    TlsWithCertificates,
}

/// What it wants of a client next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// Nothing.
    None,
    /// A login by one of these mechanisms of SASL.
    Sasl(Vec<String>),
}

/// Looks at `host:port`. An error of the network when nothing can be said.
pub(super) fn look(address: &str) -> io::Result<Speaks> {
    if let Ok(login) = ask(&mut connect(address)?) {
        return Ok(Speaks::InClear(login));
    }
    let asked = Arc::new(AtomicBool::new(false));
    let answer = over_tls(address, &asked).and_then(|mut stream| ask(&mut stream));
    match answer {
        Ok(login) => Ok(Speaks::OverTls(login)),
        Err(_) if asked.load(Ordering::Relaxed) => Ok(Speaks::TlsWithCertificates),
        Err(error) => Err(error),
    }
}

/// Opens `host:port`, over TLS whoever answers.
pub(super) fn open(address: &str, tls: bool) -> io::Result<Box<dyn Stream>> {
    Ok(match tls {
        true => Box::new(over_tls(address, &Arc::default())?),
        false => Box::new(connect(address)?),
    })
}

/// What a listener is asked through.
pub(super) trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ANSWER_WITHIN) {
            Ok(stream) => {
                stream.set_read_timeout(Some(ANSWER_WITHIN))?;
                stream.set_write_timeout(Some(ANSWER_WITHIN))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn over_tls(address: &str, asked: &Arc<AtomicBool>) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let host = host_of(address).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let config = tls::with_anybody().map_err(io::Error::other)?;
    let config = config.with_client_cert_resolver(Arc::new(Asked(Arc::clone(asked))));
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, connect(address)?))
}

/// Kafka's SaslHandshake, version 1, with a mechanism that there is not: a listener without SASL answers that it wants none, and
/// one with SASL which mechanisms it has.
fn ask(stream: &mut (impl Read + Write)) -> io::Result<Login> {
    const SASL_HANDSHAKE: i16 = 17;
    const VERSION: i16 = 1;
    const ILLEGAL_SASL_STATE: i16 = 34;
    let answer = exchange(stream, SASL_HANDSHAKE, VERSION, b"\0\x04NONE")?;
    let mut answer = Answer(&answer);
    let code = answer.take().map(i16::from_be_bytes).ok_or_else(not_kafka)?;
    if code == ILLEGAL_SASL_STATE {
        return Ok(Login::None);
    }
    let count = answer.take().map_or(0, i32::from_be_bytes);
    Ok(Login::Sasl((0..count).map_while(|_| answer.text()).collect()))
}

/// Sends a request, of which `rest` follows the client's name, and gives the answer to it.
pub(super) fn exchange(
    stream: &mut (impl Read + Write),
    request_key: i16,
    version: i16,
    rest: &[u8],
) -> io::Result<Vec<u8>> {
    const ID: i32 = 0x77_61_6c_63;
    const CLIENT: &[u8] = b"\0\x07walcast";
    let mut request = Vec::new();
    request.extend(request_key.to_be_bytes());
    request.extend(version.to_be_bytes());
    request.extend(ID.to_be_bytes());
    request.extend(CLIENT);
    request.extend(rest);
    let mut framed = (request.len() as i32).to_be_bytes().to_vec();
    framed.extend(request);
    stream.write_all(&framed)?;
    stream.flush()?;

    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > ANSWER_BYTES_MAX {
        return Err(not_kafka());
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    match answer.split_first_chunk() {
        Some((id, rest)) if i32::from_be_bytes(*id) == ID => Ok(rest.to_vec()),
        _ => Err(not_kafka()),
    }
}

pub(super) fn not_kafka() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no answer in Kafka's protocol")
}

/// What is left of an answer.
pub(super) struct Answer<'a>(pub(super) &'a [u8]);

impl<'a> Answer<'a> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(i16::from_be_bytes(self.take()?)).ok()?;
        Some(String::from_utf8_lossy(self.bytes(length)?).into_owned())
    }

    pub(super) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn skip(&mut self, length: usize) -> Option<()> {
        self.bytes(length).map(drop)
    }

    /// An unsigned number of 32 bits, seven bits a byte, the lowest first.
    pub(super) fn varint(&mut self) -> Option<u32> {
        let mut number = 0;
        for shift in (0..32).step_by(7) {
            let [byte] = self.take()?;
            number |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}

/// Notes that it is asked for a certificate, and has none.
#[derive(Debug)]
struct Asked(Arc<AtomicBool>);

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A broker that says this, whatever it is asked.
    struct Says(io::Cursor<Vec<u8>>);

    impl Read for Says {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Says {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn answered(body: &[u8]) -> io::Result<Login> {
        let framed = [&(body.len() as i32).to_be_bytes(), body].concat();
        ask(&mut Says(io::Cursor::new(framed)))
    }

    #[test]
    fn a_listener_with_sasl_says_which_mechanisms_it_has() {
        let answer = b"walc\x00\x21\x00\x00\x00\x02\x00\x05PLAIN\x00\x0dSCRAM-SHA-512";
        let wanted = Login::Sasl(vec!["PLAIN".into(), "SCRAM-SHA-512".into()]);
        assert_eq!(answered(answer).unwrap(), wanted);
        assert_eq!(answered(b"walc\x00\x22\x00\x00\x00\x00").unwrap(), Login::None);
    }

    proptest! {
        #[test]
        fn whatever_is_there_is_no_reason_to_break(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ask(&mut Says(io::Cursor::new(bytes.clone())));
            let _ = answered(&bytes);
            let _ = answered(&[b"walc".as_slice(), &bytes].concat());
        }
    }
}
