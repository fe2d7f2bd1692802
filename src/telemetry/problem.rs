//! What is wrong, worst first, each in one sentence that ends with what to do.

use std::time::Duration;

use crate::error::Code;
use crate::size::size;
use crate::source::check::TRANSACTION_OPEN_MAX;
use crate::telemetry::status::{
    BackfillLine, BreakerState, LaneLine, LaneState, SinkLine, SinkState, SlotStatus, State, Status,
};

/// A sink further behind than this is a problem.
const LAG_MAX: Duration = Duration::from_secs(60);
/// PostgreSQL about to remove WAL that the slot needs is a problem.
const SAFE_WAL_BYTES_MIN: u64 = 256 << 20;
/// A stream that brings no heartbeat for this long is a problem; they are written every ten seconds.
const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(45);
/// A slot that keeps more WAL than this from before its confirmed LSN is a problem.
const HELD_BEFORE_BYTES_MAX: u64 = 1 << 30;
/// A sink that is fed by nobody for this long is a problem; a lane opens and starts in less.
const UNFED_MAX: Duration = Duration::from_secs(30);
/// A sink that takes longer to catch up is told.
const CATCHING_UP_MAX: Duration = Duration::from_secs(60);
/// A sink that is this near is as good as there.
const NEAR_BYTES: u64 = 16 << 20;
/// A slot that cannot be looked at for this long is a problem.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(30);

/// What is wrong, worst first; nothing when all is well.
pub fn problems(status: &Status) -> Vec<String> {
    let slot = status.source.slot.as_ref();
    let mut problems = Vec::new();
    problems.extend(slot.and_then(lost));
    problems.extend(not_streaming(status));
    problems.extend(slot.and_then(waits_for_standby));
    problems.extend(status.sinks.iter().filter_map(|sink| lost_alone(sink, sink.lane.as_ref()?)));
    problems.extend(status.sinks.iter().filter_map(|sink| failing(sink, slot)));
    let unfed = |sink: &SinkLine| unfed(sink, sink.lane.as_ref()?, slot, is_being_emptied(status, sink));
    problems.extend(status.sinks.iter().filter_map(unfed));
    problems.extend(slot.and_then(|slot| at_risk(slot, status)));
    problems.extend(slot.and_then(|slot| unreserved(slot, status)));
    problems.extend(status.sinks.iter().filter_map(|sink| alone_at_risk(sink, sink.lane.as_ref()?)));
    problems.extend(status.sinks.iter().filter_map(|sink| sink.trouble.clone()));
    problems.extend(status.sinks.iter().filter_map(behind));
    problems.extend(status.sinks.iter().filter_map(|sink| catching_up(sink, sink.lane.as_ref()?)));
    problems.extend(no_heartbeat(status));
    problems.extend(slot.and_then(kept_from_before));
    problems.extend(slot.and_then(unseen));
    problems
}

fn lost(slot: &SlotStatus) -> Option<String> {
    let SlotStatus { name, wal_status, .. } = slot;
    if !matches!(wal_status.as_str(), "lost" | "missing") {
        return None;
    }
    let reason = slot.invalidation_reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
    Some(format!(
        "the replication slot {name} is {wal_status}{reason}, and what it had not delivered is gone from the stream; \
         `walcast check` says how to go on"
    ))
}

fn not_streaming(status: &Status) -> Option<String> {
    let why = status.source.last_error.as_ref().filter(|_| status.state != State::Streaming)?;
    Some(format!("not streaming: {why}"))
}

fn waits_for_standby(slot: &SlotStatus) -> Option<String> {
    let SlotStatus { missing_standbys, standby_wait_seconds, .. } = slot;
    (!missing_standbys.is_empty()).then(|| {
        format!(
            "PostgreSQL has waited {standby_wait_seconds:.0} s for the standby of slot {}, and sends nothing that it \
             does not have; connect that standby, or take the slot's name out of synchronized_standby_slots",
            missing_standbys.join(", ")
        )
    })
}

