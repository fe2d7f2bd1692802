//! Which rows of before walcast were brought to which sinks.

use tokio_postgres::Client;

use crate::error::Result;
use crate::lsn::HistoryId;
use crate::state::backfills::{self, Backfill};

/// What backfills have sent: such a row is due in the sinks that it was sent to.
#[derive(Debug, Clone, Default)]
pub struct BroughtTo {
    sinks: Vec<String>,
    backfills: Vec<Backfill>,
}

impl BroughtTo {
    /// As of the snapshot that `client` is in: what a later one has sent the sinks need not have yet.
    pub async fn load(client: &Client, history_id: &HistoryId) -> Result<BroughtTo> {
        Ok(BroughtTo::of(backfills::list(client, history_id).await?))
    }

    fn of(backfills: Vec<Backfill>) -> BroughtTo {
        let mut sinks: Vec<String> = backfills.iter().flat_map(|one| one.sinks.iter().cloned()).collect();
        sinks.sort_unstable();
        sinks.dedup();
        BroughtTo { sinks, backfills }
    }

    /// The sinks that have this row by a backfill, as bits.
    pub fn to(&self, id: i64, event_ts: i64) -> u8 {
        let holds = |backfill: &&Backfill| {
            let (since, until) = backfill.between;
            backfill.done_id.is_some_and(|done| id <= done)
                && since.is_none_or(|since| event_ts >= since)
                && until.is_none_or(|until| event_ts < until)
        };
        let sinks = self.backfills.iter().filter(holds).flat_map(|backfill| &backfill.sinks);
        sinks.fold(0, |bits, sink| bits | self.bit(sink))
    }

    /// A sink's bit; 0 for one that was brought nothing.
    pub fn bit(&self, sink: &str) -> u8 {
        let at = self.sinks.iter().position(|one| one == sink);
        at.and_then(|at| 1u8.checked_shl(at as u32)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::state::backfills::BackfillState;

    fn backfill(sinks: &[&str], done_id: Option<i64>, between: (Option<i64>, Option<i64>)) -> Backfill {
        Backfill {
            id: Uuid::nil(),
            sinks: sinks.iter().map(|sink| (*sink).to_owned()).collect(),
            since: None,
            until: None,
            between,
            rows_per_second: None,
            last_id: 100,
            done_id,
            rows: 0,
            estimated_rows: 0,
            state: BackfillState::Cancelled,
        }
    }

    #[test]
    fn a_row_is_due_where_it_was_sent() {
        let brought = BroughtTo::of(vec![
            backfill(&["kafka", "http"], Some(50), (None, None)),
            backfill(&["bigquery"], Some(100), (Some(10), Some(20))),
            backfill(&["kafka"], None, (None, None)),
        ]);
        let to = |id, event_ts| {
            let bits = brought.to(id, event_ts);
            ["kafka", "bigquery", "http", "redis"].map(|sink| bits & brought.bit(sink) != 0)
        };
        assert_eq!(to(50, 9), [true, false, true, false]);
        assert_eq!(to(50, 10), [true, true, true, false]);
        assert_eq!(to(51, 19), [false, true, false, false]);
        assert_eq!(to(51, 20), [false; 4]);
    }
}
