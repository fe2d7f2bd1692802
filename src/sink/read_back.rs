//! What a sink has of the events, read back from its target: `walcast verify` compares it with PostgreSQL.

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
    /// Gives all below `end`, and may give more; in the order of each partition. What is trimmed comes first.
    async fn read(self: Box<Self>, end: Lsn, take: Take) -> Result<()>;

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
