//! `walcast dead-letters`: shows the rows that were refused, and says what becomes of them.

mod replay;

use std::fmt::Write;
use std::process::ExitCode;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde_json::Value;
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::ops::terminal::print;
use crate::source::sql;
use crate::state::dead_letters::{self, Filter, LetterId, LetterState, Stored};
use crate::state::{State, history};

pub use replay::{Replay, replay};

/// Which letters a command is about.
#[derive(Debug, clap::Args)]
pub struct Choice {
    /// Of this sink. `all`: refused before the sinks.
    #[arg(long, value_name = "SINK")]
    sink: Option<String>,
    /// With this reason, such as negative_duration.
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Stored since then: a time such as 2026-11-29T12:00:00Z, or so long ago, such as 2h or 3d.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
}

/// Which states `list` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum States {
    /// Those that wait for somebody.
    Open,
    /// Those on their way again.
    Replaying,
    /// Those that have arrived since.
    Replayed,
    /// Those that are not wanted.
    Discarded,
    /// All.
    Any,
}

impl States {
    fn wanted(self) -> Option<LetterState> {
        match self {
            States::Open => Some(LetterState::Open),
            States::Replaying => Some(LetterState::Replaying),
            States::Replayed => Some(LetterState::Replayed),
            States::Discarded => Some(LetterState::Discarded),
            States::Any => None,
        }
    }
}

impl Choice {
    fn filter(self, ids: Vec<LetterId>, state: Option<LetterState>, max: u32) -> Filter {
        let Choice { sink, reason, since } = self;
        let since = since.map(Timestamp::as_microsecond);
        Filter { ids, sink, reason, since, state, max: Some(max) }
    }

    fn is_empty(&self) -> bool {
        self.sink.is_none() && self.reason.is_none() && self.since.is_none()
    }
}

/// A time, or how long ago.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let ago: Span = text.parse().map_err(|error| format!("neither a time nor a span: {error}"))?;
    let now = Timestamp::now().to_zoned_datetime(TimeZone::UTC);
    let at = now.checked_sub(ago.abs()).map_err(|error| error.to_string())?;
    Ok(at.timestamp())
}

/// `list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    choice: Choice,
    /// In this state.
    #[arg(long, value_enum, default_value_t = States::Open, value_name = "STATE")]
    state: States,
    /// As many at most, the oldest first.
    #[arg(long, default_value_t = 100, value_name = "N")]
    max: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// `show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// The letter's name, as `list` shows it.
    #[arg(value_name = "NAME")]
    id: LetterId,
    /// Show the row's values too, and what its target said of it.
    #[arg(long)]
    values: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// `discard`.
