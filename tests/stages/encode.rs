//! The other end of the wire: protocol 1 messages as owned data, and how a server writes them.

use walcast::lsn::Lsn;
use walcast::pgoutput::{
    Column, DecodeError, Message, OldKind, OldTuple, Relation, ReplicaIdentity, Tuple, Value,
};

/// A message with everything in it owned.
#[derive(Debug, Clone, PartialEq)]
pub enum Sent {
    Begin { final_lsn: Lsn, commit_ts: i64, xid: u32 },
    Commit { commit_lsn: Lsn, end_lsn: Lsn, commit_ts: i64 },
    Origin { commit_lsn: Lsn, name: String },
    Relation(Relation),
    Type { id: u32, namespace: String, name: String },
    Insert { relation_id: u32, new: Vec<Cell> },
    Update { relation_id: u32, old: Option<(OldKind, Vec<Cell>)>, new: Vec<Cell> },
    Delete { relation_id: u32, old: (OldKind, Vec<Cell>) },
    Truncate { options: u8, relations: Vec<u32> },
    Logical { transactional: bool, lsn: Lsn, prefix: String, content: Vec<u8> },
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl Sent {
    /// The payload that a server sends for this message.
    pub fn encode(&self) -> Vec<u8> {
        let mut wire = Wire(Vec::new());
        match self {
            Sent::Begin { final_lsn, commit_ts, xid } => {
                wire.u8(b'B').u64(final_lsn.0).i64(*commit_ts).u32(*xid);
            }
            Sent::Commit { commit_lsn, end_lsn, commit_ts } => {
                wire.u8(b'C').u8(0).u64(commit_lsn.0).u64(end_lsn.0).i64(*commit_ts);
            }
            Sent::Origin { commit_lsn, name } => {
                wire.u8(b'O').u64(commit_lsn.0).text(name);
            }
            Sent::Relation(relation) => wire.relation(relation),
            Sent::Type { id, namespace, name } => {
                wire.u8(b'Y').u32(*id).text(namespace).text(name);
            }
            Sent::Insert { relation_id, new } => {
                wire.u8(b'I').u32(*relation_id).u8(b'N').row(new);
            }
            Sent::Update { relation_id, old, new } => {
                wire.u8(b'U').u32(*relation_id);
                if let Some((kind, row)) = old {
                    wire.u8(old_kind(*kind)).row(row);
                }
                wire.u8(b'N').row(new);
            }
            Sent::Delete { relation_id, old: (kind, row) } => {
                wire.u8(b'D').u32(*relation_id).u8(old_kind(*kind)).row(row);
            }
            Sent::Truncate { options, relations } => {
                wire.u8(b'T').u32(relations.len() as u32).u8(*options);
                for id in relations {
                    wire.u32(*id);
                }
            }
            Sent::Logical { transactional, lsn, prefix, content } => {
                wire.u8(b'M').u8(u8::from(*transactional)).u64(lsn.0).text(prefix).counted(content);
            }
        }
        wire.0
    }

    /// What the decoder has read, owned.
    pub fn read(message: &Message<'_>) -> Result<Sent, DecodeError> {
        let old = |old: &OldTuple<'_>| Ok((old.kind, cells(&old.tuple)?));
        Ok(match message {
            Message::Begin { final_lsn, commit_ts, xid } => {
                Sent::Begin { final_lsn: *final_lsn, commit_ts: *commit_ts, xid: *xid }
            }
            Message::Commit { commit_lsn, end_lsn, commit_ts } => {
                Sent::Commit { commit_lsn: *commit_lsn, end_lsn: *end_lsn, commit_ts: *commit_ts }
            }
            Message::Origin { commit_lsn, name } => {
                Sent::Origin { commit_lsn: *commit_lsn, name: (*name).into() }
            }
            Message::Relation(relation) => Sent::Relation(relation.clone()),
            Message::Type { id, namespace, name } => {
                Sent::Type { id: *id, namespace: (*namespace).into(), name: (*name).into() }
            }
            Message::Insert { relation_id, new } => {
                Sent::Insert { relation_id: *relation_id, new: cells(new)? }
            }
            Message::Update { relation_id, old: before, new } => Sent::Update {
                relation_id: *relation_id,
                old: before.as_ref().map(old).transpose()?,
                new: cells(new)?,
            },
            Message::Delete { relation_id, old: before } => {
                Sent::Delete { relation_id: *relation_id, old: old(before)? }
            }
            Message::Truncate { options, relations } => {
                Sent::Truncate { options: options.0, relations: relations.iter().collect() }
            }
            Message::Logical { transactional, lsn, prefix, content } => Sent::Logical {
                transactional: *transactional,
                lsn: *lsn,
                prefix: (*prefix).into(),
                content: content.to_vec(),
            },
        })
    }
}

fn cells(tuple: &Tuple<'_>) -> Result<Vec<Cell>, DecodeError> {
    let cell = |value| match value {
        Value::Null => Cell::Null,
        Value::Unchanged => Cell::Unchanged,
        Value::Text(bytes) => Cell::Text(bytes.to_vec()),
        Value::Binary(bytes) => Cell::Binary(bytes.to_vec()),
    };
    tuple.columns().map(|value| value.map(cell)).collect()
}

fn old_kind(kind: OldKind) -> u8 {
    match kind {
        OldKind::Key => b'K',
        OldKind::Full => b'O',
    }
}

struct Wire(Vec<u8>);

impl Wire {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn i64(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes()).u8(0)
    }

