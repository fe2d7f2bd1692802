//! `[http]`.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sign::Signer;
use super::template::Templates;
use crate::error::{Code, Error, Result};
use crate::event::encoding::PayloadForm;
use crate::hop::is_exposed;
use crate::secret::Secret;

/// `[http]`: the address that events are posted to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address that events are posted to, `https://…` or `http://…`. Required when `pipeline.sinks` has `http`. It is not shown,
    /// because such addresses often hold a token.
    pub url: Secret,
    /// Most events in one request. With 1, the body is the event itself. With more, it is a batch.
    pub batch_rows: usize,
    /// Most bytes of events in one request. Only a single event may be larger.
    pub batch_bytes_max: usize,
    /// How a batch is written. `json`: an array. `ndjson`: an event a line.
    pub format: Format,
    /// How a record has `raw_payload`. `json`: nested, as it stands. `text`: as a text that holds the JSON, so that a
    /// reader that cannot read all JSON can read every record.
    pub raw_payload: PayloadForm,
    /// Template of the body (minijinja), with `event` (the first), `events` (all of the request) and `id`. Empty: the plain
    /// record, or a batch of them.
    pub body_template: String,
    /// Value of the header `Content-Type`. Empty: `application/json`, or `application/x-ndjson` for `ndjson`.
    pub content_type: String,
    /// More headers. The values are templates like the body's; they are not shown. In the environment: a JSON object.
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, Secret>,
    /// How bodies are compressed.
    pub compression: Compression,
    /// Secrets that sign each request as Standard Webhooks defines it: `whsec_` and base64. To change the secret, give the new one
    /// and the old one, with a blank, a comma or a line between them; each signs. Empty: requests are not signed.
    pub signing_secrets: Secret,
    /// How many requests are under way at once. The events of one content never are.
    pub concurrency: usize,
    /// How long an event may wait, in milliseconds, for more events to join its request.
    pub linger_ms: u64,
    /// How long the target may take to answer, in milliseconds.
    pub timeout_ms: u64,
    /// PEM file with the certificate authorities to trust. Empty: the system's authorities.
    pub tls_ca_file: String,
    /// PEM file with the certificate (and its chain) that walcast shows to the target. Empty: none.
    pub tls_client_cert_file: String,
    /// PEM file with that certificate's private key.
    pub tls_client_key_file: String,
    /// Address that gives back what the target has, for `walcast verify`: each event as its plain record, a line each. Empty:
    /// `walcast verify` looks at the checkpoint alone. It is not shown.
    pub verify_url: Secret,
}

/// How a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// An array.
    Json,
    /// An event a line.
    Ndjson,
}

/// How bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            url: Secret::default(),
            batch_rows: 1,
            batch_bytes_max: 1 << 20,
            format: Format::Json,
            raw_payload: PayloadForm::Json,
            body_template: String::new(),
            content_type: String::new(),
            headers: BTreeMap::new(),
            compression: Compression::None,
            signing_secrets: Secret::default(),
            concurrency: 16,
            linger_ms: 5,
            timeout_ms: 15_000,
            tls_ca_file: String::new(),
            tls_client_cert_file: String::new(),
            tls_client_key_file: String::new(),
            verify_url: Secret::default(),
        }
    }
}

impl HttpConfig {
    /// The first setting that cannot be meant, as an error of kind `Config`.
    pub fn validate(&self) -> Result<()> {
        let numbers = [
            ("batch_rows", self.batch_rows),
            ("batch_bytes_max", self.batch_bytes_max),
            ("concurrency", self.concurrency),
            ("timeout_ms", usize::try_from(self.timeout_ms).unwrap_or(usize::MAX)),
        ];
        if let Some((setting, _)) = numbers.iter().find(|(_, number)| *number == 0) {
            return Err(wrong(setting, "is 0", "give it a number above 0"));
        }
        if self.concurrency > CONCURRENCY_MAX {
            return Err(wrong("concurrency", "is above 1000", "give at most 1000"));
        }
        if self.tls_client_cert_file.is_empty() != self.tls_client_key_file.is_empty() {
            let setting = if self.tls_client_key_file.is_empty() {
                "tls_client_key_file"
            } else {
                "tls_client_cert_file"
            };
            return Err(wrong(setting, "is empty", "a certificate and its key belong together: set both"));
        }
        self.target()?;
        self.verify_target()?;
        if HeaderValue::from_str(self.content_type()).is_err() {
            return Err(wrong(
                "content_type",
                "is not a header's value",
                "give one such as application/json",
            ));
        }
        for name in self.headers.keys() {
            self.check_header(name)?;
        }
        Signer::new(&self.signing_secrets)?;
        Templates::new(self)?;
        Ok(())
    }

    /// Where events are posted to.
    pub fn target(&self) -> Result<Uri> {
        address_of(&self.url, "url")
    }

    /// Where what the target has is asked for; `None` when nobody says.
    pub fn verify_target(&self) -> Result<Option<Uri>> {
        let given = !self.verify_url.expose().is_empty();
        given.then(|| address_of(&self.verify_url, "verify_url")).transpose()
    }

    /// How messages name the target: `http https://example.com:443`. Path and query may hold a token.
    pub fn address(&self) -> String {
        match self.target() {
            Ok(url) => format!("http {}", origin(&url)),
            Err(_) => "http".to_owned(),
        }
    }

