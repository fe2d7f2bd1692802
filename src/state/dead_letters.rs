//! Dead letters: rows that one sink, or all, do not take. One store for all of them, whatever sinks there are: a letter is in
//! it before the checkpoint of whoever refused the row passes that row.

mod forget;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_postgres::types::{PgLsn, ToSql};
use tokio_postgres::{Client, Row, Transaction};
use uuid::Uuid;

use crate::error::{Code, Error, Result};
use crate::event::time;
use crate::lsn::{Lsn, Position};
use crate::source::sql;
pub use forget::{DeadLettersConfig, NamedLetter, Retention, forget, forget_named, naming};

/// In a sink's place: the row was refused before the sinks, so none has it.
pub const ALL: &str = "all";

/// Reasons that begin so are a target's: its message may quote the row.
const BY_A_TARGET: &str = "refused_by_";
/// Fewer groups than anybody has, and enough that no label grows without bound.
const GROUPS_MAX: i64 = 100;

/// A row that was refused.
#[derive(Debug, Clone)]
pub struct Letter {
    /// The row's place in the stream; of a row that was sent again its first place.
    pub position: Position,
    /// `engagement_events.id`, where it can be told.
    pub event_id: Option<i64>,
    /// The table, `schema.name`; `None`: the events table.
    pub table: Option<String>,
    /// When the row's transaction committed, microseconds since 1970.
    pub commit_ts: i64,
    /// A short code.
    pub reason: &'static str,
    /// Why, in a sentence.
    pub message: String,
    /// The row as JSON: as it was received, or as it was to go out.
    pub record: String,
    /// Of a row refused before the sinks: what would have gone out, as JSON.
    pub event: Option<String>,
    /// The fields of that which could not be read.
    pub unread: Vec<&'static str>,
    /// The request that brought the row again.
    pub request: Option<Uuid>,
}

/// Stores the letters of a sink, or of [`ALL`]; those that are there stay as they are.
pub async fn insert(
    transaction: &Transaction<'_>,
    history_id: &Uuid,
    sink: &str,
    letters: &[Letter],
) -> Result<()> {
    // of the rows that a request brings again each is one of its own: two requests may bring the same one
    let is_new = |letter: &&Letter| letter.request.is_none();
    let new: Vec<&Letter> = letters.iter().filter(is_new).collect();
    let again = letters.iter().filter(|letter| !is_new(letter)).map(|letter| vec![letter]);
    for letters in std::iter::once(new).filter(|new| !new.is_empty()).chain(again) {
        insert_at_once(transaction, history_id, sink, &letters).await?;
    }
    Ok(())
}

async fn insert_at_once(
    transaction: &Transaction<'_>,
    history_id: &Uuid,
    sink: &str,
    letters: &[&Letter],
) -> Result<()> {
    fn column<'a, T>(letters: &[&'a Letter], read: impl Fn(&'a Letter) -> T) -> Vec<T> {
        letters.iter().map(|letter| read(letter)).collect()
    }
    let request = letters.first().and_then(|letter| letter.request);
    let columns: [&(dyn ToSql + Sync); 13] = [
        &sink,
        history_id,
        &request,
        &column(letters, |letter| PgLsn::from(letter.position.commit_lsn.0)),
        &column(letters, |letter| letter.position.ordinal as i64),
        &column(letters, |letter| letter.event_id),
        &column(letters, |letter| letter.table.as_deref()),
        &column(letters, |letter| letter.commit_ts),
        &column(letters, |letter| letter.reason),
        &column(letters, |letter| letter.message.as_str()),
        &column(letters, |letter| letter.record.as_str()),
        &column(letters, |letter| letter.event.as_deref()),
        &column(letters, |letter| letter.unread.join(" ")),
    ];
    let statement = include_str!("../../sql/insert_dead_letters.sql");
    transaction.execute(statement, &columns).await.map_err(sql::error)?;
    Ok(())
}

