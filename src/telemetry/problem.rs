//! What is wrong, worst first, each in one sentence that ends with what to do.

use std::time::Duration;

use crate::size::size;
use crate::source::check::TRANSACTION_OPEN_MAX;
use crate::telemetry::status::{SinkLine, SinkState, SlotStatus, State, Status};

/// A sink further behind than this is a problem.
const LAG_MAX: Duration = Duration::from_secs(60);
/// PostgreSQL about to remove WAL that the slot needs is a problem.
const SAFE_WAL_BYTES_MIN: u64 = 256 << 20;
/// A stream that brings no heartbeat for this long is a problem; they are written every ten seconds.
const HEARTBEAT_AGE_MAX: Duration = Duration::from_secs(45);
/// A slot that keeps more WAL than this from before its confirmed LSN is a problem.
const HELD_BEFORE_BYTES_MAX: u64 = 1 << 30;
/// A slot that cannot be looked at for this long is a problem.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(30);

/// What is wrong, worst first; nothing when all is well.
pub fn problems(status: &Status) -> Vec<String> {
    let slot = status.source.slot.as_ref();
    let mut problems = Vec::new();
    problems.extend(slot.and_then(lost));
    problems.extend(not_streaming(status));
    problems.extend(slot.and_then(waits_for_standby));
    problems.extend(status.sinks.iter().filter_map(failing));
    problems.extend(slot.and_then(|slot| at_risk(slot, status)));
    problems.extend(slot.and_then(|slot| unreserved(slot, status)));
    problems.extend(status.sinks.iter().filter_map(|sink| sink.trouble.clone()));
    problems.extend(status.sinks.iter().filter_map(behind));
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

fn failing(sink: &SinkLine) -> Option<String> {
    let why = sink.last_error.as_ref().filter(|_| sink.state != SinkState::Ok)?;
    Some(format!("{} takes no rows and holds the WAL back: {why}", sink.name))
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
    if *lag_seconds <= LAG_MAX.as_secs_f64() || sink.state != SinkState::Ok {
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
    (before > HELD_BEFORE_BYTES_MAX)
        .then(|| format!("PostgreSQL keeps {} of WAL from before what all sinks hold{why}", size(before)))
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
    use crate::telemetry::status::SourceStatus;

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
        PostgreSQL keeps 2.0 GiB of WAL from before what all sinks hold, since a transaction that has written has been open for 400 s; `walcast check` names it
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
                insta::assert_snapshot!(kept(open, true), @"PostgreSQL keeps 2.0 GiB of WAL from before what all sinks hold; no transaction has been open that long; PostgreSQL moves the restart LSN after its next checkpoint. Run CHECKPOINT if the disk cannot wait");
                insta::assert_snapshot!(kept(open, false), @"PostgreSQL keeps 2.0 GiB of WAL from before what all sinks hold; walcast's role cannot see other sessions, and so not whether a transaction is open: GRANT pg_read_all_stats TO walcast");
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
}
