//! Text for people: colours where they can be seen and are wanted, and output that nobody reads any more.

use std::io::{self, IsTerminal, Write};

use crate::telemetry;

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    /// Whether there are colours.
    pub colours: bool,
}

impl Paint {
    /// Colours when standard output is a terminal and `NO_COLOR` is not set.
    pub fn for_stdout() -> Paint {
        Paint { colours: telemetry::may_colour(io::stdout().is_terminal()) }
    }

    /// Green.
    pub fn good(&self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Yellow.
    pub fn doubtful(&self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// Red.
    pub fn bad(&self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// Bold.
    pub fn strong(&self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Writes to standard output; `false` when nobody reads it any more, as after `| head`.
pub fn print(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}
