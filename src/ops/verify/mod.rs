//! `walcast verify`: compares PostgreSQL with every sink.
//!
//! A temporary slot gives a snapshot of exactly the commits below its consistent point. Once every sink holds all up
//! to there, the sides are read, each event as a hash of its fields into one file a side, cut by hash partitions; then
//! partition by partition is compared. What a sink has beyond the point is left out by its commit LSN, so a
//! pipeline under load is no hindrance.

mod compare;
mod events;
mod record;
mod report;
mod spill;
pub(super) mod sums;
mod truth;
mod wait;

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use indicatif::{HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::backfill::recount;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::event::place::Places;
use crate::lsn::{HistoryId, Lsn, Position};
use crate::sink::read_back::{Found, Part, ReadBack, ReadEvents};
use crate::sinks;
use crate::source::snapshot::Snapshot;
use crate::source::sql;
use crate::state::brought::BroughtTo;
use crate::state::marks::EventMarks;
use crate::state::pre_existing::PreExisting;
use crate::state::{extra, history};
use compare::{Context, Replayed, Side};
use events::Events;
use record::Extras;
use report::{Report, text_of};
use spill::Spill;
use sums::{Later, Sums};
use truth::{Known, Versions};

const LOG_EVERY: Duration = Duration::from_secs(10);

/// How to verify.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which of `pipeline.sinks` are compared; all if there are none.
    pub sinks: Vec<String>,
    /// Which events.
    pub part: Part,
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
    let config = &of_these(config, &options.sinks)?;
    let client = sql::connect(&config.postgres).await?;
    let (history_id, _) = history::find(&config.postgres, &client).await?;
    let places = recount::readable(&config.postgres, &client).await?;
    let waiting = progress.line("waiting for the transactions that write now");
    wait::until_rebuilt(&config.pipeline.sinks, &client, &history_id, options.wait).await?;
    let snapshot = Snapshot::take(&config.postgres).await?;
    let end = snapshot.consistent_point;
    waiting.set_message(format!("waiting until every sink holds all up to {end}"));
    let (mut written, mut read_back) = (Vec::new(), Vec::new());
    for sink in sinks::wanted(config)? {
        if sink.guarantee().keeps_checkpoint() {
            written.push(sink.name());
        }
        read_back.push((sink.name(), sink.read_back()));
    }
    wait::until_held(&written, &client, &history_id, end, options.wait).await?;
    waiting.finish_and_clear();
    tracing::info!(%end, "every sink holds what is compared");
    let mut verifying = Verifying {
        config,
        options,
        places: &places,
        history_id: &history_id,
        end,
        progress,
        extras: Arc::default(),
        replayed: Replayed::new(),
        report: Report::default(),
    };
    let bars = verifying.progress.clone();
    tokio::select! {
        compared = verifying.compare_all(read_back, snapshot, &client) => compared?,
        never = bars.log() => match never {},
    }
    let report = verifying.report;
    match options.json {
        true => println!("{}", report.json(&history_id, end, &options.part)),
        false => print!("{}", report.text(end)),
    }
    Ok(ExitCode::from(if report.agrees() { 0 } else { 2 }))
}

/// The configuration with these of its sinks alone.
fn of_these(config: &Config, sinks: &[String]) -> Result<Config> {
    let mut config = config.clone();
    let known = &config.pipeline.sinks;
    if let Some(other) = sinks.iter().find(|name| !known.contains(name)) {
        let message = format!("--sinks: {other} is not among pipeline.sinks");
        return Err(
            Error::new(Code::Configuration, message).hint(format!("name some of {}", known.join(", ")))
        );
    }
    if !sinks.is_empty() {
        config.pipeline.sinks.retain(|name| sinks.contains(name));
    }
    Ok(config)
}

struct Verifying<'a> {
    config: &'a Config,
    options: &'a Options,
    places: &'a Places,
    history_id: &'a HistoryId,
    end: Lsn,
    progress: Progress,
    extras: Arc<Extras>,
    /// Events whose letters were sent again.
    replayed: Replayed,
    report: Report,
}

