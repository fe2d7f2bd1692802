//! BigQuery: a row an event, in batches of 30 s, each put into the table by one atomic commit.
//!
//! # The story of a batch
//!
//! ```text
//! create a PENDING stream → append rows with offsets (Accepted: nobody sees them yet)
//!   … 30 s, or batch_rows_max, or an urgent flush …
//! finalize → intent in walcast.progress {stream, mark} → commit → mark in walcast.progress, intent gone
//! ```
//!
//! The intent is written under the token: an older instance never gets to its commit. A crash before the intent
//! leaves an orphan stream that nobody ever sees. A crash after it is settled by `recover`: the *same* stream is
//! committed again, which BigQuery does at most once. Only when that stream is gone is the table itself asked
//! whether it has the intent's last event: a commit is all or nothing, so one event tells.

mod rest;
mod row;
mod table;
mod write;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use gcp_bigquery_client::Client;
use gcp_bigquery_client::model::query_request::QueryRequest;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_postgres::types::PgLsn;

use self::rest::Credentials;
use self::write::{Appended, Appender, Committed, WriteClient};
use crate::batch::Batch;
use crate::error::{Error, Kind, Result};
use crate::lsn::{Mark, Position, Session, StoredMark};
use crate::sink::retry::Backoff;
use crate::sink::{Finding, Pace, Sink, Written};
use crate::source::{PostgresConfig, sql};
use crate::state::{State, store_progress};
use crate::telemetry::metrics;

/// Batches that come within this time make one append.
const LINGER: Duration = Duration::from_millis(50);
const TICK_EVERY: Duration = Duration::from_secs(1);
const APPEND_TRIES: u32 = 4;

/// The name in configuration, metrics and state.
pub const NAME: &str = "bigquery";

/// `[bigquery]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BigQueryConfig {
    /// Google Cloud project.
    pub project_id: String,
    /// Dataset; made when it is missing.
    pub dataset: String,
    /// Table; made when it is missing.
    pub table: String,
    /// half_hour: 9,600 half hours in a ring, by bucket_30m; hour: by event_ts.
    pub partitioning: Partitioning,
    /// A service account's key file; without it the surroundings' credentials.
    pub credentials_file: Option<String>,
    /// Where the REST API is; Google's when it is not set. An http:// URL is an emulator, without credentials.
    pub rest_url: Option<String>,
    /// Where the Storage Write API is; Google's when it is not set.
    pub grpc_url: Option<String>,
    /// How long, in seconds, rows are collected for one commit.
    pub commit_seconds: u64,
    /// Rows in one commit at most.
    pub batch_rows_max: u64,
    /// Bytes of rows in one commit at most.
    pub batch_bytes_max: u64,
    /// Bytes of rows in one append request at most; BigQuery takes 10 MB.
    pub append_bytes_max: usize,
}

/// How the table is partitioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partitioning {
    /// By half hour, on a ring of 200 days.
    HalfHour,
    /// By hour.
    Hour,
}

impl fmt::Display for Partitioning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Partitioning::HalfHour => "half_hour",
            Partitioning::Hour => "hour",
        })
    }
}

impl Default for BigQueryConfig {
    fn default() -> Self {
        BigQueryConfig {
            project_id: String::new(),
            dataset: "analytics".into(),
            table: "engagement_events".into(),
            partitioning: Partitioning::HalfHour,
            credentials_file: None,
            rest_url: None,
            grpc_url: None,
            commit_seconds: 30,
            batch_rows_max: 50_000,
            batch_bytes_max: 256 << 20,
            append_bytes_max: 8 << 20,
        }
    }
}

impl BigQueryConfig {
    fn is_emulator(&self) -> bool {
        self.rest_url.as_deref().is_some_and(|url| url.starts_with("http://"))
    }

    fn table_name(&self) -> String {
        format!("{}.{}.{}", self.project_id, self.dataset, self.table)
    }
}

/// Writes to BigQuery.
pub struct BigQuerySink {
    config: BigQueryConfig,
    state: State,
    open: Option<Open>,
}

