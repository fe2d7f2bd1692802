//! Where a sink goes on, and whether it may: one policy, without IO. A start, a driver after trouble, `walcast check`
//! and the sinks themselves all ask here.

use std::fmt;

use crate::error::{Code, Error, Kind, Result};
use crate::lsn::{Checkpoint, HistoryId, Lsn, ORDINAL_RULE, Position, Session, StoredCheckpoint};

/// What to do where the stream, or what several sinks hold, does not fit together any more.
pub const RESYNC: &str = "`walcast resync` says what would mend it, and does so with --yes";

/// A sink's name, and how to make it whole where streaming cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkName {
    name: &'static str,
    rebuilt_by: Option<&'static str>,
}

impl SinkName {
    /// Of a sink that only the stream fills.
    pub const fn new(name: &'static str) -> SinkName {
        SinkName { name, rebuilt_by: None }
    }

    /// A command fills it from PostgreSQL, also while walcast runs.
    pub const fn rebuilt_by(self, command: &'static str) -> SinkName {
        SinkName { rebuilt_by: Some(command), ..self }
    }

    /// The name alone.
    pub const fn as_str(self) -> &'static str {
        self.name
    }

    /// The command that makes it whole, where there is one.
    pub const fn rebuild_command(self) -> Option<&'static str> {
        self.rebuilt_by
    }

    /// What makes it whole.
    pub fn fresh_start(self) -> String {
        match self.rebuilt_by {
            Some(command) => {
                format!("`{command}` fills it anew from PostgreSQL; start walcast if it does not run")
            }
            None => {
                format!("\"Give a sink a new start\" in docs/operate/resync.md has the commands for {self}")
            }
        }
    }
}

impl fmt::Display for SinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How a sink is to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// It has everything up to here.
    From(Checkpoint),
    /// It has nothing yet and begins here.
    Fresh(Checkpoint),
    /// Streaming can never make it whole.
    Refused(Refusal),
}

/// Why streaming can never make a sink whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It was written once and has no checkpoint now.
    LostItsData,
    /// It has a checkpoint, and not all that it speaks of.
    LostWhatItHeld {
        /// What it held and what it holds; the sink's name comes before it.
        told: String,
    },
    /// What lies between its checkpoint and the slot is gone from the slot.
    BelowSlot(Checkpoint),
    /// The checkpoint belongs to another slot, cluster or branch of history.
    OtherHistory(Box<StoredCheckpoint>),
    /// It has something of a timeline from beyond the place where the server's own timeline left that one.
    LostInFailover {
        /// What it has of it.
        has: String,
        /// The timeline.
        timeline: u32,
        /// Where the server's history left it.
        left_at: Lsn,
    },
    /// It has more than the server's WAL holds.
    AheadOfServer {
        /// Its checkpoint.
        checkpoint: Checkpoint,
        /// The end of the server's WAL.
        wal_end: Lsn,
    },
    /// It stopped inside a transaction, under another rule of counting events.
    OtherOrdinalRule(u32),
}

/// How a sink goes on that has `stored` at its target.
///
/// `registered`: PostgreSQL remembers that it was written under this history. `wal_end`: the end of the WAL that is
/// safe on the server's disk. Positions are compared only after the histories were.
pub fn judge(stored: Option<&StoredCheckpoint>, registered: bool, session: &Session, wal_end: Lsn) -> Resume {
    let Some(stored) = stored else {
        return match registered {
            true => Resume::Refused(Refusal::LostItsData),
            false => Resume::Fresh(Checkpoint::at(session.start)),
        };
    };
    match judge_stored(stored, session, wal_end) {
        Ok(checkpoint) => Resume::From(checkpoint),
        Err(refusal) => Resume::Refused(refusal),
    }
}

fn judge_stored(stored: &StoredCheckpoint, session: &Session, wal_end: Lsn) -> Result<Checkpoint, Refusal> {
    judge_history(stored, session)?;
    let checkpoint = session.timelines.past_drained(stored.checkpoint);
    if checkpoint.durable_lsn < session.start {
        return Err(Refusal::BelowSlot(checkpoint));
    }
    if checkpoint.durable_lsn > wal_end {
        return Err(Refusal::AheadOfServer { checkpoint, wal_end });
    }
    if stored.ordinal_rule == ORDINAL_RULE {
        return Ok(checkpoint);
    }
    match checkpoint.position {
        Some(last) if last.commit_lsn >= checkpoint.durable_lsn => {
            Err(Refusal::OtherOrdinalRule(stored.ordinal_rule))
        }
        // the last row may have another name here
        _ => Ok(Checkpoint::at(checkpoint.durable_lsn)),
    }
}

