//! BigQuery: one row an event, visible in batches of 30 seconds, exactly once.
//!
//! # The story of a batch
//!
//! Rows go into a *pending* write stream as they come ([`append`]): the service has them, nobody sees them.
//! After `commit_seconds`, `batch_rows_max` or `batch_bytes_max` the stream ends ([`Live::settle`]):
//!
//! 1. it is finalized, and must have exactly the rows that it was given;
//! 2. the *intent* to commit it goes to PostgreSQL, with rows that BigQuery refused, guarded by the fencing token:
//!    from here on an older instance can commit nothing that is not ours to commit too;
//! 3. it is committed: all its rows appear at once;
//! 4. the checkpoint takes the intent's place.
//!
//! A crash before 2 leaves a stream that nobody commits and that expires; the rows come again from the slot.
//! A crash after 2 is settled by [`Live::recover`]: the *same* stream is committed again, which the service
//! answers with "done already" when it was. Only when the stream is gone does the table itself say whether its
//! rows are there: they are all there or none. No stream is made before the one before it is settled.
//!
//! Rows carry history id and position. The first batches after a start are looked up by them (`look_up` in [`live`]):
//! should PostgreSQL's state be older than the table, what is there is not written again.

mod append;
mod auth;
mod check;
pub mod column;
mod config;
pub mod encode;
pub mod extra;
mod live;
mod progress;
mod read_back;
mod refusal;
mod rest;
mod table;
mod write;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::IgnoredAny;

use auth::Credentials;
pub use config::{BigQueryConfig, Partitioning};
use live::{Live, refuse_lost_future};
use rest::Rest;
use write::WriteClient;

use crate::batch::Batch;
use crate::error::{Code, Error, Result};
use crate::event::extra::Wanted;
use crate::failpoint::failpoint;
use crate::lsn::{Checkpoint, Session, StoredCheckpoint};
use crate::resume::SinkName;
use crate::sink::erasure::{Subject, Traces};
use crate::sink::read_back::ReadBack;
use crate::sink::{BatchPolicy, Finding, Guarantee, Sink, SinkAdmin, SinkIdentity, Written};
use crate::source::PostgresConfig;
use crate::state::State;
use crate::telemetry::delivery::LATENCY_OBJECTIVE;

/// The name in configuration, metrics and state.
pub const NAME: SinkName = SinkName::new("bigquery").rebuilt_by("walcast rebuild bigquery");
const GUARANTEE: Guarantee = Guarantee::ExactlyOnce("one row an event, visible in whole batches");
const TICK_EVERY: Duration = Duration::from_millis(500);

/// Writes events to a BigQuery table.
pub struct BigQuerySink {
    config: BigQueryConfig,
    state: State,
    /// The extra columns that are asked for.
    wanted: Wanted,
    live: Option<Live>,
}

impl BigQuerySink {
    /// A sink that connects at first use; checkpoints and intents are kept in `postgres`.
    pub fn new(config: BigQueryConfig, postgres: &PostgresConfig) -> Self {
        BigQuerySink {
            config,
            state: State::new(postgres.clone()),
            wanted: Wanted::new(&postgres.extra_columns),
            live: None,
        }
    }
}

impl SinkIdentity for BigQuerySink {
    fn id(&self) -> SinkName {
        NAME
    }

    fn guarantee(&self) -> Guarantee {
        GUARANTEE
    }
}

#[async_trait]
impl Sink for BigQuerySink {
    fn batch_policy(&self) -> BatchPolicy {
        BatchPolicy {
            linger: Duration::from_millis(250),
            write_bytes_max: 4 << 20,
            tick_every: Some(TICK_EVERY.min(self.config.commit_every())),
        }
    }

    /// The batch's time, and half of it again to commit; never less than others have.
    fn latency_objective(&self) -> Duration {
        let batch = self.config.commit_every();
        batch + (batch / 2).max(LATENCY_OBJECTIVE)
    }

    async fn recover(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        self.live = None;
        let target = Target::new(&self.config).await?;
        if let Some(table) = target.rest.table().await? {
            table::verify(&self.config, &table)?;
        }
        let (live, checkpoint) = Live::recover(&self.config, target, &mut self.state, session).await?;
        self.live = Some(live);
        Ok(checkpoint)
    }

