//! The state as text, for people and for logs.

use std::fmt::Write;

use jiff::Timestamp;

use crate::lsn::Lsn;
use crate::ops::terminal::Paint;
use crate::size::size;
use crate::state::dead_letters::LetterCount;
use crate::telemetry::status::{
    BackfillLine, BreakerState, LaneLine, SinkLine, SinkState, SlotStatus, Status,
};

/// What is wrong often has one cause: the first few say it.
const PROBLEMS_MAX: usize = 3;

/// The state on one line, for a log.
pub(super) fn line(status: &Status, now: Timestamp) -> String {
    let ready = if status.is_ready() { "ready" } else { "NOT READY" };
    let sinks = status.sinks.iter().map(|sink| match &sink.lane {
        Some(lane) => format!("{} {} ({})", sink.name, size(lane.behind_bytes), state_of(sink)),
        None => format!("{} {}", sink.name, seconds(sink.lag_seconds)),
    });
    let sinks = sinks.collect::<Vec<_>>().join(", ");
    let kept = status.source.slot.as_ref().map(|slot| format!("  WAL kept {}", size(slot.retained_bytes)));
    let problem = status.problems.first().map(|problem| format!("  problem: {problem}"));
    format!(
        "{}  {ready}  {}  confirmed {}{}  behind: {sinks}{}\n",
        clock(now),
        status.state,
        lsn(status.confirmed_lsn),
        kept.unwrap_or_default(),
        problem.unwrap_or_default()
    )
}

pub(super) fn clock(now: Timestamp) -> String {
    now.strftime("%H:%M:%S").to_string()
}

/// The state for people.
pub(super) fn render(status: &Status, now: Timestamp, paint: Paint) -> String {
    let since = seconds(now.duration_since(status.since).as_secs_f64());
    let ready = if status.is_ready() { paint.good("ready") } else { paint.bad(&not_ready(status)) };
    let source = &status.source;
    let mut text = format!("walcast {} {} for {since}: {ready}\n\n", status.version, status.state);
    let heartbeat = source.heartbeat_age_seconds.map(|age| format!(", heartbeat {} ago", seconds(age)));
    let events = grouped(source.events_total);
    let _ = writeln!(text, "source  {events} events{}", heartbeat.unwrap_or_default());
    if let Some(slot) = &source.slot {
        let _ = writeln!(text, "slot    {}", slot_line(slot));
    }
    let _ = write!(text, "\n{}", ladder(status, paint));
    text.push_str(&apart(&status.sinks));
    text.push_str(&guarantees(&status.sinks));
    text.push_str(&dead_letters(&status.dead_letters));
    text.push_str(&backfill(status.backfill.as_ref()));
    if !status.problems.is_empty() {
        text.push('\n');
    }
    for problem in status.problems.iter().take(PROBLEMS_MAX) {
        let _ = writeln!(text, "{} {problem}", paint.bad("problem:"));
    }
    text
}

/// While it streams, of which sinks that is so.
fn not_ready(status: &Status) -> String {
    let well = |sink: &&SinkLine| sink.state == SinkState::Ok && sink.lane.is_none();
    let sinks: Vec<&str> =
        status.sinks.iter().filter(|sink| !well(sink)).map(|sink| sink.name.as_str()).collect();
    match status.is_streaming() && !sinks.is_empty() {
        true => format!("NOT READY ({})", sinks.join(", ")),
        false => "NOT READY".to_owned(),
    }
}

fn slot_line(slot: &SlotStatus) -> String {
    let active = if slot.active {
        "active".to_owned()
    } else {
        format!("inactive for {}", seconds(slot.inactive_seconds))
    };
    let left = slot.safe_wal_bytes.map(|left| format!(", {} left before it is lost", size(left)));
    let waits = match slot.missing_standbys.as_slice() {
        [] => String::new(),
        names => {
            format!(
                ", waits for the standby of {} for {}",
                names.join(", "),
                seconds(slot.standby_wait_seconds)
            )
        }
    };
    format!(
        "{}: {active}, {}, {} of WAL kept{}{waits}",
        slot.name,
        slot.wal_status,
        size(slot.retained_bytes),
        left.unwrap_or_default()
    )
}