#[derive(Debug, clap::Args)]
pub struct Discard {
    /// Names of letters, as `list` shows them.
    #[arg(value_name = "NAME")]
    ids: Vec<LetterId>,
    #[command(flatten)]
    choice: Choice,
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

/// Prints the letters, without values.
pub async fn list(config: &Config, options: List) -> Result<ExitCode> {
    let (mut state, history_id) = store(config).await?;
    let List { choice, state: states, max, json } = options;
    let filter = choice.filter(Vec::new(), states.wanted(), max);
    let letters = dead_letters::list(state.client().await?, history_id, &filter).await?;
    print(&match json {
        true => array(&letters),
        false => table(&letters) + &footnote(letters.len(), max),
    });
    Ok(ExitCode::SUCCESS)
}

/// Prints one letter.
pub async fn show(config: &Config, options: Show) -> Result<ExitCode> {
    let (mut state, history_id) = store(config).await?;
    let Show { id, values, json } = options;
    let filter = Filter { ids: vec![id.clone()], ..Filter::default() };
    let found = dead_letters::list(state.client().await?, history_id, &filter).await?;
    let letter = found.first().ok_or_else(|| missing(&id))?;
    print(&match json {
        true => pretty(&letter.json(values)),
        false => page(letter, values),
    });
    Ok(ExitCode::SUCCESS)
}

/// Says of letters that they are not wanted.
pub async fn discard(config: &Config, options: Discard) -> Result<ExitCode> {
    let Discard { ids, choice, max, dry_run, json } = options;
    require_choice(&ids, &choice)?;
    let (mut state, history_id) = store(config).await?;
    let filter = choice.filter(ids, Some(LetterState::Open), max);
    let transaction = state.client().await?.transaction().await.map_err(sql::error)?;
    let letters = dead_letters::lock(&transaction, history_id, &filter).await?;
    require_all(&filter.ids, &letters)?;
    if !dry_run {
        dead_letters::discard(&transaction, history_id, &letters).await?;
        transaction.commit().await.map_err(sql::error)?;
    }
    let done = if dry_run { "would be discarded" } else { "discarded" };
    print(&match json {
        true => array(&letters),
        false => format!("{}{}\n", table(&letters), counted(letters.len(), done)),
    });
    Ok(ExitCode::SUCCESS)
}

/// The state schema, and the history that this slot's letters belong to.
async fn store(config: &Config) -> Result<(State, Uuid)> {
    let mut state = State::new(config.postgres.clone());
    let (history_id, _) = history::find(&config.postgres, state.client().await?).await?;
    Ok((state, history_id.uuid))
}

/// All letters at once are named on purpose.
fn require_choice(ids: &[LetterId], choice: &Choice) -> Result<()> {
    if !ids.is_empty() || !choice.is_empty() {
        return Ok(());
    }
    Err(Error::new(Code::DeadLetterNotFound, "no letters are named")
        .hint("name them, or choose with --sink, --reason or --since; `--since 100y` is all of them"))
}

fn require_all(ids: &[LetterId], letters: &[Stored]) -> Result<()> {
    match ids.iter().find(|id| letters.iter().all(|letter| letter.id != **id)) {
        Some(id) => Err(missing(id)),
        None => Ok(()),
    }
}

fn missing(id: &LetterId) -> Error {
    Error::new(Code::DeadLetterNotFound, format!("there is no dead letter {id} in that state"))
        .hint("`walcast dead-letters list --state any` shows all letters and their states")
}

fn array(letters: &[Stored]) -> String {
    pretty(&letters.iter().map(|letter| letter.json(false)).collect())
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn counted(letters: usize, done: &str) -> String {
    format!("{letters} dead letter{} {done}", if letters == 1 { "" } else { "s" })
}

fn footnote(letters: usize, max: u32) -> String {
    match letters {
        0 => "no dead letters\n".to_owned(),
        shown if shown as u64 == u64::from(max) => format!("the oldest {max}; --max shows more\n"),
        _ => String::new(),
    }
}

const IN_ITS_WORDS: &str = "in its target's words, which may quote the row: show NAME --values";

fn table(letters: &[Stored]) -> String {
    let heads =
        ["NAME", "STORED", "STATE", "REASON", "TABLE", "EVENT", "TRIES", "MESSAGE"].map(str::to_owned);
    let line = |letter: &Stored| {
        [
            letter.id.to_string(),
            format!("{:.0}", letter.created_at),
            letter.state.clone(),
            letter.reason.clone(),
            letter.table.clone().unwrap_or_else(|| "events".to_owned()),
            letter.event_id.map_or_else(|| "-".to_owned(), |id| id.to_string()),
            letter.attempts.to_string(),
            letter.told().unwrap_or(IN_ITS_WORDS).to_owned(),
        ]
    };
    if letters.is_empty() {
        return String::new();
    }
    let lines: Vec<[String; 8]> = std::iter::once(heads).chain(letters.iter().map(line)).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column)));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn page(letter: &Stored, values: bool) -> String {
    let mut text = String::new();
    let at = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), |time| time.to_string());
    for (name, value) in [
        ("name", letter.id.to_string()),
        ("state", format!("{}, refused {} times", letter.state, letter.attempts)),
        ("stored", letter.created_at.to_string()),
        ("committed", at(letter.commit_ts)),
        ("table", letter.table.clone().unwrap_or_else(|| "the events table".to_owned())),
        ("event", letter.event_id.map_or_else(|| "-".to_owned(), |id| id.to_string())),
        ("reason", letter.reason.clone()),
        (
            "message",
            letter.told().or(values.then_some(&letter.message)).unwrap_or("with --values").to_owned(),
        ),
        ("unread", letter.unread.join(", ")),
    ] {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<10} {value}");
        }
    }
    text.push('\n');
    for field in letter.shape() {
        let _ = writeln!(text, "{:<24} {}, {} bytes", field.name, field.kind, field.bytes);
    }
    if let Some(record) = letter.record_text().filter(|_| values) {
        let _ = writeln!(text, "\n{record}");
    }
    text
}
