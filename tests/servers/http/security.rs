//! Signatures, TLS, templates and compression, as a receiver meets them.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use tokio_rustls::TlsAcceptor;
use walcast::error::Code;
use walcast::sink::Sink;
use walcast::sink::http::{Compression, Format, HttpConfig, HttpSink};

use super::world::World;
use crate::support::http_server::{Fault, HttpServer, Posted};
use crate::support::{env, fresh_name, with_schema};

const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhrsc";

/// What the library of Standard Webhooks says to each, with this secret.
fn judged(secret: &str, requests: &[Posted]) -> Vec<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/webhooks.py");
    let mut python = Command::new(env("TEST_PYTHON", "python3"))
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let asked: String = requests
        .iter()
        .map(|one| {
            let body = STANDARD.encode(&one.body);
            format!("{}\n", json!({"secret": secret, "headers": one.headers, "body": body}))
        })
        .collect();
    std::io::Write::write_all(&mut python.stdin.take().unwrap(), asked.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn signatures_are_those_of_standard_webhooks_also_while_the_secret_changes() {
    with_schema(async |postgres| {
        for batch_rows in [1, 8] {
            let world = World::with(postgres, 6, |config| {
                config.batch_rows = batch_rows;
                config.signing_secrets = format!("{NEW}\n{OLD}").into();
            })
            .await;
            // a repeat is signed anew
            world.server.next(Fault::LoseAnswer);
            world.live().await.unwrap();
            let posted = world.server.posted();
            for secret in [NEW, OLD] {
                assert!(judged(secret, &posted).iter().all(|said| said == "good"), "{secret}");
            }
            let another = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
            assert!(judged(another, &posted).iter().all(|said| said.starts_with("bad")));
            let mut changed = posted.clone();
            changed.iter_mut().for_each(|one| one.body.push(b' '));
            assert!(judged(NEW, &changed).iter().all(|said| said.starts_with("bad")));
        }
    })
    .await;
}

#[tokio::test]
async fn a_compressed_body_is_signed_as_it_is_before() {
    with_schema(async |postgres| {
        let world = World::with(postgres, 2, |config| {
            config.compression = Compression::Gzip;
            config.signing_secrets = NEW.to_owned().into();
            config.batch_rows = 3;
            config.format = Format::Ndjson;
        })
        .await;
        world.live().await.unwrap();
        for mut posted in world.server.posted_plainly() {
            assert_eq!(posted.headers["content-type"], "application/x-ndjson");
            // the library reads what it has verified as one JSON text
            let records = posted.records().len();
            assert!((1..=3).contains(&records));
            if records == 1 {
                posted.headers.remove("content-encoding");
                assert_eq!(judged(NEW, &[posted]), ["good"]);
            }
        }
        world.check_delivered(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn bodies_and_headers_are_what_the_templates_make_of_events() {
    with_schema(async |postgres| {
        let world = World::with(postgres, 3, |config| {
            let template = r#"{"content_id": {{ event.content_id }}, "commit_lsn": {{ event.commit_lsn }}, "ordinal": {{ event.ordinal }},
                "event_id": {{ event.event_id }}, "text": {{ "played " ~ event.event_id }}, "payload": {{ event.raw_payload }}, "id": {{ id }}}"#;
            config.body_template = template.into();
            config.headers = [
                ("Authorization".to_owned(), "Bearer canary".to_owned().into()),
                ("X-Content".to_owned(), "{{ event.content_id }}".to_owned().into()),
            ]
            .into();
        })
        .await;
        world.server.next(Fault::LoseAnswer);
        world.live().await.unwrap();
        world.check_delivered(&[]).await;
        for posted in world.server.posted() {
            let record = &posted.records()[0];
            assert_eq!(record["text"], format!("played {}", record["event_id"]));
            assert_eq!((&record["payload"], record["id"].as_str()), (&json!({"a": [1]}), Some(posted.id())));
            assert_eq!(posted.headers["authorization"], "Bearer canary");
            let content = record["content_id"].as_str().unwrap_or("none");
            assert_eq!(posted.headers["x-content"].to_lowercase(), content);
        }
    })
    .await;
}

/// It is the row's fault where other rows can be filled in, and the template's where none can.
#[tokio::test]
async fn a_row_that_a_template_cannot_take_is_given_up_and_a_template_that_takes_none_is_an_error() {
    with_schema(async |postgres| {
        for batch_rows in [1, 4] {
            let with = |template: &'static str| {
                World::with(postgres, 4, move |config| {
                    config.batch_rows = batch_rows;
                    config.headers = [("X-A".to_owned(), template.to_owned().into())].into();
                })
            };
            let world = with("{% for event in events %}{{ 1 // (event.event_id - 13) }}{% endfor %}").await;
            world.check_delivers(&[13]).await;
            let told = world.letters().await.into_values().next().unwrap();
            assert!(told.starts_with("http.headers, x-a, cannot be filled in"), "{told}");
            let world = with("{{ event.no_such_field }}").await;
            let mut sink = HttpSink::new(world.config.clone(), postgres).unwrap();
            sink.recover(&world.newest().await).await.unwrap();
            let error = sink.write(&world.stream).await.unwrap_err();
            assert_eq!(error.code(), Code::HttpRefused, "{error:?}");
            assert!(world.letters().await.is_empty() && error.advice().contains("correct the template"));
        }
    })
    .await;
}

/// A folder of certificates, gone when dropped.
struct Certificates(PathBuf);

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Certificates {
    fn new() -> Certificates {
        let made = Certificates(std::env::temp_dir().join(fresh_name("certificates")));
        std::fs::create_dir(&made.0).unwrap();
        let names =
            "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth";
        std::fs::write(made.0.join("names"), names).unwrap();
        for authority in ["ca", "other"] {
            let request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
            made.openssl(&format!(
                "{request} -keyout {authority}.key -out {authority}.crt -subj /CN={authority}"
            ));
        }
        for name in ["server", "client"] {
            let request = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
            made.openssl(&format!("{request} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
            let sign = "x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names";
            made.openssl(&format!("{sign} -in {name}.csr -out {name}.crt"));
        }
        made
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        let output = command.args(arguments.split(' ')).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn acceptor(&self, asks_for_client: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate = CertificateDer::from_pem_file(self.path("server.crt")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap();
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = match asks_for_client {
            false => builder.unwrap().with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(self.path("ca.crt")).unwrap()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
                builder.unwrap().with_client_cert_verifier(verifier)
            }
        };
        TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![certificate], key).unwrap()))
    }
}

#[tokio::test]
async fn tls_is_spoken_with_a_target_that_a_trusted_authority_vouches_for_and_that_may_ask_who_comes() {
    let certificates = Certificates::new();
    with_schema(async |postgres| {
        let trusting = |config: &mut HttpConfig| config.tls_ca_file = certificates.path("ca.crt");
        let server = HttpServer::with_tls(Some(certificates.acceptor(false))).await;
        let world = World::at(server, postgres, 3, trusting).await;
        world.check_delivers(&[]).await;

        let server = HttpServer::with_tls(Some(certificates.acceptor(true))).await;
        let world = World::at(server, postgres, 3, |config| {
            trusting(config);
            config.tls_client_cert_file = certificates.path("client.crt");
            config.tls_client_key_file = certificates.path("client.key");
        })
        .await;
        world.check_delivers(&[]).await;

        let another_name = world.config.url.expose().replace("localhost", "127.0.0.1");
        let wrong: [(&str, HttpConfig); 4] = [
            (
                "another authority",
                HttpConfig { tls_ca_file: certificates.path("other.crt"), ..world.config.clone() },
            ),
            ("the system's", HttpConfig { tls_ca_file: String::new(), ..world.config.clone() }),
            ("another name", HttpConfig { url: another_name.into(), ..world.config.clone() }),
            (
                "no certificate",
                HttpConfig {
                    tls_client_cert_file: String::new(),
                    tls_client_key_file: String::new(),
                    ..world.config.clone()
                },
            ),
        ];
        let before = world.server.posted().len();
        for (what, config) in wrong {
            let mut sink = HttpSink::new(config, postgres).unwrap();
            sink.recover(&world.newest().await).await.unwrap();
            let more = super::world::stream(6);
            let error = sink.write(&more[3..]).await.unwrap_err();
            assert_eq!(error.code(), Code::HttpUnreachable, "{what}");
            assert!(
                error.advice().contains("http.tls_ca_file"),
                "{what}: {} {}",
                error.chain(),
                error.advice()
            );
        }
        assert_eq!(world.server.posted().len(), before);
        let missing = HttpConfig { tls_ca_file: certificates.path("missing.crt"), ..world.config.clone() };
        let mut sink = HttpSink::new(missing, postgres).unwrap();
        let error = sink.recover(&world.newest().await).await.unwrap_err();
        assert_eq!(error.code(), Code::ConfigurationUnreadable);
        assert!(error.to_string().contains("http.tls_ca_file"), "{error}");
    })
    .await;
}