/// What becomes of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterState {
    /// It waits for somebody.
    Open,
    /// It is on its way again.
    Replaying,
    /// All that it was for have it, or have refused it with a letter of their own.
    Replayed,
    /// Somebody has said that it is not wanted.
    Discarded,
}

impl LetterState {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            LetterState::Open => "open",
            LetterState::Replaying => "replaying",
            LetterState::Replayed => "replayed",
            LetterState::Discarded => "discarded",
        }
    }
}

/// A letter's name: `bigquery@16/B374D848#7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterId {
    /// The sink, or [`ALL`].
    pub sink: String,
    /// The row's first place.
    pub position: Position,
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.sink, self.position)
    }
}

impl FromStr for LetterId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let (sink, place) = text.split_once('@')?;
            let (lsn, ordinal) = place.split_once('#')?;
            let position = Position { commit_lsn: lsn.parse().ok()?, ordinal: ordinal.parse().ok()? };
            Some(LetterId { sink: sink.to_owned(), position })
        };
        read().ok_or_else(|| {
            Error::new(Code::Configuration, format!("{text:?} is no dead letter's name"))
                .hint("`walcast dead-letters list` shows the names, such as bigquery@16/B374D848#7")
        })
    }
}

/// Which letters.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Those with these names alone.
    pub ids: Vec<LetterId>,
    /// Of this sink.
    pub sink: Option<String>,
    /// For this reason.
    pub reason: Option<String>,
    /// Stored since then, microseconds since 1970.
    pub since: Option<i64>,
    /// In this state.
    pub state: Option<LetterState>,
    /// As many at most, the oldest first.
    pub max: Option<u32>,
}

/// A letter in the store.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its name.
    pub id: LetterId,
    /// `engagement_events.id`, where it can be told.
    pub event_id: Option<i64>,
    /// The table, `schema.name`; `None`: the events table.
    pub table: Option<String>,
    /// A short code.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
    /// open, replaying, replayed or discarded.
    pub state: String,
    /// How often the row was refused.
    pub attempts: i32,
    /// When it was stored first.
    pub created_at: Timestamp,
    /// When the row's transaction committed.
    pub commit_ts: Option<Timestamp>,
    /// The row as JSON.
    pub record: Option<String>,
    /// Of a row refused before the sinks: what would have gone out, as JSON.
    pub event: Option<String>,
    /// The fields of that which could not be read.
    pub unread: Vec<String>,
}

/// What can be told of a row's field without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldShape {
    /// Its name.
    pub name: String,
    /// null, boolean, number, text, binary or JSON.
    pub kind: &'static str,
    /// How long it is, as JSON has it; of a text, and of what was binary, without what JSON adds.
    pub bytes: usize,
}

impl Stored {
    /// The row as a JSON object. What PostgreSQL would not nest is stored as a text that holds it.
    pub fn record_text(&self) -> Option<Cow<'_, str>> {
        self.record.as_deref().map(record_text)
    }

    /// As `--json` and the page have it.
    pub fn json(&self, values: bool) -> serde_json::Value {
        serde_json::json!({
            "name": self.id.to_string(),
            "sink": self.id.sink,
            "position": self.id.position,
            "state": self.state,
            "attempts": self.attempts,
            "stored_at": self.created_at,
            "committed_at": self.commit_ts,
            "table": self.table,
            "event_id": self.event_id,
            "reason": self.reason,
            "message": self.told().or(values.then_some(&self.message)),
            "unread": self.unread,
            "fields": self.shape(),
            "row": self.record_text().filter(|_| values),
        })
    }

    /// What the row has, without values.
    pub fn shape(&self) -> Vec<FieldShape> {
        let Some(record) = self.record_text() else { return Vec::new() };
        let fields: Option<BTreeMap<String, &RawValue>> = serde_json::from_str(&record).ok();
        let Some(fields) = fields else {
            return vec![FieldShape { name: "row".to_owned(), kind: "text", bytes: record.len() }];
        };
        let shape = |(name, value): (String, &RawValue)| {
            let (kind, bytes) = shape_of(value.get());
            FieldShape { name, kind, bytes }
        };
        fields.into_iter().map(shape).collect()
    }

    /// The message where it cannot quote the row.
    pub fn told(&self) -> Option<&str> {
        (!self.reason.starts_with(BY_A_TARGET)).then_some(self.message.as_str())
    }

    fn read(row: &Row) -> Result<Stored> {
        let micros = |column| Ok::<_, Error>(sql::get::<Option<i64>>(row, column)?.and_then(moment));
        let commit_lsn = Lsn(sql::get::<PgLsn>(row, 1)?.into());
        let position = Position { commit_lsn, ordinal: sql::get::<i64>(row, 2)?.unsigned_abs() };
        Ok(Stored {
            id: LetterId { sink: sql::get(row, 0)?, position },
            event_id: sql::get(row, 3)?,
            table: sql::get(row, 4)?,
            reason: sql::get(row, 5)?,
            message: sql::get(row, 6)?,
            state: sql::get(row, 7)?,
            attempts: sql::get(row, 8)?,
            created_at: micros(9)?.unwrap_or_default(),
            commit_ts: micros(10)?,
            record: sql::get(row, 11)?,
            event: sql::get(row, 12)?,
            unread: sql::get(row, 13)?,
        })
    }
}

