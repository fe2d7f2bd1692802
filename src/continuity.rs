//! A sink's checkpoint is a claim about the stream: it has this row, and below `durable_lsn` no later one. Where the stream is
//! read again, the claim is held against it before anything is skipped.
//!
//! A server that was put back to an older state of its disk writes other WAL at the same places. Once that is longer
//! than what the sinks hold, no LSN tells: rows of today would be taken for those that a sink has had.

use crate::batch::{Batch, Row};
use crate::error::{Code, Error, Result};
use crate::lsn::{Checkpoint, Lsn, Position};
use crate::resume::SinkName;

/// The claims that the stream has not passed yet.
#[derive(Default)]
pub struct ContinuityCheck(Vec<Claim>);

struct Claim {
    sink: SinkName,
    last: Position,
    /// There is no row between `last` and here.
    durable_lsn: Lsn,
    /// Whether the stream has come by `last`.
    met: bool,
    /// Whether nothing that is still to come can break it.
    passed: bool,
}

impl ContinuityCheck {
    /// The claims of sinks that hold so much, for a stream from `from` on. A checkpoint without a row claims nothing.
    pub fn new(from: Lsn, durable: impl IntoIterator<Item = (SinkName, Checkpoint)>) -> Self {
        let claim = |(sink, checkpoint): (SinkName, Checkpoint)| {
            let last = checkpoint.position?;
            Some(Claim { met: last.commit_lsn < from, ..Claim::new(sink, last, checkpoint.durable_lsn) })
        };
        ContinuityCheck(durable.into_iter().filter_map(claim).collect())
    }

    /// One claim more: that the stream, from here on, comes by `last`, which the sink has.
    pub fn claim(&mut self, sink: SinkName, last: Position) {
        if self.0.iter().all(|claim| claim.last != last) {
            self.0.push(Claim::new(sink, last, Lsn::ZERO));
        }
    }

    /// Whether the stream has passed all claims.
    pub fn is_settled(&self) -> bool {
        self.0.is_empty()
    }

    /// Holds the next batch of the stream against the claims: kind `Resync` when it is not the stream that a sink
    /// was fed from. The batch must not go to any sink then, or it might be confirmed, and the proof be gone.
    pub fn follow(&mut self, batch: &Batch) -> Result<()> {
        for claim in &mut self.0 {
            claim.follow(batch)?;
        }
        self.0.retain(|claim| !claim.passed);
        Ok(())
    }
}

impl Claim {
    fn new(sink: SinkName, last: Position, durable_lsn: Lsn) -> Claim {
        Claim { sink, last, durable_lsn, met: false, passed: false }
    }

    fn follow(&mut self, batch: &Batch) -> Result<()> {
        let beyond = batch.rows().partition_point(|row| row.position() <= self.last);
        let (before, after) = batch.rows().split_at(beyond);
        self.met |= before.last().is_some_and(|row| row.position() == self.last);
        let next = after.first().map(Row::position);
        if !self.met && (next.is_some() || batch.checkpoint().durable_lsn > self.last.commit_lsn) {
            return Err(self.broken("has none there"));
        }
        if let Some(another) = next.filter(|next| next.commit_lsn < self.durable_lsn) {
            return Err(self.broken(&format!("has another before {}, at {another}", self.durable_lsn)));
        }
        self.passed = next.is_some() || self.met && batch.checkpoint().durable_lsn >= self.durable_lsn;
        Ok(())
    }