/// What only its lane's slot had is gone. Other definite errors of a lane are told by [`unfed`]: it goes on when they are mended.
fn lost_alone(sink: &SinkLine, lane: &LaneLine) -> Option<String> {
    let told = || {
        let kept = lane.kept.as_ref()?;
        let reason = kept.invalidation_reason.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
        Some(format!("the slot {} is {}{reason} ({})", kept.slot, kept.wal_status, Code::LaneLost))
    };
    let why = lane.last_error.clone().or_else(told)?;
    lane.is_lost().then(|| {
        format!(
            "{name} lacks what PostgreSQL has no more, and gets nothing while the other sinks go on: {why}; `walcast rebuild \
             {name}` fills it anew",
            name = sink.name
        )
    })
}

fn failing(sink: &SinkLine, slot: Option<&SlotStatus>) -> Option<String> {
    let why = sink.last_error.as_ref().filter(|_| sink.state != SinkState::Ok && !sink.is_lost())?;
    let SinkLine { name, .. } = sink;
    let since = long(sink.failing_seconds.unwrap_or_default());
    let kept = kept_by(sink, slot);
    Some(match sink.breaker {
        BreakerState::Closed if sink.lane.is_none() => {
            format!("{name} takes no rows and holds the WAL back: {why}")
        }
        BreakerState::Closed => format!("{name} takes no rows; the other sinks go on, and {kept}: {why}"),
        BreakerState::Open => {
            let next = sink.next_probe_seconds.filter(|next| *next >= 1.0);
            let next = next.map_or_else(|| "now".to_owned(), |next| format!("in {next:.0} s"));
            format!(
                "{name} takes no rows, for {since} now, and is asked again {next}; the other sinks go on, and {kept}: {why}"
            )
        }
        BreakerState::HalfOpen => format!(
            "{name} answers again, and has yet to make a row durable after {since}; the other sinks go on, and {kept}. It \
             had failed: {why}"
        ),
    })
}

/// Which slot keeps what a sink lacks.
fn kept_by(sink: &SinkLine, slot: Option<&SlotStatus>) -> String {
    let Some(lane) = sink.lane.as_ref().filter(|_| !sink.counts()) else {
        let slot = slot.map(|slot| format!(" {}", slot.name)).unwrap_or_default();
        return format!("the slot{slot} keeps the WAL for it");
    };
    match &lane.kept {
        Some(kept) => format!("a slot of its own keeps {} of WAL for it", size(kept.retained_bytes)),
        None => "a slot of its own keeps the WAL for it".to_owned(),
    }
}

/// Whether a sink has stopped because it is filled anew.
fn is_being_emptied(status: &Status, sink: &SinkLine) -> bool {
    let stopped = |open: &BackfillLine| {
        open.rebuild.as_deref().is_some_and(|step| step != "emptied") && open.sinks.contains(&sink.name)
    };
    status.backfill.as_ref().is_some_and(stopped)
}

/// A sink that has fallen behind, and that no stream feeds although its target gives no reason.
fn unfed(sink: &SinkLine, lane: &LaneLine, slot: Option<&SlotStatus>, emptied: bool) -> Option<String> {
    let SinkLine { name, .. } = sink;
    let (for_long, seconds) = (lane.seconds > UNFED_MAX.as_secs_f64(), lane.seconds);
    if sink.is_lost() {
        return None;
    }
    let kept = || kept_by(sink, slot);
    match (lane.state, &lane.last_error) {
        (LaneState::Opening, Some(why)) => {
            Some(format!("{name} has fallen behind and gets no slot of its own, so that {}: {why}", kept()))
        }
        (LaneState::Opening, None) if for_long => Some(format!(
            "{name} has fallen behind and has waited {seconds:.0} s for a slot of its own, so that {}; see what PostgreSQL \
             is busy with",
            kept()
        )),
        (LaneState::Joining, Some(why)) => {
            Some(format!("{name} has caught up, and the slot {} is still there: {why}", lane.slot))
        }
        (LaneState::Parked | LaneState::CatchingUp | LaneState::Lost, Some(why)) => Some(format!(
            "{name} cannot be fed from its own slot, which keeps what it lacks while the other sinks go on: {why}"
        )),
        (LaneState::Parked, None) if for_long && !emptied && sink.state == SinkState::Ok => Some(format!(
            "{name} has fallen behind and has not asked for rows for {seconds:.0} s; the other sinks go on, and {}; see why \
             {name} does not answer",
            kept()
        )),
        _ => None,
    }
}

