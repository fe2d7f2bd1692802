//! What a sink has of the events, read back from its target: `walcast verify` compares it with PostgreSQL.

use std::str::FromStr;

use async_trait::async_trait;
use uuid::Uuid;

use crate::error::Result;
use crate::event::Event;
use crate::event::schema::EventValues;
use crate::lsn::{Checkpoint, HistoryId, Lsn, Position};

/// What there is to read.
pub enum ReadBack {
    /// Each event, one by one.
    Events(Box<dyn ReadEvents>),
    /// What the events amount to.
    Sums(Box<dyn ReadSums>),
    /// How far it has come, and no more: the target acknowledges events and gives none back.
    Acknowledged,
    /// Nothing: the target keeps no events.
    Nothing,
}

/// Which events are compared: each side leaves out the same.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// Those with an `event_ts` from then on, microseconds since 1970.
    pub since: Option<i64>,
    /// Those with an `event_ts` before that.
    pub until: Option<i64>,
    /// Of these a sample.
    pub sample: Option<Sample>,
}

impl Part {
    /// Whether nothing is left out.
    pub fn is_all(&self) -> bool {
        !self.is_by_time() && self.sample.is_none()
    }

    /// Whether the event's time matters.
    pub fn is_by_time(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }

    /// Whether an event belongs to it.
    pub fn holds(&self, id: i64, event_ts: i64) -> bool {
        self.since.is_none_or(|since| event_ts >= since)
            && self.until.is_none_or(|until| event_ts < until)
            && self.sample.is_none_or(|sample| sample.holds(id))
    }
}

/// A share of all ids. Ids in a row are as far apart in it as can be, since the factor is the golden section of the modulus; and
/// each side's own language can tell it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The ids' hashes are below.
    pub below: i64,
    /// The share.
    pub percent: f64,
}

impl Sample {
    /// A prime; what is below it, times the factor, fits into 64 bits.
    pub const MODULUS: i64 = 2_147_483_647;
    /// See [`Sample::MODULUS`].
    pub const FACTOR: i64 = 1_327_217_885;

    /// Whether an id belongs to it.
    pub fn holds(&self, id: i64) -> bool {
        (id % Self::MODULUS * Self::FACTOR % Self::MODULUS).abs() < self.below
    }
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Sample, String> {
        let percent = text.strip_suffix('%').and_then(|number| number.trim().parse().ok());
        let percent: f64 = percent
            .filter(|percent| *percent > 0.0 && *percent <= 100.0)
            .ok_or_else(|| "it is a share such as 1% or 0.05%".to_owned())?;
        Ok(Sample { below: (percent / 100.0 * Self::MODULUS as f64).ceil() as i64, percent })
    }
}

/// What reading events comes upon.
pub enum Found<'a> {
    /// So many are still to come, as far as is known.
    Expected(u64),
    /// An event, and its partition where there are some.
    Event(&'a EventValues<'a>, Option<u16>),
    /// A dead letter in an event's place; it may speak for all sinks.
    Letter {
        /// The row's id.
        id: i64,
        /// Its place.
        position: Position,
        /// Whether the row was refused before the sinks.
        for_all: bool,
    },
    /// Something that walcast does not write.
    Unreadable,
    /// The target has deleted the beginning of this partition.
    Trimmed(u16),
}

/// Takes what is found.
pub type Take = Box<dyn FnMut(Found<'_>) -> Result<()> + Send>;

/// Tells the partition of a key.
pub type PartitionOf = dyn Fn(&str) -> u16 + Send + Sync;

/// A target that has every event.
#[async_trait]
pub trait ReadEvents: Send {
    /// Gives all below `end` that belong to the part, and may give more; in the order of each partition. What is trimmed comes
    /// first.
    async fn read(self: Box<Self>, end: Lsn, part: &Part, take: Take) -> Result<()>;

    /// The oldest events that the target still keeps, by their `event_ts`, microseconds since 1970; `None`: all, or not told.
    async fn keeps_since(&mut self) -> Result<Option<i64>> {
        Ok(None)
    }

    /// Whether dead letters that speak for all sinks are among what it gives.
    fn tells_letters(&self) -> bool;

    /// What tells the partition that events with a key have to be in; `None` without partitions.
    fn partition_of(&self) -> Option<Box<PartitionOf>>;
}

/// How a key of a target that has sums is found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// As expected.
    Same,
    /// It is not there.
    Missing,
    /// It holds something else: less of anything, or what cannot be read.
    Different,
    /// It holds more of something, and less of nothing.
    More,
    /// It should not be there.
    Unexpected,
    /// It holds less, or nothing, as it may: the sink has left events out that came too early for their time.
    Less,
}

/// A key, or a member or field of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFound {
    /// What it is.
    pub state: KeyState,
    /// The key; with its member, where it is about one.
    pub key: String,
    /// The fields that differ.
    pub fields: Vec<&'static str>,
}

/// A target that has sums of events.
#[async_trait]
pub trait ReadSums: Send {
    /// Reads them, once; tells up to where they reach.
    async fn read(&mut self, history_id: &HistoryId) -> Result<Checkpoint>;

    /// Counts an event of the snapshot that is compared.
    fn add(&mut self, event: &Event, event_type: Option<&str>);

    /// Counts an event that came after the snapshot.
    fn add_later(&mut self, event: &Event, event_type: Option<&str>);

    /// Compares what was read with what was counted. `unsure` tells the contents whose row may have been another one.
    fn compare(self: Box<Self>, unsure: &dyn Fn(&Uuid) -> bool, found: &mut dyn FnMut(KeyFound));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_share_of_all_ids_and_of_any_that_follow_each_other() {
        for (text, share) in [("100%", 1.0), ("50%", 0.5), ("1%", 0.01), ("0.1 %", 0.001)] {
            let sample: Sample = text.parse().unwrap();
            for (begin, step) in
                [(0, 1), (1 << 40, 1), (-500_000, 1), (i64::MAX - 2_000_000, 2), (7, 1 << 20)]
            {
                let ids = (0..1_000_000).map(|at: i64| begin + at * step);
                let held = ids.filter(|id| sample.holds(*id)).count() as f64;
                assert!((held / 1e6 - share).abs() < share / 20.0, "{text} of {begin} by {step}: {held}");
            }
        }
        assert!("100%".parse::<Sample>().is_ok_and(|all| all.holds(i64::MIN) && all.holds(i64::MAX)));
        for unfit in ["1", "0%", "101%", "-1%", "x%", "NaN%", ""] {
            assert!(unfit.parse::<Sample>().is_err(), "{unfit}");
        }
    }

    #[test]
    fn a_part_ends_before_its_end() {
        let part = Part { since: Some(10), until: Some(20), sample: None };
        assert_eq!([9, 10, 19, 20].map(|at| part.holds(1, at)), [false, true, true, false]);
        assert!(part.is_by_time() && !part.is_all() && Part::default().is_all());
    }
}
