//! What a look at the source or a target found: the lines of `walcast check`.

use serde::Serialize;

use crate::error::{Error, Kind, Result};

/// One line of `walcast check`.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What kind of thing was looked at, such as `postgres.wal_level`: the same in every version, for programs.
    pub id: &'static str,
    /// What was looked at, such as `kafka topic engagement.events`.
    pub subject: String,
    /// What was found.
    pub verdict: Verdict,
    /// One sentence: what is so.
    pub message: String,
    /// The statement or command that mends it, when it is not `Ok`.
    pub fix: Option<String>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but the operator should know.
    Warn,
    /// walcast cannot run like this.
    Fail,
}

impl Finding {
    /// All is well.
    pub fn ok(id: &'static str, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Finding { id, subject: subject.into(), verdict: Verdict::Ok, message: message.into(), fix: None }
    }

    /// Works, but the operator should know; with what to do, best a statement that can be pasted.
    pub fn warn(
        id: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Finding { verdict: Verdict::Warn, fix: Some(fix.into()), ..Finding::ok(id, subject, message) }
    }

    /// walcast cannot run like this; with what mends it, best a statement that can be pasted.
    pub fn fail(
        id: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Finding { verdict: Verdict::Fail, ..Finding::warn(id, subject, message, fix) }
    }

    /// What an error says, as a finding.
    pub fn failed(id: &'static str, subject: impl Into<String>, error: &Error) -> Self {
        Finding::fail(id, subject, error.chain(), error.advice())
    }
}

/// The first failure as an error of kind `Setup`: what `run` refuses is what `check` reports.
pub fn refuse(findings: &[Finding]) -> Result<()> {
    match findings.iter().find(|finding| finding.verdict == Verdict::Fail) {
        None => Ok(()),
        Some(Finding { subject, message, fix, .. }) => {
            let error = Error::new(Kind::Setup, format!("{subject}: {message}"));
            Err(match fix {
                Some(fix) => error.hint(fix.clone()),
                None => error,
            })
        }
    }
}
