//! `walcast check`: looks at everything, changes nothing.

use std::process::ExitCode;

use crate::config::Config;
use crate::error::Result;
use crate::finding::{Finding, Verdict};
use crate::sink;
use crate::source::{check as source_check, sql};
use crate::state::epoch;

/// Prints a line a finding; exit code 2 when one of them fails.
pub async fn check(config: &Config, json: bool) -> Result<ExitCode> {
    let findings = findings(config).await;
    if json {
        println!("{}", serde_json::to_string_pretty(&findings).unwrap_or_default());
    } else {
        print!("{}", render(&findings));
    }
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    Ok(ExitCode::from(if failed { 2 } else { 0 }))
}

/// What is found, without printing it.
pub async fn findings(config: &Config) -> Vec<Finding> {
    let mut findings =
        source_findings(config).await.unwrap_or_else(|error| vec![Finding::failed("postgres", &error)]);
    match sink::build(config) {
        Ok(sinks) => {
            for mut sink in sinks {
                findings.extend(sink.check().await);
            }
        }
        Err(error) => findings.push(Finding::failed("configuration", &error)),
    }
    findings
}

async fn source_findings(config: &Config) -> Result<Vec<Finding>> {
    let client = sql::connect(&config.postgres).await?;
    let mut findings = source_check::check(&client, &config.postgres).await?;
    if findings.iter().all(|finding| finding.verdict != Verdict::Fail) {
        findings.extend(epoch::check(&config.postgres, &client).await?);
    }
    Ok(findings)
}

fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.subject.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { subject, verdict, message, fix } in findings {
        let verdict = match verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        text.push_str(&format!("{verdict}  {subject:<width$}  {message}\n"));
        if let Some(fix) = fix {
            text.push_str(&format!("      {:<width$}  -> {fix}\n", ""));
        }
    }
    text
}
