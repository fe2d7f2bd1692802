//! Forgets the rows of letters: those that are old, and those of somebody who is to be erased. That there were such rows stays.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::TryStreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_postgres::types::{PgLsn, ToSql};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::record_text;
use crate::error::Result;
use crate::source::sql;

/// `[dead_letters]`: the rows that were refused.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLettersConfig {
    /// For how many days PostgreSQL keeps the rows of dead letters. Of older ones only the event's id, the reason and the
    /// place in the WAL stay; they cannot be sent again. 0 keeps them for ever.
    pub retention_days: u32,
}

impl Default for DeadLettersConfig {
    fn default() -> Self {
        DeadLettersConfig { retention_days: 90 }
    }
}

impl DeadLettersConfig {
    /// For how long rows are kept.
    pub fn retention(&self) -> Retention {
        Retention(NonZeroU32::new(self.retention_days))
    }
}

/// For how many days rows are kept; `None` for ever.
#[derive(Debug, Clone, Copy)]
pub struct Retention(Option<NonZeroU32>);

/// Forgets the rows of letters that are older than the retention, some at once; gives how many.
pub async fn forget(transaction: &Transaction<'_>, retention: Retention) -> Result<u64> {
    let Retention(Some(days)) = retention else { return Ok(0) };
    let days = i64::from(days.get());
    // a row that was mended and sent again is kept: PostgreSQL has another one in its place, and no rebuild could make it
    let statement = concat!(
        include_str!("../../../sql/forget_letter.sql"),
        "WHERE (sink, history_id, commit_lsn, ordinal) IN (
           SELECT sink, history_id, commit_lsn, ordinal FROM walcast.dead_letter
           WHERE record IS NOT NULL AND created_at < now() - $1::bigint * interval '1 day' AND state <> 'replaying'
             AND NOT (sink = 'all' AND repair IS NOT NULL AND state = 'replayed')
           ORDER BY created_at LIMIT 1000)"
    );
    transaction.execute(statement, &[&days]).await.map_err(sql::error)
}

/// A letter whose row names somebody.
#[derive(Debug)]
pub struct NamedLetter {
    sink: String,
    history_id: Uuid,
    commit_lsn: PgLsn,
    ordinal: i64,
    /// It is on its way to a sink.
    pub replaying: bool,
}

/// The letters, of any history, whose rows have one of these ids in one of these fields.
pub async fn naming(client: &Client, fields: &[&str], ids: &[Uuid]) -> Result<Vec<NamedLetter>> {
    let query = "SELECT sink, history_id, commit_lsn, ordinal, state = 'replaying', record::text, event
       FROM walcast.dead_letter WHERE record IS NOT NULL OR event IS NOT NULL";
    let rows = client.query_raw(query, std::iter::empty::<i32>()).await.map_err(sql::error)?;
    let mut rows = std::pin::pin!(rows);
    let mut named = Vec::new();
    while let Some(row) = rows.try_next().await.map_err(sql::error)? {
        let records: [Option<String>; 2] = [sql::get(&row, 5)?, sql::get(&row, 6)?];
        if records.iter().flatten().any(|record| names(record, fields, ids)) {
            named.push(NamedLetter {
                sink: sql::get(&row, 0)?,
                history_id: sql::get(&row, 1)?,
                commit_lsn: sql::get(&row, 2)?,
                ordinal: sql::get(&row, 3)?,
                replaying: sql::get(&row, 4)?,
            });
        }
    }
    Ok(named)
}

/// Whether a record has one of these ids in one of these fields, as a text or as the bytes of a row that could not be read.
fn names(record: &str, fields: &[&str], ids: &[Uuid]) -> bool {
    let record = record_text(record);
    let Ok(values) = serde_json::from_str::<BTreeMap<String, &RawValue>>(&record) else { return false };
    let found = fields.iter().filter_map(|field| values.get(*field)).map(|value| value.get());
    let mut written = ids.iter().flat_map(|id| {
        let bytes = serde_json::json!({ "$base64": BASE64.encode(id.as_bytes()) });
        [format!("\"{id}\""), bytes.to_string()]
    });
    let found: Vec<&str> = found.collect();
    written.any(|written| found.contains(&written.as_str()))
}

/// Forgets the rows of these letters, as [`forget`] does.
pub async fn forget_named(client: &Client, letters: &[NamedLetter]) -> Result<()> {
    let statement = concat!(
        include_str!("../../../sql/forget_letter.sql"),
        "FROM unnest($1::text[], $2::uuid[], $3::pg_lsn[], $4::bigint[]) AS named (sink, history_id, commit_lsn, ordinal)
         WHERE (letter.sink, letter.history_id, letter.commit_lsn, letter.ordinal)
             = (named.sink, named.history_id, named.commit_lsn, named.ordinal)
           AND letter.state <> 'replaying'"
    );
    let columns: [&(dyn ToSql + Sync); 4] = [
        &letters.iter().map(|letter| letter.sink.as_str()).collect::<Vec<_>>(),
        &letters.iter().map(|letter| letter.history_id).collect::<Vec<_>>(),
        &letters.iter().map(|letter| letter.commit_lsn).collect::<Vec<_>>(),
        &letters.iter().map(|letter| letter.ordinal).collect::<Vec<_>>(),
    ];
    client.execute(statement, &columns).await.map_err(sql::error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_names_somebody_in_either_form() {
        let id = Uuid::from_u128(7);
        for (record, named) in [
            (r#"{"user_id":"00000000-0000-0000-0000-000000000007"}"#, true),
            (r#"{"user_id":{"$base64":"AAAAAAAAAAAAAAAAAAAABw=="},"id":1}"#, true),
            (r#""{\"user_id\":\"00000000-0000-0000-0000-000000000007\"}""#, true),
            (r#"{"content_id":"00000000-0000-0000-0000-000000000007"}"#, false),
            (r#"{"user_id":"00000000-0000-0000-0000-000000000008"}"#, false),
            (r#"{"user_id":null}"#, false),
            ("no JSON", false),
        ] {
            assert_eq!(names(record, &["user_id"], &[Uuid::nil(), id]), named, "{record}");
        }
    }
}