/// A failover keeps what lies below the place where the new primary's timeline left the old one.
fn judge_history(stored: &StoredCheckpoint, session: &Session) -> Result<(), Refusal> {
    let theirs = &stored.history_id;
    if *theirs == session.history_id || session.timelines.carry_on(stored, &session.history_id) {
        return Ok(());
    }
    let same_but_timeline = HistoryId { timeline: session.history_id.timeline, ..theirs.clone() };
    let left_at =
        session.timelines.left_at(theirs.timeline).filter(|_| same_but_timeline == session.history_id);
    let Some(left_at) = left_at else { return Err(Refusal::OtherHistory(Box::new(stored.clone()))) };
    if stored.checkpoint.is_within(left_at) {
        return Ok(());
    }
    Err(Refusal::LostInFailover { has: stored.checkpoint.to_string(), timeline: theirs.timeline, left_at })
}

/// Where the timeline was left that rows beyond a sink's checkpoint may be of: its number and that place; `None` where
/// no failover lies between. Without a checkpoint they are of the timeline before a failover that is not settled: it may
/// have lost the first checkpoint too.
pub fn left_behind(stored: Option<&StoredCheckpoint>, session: &Session) -> Option<(u32, Lsn)> {
    let timeline = stored.map_or(session.settled_timeline, |stored| stored.history_id.timeline);
    Some((timeline, session.timelines.left_at(timeline)?))
}

/// Holds rows that a sink has beyond its checkpoint against the server's history. `last` is the last of them, `None`
/// where there are none.
pub fn judge_beyond(
    stored: Option<&StoredCheckpoint>,
    last: Option<Position>,
    session: &Session,
) -> Result<(), Refusal> {
    match (last, left_behind(stored, session)) {
        (Some(last), Some((timeline, left_at))) if last.commit_lsn >= left_at => {
            Err(Refusal::LostInFailover { has: format!("events up to {last}"), timeline, left_at })
        }
        _ => Ok(()),
    }
}

/// How a driver goes on after trouble, with a sink that had taken `accepted`. An error of kind `Lost` when rows that
/// left our memory are not there: only the slot can bring them again, and the start that reads it judges anew.
pub fn judge_again(
    sink: SinkName,
    stored: Option<&StoredCheckpoint>,
    registered: bool,
    session: &Session,
    accepted: Checkpoint,
) -> Result<Checkpoint> {
    // the server's WAL holds all that it has sent us
    match judge(stored, registered, session, Lsn(u64::MAX)) {
        Resume::From(checkpoint) | Resume::Fresh(checkpoint) if checkpoint.covers(&accepted) => {
            Ok(checkpoint)
        }
        Resume::From(checkpoint) | Resume::Fresh(checkpoint) => {
            Err(Error::new(Code::Lost, format!("{sink} holds {checkpoint} and had taken {accepted}")))
        }
        Resume::Refused(refusal) => {
            let refused = refusal.into_error(sink, session);
            Err(Error::new(Code::Lost, format!("{sink} cannot go on from what it holds now"))
                .because(refused))
        }
    }
}

/// The same of a sink that has given back all that it had not made durable: it goes on from wherever it stands, if the slot
/// can.
pub fn judge_apart(
    sink: SinkName,
    stored: Option<&StoredCheckpoint>,
    registered: bool,
    session: &Session,
) -> Result<Checkpoint> {
    judge(stored, registered, session, Lsn(u64::MAX)).or_refuse(sink, session)
}

impl Resume {
    /// The checkpoint to go on from; the refusal as an error otherwise.
    pub fn or_refuse(self, sink: SinkName, session: &Session) -> Result<Checkpoint> {
        match self {
            Resume::From(checkpoint) | Resume::Fresh(checkpoint) => Ok(checkpoint),
            Resume::Refused(refusal) => Err(refusal.into_error(sink, session)),
        }
    }
}