    async fn begin(&mut self, session: &Session, keeps_rows: bool) -> Result<()> {
        self.live = None;
        let target = Target::new(&self.config).await?;
        if keeps_rows {
            // what the server has lost is not to be kept, and without the checkpoint nobody could tell
            let (stored, _) = self.state.progress::<IgnoredAny>(session, NAME).await?;
            refuse_lost_future(&target.rest, stored.as_ref(), session).await?;
        }
        // first: a stream that is still to be committed would bring rows back
        progress::store(&mut self.state, session, None, None, &[]).await?;
        failpoint!("bigquery_before_empty");
        match target.rest.table().await? {
            Some(table) => {
                table::verify(&self.config, &table)?;
                if !keeps_rows {
                    target.rest.empty().await?;
                }
            }
            None => target.rest.create().await?,
        }
        target.rest.create_function().await;
        failpoint!("bigquery_after_empty");
        self.recover(session).await.map(drop)
    }

    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
        // Taken out, and put back only after success: any error leaves nothing to go on with.
        let mut live = self.live.take().ok_or_else(not_recovered)?;
        live.write(&mut self.state, batches).await?;
        // with a stream open, an earlier one's checkpoint waits for the next tick
        let moved = if live.is_settled() { live.report() } else { None };
        self.live = Some(live);
        Ok(moved.map_or(Written::Accepted, Written::Durable))
    }

    async fn tick(&mut self) -> Result<Option<Checkpoint>> {
        let Some(mut live) = self.live.take() else { return Ok(None) };
        if live.is_due() {
            live.settle(&mut self.state).await?;
        }
        let moved = live.report();
        self.live = Some(live);
        Ok(moved)
    }

    async fn flush(&mut self) -> Result<Option<Checkpoint>> {
        let Some(mut live) = self.live.take() else { return Ok(None) };
        live.settle(&mut self.state).await?;
        let moved = live.report();
        self.live = Some(live);
        Ok(moved)
    }

    async fn close(&mut self) {
        self.live = None;
    }
}

#[async_trait]
impl SinkAdmin for BigQuerySink {
    async fn check(&mut self) -> Vec<Finding> {
        check::inspect(&self.config)
            .await
            .unwrap_or_else(|error| vec![Finding::failed("bigquery.service", self.config.address(), &error)])
    }

    async fn prepare(&mut self) -> Result<()> {
        let Target { rest, .. } = Target::new(&self.config).await?;
        let table = match rest.table().await? {
            Some(table) => Some(table),
            None => {
                // a table of its name would take the way back from one that was deleted
                if progress::has_held_events(&mut self.state).await? {
                    let told = format!("bigquery {}", live::another_table(&self.config, None));
                    return Err(Error::new(Code::SinkLostItsData, told).hint(live::way_back(&self.config)));
                }
                rest.create().await?;
                rest.table().await?
            }
        };
        let missing =
            || Error::new(Code::BigQueryUnreachable, format!("{} is not there yet", self.config.address()));
        table::verify(&self.config, &table.ok_or_else(missing)?)?;
        rest.create_function().await;
        Ok(())
    }

    fn would_go(&self) -> Option<String> {
        Some(format!("all rows of {} are deleted, those of before this slot too", self.config.address()))
    }

    fn read_back(&self) -> ReadBack {
        ReadBack::Events(Box::new(read_back::ReadTable(self.config.clone(), self.wanted.clone())))
    }

    async fn peek(&mut self, session: &Session) -> Result<Option<StoredCheckpoint>> {
        let (checkpoint, intent) = self.state.progress::<progress::Intent>(session, NAME).await?;
        // what was about to be committed is settled by the next start, and committed again if it is not there
        let stored = intent.map(|intent| intent.checkpoint).or(checkpoint);
        let Target { rest, .. } = Target::new(&self.config).await?;
        let table = rest.table().await?;
        live::refuse_another_table(&rest, table.as_ref(), stored.as_ref(), session).await?;
        Ok(stored)
    }

    async fn traces(&mut self, subject: &Subject) -> Result<Traces> {
        let Target { rest, .. } = Target::new(&self.config).await?;
        let traces = Traces::of(rest.count_of(subject).await?);
        Ok(traces.but("BigQuery's time travel and fail-safe keep deleted rows for up to 14 days"))
    }

    async fn erase(&mut self, subject: &Subject) -> Result<()> {
        let Target { rest, .. } = Target::new(&self.config).await?;
        rest.delete(subject).await
    }
}

/// The services for the table.
struct Target {
    rest: Rest,
    client: WriteClient,
}

impl Target {
    async fn new(config: &BigQueryConfig) -> Result<Self> {
        config.validate()?;
        let plain = |url: &str| url.starts_with("http://");
        let google = match plain(&config.rest_url) && plain(&config.grpc_url) {
            true => Credentials::None,
            false => Credentials::load(&config.credentials_file).await?,
        };
        // a fencing token never travels in clear
        let for_url = |url| if plain(url) { Credentials::None } else { google.clone() };
        Ok(Target {
            rest: Rest::new(config, for_url(&config.rest_url)).await?,
            client: WriteClient::new(config, for_url(&config.grpc_url))?,
        })
    }
}

fn not_recovered() -> Error {
    Error::new(Code::Unavailable, "bigquery is to be recovered first")
}
