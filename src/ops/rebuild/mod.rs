//! `walcast rebuild`: fills a sink anew with what PostgreSQL has, while the others go on. `walcast run` does the work
//! ([`crate::backfill`]); where none runs, a sink that keeps sums is filled at once.

mod alone;

use std::process::ExitCode;

use indicatif::HumanCount;
use uuid::Uuid;

use crate::backfill::recount;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::event::time::micros_of;
use crate::lsn::{Checkpoint, HistoryId, Lsn, Session, Timelines};
use crate::ops::backfill::{bounds, estimate, follow, time};
use crate::ops::check::{Standing, standing};
use crate::ops::terminal::print;
use crate::resume::{Refusal, Resume, SinkName};
use crate::sink::SinkAdmin;
use crate::sink::read_back::ReadBack;
use crate::sinks;
use crate::source::{slot, sql};
use crate::state::backfills::{self, Backfill, BackfillState, Rebuild, RebuildStep};
use crate::state::history;
use crate::state::marks::EventMarks;

/// `rebuild` of a sink that keeps sums.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct RecountOptions {
    /// Count the rows too that were there before walcast. Later rebuilds of this sink do so by themselves.
    #[arg(long)]
    pub with_history: bool,
    /// Do not wait for its end.
    #[arg(long)]
    pub detach: bool,
}

/// `rebuild` of a sink that takes rows.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Bring rows with an event_ts from this time on alone.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<String>,
    /// Keep what the sink holds, and bring what it lacks alone.
    #[arg(long)]
    missing: bool,
    /// As many rows a second at most. Default: as many as the sink takes beside the stream.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rows_per_second: Option<u32>,
    /// Do it. Without this the command says what would go; with --missing nothing does.
    #[arg(long)]
    yes: bool,
    /// Do not wait for its end.
    #[arg(long)]
    detach: bool,
}

/// Has `sink` emptied and filled anew, or brought what it lacks.
pub async fn rebuild(config: &Config, sink: SinkName, options: Options) -> Result<ExitCode> {
    let Options { since, missing, rows_per_second, yes, detach } = options;
    let Some(target) = sinks::wanted(config)?.into_iter().find(|target| target.id() == sink) else {
        let message = format!("{sink} is not among pipeline.sinks");
        return Err(Error::new(Code::BackfillUnfit, message).hint("set PIPELINE_SINKS"));
    };
    let goes = target.would_go();
    let client = sql::connect(&config.postgres).await?;
    let (history_id, timelines) = history::find(&config.postgres, &client).await?;
    if missing {
        // else nobody knows which rows of before it lacks
        EventMarks::begin(&client, &history_id).await?.end_of_before()?;
    }
    let keeps = match missing {
        true => Some(kept(config, target, any_place(history_id.clone(), timelines)).await?),
        false => None,
    };
    let planned = Backfill {
        between: (since.as_deref().and_then(micros_of), None),
        since,
        rows_per_second,
        ..asked(sink, keeps)
    };
    let events = history::publication(&config.postgres, &client).await?.places.events;
    let planned = Backfill { estimated_rows: estimate(&client, &events, &planned).await?, ..planned };
    if !yes && !missing {
        let goes = goes.unwrap_or_default();
        let (rows, bounds) = (HumanCount(planned.estimated_rows), bounds(&planned));
        let message = format!("{goes}; then about {rows} rows that PostgreSQL has come{bounds}");
        return Err(
            Error::new(Code::RebuildUnconfirmed, message).hint(format!("walcast rebuild {sink} --yes"))
        );
    }
    backfills::begin(&client, &history_id, &planned).await?;
    if detach {
        print("`walcast run` does it; `walcast backfill status` shows how far it is\n");
        return Ok(ExitCode::SUCCESS);
    }
    follow(&client, &history_id, planned.id).await
}

/// All that a target has and can be told of: an error where it cannot be kept.
async fn kept(config: &Config, target: Box<dyn SinkAdmin>, session: Session) -> Result<Lsn> {
    if !gives_events(target.as_ref()) {
        let message = format!("{} does not tell what it holds", target.name());
        return Err(Error::new(Code::BackfillUnfit, message)
            .hint("`walcast resync` mends it where another sink tells; --yes sends all, without --missing"));
    }
    let Standing { target, session, judged, .. } = standing(config, target, session).await;
    match (held(&judged), judged) {
        (Some(_), _) => Ok(ALL),
        (None, Ok(Resume::Refused(refusal))) => Err(refusal.into_error(target.id(), &session)),
        (None, judged) => judged.map(|_| ALL),
    }
}

/// Below this place lies all that a target has.
pub(super) const ALL: Lsn = Lsn(u64::MAX);

