//! `walcast status`: asks the running walcast how it is doing.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;

use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::lsn::Lsn;
use crate::telemetry::status::{SinkLine, SlotStatus, Status};
use crate::web::WebConfig;

const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// What is wrong often has one cause: the first few say it.
const PROBLEMS_MAX: usize = 3;

/// Prints the state; exit code 1 when events do not flow into every sink, or nothing answers.
pub async fn status(config: &Config, json: bool) -> Result<ExitCode> {
    let text = ask(&config.web).await?;
    let status: Status = serde_json::from_str(&text).map_err(|error| {
        Error::new(Kind::Protocol, format!("what answers on {} is not this walcast", config.web.listen))
            .because(error)
            .hint("use the `walcast` that is running; web.listen (WEB_LISTEN) says where it is asked")
    })?;
    if json {
        println!("{text}");
    } else {
        print!("{}", render(&status, Timestamp::now()));
    }
    Ok(ExitCode::from(if status.is_ready() { 0 } else { 1 }))
}

async fn ask(web: &WebConfig) -> Result<String> {
    let listen = &web.listen;
    let silent = |error| {
        Error::new(Kind::Unavailable, format!("no walcast answers on {listen}"))
            .because(error)
            .hint("start `walcast run`; web.listen (WEB_LISTEN) says where it is asked")
    };
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build().map_err(silent)?;
    let url = format!("http://{}/api/status", reachable(listen));
    let answer = client.get(url).bearer_auth(web.token.expose()).send().await.map_err(silent)?;
    if answer.status() == StatusCode::UNAUTHORIZED {
        return Err(Error::new(Kind::Config, format!("walcast on {listen} asks for another token"))
            .hint("set WEB_TOKEN (web.token) to the token of the walcast that runs"));
    }
    answer.error_for_status().map_err(silent)?.text().await.map_err(silent)
}

/// Where to ask somebody who listens everywhere.
fn reachable(listen: &str) -> String {
    match listen.rsplit_once(':') {
        Some(("0.0.0.0" | "[::]", port)) => format!("localhost:{port}"),
        _ => listen.to_owned(),
    }
}

/// The state for people.
fn render(status: &Status, now: Timestamp) -> String {
    let since = seconds(now.duration_since(status.since).as_secs_f64());
    let ready = if status.is_ready() { "ready" } else { "NOT READY" };
    let source = &status.source;
    let mut text = format!("walcast {} {} for {since}: {ready}\n\n", status.version, status.state);
    let heartbeat = source.heartbeat_age_seconds.map(|age| format!(", heartbeat {} ago", seconds(age)));
    let _ = writeln!(
        text,
        "source  received {}, confirmed {}, {} events{}",
        lsn(source.received_lsn),
        lsn(status.confirmed_lsn),
        grouped(source.events_total),
        heartbeat.unwrap_or_default()
    );
    if let Some(slot) = &source.slot {
        let _ = writeln!(text, "slot    {}", slot_line(slot));
    }
    if !status.sinks.is_empty() {
        text.push('\n');
        text.push_str(&sink_table(&status.sinks));
    }
    if !status.problems.is_empty() {
        text.push('\n');
    }
    for problem in status.problems.iter().take(PROBLEMS_MAX) {
        let _ = writeln!(text, "problem: {problem}");
    }
    text
}

fn slot_line(slot: &SlotStatus) -> String {
    let active = if slot.active {
        "active".to_owned()
    } else {
        format!("inactive for {}", seconds(slot.inactive_seconds))
    };
    let left = slot.safe_wal_bytes.map(|left| format!(", {} left before it is lost", bytes(left)));
    format!(
        "{}: {active}, {}, {} of WAL kept{}",
        slot.name,
        slot.wal_status,
        bytes(slot.retained_bytes),
        left.unwrap_or_default()
    )
}