/// Rows that were refused and wait for somebody.
fn dead_letters(counts: &[LetterCount]) -> String {
    let mut text = String::new();
    for LetterCount { sink, reason, open, replaying } in
        counts.iter().filter(|one| one.open + one.replaying > 0)
    {
        let before = if text.is_empty() { "\ndead letters (walcast dead-letters list)\n" } else { "" };
        let again = if *replaying > 0 {
            format!(", {} on their way again", grouped(*replaying))
        } else {
            String::new()
        };
        let _ = writeln!(text, "{before}{sink}  {reason}: {} open{again}", grouped(*open));
    }
    text
}

/// Rows of before walcast on their way.
fn backfill(open: Option<&BackfillLine>) -> String {
    let Some(BackfillLine { state, sinks, rows, estimated_rows, rebuild, missing }) = open else {
        return String::new();
    };
    let (rows, about, sinks) = (grouped(*rows), grouped(*estimated_rows), sinks.join(", "));
    let (what, sent, step) = match rebuild.as_deref() {
        None => ("backfill", "sent to", String::new()),
        Some("emptied") if *missing => ("rebuild", "sent to", ", which lacks them".to_owned()),
        Some(step) if *missing => ("rebuild", "sent to", format!(", which begins anew ({step})")),
        Some("emptied") => ("rebuild", "sent to", ", which was emptied".to_owned()),
        Some("counting") => ("rebuild", "counted for", ", which was emptied".to_owned()),
        Some(step) => ("rebuild", "sent to", format!(", which is to be emptied ({step})")),
    };
    format!(
        "\n{what} (walcast backfill status)\n{state}  {rows} of about {about} rows {sent} {sinks}{step}\n"
    )
}

