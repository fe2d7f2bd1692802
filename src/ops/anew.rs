//! `walcast rebuild kafka`, `bigquery` and `http`: fills a sink anew with the rows that PostgreSQL has, while the others go on.
//! `walcast run` does the work ([`crate::backfill`]).

use std::process::ExitCode;

use indicatif::HumanCount;
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::event::time::micros_of;
use crate::ops::backfill::{bounds, estimate, follow, time};
use crate::ops::terminal::print;
use crate::resume::SinkName;
use crate::sinks;
use crate::source::sql;
use crate::state::backfills::{self, Backfill, BackfillState, Rebuild, RebuildStep};
use crate::state::history;

/// `rebuild` of a sink that takes rows.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Bring rows with an event_ts from this time on alone.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<String>,
    /// As many rows a second at most. Default: as many as the sink takes beside the stream.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rows_per_second: Option<u32>,
    /// Do it. Without this the command says what would go.
    #[arg(long)]
    yes: bool,
    /// Do not wait for its end.
    #[arg(long)]
    detach: bool,
}

/// Has `sink` emptied and filled anew.
pub async fn rebuild(config: &Config, sink: SinkName, options: Options) -> Result<ExitCode> {
    let Options { since, rows_per_second, yes, detach } = options;
    let goes =
        sinks::wanted(config)?.iter().find(|target| target.id() == sink).map(|target| target.would_go());
    let Some(goes) = goes else {
        let message = format!("{sink} is not among pipeline.sinks");
        return Err(Error::new(Code::BackfillUnfit, message).hint("set PIPELINE_SINKS"));
    };
    let client = sql::connect(&config.postgres).await?;
    let (history_id, _) = history::find(&config.postgres, &client).await?;
    let mut planned = Backfill {
        id: Uuid::new_v4(),
        sinks: vec![sink.to_string()],
        between: (since.as_deref().and_then(micros_of), None),
        since,
        until: None,
        rows_per_second,
        // what it is, is known once the sink has stopped
        last_id: i64::MAX,
        done_id: None,
        rows: 0,
        estimated_rows: 0,
        state: BackfillState::Running,
        rebuild: Some(Rebuild { step: RebuildStep::Asked, begins: None, begins_xid: 0 }),
    };
    let events = history::publication(&config.postgres, &client).await?.places.events;
    planned.estimated_rows = estimate(&client, &events, &planned).await?;
    if !yes {
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
