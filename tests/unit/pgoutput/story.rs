//! A stream told in lines without what differs between servers: LSNs, OIDs, transaction ids, commit times, and
//! the form in which a value came.

use std::collections::HashMap;
use std::fmt::Write as _;

use walcast::pgoutput::{
    Column, DecodeError, Message, OldTuple, Relation, Relations, Timestamp, Transaction, Tuple, Value,
};

/// 2020-01-01 in microseconds since 2000: no recording is older.
const OLDEST_COMMIT: i64 = 20 * 365 * 86_400_000_000;

#[derive(Default)]
pub struct Story {
    pub lines: String,
    pub empty_transactions: usize,
    transaction: Transaction,
    relations: Relations,
    /// The last description of each table that was told: servers repeat them as they like.
    described: HashMap<u32, String>,
    types: HashMap<u32, String>,
    begun: Option<(i64, u32)>,
}

impl Story {
    pub fn of<'a>(payloads: impl Iterator<Item = &'a [u8]>) -> Story {
        let mut story = Story::default();
        for payload in payloads {
            story.tell(Message::parse(payload).unwrap()).unwrap();
        }
        assert!(!story.transaction.is_open());
        story
    }

    fn tell(&mut self, message: Message<'_>) -> Result<(), DecodeError> {
        let ordinal = match self.transaction.advance(&message)? {
            Some(position) => format!("#{} ", position.ordinal),
            None => String::new(),
        };
        match message {
            Message::Begin { commit_ts, xid, .. } => {
                self.begun = Some((commit_ts, xid));
                self.line("begin");
            }
            Message::Commit { commit_ts, .. } => self.commit(commit_ts),
            Message::Origin { commit_lsn, name } => self.line(&format!("  origin {name} {commit_lsn}")),
            Message::Relation(relation) => self.describe(relation),
            Message::Type { id, namespace, name } => {
                self.relations.insert_type(id, namespace, name);
                self.types.insert(id, format!("{namespace}.{name}"));
            }
            Message::Insert { relation_id, new } => {
                let row = self.row(relation_id, &new)?;
                self.line(&format!("  {ordinal}insert {row}"));
            }
            Message::Update { relation_id, old, new } => {
                let old = old.map(|old| self.old(relation_id, &old)).transpose()?.unwrap_or_default();
                let row = self.row(relation_id, &new)?;
                self.line(&format!("  {ordinal}update {row}{old}"));
            }
            Message::Delete { relation_id, old } => {
                let name = &self.relations.get(relation_id)?.name;
                let old = format!("  {ordinal}delete {name}{}", self.old(relation_id, &old)?);
                self.line(&old);
            }
            Message::Truncate { options, relations } => {
                let names = relations.iter().map(|id| Ok(self.relations.get(id)?.name.clone()));
                let names = names.collect::<Result<Vec<_>, DecodeError>>()?.join(", ");
                let (cascade, restart) = (options.cascade(), options.restart_identity());
                self.line(&format!("  {ordinal}truncate {names}: cascade {cascade}, restart {restart}"));
            }
            Message::Logical { transactional, lsn, prefix, content } => {
                assert!(lsn.0 > 0);
                let kind = if transactional { "  logical" } else { "logical, of no transaction" };
                self.line(&format!("{kind} {prefix:?} {:?}", content.escape_ascii().to_string()));
            }
        }
        Ok(())
    }

    fn commit(&mut self, commit_ts: i64) {
        let (begun, xid) = self.begun.take().unwrap();
        assert_eq!(begun, commit_ts);
        assert!(xid > 2 && commit_ts > OLDEST_COMMIT);
        match self.lines.strip_suffix("begin\n") {
            None => self.line("commit"),
            Some(before) => {
                self.lines.truncate(before.len());
                self.empty_transactions += 1;
            }
        }
    }

    fn describe(&mut self, relation: Relation) {
        let Relation { id, namespace, name, replica_identity, .. } = &relation;
        let mut line = format!("  relation {namespace}.{name}, identity {replica_identity:?}:");
        for Column { name, type_oid, type_modifier, key } in &relation.columns {
            let of_type = self.types.get(type_oid).cloned().unwrap_or_else(|| type_oid.to_string());
            write!(line, " {}{name} {of_type}/{type_modifier}", if *key { "*" } else { "" }).unwrap();
        }
        if self.described.get(id) != Some(&line) {
            self.described.insert(*id, line.clone());
            self.line(&line);
        }
        self.relations.insert(relation);
    }

    fn old(&self, relation_id: u32, old: &OldTuple<'_>) -> Result<String, DecodeError> {
        Ok(format!("\n     old {:?} {}", old.kind, self.row(relation_id, &old.tuple)?))
    }

    fn row(&self, relation_id: u32, tuple: &Tuple<'_>) -> Result<String, DecodeError> {
        let relation = self.relations.get(relation_id)?;
        let mut row = relation.name.clone();
        for cell in relation.values(tuple)? {
            let (column, value) = cell?;
            write!(row, " {}={}", column.name, told(column, value)?).unwrap();
        }
        Ok(row)
    }

    fn line(&mut self, line: &str) {
        self.lines.push_str(line);
        self.lines.push('\n');
    }
}

/// A value by the reader of its type. Types without one are not told: their two forms differ.
fn told(column: &Column, value: Value<'_>) -> Result<String, DecodeError> {
    match value {
        Value::Null => return Ok("NULL".into()),
        Value::Unchanged => return Ok("UNCHANGED".into()),
        _ => {}
    }
    Ok(match column.type_oid {
        20 => value.int8(column)?.map(|value| value.to_string()),
        21 | 23 => value.int4(column)?.map(|value| value.to_string()),
        1184 => value.timestamptz(column)?.map(time),
        2950 => value.uuid(column)?.map(|uuid| uuid.to_string()),
        114 | 3802 => value.json(column)?.map(long),
        1700 => readable(value.int8(column))?
            .map(|found| found.map_or_else(|found| found, |value| value.to_string())),
        _ => readable(value.text(column))?.map(|found| found.map_or_else(|found| found, long)),
    }
    .unwrap())
}

/// The value, or what there is that its reader does not read.
fn readable<T>(read: Result<Option<T>, DecodeError>) -> Result<Option<Result<T, String>>, DecodeError> {
    match read {
        Err(DecodeError::Value { found, .. }) => Ok(Some(Err(format!("<{found}>")))),
        read => Ok(read?.map(Ok)),
    }
}

fn time(timestamp: Timestamp) -> String {
    match timestamp {
        Timestamp::At(micros) => match jiff::Timestamp::from_microsecond(micros) {
            Ok(time) => time.to_string(),
            Err(_) => format!("{micros}µs"),
        },
        infinite => format!("{infinite:?}"),
    }
}

fn long(text: &str) -> String {
    match text.char_indices().nth(120) {
        None => format!("{text:?}"),
        Some((end, _)) => {
            format!("{:?}… ({} bytes, ends {:?})", &text[..end], text.len(), &text[text.len() - 20..])
        }
    }
}
