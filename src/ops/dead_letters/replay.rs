//! `walcast dead-letters replay`: sends rows again, through the WAL: each sink gets them once, by its ordinary checkpoint.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Choice, array, counted, require_all, require_choice, store, table};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::event::encoding::Encoding;
use crate::event::encoding::json::Json;
use crate::event::privacy::{Privacy, Rule};
use crate::event::replayed::Replayed;
use crate::event::schema::{ENGAGEMENT_EVENTS, Reads, SourceColumn};
use crate::event::time::micros_of;
use crate::failpoint::failpoint;
use crate::ops::terminal::print;
use crate::source::request::{self, Brought, Request, RequestKind, RequestRow};
use crate::source::sql;
use crate::state::State;
use crate::state::dead_letters::{self, ALL, Filter, LetterId, LetterState, Stored};

/// Bytes of one request's rows at most, unless one row alone has more: a request is one batch.
const REQUEST_BYTES_MAX: usize = 1 << 20;
const REQUEST_ROWS_MAX: usize = 1_000;

/// How JSON writes that there is no value.
const NULL: &str = stringify!(null);

/// `replay`.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// Names of letters, as `list` shows them.
    #[arg(value_name = "NAME")]
    ids: Vec<LetterId>,
    #[command(flatten)]
    choice: Choice,
    /// Give a field of the rows another value. Of rows refused before the sinks alone: else the sinks would differ. `null`
    /// is NULL.
    #[arg(long = "set", value_name = "FIELD=VALUE", value_parser = repair)]
    repairs: Vec<Repair>,
    /// As many at most, the oldest first.
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    max: u32,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A field and its new value as JSON.
#[derive(Debug, Clone)]
struct Repair {
    column: &'static SourceColumn,
    value: String,
}

impl Repair {
    /// What goes out for it: the rules hold for what is set as for what was there.
    fn under(self, privacy: &Privacy) -> Result<Repair> {
        let Repair { column, value } = self;
        let set = format!("--set {}=…", column.name);
        let pseudonym = match privacy.rule(column.name) {
            Rule::Drop => {
                let message = format!("{set}: privacy.{} leaves it out", column.name);
                return Err(Error::new(Code::DeadLetterUnfit, message).hint("send the row without it"));
            }
            Rule::Hash if value != NULL => match column.reads {
                Reads::Json => Some(privacy.json(&value)),
                Reads::Uuid => {
                    serde_json::from_str(&value).ok().map(|id| format!("\"{}\"", privacy.uuid(id)))
                }
                _ => serde_json::from_str::<Cow<'_, str>>(&value).ok().map(|text| privacy.json(&text)),
            },
            Rule::Hash | Rule::Keep => Some(value),
        };
        let value =
            pseudonym.ok_or_else(|| Error::new(Code::DeadLetterUnfit, format!("{set}: no such value")))?;
        Ok(Repair { column, value })
    }
}

/// Sends open letters again.
pub async fn replay(config: &Config, options: Replay) -> Result<ExitCode> {
    let Replay { ids, choice, repairs, max, dry_run, json } = options;
    require_choice(&ids, &choice)?;
    let repairs = repairs.into_iter().map(|repair| repair.under(&config.postgres.privacy));
    let repairs = repairs.collect::<Result<Vec<Repair>>>()?;
    let (mut state, history_id) = store(config).await?;
    let filter = choice.filter(ids, Some(LetterState::Open), max);
    let letters = dead_letters::list(state.client().await?, history_id, &filter).await?;
    require_all(&filter.ids, &letters)?;
    let (fit, unfit) = sort(letters, &repairs);
    if let Some((letter, why)) = unfit.first().filter(|_| !filter.ids.is_empty() || fit.is_empty()) {
        return Err(Error::new(Code::DeadLetterUnfit, format!("{} cannot be sent again: {why}", letter.id)));
    }
    let extra = dead_letters::extra_columns(state.client().await?, history_id).await?;
    let mut sent = Vec::new();
    for group in groups(fit) {
        match dry_run {
            true => sent.extend(group.into_iter().map(|(letter, _)| letter)),
            false => sent.extend(send(&mut state, history_id, &extra, group, &repairs).await?),
        }
    }
    let done = if dry_run { "would be sent again" } else { "sent again" };
    print(&match json {
        true => array(&sent),
        false => format!("{}{}\n", table(&sent), counted(sent.len(), done)),
    });
    if let [(first, why), ..] = unfit.as_slice() {
        let others = counted(unfit.len(), "cannot be sent as they are");
        eprintln!("{others}; the first is {}: {why}", first.id);
    }
    Ok(ExitCode::SUCCESS)
}