/// What its own slot keeps for a sink is soon too much.
fn alone_at_risk(sink: &SinkLine, lane: &LaneLine) -> Option<String> {
    let kept = lane.kept.as_ref()?;
    let SinkLine { name, .. } = sink;
    let when = match (kept.wal_status.as_str(), kept.safe_wal_bytes) {
        ("lost" | "missing", _) => return None,
        ("unreserved", _) => "at its next checkpoint".to_owned(),
        (_, Some(left)) if left < SAFE_WAL_BYTES_MIN => {
            format!("after {} more (max_slot_wal_keep_size)", size(left))
        }
        _ => return None,
    };
    Some(format!(
        "PostgreSQL removes WAL that {name} alone still needs {when}; bring {name} up, or give its slot {} more: `walcast \
         check` has the statement",
        kept.slot
    ))
}

/// Short hiccups are no problem: only what lasts is told.
fn catching_up(sink: &SinkLine, lane: &LaneLine) -> Option<String> {
    let SinkLine { name, .. } = sink;
    let lasts = lane.seconds > CATCHING_UP_MAX.as_secs_f64() && lane.behind_bytes > NEAR_BYTES;
    let told = lane.last_error.is_some() || sink.state != SinkState::Ok;
    if lane.state != LaneState::CatchingUp || !lasts || told {
        return None;
    }
    let behind = size(lane.behind_bytes);
    Some(match lane.catch_up_seconds {
        Some(left) => format!(
            "{name} catches up by a stream of its own: {behind} behind, and level in about {} at this pace; wait, or see \
             why {name} is slow",
            long(left)
        ),
        None => format!(
            "{name} is slower than the stream: it is {behind} behind after {} on a stream of its own, and comes no nearer, while \
             the other sinks go on; see why {name} is slow",
            long(lane.seconds)
        ),
    })
}

fn long(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        ..7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3_600.0),
    }
}

fn unreserved(slot: &SlotStatus, status: &Status) -> Option<String> {
    (slot.wal_status == "unreserved").then(|| {
        format!(
            "PostgreSQL removes WAL that the slot {} still needs at its next checkpoint; {}give it more at once: \
             `walcast check` has the statement",
            slot.name,
            relief(status)
        )
    })
}

/// Which sinks to bring up so that less WAL is needed.
fn relief(status: &Status) -> String {
    match status.holders().as_slice() {
        [] => String::new(),
        sinks => format!("bring {} up, or ", sinks.join(" and ")),
    }
}

fn at_risk(slot: &SlotStatus, status: &Status) -> Option<String> {
    let left = slot.safe_wal_bytes.filter(|left| *left < SAFE_WAL_BYTES_MIN)?;
    if matches!(slot.wal_status.as_str(), "lost" | "unreserved") {
        return None;
    }
    let slowest = relief(status);
    Some(format!(
        "PostgreSQL removes WAL that the slot {} still needs after {} more (max_slot_wal_keep_size); {slowest}give it \
         more: `walcast check` has the statement",
        slot.name,
        size(left)
    ))
}

fn behind(sink: &SinkLine) -> Option<String> {
    let SinkLine { name, lag_seconds, .. } = sink;
    if *lag_seconds <= LAG_MAX.as_secs_f64() || sink.state != SinkState::Ok || !sink.counts() {
        return None;
    }
    let (what, look) = match sink.backpressure {
        true => (" and its full queue stops the reading", format!("see why {name} is slow")),
        false => ("", format!("it catches up by itself unless the load stays; else see why {name} is slow")),
    };
    Some(format!("{name} is {lag_seconds:.0} s behind{what}; {look}"))
}

fn no_heartbeat(status: &Status) -> Option<String> {
    let age = status.source.heartbeat_age_seconds.filter(|age| *age > HEARTBEAT_AGE_MAX.as_secs_f64())?;
    let held = status.source.slot.as_ref().is_some_and(|slot| !slot.missing_standbys.is_empty());
    let waits = held || status.sinks.iter().any(|sink| sink.backpressure);
    (status.state == State::Streaming && !waits).then(|| {
        format!(
            "no heartbeat has come through the WAL for {age:.0} s; PostgreSQL is busy with a large transaction, or this \
             role may not write one: `walcast check` tells"
        )
    })
}

