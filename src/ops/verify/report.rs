//! What was found, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::event::time::{HALF_HOUR_MICROS, time_text};
use crate::lsn::{HistoryId, Lsn};
use crate::sink::read_back::Part;

/// How many examples of each kind of difference are kept.
const EXAMPLES_MAX: usize = 5;

/// What a sink can be found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// It lacks what PostgreSQL has.
    Missing,
    /// It has something more than once.
    Doubled,
    /// A value is another one.
    Different,
    /// It has what PostgreSQL has not.
    Unexpected,
    /// A record stands behind one of a later place in the stream.
    OutOfOrder,
}

impl Difference {
    fn text(self) -> &'static str {
        match self {
            Difference::Missing => "missing",
            Difference::Doubled => "doubled",
            Difference::Different => "different",
            Difference::Unexpected => "unexpected",
            Difference::OutOfOrder => "out of order",
        }
    }
}

/// What a sink holds of a half hour, or in all.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Counters {
    /// Events that it holds, each counted once; for Redis, keys and members that were compared.
    pub held: u64,
    /// See [`Difference::Missing`].
    pub missing: u64,
    /// See [`Difference::Doubled`].
    pub doubled: u64,
    /// See [`Difference::Different`].
    pub different: u64,
    /// See [`Difference::Unexpected`].
    pub unexpected: u64,
    /// See [`Difference::OutOfOrder`].
    pub out_of_order: u64,
    /// Events that are dead letters instead.
    pub dead_letters: u64,
    /// Events that retention has deleted, and keys that have expired.
    pub expired: u64,
    /// Events that PostgreSQL has changed since they went out, and keys that these count in: they are not compared.
    pub changed_at_source: u64,
    /// Events that PostgreSQL has deleted since they went out.
    pub gone_at_source: u64,
}

impl Counters {
    fn count(&mut self, difference: Difference) {
        let count = match difference {
            Difference::Missing => &mut self.missing,
            Difference::Doubled => &mut self.doubled,
            Difference::Different => &mut self.different,
            Difference::Unexpected => &mut self.unexpected,
            Difference::OutOfOrder => &mut self.out_of_order,
        };
        *count += 1;
    }

    fn differences(&self) -> u64 {
        self.missing + self.doubled + self.different + self.unexpected + self.out_of_order
    }

    fn add(&mut self, other: &Counters) {
        self.held += other.held;
        self.missing += other.missing;
        self.doubled += other.doubled;
        self.different += other.different;
        self.unexpected += other.unexpected;
        self.out_of_order += other.out_of_order;
        self.dead_letters += other.dead_letters;
        self.expired += other.expired;
        self.changed_at_source += other.changed_at_source;
        self.gone_at_source += other.gone_at_source;
    }
}

/// One half hour, or the total.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Line {
    /// Events in PostgreSQL, those before walcast left out.
    pub source: u64,
    /// Events that were there before walcast.
    pub before_walcast: u64,
    /// By sink.
    pub sinks: BTreeMap<&'static str, Counters>,
}

/// One difference: what, and in which fields. Never a value.
#[derive(Debug, Clone, Serialize)]
pub struct Example {
    sink: &'static str,
    difference: Difference,
    what: String,
    fields: Vec<String>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    half_hours: BTreeMap<i32, Line>,
    /// What belongs to no half hour.
    elsewhere: Line,
    examples: BTreeMap<(&'static str, Difference), Vec<Example>>,
    /// Sentences about what was left out of the comparison.
    pub notes: Vec<String>,
}

impl Report {
    /// The line of a half hour.
    pub fn line(&mut self, half_hour: i32) -> &mut Line {
        self.half_hours.entry(half_hour).or_default()
    }

    /// What a sink holds of a half hour; `None` for what belongs to none.
    pub fn counters(&mut self, sink: &'static str, half_hour: Option<i32>) -> &mut Counters {
        let line = match half_hour {
            Some(half_hour) => self.half_hours.entry(half_hour).or_default(),
            None => &mut self.elsewhere,
        };
        line.sinks.entry(sink).or_default()
    }

