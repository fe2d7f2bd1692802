//! `walcast resync`: finds what does not fit together any more, PostgreSQL's slot and what each sink holds, says what mends it, and
//! does so with `--yes`.
//!
//! A sink that cannot go on keeps what it holds and is brought what it lacks, where both can be told; else it is filled anew. Where
//! the slot is lost a new one is made under the same history, so that what the sinks hold counts on. Where PostgreSQL is another one,
//! or older than what a sink holds, no checkpoint counts any more: every sink is filled anew under a new history.

use std::process::ExitCode;

use indicatif::HumanCount;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::backfill::recount::readable;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::failpoint::failpoint;
use crate::finding;
use crate::lsn::{HistoryId, Lsn, Timelines};
use crate::ops::backfill::{estimate, follow};
use crate::ops::check::{Standing, standing, standings};
use crate::ops::init;
use crate::ops::rebuild::{ALL, RecountOptions, any_place, asked, gives_events, held, recount};
use crate::ops::terminal::print;
use crate::resume::{Resume, SinkName};
use crate::sink::SinkAdmin;
use crate::sink::read_back::ReadBack;
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
    slot: NewSlot,
    sinks: Vec<Anew>,
    /// Backfills that go no further.
    ends: Vec<Backfill>,
}

/// Whether a new slot is made, and why.
#[derive(Debug, Default)]
enum NewSlot {
    #[default]
    No,
    /// What the sinks hold counts on.
    SameHistory(String),
    /// No checkpoint counts any more.
    NewHistory(String),
}

/// A sink that is to be mended.
#[derive(Debug)]
struct Anew {
    sink: SinkName,
    why: String,
    /// What its target loses.
    goes: Option<String>,
    keeps_sums: bool,
    /// What it holds from places below stays.
    keeps_below: Option<Lsn>,
}

/// Finds out, says, and does it.
pub async fn resync(config: &Config, options: Options) -> Result<ExitCode> {
    let client = sql::connect(&config.postgres).await?;
    slot::server_facts(&client).await?.check_primary()?;
    let plan = plan(config, &client, options.new_slot).await?;
    if plan.sinks.is_empty() && matches!(plan.slot, NewSlot::No) {
        print("every sink can go on from where it stands: there is nothing to do\n");
        return Ok(ExitCode::SUCCESS);
    }
    print(&plan.told(&config.postgres.slot));
    if !options.yes {
        return Err(Error::new(Code::RebuildUnconfirmed, "this is what would be done; nothing was changed")
            .hint("walcast resync --yes"));
    }
    let (history_id, ids) = plan.make(config).await?;
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
    let (history_id, timelines) = match history::find(&config.postgres, client).await {
        Ok(_) if new_slot => return all_anew(config, "it was asked for".to_owned()),
        Ok(found) => found,
        Err(error) if needs_new_slot(error.code()) => {
            return match history::without_slot(&config.postgres, client).await?.filter(|_| !new_slot) {
                Some(known) => same_history(config, client, known, error.to_string()).await,
                None => all_anew(config, error.to_string()),
            };
        }
        Err(error) => return Err(error),
    };
    let lost = lanes(client, history_id.uuid).await?;
    let lost = lost.iter().filter(|lane| lane.open && lane.confirmed.is_none());
    let lost: Vec<&str> = lost.map(|lane| lane.sink.as_str()).collect();
    let mut all = Vec::new();
    for target in sinks::wanted(config)?.into_iter().filter(|target| lost.contains(&target.name())) {
        let standing = standing(config, target, any_place(history_id.clone(), timelines.clone())).await;
        all.push((standing, Some("the slot that it had alone is lost")));
    }
    for standing in standings(config, client, sinks::wanted(config)?).await? {
        all.push((standing, None));
    }
    Plan::of(config, client, &history_id, NewSlot::No, all).await
}

/// Every sink that has something goes on from a new slot under the same history.
async fn same_history(
    config: &Config,
    client: &Client,
    (history_id, timelines): (HistoryId, Timelines),
    why: String,
) -> Result<Plan> {
    let mut all = Vec::new();
    for target in sinks::wanted(config)?.into_iter().filter(|target| target.guarantee().keeps_checkpoint()) {
        let standing = standing(config, target, any_place(history_id.clone(), timelines.clone())).await;
        // one that never had anything begins there
        if !matches!(standing.judged, Ok(Resume::Fresh(_))) {
            all.push((standing, Some("it goes on from the new slot")));
        }
    }
    Plan::of(config, client, &history_id, NewSlot::SameHistory(why), all).await
}

