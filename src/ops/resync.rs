//! `walcast resync`: finds what does not fit together any more, PostgreSQL's slot and what each sink holds, says what mends it, and
//! does so with `--yes`.
//!
//! Where the slot is whole, the sinks that cannot go on from it are filled anew. Where it is not, or PostgreSQL is older than what a
//! sink holds, no checkpoint counts any more: a new slot is made, and every sink is filled anew from what PostgreSQL has.

use std::process::ExitCode;

use indicatif::HumanCount;
use tokio_postgres::Client;

use crate::backfill::recount::readable;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::failpoint::failpoint;
use crate::finding;
use crate::lsn::HistoryId;
use crate::ops::backfill::{estimate, follow};
use crate::ops::check::standings;
use crate::ops::init;
use crate::ops::rebuild::{RecountOptions, asked, recount};
use crate::ops::terminal::print;
use crate::resume::{Resume, SinkName};
use crate::sink::SinkAdmin;
use crate::sinks;
use crate::source::check::lanes::lanes;
use crate::source::{check, slot, sql};
use crate::state::backfills::{self, Backfill};
use crate::state::history;
use crate::state::marks::EventMarks;

/// `resync`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// Do it. Without this the command says what it would do.
    #[arg(long)]
    yes: bool,
    /// Make a new slot, and fill every sink anew, whatever is there.
    #[arg(long)]
    new_slot: bool,
    /// Do not wait for its end.
    #[arg(long)]
    detach: bool,
}

/// What is to be done, and why.
#[derive(Debug, Default)]
struct Plan {
    new_slot: Option<String>,
    sinks: Vec<Anew>,
}

/// A sink that is to be filled anew.
#[derive(Debug)]
struct Anew {
    sink: SinkName,
    why: String,
    /// What its target loses.
    goes: Option<String>,
    keeps_sums: bool,
}

/// Finds out, says, and does it.
pub async fn resync(config: &Config, options: Options) -> Result<ExitCode> {
    let client = sql::connect(&config.postgres).await?;
    slot::server_facts(&client).await?.check_primary()?;
    let plan = plan(config, &client, options.new_slot).await?;
    if plan.sinks.is_empty() && plan.new_slot.is_none() {
        print("every sink can go on from where it stands: there is nothing to do\n");
        return Ok(ExitCode::SUCCESS);
    }
    print(&plan.told(&config.postgres.slot));
    if !options.yes {
        return Err(Error::new(Code::RebuildUnconfirmed, "this is what would be done; nothing was changed")
            .hint("walcast resync --yes"));
    }
    let history_id = renew(config, &client, plan.new_slot.is_some()).await?;
    failpoint!("resync_before_ask");
    let ids = ask(config, &history_id, &plan).await?;
    if ids.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    print("`walcast run` does the rest; `walcast backfill status` shows how far it is\n");
    let mut ended = ExitCode::SUCCESS;
    for id in ids.into_iter().filter(|_| !options.detach) {
        ended = follow(&client, &history_id, id).await?;
    }
    Ok(ended)
}

async fn plan(config: &Config, client: &Client, new_slot: bool) -> Result<Plan> {
    if !history::is_kept(client).await? && slot::facts(client, &config.postgres.slot).await?.is_some() {
        let why = "what walcast knew of the slot that there is, was lost with the schema walcast";
        return all_anew(config, why.to_owned());
    }
    let history_id = match history::find(&config.postgres, client).await {
        Ok(_) if new_slot => return all_anew(config, "it was asked for".to_owned()),
        Ok((history_id, _)) => history_id,
        Err(error) if needs_new_slot(error.code()) => return all_anew(config, error.to_string()),
        Err(error) => return Err(error),
    };
    let lost = lanes(client, history_id.uuid).await?;
    let lost = lost.iter().filter(|lane| lane.open && lane.confirmed.is_none());
    let lost: Vec<&str> = lost.map(|lane| lane.sink.as_str()).collect();
    let open = backfills::list(client, &history_id).await?;
    let comes = |sink: &str| {
        open.iter().any(|one| {
            one.rebuild.is_some() && one.state.is_to_come() && one.sinks.iter().any(|name| name == sink)
        })
    };
    let mut sinks = Vec::new();
    for target in sinks::wanted(config)?.iter().filter(|target| lost.contains(&target.name())) {
        sinks.push(Anew::of(target.as_ref(), "the slot that it had alone is lost".to_owned()));
    }
    for standing in standings(config, client, sinks::wanted(config)?).await? {
        let target = standing.target.as_ref();
        let why = match standing.judged {
            Ok(Resume::From(_) | Resume::Fresh(_)) => continue,
            Ok(Resume::Refused(refusal)) => {
                let error = refusal.into_error(target.id(), &standing.session);
                match error.code() {
                    // what the sink has beyond, this server will never send
                    Code::SinkAheadOfServer => return all_anew(config, error.to_string()),
                    // it is whole
                    Code::OtherOrdinalRule => return Err(error),
                    _ => error.to_string(),
                }
            }
            Err(error) if can_be_filled_anew(error.code()) => error.to_string(),
            Err(error) => return Err(error),
        };
        sinks.push(Anew::of(target, why));
    }
    sinks.retain(|anew| !comes(anew.sink.as_str()));
    Ok(Plan { new_slot: None, sinks })
}