/// What the sinks do that are not fed with the others.
fn apart(sinks: &[SinkLine]) -> String {
    let width = sinks.iter().map(|sink| sink.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for sink in sinks {
        let breaker = breaker(sink);
        if sink.lane.is_none() && breaker.is_none() {
            continue;
        }
        let before = if text.is_empty() { "\napart from the others\n" } else { "" };
        let kept = sink.lane.as_ref().and_then(|lane| lane.kept.as_ref());
        let kept = kept
            .map(|kept| format!("{}: {}, {} kept", kept.slot, kept.wal_status, size(kept.retained_bytes)));
        let lines = sink.lane.as_ref().map(lane).into_iter().chain(breaker).chain(kept);
        text.push_str(before);
        for (at, line) in lines.enumerate() {
            let name = if at == 0 { sink.name.as_str() } else { "" };
            let _ = writeln!(text, "{name:<width$}  {line}");
        }
    }
    text
}

fn lane(lane: &LaneLine) -> String {
    let left = lane.catch_up_seconds.map(|left| format!(", level in {}", seconds(left))).unwrap_or_default();
    let state = if lane.is_lost() { "lost".to_owned() } else { lane.state.to_string() };
    format!("{state} for {}, {} behind{left}", seconds(lane.seconds), size(lane.behind_bytes))
}

fn breaker(sink: &SinkLine) -> Option<String> {
    let next = sink.next_probe_seconds.map(|next| format!(", asked again in {}", seconds(next)));
    let next = next.unwrap_or_default();
    (sink.breaker != BreakerState::Closed).then(|| format!("circuit breaker {}{next}", sink.breaker))
}

/// Of a sink that has fallen behind, what its lane does; else whether it takes rows.
fn state_of(sink: &SinkLine) -> String {
    match &sink.lane {
        Some(_) if sink.is_lost() => "lost".to_owned(),
        Some(lane) => lane.state.to_string(),
        None => sink.state.to_string(),
    }
}

/// What each sink promises of an event.
fn guarantees(sinks: &[SinkLine]) -> String {
    let width = sinks.iter().map(|sink| sink.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for sink in sinks.iter().filter(|sink| !sink.guarantee.is_empty()) {
        let before = if text.is_empty() { "\nguarantees\n" } else { "" };
        let _ = writeln!(text, "{before}{:<width$}  {}", sink.name, sink.guarantee);
    }
    text
}

/// Columns of the ladder; the first, the state and the remark are text, the others figures.
type Rung = [String; 8];
const TEXT_COLUMNS: [usize; 3] = [0, 3, 7];

/// From the head of the WAL down to what PostgreSQL still keeps: whoever stands low keeps what lies above him.
fn ladder(status: &Status, paint: Paint) -> String {
    // Looked at one after the other: what a sink holds was received by then, and what was received had been sent.
    let slot = status.source.slot.as_ref();
    let received =
        status.sinks.iter().map(|sink| sink.durable_lsn).fold(status.source.received_lsn, Lsn::max);
    let sent = slot.and_then(|slot| slot.sent_lsn).map(|sent| sent.max(received));
    let head = slot.map_or(received, |slot| slot.wal_lsn.max(received).max(sent.unwrap_or_default()));
    let place = |name: &str, at: Lsn| -> Rung {
        let behind = if at == Lsn::ZERO { String::new() } else { size(head.bytes_since(at)) };
        let mut rung = Rung::default();
        rung[..3].clone_from_slice(&[name.to_owned(), lsn(at), behind]);
        rung
    };
    let mut rungs = vec![["", "LSN", "behind", "state", "lag", "queue", "rows", ""].map(str::to_owned)];
    rungs.extend(slot.map(|_| place("head", head)));
    rungs.extend(sent.map(|sent| place("sent", sent)));
    rungs.push(place("received", received));
    let holders = status.holders();
    let mut sinks: Vec<&SinkLine> = status.sinks.iter().collect();
    sinks.sort_by_key(|sink| std::cmp::Reverse(sink.durable_lsn));
    let (fed, apart): (Vec<_>, Vec<_>) = sinks.into_iter().partition(|sink| sink.lane.is_none());
    let rung = |sink: &SinkLine| sink_rung(sink, place(&sink.name, sink.durable_lsn), &holders);
    rungs.extend(fed.into_iter().map(rung));
    rungs.push(place("confirmed", status.confirmed_lsn));
    rungs.extend(slot.and_then(|slot| slot.restart_lsn).map(|restart| place("restart", restart)));
    // what these lack another slot keeps
    rungs.extend(apart.into_iter().map(rung));
    aligned(
        &rungs,
        |rung| match (rung[3].as_str(), rung[7].as_str()) {
            ("retrying" | "blocked" | "parked" | "lost", _) => Some(Paint::bad),
            ("opening" | "catching up" | "joining", _) => Some(Paint::doubtful),
            (_, "") => None,
            _ => Some(Paint::doubtful),
        },
        paint,
    )
}

fn sink_rung(sink: &SinkLine, place: Rung, holders: &[&str]) -> Rung {
    let [name, at, behind, ..] = place;
    let full = if sink.backpressure { " full" } else { "" };
    let holds = holders.contains(&sink.name.as_str());
    // what it was not given has no age that is known here
    let lag = match sink.lane.is_some() && sink.lag_seconds == 0.0 {
        true => "-".to_owned(),
        false => seconds(sink.lag_seconds),
    };
    let remark = match (holds, sink.state) {
        (true, _) => "<- holds the WAL",
        (false, SinkState::Ok) => "",
        (false, _) => "<- takes no rows",
    };
    [
        name,
        at,
        behind,
        state_of(sink),
        lag,
        size(sink.queue_bytes) + full,
        grouped(sink.rows_total),
        remark.to_owned(),
    ]
}

/// Columns as wide as their widest cell: text to the left, figures to the right; lines in the colour that `colour`
/// gives them.
fn aligned(
    rungs: &[Rung],
    colour: impl Fn(&Rung) -> Option<fn(&Paint, &str) -> String>,
    paint: Paint,
) -> String {
    let width = |column: usize| {
        rungs.iter().filter_map(|rung| rung.get(column)).map(String::len).max().unwrap_or_default()
    };
    let mut text = String::new();
    for rung in rungs {
        let cells = rung.iter().enumerate().map(|(column, cell)| {
            let width = width(column);
            if TEXT_COLUMNS.contains(&column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let line = line.trim_end();
        text.push_str(&colour(rung).map_or_else(|| line.to_owned(), |colour| colour(&paint, line)));
        text.push('\n');
    }
    text
}

fn lsn(lsn: Lsn) -> String {
    if lsn == Lsn::ZERO { "-".to_owned() } else { lsn.to_string() }
}

/// `12,345,678`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `0.25 s`, `2.5 s`, `42 s`, `5 min 3 s`, `2 h 10 min`, `3 d 4 h`.
pub(super) fn seconds(amount: f64) -> String {
    // a clock was set back meanwhile
    let amount = amount.max(0.0);
    let whole = amount as u64;
    match whole {
        0 => format!("{amount:.2} s"),
        1..10 => format!("{amount:.1} s"),
        10..60 => format!("{whole} s"),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::status::{LaneSlot, LaneState, SourceStatus, State};

    #[test]
    fn a_time_that_is_yet_to_come_is_no_time_ago() {
        assert_eq!([seconds(-3_600.0), seconds(0.25), seconds(3_700.0)], ["0.00 s", "0.25 s", "1 h 1 min"]);
    }

    #[test]
    fn each_sink_says_what_it_promises() {
        let promising =
            |name, guarantee: &str| SinkLine { guarantee: guarantee.to_owned(), ..sink(name, SinkState::Ok) };
        let sinks = [promising("kafka", "exactly once"), promising("bigquery", "exactly once, in batches")];
        insta::assert_snapshot!(guarantees(&sinks), @r"

        guarantees
        kafka     exactly once
        bigquery  exactly once, in batches
        ");
        assert_eq!(guarantees(&[sink("kafka", SinkState::Ok)]), "");
    }

    #[test]
    fn dead_letters_are_told_by_sink_and_reason() {
        let count = |sink: &str, reason: &str, open, replaying| LetterCount {
            sink: sink.into(),
            reason: reason.into(),
            open,
            replaying,
        };
        let counts = [
            count("all", "negative_duration", 1_200, 0),
            count("bigquery", "x", 1, 2),
            count("kafka", "y", 0, 0),
        ];
        insta::assert_snapshot!(dead_letters(&counts), @r"

        dead letters (walcast dead-letters list)
        all  negative_duration: 1,200 open
        bigquery  x: 1 open, 2 on their way again
        ");
        assert_eq!(dead_letters(&counts[2..]), "");
    }

    #[test]
    fn a_slot_whose_standby_is_missing_says_so() {
        let waits = SlotStatus {
            name: "walcast".into(),
            active: true,
            wal_status: "reserved".into(),
            missing_standbys: vec!["a".into(), "b".into()],
            standby_wait_seconds: 42.0,
            ..SlotStatus::default()
        };
        insta::assert_snapshot!(slot_line(&waits), @"walcast: active, reserved, 0 B of WAL kept, waits for the standby of a, b for 42 s");
    }

    fn sink(name: &str, state: SinkState) -> SinkLine {
        SinkLine {
            name: name.into(),
            state,
            durable_lsn: Lsn(0x2_1A2B_3C00),
            position: None,
            lag_bytes: 1_536,
            lag_seconds: 0.25,
            queue_bytes: 512,
            backpressure: false,
            rows_total: 1_234_567,
            last_error: None,
            last_error_code: None,
            ..SinkLine::default()
        }
    }

    fn status() -> Status {
        Status {
            version: "0.2.0".into(),
            state: State::Streaming,
            since: Timestamp::UNIX_EPOCH,
            source: SourceStatus {
                received_lsn: Lsn(0x2_1A2B_4200),
                events_total: 987_654,
                ignored_control_messages_total: 0,
                heartbeat_age_seconds: Some(3.5),
                last_error: None,
                last_error_code: None,
                slot: Some(SlotStatus {
                    name: "walcast".into(),
                    active: true,
                    wal_status: "reserved".into(),
                    retained_bytes: 20 << 20,
                    safe_wal_bytes: Some(3 << 30),
                    wal_lsn: Lsn(0x2_1A2B_4400),
                    sent_lsn: Some(Lsn(0x2_1A2B_4200)),
                    confirmed_lsn: Lsn(0x2_1A2B_3C00),
                    restart_lsn: Some(Lsn(0x2_18EB_4400)),
                    ..SlotStatus::default()
                }),
            },
            confirmed_lsn: Lsn(0x2_1A2B_3C00),
            sinks: vec![
                sink("content", SinkState::Ok),
                sink("bigquery", SinkState::Ok),
                SinkLine { durable_lsn: Lsn(0x2_1A2B_4200), ..sink("redis", SinkState::Ok) },
            ],
            dead_letters: Vec::new(),
            backfill: None,
            problems: Vec::new(),
            problem: None,
        }
    }

    fn shown(status: &Status) -> String {
        render(status, Timestamp::UNIX_EPOCH + Duration::from_secs(7_530), Paint { colours: false })
    }

    #[test]
    fn a_running_walcast_is_shown_on_one_screen() {
        insta::assert_snapshot!(shown(&status()), @r"
        walcast 0.2.0 streaming for 2 h 5 min: ready

        source  987,654 events, heartbeat 3.5 s ago
        slot    walcast: active, reserved, 20.0 MiB of WAL kept, 3.0 GiB left before it is lost

                          LSN    behind  state     lag  queue       rows
        head       2/1A2B4400       0 B
        sent       2/1A2B4200     512 B
        received   2/1A2B4200     512 B
        redis      2/1A2B4200     512 B  ok     0.25 s  512 B  1,234,567
        content    2/1A2B3C00   2.0 KiB  ok     0.25 s  512 B  1,234,567  <- holds the WAL
        bigquery   2/1A2B3C00   2.0 KiB  ok     0.25 s  512 B  1,234,567  <- holds the WAL
        confirmed  2/1A2B3C00   2.0 KiB
        restart    2/18EB4400  20.0 MiB
        ");
    }

    #[test]
    fn what_is_wrong_comes_last_so_that_it_is_seen() {
        let mut status = status();
        status.sinks = vec![SinkLine {
            lag_seconds: 4_000.0,
            lag_bytes: 5 << 30,
            backpressure: true,
            queue_bytes: 16 << 20,
            ..sink("kafka", SinkState::Retrying)
        }];
        status.source.slot = None;
        status.source.heartbeat_age_seconds = None;
        status.problems =
            vec!["kafka takes no rows and holds the WAL back: no broker answers; start one".into()];
        insta::assert_snapshot!(shown(&status), @r"
        walcast 0.2.0 streaming for 2 h 5 min: NOT READY (kafka)

        source  987,654 events

                          LSN   behind  state           lag          queue       rows
        received   2/1A2B4200      0 B
        kafka      2/1A2B3C00  1.5 KiB  retrying  1 h 6 min  16.0 MiB full  1,234,567  <- holds the WAL
        confirmed  2/1A2B3C00  1.5 KiB

        problem: kafka takes no rows and holds the WAL back: no broker answers; start one
        ");
    }

    #[test]
    fn before_the_first_start_there_is_little_to_show() {
        let status = Status {
            state: State::Starting,
            sinks: Vec::new(),
            source: SourceStatus::default(),
            confirmed_lsn: Lsn::ZERO,
            ..status()
        };
        insta::assert_snapshot!(shown(&status), @r"
        walcast 0.2.0 starting for 2 h 5 min: NOT READY

        source  0 events

                   LSN  behind  state  lag  queue  rows
        received     -
        confirmed    -
        ");
    }

    #[test]
    fn who_holds_the_wal_is_seen_at_once() {
        let mut status = status();
        let slow = SinkLine { durable_lsn: Lsn(0x2_0000_0000), ..sink("bigquery", SinkState::Ok) };
        status.sinks = vec![slow, sink("kafka", SinkState::Retrying), sink("redis", SinkState::Ok)];
        status.confirmed_lsn = Lsn(0x2_0000_0000);
        let coloured = render(&status, Timestamp::UNIX_EPOCH, Paint { colours: true });
        let held = coloured.lines().find(|line| line.contains("holds the WAL"));
        assert!(held.is_some_and(|line| line.starts_with("\x1b[33mbigquery ")), "{coloured}");
        assert!(coloured.lines().any(|line| line.starts_with("\x1b[31mkafka ")), "{coloured}");
        assert!(!shown(&status).contains('\x1b'));
    }

    fn in_a_lane(name: &str, state: LaneState) -> SinkLine {
        let slot = format!("walcast_lane_0123456789ab_{name}_7_1");
        let kept = LaneSlot {
            slot: slot.clone(),
            wal_status: "extended".into(),
            retained_bytes: 3 << 30,
            ..LaneSlot::default()
        };
        let lane = LaneLine {
            state,
            seconds: 1_830.0,
            slot,
            behind_bytes: 2 << 30,
            catch_up_seconds: (state == LaneState::CatchingUp).then_some(312.0),
            kept: Some(kept),
            ..LaneLine::default()
        };
        SinkLine { durable_lsn: Lsn(0x1_9000_0000), lane: Some(lane), ..sink(name, SinkState::Ok) }
    }

    #[test]
    fn a_sink_that_has_fallen_behind_is_told_apart() {
        let mut status = status();
        let dead = SinkLine {
            state: SinkState::Retrying,
            breaker: BreakerState::Open,
            next_probe_seconds: Some(7.2),
            lag_seconds: 0.0,
            queue_bytes: 0,
            ..in_a_lane("redis", LaneState::Parked)
        };
        status.sinks =
            vec![sink("content", SinkState::Ok), dead, in_a_lane("bigquery", LaneState::CatchingUp)];
        let text = shown(&status);
        insta::assert_snapshot!(text, @r"
        walcast 0.2.0 streaming for 2 h 5 min: NOT READY (redis, bigquery)

        source  987,654 events, heartbeat 3.5 s ago
        slot    walcast: active, reserved, 20.0 MiB of WAL kept, 3.0 GiB left before it is lost

                          LSN    behind  state           lag  queue       rows
        head       2/1A2B4400       0 B
        sent       2/1A2B4200     512 B
        received   2/1A2B4200     512 B
        content    2/1A2B3C00   2.0 KiB  ok           0.25 s  512 B  1,234,567
        confirmed  2/1A2B3C00   2.0 KiB
        restart    2/18EB4400  20.0 MiB
        redis      1/90000000   2.2 GiB  parked            -    0 B  1,234,567  <- takes no rows
        bigquery   1/90000000   2.2 GiB  catching up  0.25 s  512 B  1,234,567

        apart from the others
        redis     parked for 30 min 30 s, 2.0 GiB behind
                  circuit breaker open, asked again in 7.2 s
                  walcast_lane_0123456789ab_redis_7_1: extended, 3.0 GiB kept
        bigquery  catching up for 30 min 30 s, 2.0 GiB behind, level in 5 min 12 s
                  walcast_lane_0123456789ab_bigquery_7_1: extended, 3.0 GiB kept
        ");
        assert!(apart(&status.sinks).lines().all(|line| line.chars().count() <= 80), "{text}");
        let coloured = render(&status, Timestamp::UNIX_EPOCH, Paint { colours: true });
        assert!(coloured.lines().any(|line| line.starts_with("\x1b[31mredis ")), "{coloured}");
        assert!(coloured.lines().any(|line| line.starts_with("\x1b[33mbigquery ")), "{coloured}");
        let line = line(&status, Timestamp::UNIX_EPOCH);
        assert!(line.contains("redis 2.0 GiB (parked), bigquery 2.0 GiB (catching up)"), "{line}");
    }

    /// PostgreSQL has told, and the lane does not run.
    #[test]
    fn a_slot_that_is_lost_is_shown_so_at_once() {
        let mut lost = in_a_lane("redis", LaneState::Parked);
        for kept in lost.lane.iter_mut().filter_map(|lane| lane.kept.as_mut()) {
            kept.wal_status = "lost".into();
        }
        assert_eq!(state_of(&lost), "lost");
        assert!(apart(&[lost]).contains("redis  lost for 30 min 30 s"));
    }

    #[test]
    fn a_sink_that_is_filled_anew_is_told_with_what_is_done_to_it() {
        let told = |rebuild: Option<&str>, missing| {
            let line = BackfillLine {
                state: "running".into(),
                sinks: vec!["redis".into()],
                rows: 1_200,
                estimated_rows: 5_000,
                rebuild: rebuild.map(str::to_owned),
                missing,
            };
            backfill(Some(&line)).lines().last().unwrap_or_default().to_owned()
        };
        assert_eq!(told(None, false), "running  1,200 of about 5,000 rows sent to redis");
        assert_eq!(
            told(Some("emptied"), true),
            "running  1,200 of about 5,000 rows sent to redis, which lacks them"
        );
        assert_eq!(
            told(Some("asked"), false),
            "running  1,200 of about 5,000 rows sent to redis, which is to be emptied (asked)"
        );
        assert_eq!(
            told(Some("counting"), false),
            "running  1,200 of about 5,000 rows counted for redis, which was emptied"
        );
    }

    #[test]
    fn a_log_gets_a_line() {
        let mut status = status();
        status.problems = vec!["kafka is slow; look at it".into()];
        insta::assert_snapshot!(line(&status, Timestamp::UNIX_EPOCH), @"00:00:00  ready  streaming  confirmed 2/1A2B3C00  WAL kept 20.0 MiB  behind: content 0.25 s, bigquery 0.25 s, redis 0.25 s  problem: kafka is slow; look at it");
    }
}