fn record_text(record: &str) -> Cow<'_, str> {
    match serde_json::from_str::<String>(record) {
        Ok(inner) => inner.into(),
        Err(_) => record.into(),
    }
}

fn shape_of(value: &str) -> (&'static str, usize) {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Binary<'a> {
        #[serde(rename = "$base64", borrow)]
        base64: Cow<'a, str>,
    }
    if let Ok(Binary { base64 }) = serde_json::from_str(value) {
        return ("binary", base64.trim_end_matches('=').len() * 3 / 4);
    }
    match value.as_bytes().first() {
        Some(b'"') => {
            ("text", serde_json::from_str::<String>(value).map_or(value.len() - 2, |text| text.len()))
        }
        Some(b'n') => ("null", 0),
        Some(b't' | b'f') => ("boolean", value.len()),
        Some(b'{' | b'[') => ("JSON", value.len()),
        _ => ("number", value.len()),
    }
}

fn moment(micros: i64) -> Option<Timestamp> {
    Timestamp::from_microsecond(time::nearest(micros)).ok()
}

/// The values of `$1` to `$8` in statements that choose letters.
struct Chosen<'a> {
    history_id: Uuid,
    filter: &'a Filter,
    sinks: Vec<&'a str>,
    lsns: Vec<PgLsn>,
    ordinals: Vec<i64>,
    state: Option<&'static str>,
    max: Option<i64>,
}