type Fit = (Stored, RequestRow);

/// The letters that can be sent, each with its row, and those that cannot, each with the reason.
fn sort(letters: Vec<Stored>, repairs: &[Repair]) -> (Vec<Fit>, Vec<(Stored, String)>) {
    let (mut fit, mut unfit) = (Vec::new(), Vec::new());
    for letter in letters {
        match row(&letter, repairs) {
            Ok(row) => fit.push((letter, row)),
            Err(why) => unfit.push((letter, why)),
        }
    }
    (fit, unfit)
}

/// What of these letters goes into one request: of one sink, and not too much.
fn groups(fit: Vec<Fit>) -> Vec<Vec<Fit>> {
    let mut by_sink: BTreeMap<String, Vec<Vec<Fit>>> = BTreeMap::new();
    for one in fit {
        let groups = by_sink.entry(one.0.id.sink.clone()).or_default();
        let bytes = |group: &Vec<Fit>| group.iter().map(|(_, row)| row.record.len()).sum::<usize>();
        let room = |group: &&mut Vec<Fit>| {
            group.len() < REQUEST_ROWS_MAX && bytes(group) + one.1.record.len() <= REQUEST_BYTES_MAX
        };
        match groups.last_mut().filter(room) {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    by_sink.into_values().flatten().collect()
}

/// One transaction: letters that are still open go over into the request's hands, and its ticket into the WAL. Gives these.
async fn send(
    state: &mut State,
    history_id: Uuid,
    extra: &[(String, String)],
    group: Vec<Fit>,
    repairs: &[Repair],
) -> Result<Vec<Stored>> {
    let transaction = state.client().await?.transaction().await.map_err(sql::error)?;
    let ids = group.iter().map(|(letter, _)| letter.id.clone()).collect();
    let filter = Filter { ids, state: Some(LetterState::Open), ..Filter::default() };
    let open = dead_letters::lock(&transaction, history_id, &filter).await?;
    let is_open = |(letter, _): &Fit| open.iter().any(|open| open.id == letter.id);
    let (letters, rows): (Vec<Stored>, Vec<RequestRow>) = group.into_iter().filter(is_open).unzip();
    let Some(first) = letters.first() else { return Ok(letters) };
    let request = Request {
        id: Uuid::new_v4(),
        kind: RequestKind::Replay,
        sinks: vec![first.id.sink.clone()],
        brings: Brought { extra: extra.to_vec(), rows },
    };
    let repair = repair_json(repairs);
    let events = request.brings.rows.iter().map(|row| row.record.as_str());
    let repair = (!repairs.is_empty()).then(|| (repair.as_str(), events.collect()));
    dead_letters::replaying(&transaction, history_id, &letters, request.id, repair).await?;
    failpoint!("replay_before_request");
    request::send(&transaction, history_id, &request).await?;
    failpoint!("replay_before_commit");
    transaction.commit().await.map_err(sql::error)?;
    failpoint!("replay_after_commit");
    Ok(letters)
}

/// The row as the request has it; or why it cannot be sent.
fn row(letter: &Stored, repairs: &[Repair]) -> Result<RequestRow, String> {
    let for_all = letter.id.sink == ALL;
    if !for_all && !repairs.is_empty() {
        return Err("the other sinks have the row as it is, so no field of it may be set".into());
    }
    let record = match (&letter.event, for_all) {
        (Some(event), true) => Cow::from(event),
        (None, true) if letter.event_id.is_none() && letter.record.is_some() => {
            return Err(
                "it is no event, or was stored by an older version; update the row in PostgreSQL".into()
            );
        }
        _ => letter.record_text().ok_or("its row is not kept any more (dead_letters.retention_days)")?,
    };
    let is_set = |name: &str| repairs.iter().any(|repair| repair.column.name == name);
    if let Some(unread) = letter.unread.iter().find(|unread| !is_set(unread)) {
        return Err(format!("{unread} could not be read; give it a value with --set {unread}=…"));
    }
    if let Some(id) = repairs.iter().find(|repair| repair.column.name == "id")
        && !letter.unread.iter().any(|unread| unread == id.column.name)
    {
        return Err("its id is known, and stays".into());
    }
    let record = repaired(&record, repairs).ok_or("its record cannot be read")?;
    let values = Json.read_event(record.as_bytes()).ok_or("its record cannot be read")?;
    Replayed::of(&values)
        .checked()
        .map_err(|error| format!("{}; give it another value with --set", error.message))?;
    Ok(RequestRow { record, joins: for_all, refused: None })
}

/// The record with other values.
fn repaired(record: &str, repairs: &[Repair]) -> Option<String> {
    if repairs.is_empty() {
        return Some(record.to_owned());
    }
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(record).ok()?;
    let raw = |text: String| RawValue::from_string(text).ok();
    for Repair { column, value } in repairs {
        if column.reads == Reads::Json {
            let bytes = if value == NULL { NULL.to_owned() } else { value.len().to_string() };
            fields.insert("raw_payload_bytes".to_owned(), raw(bytes)?);
        }
        fields.insert(record_field(column).to_owned(), raw(value.clone())?);
    }
    serde_json::to_string(&fields).ok()
}

/// A column's field in the record.
fn record_field(column: &SourceColumn) -> &'static str {
    if column.name == "id" { "event_id" } else { column.name }
}

fn repair_json(repairs: &[Repair]) -> String {
    let members: Vec<String> =
        repairs.iter().map(|Repair { column, value }| format!("{:?}:{value}", column.name)).collect();
    format!("{{{}}}", members.join(","))
}

/// `FIELD=VALUE`.
fn repair(text: &str) -> Result<Repair, String> {
    let (name, value) = text.split_once('=').ok_or("it is FIELD=VALUE")?;
    let column = ENGAGEMENT_EVENTS.columns.iter().find(|column| column.name == name).ok_or_else(|| {
        let names: Vec<&str> = ENGAGEMENT_EVENTS.column_names().collect();
        format!("there is no field {name:?}; the fields are {}", names.join(", "))
    })?;
    if value == NULL {
        return match column.name {
            "id" | "event_ts" => Err(format!("{name} must have a value")),
            _ => Ok(Repair { column, value: value.to_owned() }),
        };
    }
    let quoted = || serde_json::Value::from(value).to_string();
    let value = match column.reads {
        Reads::Int8 | Reads::Int4 => {
            value.parse::<i64>().map(|number| number.to_string()).map_err(|error| error.to_string())?
        }
        Reads::Uuid => {
            Uuid::parse_str(value).map(|id| format!("\"{id}\"")).map_err(|error| error.to_string())?
        }
        Reads::Text => quoted(),
        Reads::Time => {
            micros_of(value).map(|_| quoted()).ok_or("it is a time such as 2026-11-29T12:00:00Z")?
        }
        Reads::Json => serde_json::from_str::<&RawValue>(value)
            .map(|json| json.get().to_owned())
            .map_err(|error| error.to_string())?,
    };
    Ok(Repair { column, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_set_to_a_value_of_its_kind() {
        let set = |text: &str| repair(text).map(|repair| repair.value);
        assert_eq!(set("duration_ms=5").as_deref(), Ok("5"));
        assert_eq!(set("device=null").as_deref(), Ok("null"));
        assert_eq!(set("device=a \"b\"").as_deref(), Ok(r#""a \"b\"""#));
        assert_eq!(set(r#"raw_payload={"a":1}"#).as_deref(), Ok(r#"{"a":1}"#));
        for wrong in [
            "duration_ms",
            "duration_ms=x",
            "title=x",
            "event_ts=null",
            "event_ts=now",
            "content_id=7",
            "raw_payload={",
        ] {
            assert!(set(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_record_keeps_all_else() {
        let repairs = [repair("duration_ms=5").unwrap(), repair(r#"raw_payload=[1]"#).unwrap()];
        let record = repaired(r#"{"event_id":1,"duration_ms":-1,"raw_payload":"x","other":1.10}"#, &repairs);
        assert_eq!(
            record.as_deref(),
            Some(r#"{"duration_ms":5,"event_id":1,"other":1.10,"raw_payload":[1],"raw_payload_bytes":3}"#)
        );
        assert_eq!(repair_json(&repairs), r#"{"duration_ms":5,"raw_payload":[1]}"#);
    }
}