    /// Counts a difference. `what` is made only for the first few.
    pub fn differs(
        &mut self,
        sink: &'static str,
        half_hour: Option<i32>,
        difference: Difference,
        what: impl FnOnce() -> (String, Vec<String>),
    ) {
        self.counters(sink, half_hour).count(difference);
        let examples = self.examples.entry((sink, difference)).or_default();
        if examples.len() < EXAMPLES_MAX {
            let (what, fields) = what();
            examples.push(Example { sink, difference, what, fields });
        }
    }

    /// All half hours together.
    pub fn total(&self) -> Line {
        let mut total = Line::default();
        for line in self.half_hours.values().chain([&self.elsewhere]) {
            total.source += line.source;
            total.before_walcast += line.before_walcast;
            for (sink, counters) in &line.sinks {
                total.sinks.entry(sink).or_default().add(counters);
            }
        }
        total
    }

    /// Whether no difference was found.
    pub fn agrees(&self) -> bool {
        self.total().sinks.values().all(|counters| counters.differences() == 0)
    }

    /// As JSON.
    pub fn json(&self, history_id: &HistoryId, end: Lsn, part: &Part) -> String {
        #[derive(Serialize)]
        struct HalfHour<'a> {
            half_hour: String,
            #[serde(flatten)]
            line: &'a Line,
        }
        let half_hours: Vec<_> = self
            .half_hours
            .iter()
            .map(|(at, line)| HalfHour { half_hour: half_hour_text(*at), line })
            .collect();
        let whole = serde_json::json!({
            "agrees": self.agrees(),
            "history_id": history_id,
            "consistent_point": end,
            "since": part.since.map(text_of),
            "until": part.until.map(text_of),
            "sample_percent": part.sample.map(|sample| sample.percent),
            "total": self.total(),
            "half_hours": half_hours,
            "examples": self.examples.values().flatten().collect::<Vec<_>>(),
            "notes": self.notes,
        });
        serde_json::to_string_pretty(&whole).unwrap_or_default()
    }

    /// As a table for people.
    pub fn text(&self, end: Lsn) -> String {
        let mut text = format!(
            "{:<17} {:<9} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
            "half hour (UTC)",
            "sink",
            "source",
            "held",
            "missing",
            "doubled",
            "different",
            "unexpected",
            "disorder",
            "dead",
            "expired"
        );
        for (at, line) in &self.half_hours {
            write_line(&mut text, &half_hour_text(*at), line);
        }
        let total = self.total();
        write_line(&mut text, "total", &total);
        if total.before_walcast > 0 {
            let _ = writeln!(text, "{} events were there before walcast", total.before_walcast);
        }
        for (sink, Counters { changed_at_source, gone_at_source, .. }) in &total.sinks {
            if *changed_at_source > 0 {
                let _ = writeln!(
                    text,
                    "{sink}: {changed_at_source} not compared: changed at the source since they went out"
                );
            }
            if *gone_at_source > 0 {
                let _ =
                    writeln!(text, "{sink}: {gone_at_source} were deleted at the source since they went out");
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        for example in self.examples.values().flatten() {
            let Example { sink, difference, what, fields } = example;
            let _ = write!(text, "{sink}: {}: {what}", difference.text());
            let _ =
                if fields.is_empty() { writeln!(text) } else { writeln!(text, " in {}", fields.join(", ")) };
        }
        let _ = match total.sinks.values().map(Counters::differences).sum::<u64>() {
            0 => writeln!(text, "all agree up to {end}"),
            count => writeln!(text, "{count} differences up to {end}"),
        };
        text
    }
}

fn write_line(text: &mut String, name: &str, line: &Line) {
    for (sink, t) in &line.sinks {
        let _ = writeln!(
            text,
            "{name:<17} {sink:<9} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            line.source,
            t.held,
            t.missing,
            t.doubled,
            t.different,
            t.unexpected,
            t.out_of_order,
            t.dead_letters,
            t.expired
        );
    }
}

/// A time, microseconds since 1970, as the report tells it.
pub(super) fn text_of(micros: i64) -> String {
    time_text(micros).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
}

fn half_hour_text(half_hour: i32) -> String {
    let text = time_text(i64::from(half_hour) * HALF_HOUR_MICROS).map(Vec::from).unwrap_or_default();
    let minutes = text.get(..16).unwrap_or_default().to_vec();
    String::from_utf8(minutes).unwrap_or_default()
}
