//! What is known of events by their ids alone: which rows were there before walcast, and which the source has changed
//! or deleted since they went out.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::{BufMut, BytesMut};
use futures_util::TryStreamExt;
use tokio_postgres::types::{FromSql, IsNull, PgLsn, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Transaction};

use crate::error::{Code, Error, Result};
use crate::event::{EventChange, Fate};
use crate::lsn::{HistoryId, Lsn};
use crate::source::sql;

const IDS_PER_BLOCK: i64 = 1024;
const BYTES: usize = IDS_PER_BLOCK as usize / 8;

/// A set of ids, a bit an id.
#[derive(Debug, Clone, Default)]
pub struct IdSet(BTreeMap<i64, Block>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block([u8; BYTES]);

impl IdSet {
    /// Puts an id in.
    pub fn insert(&mut self, id: i64) {
        let (block, byte, bit) = place(id);
        let Block(bytes) = self.0.entry(block).or_insert(Block([0; BYTES]));
        if let Some(byte) = bytes.get_mut(byte) {
            *byte |= bit;
        }
    }

    /// Whether an id is in.
    pub fn contains(&self, id: i64) -> bool {
        let (block, byte, bit) = place(id);
        self.0.get(&block).and_then(|Block(bytes)| bytes.get(byte)).is_some_and(|byte| byte & bit != 0)
    }

    /// Those within a range, in order.
    pub fn within(&self, range: RangeInclusive<i64>) -> impl Iterator<Item = i64> {
        let blocks =
            (!range.is_empty()).then(|| self.0.range(place(*range.start()).0..=place(*range.end()).0));
        let ids = blocks.into_iter().flatten().flat_map(|(block, Block(bytes))| {
            let is_in = |within: &i64| {
                let (byte, bit) = (*within as usize / 8, 0x80 >> (within % 8));
                bytes.get(byte).is_some_and(|byte| byte & bit != 0)
            };
            (0..IDS_PER_BLOCK).filter(is_in).map(move |within| block * IDS_PER_BLOCK + within)
        });
        ids.filter(move |id| range.contains(id))
    }

    /// How many ids are in.
    pub fn len(&self) -> u64 {
        self.0.values().flat_map(|Block(bytes)| bytes).map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// Whether none is in.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// About the size of the statement that stores it.
    pub fn blocks(&self) -> usize {
        self.0.len()
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Its block, and within that its byte and bit: PostgreSQL counts bits from the left.
fn place(id: i64) -> (i64, usize, u8) {
    let within = id.rem_euclid(IDS_PER_BLOCK) as usize;
    (id.div_euclid(IDS_PER_BLOCK), within / 8, 0x80 >> (within % 8))
}

impl ToSql for Block {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_i32(IDS_PER_BLOCK as i32);
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::VARBIT
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Block {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Block(raw.get(4..).unwrap_or_default().try_into()?))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::VARBIT
    }
}

/// What is known of a history's events.
#[derive(Debug, Clone, Default)]
pub struct EventMarks {
    /// No row that was there before walcast has a higher id; `None` where that was not kept.
    pub last_id_before: Option<i64>,
    /// Rows that came after all, with an id that is no higher.
    pub late: IdSet,
    /// Rows that were updated or deleted.
    pub touched: IdSet,
    /// Rows that have their id by an update.
    pub renamed: IdSet,
    /// Rows that came since a sink was to be filled anew, while that goes on.
    pub since: IdSet,
    /// Whether such rows are noted.
    pub marks_since: bool,
    /// The last TRUNCATE of the table.
    pub emptied_at: Option<Lsn>,
}

impl EventMarks {
    /// Of a history, without the sets.
    pub async fn begin(client: &Client, history_id: &HistoryId) -> Result<EventMarks> {
        let query = "SELECT last_id_before, emptied_at FROM walcast.slot WHERE history_id = $1";
        let row = client.query_opt(query, &[&history_id.uuid]).await.map_err(sql::error)?;
        let Some(row) = row else { return Ok(EventMarks::default()) };
        let emptied_at = sql::get::<Option<PgLsn>>(&row, 1)?.map(|lsn| Lsn(lsn.into()));
        Ok(EventMarks { last_id_before: sql::get(&row, 0)?, emptied_at, ..EventMarks::default() })
    }

    /// Of a history, all that is stored.
    pub async fn load(client: &Client, history_id: &HistoryId) -> Result<EventMarks> {
        let mut marks = EventMarks::begin(client, history_id).await?;
        let query = "SELECT kind, block, ids FROM walcast.event_mark WHERE history_id = $1";
        let rows = client.query_raw(query, [history_id.uuid]).await.map_err(sql::error)?;
        let mut rows = std::pin::pin!(rows);
        while let Some(row) = rows.try_next().await.map_err(sql::error)? {
            let set = match sql::get(&row, 0)? {
                "late" => &mut marks.late,
                "touched" => &mut marks.touched,
                "since" => &mut marks.since,
                _ => &mut marks.renamed,
            };
            set.0.insert(sql::get(&row, 1)?, sql::get(&row, 2)?);
        }
        Ok(marks)
    }

    /// An event was inserted.
    pub fn inserted(&mut self, id: i64) {
        if self.last_id_before.is_some_and(|last| id <= last) {
            self.late.insert(id);
        }
        if self.marks_since {
            self.since.insert(id);
        }
    }

    /// An event was changed or deleted.
    pub fn changed(&mut self, change: &EventChange) {
        match change.fate {
            Fate::Touched(id) => self.touched.insert(id),
            Fate::Renamed(id) => self.renamed.insert(id),
            Fate::Emptied => self.emptied_at = Some(change.position.commit_lsn),
        }
    }

    /// No row that was there before walcast has a higher id than this. An error where that was not kept.
    pub fn end_of_before(&self) -> Result<i64> {
        self.last_id_before.ok_or_else(|| {
            let message = "the slot was made by a version that did not note which rows were there before";
            Error::new(Code::BackfillUnfit, message).hint("make a new slot: docs/operate/resync.md")
        })
    }

    /// Whether a row with this id was there before walcast; `None` where ids cannot tell.
    pub fn was_before(&self, id: i64) -> Option<bool> {
        self.last_id_before.map(|last| id <= last && !self.late.contains(id))
    }

    /// No row that came since a rebuild began is stored any more.
    pub async fn forget_since(transaction: &Transaction<'_>, history_id: &HistoryId) -> Result<()> {
        let delete = "DELETE FROM walcast.event_mark WHERE history_id = $1 AND kind = 'since'";
        transaction.execute(delete, &[&history_id.uuid]).await.map_err(sql::error)?;
        Ok(())
    }

    /// Blocks that wait to be stored.
    pub fn blocks(&self) -> usize {
        self.late.blocks() + self.touched.blocks() + self.renamed.blocks() + self.since.blocks()
    }

    /// What has been stored is no longer to be stored.
    pub fn stored(&mut self) {
        self.late.clear();
        self.touched.clear();
        self.renamed.clear();
        self.since.clear();
        self.emptied_at = None;
    }

    /// Adds all to what is stored.
    pub async fn store(&self, transaction: &Transaction<'_>, history_id: &HistoryId) -> Result<()> {
        if let Some(emptied_at) = self.emptied_at {
            let emptied_at = PgLsn::from(emptied_at.0);
            let update =
                "UPDATE walcast.slot SET emptied_at = greatest(emptied_at, $2) WHERE history_id = $1";
            transaction.execute(update, &[&history_id.uuid, &emptied_at]).await.map_err(sql::error)?;
        }
        let of = |kind: &'static str, set: &IdSet| {
            set.0.iter().map(move |(block, ids)| (kind, *block, *ids)).collect::<Vec<_>>()
        };
        let sets = [
            ("late", &self.late),
            ("touched", &self.touched),
            ("renamed", &self.renamed),
            ("since", &self.since),
        ];
        let mut all = sets.map(|(kind, set)| of(kind, set)).concat();
        if all.is_empty() {
            return Ok(());
        }
        all.sort_unstable_by_key(|(kind, block, _)| (*kind, *block));
        let kinds: Vec<&str> = all.iter().map(|(kind, ..)| *kind).collect();
        let blocks: Vec<i64> = all.iter().map(|(_, block, _)| *block).collect();
        let ids: Vec<Block> = all.iter().map(|(.., ids)| *ids).collect();
        let statement = include_str!("../../sql/insert_event_marks.sql");
        transaction
            .execute(statement, &[&history_id.uuid, &kinds, &blocks, &ids])
            .await
            .map_err(sql::error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_has_what_was_put_in(ids in proptest::collection::hash_set(prop_oneof![any::<i64>(), -3000..3000_i64], 0..50), others in proptest::collection::vec(-3000..3000_i64, 50)) {
            let mut set = IdSet::default();
            ids.iter().for_each(|id| set.insert(*id));
            prop_assert_eq!(set.len(), ids.len() as u64);
            for id in ids.iter().chain(&others).chain(&[i64::MIN, i64::MAX]) {
                prop_assert_eq!(set.contains(*id), ids.contains(id));
            }
            for pair in others.windows(2) {
                let range = pair[0]..=pair[1];
                let within: Vec<i64> = set.within(range.clone()).collect();
                let mut expected: Vec<i64> = ids.iter().copied().filter(|id| range.contains(id)).collect();
                expected.sort_unstable();
                prop_assert_eq!(within, expected);
            }
            prop_assert_eq!(set.within(i64::MIN..=i64::MAX).count(), ids.len());
        }
    }

    #[test]
    fn a_row_with_a_low_id_was_there_unless_it_came_late() {
        let mut marks = EventMarks { last_id_before: Some(500), ..EventMarks::default() };
        [7, 500, 501].into_iter().for_each(|id| marks.inserted(id));
        let before = [6, 7, 499, 500, 501].map(|id| marks.was_before(id));
        assert_eq!(before, [Some(true), Some(false), Some(true), Some(false), Some(false)]);
        assert_eq!((marks.late.len(), EventMarks::default().was_before(1)), (2, None));
    }
}