    fn counted(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(bytes.len() as u32).bytes(bytes)
    }

    fn row(&mut self, row: &[Cell]) {
        self.u16(row.len() as u16);
        for cell in row {
            match cell {
                Cell::Null => self.u8(b'n'),
                Cell::Unchanged => self.u8(b'u'),
                Cell::Text(bytes) => self.u8(b't').counted(bytes),
                Cell::Binary(bytes) => self.u8(b'b').counted(bytes),
            };
        }
    }

    fn relation(&mut self, relation: &Relation) {
        let identity = match relation.replica_identity {
            ReplicaIdentity::Default => b'd',
            ReplicaIdentity::Nothing => b'n',
            ReplicaIdentity::Full => b'f',
            ReplicaIdentity::Index => b'i',
        };
        self.u8(b'R').u32(relation.id).text(&relation.namespace).text(&relation.name).u8(identity);
        self.u16(relation.columns.len() as u16);
        for column in &relation.columns {
            self.u8(u8::from(column.key)).text(&column.name).u32(column.type_oid);
            self.bytes(&column.type_modifier.to_be_bytes());
        }
    }
}

/// The columns of `content`, each with its type's OID.
pub const CONTENT_COLUMNS: [(&str, u32); 6] = [
    ("id", 2950),
    ("slug", 25),
    ("title", 25),
    ("content_type", 25),
    ("length_seconds", 23),
    ("publish_ts", 1184),
];

/// The columns of `engagement_events`.
pub const EVENT_COLUMNS: [(&str, u32); 8] = [
    ("id", 20),
    ("content_id", 2950),
    ("user_id", 2950),
    ("event_type", 25),
    ("event_ts", 1184),
    ("duration_ms", 23),
    ("device", 25),
    ("raw_payload", 3802),
];

/// A table of the schema `public` whose key is `id`.
pub fn relation(id: u32, name: &str, columns: &[(&str, u32)]) -> Relation {
    let column = |(name, type_oid): &(&str, u32)| Column {
        name: (*name).into(),
        type_oid: *type_oid,
        type_modifier: -1,
        key: *name == "id",
    };
    Relation {
        id,
        namespace: "public".into(),
        name: name.into(),
        replica_identity: ReplicaIdentity::Default,
        columns: columns.iter().map(column).collect(),
    }
}
