//! Rules by example, with the words of each error.

use insta::assert_snapshot;
use walcast::lsn::{Lsn, Position};
use walcast::pgoutput::{
    Column, DecodeError, Found, Message, OldKind, Relation, Relations, ReplicaIdentity, Timestamp,
    Transaction, Value, timestamp,
};

use crate::stages::encode::{Cell, Sent};

fn begin(final_lsn: u64) -> Sent {
    Sent::Begin { final_lsn: Lsn(final_lsn), commit_ts: 0, xid: 7 }
}

fn commit(commit_lsn: u64) -> Sent {
    Sent::Commit { commit_lsn: Lsn(commit_lsn), end_lsn: Lsn(commit_lsn + 8), commit_ts: 0 }
}

fn insert() -> Sent {
    Sent::Insert { relation_id: 1, new: vec![] }
}

fn logical(transactional: bool) -> Sent {
    Sent::Logical { transactional, lsn: Lsn(1), prefix: "p".into(), content: b"c".to_vec() }
}

/// The positions that a stream of these messages gives, up to its first error.
fn positions(stream: &[Sent]) -> Result<Vec<Option<Position>>, DecodeError> {
    let mut transaction = Transaction::default();
    stream.iter().map(|sent| transaction.advance(&Message::parse(&sent.encode())?)).collect()
}

#[test]
fn every_row_change_and_truncate_is_counted_and_nothing_else() {
    let row = || (OldKind::Key, vec![]);
    let relation = Relation {
        id: 1,
        namespace: "public".into(),
        name: "t".into(),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![],
    };
    let stream = [
        logical(false),
        begin(10),
        Sent::Origin { commit_lsn: Lsn(3), name: "o".into() },
        Sent::Type { id: 1, namespace: "a".into(), name: "b".into() },
        Sent::Relation(relation.clone()),
        insert(),
        logical(true),
        Sent::Relation(relation),
        Sent::Update { relation_id: 1, old: None, new: vec![] },
        Sent::Truncate { options: 0, relations: vec![1, 2, 3] },
        Sent::Delete { relation_id: 1, old: row() },
        commit(10),
        begin(18),
        insert(),
        commit(18),
    ];
    let at = |commit_lsn, ordinal| Position { commit_lsn: Lsn(commit_lsn), ordinal };
    let counted: Vec<_> = positions(&stream).unwrap().into_iter().flatten().collect();
    assert_eq!(counted, [at(10, 0), at(10, 1), at(10, 2), at(10, 3), at(18, 0)]);
}

#[test]
fn a_transaction_is_open_from_begin_to_commit() {
    let mut transaction = Transaction::default();
    let open: Vec<_> = [begin(10), insert(), commit(10)]
        .map(|sent| {
            transaction.advance(&Message::parse(&sent.encode()).unwrap()).unwrap();
            transaction.is_open()
        })
        .into();
    assert_eq!(open, [true, true, false]);
}

#[test]
fn messages_out_of_order_are_errors() {
    let error = |stream: &[Sent]| positions(stream).unwrap_err();
    assert_snapshot!(error(&[insert()]), @"insert message outside a transaction");
    assert_snapshot!(error(&[begin(10), commit(10), insert()]), @"insert message outside a transaction");
    assert_snapshot!(error(&[commit(10)]), @"commit message outside a transaction");
    assert_snapshot!(error(&[logical(true)]), @"logical message outside a transaction");
    assert_snapshot!(error(&[begin(10), begin(20)]), @"begin message inside the transaction that commits at 0/A");
    assert_snapshot!(error(&[begin(10), commit(11)]), @"commit message at 0/B ends the transaction that commits at 0/A");
    assert_snapshot!(
        error(&[begin(10), Sent::Commit { commit_lsn: Lsn(10), end_lsn: Lsn(10), commit_ts: 0 }]),
        @"commit message at 0/A with its end at 0/A"
    );
    assert_snapshot!(
        error(&[begin(10), commit(10), begin(17)]),
        @"begin message of a transaction that commits at 0/11, before the end of the last one at 0/12"
    );
}

