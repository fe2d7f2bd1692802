//! `walcast verify`: compares PostgreSQL with every sink.
//!
//! A temporary slot gives a snapshot of exactly the commits below its consistent point. Once every sink holds all up
//! to there, the sides are read, each event as a hash of its fields into one file a side, cut by hash partitions; then
//! partition by partition is compared. What a sink has beyond the point is left out by its commit LSN, so a
//! pipeline under load is no hindrance.

pub(super) mod pre_existing;
mod bigquery;
mod compare;
mod kafka;
mod record;
mod redis;
mod report;
mod spill;
mod truth;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::config::Config;
use crate::error::Result;
use crate::lsn::{HistoryId, Lsn};
use crate::sink;
use crate::sink::redis::audit::Expected;
use crate::source::snapshot::Snapshot;
use crate::source::sql;
use crate::state::history;
use compare::{Context, Side};
use pre_existing::PreExisting;
use report::{Difference, Report};
use spill::Spill;
use truth::Versions;

/// How to verify.
#[derive(Debug, Clone)]
pub struct Options {
    /// Print JSON.
    pub json: bool,
    /// How long the sinks may take to hold what is compared.
    pub wait: Duration,
    /// Where temporary files go; the system's folder when `None`.
    pub temp_dir: Option<PathBuf>,
}

/// Prints what was found; exit code 2 when the sides differ.
pub async fn verify(config: &Config, options: &Options) -> Result<ExitCode> {
    let progress = Progress::new();
    let client = sql::connect(&config.postgres).await?;
    let (history_id, _) = history::find(&config.postgres, &client).await?;
    let waiting = progress.line("waiting for the transactions that write now");
    let snapshot = Snapshot::take(&config.postgres).await?;
    let end = snapshot.consistent_point;
    waiting.set_message(format!("waiting until every sink holds all up to {end}"));
    wait::until_held(config, &client, &history_id, end, options.wait).await?;
    waiting.finish_and_clear();
    tracing::info!(%end, "every sink holds what is compared");
    let mut verifying =
        Verifying { config, options, history_id: &history_id, end, progress, report: Report::default() };
    verifying.compare_all(snapshot, &client).await?;
    let report = verifying.report;
    match options.json {
        true => println!("{}", report.json(&history_id, end)),
        false => print!("{}", report.text(end)),
    }
    Ok(ExitCode::from(if report.agrees() { 0 } else { 2 }))
}

struct Verifying<'a> {
    config: &'a Config,
    options: &'a Options,
    history_id: &'a HistoryId,
    end: Lsn,
    progress: Progress,
    report: Report,
}