impl<'a> Chosen<'a> {
    fn new(history_id: Uuid, filter: &'a Filter) -> Self {
        Chosen {
            history_id,
            filter,
            sinks: filter.ids.iter().map(|id| id.sink.as_str()).collect(),
            lsns: filter.ids.iter().map(|id| PgLsn::from(id.position.commit_lsn.0)).collect(),
            ordinals: filter.ids.iter().map(|id| id.position.ordinal as i64).collect(),
            state: filter.state.map(LetterState::as_str),
            max: filter.max.map(i64::from),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 9] {
        [
            &self.history_id,
            &self.sinks,
            &self.lsns,
            &self.ordinals,
            &self.filter.sink,
            &self.filter.reason,
            &self.filter.since,
            &self.state,
            &self.max,
        ]
    }
}

/// The letters that the filter lets through, the oldest first.
pub async fn list(client: &Client, history_id: Uuid, filter: &Filter) -> Result<Vec<Stored>> {
    let chosen = Chosen::new(history_id, filter);
    let found = client.query(include_str!("../../sql/dead_letters.sql"), &chosen.parameters()).await;
    found.map_err(sql::error)?.iter().map(Stored::read).collect()
}

/// The same, locked: nobody else changes them until the transaction ends. Those that somebody changes just now are waited for.
pub async fn lock(transaction: &Transaction<'_>, history_id: Uuid, filter: &Filter) -> Result<Vec<Stored>> {
    let chosen = Chosen::new(history_id, filter);
    let statement = concat!(include_str!("../../sql/dead_letters.sql"), " FOR UPDATE");
    let found = transaction.query(statement, &chosen.parameters()).await;
    found.map_err(sql::error)?.iter().map(Stored::read).collect()
}

/// The letters are not wanted.
pub async fn discard(transaction: &Transaction<'_>, history_id: Uuid, letters: &[Stored]) -> Result<()> {
    let filter =
        Filter { ids: letters.iter().map(|letter| letter.id.clone()).collect(), ..Filter::default() };
    let Chosen { sinks, lsns, ordinals, .. } = Chosen::new(history_id, &filter);
    let statement = "UPDATE walcast.dead_letter AS letter SET state = 'discarded', changed_at = now()
       FROM unnest($2::text[], $3::pg_lsn[], $4::bigint[]) AS chosen (sink, commit_lsn, ordinal)
       WHERE letter.history_id = $1
         AND (letter.sink, letter.commit_lsn, letter.ordinal) = (chosen.sink, chosen.commit_lsn, chosen.ordinal)
         AND letter.state = 'open'";
    transaction.execute(statement, &[&history_id, &sinks, &lsns, &ordinals]).await.map_err(sql::error)?;
    Ok(())
}

/// The letters, which are open and locked, are in the hands of this request now. `repair`: the fields that were set, as JSON,
/// and what the letters' events are with them.
pub async fn replaying(
    transaction: &Transaction<'_>,
    history_id: Uuid,
    letters: &[Stored],
    request: Uuid,
    repair: Option<(&str, Vec<&str>)>,
) -> Result<()> {
    let filter =
        Filter { ids: letters.iter().map(|letter| letter.id.clone()).collect(), ..Filter::default() };
    let Chosen { sinks, lsns, ordinals, .. } = Chosen::new(history_id, &filter);
    let (repair, events) = match repair {
        Some((repair, events)) => (Some(repair), events.into_iter().map(Some).collect()),
        None => (None, vec![None; letters.len()]),
    };
    let statement = "UPDATE walcast.dead_letter AS letter
       SET state = 'replaying', request = $5, changed_at = now(),
         repair = coalesce($6::text::json, repair), event = coalesce(chosen.event, letter.event),
         unread = CASE WHEN $6 IS NULL THEN unread ELSE '{}' END
       FROM unnest($2::text[], $3::pg_lsn[], $4::bigint[], $7::text[]) AS chosen (sink, commit_lsn, ordinal, event)
       WHERE letter.history_id = $1
         AND (letter.sink, letter.commit_lsn, letter.ordinal) = (chosen.sink, chosen.commit_lsn, chosen.ordinal)
         AND letter.state = 'open'";
    transaction
        .execute(statement, &[&history_id, &sinks, &lsns, &ordinals, &request, &repair, &events])
        .await
        .map_err(sql::error)?;
    Ok(())
}

/// The events, as records, that were mended and sent to all sinks: what the source has in their place is refused.
pub async fn repaired(client: &Client, history_id: Uuid) -> Result<Vec<String>> {
    let query = "SELECT event FROM walcast.dead_letter
       WHERE history_id = $1 AND sink = $2 AND repair IS NOT NULL AND event IS NOT NULL
         AND state IN ('replaying', 'replayed')";
    let rows = client.query(query, &[&history_id, &ALL]).await.map_err(sql::error)?;
    rows.iter().map(|row| sql::get(row, 0)).collect()
}

/// Of the events that were refused before the sinks, by their ids: the record that went to all sinks later, or `None`.
pub async fn outcomes(client: &Client, history_id: Uuid) -> Result<HashMap<i64, Option<String>>> {
    let query = "SELECT event_id, CASE WHEN state IN ('replaying', 'replayed') THEN event END FROM walcast.dead_letter
       WHERE history_id = $1 AND sink = $2 AND event_id IS NOT NULL ORDER BY commit_lsn, ordinal";
    let rows = client.query(query, &[&history_id, &ALL]).await.map_err(sql::error)?;
    rows.iter().map(|row| Ok((sql::get(row, 0)?, sql::get(row, 1)?))).collect()
}

/// The ids of the events that a sink alone has refused, and nobody has sent again.
pub async fn refused_by(client: &Client, history_id: Uuid, sink: &str) -> Result<Vec<i64>> {
    let query = "SELECT event_id FROM walcast.dead_letter
       WHERE history_id = $1 AND sink = $2 AND event_id IS NOT NULL AND state <> 'replayed'";
    let rows = client.query(query, &[&history_id, &sink]).await.map_err(sql::error)?;
    rows.iter().map(|row| sql::get(row, 0)).collect()
}

/// Names and shapes of the extra columns that events have now.
pub async fn extra_columns(client: &Client, history_id: Uuid) -> Result<Vec<(String, String)>> {
    let query = "SELECT name, shape FROM walcast.extra_column WHERE history_id = $1 ORDER BY name";
    let rows = client.query(query, &[&history_id]).await.map_err(sql::error)?;
    rows.iter().map(|row| Ok((sql::get(row, 0)?, sql::get(row, 1)?))).collect()
}

/// Letters of one sink for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LetterCount {
    /// The sink, or `all`: refused before the sinks.
    pub sink: String,
    /// The reason, a short code.
    pub reason: String,
    /// How many wait for somebody.
    pub open: u64,
    /// How many are on their way again.
    pub replaying: u64,
}