/// What a successful `recover` leaves.
struct Open {
    session: Session,
    rest: Client,
    write: WriteClient,
    /// Durable.
    held: Mark,
    /// Held, and what the stream has.
    accepted: Mark,
    filling: Option<Filling>,
}

/// A stream being filled.
struct Filling {
    stream: String,
    appender: Appender,
    rows: i64,
    bytes: u64,
    since: Instant,
    last: Option<(Position, i64)>,
}

/// What is about to be committed.
#[derive(Debug, Serialize, Deserialize)]
struct Intent {
    stream: String,
    mark: StoredMark,
    /// The stream's last event, and its bucket: asked for when the stream is gone.
    last: Position,
    last_bucket: i64,
}

impl BigQuerySink {
    /// A sink that connects when it is used first. Marks and intents are kept in `postgres`.
    pub fn new(config: BigQueryConfig, postgres: &PostgresConfig) -> Self {
        BigQuerySink { config, state: State::new(postgres.clone()), open: None }
    }

    async fn rest(&self) -> Result<(Client, Credentials)> {
        if self.config.project_id.is_empty() {
            return Err(
                Error::new(Kind::Config, "bigquery.project_id is not set").hint("set BIGQUERY_PROJECT_ID")
            );
        }
        let credentials = Credentials::find(&self.config).await?;
        Ok((rest::client(&self.config, &credentials).await?, credentials))
    }

    async fn inspect(&self) -> Result<Finding> {
        let (client, _) = self.rest().await?;
        let subject = format!("bigquery table {}", self.config.table_name());
        Ok(match table::find(&client, &self.config).await? {
            None => Finding::warn(subject, "does not exist yet", "run `walcast init`"),
            Some(found) => match table::check_shape(&found, &self.config) {
                Ok(()) => {
                    Finding::ok(subject, "has the columns, partitions and clustering that walcast needs")
                }
                Err(error) => Finding::failed(subject, &error),
            },
        })
    }

    /// Settles what an earlier life was about to commit; the mark that holds now.
    async fn settle(&mut self, open: &mut Open, intent: Intent) -> Result<StoredMark> {
        let committed = match open.write.commit(&intent.stream).await? {
            Committed::Yes => true,
            Committed::StreamGone => has_event(&open.rest, &self.config, &open.session, &intent).await?,
        };
        if !committed {
            return Err(Error::new(
                Kind::Lost,
                "BigQuery no longer has the stream that was about to be committed",
            ));
        }
        Ok(intent.mark)
    }

    async fn store(&mut self, session: &Session, mark: &StoredMark, intent: Option<&Intent>) -> Result<()> {
        let transaction = self.state.guarded(session).await?;
        store_progress(&transaction, session, NAME, Some(mark), intent).await?;
        transaction.commit().await.map_err(sql::error)
    }

    /// Appends the events to the open stream, in requests that BigQuery takes.
    async fn append(&mut self, open: &mut Open, batch: &Batch) -> Result<()> {
        let common = row::Common { epoch: &open.session.epoch.epoch.to_string(), ingested_at: now_micros() };
        let mut request = Request::default();
        for event in batch.events() {
            let row = row::encode(batch, event, &common);
            if request.bytes + row.len() > self.config.append_bytes_max {
                self.send(open, std::mem::take(&mut request)).await?;
            }
            request.bytes += row.len();
            let bucket = table::bucket_30m(event.event_ts);
            request.names.push(Name { position: event.position, event_id: event.id, bucket });
            request.rows.push(row);
        }
        self.send(open, request).await
    }

    async fn send(&mut self, open: &mut Open, mut request: Request) -> Result<()> {
        while !request.rows.is_empty() {
            let filling = match &mut open.filling {
                Some(filling) => filling,
                None => open.filling.insert(Filling::begin(&mut open.write).await?),
            };
            match filling.append(&mut open.write, &request.rows).await? {
                Appended::Stored => {
                    filling.rows += request.rows.len() as i64;
                    filling.bytes += request.bytes as u64;
                    filling.last = request.names.last().map(|name| (name.position, name.bucket));
                    break;
                }
                Appended::Refused(refused) => self.set_aside(&open.session, &mut request, refused).await?,
            }
        }
        Ok(())
    }