/// Below which places a sink keeps what it holds; `None` where nobody tells what that is. One that gives nothing back has what all
/// the others have that do, up to its checkpoint.
fn keeps_below(standing: &Standing, all: &[(Standing, Option<&str>)], known: &[Backfill]) -> Option<Lsn> {
    let reached = held(&standing.judged)?.durable_lsn;
    if gives_events(standing.target.as_ref()) {
        return Some(ALL);
    }
    let acknowledges = matches!(standing.target.read_back(), ReadBack::Acknowledged);
    if !acknowledges || reached == Lsn::ZERO {
        return None;
    }
    let tellers = all.iter().map(|(other, _)| other).filter(|other| gives_events(other.target.as_ref()));
    let mut tellers = tellers.peekable();
    let is_whole = |teller: &Standing| {
        // one that was emptied has its rows at other places
        let emptied = |one: &Backfill| {
            let begins = one.rebuild.as_ref().and_then(|rebuild| rebuild.begins);
            let later = begins.is_none_or(|begins| begins.durable_lsn > reached);
            one.rebuild.is_some() && one.keeps_below().is_none() && later && one.is_for(teller.target.name())
        };
        held(&teller.judged).is_some_and(|held| held.durable_lsn >= reached) && !known.iter().any(emptied)
    };
    tellers.peek()?;
    tellers.all(is_whole).then_some(reached)
}

/// What the sink has beyond, this server will never send.
fn ahead(standing: &Standing) -> Option<Error> {
    match &standing.judged {
        Ok(Resume::Refused(refusal)) if refusal.code() == Code::SinkAheadOfServer => {
            Some(refusal.clone().into_error(standing.target.id(), &standing.session))
        }
        _ => None,
    }
}

