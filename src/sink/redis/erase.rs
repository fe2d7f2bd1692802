//! Takes a content's own keys out of Redis. Of people there is nothing in it. What a content has in keys of many (totals, boards)
//! a running sink keeps in memory as well, and would write again: a rebuild leaves it out.

use uuid::Uuid;

use super::config::Replicas;
use super::connection::Connection;
use super::keys;
use crate::error::Result;

const KEYS_AT_ONCE: u64 = 1_000;

/// The keys of this content: its row, and its counters by day.
pub(super) async fn own_keys(connection: &mut Connection, id: &Uuid) -> Result<Vec<String>> {
    let (mut cursor, mut own) = (0u64, Vec::new());
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("engagement:{id}:*")).arg("COUNT").arg(KEYS_AT_ONCE);
        let (next, found): (u64, Vec<String>) = connection.ask(&scan).await?;
        own.extend(found);
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    let there: u64 = connection.ask(redis::cmd("EXISTS").arg(keys::content(id))).await?;
    own.extend((there > 0).then(|| keys::content(id)));
    // a key may be told twice
    own.sort_unstable();
    own.dedup();
    Ok(own)
}

/// Takes them out.
pub(super) async fn erase(connection: &mut Connection, id: &Uuid, replicas: Replicas) -> Result<()> {
    for key in own_keys(connection, id).await? {
        let _: u64 = connection.ask(redis::cmd("UNLINK").arg(key)).await?;
    }
    // else it would be back after a failover
    connection.replicated(replicas).await
}
