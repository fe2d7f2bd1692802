//! What a look at the source or a target found: the lines of `walcast check`.

use serde::Serialize;

use crate::error::{Code, Error, Result, printable};

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
    /// What `walcast explain` tells more about, when it is `Fail`.
    pub code: Option<Code>,
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
        Finding {
            id,
            subject: printable(subject.into()),
            verdict: Verdict::Ok,
            message: printable(message.into()),
            fix: None,
            code: None,
        }
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
        code: Code,
        id: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Finding { verdict: Verdict::Fail, code: Some(code), ..Finding::warn(id, subject, message, fix) }
    }

    /// What an error says, as a finding.
    pub fn failed(id: &'static str, subject: impl Into<String>, error: &Error) -> Self {
        Finding::fail(error.code(), id, subject, error.chain(), error.advice())
    }
}

/// The first failure as an error: what `run` refuses is what `check` reports.
pub fn refuse(findings: &[Finding]) -> Result<()> {
    match findings.iter().find(|finding| finding.verdict == Verdict::Fail) {
        None => Ok(()),
        Some(Finding { subject, message, fix, code, .. }) => {
            let error = Error::new(code.unwrap_or(Code::Prerequisite), format!("{subject}: {message}"));
            Err(match fix {
                Some(fix) => error.hint(fix.clone()),
                None => error,
            })
        }
    }
}