#[test]
fn an_error_of_the_wire_says_where_it_is() {
    let error = |bytes: &[u8]| Message::parse(bytes).unwrap_err();
    assert_snapshot!(error(b""), @"unknown message: tag at byte 0: 1 bytes are wanted, 0 are left");
    assert_snapshot!(error(b"?"), @"unknown message: tag at byte 0: the byte 0x3f is not of protocol 1");
    assert_snapshot!(error(b"S\0\0\0\x01\x01"), @"streaming (protocol 2) message: tag at byte 0: the byte 0x53 is not of protocol 1");
    assert_snapshot!(error(b"B\0\0"), @"begin message: final LSN at byte 1: 8 bytes are wanted, 2 are left");
    assert_snapshot!(error(b"C\x01"), @"commit message: flags at byte 1: the byte 0x01 is not of protocol 1");
    assert_snapshot!(error(b"I\0\0\0\x01K"), @"insert message: tuple kind at byte 5: the byte 0x4b is not of protocol 1");
    assert_snapshot!(error(b"I\0\0\0\x01N\0\x01x"), @"insert message: value kind at byte 8: the byte 0x78 is not of protocol 1");
    assert_snapshot!(error(b"I\0\0\0\x01N\0\x02nt\xff\xff\xff\xff"), @"insert message: text value at byte 14: 4294967295 bytes are wanted, 0 are left");
    assert_snapshot!(error(b"I\0\0\0\x01N\0\x00n"), @"insert message: end at byte 8: 1 bytes too many");
    assert_snapshot!(error(b"D\0\0\0\x01N"), @"delete message: tuple kind at byte 5: the byte 0x4e is not of protocol 1");
    assert_snapshot!(error(b"T\xff\xff\xff\xff\0"), @"truncate message: relations at byte 6: 17179869180 bytes are wanted, 0 are left");
    assert_snapshot!(error(b"R\0\0\0\x01public"), @"relation message: schema at byte 5: text without the zero byte that ends it");
    assert_snapshot!(error(b"R\0\0\0\x01\0\xff\0"), @"relation message: name at byte 6: 1 bytes that are not UTF-8");
    assert_snapshot!(error(b"R\0\0\0\x01\0t\0x"), @"relation message: replica identity at byte 8: the byte 0x78 is not of protocol 1");
}

#[test]
fn the_newest_description_of_a_table_counts() {
    let mut relations = Relations::default();
    assert_snapshot!(relations.get(5).unwrap_err(), @"a row of relation 5, which no Relation message has described");
    for (id, name) in [(5, "five"), (9, "nine"), (1, "one"), (5, "five again")] {
        relations.insert(Relation { id, ..table(name, vec![]) });
    }
    let names = [1, 5, 9].map(|id| relations.get(id).unwrap().name.clone());
    assert_eq!(names, ["one", "five again", "nine"]);
    assert!(relations.get(6).is_err());
}

#[test]
fn a_row_with_other_columns_than_its_table_is_an_error() {
    let bytes = Sent::Insert { relation_id: 1, new: vec![Cell::Null, Cell::Null] }.encode();
    let Ok(Message::Insert { new, .. }) = Message::parse(&bytes) else { panic!() };
    assert_snapshot!(
        table("t", vec![column(25)]).values(&new).err().unwrap(),
        @"a row of public.t with 2 columns, its Relation message has 1"
    );
    assert_eq!(table("t", vec![column(25), column(23)]).values(&new).unwrap().count(), 2);
}

#[test]
fn a_domain_is_read_as_its_base_type() {
    let mut relations = Relations::default();
    relations.insert_type(20001, "", "int4");
    relations.insert_type(20002, "", "point");
    relations.insert_type(20003, "public", "mood");
    relations.insert(table("t", [20001, 20002, 20003].map(column).into()));
    let [number, unreadable, label] = relations.get(1).unwrap().columns.as_slice() else { panic!() };
    assert_eq!(Value::Binary(&[0, 0, 1, 0]).int4(number), Ok(Some(256)));
    assert_eq!(Value::Binary(b"calm").text(label), Ok(Some("calm")));
    assert_snapshot!(
        Value::Binary(&[0, 1, 0, 0]).text(unreadable).unwrap_err(),
        @"column column: text, varchar or an enum is wanted, found a domain over another type"
    );

    relations.insert_type(20001, "public", "mood");
    relations.insert(table("t", vec![column(20001)]));
    assert_eq!(relations.get(1).unwrap().columns, [column(20001)], "the OID was given to another type");
}

#[test]
fn every_built_in_type_with_a_reader_may_have_domains() {
    let types = [
        ("name", 19),
        ("int8", 20),
        ("int2", 21),
        ("int4", 23),
        ("text", 25),
        ("json", 114),
        ("bpchar", 1042),
        ("varchar", 1043),
        ("timestamp", 1114),
        ("timestamptz", 1184),
        ("numeric", 1700),
        ("uuid", 2950),
        ("jsonb", 3802),
    ];
    for (name, type_oid) in types {
        let mut relations = Relations::default();
        relations.insert_type(20001, "", name);
        relations.insert(table("t", vec![column(20001)]));
        assert_eq!(relations.get(1).unwrap().columns, [column(type_oid)], "{name}");
        let (null, column) = (Value::Null, column(type_oid));
        let readers = [
            null.int8(&column).is_ok(),
            null.int4(&column).is_ok(),
            null.text(&column).is_ok(),
            null.json(&column).is_ok(),
            null.uuid(&column).is_ok(),
            null.timestamptz(&column).is_ok(),
            null.time(&column, Some(|local| local)).is_ok(),
        ];
        assert!(readers.contains(&true), "{name} has a reader");
    }
}