/// A transaction holds the restart LSN back, or PostgreSQL merely has not moved it yet: it does so only when it comes to a
/// record of the running transactions, which a checkpoint writes.
fn kept_from_before(slot: &SlotStatus) -> Option<String> {
    let before = slot.confirmed_lsn.bytes_since(slot.restart_lsn?);
    let open = slot.oldest_transaction_seconds.filter(|open| *open >= TRANSACTION_OPEN_MAX.as_secs_f64());
    let why = match open {
        Some(open) => {
            format!(
                ", since a transaction that has written has been open for {open:.0} s; `walcast check` names it"
            )
        }
        None if slot.sees_sessions => {
            "; no transaction has been open that long; PostgreSQL moves the restart LSN after its next checkpoint. Run \
             CHECKPOINT if the disk cannot wait"
                .to_owned()
        }
        None => format!(
            "; walcast's role cannot see other sessions, and so not whether a transaction is open: GRANT \
             pg_read_all_stats TO {}",
            slot.role
        ),
    };
    (before > HELD_BEFORE_BYTES_MAX).then(|| {
        format!("PostgreSQL keeps {} of WAL from before the slot's confirmed LSN{why}", size(before))
    })
}

fn unseen(slot: &SlotStatus) -> Option<String> {
    (slot.age_seconds > SAMPLE_AGE_MAX.as_secs_f64()).then(|| {
        format!(
            "PostgreSQL has not answered about the slot {} for {:.0} s; see whether it has a connection to spare",
            slot.name, slot.age_seconds
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::telemetry::status::{LaneSlot, SourceStatus};

    fn sink(name: &str) -> SinkLine {
        SinkLine {
            name: name.into(),
            state: SinkState::Ok,
            durable_lsn: Lsn(100),
            position: None,
            lag_bytes: 0,
            lag_seconds: 0.0,
            queue_bytes: 0,
            backpressure: false,
            rows_total: 0,
            last_error: None,
            last_error_code: None,
            ..SinkLine::default()
        }
    }

    fn slot() -> SlotStatus {
        SlotStatus { name: "walcast".into(), wal_status: "reserved".into(), ..SlotStatus::default() }
    }

    fn status(slot: SlotStatus, sinks: Vec<SinkLine>) -> Status {
        Status {
            dead_letters: Vec::new(),
            backfill: None,
            version: String::new(),
            state: State::Streaming,
            since: jiff::Timestamp::UNIX_EPOCH,
            source: SourceStatus {
                received_lsn: Lsn(200),
                heartbeat_age_seconds: Some(3.0),
                slot: Some(slot),
                ..SourceStatus::default()
            },
            confirmed_lsn: Lsn(100),
            sinks,
            problems: Vec::new(),
            problem: None,
        }
    }

    #[test]
    fn all_is_well_when_nothing_is_said() {
        assert_eq!(problems(&status(slot(), vec![sink("kafka")])), Vec::<String>::new());
    }

    #[test]
    fn the_worst_comes_first_and_each_ends_with_what_to_do() {
        let slow = SinkLine { lag_seconds: 90.0, backpressure: true, ..sink("bigquery") };
        let kafka = SinkLine {
            state: SinkState::Retrying,
            last_error: Some("no broker answers; start one".into()),
            lag_seconds: 100.0,
            durable_lsn: Lsn(90),
            ..sink("kafka")
        };
        let tight = SlotStatus {
            safe_wal_bytes: Some(100 << 20),
            age_seconds: 31.0,
            confirmed_lsn: Lsn(3 << 30),
            restart_lsn: Some(Lsn(1 << 30)),
            oldest_transaction_seconds: Some(400.0),
            ..slot()
        };
        let told = problems(&status(tight, vec![slow, kafka]));
        insta::assert_snapshot!(told.join("\n"), @r"
        kafka takes no rows and holds the WAL back: no broker answers; start one
        PostgreSQL removes WAL that the slot walcast still needs after 100.0 MiB more (max_slot_wal_keep_size); bring kafka up, or give it more: `walcast check` has the statement
        bigquery is 90 s behind and its full queue stops the reading; see why bigquery is slow
        PostgreSQL keeps 2.0 GiB of WAL from before the slot's confirmed LSN, since a transaction that has written has been open for 400 s; `walcast check` names it
        PostgreSQL has not answered about the slot walcast for 31 s; see whether it has a connection to spare
        ");
        let lost = SlotStatus { wal_status: "lost".into(), safe_wal_bytes: Some(0), ..slot() };
        let mut status = status(lost, Vec::new());
        status.source.heartbeat_age_seconds = Some(60.0);
        insta::assert_snapshot!(problems(&status).join("\n"), @r"
        the replication slot walcast is lost, and what it had not delivered is gone from the stream; `walcast check` says how to go on
        no heartbeat has come through the WAL for 60 s; PostgreSQL is busy with a large transaction, or this role may not write one: `walcast check` tells
        ");
    }

    /// After a long standstill the restart LSN is behind, and no transaction is to blame.
    #[test]
    fn wal_that_no_transaction_keeps_is_not_blamed_on_one() {
        let kept = |open, sees_sessions| {
            let slot = SlotStatus {
                confirmed_lsn: Lsn(3 << 30),
                restart_lsn: Some(Lsn(1 << 30)),
                oldest_transaction_seconds: open,
                sees_sessions,
                role: "walcast".into(),
                ..slot()
            };
            problems(&status(slot, Vec::new())).join("\n")
        };
        for open in [None, Some(0.2), Some(299.0)] {
            insta::allow_duplicates! {
                insta::assert_snapshot!(kept(open, true), @"PostgreSQL keeps 2.0 GiB of WAL from before the slot's confirmed LSN; no transaction has been open that long; PostgreSQL moves the restart LSN after its next checkpoint. Run CHECKPOINT if the disk cannot wait");
                insta::assert_snapshot!(kept(open, false), @"PostgreSQL keeps 2.0 GiB of WAL from before the slot's confirmed LSN; walcast's role cannot see other sessions, and so not whether a transaction is open: GRANT pg_read_all_stats TO walcast");
            }
        }
        for sees in [true, false] {
            // its own sessions, and what is prepared, every role sees
            assert!(kept(Some(301.0), sees).contains("has been open for 301 s; `walcast check` names it"));
        }
    }

    /// It is the cause of the heartbeat that does not come, too.
    #[test]
    fn a_standby_that_postgres_waits_for_is_told() {
        let waits =
            SlotStatus { missing_standbys: vec!["phys".into()], standby_wait_seconds: 90.4, ..slot() };
        let mut status = status(waits, vec![sink("kafka")]);
        status.source.heartbeat_age_seconds = Some(90.0);
        insta::assert_snapshot!(problems(&status).join("\n"), @"PostgreSQL has waited 90 s for the standby of slot phys, and sends nothing that it does not have; connect that standby, or take the slot's name out of synchronized_standby_slots");
    }

    const SLOT: &str = "walcast_lane_0123456789ab_redis_7_1";

    fn lane(state: LaneState, seconds: f64) -> LaneLine {
        let kept = LaneSlot {
            slot: SLOT.into(),
            wal_status: "reserved".into(),
            retained_bytes: 3 << 30,
            ..LaneSlot::default()
        };
        LaneLine {
            state,
            seconds,
            slot: SLOT.into(),
            behind_bytes: 2 << 30,
            kept: Some(kept),
            ..LaneLine::default()
        }
    }

    fn apart(lane: LaneLine) -> SinkLine {
        SinkLine { lane: Some(lane), durable_lsn: Lsn(10), ..sink("redis") }
    }

    fn dead(breaker: BreakerState, lane: LaneLine) -> SinkLine {
        SinkLine {
            state: SinkState::Retrying,
            last_error: Some("redis does not answer; start it (WC-320)".into()),
            failing_seconds: Some(1_800.0),
            next_probe_seconds: (breaker == BreakerState::Open).then_some(7.3),
            breaker,
            ..apart(lane)
        }
    }

    /// Of redis, while kafka goes on.
    fn told(redis: SinkLine) -> String {
        problems(&status(slot(), vec![sink("kafka"), redis])).join("\n")
    }

    #[test]
    fn an_open_breaker_says_what_failed_when_it_is_asked_again_and_who_keeps_what_it_lacks() {
        insta::assert_snapshot!(told(dead(BreakerState::Open, lane(LaneState::Parked, 1_790.0))), @"redis takes no rows, for 30 min now, and is asked again in 7 s; the other sinks go on, and a slot of its own keeps 3.0 GiB of WAL for it: redis does not answer; start it (WC-320)");
        let opening = LaneLine { slot: String::new(), kept: None, ..lane(LaneState::Opening, 1.0) };
        insta::assert_snapshot!(told(dead(BreakerState::Open, opening)), @"redis takes no rows, for 30 min now, and is asked again in 7 s; the other sinks go on, and the slot walcast keeps the WAL for it: redis does not answer; start it (WC-320)");
        let probed = SinkLine {
            next_probe_seconds: Some(0.2),
            ..dead(BreakerState::Open, lane(LaneState::Parked, 9.0))
        };
        assert!(told(probed).contains("is asked again now"));
    }

    #[test]
    fn a_target_that_answers_and_holds_nothing_yet_is_not_well() {
        insta::assert_snapshot!(told(dead(BreakerState::HalfOpen, lane(LaneState::CatchingUp, 3.0))), @"redis answers again, and has yet to make a row durable after 30 min; the other sinks go on, and a slot of its own keeps 3.0 GiB of WAL for it. It had failed: redis does not answer; start it (WC-320)");
    }

    #[test]
    fn a_sink_in_a_lane_is_not_blamed_for_the_walcast_slot() {
        let tight = SlotStatus { safe_wal_bytes: Some(100 << 20), ..slot() };
        let behind = SinkLine { durable_lsn: Lsn(60), ..sink("bigquery") };
        for (state, holder) in [
            (LaneState::Parked, "bigquery"),
            (LaneState::CatchingUp, "bigquery"),
            (LaneState::Lost, "bigquery"),
            (LaneState::Opening, "redis"),
            (LaneState::Joining, "redis"),
        ] {
            let sinks = vec![sink("kafka"), behind.clone(), apart(lane(state, 1.0))];
            let status = status(tight.clone(), sinks);
            assert_eq!(status.holders(), [holder], "{state}");
            let advice = format!("; bring {holder} up, or give it more: `walcast check` has the statement");
            assert!(problems(&status).first().is_some_and(|first| first.ends_with(&advice)), "{state}");
        }
    }

    #[test]
    fn a_lane_that_cannot_be_opened_says_why() {
        let why = "PostgreSQL: all replication slots are in use; raise max_replication_slots (WC-209)";
        let opening = LaneLine {
            slot: String::new(),
            kept: None,
            last_error: Some(why.into()),
            last_error_code: Some(Code::SlotsExhausted),
            ..lane(LaneState::Opening, 1.0)
        };
        insta::assert_snapshot!(told(apart(opening.clone())), @"redis has fallen behind and gets no slot of its own, so that the slot walcast keeps the WAL for it: PostgreSQL: all replication slots are in use; raise max_replication_slots (WC-209)");
        let silent = |seconds| told(apart(LaneLine { last_error: None, seconds, ..opening.clone() }));
        assert_eq!(silent(29.0), "");
        insta::assert_snapshot!(silent(31.0), @"redis has fallen behind and has waited 31 s for a slot of its own, so that the slot walcast keeps the WAL for it; see what PostgreSQL is busy with");
    }

    #[test]
    fn a_parked_lane_is_told_when_nothing_else_says_why() {
        assert_eq!(told(apart(lane(LaneState::Parked, 29.0))), "");
        insta::assert_snapshot!(told(apart(lane(LaneState::Parked, 45.0))), @"redis has fallen behind and has not asked for rows for 45 s; the other sinks go on, and a slot of its own keeps 3.0 GiB of WAL for it; see why redis does not answer");
        let line = |step: &str| BackfillLine {
            state: "running".into(),
            sinks: vec!["redis".into()],
            rows: 0,
            estimated_rows: 9,
            rebuild: Some(step.into()),
            missing: false,
        };
        let anew = |step| {
            let status = status(slot(), vec![sink("kafka"), apart(lane(LaneState::Parked, 45.0))]);
            problems(&Status { backfill: Some(line(step)), ..status }).len()
        };
        assert_eq!(
            ["asked", "counting", "emptied"].map(anew),
            [0, 0, 1],
            "it is filled anew, and does not ask"
        );
        let busy = LaneLine {
            last_error: Some("PostgreSQL: too many connections; raise max_wal_senders (WC-305)".into()),
            last_error_code: Some(Code::ConnectionsExhausted),
            ..lane(LaneState::Parked, 1.0)
        };
        insta::assert_snapshot!(told(apart(busy)), @"redis cannot be fed from its own slot, which keeps what it lacks while the other sinks go on: PostgreSQL: too many connections; raise max_wal_senders (WC-305)");
    }

    #[test]
    fn catching_up_is_told_when_it_lasts() {
        let catching_up = |seconds, left| {
            told(apart(LaneLine { catch_up_seconds: left, ..lane(LaneState::CatchingUp, seconds) }))
        };
        assert_eq!(catching_up(59.0, Some(300.0)), "");
        insta::assert_snapshot!(catching_up(61.0, Some(300.0)), @"redis catches up by a stream of its own: 2.0 GiB behind, and level in about 5 min at this pace; wait, or see why redis is slow");
        insta::assert_snapshot!(catching_up(601.0, None), @"redis is slower than the stream: it is 2.0 GiB behind after 10 min on a stream of its own, and comes no nearer, while the other sinks go on; see why redis is slow");
        assert!(catching_up(61.0, Some(90_000.0)).contains("level in about 25 h at this pace"));
        let near = LaneLine { behind_bytes: 1 << 20, ..lane(LaneState::CatchingUp, 601.0) };
        assert_eq!(told(apart(near)), "");
    }

    #[test]
    fn a_lost_lane_says_how_to_go_on_and_what_can_be_mended_is_not_called_lost() {
        let lost = |code, why: &str| {
            let lane = LaneLine {
                last_error: Some(format!("{why} ({code})")),
                last_error_code: Some(code),
                ..lane(LaneState::Lost, 1.0)
            };
            told(dead(BreakerState::Closed, lane))
        };
        insta::assert_snapshot!(lost(Code::LaneLost, &format!("{SLOT} is gone; see `walcast check`")), @r#"redis lacks what PostgreSQL has no more, and gets nothing while the other sinks go on: walcast_lane_0123456789ab_redis_7_1 is gone; see `walcast check` (WC-409); `walcast rebuild redis` fills it anew"#);
        let kept = LaneSlot {
            slot: SLOT.into(),
            wal_status: "lost".into(),
            invalidation_reason: Some("idle_timeout".into()),
            ..LaneSlot::default()
        };
        // before it runs into that
        let parked = LaneLine { kept: Some(kept), ..lane(LaneState::Parked, 1_000.0) };
        insta::assert_snapshot!(told(dead(BreakerState::Open, parked)), @r#"redis lacks what PostgreSQL has no more, and gets nothing while the other sinks go on: the slot walcast_lane_0123456789ab_redis_7_1 is lost (idle_timeout) (WC-409); `walcast rebuild redis` fills it anew"#);
        let rights = lost(Code::PostgresRights, "PostgreSQL: permission denied; grant it");
        assert!(
            rights.contains("redis cannot be fed from its own slot, which keeps what it lacks"),
            "{rights}"
        );
    }

    #[test]
    fn a_slot_of_one_sink_that_is_soon_lost_is_told() {
        let kept = |wal_status: &str, safe_wal_bytes| {
            let kept = LaneSlot {
                slot: SLOT.into(),
                wal_status: wal_status.into(),
                safe_wal_bytes,
                ..LaneSlot::default()
            };
            told(apart(LaneLine { kept: Some(kept), ..lane(LaneState::Parked, 1.0) }))
        };
        assert_eq!(kept("extended", Some(300 << 20)), "");
        insta::assert_snapshot!(kept("extended", Some(100 << 20)), @"PostgreSQL removes WAL that redis alone still needs after 100.0 MiB more (max_slot_wal_keep_size); bring redis up, or give its slot walcast_lane_0123456789ab_redis_7_1 more: `walcast check` has the statement");
        assert!(kept("unreserved", Some(0)).contains("redis alone still needs at its next checkpoint"));
    }
}