impl Verifying<'_> {
    async fn compare_all(
        &mut self,
        read_back: Vec<(&'static str, ReadBack)>,
        snapshot: Snapshot,
        client: &Client,
    ) -> Result<()> {
        let Verifying { config, history_id, end, options, .. } = *self;
        let versions = Versions::load(client, history_id).await?;
        self.report.notes.extend(self.says_which());
        let (mut sums, mut readers) = (Vec::new(), Vec::new());
        for (sink, read_back) in read_back {
            match read_back {
                ReadBack::Events(reader) => readers.push((sink, reader)),
                ReadBack::Sums(_) if !options.part.is_all() => self.report.notes.push(format!(
                    "{sink}: not compared; what it adds up of all events, a part of them does not tell"
                )),
                ReadBack::Sums(reader) => sums.push(sums::read(sink, reader, history_id).await?),
                ReadBack::Acknowledged => {
                    let letters = truth::dead_letter_count(client, history_id, sink, end).await?;
                    self.report.notes.push(format!(
                        "{sink}: not read back; its target has acknowledged all up to {end}, but for {letters} that became dead letters"
                    ));
                }
                ReadBack::Nothing => {}
            }
        }
        if sums.is_empty() && readers.is_empty() && !options.part.is_all() {
            return Err(nothing_to_compare());
        }
        let (reader, stream) = snapshot.follow(&config.postgres.publication).await?;
        let later = match sums.is_empty() {
            true => Later::default(),
            false => {
                let stream = (stream, client);
                Later::follow(&mut sums, config, self.places, stream, end, &versions, options.wait).await?
            }
        };
        let mut marks = EventMarks::load(client, history_id).await?;
        self.replayed = truth::replayed(client, history_id, &mut marks).await?;
        self.extras = Arc::new(Extras(self.extra_columns(client).await?));
        let context = self.events(&reader, client, &versions, marks, readers, &mut sums).await?;
        // where no sink tells the events' places, any content that has changed may have changed after them
        let first_lsn = if context.tells_places { end } else { Lsn(1) };
        for sums in sums {
            let unsure = |id: &Uuid| {
                later.has_changed(id)
                    || context.changed.contains(&record::content_hash(id))
                    || versions.position(id).is_some_and(|position| position.commit_lsn >= first_lsn)
            };
            let excused = |id: Option<&Uuid>, state| context.excuses(id.map(record::content_hash), state);
            sums.compare(unsure, excused, &mut self.report);
        }
        Ok(())
    }

    /// What a part is a part of.
    fn says_which(&self) -> Option<String> {
        let Part { since, until, sample } = self.options.part;
        let share = sample.map(|sample| format!("{} % of the events, chosen by their ids", sample.percent));
        let since = since.map(|since| format!(", from {} on", text_of(since)));
        let until = until.map(|until| format!(", before {}", text_of(until)));
        let share = share.unwrap_or_else(|| "the events".to_owned());
        let bounds: String = [since, until].into_iter().flatten().collect();
        (!self.options.part.is_all()).then(|| format!("compared: {share}{bounds}"))
    }

    /// The extra columns that are passed on now.
    async fn extra_columns(&self, client: &Client) -> Result<Vec<(String, Position)>> {
        let events = &self.places.events;
        let mut columns = extra::load(client, self.history_id, events).await?;
        columns.retain(|(name, _)| events.extra.asks_for(name) && !events.extra.is_left_out(name));
        Ok(columns)
    }

    /// Compares each sink's events with those of the snapshot, and adds these up in `sums`.
    async fn events(
        &mut self,
        reader: &Client,
        client: &Client,
        versions: &Versions,
        marks: EventMarks,
        readers: Vec<(&'static str, Box<dyn ReadEvents>)>,
        sums: &mut [Sums],
    ) -> Result<Context> {
        let Verifying { config, places, history_id, end, options: Options { part, .. }, .. } = *self;
        let condition = truth::condition(reader, &places.events, part).await?;
        let count = truth::count(reader, &places.events, &condition).await?;
        let pre_existing = PreExisting::load(reader, history_id).await?;
        let (spill, bar) = (self.spill(count)?, self.progress.bar("postgres", count));
        let partition_of = readers.iter().find_map(|(_, reader)| reader.partition_of());
        let brought = BroughtTo::load(reader, history_id).await?;
        if let Some(sink) = brought.unfinished(&config.pipeline.sinks) {
            return Err(wait::being_rebuilt(sink));
        }
        // what was refused before a sink was filled anew it need not tell
        let tells_letters = readers
            .iter()
            .any(|(sink, reader)| reader.tells_letters() && !brought.is_anew(sink, i64::MIN, Lsn::ZERO));
        let mut reading = Vec::new();
        for (sink, reader) in readers {
            let firsts = self.replayed.iter().filter(|((whose, _), _)| whose == sink);
            let firsts = firsts.map(|((_, id), letter)| (*id, letter.first)).collect();
            let bar = self.progress.bar(sink, count);
            let events = Events::new(end, part, self.spill(count)?, bar, firsts);
            reading.push(read_events(sink, reader, events, (end, part), client, history_id));
        }
        let start = history::began(reader, history_id).await?.before();
        let known = Known {
            start,
            events: &places.events,
            brought: &brought,
            marks: &marks,
            pre_existing: &pre_existing,
            versions,
            extras: &self.extras,
            partition_of: partition_of.as_deref(),
            part,
            condition: &condition,
        };
        let source = truth::read(config, reader, &known, spill, sums, &bar);
        let (source, read) = tokio::try_join!(source, try_join_all(reading))?;
        tracing::info!("all events read");
        let partitions = truth::partitions(reader, &places.events).await?;
        let labels = truth::labels(reader, &places.events, &self.extras).await?;
        let mut context = Context {
            start: Some(start),
            marks,
            partitions,
            labels,
            extras: Arc::clone(&self.extras),
            tells_letters,
            replayed: std::mem::take(&mut self.replayed),
            tells_places: !read.is_empty(),
            brought,
            by_time: part.is_by_time(),
            ..Context::default()
        };
        let mut sides = Vec::new();
        for (sink, events) in read {
            let (spill, begins) = events.finish(sink, &mut self.report);
            context.begins.insert(sink, begins);
            sides.push((sink, spill));
        }
        self.compare(source, sides, &mut context)?;
        Ok(context)
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
        truth::spill(&folder, count, &self.extras)
    }
}

/// Reads what a sink has, and what it alone has refused.
async fn read_events(
    sink: &'static str,
    reader: Box<dyn ReadEvents>,
    events: Events,
    (end, part): (Lsn, &Part),
    client: &Client,
    history_id: &HistoryId,
) -> Result<(&'static str, Events)> {
    // a reader that blocks has a thread of its own; nobody else takes the lock meanwhile
    let events = Arc::new(Mutex::new(events));
    let taking = Arc::clone(&events);
    let take = move |found: Found<'_>| taking.lock().unwrap_or_else(PoisonError::into_inner).take(found);
    reader.read(end, part, Box::new(take)).await?;
    let events =
        Arc::into_inner(events).map(|events| events.into_inner().unwrap_or_else(PoisonError::into_inner));
    let mut events =
        events.ok_or_else(|| Error::new(Code::WalcastBroke, format!("{sink} is still being read")))?;
    truth::dead_letters(client, history_id, sink, end, events.spill()).await?;
    Ok((sink, events))
}

fn nothing_to_compare() -> Error {
    Error::new(Code::Configuration, "a part of the events can be compared with none of these sinks")
        .hint("leave --since, --until and --sample out, or name other --sinks")
}

/// How far each side is read: bars on a terminal, elsewhere a line now and then.
#[derive(Clone)]
struct Progress(MultiProgress, Arc<Mutex<Vec<ProgressBar>>>);

impl Progress {
    fn new() -> Self {
        Progress(MultiProgress::new(), Arc::default())
    }

    fn line(&self, message: &'static str) -> ProgressBar {
        let line = self.0.add(ProgressBar::new_spinner().with_message(message));
        line.enable_steady_tick(Duration::from_millis(200));
        line
    }

    fn bar(&self, side: &'static str, length: u64) -> ProgressBar {
        let template = "{prefix:<9} {wide_bar} {human_pos}/{human_len} {per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.0.add(ProgressBar::new(length).with_prefix(side).with_style(style));
        self.1.lock().unwrap_or_else(PoisonError::into_inner).push(bar.clone());
        bar
    }

    async fn log(&self) -> Infallible {
        let Progress(shown, bars) = self;
        loop {
            tokio::time::sleep(LOG_EVERY).await;
            let bars = bars.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for bar in bars.iter().filter(|bar| shown.is_hidden() && !bar.is_finished()) {
                let (read, of) = (HumanCount(bar.position()), HumanCount(bar.length().unwrap_or_default()));
                tracing::info!(
                    side = bar.prefix(),
                    "{read} of {of} are read; {} left",
                    HumanDuration(bar.eta())
                );
            }
        }
    }
}
