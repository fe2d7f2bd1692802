//! Whether PostgreSQL's commits wait for walcast. A stream counts as a synchronous standby where `synchronous_standby_names` is `*`
//! or names walcast, as any connection for replication does. Each commit would wait then until all sinks have made it durable, and
//! walcast's own commits, which that takes, for themselves: the database stands still.

use tokio_postgres::Client;

use crate::error::{Code, Error, Result};
use crate::finding::Finding;
use crate::source::sql;

const FIX: &str = "name the standbys: ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (<standby>)'; SELECT pg_reload_conf();";

/// Refuses a server whose commits would wait for walcast.
pub async fn check(client: &Client) -> Result<()> {
    let row = client.query_one("SELECT current_setting('synchronous_standby_names')", &[]).await;
    let names: String = sql::get(&row.map_err(sql::error)?, 0)?;
    match counts_us(&names) {
        false => Ok(()),
        true => {
            let message = format!(
                "synchronous_standby_names is {names}: each commit would wait for walcast, its own too"
            );
            Err(Error::new(Code::CommitsAwaitWalcast, message).hint(FIX))
        }
    }
}

/// The same as a line of `walcast check`.
pub(super) async fn finding(client: &Client) -> Result<Finding> {
    let (id, subject) = ("postgres.synchrony", "postgres synchronous_standby_names");
    match check(client).await {
        Ok(()) => Ok(Finding::ok(id, subject, "lets no commit wait for walcast")),
        Err(error) if error.code() == Code::CommitsAwaitWalcast => Ok(Finding::failed(id, subject, &error)),
        Err(error) => Err(error),
    }
}

/// PostgreSQL compares without regard to case, and quotes what it likes.
fn counts_us(names: &str) -> bool {
    let mut words = names.split(|c: char| c.is_whitespace() || "(),\"".contains(c));
    words.any(|word| word == "*" || word.eq_ignore_ascii_case("walcast"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_and_our_name_count_in_every_way_to_write_them() {
        for names in [
            "*",
            "FIRST 1 (*)",
            "ANY 2 (a,*)",
            "\"*\"",
            "walcast",
            "a, WALCAST",
            "2 (a, \"walcast\")",
            "1(b,walcast)",
        ] {
            assert!(counts_us(names), "{names}");
        }
        for names in ["", "a", "FIRST 1 (a, b)", "walcast_standby", "ANY 1 (my-walcast)"] {
            assert!(!counts_us(names), "{names}");
        }
    }
}
