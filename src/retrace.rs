//! A sink's mark is a claim about the stream: it has this row, and below `held` no later one. Where the stream is
//! read again, the claim is held against it before anything is skipped.
//!
//! A server that was put back to an older state of its disk writes other WAL at the same places. Once that is longer
//! than what the sinks hold, no LSN tells: rows of today would be taken for those that a sink has had.

use crate::batch::{Batch, Row};
use crate::error::{Error, Kind, Result};
use crate::lsn::{Lsn, Mark, Position, fresh_start};

/// The claims that the stream has not passed yet.
pub struct Retrace(Vec<Claim>);

struct Claim {
    sink: &'static str,
    mark: Mark,
    last: Position,
    /// Whether the stream has come by `last`.
    met: bool,
}

impl Retrace {
    /// The claims of sinks that hold so much, for a stream from `from` on. A mark without a row claims nothing.
    pub fn new(from: Lsn, held: impl IntoIterator<Item = (&'static str, Mark)>) -> Self {
        let claim = |(sink, mark): (&'static str, Mark)| {
            let last = mark.position?;
            Some(Claim { sink, mark, last, met: last.commit_lsn < from })
        };
        Retrace(held.into_iter().filter_map(claim).collect())
    }

    /// Holds the next batch of the stream against the claims: kind `Resync` when it is not the stream that a sink
    /// was fed from. The batch must not go to any sink then, or it might be confirmed, and the proof be gone.
    pub fn follow(&mut self, batch: &Batch) -> Result<()> {
        let mut broken = Ok(());
        self.0.retain_mut(|claim| match claim.is_passed(batch) {
            Ok(passed) => !passed,
            Err(error) => {
                broken = Err(error);
                true
            }
        });
        broken
    }
}

impl Claim {
    /// Whether nothing that comes after this batch can touch the claim.
    fn is_passed(&mut self, batch: &Batch) -> Result<bool> {
        let beyond = batch.rows().partition_point(|row| row.position() <= self.last);
        let (before, after) = batch.rows().split_at(beyond);
        self.met |= before.last().is_some_and(|row| row.position() == self.last);
        let next = after.first().map(Row::position);
        if !self.met && (next.is_some() || batch.mark().held > self.last.commit_lsn) {
            return Err(self.broken(format!("has no row at {}", self.last)));
        }
        match next {
            Some(next) if next.commit_lsn < self.mark.held => {
                Err(self.broken(format!("has a row at {next}, which {} was not given", self.sink)))
            }
            Some(_) => Ok(true),
            None => Ok(self.met && batch.mark().held >= self.mark.held),
        }
    }

    fn broken(&self, how: String) -> Error {
        let message = format!(
            "{} holds everything up to {}, and the server's WAL {how}: this server was restored from an older state, \
             and {} has events that it has lost",
            self.sink, self.mark, self.sink
        );
        Error::new(Kind::Resync, message).hint(fresh_start(self.sink))
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
        let (mut builder, mut batches) = (BatchBuilder::new(Mark::at(from)), Vec::new());
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

    fn follow(retrace: &mut Retrace, batches: &[Batch]) -> Result<()> {
        batches.iter().try_for_each(|batch| retrace.follow(batch))
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
            held in any::<prop::sample::Index>(),
            begin in any::<prop::sample::Index>(),
        ) {
            let fed = batches(&old, START, &cuts);
            let fed = &fed[..=held.index(fed.len())];
            let mark = fed.iter().fold(Mark::at(START), |mark, batch| mark.advanced(batch.mark()));
            // read again, and restored: from a commit that both histories have
            let from = old[..begin.index(kept + 1)].last().map_or(START, |last| last.end).min(mark.held);
            let mut same = Retrace::new(from, [("kafka", mark)]);
            prop_assert!(follow(&mut same, &batches(&old, from, &other_cuts)).is_ok());
            prop_assert!(same.0.is_empty(), "a claim is never settled");

            let restored: Vec<Commit> = old[..kept].iter().chain(&other).cloned().collect();
            let lost = old[kept..].iter().flat_map(Commit::positions).any(|row| mark.holds(row));
            let skipped = other.iter().flat_map(Commit::positions).any(|row| mark.holds(row));
            let mut another = Retrace::new(from, [("kafka", mark)]);
            let noticed = follow(&mut another, &batches(&restored, from, &other_cuts));
            prop_assert_eq!(noticed.is_err(), mark.position.is_some() && (lost || skipped));
        }
    }

    #[test]
    fn a_stream_that_was_refused_is_refused_again() {
        let commit = |lsn: u64| Commit { lsn: Lsn(lsn), end: Lsn(lsn + 10), rows: 2, idle_after: false };
        let fed = batches(&[commit(1000), commit(1020)], START, &[false]);
        let mark = Mark { held: Lsn(1030), ..fed[0].mark() };
        let other = batches(&[commit(1000), commit(1022), commit(1040)], START, &[true]);
        let mut retrace = Retrace::new(START, [("redis", mark), ("kafka", mark)]);
        assert!(follow(&mut retrace, &other[..3]).is_ok());
        for batch in other[3..].iter().chain(&other[3..]) {
            let error = retrace.follow(batch).unwrap_err();
            assert!(error.to_string().contains("has no row at 0/3FC#1"), "{error}");
        }
    }
}
