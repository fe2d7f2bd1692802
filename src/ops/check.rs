//! `walcast check`: looks at everything that walcast needs and what an operator should know, and changes nothing.

use std::process::ExitCode;

use futures_util::future::{join, join_all};
use tokio_postgres::Client;

use crate::config::Config;
use crate::error::Result;
use crate::finding::{Finding, Verdict};
use crate::lsn::Session;
use crate::ops::terminal::{Paint, print};
use crate::resume::{self, Resume};
use crate::sink::SinkAdmin;
use crate::sinks;
use crate::source::check::lanes::{self, Lane};
use crate::source::{check as source_check, slot, sql};
use crate::state::{State, history};
use crate::web::access;

/// Prints a line a finding, and below it what mends it; exit code 2 when one of them fails.
pub async fn check(config: &Config, json: bool) -> Result<ExitCode> {
    let findings = findings(config).await;
    let text = match json {
        true => serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n",
        false => render(&findings, &Paint::for_stdout()),
    };
    print(&text);
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    Ok(ExitCode::from(if failed { 2 } else { 0 }))
}

/// What is so now, part by part. What cannot be reached is a finding, and hinders no other.
pub async fn findings(config: &Config) -> Vec<Finding> {
    let (source, targets) = join(source(config), targets(config)).await;
    let (mut findings, client) = source;
    let (told, sinks) = targets;
    findings.extend(told);
    if let Some(client) = client {
        findings.extend(room_for_lanes(config, &client).await);
        findings.extend(positions(config, &client, sinks).await);
    }
    findings.push(access::check(&config.web));
    findings
}

type Sinks = Vec<Box<dyn SinkAdmin>>;

async fn targets(config: &Config) -> (Vec<Finding>, Sinks) {
    let mut sinks = match sinks::admins(config) {
        Ok(sinks) => sinks,
        Err(error) => return (vec![Finding::failed("configuration", "configuration", &error)], Sinks::new()),
    };
    let promised = sinks.iter().map(|sink| {
        let subject = format!("guarantee of {}", sink.name());
        Finding::ok("sink.guarantee", subject, sink.guarantee().to_string())
    });
    let mut told: Vec<Finding> = promised.collect();
    told.extend(join_all(sinks.iter_mut().map(|sink| sink.check())).await.concat());
    (told, sinks)
}

/// What is told of the source, and the session that told it.
async fn source(config: &Config) -> (Vec<Finding>, Option<Client>) {
    let (id, place) =
        ("postgres.server", format!("postgres {}:{}", config.postgres.host, config.postgres.port));
    let client = match sql::connect(&config.postgres).await {
        Ok(client) => client,
        Err(error) => return (vec![source_check::no_session(&config.postgres, id, place, &error)], None),
    };
    let mut findings = vec![Finding::ok(id, place, format!("answers, database {}", config.postgres.db))];
    match required(config, &client).await {
        Ok(told) => findings.extend(told),
        Err(error) => findings.push(Finding::failed("postgres.state", "postgres", &error)),
    }
    let open_max = source_check::TRANSACTION_OPEN_MAX;
    findings.extend(source_check::survey(&client, &config.postgres, open_max).await);
    (findings, Some(client))
}

/// What a start asks for too.
async fn required(config: &Config, client: &Client) -> Result<Vec<Finding>> {
    let mut findings = source_check::check(client, &config.postgres).await?;
    // what a standby has of slots tells nothing of those of its primary
    let standby = slot::server_facts(client).await?.in_recovery;
    if !standby && findings.iter().all(|finding| finding.verdict != Verdict::Fail) {
        findings.extend(history::check(&config.postgres, client).await?);
    }
    Ok(findings)
}

/// How a sink stands to the slot that feeds it.
pub(super) struct Standing {
    /// The sink.
    pub target: Box<dyn SinkAdmin>,
    /// As that slot's stream would begin.
    pub session: Session,
    /// As a start would judge it.
    pub judged: Result<Resume>,
    slot: &'static str,
}

/// Where each sink stands, but those whose own slot is lost: there is nothing to judge them by. An error where the server has no
/// such slot.
pub(super) async fn standings(config: &Config, client: &Client, sinks: Sinks) -> Result<Vec<Standing>> {
    let (history_id, timelines) = history::find(&config.postgres, client).await?;
    let start = history::confirmed(&config.postgres, client).await?;
    let lanes = lanes::lanes(client, history_id.uuid).await?;
    let session = Session { history_id, fencing_token: 0, timelines, start, settled_timeline: 0 };
    let stands = sinks.into_iter().filter(|sink| sink.guarantee().keeps_checkpoint()).filter_map(|sink| {
        let (session, slot) = match lanes.iter().find(|lane| lane.open && lane.sink == sink.name()) {
            Some(lane) => (Session { start: lane.confirmed?, ..session.clone() }, "its own slot"),
            None => (session.clone(), "the slot"),
        };
        Some(async move { Standing { slot, ..standing(config, sink, session).await } })
    });
    Ok(join_all(stands).await)
}