/// Every sink that keeps what it is given.
fn all_anew(config: &Config, why: String) -> Result<Plan> {
    let wanted = sinks::wanted(config)?;
    let keep = wanted.iter().filter(|target| target.guarantee().keeps_checkpoint());
    let sinks = keep.map(|target| Anew::of(target.as_ref(), "it goes on from the new slot".to_owned()));
    Ok(Plan { new_slot: Some(why), sinks: sinks.collect() })
}

/// Whether no stream of the slot that there was can be gone on with.
fn needs_new_slot(code: Code) -> bool {
    matches!(
        code,
        Code::SlotGone
            | Code::SlotInvalidated
            | Code::SlotNotOurs
            | Code::PublicationChanged
            | Code::OtherCluster
            | Code::HistoryForgotten
    )
}

/// Whether a target that says so is as good as one that has lost all.
fn can_be_filled_anew(code: Code) -> bool {
    matches!(
        code,
        Code::SinkLostItsData | Code::CheckpointUnreadable | Code::RebuildUnfinished | Code::RedisRemains
    )
}

impl Plan {
    fn told(&self, slot: &str) -> String {
        let mut text = String::new();
        if let Some(why) = &self.new_slot {
            text.push_str(&format!("a new slot {slot} is made: {why}\n"));
        }
        for Anew { sink, why, goes, keeps_sums } in &self.sinks {
            let what = match (goes, keeps_sums) {
                (_, true) => "all that it counts is counted anew".to_owned(),
                (Some(goes), false) => goes.clone(),
                (None, false) => "it is emptied".to_owned(),
            };
            text.push_str(&format!("{sink} is filled anew ({what}): {why}\n"));
        }
        text
    }
}

impl Anew {
    fn of(target: &dyn SinkAdmin, why: String) -> Anew {
        let keeps_sums = target.recount().is_some();
        Anew { sink: target.id(), why, goes: target.would_go(), keeps_sums }
    }
}

/// Makes a new slot in the place of the one that there was, if that is asked for. The history that the sinks go on with.
async fn renew(config: &Config, client: &Client, new_slot: bool) -> Result<HistoryId> {
    if new_slot {
        let read = slot::facts(client, &config.postgres.slot).await?.is_some_and(|facts| facts.active);
        if read {
            let message = format!("slot {} is being read", config.postgres.slot);
            return Err(Error::new(Code::SlotBusy, message).hint("stop walcast, and run it again"));
        }
        // before anything is gone
        finding::refuse(&check::check_before_making(client, &config.postgres).await?)?;
        history::forget(&config.postgres, client).await?;
        init::init(config, false).await?;
    }
    history::find(&config.postgres, client).await.map(|(history_id, _)| history_id)
}

/// Asks for all of it; gives the names of what `walcast run` does. With a new slot all rows that there are were there before.
async fn ask(config: &Config, history_id: &HistoryId, plan: &Plan) -> Result<Vec<uuid::Uuid>> {
    let with_history = plan.new_slot.is_some();
    let mut client = sql::connect(&config.postgres).await?;
    let places = readable(&config.postgres, &client).await?;
    let runs = slot::facts(&client, &history_id.slot).await?.is_some_and(|facts| facts.active);
    for anew in plan.sinks.iter().filter(|anew| anew.keeps_sums && !runs) {
        recount(config, anew.sink, RecountOptions { with_history, detach: true }).await?;
    }
    let mut planned: Vec<Backfill> =
        plan.sinks.iter().filter(|anew| runs || !anew.keeps_sums).map(|anew| asked(anew.sink)).collect();
    for one in &mut planned {
        one.estimated_rows = estimate(&client, &places.events, one).await?;
        print(&format!("about {} rows come to {}\n", HumanCount(one.estimated_rows), one.sinks.join(", ")));
    }
    let last_id = EventMarks::begin(&client, history_id).await?.end_of_before();
    let transaction = client.transaction().await.map_err(sql::error)?;
    if with_history && runs {
        // whoever watches over walcast may have started it already
        let last_id = last_id?;
        for anew in plan.sinks.iter().filter(|anew| anew.keeps_sums) {
            backfills::counted(&transaction, history_id, anew.sink.as_str(), (last_id, 0)).await?;
        }
    }
    for one in &planned {
        backfills::queue(&transaction, history_id, one).await?;
    }
    transaction.commit().await.map_err(sql::error)?;
    Ok(planned.into_iter().map(|one| one.id).collect())
}
