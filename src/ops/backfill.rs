//! `walcast backfill`: has the rows of before walcast brought, and shows how far that is. `walcast run` does the work
//! ([`crate::backfill`]).

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::backfill::{WAITS_FOR_WRITERS, between, waits_for_writers};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::event::place::Place;
use crate::event::time::micros_of;
use crate::lsn::HistoryId;
use crate::ops::terminal::print;
use crate::quote::identifier;
use crate::sink::read_back::ReadBack;
use crate::sinks;
use crate::source::{rows, slot, sql};
use crate::state::backfills::{self, BackfillState, RebuildStep};
use crate::state::history;
use crate::state::marks::EventMarks;

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// `backfill`.
#[derive(Debug, clap::Args)]
pub struct Backfill {
    #[command(subcommand)]
    what: Option<What>,
    /// Whom the rows are for, with commas between them. Default: all of pipeline.sinks but Redis.
    #[arg(long, value_name = "SINKS", value_delimiter = ',')]
    sinks: Vec<String>,
    /// Rows with an event_ts from this time on.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<String>,
    /// Rows with an event_ts before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<String>,
    /// As many rows a second at most. Default: as many as the sinks take.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rows_per_second: Option<u32>,
    /// Also rows that these sinks were brought before. They have them twice then.
    #[arg(long)]
    again: bool,
    /// Say what would be brought, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for its end.
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, Clone, Copy, clap::Subcommand)]
enum What {
    /// Show the backfills and how far they are.
    #[command(after_help = "Example: walcast backfill status")]
    Status,
    /// Send no more rows until `resume`.
    #[command(after_help = "Example: walcast backfill pause")]
    Pause,
    /// Let a paused one go on.
    #[command(after_help = "Example: walcast backfill resume")]
    Resume,
    /// End it. What is sent stays in the sinks.
    #[command(after_help = "Example: walcast backfill cancel")]
    Cancel,
}

/// An RFC 3339 time.
pub(super) fn time(text: &str) -> std::result::Result<String, String> {
    micros_of(text)
        .map(|_| text.to_owned())
        .ok_or_else(|| "it is a time such as 2026-11-29T12:00:00Z".to_owned())
}

/// Does what is asked.
pub async fn backfill(config: &Config, options: Backfill) -> Result<ExitCode> {
    let client = sql::connect(&config.postgres).await?;
    let (history_id, _) = history::find(&config.postgres, &client).await?;
    let to = match options.what {
        None => return begin(config, &client, &history_id, options).await,
        Some(What::Status) => {
            let all = backfills::list(&client, &history_id).await?;
            print(&status(&all, &keep_sums(config).unwrap_or_default()));
            if let Some(why) = waits(&client, all.iter().find(|one| one.state.is_open())).await? {
                print(&format!("{why}\n"));
            }
            return Ok(ExitCode::SUCCESS);
        }
        Some(What::Pause) => BackfillState::Paused,
        Some(What::Resume) => BackfillState::Running,
        Some(What::Cancel) => BackfillState::Cancelled,
    };
    let open = backfills::open(&client, &history_id).await?;
    if let Some((sink, _)) = open.as_ref().and_then(backfills::Backfill::to_be_emptied) {
        let message = format!("{sink} has stopped, and is being emptied or begins anew");
        return Err(Error::new(Code::BackfillUnfit, message)
            .hint("wait until `walcast backfill status` says that it was emptied, or lacks rows"));
    }
    print(&match backfills::turn(&client, &history_id, to).await? {
        Some(from) if from == to => format!("it is {to} already\n"),
        Some(_) => format!("it is {to} now\n"),
        None => "no backfill is open\n".to_owned(),
    });
    Ok(ExitCode::SUCCESS)
}

/// Begins one for all sinks that take rows, unless they were brought some.
pub(super) async fn begin_once(config: &Config, client: &Client, history_id: &HistoryId) -> Result<()> {
    let mut sinks = match whom(config, Vec::new()) {
        // Redis alone, which has them already
        Err(error) if error.code() == Code::BackfillUnfit => return Ok(()),
        sinks => sinks?,
    };
    let before = backfills::list(client, history_id).await?;
    let brings = |one: &&backfills::Backfill| one.keeps_below().is_none();
    sinks.retain(|sink| before.iter().filter(brings).all(|one| !one.sinks.contains(sink)));
    if sinks.is_empty() {
        return Ok(());
    }
    print(&format!("the rows of before come to {} when `walcast run` runs\n", sinks.join(", ")));
    let options = Backfill {
        what: None,
        sinks,
        since: None,
        until: None,
        rows_per_second: None,
        again: false,
        dry_run: false,
        detach: true,
    };
    begin(config, client, history_id, options).await.map(drop)
}