    /// Keeps the rows that BigQuery refuses as dead letters, before the commit of those around them, and takes
    /// them out of the request.
    async fn set_aside(
        &mut self,
        session: &Session,
        request: &mut Request,
        refused: Vec<(usize, String)>,
    ) -> Result<()> {
        let transaction = self.state.guarded(session).await?;
        for (index, message) in &refused {
            let Some(name) = request.names.get(*index) else {
                return Err(Error::new(Kind::Protocol, "BigQuery refuses a row that was not in the request"));
            };
            tracing::warn!(position = %name.position, "BigQuery refuses a row; it is kept in walcast.dead_letter");
            let commit_lsn = PgLsn::from(name.position.commit_lsn.0);
            transaction
                .execute(
                    "INSERT INTO walcast.dead_letter (sink, epoch, commit_lsn, ordinal, event_id, reason, message)
                     VALUES ($1, $2, $3, $4, $5, 'refused', $6) ON CONFLICT DO NOTHING",
                    &[&NAME, &session.epoch.epoch, &commit_lsn, &(name.position.ordinal as i64), &name.event_id, &message],
                )
                .await
                .map_err(sql::error)?;
        }
        transaction.commit().await.map_err(sql::error)?;
        metrics::dead_letters("refused_by_bigquery", refused.len() as u64);
        let kept = |index: usize| refused.iter().all(|(refused, _)| *refused != index);
        retain(&mut request.rows, kept);
        retain(&mut request.names, kept);
        Ok(())
    }

    /// Puts the open stream's rows into the table, or just moves the mark when there is no stream.
    async fn commit(&mut self, open: &mut Open) -> Result<Option<Mark>> {
        if open.accepted == open.held {
            return Ok(None);
        }
        let mark = StoredMark::new(&open.session.epoch, open.accepted);
        if let Some(Filling { stream, rows, last: Some((last, last_bucket)), .. }) = open.filling.take() {
            let found = open.write.finalize(&stream).await?;
            if found != rows {
                return Err(Error::new(
                    Kind::Lost,
                    format!("BigQuery's stream has {found} rows, {rows} were appended"),
                ));
            }
            let held = StoredMark::new(&open.session.epoch, open.held);
            let intent = Intent { stream, mark: mark.clone(), last, last_bucket };
            self.store(&open.session, &held, Some(&intent)).await?;
            self.settle(open, intent).await?;
        }
        self.store(&open.session, &mark, None).await?;
        open.held = open.accepted;
        Ok(Some(open.held))
    }

    /// Runs a step with what is open, and keeps that only when the step goes well: after an error the driver
    /// recovers, which begins with what BigQuery and PostgreSQL really have.
    fn take_open(&mut self) -> Result<Open> {
        self.open.take().ok_or_else(|| Error::new(Kind::Unavailable, "BigQuery is to be recovered first"))
    }
}

/// Rows on their way, each with the name of its event.
#[derive(Default)]
struct Request {
    rows: Vec<Vec<u8>>,
    names: Vec<Name>,
    bytes: usize,
}

struct Name {
    position: Position,
    event_id: i64,
    bucket: i64,
}

impl Filling {
    async fn begin(write: &mut WriteClient) -> Result<Filling> {
        let stream = write.create_stream().await?;
        let appender = write.open(&stream).await?;
        Ok(Filling { stream, appender, rows: 0, bytes: 0, since: Instant::now(), last: None })
    }

    /// Appends, over a new connection when the old one breaks: the offset keeps rows from being doubled.
    async fn append(&mut self, write: &mut WriteClient, rows: &[Vec<u8>]) -> Result<Appended> {
        let mut backoff = Backoff::default();
        loop {
            match self.appender.append(rows.to_vec(), self.rows).await {
                Err(error) if error.kind() == Kind::Unavailable && backoff.attempts() < APPEND_TRIES => {
                    tokio::time::sleep(backoff.next_wait()).await;
                    self.appender = write.open(&self.stream).await?;
                }
                ended => return ended,
            }
        }
    }

