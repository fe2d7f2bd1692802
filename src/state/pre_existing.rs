//! Which rows were there before walcast: those that the slot's own snapshot sees.

use tokio_postgres::Client;
use tokio_postgres::types::{FromSql, Type};

use crate::error::{Code, Error, Result};
use crate::lsn::HistoryId;
use crate::source::sql;

/// A row's `xmin`: the transaction that wrote it, in 32 bits.
#[derive(Debug, Clone, Copy)]
pub struct Xid(u32);

impl<'a> FromSql<'a> for Xid {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Xid(u32::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::XID
    }
}

/// The snapshot that was taken when the slot was made.
pub struct PreExisting {
    xmin: u64,
    xmax: u64,
    running: Vec<u64>,
    /// The next transaction of the snapshot that rows are read in: none of them is newer.
    next: u64,
}

/// Transactions below this number are PostgreSQL's own, or frozen by a version before 9.4.
const FIRST_NORMAL: u32 = 3;

impl PreExisting {
    /// Reads what `walcast.slot` recorded; `client` is within the snapshot that rows are read in.
    pub async fn load(client: &Client, history_id: &HistoryId) -> Result<PreExisting> {
        let query = "SELECT snapshot::text, pg_snapshot_xmax(pg_current_snapshot())::text FROM walcast.slot WHERE history_id = $1";
        let row = client.query_one(query, &[&history_id.uuid]).await.map_err(sql::error)?;
        let (snapshot, next): (Option<String>, String) =
            (row.try_get(0).map_err(sql::error)?, row.try_get(1).map_err(sql::error)?);
        PreExisting::parse(snapshot.as_deref().unwrap_or_default(), &next)
            .ok_or_else(|| Error::new(Code::Protocol, "the snapshot in walcast.slot has another shape"))
    }

    /// `10:20:10,14`: all below 10, none from 20 on, of those between not the ones named.
    fn parse(snapshot: &str, next: &str) -> Option<PreExisting> {
        let mut parts = snapshot.split(':');
        let (xmin, xmax, running) = (parts.next()?, parts.next()?, parts.next()?);
        let running = running.split(',').filter(|one| !one.is_empty());
        Some(PreExisting {
            xmin: xmin.parse().ok()?,
            xmax: xmax.parse().ok()?,
            running: running.map(|one| one.parse().ok()).collect::<Option<_>>()?,
            next: next.parse().ok()?,
        })
    }

    /// Whether the slot's snapshot saw what this transaction wrote. A row keeps 32 bits of it: one that is older
    /// than 4 billion transactions may be taken for a newer one.
    pub fn saw(&self, xid: Xid) -> bool {
        if xid.0 < FIRST_NORMAL {
            return true;
        }
        let xid = self.whole(xid.0);
        xid < self.xmin || xid < self.xmax && !self.running.contains(&xid)
    }

    /// The newest transaction below `next` with these 32 bits.
    fn whole(&self, xid: u32) -> u64 {
        let guess = self.next & !u64::from(u32::MAX) | u64::from(xid);
        if guess < self.next { guess } else { guess.saturating_sub(1 << 32) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_had_committed() {
        let pre_existing = PreExisting::parse("10:20:10,14", "30").unwrap();
        let seen: Vec<u32> = (0..25).filter(|xid| pre_existing.saw(Xid(*xid))).collect();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
    }

    #[test]
    fn a_transaction_number_is_the_newest_that_can_be_meant() {
        let epoch = 1u64 << 32;
        let pre_existing =
            PreExisting::parse(&format!("{}:{}:", epoch - 10, epoch + 5), &(epoch + 100).to_string())
                .unwrap();
        assert!(pre_existing.saw(Xid(u32::MAX)), "of the round before");
        assert!(pre_existing.saw(Xid(4)), "of this round");
        assert!(!pre_existing.saw(Xid(5)));
        assert!(pre_existing.saw(Xid(100)), "not there yet in this round");
    }

    #[test]
    fn other_shapes_are_refused() {
        for text in ["", "1:2", "a:2:", "1:2:x"] {
            assert!(PreExisting::parse(text, "9").is_none(), "{text}");
        }
    }
}