fn sink_table(sinks: &[SinkLine]) -> String {
    let head = ["sink", "state", "held", "behind", "", "queue", "rows"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(sinks.iter().map(|sink| {
        let full = if sink.backpressure { " full" } else { "" };
        [
            sink.name.clone(),
            sink.state.to_string(),
            lsn(sink.held_lsn),
            seconds(sink.lag_seconds),
            bytes(sink.lag_bytes),
            bytes(sink.queue_bytes) + full,
            grouped(sink.rows_total),
        ]
    }));
    aligned(&rows)
}

/// Columns as wide as their widest cell: names and states to the left, figures to the right.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    const LEFT: usize = 2;
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or_default()
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < LEFT { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
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

/// `512 B`, `1.5 KiB`, `3.0 GiB`.
fn bytes(count: u64) -> String {
    let mut amount = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{amount:.1} {unit}") };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} TiB")
}

/// `0.25 s`, `2.5 s`, `42 s`, `5 min 3 s`, `2 h 10 min`, `3 d 4 h`.
fn seconds(amount: f64) -> String {
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
    use super::*;
    use crate::telemetry::status::{SinkState, SourceStatus, State};

    fn sink(name: &str, state: SinkState) -> SinkLine {
        SinkLine {
            name: name.into(),
            state,
            held_lsn: Lsn(0x2_1A2B_3C00),
            position: None,
            lag_bytes: 1_536,
            lag_seconds: 0.25,
            queue_bytes: 512,
            backpressure: false,
            rows_total: 1_234_567,
            last_error: None,
        }
    }

    fn status() -> Status {
        Status {
            version: "0.1.0".into(),
            state: State::Streaming,
            since: Timestamp::UNIX_EPOCH,
            source: SourceStatus {
                received_lsn: Lsn(0x2_1A2B_4200),
                events_total: 987_654,
                heartbeat_age_seconds: Some(3.5),
                last_error: None,
                slot: Some(SlotStatus {
                    name: "walcast".into(),
                    active: true,
                    wal_status: "reserved".into(),
                    retained_bytes: 20 << 20,
                    safe_wal_bytes: Some(3 << 30),
                    ..SlotStatus::default()
                }),
            },
            confirmed_lsn: Lsn(0x2_1A2B_3C00),
            sinks: vec![sink("kafka", SinkState::Ok), sink("bigquery", SinkState::Ok)],
            problems: Vec::new(),
            problem: None,
        }
    }

    fn shown(status: &Status) -> String {
        render(status, Timestamp::UNIX_EPOCH + Duration::from_secs(7_530))
    }

    #[test]
    fn a_running_walcast_is_shown_on_one_screen() {
        insta::assert_snapshot!(shown(&status()), @r"
        walcast 0.1.0 streaming for 2 h 5 min: ready

        source  received 2/1A2B4200, confirmed 2/1A2B3C00, 987,654 events, heartbeat 3.5 s ago
        slot    walcast: active, reserved, 20.0 MiB of WAL kept, 3.0 GiB left before it is lost

        sink      state        held  behind           queue       rows
        kafka     ok     2/1A2B3C00  0.25 s  1.5 KiB  512 B  1,234,567
        bigquery  ok     2/1A2B3C00  0.25 s  1.5 KiB  512 B  1,234,567
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
        walcast 0.1.0 streaming for 2 h 5 min: NOT READY

        source  received 2/1A2B4200, confirmed 2/1A2B3C00, 987,654 events

        sink   state           held     behind                   queue       rows
        kafka  retrying  2/1A2B3C00  1 h 6 min  5.0 GiB  16.0 MiB full  1,234,567

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
        walcast 0.1.0 starting for 2 h 5 min: NOT READY

        source  received -, confirmed -, 0 events
        ");
    }

    #[test]
    fn whoever_listens_everywhere_is_asked_here() {
        assert_eq!(reachable("0.0.0.0:8080"), "localhost:8080");
        assert_eq!(reachable("[::]:81"), "localhost:81");
        assert_eq!(reachable("10.0.0.5:8080"), "10.0.0.5:8080");
    }
}
