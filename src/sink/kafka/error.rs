//! What librdkafka reports, sorted by what can be done about it.

use std::sync::{Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::config::is_shown;
use crate::error::{self, Error};

/// Keeps what a client reports on the side: calls themselves often only say that time ran out.
#[derive(Default)]
pub(super) struct Reports {
    connection: Mutex<Option<(Code, String)>>,
    delivery: Mutex<Option<Undelivered>>,
}

/// A record that could not be delivered.
#[derive(Clone)]
struct Undelivered {
    topic: String,
    code: Code,
}

impl Undelivered {
    /// Whether it was only dropped, or refused, because of another.
    fn follows(&self) -> bool {
        matches!(self.code, Code::PurgeQueue | Code::PurgeInflight | Code::InvalidDifferentRecord)
    }
}

impl Reports {
    /// Why the first record that could not be delivered was refused; `Purge…` while only records are known
    /// that were dropped because of another.
    pub(super) fn delivery(&self) -> Option<Code> {
        self.undelivered().map(|undelivered| undelivered.code)
    }

    fn undelivered(&self) -> Option<Undelivered> {
        self.delivery.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn connection(&self) -> Option<(Code, String)> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "walcast::librdkafka", ?level, facility, "{message}");
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "walcast::librdkafka", %error, "{reason}");
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut last = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        // "all brokers are down" follows the report that says why, and so may a closed connection
        let rank = |code: Code| (definite(code).is_some(), code != Code::AllBrokersDown);
        if last.as_ref().is_none_or(|(known, _)| rank(code) >= rank(*known)) {
            *last = Some((code, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Err((error, message)) = result else { return };
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut first = self.delivery.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(Undelivered::follows) {
            *first = Some(Undelivered { topic: message.topic().to_owned(), code });
        }
    }
}

/// An error of a call to Kafka; `doing` completes "Kafka: cannot …".
pub(super) fn classify(doing: &str, error: KafkaError, reports: &Reports) -> Error {
    let connection = reports.connection();
    if let Some(Undelivered { topic, code }) = reports.undelivered()
        && let Some((meaning, hint)) = definite(code)
    {
        let message = format!("Kafka: cannot {doing}: topic {topic} does not take it: {code}");
        return Error::new(meaning, message).hint(hint).because(error);
    }
    let codes = [code_of(&error), connection.as_ref().map(|(code, _)| *code)];
    let definite = codes.into_iter().flatten().find_map(|code| Some((code, definite(code)?)));
    match (definite, connection) {
        (Some((code, (meaning, hint))), Some((reported, reason))) if code == reported => {
            Error::new(meaning, format!("Kafka: cannot {doing}: {reason}")).hint(hint).because(error)
        }
        (Some((code, (meaning, hint))), _) => {
            Error::new(meaning, format!("Kafka: cannot {doing}: {code}")).hint(hint).because(error)
        }
        (None, Some((_, reason))) => {
            Error::new(error::Code::KafkaUnreachable, format!("Kafka: cannot {doing}: {reason}"))
                .because(error)
        }
        (None, None) => {
            Error::new(error::Code::KafkaUnreachable, format!("Kafka: cannot {doing}")).because(error)
        }
    }
}

fn code_of(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// What no retry mends, and what does.
pub(super) fn definite(code: Code) -> Option<(error::Code, &'static str)> {
    let hint = match code {
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => {
            let hint = "set sasl.mechanism, sasl.username and sasl.password (with OAUTHBEARER the sasl.oauthbearer settings) in \
                        kafka.properties as the brokers want them";
            return Some((error::Code::KafkaConnection, hint));
        }
        Code::SSL => {
            let hint = "set ssl.ca.location in kafka.properties to the PEM file of the authority that signed the brokers' \
                        certificates, and kafka.brokers to names that these have";
            return Some((error::Code::KafkaConnection, hint));
        }
        Code::TopicAuthorizationFailed => {
            "allow this user Create, Describe, DescribeConfigs, Read and Write on the topics of kafka.topic_prefix"
        }
        Code::TransactionalIdAuthorizationFailed => {
            "allow this user Describe and Write on kafka.transactional_id"
        }
        Code::ClusterAuthorizationFailed => {
            "allow this user Create and IdempotentWrite on the cluster, or create the topics yourself"
        }
        Code::GroupAuthorizationFailed => "allow this user Read on the group walcast.<kafka.topic_prefix>",
        Code::InvalidTransactionTimeout => {
            "lower kafka.transaction_timeout_ms, or raise the brokers' transaction.max.timeout.ms"
        }
        Code::MessageSizeTooLarge => {
            let hint = "raise the topics' max.message.bytes; `walcast check` says to what";
            return Some((error::Code::KafkaTopicUnfit, hint));
        }
        Code::InvalidTimestamp => {
            "the clocks of walcast's machine and of the brokers differ by more than the topic's message.timestamp.after.max.ms \
             and message.timestamp.before.max.ms allow: mend them, and give the topic \
             message.timestamp.type=LogAppendTime (kafka-configs.sh)"
        }
        Code::InvalidRecord | Code::InvalidDifferentRecord => {
            "the broker's log says why. Mostly the clocks of walcast's machine and of the brokers differ by more than the \
             topic's message.timestamp.after.max.ms and message.timestamp.before.max.ms allow: mend them, and give the \
             topic message.timestamp.type=LogAppendTime (kafka-configs.sh). A broker that validates schemas has to let walcast's records pass"
        }
        Code::MessageBatchTooLarge => "raise the topic's segment.bytes (kafka-configs.sh)",
        Code::UnsupportedForMessageFormat | Code::UnsupportedCompressionType => {
            "set kafka.compression to one that the brokers have, or upgrade the brokers"
        }
        Code::InvalidReplicationFactor => {
            "set kafka.replication_factor to at most the number of brokers (1 for a broker on its own, and \
             kafka.min_insync_replicas with it)"
        }
        Code::PolicyViolation | Code::InvalidConfig => {
            "create the topics yourself within the brokers' policy; `walcast check` says what they must be like"
        }
        _ => return None,
    };
    Some((error::Code::KafkaRefused, hint))
}

/// An error of making a client out of settings. Never shows a secret's value.
pub(super) fn bad_settings(error: KafkaError) -> Error {
    let what = match error {
        KafkaError::ClientConfig(_, _, name, _) if !is_shown(&name) => format!("{name} is not accepted"),
        KafkaError::ClientConfig(_, reason, ..) | KafkaError::ClientCreation(reason) => reason,
        other => other.to_string(),
    };
    Error::new(error::Code::Configuration, format!("kafka.properties: {what}"))
        .hint("the settings' names and values are those of librdkafka's CONFIGURATION.md")
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::producer::BaseProducer;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_definite_report_wins_over_a_time_out() {
        let reports = Reports::default();
        let timed_out = || KafkaError::Global(Code::OperationTimedOut);
        assert_eq!(classify("write", timed_out(), &reports).kind(), Kind::Unavailable);
        reports.error(KafkaError::Global(Code::Authentication), "wrong password");
        reports.error(KafkaError::Global(Code::AllBrokersDown), "1/1 brokers are down");
        let error = classify("write", timed_out(), &reports);
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.advice().contains("sasl.password"), "{error:?}");
        assert!(error.to_string().contains("wrong password"), "{error}");
        reports.error(KafkaError::Global(Code::BrokerTransportFailure), "closed");
        assert_eq!(
            classify("write", timed_out(), &reports).kind(),
            Kind::Config,
            "what is known stays known"
        );
    }

    #[test]
    fn bad_settings_show_no_secret() {
        for (name, value, shown) in [
            ("ssl.no.such.password", "hunter2", "ssl.no.such.password is not accepted"),
            ("no.such.setting", "1", "no.such.setting"),
        ] {
            let refused = ClientConfig::new().set(name, value).create::<BaseProducer>().err().unwrap();
            let error = bad_settings(refused);
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.chain().contains(shown), "{error:?}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