#[test]
fn a_value_of_another_shape_is_an_error_that_names_its_column() {
    let int = |value: Value<'_>| value.int4(&column(23)).unwrap_err();
    assert_snapshot!(int(Value::Unchanged), @"column column: int2, int4, int8 or numeric is wanted, found an unchanged TOAST value, which the stream leaves out");
    assert_snapshot!(int(Value::Text(b"12")), @"column column: int2, int4, int8 or numeric is wanted, found a text form of 2 bytes");
    assert_snapshot!(int(Value::Binary(&2_147_483_648_i64.to_be_bytes())), @"column column: int2, int4, int8 or numeric is wanted, found a number out of its range");
    assert_snapshot!(int(Value::Binary(b"abc")), @"column column: int2, int4, int8 or numeric is wanted, found a binary form of 3 bytes");
    assert_snapshot!(Value::Null.int4(&column(701)).unwrap_err(), @"column column: int2, int4, int8 or numeric is wanted, found the type with OID 701");
    assert_snapshot!(Value::Binary(b"abc").uuid(&column(2950)).unwrap_err(), @"column column: uuid is wanted, found a binary form of 3 bytes");
    assert_snapshot!(Value::Binary(b"\xff").text(&column(25)).unwrap_err(), @"column column: text, varchar or an enum is wanted, found 1 bytes that are not UTF-8");
    assert_snapshot!(Value::Binary(b"\0\0\0\x01").text(&column(20000)).unwrap_err(), @"column column: text, varchar or an enum is wanted, found a binary form of 4 bytes");
    assert_snapshot!(Value::Binary(b"\x02{}").json(&column(3802)).unwrap_err(), @"column column: json or jsonb is wanted, found the byte 0x02 is not of protocol 1");
    assert_snapshot!(Value::Binary(b"").json(&column(3802)).unwrap_err(), @"column column: json or jsonb is wanted, found a binary form of 0 bytes");
    assert_snapshot!(Value::Binary(b"{}").json(&column(25)).unwrap_err(), @"column column: json or jsonb is wanted, found the type with OID 25");
    assert_snapshot!(Value::Binary(b"\0\0\0\0").timestamptz(&column(1184)).unwrap_err(), @"column column: timestamptz is wanted, found a binary form of 4 bytes");
}

/// As PostgreSQL sends it: how many digits of base 10,000, the first one's power, the sign, digits shown behind the point.
fn numeric(weight: i16, sign: u16, digits: &[i16]) -> Vec<u8> {
    let header = [digits.len() as i16, weight, sign as i16, 0];
    header.iter().chain(digits).flat_map(|short| short.to_be_bytes()).collect()
}