impl Verifying<'_> {
    async fn compare_all(&mut self, snapshot: Snapshot, client: &Client) -> Result<()> {
        let Verifying { config, history_id, end, options, .. } = *self;
        let versions = Versions::load(client, history_id).await?;
        let mut redis = match self.has("redis") {
            true => Some(redis::read(config, history_id).await?),
            false => None,
        };
        let (reader, stream) = snapshot.follow(&config.postgres.publication).await?;
        if let Some(redis) = &mut redis {
            redis.follow(config, stream, end, &versions, options.wait).await?;
            tracing::info!("redis read");
        }
        let expected = redis.as_mut().map(|redis| &mut redis.expected);
        let context = self.events(&reader, client, &versions, expected).await?;
        if let Some(redis) = redis {
            // where no sink tells the events' places, any content that has changed may have changed after them
            let first_lsn = if context.tells_places { end } else { Lsn(1) };
            let unsure = |id: &Uuid| {
                context.changed.contains(&record::content_hash(id))
                    || versions.position(id).is_some_and(|position| position.commit_lsn >= first_lsn)
            };
            redis.compare(unsure, &mut self.report);
        }
        Ok(())
    }

    /// Compares the events of Kafka and BigQuery with those of the snapshot, and adds these up in `expected`.
    async fn events(
        &mut self,
        reader: &Client,
        client: &Client,
        versions: &Versions,
        expected: Option<&mut Expected>,
    ) -> Result<Context> {
        let Verifying { config, history_id, end, .. } = *self;
        let count = truth::count(reader, &config.postgres).await?;
        let pre_existing = PreExisting::load(reader, history_id).await?;
        let spills = (self.spill(count)?, self.spill(count)?, self.spill(count)?);
        let bars = ["postgres", "kafka", "bigquery"].map(|side| self.progress.bar(side, count));
        let [of_source, of_kafka, of_bigquery] = bars;
        let source = truth::read(config, reader, &pre_existing, versions, spills.0, expected, &of_source);
        let kafka = async {
            match self.has(sink::kafka::NAME) {
                true => kafka::read_apart(&config.kafka, end, spills.1, of_kafka).await.map(Some),
                false => Ok(None),
            }
        };
        let bigquery = async {
            if !self.has(sink::bigquery::NAME) {
                return Ok(None);
            }
            let mut spill = bigquery::read(&config.bigquery, end, spills.2, &of_bigquery).await?;
            truth::dead_letters(client, history_id, sink::bigquery::NAME, end, &mut spill).await?;
            Ok(Some(spill))
        };
        let (source, kafka, bigquery) = tokio::try_join!(source, kafka, bigquery)?;
        tracing::info!("all events read");
        let mut context = Context { letters_in_kafka: kafka.is_some(), ..Context::default() };
        let mut sides = Vec::new();
        if let Some((spill, topic)) = kafka {
            self.topic(topic, &mut context);
            sides.push((sink::kafka::NAME, spill));
        }
        sides.extend(bigquery.map(|spill| (sink::bigquery::NAME, spill)));
        context.tells_places = !sides.is_empty();
        self.compare(source, sides, &mut context)?;
        Ok(context)
    }

    fn topic(&mut self, topic: kafka::Topic, context: &mut Context) {
        for record in &topic.out_of_order {
            let what = || (format!("event {} at {}", record.id, record.position), Vec::new());
            self.report.differs(sink::kafka::NAME, Some(record.half_hour), Difference::OutOfOrder, what);
        }
        for _ in 0..topic.unreadable {
            let what = || ("a record that is not walcast's".to_owned(), Vec::new());
            self.report.differs(sink::kafka::NAME, None, Difference::Unexpected, what);
        }
        context.kafka_begins = topic.begins;
    }

    fn compare(
        &mut self,
        mut source: Spill,
        mut sides: Vec<(&'static str, Spill)>,
        context: &mut Context,
    ) -> Result<()> {
        for at in 0..source.partitions() {
            let records = source.partition(at)?;
            let sides = sides
                .iter_mut()
                .map(|(sink, spill)| Ok(Side { sink, records: spill.partition(at)? }))
                .collect::<Result<Vec<_>>>()?;
            compare::compare(&records, &sides, context, &mut self.report);
        }
        Ok(())
    }

    fn spill(&self, count: u64) -> Result<Spill> {
        let folder = self.options.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
        truth::spill(&folder, count)
    }

    fn has(&self, sink: &str) -> bool {
        self.config.pipeline.sinks.iter().any(|name| name == sink)
    }
}

/// What a terminal shows meanwhile; nothing elsewhere.
struct Progress(MultiProgress);

impl Progress {
    fn new() -> Self {
        Progress(MultiProgress::new())
    }

    fn line(&self, message: &'static str) -> ProgressBar {
        let line = self.0.add(ProgressBar::new_spinner().with_message(message));
        line.enable_steady_tick(Duration::from_millis(200));
        line
    }

    fn bar(&self, side: &'static str, length: u64) -> ProgressBar {
        let template = "{prefix:<9} {wide_bar} {pos}/{len} {per_sec}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.0.add(ProgressBar::new(length).with_prefix(side).with_style(style))
    }
}