async fn begin(
    config: &Config,
    client: &Client,
    history_id: &HistoryId,
    options: Backfill,
) -> Result<ExitCode> {
    let Backfill { sinks, since, until, rows_per_second, again, dry_run, detach, .. } = options;
    let marks = EventMarks::load(client, history_id).await?;
    let last_id = marks.end_of_before()?;
    let between = (since.as_deref().and_then(micros_of), until.as_deref().and_then(micros_of));
    let mut planned = backfills::Backfill {
        id: Uuid::new_v4(),
        sinks: whom(config, sinks)?,
        since,
        until,
        between,
        rows_per_second,
        last_id,
        done_id: None,
        rows: 0,
        estimated_rows: 0,
        state: BackfillState::Running,
        rebuild: None,
    };
    let events = history::publication(&config.postgres, client).await?.places.events;
    planned.estimated_rows = estimate(client, &events, &planned).await?;
    if !again {
        refuse_again(&backfills::list(client, history_id).await?, &planned)?;
    }
    if dry_run {
        print(&plan(&planned, marks.late.len()));
        return Ok(ExitCode::SUCCESS);
    }
    backfills::begin(client, history_id, &planned).await?;
    if detach {
        print("`walcast run` brings the rows; `walcast backfill status` shows how far it is\n");
        return Ok(ExitCode::SUCCESS);
    }
    follow(client, history_id, planned.id).await
}

/// An error if one of the sinks was brought some of these rows before.
fn refuse_again(before: &[backfills::Backfill], planned: &backfills::Backfill) -> Result<()> {
    let overlaps = |one: &&backfills::Backfill| {
        let ((since, until), (from, to)) = (one.between, planned.between);
        let apart = until.zip(from).is_some_and(|(until, from)| until <= from)
            || to.zip(since).is_some_and(|(to, since)| to <= since);
        // what a sink lacked was brought before
        let brings = one.done_id.is_some() && one.keeps_below().is_none();
        brings && !apart && one.sinks.iter().any(|sink| planned.sinks.contains(sink))
    };
    let Some(one) = before.iter().find(overlaps) else { return Ok(()) };
    let bounds = bounds(one);
    let sinks = one.sinks.join(", ");
    let message =
        format!("rows up to id {} were brought to {sinks} before{bounds}", one.done_id.unwrap_or_default());
    Err(Error::new(Code::BackfillUnfit, message).hint("with --again these sinks have them twice"))
}

/// The sinks, if each can be brought rows. One that keeps sums of events cannot.
fn whom(config: &Config, named: Vec<String>) -> Result<Vec<String>> {
    let keep_sums = keep_sums(config)?;
    let mut takes_rows = config.pipeline.sinks.clone();
    takes_rows.retain(|name| !keep_sums.contains(&name.as_str()));
    let unfit =
        |message: String, hint: &str| Err(Error::new(Code::BackfillUnfit, message).hint(hint.to_owned()));
    if let Some(other) = named.iter().find(|name| !takes_rows.contains(name)) {
        return match keep_sums.contains(&other.as_str()) {
            true => unfit(
                format!("{other} keeps sums of events, and is not brought single rows"),
                &format!("run `walcast rebuild {other}`"),
            ),
            false => unfit(
                format!("{other} is not among pipeline.sinks"),
                &format!("name some of {}", takes_rows.join(", ")),
            ),
        };
    }
    match (named.is_empty(), takes_rows.is_empty()) {
        (true, true) => unfit("no sink is brought single rows".to_owned(), "set PIPELINE_SINKS"),
        (true, false) => Ok(takes_rows),
        (false, _) => Ok(named),
    }
}

/// About how many rows that are, as PostgreSQL's planner sees it.
pub(super) async fn estimate(client: &Client, events: &Place, planned: &backfills::Backfill) -> Result<u64> {
    let id = identifier(events.called("id"));
    let mut condition = format!("{id} <= {}", planned.last_id);
    condition.push_str(&between(client, events, [&planned.since, &planned.until]).await?);
    let query =
        format!("EXPLAIN (FORMAT JSON) SELECT FROM {}{}", events.sql(), rows::only(events, Some(&condition)));
    let row = client.query_one(&query, &[]).await.map_err(sql::error)?;
    let plan: serde_json::Value = sql::get(&row, 0)?;
    Ok(plan.pointer("/0/Plan/Plan Rows").and_then(serde_json::Value::as_f64).unwrap_or_default() as u64)
}

fn plan(planned: &backfills::Backfill, late: u64) -> String {
    let backfills::Backfill { sinks, last_id, estimated_rows, .. } = planned;
    let mut text = format!(
        "about {} rows with an id up to {last_id} would be brought to {}{}\n",
        HumanCount(*estimated_rows),
        sinks.join(", "),
        bounds(planned),
    );
    if late > 0 {
        text.push_str(&format!(
            "{} of such ids would be skipped: the stream has brought them\n",
            HumanCount(late)
        ));
    }
    if let Some(rate) = planned.rows_per_second {
        let seconds = estimated_rows / u64::from(rate.max(1));
        text.push_str(&format!(
            "at {} rows a second that takes {}\n",
            HumanCount(rate.into()),
            duration(seconds)
        ));
    }
    text
}

