//! What holds for every message: encode → decode gives it back, and nothing else is ever taken for one.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use walcast::lsn::Lsn;
use walcast::pgoutput::{Column, DecodeError, Message, OldKind, Relation, ReplicaIdentity, Timestamp, Value};

use crate::stages::encode::{Cell, Sent};

proptest! {
    #[test]
    fn a_message_is_read_as_it_was_sent(sent in message()) {
        let bytes = sent.encode();
        let read = Message::parse(&bytes).and_then(|message| Sent::read(&message));
        prop_assert_eq!(read, Ok(sent));
    }

    #[test]
    fn a_message_cut_short_is_an_error_at_every_length(sent in message()) {
        let bytes = sent.encode();
        for length in 0..bytes.len() {
            let read = Message::parse(&bytes[..length]);
            let Err(DecodeError::Message { offset, .. }) = read else {
                return Err(TestCaseError::fail(format!("{length} of {} bytes: {read:?}", bytes.len())));
            };
            prop_assert!(offset <= length, "an error at byte {} of {}", offset, length);
        }
    }

    #[test]
    fn bytes_after_a_message_are_an_error(sent in message(), extra in vec(any::<u8>(), 1..9)) {
        let mut bytes = sent.encode();
        bytes.extend(&extra);
        prop_assert!(Message::parse(&bytes).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        is_sound(&bytes)?;
    }

    #[test]
    fn random_bytes_behind_a_real_tag_never_panic(
        tag in prop::sample::select(b"BCORYIUDTM".as_slice()),
        bytes in vec(prop_oneof![Just(0), Just(1), Just(b'N'), Just(b't'), any::<u8>()], 0..200),
    ) {
        is_sound(&[&[tag], bytes.as_slice()].concat())?;
    }

    #[test]
    fn a_damaged_message_never_panics(
        sent in message(), place: prop::sample::Index, damage in vec(any::<u8>(), 0..5), cut in 0_usize..5,
    ) {
        let mut bytes = sent.encode();
        let start = place.index(bytes.len());
        let end = bytes.len().min(start + cut);
        bytes.splice(start..end, damage);
        is_sound(&bytes)?;
    }

    #[test]
    fn integers_are_read_from_every_width(value: i64, oid in prop::sample::select(&[21_u32, 23, 20])) {
        let column = column(oid);
        let (bytes, value) = match oid {
            21 => ((value as i16).to_be_bytes().to_vec(), i64::from(value as i16)),
            23 => ((value as i32).to_be_bytes().to_vec(), i64::from(value as i32)),
            _ => (value.to_be_bytes().to_vec(), value),
        };
        prop_assert_eq!(Value::Binary(&bytes).int8(&column), Ok(Some(value)));
        prop_assert_eq!(Value::Binary(&bytes).int4(&column).ok(), i32::try_from(value).ok().map(Some));
    }

    #[test]
    fn other_values_are_read_as_they_were(bytes: [u8; 16], text in "[^\0]*", micros in -1_i64 << 60..1 << 60) {
        prop_assert_eq!(Value::Binary(&bytes).uuid(&column(2950)), Ok(Some(uuid::Uuid::from_bytes(bytes))));
        let jsonb = [&[1], text.as_bytes()].concat();
        let plain = Value::Binary(text.as_bytes());
        prop_assert_eq!(plain.text(&column(25)), Ok(Some(text.as_str())));
        prop_assert_eq!(plain.json(&column(114)), Ok(Some(text.as_str())));
        prop_assert_eq!(Value::Binary(&jsonb).json(&column(3802)), Ok(Some(text.as_str())));
        let wire = (micros - 946_684_800_000_000).to_be_bytes();
        prop_assert_eq!(Value::Binary(&wire).timestamptz(&column(1184)), Ok(Some(Timestamp::At(micros))));
    }

    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in vec(any::<u8>(), 0..20),
        oid in prop_oneof![prop::sample::select(&[0_u32, 19, 20, 21, 23, 25, 114, 1042, 1043, 1114, 1184, 1700, 2950, 3802]), any::<u32>()],
    ) {
        let column = column(oid);
        for value in [Value::Null, Value::Unchanged, Value::Text(&bytes), Value::Binary(&bytes)] {
            drop((value.int8(&column), value.int4(&column), value.uuid(&column)));
            drop((value.text(&column), value.timestamptz(&column), value.json(&column)));
            drop(value.time(&column, Some(|local| local)));
        }
    }
}