    /// Whether events travel in clear where others may listen.
    pub fn is_exposed(&self) -> bool {
        [self.target().ok(), self.verify_target().ok().flatten()].iter().flatten().any(is_exposed)
    }

    /// The header `Content-Type`.
    pub fn content_type(&self) -> &str {
        match (self.content_type.as_str(), self.batch_rows, self.format) {
            ("", 2.., Format::Ndjson) => "application/x-ndjson",
            ("", ..) => "application/json",
            (given, ..) => given,
        }
    }

    /// How long the target may take to answer.
    pub fn answer_within(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    fn check_header(&self, name: &str) -> Result<()> {
        const OURS: [&str; 9] = [
            "content-length",
            "content-type",
            "content-encoding",
            "host",
            "transfer-encoding",
            "connection",
            "webhook-id",
            "webhook-timestamp",
            "webhook-signature",
        ];
        let lower = name.to_ascii_lowercase();
        if HeaderName::try_from(&lower).is_err() {
            return Err(wrong("headers", &format!("has {name:?}, which is no header's name"), "correct it"));
        }
        if OURS.contains(&lower.as_str()) {
            let fix = "leave it out: walcast sets it (content_type is a setting of its own)";
            return Err(wrong("headers", &format!("has {name:?}"), fix));
        }
        Ok(())
    }
}

const CONCURRENCY_MAX: usize = 1_000;

/// Scheme, host and port.
pub fn origin(url: &Uri) -> String {
    let (scheme, host) = (url.scheme_str().unwrap_or_default(), url.host().unwrap_or_default());
    let port = url.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    format!("{scheme}://{host}:{port}")
}

fn address_of(url: &Secret, setting: &str) -> Result<Uri> {
    if url.expose().is_empty() {
        return Err(wrong(setting, "is empty", "give the address that events go to"));
    }
    let fix = "give it as https://host/path or http://host:port/path";
    let not_one = || wrong(setting, "is not a URL", fix);
    let parsed: Uri = url.expose().parse().map_err(|_| not_one())?;
    let plain = matches!(parsed.scheme_str(), Some("http" | "https"));
    let authority = parsed.authority().filter(|authority| plain && !authority.host().is_empty());
    match authority.ok_or_else(not_one)? {
        authority if authority.as_str().contains('@') => {
            let fix = "set the header Authorization in http.headers instead";
            Err(wrong(setting, "has a user in it", fix))
        }
        _ => Ok(parsed),
    }
}

/// An error about one of these settings.
pub fn wrong(setting: &str, what: &str, fix: &str) -> Error {
    Error::new(Code::Configuration, format!("http.{setting} {what}"))
        .hint(format!("{fix} (HTTP_{})", setting.to_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> HttpConfig {
        HttpConfig { url: "https://example.com/hook?token=canary".to_owned().into(), ..Default::default() }
    }

    #[test]
    fn what_leaves_this_machine_without_tls_is_exposed() {
        let to = |url: &str| HttpConfig { url: url.to_owned().into(), ..good() }.is_exposed();
        assert!(to("http://example.com/hook") && !to("https://example.com/hook") && !to("http://[::1]:80/"));
        let asks = HttpConfig { verify_url: "http://example.com/".to_owned().into(), ..good() };
        assert!(asks.is_exposed());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        assert!(good().validate().is_ok());
        let url = |url: &str| HttpConfig { url: url.to_owned().into(), ..good() };
        let header = |name: &str, value: &str| HttpConfig {
            headers: [(name.to_owned(), value.to_owned().into())].into(),
            ..good()
        };
        let cases: [(&str, HttpConfig); 13] = [
            ("url", HttpConfig::default()),
            ("url", url("example.com/hook")),
            ("url", url("ftp://example.com/hook")),
            ("url", url("https://user:canary@example.com/hook")),
            ("verify_url", HttpConfig { verify_url: "/canary".to_owned().into(), ..good() }),
            ("batch_rows", HttpConfig { batch_rows: 0, ..good() }),
            ("concurrency", HttpConfig { concurrency: 2_000, ..good() }),
            ("tls_client_key_file", HttpConfig { tls_client_cert_file: "x".into(), ..good() }),
            ("signing_secrets", HttpConfig { signing_secrets: "whsec_canary!".to_owned().into(), ..good() }),
            ("body_template", HttpConfig { body_template: "{{ canary".into(), ..good() }),
            ("headers", header("a b", "x")),
            ("headers", header("Webhook-Id", "x")),
            ("headers", header("X-A", "{% canary")),
        ];
        for (setting, config) in cases {
            let error = config.validate().unwrap_err();
            assert_eq!(error.code(), Code::Configuration);
            assert!(error.to_string().contains(&format!("http.{setting}")), "{error}");
            assert!(error.advice().contains("HTTP_"), "{}", error.advice());
            assert!(!error.chain().contains("canary"), "{}", error.chain());
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let mut config = good();
        config.headers.insert("Authorization".into(), "Bearer canary".to_owned().into());
        config.signing_secrets = "whsec_canary".to_owned().into();
        let shown = format!("{config:?}{}", serde_json::to_string(&config).unwrap());
        assert!(!shown.contains("canary"), "{shown}");
        assert_eq!(config.address(), "http https://example.com:443");
    }
}
