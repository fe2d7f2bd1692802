//! Places in the WAL: [`Lsn`], the event name [`Position`], and [`Checkpoint`], what a sink says it holds.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version of the rule by which ordinals are counted (see [`Position`]) and by which changes give rows (see
/// [`crate::continuity`]). Stored with every checkpoint: a build with another rule may go on from such a checkpoint only when it
/// lies at a commit boundary.
pub const ORDINAL_RULE: u32 = 1;

/// A byte address in the WAL, printed the way PostgreSQL prints it: `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// "No place": lower than any real LSN.
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes from `earlier` to here, 0 when `earlier` is ahead.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Appends the text that `Display` shows, at a fraction of its cost: every record has one.
    pub fn put_text(self, out: &mut Vec<u8>) {
        put_hex((self.0 >> 32) as u32, out);
        out.push(b'/');
        put_hex(self.0 as u32, out);
    }
}

fn put_hex(number: u32, out: &mut Vec<u8>) {
    let mut text = [0; 8];
    for (place, digit) in text.iter_mut().rev().enumerate() {
        let value = (number >> (4 * place) & 15) as u8;
        *digit = if value < 10 { b'0' + value } else { b'A' + value - 10 };
    }
    let zeros = (number.leading_zeros() as usize / 4).min(7);
    out.extend_from_slice(text.get(zeros..).unwrap_or_default());
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text was not an LSN of the form `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an LSN: two hexadecimal numbers with a slash between them are expected, such as 16/B374D848")]
pub struct ParseLsnError;

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        let half = |digits: &str| match digits.len() {
            1..=8 if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u64::from_str_radix(digits, 16).map_err(|_| ParseLsnError)
            }
            _ => Err(ParseLsnError),
        };
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of an event: which commit, and which change within it.
///
/// `ordinal` is the 0-based index among the insert, update, delete and truncate messages of the
/// committed transaction in protocol 1 order, before any filter of ours, dead letters included,
/// logical messages excluded. The LSN of the change's own record is neither unique nor monotonic and
/// is used for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Where the commit record begins (`final_lsn` of Begin).
    pub commit_lsn: Lsn,
    /// Index within the transaction.
    pub ordinal: u64,
}

impl Lsn {
    /// A place below all that commit here or later, and above all that does before.
    pub const fn before(self) -> Position {
        Position { commit_lsn: Lsn(self.0.saturating_sub(1)), ordinal: u64::MAX }
    }
}

impl Position {
    /// Appends the text that `Display` shows, at a fraction of its cost.
    pub fn put_text(self, out: &mut Vec<u8>) {
        self.commit_lsn.put_text(out);
        out.push(b'#');
        out.extend_from_slice(itoa::Buffer::new().format(self.ordinal).as_bytes());
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.commit_lsn, self.ordinal)
    }
}

/// How far a sink (or a batch) reaches.
///
/// Both parts only ever grow. A batch may end inside a transaction: then `position` moves and `held`
/// stays at the end of the last whole transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last event covered; `None` before the first.
    pub position: Option<Position>,
    /// The end of the last commit (or the idle WAL end) up to which everything is covered. Stored as `held` before
    /// version 0.2.
    #[serde(alias = "held")]
    pub durable_lsn: Lsn,
}

impl Checkpoint {
    /// A checkpoint at a commit boundary, before any event.
    pub fn at(durable_lsn: Lsn) -> Self {
        Checkpoint { position: None, durable_lsn }
    }

    /// Whether the event at `position` is already covered.
    pub fn holds(&self, position: Position) -> bool {
        position.commit_lsn < self.durable_lsn || self.position.is_some_and(|last| position <= last)
    }

    /// Whether `self` covers all that `other` covers.
    pub fn covers(&self, other: &Checkpoint) -> bool {
        self.durable_lsn >= other.durable_lsn && other.position.is_none_or(|position| self.holds(position))
    }

    /// Whether nothing that is covered lies at or beyond `end`, the end of a timeline.
    pub(crate) fn is_within(&self, end: Lsn) -> bool {
        self.durable_lsn <= end && self.position.is_none_or(|last| last.commit_lsn < end)
    }

    /// Whether it covers no row at `lsn` or beyond.
    fn has_no_row_from(&self, lsn: Lsn) -> bool {
        self.position.is_none_or(|last| last.commit_lsn < lsn)
    }

    /// The checkpoint of somebody who had `self` and now also has all up to `to`.
    #[must_use]
    pub fn advanced(self, to: Checkpoint) -> Checkpoint {
        Checkpoint {
            position: self.position.max(to.position),
            durable_lsn: self.durable_lsn.max(to.durable_lsn),
        }
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some(position) => write!(f, "{} (last event {position})", self.durable_lsn),
            None => write!(f, "{}", self.durable_lsn),
        }
    }
}

/// The line of history that LSNs belong to. Checkpoints of different history ids are never compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryId {
    /// Drawn at random when the slot was made: a slot made again is another history. `epoch` before version 0.2.
    #[serde(rename = "history_id", alias = "epoch")]
    pub uuid: Uuid,
    /// PostgreSQL's system identifier.
    pub system_id: String,
    /// PostgreSQL's timeline: a new one after a failover.
    pub timeline: u32,
    /// The replication slot's name.
    pub slot: String,
}

impl fmt::Display for HistoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "history {} of slot {}, system {}, timeline {}",
            self.uuid, self.slot, self.system_id, self.timeline
        )
    }
}

/// How the WAL of a history came to be what it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timelines {
    /// The timelines that the server's own grew out of, oldest first, each with the LSN where it was left.
    left: Vec<(u32, Lsn)>,
    drained: Option<Drained>,
}

/// From one place to another there is nothing in the WAL that a sink is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// All before is held by every sink.
    pub from: Lsn,
    /// Where what comes next begins.
    pub to: Lsn,
    /// The system identifier of the server whose WAL it begins in, where that has become another one by pg_upgrade.
    pub former: Option<String>,
}

impl Timelines {
    /// Reads a timeline history file: a line a timeline, its number, where it was left, and why.
    pub fn parse(text: &str) -> Option<Timelines> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entry = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        };
        Some(Timelines { left: lines.map(entry).collect::<Option<_>>()?, drained: None })
    }

    /// The same, with a gap in the WAL.
    #[must_use]
    pub fn with_drained(self, drained: Option<Drained>) -> Timelines {
        Timelines { drained, ..self }
    }

    /// The last gap in the WAL of which it is known that nothing lies in it.
    pub fn drained(&self) -> Option<&Drained> {
        self.drained.as_ref()
    }

    /// Where this timeline was left; `None` when it is no ancestor.
    pub fn left_at(&self, timeline: u32) -> Option<Lsn> {
        self.left.iter().find(|(number, _)| *number == timeline).map(|(_, left)| *left)
    }

    /// A checkpoint within the gap is one behind it, unless a row within it or beyond shows that it was none.
    pub fn past_drained(&self, checkpoint: Checkpoint) -> Checkpoint {
        match &self.drained {
            Some(Drained { from, to, .. })
                if (*from..*to).contains(&checkpoint.durable_lsn) && checkpoint.has_no_row_from(*from) =>
            {
                Checkpoint { durable_lsn: *to, ..checkpoint }
            }
            _ => checkpoint,
        }
    }

    /// Whether this is a checkpoint of the server that this one has become of by pg_upgrade, as it was when it was drained. One of what
    /// that server did afterwards says nothing of the WAL here; where no slot was kept only a row of that tells.
    pub fn carry_on(&self, stored: &StoredCheckpoint, ours: &HistoryId) -> bool {
        let (theirs, checkpoint) = (&stored.history_id, stored.checkpoint);
        self.drained.as_ref().is_some_and(|Drained { from, to, former }| {
            let is_former = former.as_ref() == Some(&theirs.system_id);
            let is_level = checkpoint.has_no_row_from(*from) && (from == to || checkpoint.durable_lsn <= *to);
            is_former && is_level && (theirs.uuid, &theirs.slot) == (ours.uuid, &ours.slot)
        })
    }
}

/// A checkpoint as a target stores it, in the same atomic act as the data it speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCheckpoint {
    /// Which history the checkpoint belongs to.
    #[serde(flatten)]
    pub history_id: HistoryId,
    /// See [`ORDINAL_RULE`].
    pub ordinal_rule: u32,
    /// How far the target reaches.
    #[serde(flatten)]
    pub checkpoint: Checkpoint,
    /// What the target was like. Earlier releases stored nothing of it.
    #[serde(default, skip_serializing_if = "TargetState::is_unknown")]
    pub target: TargetState,
}

/// What a target was like when a checkpoint was stored. A target that is another one now has lost what it held, also
/// where its checkpoint is kept elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetState {
    /// Of Kafka: by topic, where its partitions end at least.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ends: BTreeMap<String, Vec<i64>>,
    /// Of BigQuery: when the table was made, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_ms: Option<i64>,
    /// Of BigQuery: the last event that is in the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<Position>,
}

impl TargetState {
    fn is_unknown(&self) -> bool {
        *self == TargetState::default()
    }
}

impl StoredCheckpoint {
    /// The checkpoint to store at a target.
    pub fn new(history_id: &HistoryId, checkpoint: Checkpoint) -> Self {
        StoredCheckpoint {
            history_id: history_id.clone(),
            ordinal_rule: ORDINAL_RULE,
            checkpoint,
            target: TargetState::default(),
        }
    }

    /// The same, with what the target is like.
    #[must_use]
    pub fn at(self, target: TargetState) -> Self {
        StoredCheckpoint { target, ..self }
    }

    /// The stored form: one JSON object, the same text for the same checkpoint.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads the stored form back.
    pub fn from_json(json: &[u8]) -> std::result::Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }
}

/// What one running instance knows itself by; every target checks the fencing token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The history this instance reads.
    pub history_id: HistoryId,
    /// Taken from PostgreSQL at start, greater than that of every earlier instance. A target that has
    /// seen a greater one refuses us: an older instance can change nothing.
    pub fencing_token: i64,
    /// The timelines before `history_id.timeline`.
    pub timelines: Timelines,
    /// The timeline on which all sinks have last been recovered: until they are after a failover, an earlier one.
    pub settled_timeline: u32,
    /// The slot's confirmed LSN at start: where a sink that holds no checkpoint yet begins. A checkpoint inside a
    /// transaction needs it for its `held` before the first commit is whole.
    pub start: Lsn,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position(commit_lsn: u64, ordinal: u64) -> Position {
        Position { commit_lsn: Lsn(commit_lsn), ordinal }
    }

    proptest! {
        #[test]
        fn an_lsn_reads_back_as_printed(value: u64) {
            let text = Lsn(value).to_string();
            prop_assert_eq!(text.parse(), Ok(Lsn(value)));
            let mut put = Vec::new();
            Lsn(value).put_text(&mut put);
            prop_assert_eq!(put, text.into_bytes());
            let (position, mut put) = (position(value, value), Vec::new());
            position.put_text(&mut put);
            prop_assert_eq!(put, position.to_string().into_bytes());
        }
    }

    #[test]
    fn what_is_not_an_lsn_is_refused() {
        for text in ["", "/", "0", "0/", "/0", "0/123456789", "+1/2", "1/+2", "g/0", " 0/0"] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError), "{text:?}");
        }
    }

    #[test]
    fn a_checkpoint_holds_whole_commits_below_held_and_events_up_to_its_position() {
        let checkpoint = Checkpoint { position: Some(position(200, 3)), durable_lsn: Lsn(150) };
        assert!(checkpoint.holds(position(149, 99)));
        assert!(checkpoint.holds(position(200, 3)));
        assert!(!checkpoint.holds(position(200, 4)));
        assert!(!Checkpoint::at(Lsn(150)).holds(position(150, 0)), "a commit record at held is the next one");
    }

    #[test]
    fn what_is_not_a_timeline_history_is_refused() {
        for text in ["1", "x\t0/1", "1\tx", "1 0/1\nx"] {
            assert_eq!(Timelines::parse(text), None, "{text:?}");
        }
        assert_eq!(Timelines::parse("# none\n"), Some(Timelines::default()));
    }

    #[test]
    fn a_stored_checkpoint_reads_back() {
        let history_id =
            HistoryId { uuid: Uuid::nil(), system_id: "7".into(), timeline: 1, slot: "walcast".into() };
        let stored = StoredCheckpoint::new(
            &history_id,
            Checkpoint { position: Some(position(1 << 33, 7)), durable_lsn: Lsn(9) },
        );
        assert_eq!(StoredCheckpoint::from_json(stored.to_json().as_bytes()).ok(), Some(stored.clone()));
        let target = TargetState { ends: [("events".to_owned(), vec![3, 0])].into(), ..Default::default() };
        let with_target = stored.clone().at(target);
        assert_eq!(StoredCheckpoint::from_json(with_target.to_json().as_bytes()).ok(), Some(with_target));
        insta::assert_snapshot!(stored.to_json(), @r#"{"history_id":"00000000-0000-0000-0000-000000000000","system_id":"7","timeline":1,"slot":"walcast","ordinal_rule":1,"position":{"commit_lsn":"2/0","ordinal":7},"durable_lsn":"0/9"}"#);
    }
}