/// Where one stands, as this session's stream would begin.
pub(super) async fn standing(config: &Config, mut target: Box<dyn SinkAdmin>, session: Session) -> Standing {
    let judged = judge(config, target.as_mut(), &session).await;
    Standing { target, session, judged, slot: "the slot" }
}

/// The same, told. Nothing where there is no slot to judge by, or no WAL of the server's own: that has a finding of its own.
async fn positions(config: &Config, client: &Client, sinks: Sinks) -> Vec<Finding> {
    let Ok((history_id, _)) = history::find(&config.postgres, client).await else { return Vec::new() };
    if State::new(config.postgres.clone()).wal_end().await.is_err() {
        return Vec::new();
    }
    let mut findings = match lanes::lanes(client, history_id.uuid).await {
        Ok(lanes) => lane_findings(&lanes, &sinks),
        Err(error) => vec![Finding::failed("sink.lane", "lanes", &error)],
    };
    findings.extend(standings(config, client, sinks).await.into_iter().flatten().map(position));
    findings
}

fn lane_findings(lanes: &[Lane], sinks: &Sinks) -> Vec<Finding> {
    let fresh_start = |lane: &Lane| {
        let sink = sinks.iter().find(|sink| sink.name() == lane.sink)?.id();
        Some(sink.rebuild_command().map_or_else(|| sink.fresh_start(), str::to_owned))
    };
    lanes.iter().map(|lane| lane.finding(&fresh_start(lane).unwrap_or_default())).collect()
}

/// Whether sinks that fall behind can do so alone.
async fn room_for_lanes(config: &Config, client: &Client) -> Option<Finding> {
    let sinks = config.pipeline.sinks.len();
    let history_id =
        history::find(&config.postgres, client).await.ok().map(|(history_id, _)| history_id.uuid);
    (sinks > 1).then_some(())?;
    Some(
        lanes::room(client, &config.postgres.slot, history_id, sinks)
            .await
            .unwrap_or_else(|error| Finding::failed("postgres.lanes", "postgres room for lanes", &error)),
    )
}

fn position(standing: Standing) -> Finding {
    let Standing { target, session, judged, slot } = standing;
    let (id, subject) = ("sink.position", format!("position of {}", target.name()));
    match judged {
        Ok(Resume::From(checkpoint)) => Finding::ok(
            id,
            subject,
            format!("holds all up to {}, {slot} begins at {}", checkpoint.durable_lsn, session.start),
        ),
        Ok(Resume::Fresh(checkpoint)) => Finding::ok(
            id,
            subject,
            format!("nothing yet: it begins at the confirmed LSN of {slot}, {}", checkpoint.durable_lsn),
        ),
        Ok(Resume::Refused(refusal)) => {
            let command = refusal.command(target.id());
            let error = refusal.into_error(target.id(), &session);
            let fix = command.unwrap_or(error.advice()).to_owned();
            Finding::fail(error.code(), id, subject, error.chain(), fix)
        }
        Err(error) => Finding::failed(id, subject, &error),
    }
}

async fn judge(config: &Config, sink: &mut dyn SinkAdmin, session: &Session) -> Result<Resume> {
    let stored = sink.peek(session).await?;
    let mut state = State::new(config.postgres.clone());
    let registered = state.is_registered(session, sink.name()).await?;
    Ok(resume::judge(stored.as_ref(), registered, session, state.wal_end().await?))
}

fn render(findings: &[Finding], paint: &Paint) -> String {
    let width = findings.iter().map(|finding| finding.subject.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { subject, verdict, message, fix, code, .. } in findings {
        let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
        let verdict = match verdict {
            Verdict::Ok => paint.good("ok  "),
            Verdict::Warn => paint.doubtful("warn"),
            Verdict::Fail => paint.bad("FAIL"),
        };
        text.push_str(&format!("{verdict}  {subject:<width$}  {message}{code}\n"));
        for line in fix.iter().flat_map(|fix| fix.lines()) {
            // alone, so that it can be pasted
            text.push_str(&format!("        {}\n", paint.strong(line)));
        }
    }
    let count = |wanted| findings.iter().filter(|finding| finding.verdict == wanted).count();
    let (ok, warn, fail) = (count(Verdict::Ok), count(Verdict::Warn), count(Verdict::Fail));
    text + &format!("\n{ok} ok, {warn} to know, {fail} to mend\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn each_finding_is_a_line_and_its_fix_one_that_can_be_pasted() {
        let findings = [
            Finding::ok("a.b", "postgres version", "18.6"),
            Finding::warn("c.d", "clock", "is 7.0 s ahead", "timedatectl set-ntp true"),
            Finding::fail(
                Code::RedisLogin,
                "e.f",
                "redis cache:6379/0",
                "asks for a password",
                "export REDIS_PASSWORD=…",
            ),
        ];
        insta::assert_snapshot!(render(&findings, &Paint { colours: false }), @r"
        ok    postgres version    18.6
        warn  clock               is 7.0 s ahead
                timedatectl set-ntp true
        FAIL  redis cache:6379/0  asks for a password (WC-230)
                export REDIS_PASSWORD=…

        1 ok, 1 to know, 1 to mend
        ");
        assert!(render(&findings, &Paint { colours: true }).contains("\x1b[31mFAIL\x1b[0m"));
    }
}
