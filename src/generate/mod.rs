//! `walcast generate`: realistic load at a steady rate, or a burst.
//!
//! One [`Workload`] draws transactions in a fixed order; a few connections write them side by side. New
//! content is a barrier: events of later transactions may refer to it, on any connection, so it is
//! committed before they begin.

mod text;
mod workload;

use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressFinish};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use crate::error::{Code, Error, Result};
use crate::source::{PostgresConfig, sql};
use workload::{Events, Known, NewContent, Transaction, Workload};

/// A transaction has at most this many events,
const TRANSACTION_ROWS_MAX: u64 = 1_000;
/// and at most what the rate makes in this time; whoever was held up may catch up with no more than that.
const BURST_MAX: Duration = Duration::from_millis(100);
const CONTENT_ROWS_PER_INSERT: usize = 1_000;
const CONNECTIONS_MAX: u32 = 64;

/// `[generate]`: what load to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// Events a minute.
    pub rate_per_minute: u64,
    /// Whether to write `burst_count` events as fast as the server takes them, then end.
    pub burst_mode: bool,
    /// Events in a burst.
    pub burst_count: u64,
    /// Content rows to write first. Rows that exist already are used and counted.
    pub contents: u32,
    /// Number of different users.
    pub users: u32,
    /// Seed of the random numbers. The same seed gives the same rows in a database without content. Unset: a random
    /// seed.
    pub seed: Option<u64>,
    /// PostgreSQL connections to write with.
    pub connections: u32,
    /// End after this many events. Unset: no limit.
    pub count_max: Option<u64>,
    /// End after this many seconds. Unset: no limit.
    pub seconds_max: Option<u64>,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        GenerateConfig {
            rate_per_minute: 200_000,
            burst_mode: false,
            burst_count: 100_000,
            contents: 10_000,
            users: 50_000,
            seed: None,
            connections: 2,
            count_max: None,
            seconds_max: None,
        }
    }
}

/// What was committed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Rows in `engagement_events`.
    pub events: u64,
    /// From the first transaction to the last.
    pub elapsed: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        let rate = if seconds > 0.0 { self.events as f64 / seconds } else { 0.0 };
        write!(f, "{} events in {seconds:.1} s, {rate:.0} events/s", self.events)
    }
}