/// Every sink that keeps what it is given, under a new history.
fn all_anew(config: &Config, why: String) -> Result<Plan> {
    let wanted = sinks::wanted(config)?;
    let keep = wanted.iter().filter(|target| target.guarantee().keeps_checkpoint());
    let why_so = "it goes on from the new slot";
    let sinks = keep.map(|target| Anew::whole(target.as_ref(), why_so.to_owned())).collect();
    Ok(Plan { slot: NewSlot::NewHistory(why), sinks, ends: Vec::new() })
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

impl Anew {
    /// All that it has goes.
    fn whole(target: &dyn SinkAdmin, why: String) -> Anew {
        let keeps_sums = target.recount().is_some();
        Anew { sink: target.id(), why, goes: target.would_go(), keeps_sums, keeps_below: None }
    }

    /// A sink that cannot go on, for this reason or by its judgement.
    fn of(standing: Standing, why: Option<&str>, keeps_below: Option<Lsn>) -> Result<Anew> {
        let Standing { target, session, judged, .. } = standing;
        let why = match judged {
            Ok(Resume::From(_) | Resume::Fresh(_)) => why.unwrap_or_default().to_owned(),
            Ok(Resume::Refused(refusal)) => {
                let error = refusal.into_error(target.id(), &session);
                // it is whole
                if error.code() == Code::OtherOrdinalRule {
                    return Err(error);
                }
                error.to_string()
            }
            Err(error) if can_be_filled_anew(error.code()) => error.to_string(),
            Err(error) => return Err(error),
        };
        Ok(Anew { keeps_below, ..Anew::whole(target.as_ref(), why) })
    }

    fn told(&self) -> String {
        let Anew { sink, why, goes, keeps_sums, keeps_below } = self;
        let what = match (goes, keeps_below) {
            _ if *keeps_sums => "is filled anew (all that it counts is counted anew)".to_owned(),
            (_, Some(_)) => "keeps what it holds, and is brought what it lacks".to_owned(),
            (Some(goes), None) => format!("is filled anew ({goes})"),
            (None, None) => "is filled anew (it is emptied)".to_owned(),
        };
        format!("{sink} {what}: {why}\n")
    }

    fn asked(&self) -> Backfill {
        asked(self.sink, self.keeps_below)
    }
}

impl Plan {
    /// For sinks of this history, each with why it cannot go on, where its judgement does not say.
    async fn of(
        config: &Config,
        client: &Client,
        history_id: &HistoryId,
        slot: NewSlot,
        all: Vec<(Standing, Option<&str>)>,
    ) -> Result<Plan> {
        if let Some(error) = all.iter().find_map(|(standing, _)| ahead(standing)) {
            return all_anew(config, error.to_string());
        }
        let known = backfills::list(client, history_id).await?;
        // without, nobody knows which rows of before a sink lacks
        let tells_before = EventMarks::begin(client, history_id).await?.last_id_before.is_some();
        let mut sinks = Vec::new();
        let keeps: Vec<Option<Lsn>> =
            all.iter().map(|(standing, _)| keeps_below(standing, &all, &known)).collect();
        for ((standing, why), keeps) in all.into_iter().zip(keeps) {
            let goes_on = why.is_none() && matches!(standing.judged, Ok(Resume::From(_) | Resume::Fresh(_)));
            let comes = |one: &&Backfill| {
                one.rebuild.is_some() && one.state.is_to_come() && one.is_for(standing.target.name())
            };
            let coming = known.iter().find(comes);
            if goes_on || coming.is_some() && matches!(slot, NewSlot::No) {
                continue;
            }
            // one that was emptied, and has not got all yet, lacks what nobody knows of any more
            let keeps =
                keeps.filter(|_| tells_before && coming.is_none_or(|one| one.keeps_below().is_some()));
            sinks.push(Anew::of(standing, why, keeps)?);
        }
        // those who ask others come before these change
        sinks.sort_by_key(|anew: &Anew| anew.keeps_below.is_none_or(|below| below == ALL));
        let ends = match slot {
            NewSlot::No => Vec::new(),
            _ => known.into_iter().filter(|one| one.rebuild.is_none() && one.state.is_to_come()).collect(),
        };
        Ok(Plan { slot, sinks, ends })
    }

    fn told(&self, slot: &str) -> String {
        let mut text = match &self.slot {
            NewSlot::No => String::new(),
            NewSlot::SameHistory(why) | NewSlot::NewHistory(why) => {
                format!("a new slot {slot} is made: {why}\n")
            }
        };
        self.sinks.iter().for_each(|anew| text.push_str(&anew.told()));
        for Backfill { sinks, rows, .. } in &self.ends {
            let (sinks, rows) = (sinks.join(", "), HumanCount(*rows));
            text.push_str(&format!(
                "the backfill for {sinks} ends with {rows} rows sent: ask for the others again\n"
            ));
        }
        text
    }

    /// Makes a new slot if that is planned, and asks for all of it. The history that the sinks go on with, and the names of what
    /// `walcast run` does.
    async fn make(&self, config: &Config) -> Result<(HistoryId, Vec<Uuid>)> {
        let mut client = sql::connect(&config.postgres).await?;
        let of_rows = self.sinks.iter().filter(|anew| !anew.keeps_sums);
        let mut planned: Vec<Backfill> = of_rows.map(Anew::asked).collect();
        if !matches!(self.slot, NewSlot::No) {
            let same_history = matches!(self.slot, NewSlot::SameHistory(_));
            renew(config, &mut client, same_history, &planned).await?;
        }
        failpoint!("resync_before_ask");
        let (history_id, _) = history::find(&config.postgres, &client).await?;
        let counted = self.count_anew(config, &mut client, &history_id).await?;
        if matches!(self.slot, NewSlot::No) {
            let transaction = client.transaction().await.map_err(sql::error)?;
            for one in &planned {
                backfills::queue(&transaction, history_id.uuid, one).await?;
            }
            transaction.commit().await.map_err(sql::error)?;
        }
        planned.extend(counted);
        let places = readable(&config.postgres, &client).await?;
        for one in &mut planned {
            one.estimated_rows = estimate(&client, &places.events, one).await?;
            backfills::estimated(&client, one).await?;
            let what = if one.keeps_below().is_some() { "are looked at for" } else { "come to" };
            print(&format!(
                "about {} rows {what} {}\n",
                HumanCount(one.estimated_rows),
                one.sinks.join(", ")
            ));
        }
        Ok((history_id, planned.into_iter().map(|one| one.id).collect()))
    }

    /// Has sinks that keep sums count all events anew: at once, or, where a walcast runs, by that; what it is to do then. Under a new
    /// history all rows that there are were there before.
    async fn count_anew(
        &self,
        config: &Config,
        client: &mut Client,
        history_id: &HistoryId,
    ) -> Result<Vec<Backfill>> {
        let with_history = matches!(self.slot, NewSlot::NewHistory(_));
        let of_sums = || self.sinks.iter().filter(|anew| anew.keeps_sums);
        // whoever watches over walcast may have started it already
        let runs = slot::facts(client, &history_id.slot).await?.is_some_and(|facts| facts.active);
        if !runs {
            for anew in of_sums() {
                recount(config, anew.sink, RecountOptions { with_history, detach: true }).await?;
            }
            return Ok(Vec::new());
        }
        let last_id = match with_history {
            true => Some(EventMarks::begin(client, history_id).await?.end_of_before()?),
            false => None,
        };
        let planned: Vec<Backfill> = of_sums().map(Anew::asked).collect();
        let transaction = client.transaction().await.map_err(sql::error)?;
        for (anew, one) in of_sums().zip(&planned) {
            if let Some(last_id) = last_id {
                backfills::counted(&transaction, history_id, anew.sink.as_str(), (last_id, 0)).await?;
            }
            backfills::queue(&transaction, history_id.uuid, one).await?;
        }
        transaction.commit().await.map_err(sql::error)?;
        Ok(planned)
    }
}

/// Makes a new slot in the place of the one that there was, which begins with what is asked.
async fn renew(config: &Config, client: &mut Client, same_history: bool, asked: &[Backfill]) -> Result<()> {
    let read = slot::facts(client, &config.postgres.slot).await?.is_some_and(|facts| facts.active);
    if read {
        let message = format!("slot {} is being read", config.postgres.slot);
        return Err(Error::new(Code::SlotBusy, message).hint("stop walcast, and run it again"));
    }
    // before anything is gone
    finding::refuse(&check::check_before_making(client, &config.postgres).await?)?;
    init::migrate(client, &config.postgres).await?;
    history::renew(&config.postgres, client, same_history, asked).await?;
    failpoint!("resync_before_slot");
    init::init(config, false).await
}