/// The letters of this slot that are not done with, by sink and reason, most first.
pub async fn counts(client: &Client, slot: &str) -> Result<Vec<LetterCount>> {
    let statement = "SELECT sink, reason, count(*) FILTER (WHERE letter.state = 'open'),
         count(*) FILTER (WHERE letter.state = 'replaying')
       FROM walcast.dead_letter AS letter JOIN walcast.slot USING (history_id)
       WHERE slot = $1 AND letter.state IN ('open', 'replaying')
       GROUP BY sink, reason ORDER BY count(*) DESC, sink, reason LIMIT $2";
    let found = client.query(statement, &[&slot, &GROUPS_MAX]).await.map_err(sql::error)?;
    let read = |row: &Row| {
        Ok(LetterCount {
            sink: sql::get(row, 0)?,
            reason: sql::get(row, 1)?,
            open: sql::get::<i64>(row, 2)?.unsigned_abs(),
            replaying: sql::get::<i64>(row, 3)?.unsigned_abs(),
        })
    };
    found.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_has_no_values() {
        let shape = |value: &str| shape_of(value);
        assert_eq!(shape(r#"{"$base64":"AAAABw=="}"#), ("binary", 4));
        assert_eq!(shape(r#""a\"b""#), ("text", 3));
        assert_eq!(shape(r#""half \ud800""#), ("text", 11));
        assert_eq!(
            (shape("null"), shape("true"), shape("-12")),
            (("null", 0), ("boolean", 4), ("number", 3))
        );
        assert_eq!(shape(r#"{"$base64":"AA==","x":1}"#), ("JSON", 24));
    }

    #[test]
    fn a_letters_name_reads_back() {
        let id = LetterId {
            sink: "bigquery".into(),
            position: Position { commit_lsn: Lsn(0x16_B374_D848), ordinal: 7 },
        };
        assert_eq!(id.to_string(), "bigquery@16/B374D848#7");
        assert_eq!(id.to_string().parse::<LetterId>().ok(), Some(id));
        for text in ["", "bigquery", "bigquery@16/B374D848", "bigquery@x#7", "bigquery@16/B374D848#-1"] {
            assert_eq!(text.parse::<LetterId>().map_err(|error| error.code()), Err(Code::Configuration));
        }
    }
}