/// Writes load until a limit is reached or `shutdown` resolves; transactions under way are then completed.
///
/// Needs the tables `content` and `engagement_events` (else kind `Setup`), and creates nothing. An error of
/// the server ends it.
pub async fn run(
    postgres: &PostgresConfig,
    config: &GenerateConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary> {
    config.validate()?;
    let committed = Arc::new(AtomicU64::new(0));
    let mut generator = Generator::start(postgres, config, &committed).await?;
    let began = Instant::now();
    let progress = tokio::spawn(report(Arc::clone(&committed), config.total()));
    let ended = generator.run_until(stop(shutdown, config.seconds_max)).await;
    progress.abort();
    ended?;
    Ok(Summary { events: committed.load(Ordering::Relaxed), elapsed: began.elapsed() })
}

impl GenerateConfig {
    fn validate(&self) -> Result<()> {
        let wrong = |field: &str, wanted: &str| {
            Err(Error::new(Code::Configuration, format!("generate.{field} must be {wanted}"))
                .hint(format!("set generate.{field} to a value in that range")))
        };
        match self {
            _ if self.rate_per_minute == 0 => wrong("rate_per_minute (GENERATION_RATE)", "at least 1"),
            _ if self.contents == 0 => wrong("contents", "at least 1"),
            _ if self.users == 0 => wrong("users", "at least 1"),
            _ if !(1..=CONNECTIONS_MAX).contains(&self.connections) => {
                wrong("connections", &format!("from 1 to {CONNECTIONS_MAX}"))
            }
            _ => Ok(()),
        }
    }

    /// How many events are to be written; `None` for no end.
    fn total(&self) -> Option<u64> {
        let burst = self.burst_mode.then_some(self.burst_count);
        burst.into_iter().chain(self.count_max).min()
    }
}

/// Resolves when it is time to end.
async fn stop(shutdown: impl Future<Output = ()>, seconds_max: Option<u64>) {
    let time_is_up = async {
        match seconds_max {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shutdown => {}
        () = time_is_up => {}
    }
}

struct Generator {
    workload: Workload,
    pace: Option<Pace>,
    left: u64,
    idle: Vec<Writer>,
    busy: JoinSet<Result<Writer>>,
}

impl Generator {
    async fn start(
        postgres: &PostgresConfig,
        config: &GenerateConfig,
        committed: &Arc<AtomicU64>,
    ) -> Result<Self> {
        let first = Writer::open(postgres, committed).await?;
        let seed = config.seed.unwrap_or_else(rand::random);
        let workload = prepare_catalog(&first.client, config, seed).await?;
        tracing::info!(seed, contents = workload.contents(), connections = config.connections, "generating");
        let mut idle = vec![first];
        for _ in 1..config.connections {
            idle.push(Writer::open(postgres, committed).await?);
        }
        Ok(Generator {
            workload,
            pace: (!config.burst_mode).then(|| Pace::new(config.rate_per_minute)),
            left: config.total().unwrap_or(u64::MAX),
            idle,
            busy: JoinSet::new(),
        })
    }

    async fn run_until(&mut self, stop: impl Future<Output = ()>) -> Result<()> {
        tokio::pin!(stop);
        while self.left > 0 {
            tokio::select! {
                biased;
                () = &mut stop => break,
                written = self.step() => written?,
            }
        }
        self.settle().await
    }

    /// Starts to write the next transaction once a writer is free and the rate allows it. What it does
    /// before that can be dropped.
    async fn step(&mut self) -> Result<()> {
        let rows_max = self.pace.as_ref().map_or(TRANSACTION_ROWS_MAX, Pace::transaction_rows_max);
        let rows = self.workload.transaction_rows(rows_max).min(self.left);
        if let Some(pace) = &mut self.pace {
            pace.wait_for(rows).await;
        }
        while self.idle.is_empty() {
            self.one_done().await?;
        }
        let Some(writer) = self.idle.pop() else { return Ok(()) };
        let transaction = self.workload.transaction(rows, SystemTime::now());
        let barrier = transaction.new_content.is_some();
        self.left -= rows;
        self.busy.spawn(writer.write(transaction));
        if barrier { self.settle().await } else { Ok(()) }
    }

    /// Waits until all transactions under way are committed.
    async fn settle(&mut self) -> Result<()> {
        while !self.busy.is_empty() {
            self.one_done().await?;
        }
        Ok(())
    }

    async fn one_done(&mut self) -> Result<()> {
        match self.busy.join_next().await {
            Some(Ok(written)) => self.idle.push(written?),
            Some(Err(error)) => {
                return Err(Error::new(Code::WalcastBroke, "a writer broke down").because(error));
            }
            None => {}
        }
        Ok(())
    }
}

/// A steady rate: rows are written when the last of them is due.
struct Pace {
    per_second: f64,
    due: Instant,
}

impl Pace {
    fn new(per_minute: u64) -> Self {
        Pace { per_second: per_minute as f64 / 60.0, due: Instant::now() }
    }

    fn transaction_rows_max(&self) -> u64 {
        let rows = self.per_second * BURST_MAX.as_secs_f64();
        (rows as u64).clamp(1, TRANSACTION_ROWS_MAX)
    }

    async fn wait_for(&mut self, rows: u64) {
        let earliest = Instant::now().checked_sub(BURST_MAX).unwrap_or(self.due);
        self.due = self.due.max(earliest) + Duration::from_secs_f64(rows as f64 / self.per_second);
        tokio::time::sleep_until(self.due).await;
    }
}

/// One session that writes transactions.
struct Writer {
    client: Client,
    insert_events: Statement,
    committed: Arc<AtomicU64>,
}

impl Writer {
    async fn open(postgres: &PostgresConfig, committed: &Arc<AtomicU64>) -> Result<Self> {
        let client = sql::connect(postgres).await?;
        // a column of local times is given those of its zone
        let places = postgres.places();
        let zone = places.events.zone.as_ref().map_or("UTC", |zone| zone.name());
        client
            .execute(
                "SELECT set_config('search_path', quote_ident($1), false), set_config('TimeZone', $2, false)",
                &[&postgres.schema, &zone],
            )
            .await
            .map_err(sql::error)?;
        require_tables(&client, &postgres.schema).await?;
        let insert_events = client
            .prepare(include_str!("../../sql/insert_generated_events.sql"))
            .await
            .map_err(sql::error)?;
        Ok(Writer { client, insert_events, committed: Arc::clone(committed) })
    }

    async fn write(mut self, transaction: Transaction) -> Result<Self> {
        let rows = transaction.events.len() as u64;
        if transaction.new_content.is_none() && transaction.title_edit.is_none() {
            // A statement alone is a transaction: one round trip.
            insert_events(&self.client, &self.insert_events, &transaction.events).await?;
        } else {
            self.write_with_content(&transaction).await?;
        }
        self.committed.fetch_add(rows, Ordering::Relaxed);
        Ok(self)
    }

    async fn write_with_content(&mut self, transaction: &Transaction) -> Result<()> {
        let open = self.client.transaction().await.map_err(sql::error)?;
        insert_content(open.client(), transaction.new_content.as_slice()).await?;
        if let Some((id, title)) = &transaction.title_edit {
            open.execute("UPDATE content SET title = $2 WHERE id = $1", &[id, title])
                .await
                .map_err(sql::error)?;
        }
        insert_events(open.client(), &self.insert_events, &transaction.events).await?;
        open.commit().await.map_err(sql::error)
    }
}

async fn require_tables(client: &Client, schema: &str) -> Result<()> {
    let missing = client
        .query(
            "SELECT name FROM unnest(ARRAY['content', 'engagement_events']) AS name
             WHERE to_regclass(name) IS NULL",
            &[],
        )
        .await
        .map_err(sql::error)?;
    match missing.first() {
        None => Ok(()),
        Some(row) => {
            let table: &str = row.get(0);
            Err(Error::new(Code::SourceTableUnfit, format!("the table {schema}.{table} does not exist"))
                .hint("`walcast init` creates the tables; postgres.schema says where they are"))
        }
    }
}

/// The content that is there, and as much new as is wanted beside it.
async fn prepare_catalog(client: &Client, config: &GenerateConfig, seed: u64) -> Result<Workload> {
    let there = client
        .query("SELECT id, length_seconds FROM content ORDER BY id LIMIT $1", &[&i64::from(config.contents)])
        .await
        .map_err(sql::error)?
        .iter()
        .map(|row| Known { id: row.get(0), length_seconds: row.get(1) })
        .collect();
    let mut workload = Workload::new(seed, config.users, there);
    let missing = (config.contents as usize).saturating_sub(workload.contents());
    for chunk in workload.old_content(missing, SystemTime::now()).chunks(CONTENT_ROWS_PER_INSERT) {
        insert_content(client, chunk).await?;
    }
    Ok(workload)
}

async fn insert_content(client: &Client, contents: &[NewContent]) -> Result<()> {
    fn column<'a, T>(contents: &'a [NewContent], read: impl Fn(&'a NewContent) -> T) -> Vec<T> {
        contents.iter().map(read).collect()
    }
    if contents.is_empty() {
        return Ok(());
    }
    let columns: [&(dyn ToSql + Sync); 6] = [
        &column(contents, |content| content.id),
        &column(contents, |content| content.slug.as_str()),
        &column(contents, |content| content.title.as_str()),
        &column(contents, |content| content.content_type),
        &column(contents, |content| content.length_seconds),
        &column(contents, |content| content.publish_ts),
    ];
    client
        .execute(include_str!("../../sql/insert_generated_content.sql"), &columns)
        .await
        .map_err(sql::error)?;
    Ok(())
}

async fn insert_events(client: &Client, statement: &Statement, events: &Events) -> Result<()> {
    let columns: [&(dyn ToSql + Sync); 7] = [
        &events.content_id,
        &events.user_id,
        &events.event_type,
        &events.event_ts,
        &events.duration_ms,
        &events.device,
        &events.raw_payload,
    ];
    client.execute(statement, &columns).await.map_err(sql::error)?;
    Ok(())
}

/// Shows how far it is: a line that is redrawn each second on a terminal, else a log line each ten.
async fn report(committed: Arc<AtomicU64>, total: Option<u64>) {
    let terminal = std::io::stderr().is_terminal();
    let every = Duration::from_secs(if terminal { 1 } else { 10 });
    let line = ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear);
    let (mut before, mut at) = (0, Instant::now());
    loop {
        tokio::time::sleep(every).await;
        let events = committed.load(Ordering::Relaxed);
        let rate = (events - before) as f64 / at.elapsed().as_secs_f64();
        (before, at) = (events, Instant::now());
        let of_total = total.map(|total| format!(" of {total}")).unwrap_or_default();
        if terminal {
            line.set_message(format!("{events}{of_total} events, {rate:.0} events/s"));
            line.tick();
        } else {
            tracing::info!(events, rate = rate.round(), "{events}{of_total} events, {rate:.0} events/s");
        }
    }
}