#[test]
fn a_numeric_is_an_integer_or_none() {
    let int8 = |bytes: &[u8]| Value::Binary(bytes).int8(&column(1700));
    let (positive, negative) = (0, 0x4000);
    for (weight, sign, digits, value) in [
        (0, positive, &[][..], 0),
        (7, positive, &[], 0),
        (-1, positive, &[0], 0),
        (0, positive, &[1500], 1500),
        (0, positive, &[1500, 0, 0], 1500),
        (1, negative, &[150], -1_500_000),
        (2, positive, &[0, 15], 150_000),
        (4, positive, &[922, 3372, 368, 5477, 5807], i64::MAX),
        (4, negative, &[922, 3372, 368, 5477, 5808], i64::MIN),
    ] {
        assert_eq!(int8(&numeric(weight, sign, digits)), Ok(Some(value)), "{digits:?}");
    }
    let refused = |bytes: &[u8]| match int8(bytes) {
        Err(DecodeError::Value { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    for (weight, sign, digits, found) in [
        (0, positive, &[1500, 5000][..], Found::NotWhole),
        (-1, positive, &[1], Found::NotWhole),
        (i16::MIN, positive, &[1], Found::NotWhole),
        (4, positive, &[922, 3372, 368, 5477, 5808], Found::OutOfRange),
        (4, negative, &[922, 3372, 368, 5477, 5809], Found::OutOfRange),
        (5, positive, &[1], Found::OutOfRange),
        (i16::MAX, negative, &[9999], Found::OutOfRange),
        (0, 0xC000, &[], Found::NotFinite),
        (0, 0xD000, &[], Found::NotFinite),
        (0, 0xF000, &[], Found::NotFinite),
        (0, positive, &[10_000], Found::Binary(10)),
        (0, positive, &[-1], Found::Binary(10)),
    ] {
        assert_eq!(refused(&numeric(weight, sign, digits)), found, "{weight} {sign} {digits:?}");
    }
    for bytes in [&[][..], &[0; 7], &[0; 9], &[0, 1, 0, 0, 0, 0, 0, 0], &[0xff; 8]] {
        assert_eq!(refused(bytes), Found::Binary(bytes.len()));
    }
    let shown = |weight, sign, scale: u8, digits: &[i16]| {
        let mut bytes = numeric(weight, sign, digits);
        bytes[7] = scale;
        Value::Binary(&bytes).numeric(&column(1700)).unwrap().unwrap().to_string()
    };
    assert_eq!(shown(1, negative, 6, &[12, 34, 5000, 70]), "-120034.500000");
    assert_eq!(shown(-2, positive, 9, &[1, 2000]), "0.000000012");
    assert_eq!(shown(3, positive, 0, &[1]), "1000000000000");
    assert_eq!(shown(0, positive, 2, &[]), "0.00");
    assert_eq!([0xC000, 0xD000, 0xF000].map(|sign| shown(0, sign, 0, &[])), ["NaN", "Infinity", "-Infinity"]);
    let int4 = |weight, digits: &[i16]| Value::Binary(&numeric(weight, 0, digits)).int4(&column(1700)).ok();
    assert_eq!(int4(2, &[21, 4748, 3647]), Some(Some(i32::MAX)));
    assert_eq!(int4(2, &[21, 4748, 3648]), None);
}

#[test]
fn a_local_time_is_read_where_its_zone_is_known() {
    let hour_ahead = Some(|local: i64| local - 3_600_000_000);
    let read = |wire: i64, oid| Value::Binary(&wire.to_be_bytes()).time(&column(oid), hour_ahead);
    assert_eq!(read(0, 1184), Ok(Some(Timestamp::At(946_684_800_000_000))));
    assert_eq!(read(0, 1114), Ok(Some(Timestamp::At(946_681_200_000_000))));
    assert_eq!(read(i64::MAX, 1114), Ok(Some(Timestamp::Infinity)));
    assert_eq!(read(i64::MIN, 1114), Ok(Some(Timestamp::NegativeInfinity)));
    assert_eq!(Value::Null.time(&column(1114), hour_ahead), Ok(None));
    assert!(
        Value::Null.timestamptz(&column(1114)).is_err()
            && Value::Null.time(&column(1082), hour_ahead).is_err()
    );
}

#[test]
fn a_null_is_none_for_every_reader() {
    let null = Value::Null;
    assert_eq!(null.int8(&column(20)), Ok(None));
    assert_eq!(null.uuid(&column(2950)), Ok(None));
    assert_eq!(null.text(&column(1043)), Ok(None));
    assert_eq!(null.timestamptz(&column(1184)), Ok(None));
    assert_eq!(null.json(&column(3802)), Ok(None));
}

/// PostgreSQL sends a type's binary form when it has one, as all built-in types read here have. A type made by users
/// need not have one.
#[test]
fn only_a_type_made_by_users_is_read_as_text() {
    let text = Value::Text(b"tv");
    assert_eq!(text.text(&column(20000)), Ok(Some("tv")));
    assert!(Value::Text(b"\xff").text(&column(20000)).is_err());
    for type_oid in [19, 20, 25, 114, 1042, 1043, 1184, 2950, 3802] {
        let column = column(type_oid);
        assert!(text.int8(&column).is_err() && text.uuid(&column).is_err() && text.text(&column).is_err());
        assert!(text.timestamptz(&column).is_err() && text.json(&column).is_err());
    }
}

#[test]
fn commit_times_count_from_1970() {
    assert_eq!(timestamp::unix_micros(0), 946_684_800_000_000);
    assert_eq!(timestamp::unix_micros(i64::MAX), i64::MAX);
}

#[test]
fn nothing_prints_a_row() {
    let secret = Cell::Text(b"secret".to_vec());
    let sent =
        Sent::Update { relation_id: 1, old: Some((OldKind::Full, vec![secret.clone()])), new: vec![secret] };
    let bytes = sent.encode();
    let message = Message::parse(&bytes).unwrap();
    assert_snapshot!(format!("{message:?}"), @"update { .. }");
    let Message::Update { old, new, .. } = message else { panic!() };
    assert_snapshot!(format!("{old:?}"), @"Some(OldTuple { kind: Full, tuple: Tuple(1 columns, 11 bytes) })");
    assert_snapshot!(format!("{:?}", new.columns().collect::<Vec<_>>()), @"[Ok(Text(6 bytes))]");
}

fn table(name: &str, columns: Vec<Column>) -> Relation {
    Relation {
        id: 1,
        namespace: "public".into(),
        name: name.into(),
        replica_identity: ReplicaIdentity::Default,
        columns,
    }
}

fn column(type_oid: u32) -> Column {
    Column { name: "column".into(), type_oid, type_modifier: -1, key: false }
}
