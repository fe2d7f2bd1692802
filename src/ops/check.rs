//! `walcast check`: looks at everything, changes nothing.

use std::process::ExitCode;

use crate::config::Config;
use crate::error::Result;
use crate::finding::{Finding, Verdict};
use crate::ops::terminal::{Paint, print};

/// Prints a line a finding, and below it what mends it; exit code 2 when one of them fails.
pub async fn check(config: &Config, json: bool) -> Result<ExitCode> {
    let findings = crate::check::findings(config).await;
    let text = match json {
        true => serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n",
        false => render(&findings, &Paint::for_stdout()),
    };
    print(&text);
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    Ok(ExitCode::from(if failed { 2 } else { 0 }))
}

fn render(findings: &[Finding], paint: &Paint) -> String {
    let width = findings.iter().map(|finding| finding.subject.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { subject, verdict, message, fix, .. } in findings {
        let verdict = match verdict {
            Verdict::Ok => paint.good("ok  "),
            Verdict::Warn => paint.doubtful("warn"),
            Verdict::Fail => paint.bad("FAIL"),
        };
        text.push_str(&format!("{verdict}  {subject:<width$}  {message}\n"));
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

    #[test]
    fn each_finding_is_a_line_and_its_fix_one_that_can_be_pasted() {
        let findings = [
            Finding::ok("a.b", "postgres version", "18.6"),
            Finding::warn("c.d", "clock", "is 7.0 s ahead", "timedatectl set-ntp true"),
            Finding::fail("e.f", "redis cache:6379/0", "asks for a password", "export REDIS_PASSWORD=…"),
        ];
        insta::assert_snapshot!(render(&findings, &Paint { colours: false }), @r"
        ok    postgres version    18.6
        warn  clock               is 7.0 s ahead
                timedatectl set-ntp true
        FAIL  redis cache:6379/0  asks for a password
                export REDIS_PASSWORD=…

        1 ok, 1 to know, 1 to mend
        ");
        assert!(render(&findings, &Paint { colours: true }).contains("\x1b[31mFAIL\x1b[0m"));
    }
}
