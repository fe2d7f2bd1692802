//! One request and its answer. What an answer means is decided here, by its status alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout};

use super::config::{Compression, HttpConfig, origin};
use super::encode::Request;
use super::sign::Signer;
use crate::error::{Code, Error, Result};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// An answer's body says nothing that counts; read to its end, its connection can be used again.
const BODY_BYTES_MAX: usize = 64 << 10;
const BODY_WITHIN: Duration = Duration::from_secs(1);
const IDLE_FOR: Duration = Duration::from_secs(30);
const AGENT: &str = concat!("walcast/", env!("CARGO_PKG_VERSION"));

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has the events.
    Accepted,
    /// It refuses what was sent, and sending it again changes nothing.
    Refused(StatusCode),
    /// It cannot now; perhaps it said for how long.
    Later(StatusCode, Option<Duration>),
    /// It refuses whatever walcast sends, as it is set up now.
    Shut(StatusCode),
}

impl Answer {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Answer::Accepted => "taken",
            Answer::Refused(_) => "refused",
            Answer::Later(..) => "later",
            Answer::Shut(_) => "shut",
        }
    }

    /// Two axes: what is the target's fault never is a row's.
    fn of(status: StatusCode, headers: &HeaderMap) -> Answer {
        match status.as_u16() {
            200..=299 => Answer::Accepted,
            408 | 425 | 429 | 500.. => Answer::Later(status, retry_after(headers)),
            // who asks, where, and in what form: the same for every row
            401..=407 | 410 | 411 | 415 | 417 | 421 | 426 | 431 | 451 => Answer::Shut(status),
            400..=499 => Answer::Refused(status),
            _ => Answer::Shut(status),
        }
    }
}

/// Connections to the target.
pub struct Client {
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    address: String,
    headers: HeaderMap,
    signer: Signer,
    answer_within: Duration,
}

impl Client {
    /// Connects at the first request.
    pub fn new(config: &HttpConfig) -> Result<Client> {
        let mut headers = HeaderMap::new();
        let content_type = HeaderValue::from_str(config.content_type()).ok();
        headers.extend(content_type.map(|value| (CONTENT_TYPE, value)));
        let encoding = match config.compression {
            Compression::None => None,
            Compression::Gzip => Some("gzip"),
            Compression::Zstd => Some("zstd"),
        };
        headers.extend(encoding.map(|name| (CONTENT_ENCODING, HeaderValue::from_static(name))));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        Ok(Client {
            pool: pool(config)?,
            url: config.target()?,
            address: config.address(),
            headers,
            signer: Signer::new(&config.signing_secrets)?,
            answer_within: config.answer_within(),
        })
    }

    /// How messages name the target.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends it once.
    pub async fn send(&self, request: &Request) -> Result<Answer> {
        let began = Instant::now();
        let timestamp = Timestamp::now().as_second().to_string();
        let mut headers = self.headers.clone();
        headers.extend(request.headers.iter().cloned());
        let signature = self.signer.sign(&request.id, &timestamp, &request.payload);
        let ours = [
            ("webhook-id", Some(&request.id)),
            ("webhook-timestamp", Some(&timestamp)),
            ("webhook-signature", signature.as_ref()),
        ];
        for (name, value) in ours {
            let value = value.and_then(|value| HeaderValue::from_str(value).ok());
            headers.extend(value.map(|value| (hyper::header::HeaderName::from_static(name), value)));
        }
        let mut posted = hyper::Request::new(Full::new(request.body.clone()));
        *posted.method_mut() = Method::POST;
        *posted.uri_mut() = self.url.clone();
        *posted.headers_mut() = headers;
        let response = match timeout(self.answer_within, self.pool.request(posted)).await {
            Ok(answered) => answered.map_err(|error| unreachable(&self.address, error))?,
            Err(_) => return Err(self.silent(began.elapsed())),
        };
        let answer = Answer::of(response.status(), response.headers());
        read_out(response).await;
        Ok(answer)
    }

    fn silent(&self, waited: Duration) -> Error {
        let message = format!("{} has not answered within {waited:.0?}", self.address);
        Error::new(Code::HttpUnreachable, message)
            .hint("see why the target takes so long, or raise http.timeout_ms (HTTP_TIMEOUT_MS)")
    }
}

/// A pool of connections with the TLS that the settings ask for.
pub fn pool<B>(config: &HttpConfig) -> Result<Pool<HttpsConnector<HttpConnector>, B>>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_WITHIN.min(config.answer_within())));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls(config)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Pool::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_FOR)
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(config.concurrency)
        .build(connector))
}

