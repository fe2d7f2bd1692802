//! Which release of Kafka a broker is. librdkafka asks for that and tells nobody, so it is asked by hand: before a login, and of TLS
//! listeners that take clients without a certificate.
//!
//! As in `look`, nothing secret is sent, and nothing that is received is believed: the answer is for a line of `walcast check`.

use std::io::{self, Read, Write};

use super::config::KafkaConfig;
use super::look::{self, Answer};
use crate::finding::Finding;

/// Releases whose fault loses sight of acknowledged transactions, seen with 4.3.1 and 4.4.0.
const HIDES_TRANSACTIONS: [&str; 2] = ["4.3", "4.4"];

/// The level of the feature metadata.version with which each release of Kafka came, the newest first.
const RELEASES: [(i16, &str); 11] = [
    (31, "4.4"),
    (30, "4.3"),
    (28, "4.2"),
    (26, "4.1"),
    (22, "4.0"),
    (21, "3.9"),
    (20, "3.8"),
    (15, "3.7"),
    (12, "3.6"),
    (9, "3.5"),
    (8, "3.4"),
];
/// The highest that is known.
const NEWEST: i16 = 33;

/// Says which releases run at these addresses, and warns of one with a known fault. Blocks.
pub(super) fn finding(config: &KafkaConfig, brokers: &[String]) -> Finding {
    let ask = |address: &String| ask(&mut look::open(address, config.has_tls()).ok()?).ok();
    // who does not answer would be waited for once more at each of them
    let levels: Vec<i16> = brokers.iter().map_while(ask).collect();
    of(&levels, brokers.len())
}

fn of(levels: &[i16], brokers: usize) -> Finding {
    let (id, subject) = ("kafka.version", "kafka version");
    if levels.is_empty() {
        let message =
            "not told: a broker tells it a client that TLS lets in without a certificate, from Kafka 3.4 on";
        return Finding::ok(id, subject, message);
    }
    let mut names: Vec<String> = levels.iter().map(|level| name_of(*level)).collect();
    names.sort();
    names.dedup();
    let faulty = names.iter().find(|name| HIDES_TRANSACTIONS.contains(&name.as_str()));
    let told = names.join(", ");
    match faulty.filter(|_| brokers == 1) {
        Some(_) => Finding::warn(
            id,
            subject,
            format!(
                "{told}: when a lone broker of this release is killed or fenced, acknowledged transactions may stay hidden from \
                 read_committed readers (KAFKA-20734)"
            ),
            "add brokers (three, with kafka.replication_factor = 3), or run Kafka 4.2; what to do where it has happened: \
             docs/runbook.md#walcastkafkatransactionhung",
        ),
        None => Finding::ok(id, subject, told),
    }
}

fn name_of(level: i16) -> String {
    match RELEASES.iter().find(|(first, _)| level >= *first) {
        _ if level > NEWEST => "newer than 4.4".into(),
        Some((_, name)) => (*name).into(),
        None => "3.3".into(),
    }
}

/// The highest metadata.version that the broker supports: ApiVersions, version 3, which a broker answers whoever asks.
fn ask(stream: &mut (impl Read + Write)) -> io::Result<i16> {
    const API_VERSIONS: i16 = 18;
    const VERSION: i16 = 3;
    let mut body = vec![0]; // the header's tags
    for text in ["walcast", env!("CARGO_PKG_VERSION")] {
        body.push(text.len() as u8 + 1);
        body.extend(text.as_bytes());
    }
    body.push(0);
    let answer = look::exchange(stream, API_VERSIONS, VERSION, &body)?;
    level(&mut Answer(&answer)).ok_or_else(look::not_kafka)
}

fn level(answer: &mut Answer<'_>) -> Option<i16> {
    const SUPPORTED_FEATURES: u32 = 0;
    answer.take().map(i16::from_be_bytes).filter(|error| *error == 0)?;
    for _ in 1..answer.varint()? {
        answer.skip(6)?; // a key, and the versions of it
        skip_tags(answer)?;
    }
    answer.skip(4)?; // the throttle time
    for _ in 0..answer.varint()? {
        let (tag, size) = (answer.varint()?, answer.varint()?);
        let mut value = Answer(answer.bytes(usize::try_from(size).ok()?)?);
        if tag == SUPPORTED_FEATURES {
            return metadata_version(&mut value);
        }
    }
    None
}

fn metadata_version(features: &mut Answer<'_>) -> Option<i16> {
    for _ in 1..features.varint()? {
        let length = usize::try_from(features.varint()?).ok()?;
        let name = features.bytes(length.checked_sub(1)?)?;
        let [_, highest] = [features.take()?, features.take()?].map(i16::from_be_bytes);
        skip_tags(features)?;
        if name == b"metadata.version" {
            return Some(highest);
        }
    }
    None
}

fn skip_tags(answer: &mut Answer<'_>) -> Option<()> {
    for _ in 0..answer.varint()? {
        answer.varint()?;
        let size = answer.varint()?;
        answer.skip(usize::try_from(size).ok()?)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::finding::Verdict;

    #[test]
    fn a_lone_broker_with_a_known_fault_is_warned_of() {
        for (levels, brokers, verdict, words) in [
            (&[29][..], 1, Verdict::Ok, "4.2"),
            (&[30], 1, Verdict::Warn, "4.3"),
            (&[33], 1, Verdict::Warn, "KAFKA-20734"),
            (&[33, 33, 29], 3, Verdict::Ok, "4.2, 4.4"),
            (&[7], 1, Verdict::Ok, "3.3"),
            (&[21], 1, Verdict::Ok, "3.9"),
            (&[90], 1, Verdict::Ok, "newer than 4.4"),
            (&[], 1, Verdict::Ok, "not told"),
        ] {
            let finding = of(levels, brokers);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(finding.message.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn the_level_is_found_behind_what_is_not_asked_for() {
        let mut answer = b"\0\0\x03\0\x12\0\0\0\x04\0\0\x03\0\0\0\x0d\x01\x07\x01x\0\0\0\0".to_vec();
        answer.extend(b"\x02\x01\x01y\0\x17\x02\x11metadata.version\0\x07\0\x1d\0");
        assert_eq!(level(&mut Answer(&answer)), Some(29));
        assert_eq!(level(&mut Answer(b"\0\x23\0")), None, "a broker that does not know the request");
    }

    proptest! {
        #[test]
        fn whatever_is_answered_is_no_reason_to_break(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = level(&mut Answer(&bytes));
            let _ = level(&mut Answer(&[b"\0\0\x01\0\0\0\0".as_slice(), &bytes].concat()));
        }
    }
}
