//! What PostgreSQL 14 to 19 sent for `tests/data/pgoutput/workload.sql`, as `scripts/record-wire` wrote it down.

use walcast::lsn::Position;
use walcast::pgoutput::{Message, Transaction, Value};

use super::story::Story;
use crate::stages::encode::Sent;

/// Which server, and what it sent when `binary 'true'` was asked for.
struct Recording {
    version: u32,
    bytes: Vec<u8>,
}

#[test]
fn all_versions_tell_the_same_story() {
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        for recording in recordings() {
            eprintln!("{}", recording.name());
            insta::assert_snapshot!("story", Story::of(recording.payloads()).lines);
        }
    });
}

/// Version 14 sends Begin and Commit of transactions without a published change: those that only alter tables
/// or write to `unpublished`. Later versions leave them out.
#[test]
fn only_version_14_sends_empty_transactions() {
    for recording in recordings() {
        let empty = Story::of(recording.payloads()).empty_transactions;
        assert_eq!(empty > 0, recording.version == 14, "{}: {empty}", recording.name());
    }
}

#[test]
fn a_recorded_message_is_encoded_as_the_server_did() {
    for recording in recordings() {
        for (number, payload) in recording.payloads().enumerate() {
            let sent = Message::parse(payload).and_then(|message| Sent::read(&message)).unwrap();
            assert!(sent.encode() == payload, "{}, message {number}: {sent:?}", recording.name());
        }
    }
}

#[test]
fn a_recorded_message_cut_short_is_an_error_at_every_length() {
    for recording in recordings() {
        for (number, payload) in recording.payloads().enumerate() {
            for length in 0..payload.len() {
                let read = Message::parse(&payload[..length]);
                assert!(read.is_err(), "{}, message {number} of {length} bytes", recording.name());
            }
        }
    }
}

/// A type without a binary form (here aclitem) comes as text where binary was asked for.
#[test]
fn a_row_may_hold_both_forms() {
    for recording in recordings() {
        let both = recording.payloads().any(|payload| {
            let Ok(Message::Insert { new, .. }) = Message::parse(payload) else { return false };
            let any = |wanted: fn(Value<'_>) -> bool| new.columns().any(|value| wanted(value.unwrap()));
            any(|value| matches!(value, Value::Text(_))) && any(|value| matches!(value, Value::Binary(_)))
        });
        assert!(both, "{}", recording.name());
    }
}

/// The ordinal rule, on the transactions that put it to the test. Whoever changes the rule changes
/// `ORDINAL_RULE` too.
#[test]
fn ordinals_count_what_was_committed_in_the_order_it_was_done() {
    for recording in recordings() {
        let check = |marker: &str, expected: &[&str]| {
            assert_eq!(recording.transaction_with(marker), expected, "{}", recording.name());
        };
        check("before the savepoint", &["#0 insert", "#1 insert", "#2 insert", "#3 insert"]);
        check(
            "before the copy",
            &[
                "#0 insert",
                "#1 insert",
                "#2 insert",
                "#3 insert",
                "#4 insert",
                "#5 update",
                "#6 insert",
                "#7 insert",
                "#8 delete",
            ],
        );
        check("one column", &["#0 insert", "#1 insert", "#2 insert"]);
        check("before the message", &["#0 insert", "#1 insert"]);
        check("before the truncate", &["#0 insert", "#1 truncate", "#2 insert"]);
    }
}

#[test]
fn positions_only_grow() {
    assert_eq!(walcast::lsn::ORDINAL_RULE, 1, "the tests here are of rule 1");
    for recording in recordings() {
        let positions: Vec<_> = recording.changes().map(|(position, _)| position).collect();
        assert!(positions.is_sorted_by(|one, next| one < next), "{}", recording.name());
    }
}

#[test]
fn what_was_rolled_back_is_not_there() {
    for recording in recordings() {
        for (position, payload) in recording.changes() {
            assert!(!contains(payload, "ROLLED BACK"), "{}: {position}", recording.name());
        }
    }
}

fn recordings() -> impl Iterator<Item = Recording> {
    (14..=19).map(|version| {
        let path = format!("{}/tests/data/pgoutput/pg{version}.bin", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        Recording { version, bytes }
    })
}

impl Recording {
    fn name(&self) -> String {
        format!("PostgreSQL {}", self.version)
    }

    /// Each stands behind its length.
    fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk()?;
            let (payload, after) = after.split_at(u32::from_be_bytes(*length) as usize);
            rest = after;
            Some(payload)
        })
    }

    /// The row changes and truncates with their positions.
    fn changes(&self) -> impl Iterator<Item = (Position, &[u8])> {
        let mut transaction = Transaction::default();
        self.payloads().filter_map(move |payload| {
            let position = transaction.advance(&Message::parse(payload).unwrap()).unwrap()?;
            Some((position, payload))
        })
    }

    /// Ordinal and kind of all changes of the transaction that has this text in a row.
    fn transaction_with(&self, marker: &str) -> Vec<String> {
        let (wanted, _) = self.changes().find(|(_, payload)| contains(payload, marker)).expect(marker);
        self.changes()
            .filter(|(position, _)| position.commit_lsn == wanted.commit_lsn)
            .map(|(position, payload)| {
                format!("#{} {}", position.ordinal, Message::parse(payload).unwrap().name())
            })
            .collect()
    }
}

fn contains(payload: &[u8], text: &str) -> bool {
    payload.windows(text.len()).any(|window| window == text.as_bytes())
}