pub(super) fn bounds(backfill: &backfills::Backfill) -> String {
    let since = backfill.since.as_ref().map(|since| format!(", from {since} on"));
    let until = backfill.until.as_ref().map(|until| format!(", before {until}"));
    [since, until].into_iter().flatten().collect()
}

fn duration(seconds: u64) -> String {
    indicatif::HumanDuration(Duration::from_secs(seconds)).to_string()
}

/// The sinks that keep sums of events, and are brought no rows.
fn keep_sums(config: &Config) -> Result<Vec<&'static str>> {
    let mut targets = sinks::wanted(config)?;
    targets.retain(|target| matches!(target.read_back(), ReadBack::Sums(_)));
    Ok(targets.iter().map(|target| target.name()).collect())
}

fn status(backfills: &[backfills::Backfill], keep_sums: &[&str]) -> String {
    if backfills.is_empty() {
        return "there is no backfill\n".to_owned();
    }
    let line = |backfill: &backfills::Backfill| {
        let backfills::Backfill { id, state, rows, estimated_rows, sinks, .. } = backfill;
        let of = match state {
            BackfillState::Done => String::new(),
            _ => format!(" of about {}", HumanCount(*estimated_rows)),
        };
        if backfill.rebuild.is_none() && sinks.iter().all(|sink| keep_sums.contains(&sink.as_str())) {
            let (sinks, last_id) = (sinks.join(", "), backfill.last_id);
            return format!("{id}  {state:<9}  {sinks} counts the rows of before too, up to id {last_id}\n");
        }
        let (sinks, bounds) = (sinks.join(", "), bounds(backfill));
        let counted = HumanCount(*rows);
        match backfill.rebuild.as_ref().map(|rebuild| rebuild.step) {
            Some(RebuildStep::Counted) => {
                return format!("{id}  {state:<9}  {sinks} holds {counted} events, counted anew\n");
            }
            Some(RebuildStep::Counting) => {
                return format!(
                    "{id}  {state:<9}  {counted}{of} events counted for {sinks}, which was emptied\n"
                );
            }
            _ => {}
        }
        let anew = match (backfill.began_anew(), backfill.keeps_below().is_some()) {
            _ if backfill.rebuild.is_none() => "",
            (true, true) => ", which lacked them",
            (true, false) => ", which was emptied",
            (false, true) => ", which begins anew",
            (false, false) => ", which is to be emptied",
        };
        format!("{id}  {state:<9}  {}{of} rows sent to {sinks}{anew}{bounds}\n", HumanCount(*rows))
    };
    backfills.iter().map(line).collect()
}

fn counts(backfill: &backfills::Backfill) -> bool {
    backfill.rebuild.as_ref().is_some_and(|rebuild| rebuild.step == RebuildStep::Counting)
}

/// Why a rebuild reads no rows yet.
async fn waits(client: &Client, open: Option<&backfills::Backfill>) -> Result<Option<String>> {
    let Some(open) = open.filter(|open| open.to_be_emptied().is_none()) else { return Ok(None) };
    if !waits_for_writers(client, open).await? {
        return Ok(None);
    }
    Ok(Some(format!("{WAITS_FOR_WRITERS}: {}", slot::what_writes(client).await?)))
}

/// Shows how far it is, until it is no longer open.
pub(super) async fn follow(client: &Client, history_id: &HistoryId, id: Uuid) -> Result<ExitCode> {
    let template = "{wide_bar} {pos}/{len} rows {per_sec} {msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    loop {
        let all = backfills::list(client, history_id).await?;
        let Some(backfill) = all.into_iter().find(|backfill| backfill.id == id) else { break };
        bar.set_length(backfill.estimated_rows.max(backfill.rows));
        bar.set_position(backfill.rows);
        if !backfill.state.is_to_come() {
            bar.finish_and_clear();
            print(&status(&[backfill], &[]));
            break;
        }
        let active = slot::facts(client, &history_id.slot).await?.is_some_and(|facts| facts.active);
        bar.set_message(match (active, backfill.state) {
            (_, BackfillState::Paused) => "paused: `walcast backfill resume`".to_owned(),
            (false, _) => "waits for `walcast run`".to_owned(),
            (true, BackfillState::Waiting) => "waits for the one before it".to_owned(),
            (true, _) if counts(&backfill) => "events are counted".to_owned(),
            (true, _) if backfill.to_be_emptied().is_some() => match backfill.keeps_below() {
                Some(_) => "the sink begins anew".to_owned(),
                None => "the sink is being emptied".to_owned(),
            },
            (true, _) if backfill.keeps_below().is_some() && backfill.done_id.is_none() => {
                "what the sink holds is read".to_owned()
            }
            (true, _) => waits(client, Some(&backfill)).await?.unwrap_or_default(),
        });
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(ExitCode::SUCCESS)
}
