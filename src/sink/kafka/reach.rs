//! The first contact: whether a broker answers this client, and if not, why.
//!
//! librdkafka's calls only say that time ran out. Why is reported on the side, to those who poll, which its admin client
//! does not.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, Producer};

use super::config::KafkaConfig;
use super::error::{Reports, bad_settings, classify};
use super::look::{Login, Speaks, look};
use crate::error::{Code, Error, Result};

/// How long to wait for an answer before looking at what was reported meanwhile.
const SLICE: Duration = Duration::from_millis(200);
/// After how many of them the brokers are looked at by hand.
const PATIENCE: u32 = 4;

/// Returns once a broker has answered, or as soon as it is known why none will.
pub(super) fn reach(config: &KafkaConfig) -> Result<()> {
    let client: BaseProducer<Reports> =
        config.client().create_with_context(Reports::default()).map_err(bad_settings)?;
    let topic = config.topics().events;
    let deadline = Instant::now() + config.timeout();
    for slice in 1.. {
        let Err(error) = client.client().fetch_metadata(Some(&topic), SLICE) else { break };
        client.poll(SLICE / 2);
        let error = classify("reach the brokers", error, client.context());
        let known = error.code() != Code::KafkaUnreachable;
        if (known || slice == PATIENCE)
            && let Some(mismatch) = mismatch(config)
        {
            return Err(mismatch);
        }
        if known || Instant::now() >= deadline {
            return Err(error);
        }
    }
    Ok(())
}

/// What the listener wants and the settings do not say.
fn mismatch(config: &KafkaConfig) -> Option<Error> {
    let (tls, sasl) = (config.has_tls(), config.has_sasl());
    let (address, speaks) = config.addresses().find_map(|address| Some((address, look(address).ok()?)))?;
    let (what, fix) = match speaks {
        Speaks::InClear(_) if tls => (
            "speaks no TLS".to_owned(),
            "set security.protocol to plaintext or sasl_plaintext in kafka.properties, or kafka.brokers to the brokers' TLS listeners",
        ),
        Speaks::OverTls(_) | Speaks::TlsWithCertificates if !tls => (
            "speaks TLS".to_owned(),
            "set security.protocol to ssl or sasl_ssl in kafka.properties, and ssl.ca.location to the PEM file of the brokers' authority",
        ),
        Speaks::TlsWithCertificates => (
            "takes only clients with a certificate that it knows".to_owned(),
            "set ssl.certificate.location and ssl.key.location in kafka.properties to the PEM files of a certificate that the brokers trust, and its key",
        ),
        Speaks::InClear(Login::Sasl(mechanisms)) | Speaks::OverTls(Login::Sasl(mechanisms)) if !sasl => (
            format!("asks for a login ({})", mechanisms.join(", ")),
            "set security.protocol to sasl_ssl (or sasl_plaintext) in kafka.properties, and sasl.mechanism, sasl.username and sasl.password as the brokers want them",
        ),
        Speaks::InClear(Login::None) | Speaks::OverTls(Login::None) if sasl => (
            "asks for no login".to_owned(),
            "set security.protocol to ssl (or plaintext) in kafka.properties, or kafka.brokers to the brokers' listeners with SASL",
        ),
        Speaks::InClear(_) | Speaks::OverTls(_) => return None,
    };
    Some(Error::new(Code::KafkaConnection, format!("Kafka: the broker at {address} {what}")).hint(fix))
}