impl Refusal {
    /// The refusal's stable code.
    pub fn code(&self) -> Code {
        match self {
            Refusal::LostItsData | Refusal::LostWhatItHeld { .. } => Code::SinkLostItsData,
            Refusal::BelowSlot(_) => Code::SinkBelowSlot,
            Refusal::OtherHistory(_) => Code::OtherHistory,
            Refusal::LostInFailover { .. } => Code::LostInFailover,
            Refusal::AheadOfServer { .. } => Code::SinkAheadOfServer,
            Refusal::OtherOrdinalRule(_) => Code::OtherOrdinalRule,
        }
    }

    /// The command that mends it, where one does.
    pub fn command(&self, sink: SinkName) -> Option<&'static str> {
        match self {
            Refusal::AheadOfServer { .. } => Some("walcast resync"),
            Refusal::OtherOrdinalRule(_) => None,
            _ => sink.rebuild_command(),
        }
    }

    /// The refusal of `sink`, with both sides' positions and what mends it.
    pub fn into_error(self, sink: SinkName, session: &Session) -> Error {
        let (start, ours) = (session.start, &session.history_id);
        let message = match &self {
            Refusal::LostItsData => format!(
                "{sink} held a checkpoint once and holds none now: it has lost its data (the slot's confirmed LSN is {start})"
            ),
            Refusal::LostWhatItHeld { told } => {
                format!("{sink} {told}; its checkpoint says more (the slot's confirmed LSN is {start})")
            }
            Refusal::BelowSlot(checkpoint) => format!(
                "{sink} holds everything up to {}, the slot begins at {start}: what lies between is gone from the slot",
                checkpoint.durable_lsn
            ),
            Refusal::OtherHistory(stored) => {
                format!(
                    "{sink} holds {} of another history ({}), the slot is of {ours}",
                    stored.checkpoint, stored.history_id
                )
            }
            Refusal::LostInFailover { has, timeline, left_at } => format!(
                "{sink} holds {has} of timeline {timeline}, which this server, on timeline {}, left at {left_at}: \
                 {sink} has events from between that were lost in the failover",
                ours.timeline
            ),
            Refusal::AheadOfServer { checkpoint, wal_end } => format!(
                "{sink} holds everything up to {}, and the server's WAL ends at {wal_end}: this server was restored \
                 from an older state, and {sink} has events that it has lost",
                checkpoint.durable_lsn
            ),
            Refusal::OtherOrdinalRule(rule) => format!(
                "{sink} stopped inside a transaction under ordinal rule {rule}, this build counts by rule {ORDINAL_RULE}"
            ),
        };
        let hint = match &self {
            Refusal::AheadOfServer { .. } => RESYNC.to_owned(),
            Refusal::OtherOrdinalRule(_) => {
                "run the former version until it has stopped in good order, then this one".to_owned()
            }
            _ => sink.fresh_start(),
        };
        Error::new(self.code(), message).hint(hint)
    }
}

/// Reads a checkpoint as `place` at `sink` has it.
pub fn read_stored(sink: SinkName, place: &str, json: &[u8]) -> Result<StoredCheckpoint> {
    StoredCheckpoint::from_json(json).map_err(|error| unreadable(sink, place, error))
}

/// What `place` at `sink` has is not what this build writes there.
pub fn unreadable(
    sink: SinkName,
    place: &str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::new(Code::CheckpointUnreadable, format!("{sink}: {place} holds a checkpoint that cannot be read"))
        .because(error)
        .hint(format!(
            "if a newer walcast has written it, run that version; otherwise something else writes there: {}",
            sink.fresh_start()
        ))
}

