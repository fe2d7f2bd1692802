//! `walcast explain`: what a code means, and what to do.

use std::fmt::Write;

use crate::error::{Code, Explanation};
use crate::ops::terminal::{Paint, print};

/// Prints what is known of `code`; a line for each code without one.
pub fn explain(code: Option<Code>) {
    print(&match code {
        Some(code) => page(code, &Paint::for_stdout()),
        None => list(),
    });
}

fn list() -> String {
    let line = |code: &Code| format!("{code}  {}\n", code.explanation().title);
    Code::ALL.iter().map(line).collect::<String>() + "\n`walcast explain WC-401` says what to do about one.\n"
}

fn page(code: Code, paint: &Paint) -> String {
    let Explanation { title, why, look, fix, over } = code.explanation();
    let mut text = format!("{}\n", paint.strong(&format!("{code}: {title}")));
    for (head, part) in [("Why", why), ("Look at", look), ("Do", fix), ("Over when", over)] {
        let _ = write!(text, "\n{head}\n{}", wrapped(part));
    }
    let _ = write!(text, "\nExit code {}\n", code.kind().policy().exit_code);
    text
}

/// Indented lines of at most 96 characters, broken at blanks.
fn wrapped(text: &str) -> String {
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + word.chars().count() > 94 {
            let _ = writeln!(lines, "  {line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(lines, "  {line}");
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_explained_on_one_screen() {
        insta::assert_snapshot!(page(Code::SlotsExhausted, &Paint { colours: false }), @r"
        WC-209: PostgreSQL has no replication slot to spare.

        Why
          max_replication_slots slots exist already.

        Look at
          SELECT slot_name, active, restart_lsn FROM pg_replication_slots;

        Do
          Drop slots that nobody reads any more: SELECT pg_drop_replication_slot('<slot>'); or raise
          max_replication_slots and restart PostgreSQL.

        Over when
          `walcast init` ends with exit code 0.

        Exit code 2
        ");
        for code in Code::ALL {
            let text = page(*code, &Paint { colours: false });
            assert!(
                text.lines().count() < 30 && text.lines().all(|line| line.chars().count() <= 110),
                "{text}"
            );
        }
        assert_eq!(list().lines().count(), Code::ALL.len() + 2);
    }
}