fn tls(config: &HttpConfig) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let urls = [Some(config.target()?), config.verify_target()?];
    let encrypted = urls.iter().flatten().any(|url| url.scheme_str() == Some("https"));
    if !config.tls_ca_file.is_empty() {
        let trusted = certificates(&config.tls_ca_file, "tls_ca_file")?;
        roots.add_parsable_certificates(trusted);
    } else if encrypted {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Code::Protocol, "no TLS version is left").because(error))?
        .with_root_certificates(roots);
    if config.tls_client_cert_file.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let chain = certificates(&config.tls_client_cert_file, "tls_client_cert_file")?;
    let key = PrivateKeyDer::from_pem_file(Path::new(&config.tls_client_key_file))
        .map_err(|error| unreadable(&config.tls_client_key_file, "tls_client_key_file").because(error))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| unreadable(&config.tls_client_cert_file, "tls_client_cert_file").because(error))
}

fn certificates(file: &str, setting: &str) -> Result<Vec<CertificateDer<'static>>> {
    let read: Vec<_> = CertificateDer::pem_file_iter(Path::new(file))
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(file, setting).because(error))?;
    if read.is_empty() { Err(unreadable(file, setting)) } else { Ok(read) }
}

fn unreadable(file: &str, setting: &str) -> Error {
    let message = format!("http.{setting}: {file} cannot be read, or is not what it should be");
    Error::new(Code::ConfigurationUnreadable, message)
        .hint(format!("give a PEM file that walcast may read (HTTP_{})", setting.to_uppercase()))
}

/// Why there was no answer.
pub fn unreachable(address: &str, error: hyper_util::client::legacy::Error) -> Error {
    let hint = match tls_trouble(&error) {
        true => {
            "set http.tls_ca_file to the PEM file of the authority that signed the target's certificate, and http.url to a name that it has; where the target asks for a certificate, set http.tls_client_cert_file"
        }
        false => "see that the target runs and can be reached from here, or correct http.url",
    };
    Error::new(Code::HttpUnreachable, format!("{address} cannot be reached")).hint(hint).because(error)
}

fn tls_trouble(error: &(dyn std::error::Error + 'static)) -> bool {
    // an io::Error gives what it wraps by get_ref alone
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|inner| tls_trouble(inner))
        || error.source().is_some_and(tls_trouble)
}

async fn read_out(response: Response<Incoming>) {
    let mut body = response.into_body();
    let reading = async {
        let mut room = BODY_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let Some(left) = room.checked_sub(bytes) else { return };
            room = left;
        }
    };
    let _ = timeout(BODY_WITHIN, reading).await;
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let seconds = date.as_second().saturating_sub(Timestamp::now().as_second());
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

/// Whether the target can be reached: any answer to `OPTIONS` will do. Nothing is posted.
pub async fn reach(config: &HttpConfig) -> Result<StatusCode> {
    let mut asked = hyper::Request::new(Empty::<Bytes>::new());
    *asked.method_mut() = Method::OPTIONS;
    *asked.uri_mut() = config.target()?;
    asked.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
    let address = format!("http {}", origin(asked.uri()));
    match timeout(CONNECT_WITHIN, pool(config)?.request(asked)).await {
        Ok(answered) => {
            answered.map(|response| response.status()).map_err(|error| unreachable(&address, error))
        }
        Err(_) => Err(Error::new(Code::HttpUnreachable, format!("{address} does not answer"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<&str>) -> Answer {
        let mut headers = HeaderMap::new();
        headers.extend(retry_after.map(|text| (RETRY_AFTER, HeaderValue::from_str(text).unwrap())));
        Answer::of(StatusCode::from_u16(status).unwrap(), &headers)
    }

    #[test]
    fn each_status_has_its_meaning() {
        let means = |status| answer(status, None);
        for status in [200, 201, 202, 204] {
            assert_eq!(means(status), Answer::Accepted);
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert!(matches!(means(status), Answer::Later(_, None)), "{status}");
        }
        for status in [400, 409, 413, 414, 416, 418, 422, 423, 424, 428] {
            assert!(matches!(means(status), Answer::Refused(_)), "{status}");
        }
        for status in [301, 302, 307, 308, 304, 401, 402, 403, 404, 405, 406, 407, 410, 411, 415, 451] {
            assert!(matches!(means(status), Answer::Shut(_)), "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after = |text| match answer(429, Some(text)) {
            Answer::Later(_, after) => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(after("Wed, 21 Oct 2099 07:28:00 GMT") > Some(Duration::from_secs(1_000_000)));
        assert_eq!(after("soon"), None);
    }
}
