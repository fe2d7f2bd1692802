//! Stable codes: each failure that an operator can meet has a number that keeps its meaning in every version.

use std::fmt;
use std::str::FromStr;

use super::Kind;

/// A failure's number. The hundreds are its [`Kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Code {
    /// A setting, an environment variable or an option is wrong.
    Configuration = 100,
    /// Something that walcast needs is missing or has another shape.
    Prerequisite = 200,
    /// A server does not answer, or says that it cannot now.
    Unavailable = 300,
    /// Sinks and slot do not fit together.
    Resync = 400,
    /// The slot has moved past what a sink has.
    SinkBelowSlot = 401,
    /// A sink had data once and has none now.
    SinkLostItsData = 402,
    /// A sink's checkpoint is of another history.
    OtherHistory = 403,
    /// A sink has events that a failover lost.
    LostInFailover = 404,
    /// A sink has events that a restored server lost.
    SinkAheadOfServer = 405,
    /// A sink stopped inside a transaction, under another rule of counting.
    OtherOrdinalRule = 406,
    /// A sink's checkpoint cannot be read.
    CheckpointUnreadable = 407,
    /// A sink knows of a newer walcast than PostgreSQL does.
    ServerForgotInstance = 408,
    /// A newer walcast has taken over.
    Fenced = 500,
    /// A target lost rows that it had accepted.
    Lost = 600,
    /// A target refuses a row.
    RowRefused = 700,
    /// A server says something that walcast does not understand.
    Protocol = 900,
}

impl Code {
    /// Every code, in the order of their numbers.
    pub const ALL: &[Code] = &[
        Code::Configuration,
        Code::Prerequisite,
        Code::Unavailable,
        Code::Resync,
        Code::SinkBelowSlot,
        Code::SinkLostItsData,
        Code::OtherHistory,
        Code::LostInFailover,
        Code::SinkAheadOfServer,
        Code::OtherOrdinalRule,
        Code::CheckpointUnreadable,
        Code::ServerForgotInstance,
        Code::Fenced,
        Code::Lost,
        Code::RowRefused,
        Code::Protocol,
    ];

    /// What kind of failure it is: what may be done about it, and the exit code.
    pub fn kind(self) -> Kind {
        match self as u16 / 100 {
            1 => Kind::Config,
            2 => Kind::Setup,
            3 => Kind::Unavailable,
            4 => Kind::Resync,
            5 => Kind::Fenced,
            6 => Kind::Lost,
            7 => Kind::Refused,
            _ => Kind::Protocol,
        }
    }
}

impl From<Kind> for Code {
    fn from(kind: Kind) -> Code {
        match kind {
            Kind::Config => Code::Configuration,
            Kind::Setup => Code::Prerequisite,
            Kind::Unavailable => Code::Unavailable,
            Kind::Resync => Code::Resync,
            Kind::Fenced => Code::Fenced,
            Kind::Lost => Code::Lost,
            Kind::Refused => Code::RowRefused,
            Kind::Protocol => Code::Protocol,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WC-{}", *self as u16)
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// There is no such code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a code of walcast: WC- and three digits are expected, such as WC-401")]
pub struct ParseCodeError;

impl FromStr for Code {
    type Err = ParseCodeError;

    /// `WC-401`, `wc-401` or `401`.
    fn from_str(text: &str) -> Result<Code, ParseCodeError> {
        let digits = match text.split_at_checked(3) {
            Some((prefix, digits)) if prefix.eq_ignore_ascii_case("WC-") => digits,
            _ => text,
        };
        let number: u16 = digits.parse().map_err(|_| ParseCodeError)?;
        Code::ALL.iter().copied().find(|code| *code as u16 == number).ok_or(ParseCodeError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_reads_back_as_printed_and_no_number_is_given_twice() {
        for pair in Code::ALL.windows(2) {
            assert!((pair[0] as u16) < pair[1] as u16, "{} before {}", pair[0], pair[1]);
        }
        for code in Code::ALL {
            assert_eq!(code.to_string().parse(), Ok(*code));
            assert_eq!(code.to_string().to_lowercase().parse(), Ok(*code));
            assert_eq!((*code as u16).to_string().parse(), Ok(*code));
        }
        for text in ["", "WC-", "WC-0", "WC-99999", "401x", "wc401", "é401"] {
            assert_eq!(text.parse::<Code>(), Err(ParseCodeError), "{text:?}");
        }
    }
}
