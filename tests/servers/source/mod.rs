//! The connection to PostgreSQL, on real servers.

mod content_versions;
mod facts;
mod login;
mod stream;
mod ways_in;

use crate::support;
use crate::support::services;
use walcast::error::{Code, Error};
use walcast::source::PostgresConfig;

/// A server of this major version; 18 is the main one.
fn server(version: &str) -> PostgresConfig {
    if version == "18" { support::postgres() } else { services::postgres(version, &[]) }
}

/// Checks an error's kind and that its text or advice says all of `words`.
fn expect<T>(result: Result<T, Error>, code: Code, words: &[&str]) {
    let Err(error) = result else { panic!("no error where {code:?} was due") };
    assert_eq!(error.code(), code, "{error:?}");
    for word in words {
        assert!(format!("{error:?}").contains(word), "{word:?} is not in {error:?}");
    }
}
