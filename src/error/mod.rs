//! One error type. Its [`Code`] names the failure for good; the code's [`Kind`] decides everything: whether to retry,
//! what to tell the operator, how to exit. [`Kind::policy`] is the one table of that.

mod code;
mod code_text;

use std::fmt;

pub use code::{Code, Explanation};
pub use code_text::ParseCodeError;

/// `Result` with our [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What may be done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Try the same again, with backoff.
    Transient,
    /// The target lost what it had accepted: read the slot again from the lowest held LSN.
    Rewind,
    /// Trying again changes nothing: a dead letter when it belongs to one row, else stop.
    Definite,
}

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A configuration file, environment variable or option is wrong.
    Config,
    /// Something that must be there before walcast can run is missing or has another shape.
    Setup,
    /// A server does not answer, or answered that it cannot now.
    Unavailable,
    /// A target lost rows that it had accepted but not made durable.
    Lost,
    /// What a sink holds and what the slot can still deliver do not meet.
    Resync,
    /// A newer instance has taken over.
    Fenced,
    /// A server or a stored record says something that we do not understand.
    Protocol,
}

/// What follows from a [`Kind`].
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// What may be done about it.
    pub class: Class,
    /// The process's exit code when it ends the run.
    pub exit_code: u8,
    /// What the operator can do, where the error itself says nothing better.
    pub hint: &'static str,
}

impl Kind {
    /// The policy table.
    pub fn policy(self) -> Policy {
        let (class, exit_code, hint) = match self {
            Kind::Config => {
                (Class::Definite, 78, "`walcast config show` prints every setting and where it came from")
            }
            Kind::Setup => (Class::Definite, 2, "`walcast check` lists every prerequisite with its fix"),
            Kind::Unavailable => {
                (Class::Transient, 1, "see that the server runs and can be reached from here")
            }
            Kind::Lost => (Class::Rewind, 1, "nothing to do: the slot is read again"),
            Kind::Resync => (
                Class::Definite,
                4,
                "`walcast check` says which sink does not fit to the slot, and what to do",
            ),
            Kind::Fenced => (Class::Definite, 5, "another instance runs: leave it alone, or stop it first"),
            Kind::Protocol => {
                (Class::Definite, 1, "this is a defect of walcast or an unsupported server: please report it")
            }
        };
        Policy { class, exit_code, hint }
    }
}

/// An error: a code, one sentence of what happened, perhaps what to do, and the cause in `source()`.
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of this code. `message` says what happened, without values of rows and without secrets.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { code, message: printable(message.into()), hint: None, source: None }))
    }

    /// Says what the operator can do, in place of the kind's general hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Whether to retry, rewind or stop.
    pub fn class(&self) -> Class {
        self.kind().policy().class
    }

    /// The failure's stable code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> Kind {
        self.0.code.kind()
    }

    /// The process's exit code when this error ends it.
    pub fn exit_code(&self) -> u8 {
        self.kind().policy().exit_code
    }

    /// What to do about it.
    pub fn advice(&self) -> &str {
        self.0.hint.as_deref().unwrap_or(self.kind().policy().hint)
    }

    /// What status and page say: the message, what to do, and the code. Without causes: those are for the log, and a
    /// server's own words may quote a row.
    pub fn told(&self) -> String {
        format!("{self}; {} ({})", self.advice(), self.code())
    }

    /// The message and its causes on one line, for logs.
    pub fn chain(&self) -> String {
        let mut text = self.0.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let part = printable(error.to_string());
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            cause = error.source();
        }
        text
    }
}

/// On one line of a terminal, a text is that text: what servers say of themselves may move the cursor, change the window's
/// title, or begin a line that looks like one of ours.
pub fn printable(text: String) -> String {
    if !text.chars().any(is_deceptive) {
        return text;
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_deceptive(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// Control characters, line ends of Unicode, and what changes the direction of writing.
fn is_deceptive(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.0.code, self.chain(), self.advice())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_stays_on_its_line() {
        let forged = "no\n\u{1b}[2Jok    everything\u{7}\u{202e}";
        let shown = r"no\n\u{1b}[2Jok    everything\u{7}\u{202e}";
        let error = Error::new(Code::Unavailable, forged).because(forged);
        assert_eq!(error.to_string(), shown);
        assert_eq!(error.chain(), shown, "the cause says the same");
        let caused = Error::new(Code::Unavailable, "it failed").because(forged);
        assert_eq!(caused.chain(), format!("it failed: {shown}"));
    }

    #[test]
    fn other_texts_are_left_as_they_are() {
        let text = "größer als 1 µs — «naïve» 日本語 é";
        assert_eq!(printable(text.to_owned()), text);
    }
}
