//! How a [`Code`] is written and read: `WC-401`.

use std::fmt;
use std::str::FromStr;

use super::Code;

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

impl<'de> serde::Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Code, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
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