/// Whatever the bytes: no panic, here or in a row's values; and what is read as a message is one, since
/// encoding it gives the same bytes, but for flag bits that have no meaning.
fn is_sound(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(message) = Message::parse(bytes) else { return Ok(()) };
    let sent = Sent::read(&message).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let again = sent.encode();
    let read = Message::parse(&again).and_then(|message| Sent::read(&message));
    prop_assert_eq!(again.len(), bytes.len());
    prop_assert_eq!(read, Ok(sent));
    Ok(())
}

fn message() -> impl Strategy<Value = Sent> {
    prop_oneof![
        (lsn(), any::<i64>(), any::<u32>()).prop_map(|(final_lsn, commit_ts, xid)| Sent::Begin {
            final_lsn,
            commit_ts,
            xid
        }),
        (lsn(), lsn(), any::<i64>()).prop_map(|(commit_lsn, end_lsn, commit_ts)| Sent::Commit {
            commit_lsn,
            end_lsn,
            commit_ts
        }),
        (lsn(), text()).prop_map(|(commit_lsn, name)| Sent::Origin { commit_lsn, name }),
        relation().prop_map(Sent::Relation),
        (any::<u32>(), text(), text()).prop_map(|(id, namespace, name)| Sent::Type { id, namespace, name }),
        (any::<u32>(), row()).prop_map(|(relation_id, new)| Sent::Insert { relation_id, new }),
        (any::<u32>(), option::of(old_row()), row()).prop_map(|(relation_id, old, new)| Sent::Update {
            relation_id,
            old,
            new
        }),
        (any::<u32>(), old_row()).prop_map(|(relation_id, old)| Sent::Delete { relation_id, old }),
        (any::<u8>(), vec(any::<u32>(), 0..9))
            .prop_map(|(options, relations)| Sent::Truncate { options, relations }),
        (any::<bool>(), lsn(), text(), vec(any::<u8>(), 0..50)).prop_map(
            |(transactional, lsn, prefix, content)| Sent::Logical { transactional, lsn, prefix, content }
        ),
    ]
}

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,12}"
}

fn row() -> impl Strategy<Value = Vec<Cell>> {
    let cell = prop_oneof![
        Just(Cell::Null),
        Just(Cell::Unchanged),
        vec(any::<u8>(), 0..30).prop_map(Cell::Text),
        vec(any::<u8>(), 0..30).prop_map(Cell::Binary),
    ];
    vec(cell, 0..12)
}

fn old_row() -> impl Strategy<Value = (OldKind, Vec<Cell>)> {
    (prop_oneof![Just(OldKind::Key), Just(OldKind::Full)], row())
}

fn relation() -> impl Strategy<Value = Relation> {
    let identity = prop::sample::select(&[
        ReplicaIdentity::Default,
        ReplicaIdentity::Nothing,
        ReplicaIdentity::Full,
        ReplicaIdentity::Index,
    ]);
    let column = (text(), any::<u32>(), any::<i32>(), any::<bool>())
        .prop_map(|(name, type_oid, type_modifier, key)| Column { name, type_oid, type_modifier, key });
    (any::<u32>(), text(), text(), identity, vec(column, 0..12)).prop_map(
        |(id, namespace, name, replica_identity, columns)| Relation {
            id,
            namespace,
            name,
            replica_identity,
            columns,
        },
    )
}

fn column(type_oid: u32) -> Column {
    Column { name: "column".into(), type_oid, type_modifier: -1, key: false }
}