    fn is_full(&self, config: &BigQueryConfig) -> bool {
        self.rows >= config.batch_rows_max as i64
            || self.bytes >= config.batch_bytes_max
            || self.since.elapsed() >= Duration::from_secs(config.commit_seconds)
    }
}

#[async_trait]
impl Sink for BigQuerySink {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pace(&self) -> Pace {
        Pace { linger: LINGER, write_bytes_max: 4 << 20, tick_every: Some(TICK_EVERY) }
    }

    async fn check(&mut self) -> Vec<Finding> {
        vec![self.inspect().await.unwrap_or_else(|error| Finding::failed("bigquery", &error))]
    }

    async fn prepare(&mut self) -> Result<()> {
        let (client, _) = self.rest().await?;
        table::prepare(&client, &self.config).await
    }

    async fn recover(&mut self, session: &Session) -> Result<Option<StoredMark>> {
        self.open = None;
        let (rest, credentials) = self.rest().await?;
        let write = WriteClient::new(&self.config, credentials)?;
        let (mut stored, intent) = self.state.progress::<Intent>(session, NAME).await?;
        let start = Mark::at(session.start);
        let mut open =
            Open { session: session.clone(), rest, write, held: start, accepted: start, filling: None };
        if let Some(intent) = intent {
            let mark = match self.settle(&mut open, intent).await {
                Ok(mark) => Some(mark),
                // Nothing of it is in the table: the slot still has the rows.
                Err(error) if error.kind() == Kind::Lost => stored,
                Err(error) => return Err(error),
            };
            if let Some(mark) = &mark {
                self.store(session, mark, None).await?;
            }
            stored = mark;
        }
        let ours = stored.as_ref().filter(|stored| stored.epoch == session.epoch);
        open.held = ours.map_or(start, |stored| stored.mark);
        open.accepted = open.held;
        self.open = Some(open);
        Ok(stored)
    }

    async fn write(&mut self, batches: &[Arc<Batch>]) -> Result<Written> {
        let mut open = self.take_open()?;
        for batch in batches {
            self.append(&mut open, batch).await?;
            open.accepted = open.accepted.advanced(batch.mark());
        }
        let full = open.filling.as_ref().is_some_and(|filling| filling.is_full(&self.config));
        let durable = if full { self.commit(&mut open).await? } else { None };
        self.open = Some(open);
        Ok(durable.map_or(Written::Accepted, Written::Durable))
    }

    /// Ends a stream whose time has come; without one, moves the mark.
    async fn tick(&mut self) -> Result<Option<Mark>> {
        let mut open = self.take_open()?;
        let due = open.filling.as_ref().is_none_or(|filling| filling.is_full(&self.config));
        let durable = if due { self.commit(&mut open).await? } else { None };
        self.open = Some(open);
        Ok(durable)
    }

    async fn flush(&mut self) -> Result<Option<Mark>> {
        let mut open = self.take_open()?;
        let durable = self.commit(&mut open).await?;
        self.open = Some(open);
        Ok(durable)
    }

    async fn close(&mut self) {
        self.open = None;
    }
}

/// Whether the intent's last event is in the table, and with it all of its stream.
async fn has_event(
    rest: &Client,
    config: &BigQueryConfig,
    session: &Session,
    intent: &Intent,
) -> Result<bool> {
    let Position { commit_lsn, ordinal } = intent.last;
    let query = format!(
        "SELECT 1 FROM `{}` WHERE bucket_30m = {} AND epoch = '{}' AND commit_lsn = {} AND ordinal = {ordinal} LIMIT 1",
        config.table_name(),
        intent.last_bucket,
        session.epoch.epoch,
        commit_lsn.0.cast_signed(),
    );
    let request = QueryRequest { use_query_cache: Some(false), ..QueryRequest::new(query) };
    let answer = rest.job().query(&config.project_id, request).await.map_err(rest::error)?;
    Ok(answer.rows.is_some_and(|rows| !rows.is_empty()))
}

fn retain<T>(items: &mut Vec<T>, kept: impl Fn(usize) -> bool) {
    let mut indexes = 0..;
    items.retain(|_| indexes.next().is_some_and(&kept));
}

fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