/// Whether a target can be asked which events it has.
pub(super) fn gives_events(target: &dyn SinkAdmin) -> bool {
    matches!(target.read_back(), ReadBack::Events(_))
}

/// How far a target reaches whose rows are all of this history; `None` where that is not known.
pub(super) fn held(judged: &Result<Resume>) -> Option<Checkpoint> {
    match judged {
        Ok(Resume::From(stored) | Resume::Refused(Refusal::BelowSlot(stored))) => Some(*stored),
        // what is left of it is
        Ok(Resume::Fresh(_) | Resume::Refused(Refusal::LostItsData | Refusal::LostWhatItHeld { .. })) => {
            Some(Checkpoint::default())
        }
        Ok(Resume::Refused(_)) => None,
        Err(error) => (error.code() == Code::SinkLostItsData).then(Checkpoint::default),
    }
}

/// As a sink is judged for whom no place of the stream is too late.
pub(super) fn any_place(history_id: HistoryId, timelines: Timelines) -> Session {
    Session { history_id, timelines, fencing_token: 0, settled_timeline: 0, start: Lsn::ZERO }
}

/// What is asked for, for all rows; or for those that the sink lacks, which keeps what it holds below a place.
pub(super) fn asked(sink: SinkName, keeps_below: Option<Lsn>) -> Backfill {
    Backfill {
        id: Uuid::new_v4(),
        sinks: vec![sink.to_string()],
        since: None,
        until: None,
        between: (None, None),
        rows_per_second: None,
        // what it is, is known once the sink has stopped
        last_id: i64::MAX,
        done_id: None,
        rows: 0,
        estimated_rows: 0,
        state: BackfillState::Running,
        rebuild: Some(Rebuild { step: RebuildStep::Asked, begins: None, begins_xid: 0, keeps_below }),
    }
}

/// Has a sink that keeps sums count all events anew: by the walcast that runs, or by itself where none does.
pub async fn recount(config: &Config, sink: SinkName, options: RecountOptions) -> Result<ExitCode> {
    let RecountOptions { with_history, detach } = options;
    let Some(mut target) = sinks::recount(config, sink)? else {
        let message = format!("{sink} keeps no sums");
        return Err(Error::new(Code::BackfillUnfit, message).hint(format!("walcast rebuild {sink} --yes")));
    };
    let mut client = sql::connect(&config.postgres).await?;
    let (history_id, _) = history::find(&config.postgres, &client).await?;
    let runs = slot::facts(&client, &history_id.slot).await?.is_some_and(|facts| facts.active);
    if !runs {
        alone::recount(config, sink, target.as_mut(), with_history).await?;
        return Ok(ExitCode::SUCCESS);
    }
    // what would keep it from ending is told at once
    let places = recount::readable(&config.postgres, &client).await?;
    target.check(&history_id.slot).await?;
    let planned = asked(sink, None);
    let planned = Backfill { estimated_rows: estimate(&client, &places.events, &planned).await?, ..planned };
    let counts = backfills::counts_before(&client, &history_id, &planned.sinks).await?.is_some();
    let last_id = EventMarks::begin(&client, &history_id).await?.end_of_before();
    let transaction = client.transaction().await.map_err(sql::error)?;
    if with_history && !counts {
        backfills::counted(&transaction, &history_id, sink.as_str(), (last_id?, 0)).await?;
    }
    backfills::begin(&transaction, &history_id, &planned).await?;
    transaction.commit().await.map_err(sql::error)?;
    if detach {
        print("`walcast run` does it; `walcast backfill status` shows how far it is\n");
        return Ok(ExitCode::SUCCESS);
    }
    follow(&client, &history_id, planned.id).await
}

/// Has each of these sinks that keeps sums count the rows of before walcast, unless it does and is whole.
pub(super) async fn count_history(config: &Config, history_id: &HistoryId) -> Result<()> {
    for target in sinks::wanted(config)? {
        let sink = target.id();
        if target.recount().is_none() || counts_history(config, target, history_id).await? {
            continue;
        }
        recount(config, sink, RecountOptions { with_history: true, detach: false }).await?;
    }
    Ok(())
}

/// Whether it counts the rows of before walcast, and is whole.
async fn counts_history(config: &Config, target: Box<dyn SinkAdmin>, history_id: &HistoryId) -> Result<bool> {
    let client = sql::connect(&config.postgres).await?;
    let sinks = [target.name().to_owned()];
    if backfills::counts_before(&client, history_id, &sinks).await?.is_none() {
        return Ok(false);
    }
    let ReadBack::Sums(mut sums) = target.read_back() else { return Ok(true) };
    match sums.read(history_id).await {
        // a rebuild was broken off, or all is lost since
        Err(error) if [Code::RebuildUnfinished, Code::SinkLostItsData].contains(&error.code()) => Ok(false),
        read => read.map(|_| true),
    }
}