/// A target that has seen a newer instance than PostgreSQL knows of has not been fenced by one: PostgreSQL has
/// forgotten it.
pub fn forgotten_instance(fenced: Error) -> Error {
    debug_assert_eq!(fenced.kind(), Kind::Fenced);
    Error::new(
        Code::ServerForgotInstance,
        "this server was restored from an older state: a sink knows of a newer walcast than walcast.slot does",
    )
    .hint("restore the sinks from the same time; or `walcast resync --new-slot`, which fills them anew from this server")
    .because(fenced)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::lsn::{Drained, Timelines};

    const KAFKA: SinkName = SinkName::new("kafka").rebuilt_by("walcast rebuild kafka");
    const REDIS: SinkName = SinkName::new("redis").rebuilt_by("walcast rebuild redis");
    const START: Lsn = Lsn(0x80);
    const WAL_END: Lsn = Lsn(0x1000);

    fn position(commit_lsn: u64) -> Position {
        Position { commit_lsn: Lsn(commit_lsn), ordinal: 3 }
    }

    /// On timeline 3, which left timeline 2 at 0x200, which left timeline 1 at 0x100.
    fn session() -> Session {
        let history_id =
            HistoryId { uuid: Uuid::nil(), system_id: "7".into(), timeline: 3, slot: "walcast".into() };
        let timelines =
            Timelines::parse("1\t0/100\tno recovery target specified\n\n2\t0/200\tx y\n").unwrap();
        Session { history_id, fencing_token: 1, timelines, start: START, settled_timeline: 2 }
    }

    fn stored(timeline: u32, last: Option<u64>, held: u64) -> StoredCheckpoint {
        let history_id = HistoryId { timeline, ..session().history_id };
        StoredCheckpoint::new(
            &history_id,
            Checkpoint { position: last.map(position), durable_lsn: Lsn(held) },
        )
    }

    fn of_rule(ordinal_rule: u32, last: u64, held: u64) -> StoredCheckpoint {
        StoredCheckpoint { ordinal_rule, ..stored(3, Some(last), held) }
    }

    fn of(history_id: HistoryId) -> StoredCheckpoint {
        StoredCheckpoint { history_id, ..stored(1, None, 0x90) }
    }

    /// What it is, what the target has, whether the sink is registered, and what follows.
    type Case = (&'static str, Option<StoredCheckpoint>, bool, Result<Checkpoint, Refusal>);

    /// Every case there is. `Ok` has the checkpoint to go on from.
    #[test]
    fn every_case_is_judged() {
        use Refusal::*;
        let other_system = of(HistoryId { system_id: "8".into(), ..stored(1, None, 0).history_id });
        let other_slot = of(HistoryId { slot: "other".into(), ..session().history_id });
        let other_making = of(HistoryId { uuid: Uuid::from_u128(1), ..session().history_id });
        let future = stored(4, None, 0x90);
        let of_another = |stored: &StoredCheckpoint| Err(OtherHistory(Box::new(stored.clone())));
        let lost = |stored: &StoredCheckpoint, timeline, left_at| {
            let has = stored.checkpoint.to_string();
            Err(LostInFailover { has, timeline, left_at: Lsn(left_at) })
        };
        let below = stored(3, Some(0x70), 0x7F);
        let ahead = stored(3, None, 0x1001);
        let next_rule = ORDINAL_RULE + 1;
        #[rustfmt::skip]
        let cases: Vec<Case> = vec![
            ("never written", None, false, Ok(Checkpoint::at(START))),
            ("written once, nothing there now", None, true, Err(LostItsData)),
            ("at the slot's confirmed LSN", Some(stored(3, None, 0x80)), true, Ok(Checkpoint::at(START))),
            ("written, the registration not yet", Some(stored(3, None, 0x90)), false, Ok(Checkpoint::at(Lsn(0x90)))),
            ("ahead of the slot", Some(stored(3, Some(0x98), 0x99)), true, Ok(stored(3, Some(0x98), 0x99).checkpoint)),
            ("inside a transaction", Some(stored(3, Some(0xF0), 0x90)), true, Ok(stored(3, Some(0xF0), 0x90).checkpoint)),
            ("below the slot", Some(below.clone()), true, Err(BelowSlot(below.checkpoint))),
            ("below the slot, not registered", Some(below.clone()), false, Err(BelowSlot(below.checkpoint))),
            ("at the end of the WAL", Some(stored(3, None, 0x1000)), true, Ok(Checkpoint::at(WAL_END))),
            ("ahead of the server", Some(ahead.clone()), true, Err(AheadOfServer { checkpoint: ahead.checkpoint, wal_end: WAL_END })),
            ("another cluster", Some(other_system.clone()), true, of_another(&other_system)),
            ("another slot", Some(other_slot.clone()), true, of_another(&other_slot)),
            ("the slot was made again", Some(other_making.clone()), true, of_another(&other_making)),
            ("a timeline that we did not grow out of", Some(future.clone()), true, of_another(&future)),
            ("earlier timeline, up to where it was left", Some(stored(1, None, 0x100)), true, Ok(Checkpoint::at(Lsn(0x100)))),
            ("earlier timeline, beyond", Some(stored(1, None, 0x101)), true, lost(&stored(1, None, 0x101), 1, 0x100)),
            ("earlier timeline, a row below", Some(stored(1, Some(0xF8), 0x90)), true, Ok(stored(1, Some(0xF8), 0x90).checkpoint)),
            ("earlier timeline, a row beyond", Some(stored(1, Some(0x100), 0x90)), true, lost(&stored(1, Some(0x100), 0x90), 1, 0x100)),
            ("the timeline before, up to where it was left", Some(stored(2, None, 0x200)), true, Ok(Checkpoint::at(Lsn(0x200)))),
            ("the timeline before, beyond", Some(stored(2, None, 0x201)), true, lost(&stored(2, None, 0x201), 2, 0x200)),
            ("another ordinal rule, at a commit", Some(of_rule(next_rule, 0x8F, 0x90)), true, Ok(Checkpoint::at(Lsn(0x90)))),
            ("another ordinal rule, inside a transaction", Some(of_rule(next_rule, 0x90, 0x90)), true, Err(OtherOrdinalRule(next_rule))),
        ];
        for (case, stored, registered, expected) in cases {
            let judged = judge(stored.as_ref(), registered, &session(), WAL_END);
            let expected = match expected {
                Ok(checkpoint) if stored.is_none() => Resume::Fresh(checkpoint),
                Ok(checkpoint) => Resume::From(checkpoint),
                Err(refusal) => Resume::Refused(refusal),
            };
            assert_eq!(judged, expected, "{case}");
        }
    }

    /// Drained at 0x60, and the slot begins at 0x80, on another server.
    #[test]
    fn what_was_drained_goes_on_behind_the_gap() {
        let former = Some("6".to_owned());
        let drained = |former| Some(Drained { from: Lsn(0x60), to: START, former });
        let upgraded = Session { timelines: Timelines::default().with_drained(drained(former)), ..session() };
        let judged = |session: &Session, system_id: &str, last, held| {
            let history_id =
                HistoryId { system_id: system_id.into(), timeline: 9, ..session.history_id.clone() };
            let checkpoint = Checkpoint { position: last, durable_lsn: Lsn(held) };
            judge(Some(&StoredCheckpoint::new(&history_id, checkpoint)), true, session, WAL_END)
        };
        let behind = Resume::From(Checkpoint { position: Some(position(0x58)), durable_lsn: START });
        for held in [0x60, 0x70, 0x80] {
            assert_eq!(judged(&upgraded, "6", Some(position(0x58)), held), behind, "{held:x}");
        }
        // one of which something lies in what was drained, or before it
        let below = judged(&upgraded, "6", Some(position(0x50)), 0x5f);
        assert!(matches!(below, Resume::Refused(Refusal::BelowSlot(_))), "{below:?}");
        // the former server went on afterwards
        for (last, held) in [(0x68, 0x70), (0x68, 0x80), (0x58, 0x90), (0x88, 0x90)] {
            let on = judged(&upgraded, "6", Some(position(last)), held);
            assert!(matches!(on, Resume::Refused(Refusal::OtherHistory(_))), "{last:x} {held:x} {on:?}");
        }
        let another = judged(&upgraded, "5", Some(position(0x58)), 0x70);
        assert!(matches!(another, Resume::Refused(Refusal::OtherHistory(_))), "{another:?}");
        // not upgraded after all
        let here = session().history_id.timeline;
        let same = Session { timelines: Timelines::default().with_drained(drained(None)), ..session() };
        let history_id = HistoryId { timeline: here, ..same.history_id.clone() };
        let stored = StoredCheckpoint::new(
            &history_id,
            Checkpoint { position: Some(position(0x58)), durable_lsn: Lsn(0x70) },
        );
        assert_eq!(judge(Some(&stored), true, &same, WAL_END), behind);
        assert!(matches!(
            judge(Some(&stored), true, &session(), WAL_END),
            Resume::Refused(Refusal::BelowSlot(_))
        ));
    }

    #[test]
    fn a_checkpoint_that_cannot_be_read_is_refused_and_its_content_not_shown() {
        let whole = stored(3, Some(0x90), 0x80).to_json();
        assert!(read_stored(KAFKA, "topic p", whole.as_bytes()).is_ok());
        let newer = whole.replace("durable_lsn", "canary");
        for json in ["", "null", "[]", "canary", newer.as_str(), whole.get(1..).unwrap()] {
            let error = read_stored(KAFKA, "topic p", json.as_bytes()).unwrap_err();
            assert_eq!((error.code(), error.exit_code()), (Code::CheckpointUnreadable, 4), "{json}");
            assert!(error.to_string().contains("kafka: topic p"), "{error}");
        }
    }

    #[test]
    fn a_sink_that_lost_what_it_had_taken_sends_back_to_the_slot() {
        let accepted = stored(3, Some(0xF0), 0x90).checkpoint;
        let again = |stored: Option<StoredCheckpoint>, registered| {
            judge_again(REDIS, stored.as_ref(), registered, &session(), accepted)
        };
        let as_it_was = stored(3, Some(0xF0), 0x90);
        assert_eq!(again(Some(as_it_was.clone()), true).ok(), Some(accepted));
        let further = stored(3, Some(0xF0), 0xA00);
        assert_eq!(
            again(Some(further.clone()), true).ok(),
            Some(further.checkpoint),
            "an unknown outcome was a success"
        );
        for (lost, registered) in [
            (None, true),
            (None, false),
            (Some(stored(3, Some(0xE0), 0x90)), true),
            (Some(of(HistoryId { uuid: Uuid::from_u128(1), ..session().history_id })), true),
            (Some(stored(3, None, 0x70)), true),
        ] {
            let error = again(lost.clone(), registered).unwrap_err();
            assert_eq!(error.code(), Code::Lost, "{lost:?}: {error:?}");
        }
        let nothing_yet = judge_again(REDIS, None, false, &session(), Checkpoint::at(START));
        assert_eq!(nothing_yet.ok(), Some(Checkpoint::at(START)));
    }

    #[test]
    fn rows_beyond_a_checkpoint_count_only_below_the_place_where_their_timeline_was_left() {
        let judged = |timeline, last: Option<u64>| {
            judge_beyond(Some(&stored(timeline, None, 0x90)), last.map(position), &session()).is_ok()
        };
        let without_checkpoint = |settled_timeline, last: u64| {
            let session = Session { settled_timeline, ..session() };
            judge_beyond(None, Some(position(last)), &session).is_ok()
        };
        assert!(without_checkpoint(2, 0x1FF) && without_checkpoint(3, 0x300), "no failover lies between");
        assert!(!without_checkpoint(2, 0x200) && !without_checkpoint(1, 0x100));
        assert!(judged(2, None) && judged(2, Some(0x1FF)) && judged(3, Some(0x300)));
        assert!(!judged(2, Some(0x200)) && !judged(1, Some(0x100)));
    }

    #[test]
    fn each_refusal_ends_with_exit_code_4_and_says_what_to_do() {
        let checkpoint = Checkpoint::at(Lsn(0x90));
        let lost = Refusal::LostInFailover { has: "events".into(), timeline: 2, left_at: Lsn(0x200) };
        let refusals = [
            (Refusal::LostItsData, Code::SinkLostItsData),
            (Refusal::LostWhatItHeld { told: "held more".into() }, Code::SinkLostItsData),
            (Refusal::BelowSlot(checkpoint), Code::SinkBelowSlot),
            (Refusal::OtherHistory(Box::new(stored(1, None, 0x90))), Code::OtherHistory),
            (lost, Code::LostInFailover),
            (Refusal::AheadOfServer { checkpoint, wal_end: WAL_END }, Code::SinkAheadOfServer),
            (Refusal::OtherOrdinalRule(9), Code::OtherOrdinalRule),
        ];
        for (refusal, code) in refusals {
            let error = refusal.into_error(KAFKA, &session());
            assert_eq!((error.code(), error.exit_code()), (code, 4));
            assert!(error.to_string().contains("kafka") && error.advice().len() > 20, "{error:?}");
        }
        let forgotten = forgotten_instance(Error::new(Code::Fenced, "a newer walcast has taken over"));
        assert_eq!((forgotten.code(), forgotten.exit_code()), (Code::ServerForgotInstance, 4));
        assert!(REDIS.fresh_start().starts_with("`walcast rebuild redis` fills"));
        assert!(KAFKA.fresh_start().starts_with("`walcast rebuild kafka` fills"));
        assert!(SinkName::new("content").fresh_start().contains("docs/operate/resync.md"));
    }
}
