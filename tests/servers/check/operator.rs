//! What an operator sees of a check, and does with it.

use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::Client;
use walcast::finding::{Finding, Verdict};
use walcast::source::{PostgresConfig, check as source_check, sql};

use crate::support::world::World;
use crate::support::{run, wait_until};

/// One line of `walcast check --json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Line {
    pub id: String,
    pub subject: String,
    pub verdict: String,
    pub message: String,
    pub fix: Option<String>,
    pub code: Option<String>,
}

/// Exit code and lines.
pub async fn check(world: &World) -> (Option<i32>, Vec<Line>) {
    let ended = world.walcast(["check", "--json"]).await;
    let lines = serde_json::Deserializer::from_str(&ended.output).into_iter().next();
    (ended.code, lines.unwrap_or_else(|| panic!("no JSON: {}", ended.output)).unwrap())
}

pub fn of<'a>(lines: &'a [Line], id: &str, subject: &str) -> &'a Line {
    let mut found = lines.iter().filter(|line| line.id == id && line.subject.contains(subject));
    found.next().unwrap_or_else(|| panic!("no {id} of {subject} in {lines:#?}"))
}

pub fn failed(lines: &[Line]) -> Vec<&str> {
    lines.iter().filter(|line| line.verdict == "fail").map(|line| line.id.as_str()).collect()
}

/// What an operator does with a fix that is SQL.
pub async fn paste(client: &Client, fix: &str) {
    for statement in fix.trim_end_matches(';').split("; ") {
        run(client, statement).await;
    }
}

/// What an operator does with a fix for the environment.
pub fn exported(world: &World, fix: &str) -> World {
    let pairs = fix.strip_prefix("export ").unwrap_or_else(|| panic!("{fix}")).split(' ');
    world.with_all(pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    }))
}

/// What the source check alone finds, in this process.
pub async fn survey(config: &PostgresConfig) -> Vec<Finding> {
    let client = sql::connect(config).await.unwrap();
    source_check::survey(&client, config, Duration::ZERO).await
}

pub async fn found(config: &PostgresConfig, id: &str) -> Finding {
    let findings = survey(config).await;
    findings
        .iter()
        .find(|finding| finding.id == id)
        .unwrap_or_else(|| panic!("no {id} in {findings:#?}"))
        .clone()
}

/// Sees the fault, pastes the fix, sees that it is mended.
pub async fn mends(client: &Client, config: &PostgresConfig, id: &str, verdict: Verdict, words: &str) {
    let line = found(config, id).await;
    assert_eq!(line.verdict, verdict, "{line:?}");
    assert!(line.message.contains(words), "{words}: {line:?}");
    paste(client, &line.fix.unwrap()).await;
    wait_until("it is mended", async || found(config, id).await.verdict == Verdict::Ok).await;
}

// --- before anything exists
