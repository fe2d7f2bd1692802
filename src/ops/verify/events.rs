//! The events of one sink, as they are read back.

use std::collections::{BTreeMap, HashMap, HashSet};

use indicatif::ProgressBar;

use super::record::{ANY_PARTITION, Record, flag};
use super::report::{Difference, Report};
use super::spill::Spill;
use crate::error::Result;
use crate::event::schema::EventValues;
use crate::lsn::{Lsn, Position};
use crate::sink::read_back::{Found, Part};

/// What was read so far.
pub struct Events {
    end: Lsn,
    part: Part,
    spill: Spill,
    progress: ProgressBar,
    /// Records that come after one of a later place in their partition.
    out_of_order: Vec<Record>,
    /// Records that are not what walcast writes.
    unreadable: u64,
    /// By partition, the place of the newest record.
    newest: BTreeMap<u16, Position>,
    trimmed: HashSet<u16>,
    /// Of partitions that have lost their beginning: the place of the first record left.
    begins: BTreeMap<u16, Position>,
    /// The first places of events that were sent to this sink again: the others have them there.
    firsts: HashMap<i64, Position>,
}

impl Events {
    /// Of nothing yet; what lies at or beyond `end`, or belongs to no part that is compared, is left out.
    pub fn new(
        end: Lsn,
        part: &Part,
        spill: Spill,
        progress: ProgressBar,
        firsts: HashMap<i64, Position>,
    ) -> Events {
        Events {
            end,
            part: part.clone(),
            spill,
            progress,
            out_of_order: Vec::new(),
            unreadable: 0,
            newest: BTreeMap::new(),
            trimmed: HashSet::new(),
            begins: BTreeMap::new(),
            firsts,
        }
    }

    /// Takes what a sink gives.
    pub fn take(&mut self, found: Found<'_>) -> Result<()> {
        match found {
            Found::Expected(records) => {
                self.progress.set_length(records);
                return Ok(());
            }
            Found::Trimmed(partition) => {
                self.trimmed.insert(partition);
                return Ok(());
            }
            Found::Event(values, partition) if self.is_left_out(values) => {
                self.begins_at(partition, values.position());
            }
            Found::Event(values, partition) => match Record::of(values, self.spill.extras()) {
                Some(record) => self.event(record, partition)?,
                None => self.unreadable += 1,
            },
            Found::Letter { id, position, for_all } => {
                let mut letter = Record::new(id, position, 0);
                letter.flags = if for_all { flag::LETTER | flag::LETTER_FOR_ALL } else { flag::LETTER };
                letter.partition = ANY_PARTITION;
                self.add(&letter)?;
            }
            Found::Unreadable => self.unreadable += 1,
        }
        self.progress.inc(1);
        Ok(())
    }

    /// Before anything is hashed: of a sample that is most.
    fn is_left_out(&self, values: &EventValues<'_>) -> bool {
        let known = values.id().zip(values.event_ts());
        known.is_some_and(|(id, event_ts)| !self.part.holds(id, event_ts))
    }

    fn begins_at(&mut self, partition: Option<u16>, position: Option<Position>) {
        let trimmed = partition.filter(|partition| self.trimmed.contains(partition));
        if let Some((partition, position)) = trimmed.zip(position) {
            self.begins.entry(partition).or_insert(position);
        }
    }

    fn event(&mut self, record: Record, partition: Option<u16>) -> Result<()> {
        self.begins_at(partition, Some(record.position));
        if let Some(partition) = partition {
            let newest = self.newest.entry(partition).or_insert(record.position);
            if record.position < *newest && record.position.commit_lsn < self.end {
                self.out_of_order.push(record);
            }
            *newest = record.position.max(*newest);
        }
        let mut record = record;
        if let Some(first) = self.firsts.get(&record.id) {
            record.is_at(*first);
        }
        self.add(&record)
    }

    fn add(&mut self, record: &Record) -> Result<()> {
        if record.position.commit_lsn < self.end { self.spill.add(record) } else { Ok(()) }
    }

    /// Tells what is wrong with the records as such. Gives the events, and where trimmed partitions begin.
    pub fn finish(mut self, sink: &'static str, report: &mut Report) -> (Spill, BTreeMap<u16, Position>) {
        self.progress.finish_and_clear();
        for record in &self.out_of_order {
            let what = || (format!("event {} at {}", record.id, record.position), Vec::new());
            report.differs(sink, Some(record.half_hour), Difference::OutOfOrder, what);
        }
        for _ in 0..self.unreadable {
            let what = || ("a record that is not walcast's".to_owned(), Vec::new());
            report.differs(sink, None, Difference::Unexpected, what);
        }
        for partition in self.trimmed {
            // nothing is left of it: whatever was there has gone
            let all = Position { commit_lsn: Lsn(u64::MAX), ordinal: 0 };
            self.begins.entry(partition).or_insert(all);
        }
        (self.spill, self.begins)
    }

    /// The records, to add more.
    pub fn spill(&mut self) -> &mut Spill {
        &mut self.spill
    }
}