    fn broken(&self, how: &str) -> Error {
        let Claim { sink, durable_lsn, last, .. } = self;
        let upto = if *durable_lsn > Lsn::ZERO {
            format!(" and everything up to {durable_lsn}")
        } else {
            String::new()
        };
        let message = format!(
            "{sink} holds a last row at {last}{upto}, and the server's WAL {how}: this server was restored from an \
             older state, and {sink} has events that it has lost"
        );
        Error::new(Code::SinkAheadOfServer, message)
            .hint("`walcast resync --new-slot` fills the sinks anew from this server")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::batch::{BatchBuilder, ContentChange};

    const START: Lsn = Lsn(1000);
    const END: Lsn = Lsn(1_000_000);

    #[derive(Debug, Clone)]
    struct Commit {
        lsn: Lsn,
        end: Lsn,
        rows: u64,
        /// Whether the server is idle until the next commit, and says so.
        idle_after: bool,
    }

    impl Commit {
        fn positions(&self) -> impl Iterator<Item = Position> {
            let commit_lsn = self.lsn;
            (0..self.rows).map(move |ordinal| Position { commit_lsn, ordinal })
        }
    }

    /// Commits from `start` on, none of which lies where one of a history with another `parity` does.
    fn commits(start: Lsn, parity: u64) -> impl Strategy<Value = Vec<Commit>> {
        let commit = (0..30_u64, 1..20_u64, 0..5_u64, any::<bool>());
        prop::collection::vec(commit, 1..12).prop_map(move |drawn| {
            let mut at = start.0.next_multiple_of(2);
            let commit = |(gap, length, rows, idle_after)| {
                let lsn = at + 2 * gap + parity;
                let end = lsn + 2 * length - parity;
                at = end;
                Commit { lsn: Lsn(lsn), end: Lsn(end), rows, idle_after }
            };
            drawn.into_iter().map(commit).collect()
        })
    }

    /// What walcast makes of a stream from `from` on, cut into batches where `cuts` says.
    fn batches(commits: &[Commit], from: Lsn, cuts: &[bool]) -> Vec<Batch> {
        let (mut builder, mut batches) = (BatchBuilder::new(Checkpoint::at(from)), Vec::new());
        let mut cuts = cuts.iter().cycle();
        let mut cut = |builder: &mut BatchBuilder| {
            if cuts.next() == Some(&true) {
                batches.push(builder.finish(false));
            }
        };
        for (index, commit) in commits.iter().enumerate().filter(|(_, commit)| commit.lsn >= from) {
            for position in commit.positions() {
                let (id, after) = (Uuid::nil(), None);
                builder.push(Row::Content(ContentChange { position, commit_ts: 0, id, after }));
                cut(&mut builder);
            }
            let next = commits.get(index + 1).map_or(END, |next| next.lsn);
            builder.hold(if commit.idle_after { next } else { commit.end });
            cut(&mut builder);
        }
        builder.hold(END);
        batches.push(builder.finish(false));
        batches
    }

    fn follow(continuity: &mut ContinuityCheck, batches: &[Batch]) -> Result<()> {
        batches.iter().try_for_each(|batch| continuity.follow(batch))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn another_stream_is_noticed_just_when_it_would_do_harm(
            (old, kept, other) in commits(START, 0)
                .prop_flat_map(|old| (0..=old.len(), Just(old)))
                .prop_flat_map(|(kept, old)| {
                    let other = commits(old[..kept].last().map_or(START, |last| last.end), 1);
                    (Just(old), Just(kept), other)
                }),
            cuts in prop::collection::vec(any::<bool>(), 1..20),
            other_cuts in prop::collection::vec(any::<bool>(), 1..20),
            durable_lsn in any::<prop::sample::Index>(),
            begin in any::<prop::sample::Index>(),
        ) {
            let fed = batches(&old, START, &cuts);
            let fed = &fed[..=durable_lsn.index(fed.len())];
            let checkpoint = fed.iter().fold(Checkpoint::at(START), |checkpoint, batch| checkpoint.advanced(batch.checkpoint()));
            // read again, and restored: from a commit that both histories have
            let from = old[..begin.index(kept + 1)].last().map_or(START, |last| last.end).min(checkpoint.durable_lsn);
            let mut same = ContinuityCheck::new(from, [(SinkName::new("kafka"), checkpoint)]);
            prop_assert!(follow(&mut same, &batches(&old, from, &other_cuts)).is_ok());
            prop_assert!(same.0.is_empty(), "a claim is never settled");

            let restored: Vec<Commit> = old[..kept].iter().chain(&other).cloned().collect();
            let lost = old[kept..].iter().flat_map(Commit::positions).any(|row| checkpoint.holds(row));
            let skipped = other.iter().flat_map(Commit::positions).any(|row| checkpoint.holds(row));
            let mut another = ContinuityCheck::new(from, [(SinkName::new("kafka"), checkpoint)]);
            let noticed = follow(&mut another, &batches(&restored, from, &other_cuts));
            prop_assert_eq!(noticed.is_err(), checkpoint.position.is_some() && (lost || skipped));
        }
    }

    #[test]
    fn a_stream_that_was_refused_is_refused_again() {
        let commit = |lsn: u64| Commit { lsn: Lsn(lsn), end: Lsn(lsn + 10), rows: 2, idle_after: false };
        let fed = batches(&[commit(1000), commit(1020)], START, &[false]);
        let checkpoint = Checkpoint { durable_lsn: Lsn(1030), ..fed[0].checkpoint() };
        let other = batches(&[commit(1000), commit(1022), commit(1040)], START, &[true]);
        let mut continuity =
            ContinuityCheck::new(START, ["redis", "kafka"].map(|sink| (SinkName::new(sink), checkpoint)));
        assert!(follow(&mut continuity, &other[..3]).is_ok());
        for batch in other[3..].iter().chain(&other[3..]) {
            let error = continuity.follow(batch).unwrap_err();
            let words = "redis holds a last row at 0/3FC#1 and everything up to 0/406, and the server's WAL has none there";
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
