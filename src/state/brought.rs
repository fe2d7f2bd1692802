//! Which rows were brought to which sinks otherwise than by the stream, and so which rows a sink is to have.

use tokio_postgres::Client;

use crate::error::Result;
use crate::lsn::{HistoryId, Lsn};
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

    fn of(mut backfills: Vec<Backfill>) -> BroughtTo {
        // what a sink was brought before it was emptied is gone
        let mut emptied: Vec<String> = Vec::new();
        for backfill in backfills.iter_mut().rev() {
            backfill.sinks.retain(|sink| !emptied.contains(sink));
            if backfill.empties() {
                emptied.extend(backfill.sinks.iter().cloned());
            }
        }
        let mut sinks: Vec<String> = backfills.iter().flat_map(|one| one.sinks.iter().cloned()).collect();
        sinks.sort_unstable();
        sinks.dedup();
        BroughtTo { sinks, backfills }
    }

    /// The sinks that are to have this row, as bits: a row of `before` walcast if a backfill has brought it, any other unless the
    /// sink was filled anew without it.
    pub fn to(&self, id: i64, event_ts: i64, before: bool) -> u8 {
        if !before {
            let left_out = |backfill: &&Backfill| {
                backfill.empties()
                    && id <= backfill.last_id
                    && backfill.between.0.is_some_and(|since| event_ts < since)
            };
            let sinks = self.backfills.iter().filter(left_out).flat_map(|backfill| &backfill.sinks);
            return sinks.fold(u8::MAX, |bits, sink| bits & !self.bit(sink));
        }
        let holds = |backfill: &&Backfill| {
            let (since, until) = backfill.between;
            // one that brings what a sink lacks changes nothing of what that is
            backfill.keeps_below().is_none()
                && backfill.done_id.is_some_and(|done| id <= done)
                && since.is_none_or(|since| event_ts >= since)
                && until.is_none_or(|until| event_ts < until)
        };
        let sinks = self.backfills.iter().filter(holds).flat_map(|backfill| &backfill.sinks);
        sinks.fold(0, |bits, sink| bits | self.bit(sink))
    }

    /// Whether this sink is to have a row of its own place in time; `before`: it was there before walcast.
    pub fn is_due(&self, sink: &str, id: i64, event_ts: i64, before: bool) -> bool {
        self.holds(sink, self.to(id, event_ts, before), before)
    }

    /// The same by the bits that [`BroughtTo::to`] gave: the stream alone brings rows to a sink without a bit.
    pub fn holds(&self, sink: &str, bits: u8, before: bool) -> bool {
        match self.bit(sink) {
            0 => !before,
            bit => bits & bit != 0,
        }
    }

    /// Whether a sink that has a row with this id at this place has it at another one than the others: it was filled anew, or
    /// brought what it lacked.
    pub fn is_anew(&self, sink: &str, id: i64, at: Lsn) -> bool {
        let anew = |backfill: &Backfill| {
            let begins = backfill.rebuild.as_ref().and_then(|rebuild| rebuild.begins);
            let brought = begins.is_none_or(|begins| at >= begins.durable_lsn);
            backfill.began_anew()
                && (backfill.empties() || brought)
                && id <= backfill.last_id
                && backfill.is_for(sink)
        };
        self.backfills.iter().any(anew)
    }

    /// That of these sinks that is being filled anew.
    pub fn unfinished(&self, sinks: &[String]) -> Option<&str> {
        let mut unfinished =
            self.backfills.iter().filter(|one| one.rebuild.is_some() && one.state.is_to_come());
        unfinished.find_map(|one| one.sinks.iter().find(|sink| sinks.contains(sink))).map(String::as_str)
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
    use crate::lsn::Checkpoint;
    use crate::state::backfills::{BackfillState, Rebuild, RebuildStep};

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
            rebuild: None,
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
            let bits = brought.to(id, event_ts, true);
            ["kafka", "bigquery", "http", "redis"].map(|sink| bits & brought.bit(sink) != 0)
        };
        assert_eq!(to(50, 9), [true, false, true, false]);
        assert_eq!(to(50, 10), [true, true, true, false]);
        assert_eq!(to(51, 19), [false, true, false, false]);
        assert_eq!(to(51, 20), [false; 4]);
        assert_eq!(brought.to(7, 0, false), u8::MAX);
    }

    #[test]
    fn what_a_sink_lacks_does_not_change_by_being_brought() {
        let rebuild = Some(Rebuild {
            step: RebuildStep::Emptied,
            begins: Some(Checkpoint::at(Lsn(500))),
            begins_xid: 0,
            keeps_below: Some(Lsn(u64::MAX)),
        });
        let lacking = Backfill { rebuild, ..backfill(&["kafka"], Some(90), (Some(10), None)) };
        let before = backfill(&["kafka"], Some(50), (None, None));
        let brought = BroughtTo::of(vec![before.clone(), lacking]);
        let due = |brought: &BroughtTo, id, before| brought.is_due("kafka", id, 9, before);
        for (id, before_walcast) in [(50, true), (51, true), (90, false), (101, false)] {
            let of_before = BroughtTo::of(vec![before.clone()]);
            assert_eq!(due(&brought, id, before_walcast), due(&of_before, id, before_walcast), "{id}");
        }
        assert!(due(&brought, 50, true) && !due(&brought, 51, true));
        let anew = [499, 500].map(|at| brought.is_anew("kafka", 90, Lsn(at)));
        assert_eq!(anew, [false, true], "only what was brought is at another place than in other sinks");
    }

    #[test]
    fn a_sink_that_was_emptied_has_what_came_since() {
        let rebuild =
            Some(Rebuild { step: RebuildStep::Emptied, begins: None, begins_xid: 0, keeps_below: None });
        let anew = Backfill { rebuild, ..backfill(&["kafka"], Some(40), (Some(10), None)) };
        let brought = BroughtTo::of(vec![backfill(&["kafka", "http"], Some(50), (None, None)), anew]);
        let due = |sink, id, event_ts, before| brought.to(id, event_ts, before) & brought.bit(sink) != 0;
        assert!(due("http", 50, 9, true) && !due("kafka", 50, 9, true), "of before");
        assert!(due("kafka", 40, 10, true) && !due("kafka", 41, 10, true));
        assert!(due("kafka", 100, 10, false) && !due("kafka", 100, 9, false), "left out");
        assert!(due("kafka", 101, 9, false), "the stream brought it");
        assert!(due("http", 100, 9, false));
        assert!(
            brought.is_anew("kafka", 100, Lsn(1))
                && !brought.is_anew("kafka", 101, Lsn(1))
                && !brought.is_anew("http", 1, Lsn(1))
        );
    }
}
