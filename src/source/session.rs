//! What walcast has set in each of its sessions, for replication and for ordinary SQL. A parameter of the session's
//! start comes before what the server, the database and the role have set; none of them can end a session of ours,
//! filter what it reads, or change what a value looks like.

/// Name and value, of each version of PostgreSQL that walcast runs with.
pub const SETTINGS: [(&str, &str); 23] = [
    ("application_name", "walcast"),
    ("role", "none"),
    // behind pg_catalog, which comes first unless it is named
    ("search_path", "public"),
    // an error instead of the rows that a policy shows
    ("row_security", "off"),
    // what ends a session or a statement
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    // what a transaction may do, and what is left of it after a crash
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("synchronous_commit", "on"),
    // where tables are made
    ("default_tablespace", ""),
    // what texts look like, and how ours are read
    ("client_encoding", "UTF8"),
    ("client_min_messages", "warning"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("quote_all_identifiers", "off"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
];

/// From this version on a session needs [`SET_NEWER`] too.
pub const NEWER_VERSION: u32 = 17;

/// What older servers would refuse to start a session with.
pub const SET_NEWER: &str = "SET transaction_timeout = 0";

/// The parameter by which a server tells that it is a standby.
pub const STANDBY: &str = "in_hot_standby";

/// Whether it is one, by that parameter's value.
pub fn is_standby(value: Option<&str>) -> bool {
    value == Some("on")
}

/// `18.6 (Debian 18.6-1)` → 18.
pub fn major_version(text: &str) -> Option<u32> {
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The settings as one start-up option, for a client that has no other way.
pub fn options() -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace(' ', "\\ ");
    SETTINGS.map(|(name, value)| format!("-c {name}={}", escaped(value))).join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_in_a_value_does_not_end_it() {
        assert!(options().contains(r"-c default_transaction_isolation=read\ committed -c"));
    }
}
