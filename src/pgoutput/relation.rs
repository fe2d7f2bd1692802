//! What the columns of a row are: [`Relation`], and the session's [`Relations`].

use super::cursor::Cursor;
use super::value::oid;
use super::{DecodeError, Tuple, Value};

/// A table, as the stream describes it before its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// The table's OID.
    pub id: u32,
    /// Its schema. Empty is `pg_catalog`.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How much of a row updates and deletes tell.
    pub replica_identity: ReplicaIdentity,
    /// The published columns in the order of the values of a row.
    pub columns: Vec<Column>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The OID of its type. [`Relations`] puts a domain's base type in the domain's place.
    pub type_oid: u32,
    /// `atttypmod`: the length of varchar and the like, -1 for none.
    pub type_modifier: i32,
    /// Whether it belongs to the replica identity.
    pub key: bool,
}

/// What identifies a row in updates and deletes (REPLICA IDENTITY).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Nothing: the table takes no updates and deletes while it is published.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of an index.
    Index,
}

impl Relation {
    /// A row's values with their columns. An error when it has more or fewer than this relation.
    #[inline]
    pub fn values<'r, 'a>(
        &'r self,
        tuple: &Tuple<'a>,
    ) -> Result<impl Iterator<Item = Result<(&'r Column, Value<'a>), DecodeError>> + use<'r, 'a>, DecodeError>
    {
        if tuple.len() != self.columns.len() {
            return Err(self.column_count(tuple.len()));
        }
        Ok(self.columns.iter().zip(tuple.columns()).map(|(column, value)| Ok((column, value?))))
    }

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let id = cursor.u32("OID")?;
        let namespace = cursor.text("schema")?.to_owned();
        let name = cursor.text("name")?.to_owned();
        let replica_identity = ReplicaIdentity::read(cursor)?;
        let count = cursor.u16("column count")?;
        let columns = (0..count).map(|_| Column::read(cursor)).collect::<Result<_, _>>()?;
        Ok(Relation { id, namespace, name, replica_identity, columns })
    }

    #[cold]
    fn column_count(&self, found: usize) -> DecodeError {
        DecodeError::ColumnCount {
            relation: format!("{}.{}", self.namespace, self.name),
            wanted: self.columns.len(),
            found,
        }
    }
}

impl Column {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Ok(Column {
            key: cursor.u8("column flags")? & 1 != 0,
            name: cursor.text("column name")?.to_owned(),
            type_oid: cursor.u32("column type")?,
            type_modifier: cursor.i32("column type modifier")?,
        })
    }
}

impl ReplicaIdentity {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        match cursor.u8("replica identity")? {
            b'd' => Ok(ReplicaIdentity::Default),
            b'n' => Ok(ReplicaIdentity::Nothing),
            b'f' => Ok(ReplicaIdentity::Full),
            b'i' => Ok(ReplicaIdentity::Index),
            other => Err(cursor.wrong_byte("replica identity", other)),
        }
    }
}

/// The tables of one replication session: the newest description of each. Starts empty with each session,
/// as the server describes every table again.
#[derive(Debug, Default)]
pub struct Relations {
    /// Sorted by id: a handful of tables, looked up for every row.
    by_id: Vec<Relation>,
    /// Domain OID → the OID of its base type, 0 for one without a reader.
    domains: Vec<(u32, u32)>,
}

impl Relations {
    /// The relation that a row change names.
    #[inline]
    pub fn get(&self, relation_id: u32) -> Result<&Relation, DecodeError> {
        let found = self.find(relation_id).ok().and_then(|index| self.by_id.get(index));
        found.ok_or(DecodeError::UnknownRelation { relation_id })
    }

    /// Takes a Relation message, in place of the one before it.
    pub fn insert(&mut self, mut relation: Relation) {
        for column in &mut relation.columns {
            if let Some((_, base)) = self.domains.iter().find(|(id, _)| *id == column.type_oid) {
                column.type_oid = *base;
            }
        }
        match self.find(relation.id) {
            Ok(index) => self.by_id.splice(index..=index, [relation]).for_each(drop),
            Err(index) => self.by_id.insert(index, relation),
        }
    }

    /// Takes a Type message. A type in `pg_catalog` is the base type of a domain: columns of the domain are
    /// sent, and so are to be read, as that type.
    pub fn insert_type(&mut self, id: u32, namespace: &str, name: &str) {
        self.domains.retain(|(domain, _)| *domain != id);
        if namespace.is_empty() {
            self.domains.push((id, oid::by_name(name).unwrap_or(0)));
        }
    }

    fn find(&self, relation_id: u32) -> Result<usize, usize> {
        self.by_id.binary_search_by_key(&relation_id, |relation| relation.id)
    }
}
