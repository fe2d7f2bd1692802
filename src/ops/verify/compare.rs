//! Holding the sides against each other, partition by partition. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::record::{ALL, ANY_PARTITION, EVENT_TS, Extras, Fields, OF_CONTENT, Record, flag, names};
use super::report::{Difference, Report};
use super::truth::Partition;
use crate::event::time::HALF_HOUR_MICROS;
use crate::lsn::Position;
use crate::sink::read_back::KeyState;
use crate::state::brought::BroughtTo;
use crate::state::dead_letters;
use crate::state::marks::EventMarks;

/// A sink's records of one partition, by id.
pub struct Side {
    /// The sink.
    pub sink: &'static str,
    /// Its events and dead letters.
    pub records: Vec<Record>,
}

/// Events whose letters were sent again, by whose letter each was.
pub type Replayed = HashMap<(String, i64), ReplayedLetter>;

/// A letter that was sent again.
#[derive(Debug, Clone, Copy)]
pub struct ReplayedLetter {
    /// The event's first place, where the other sinks have it.
    pub first: Position,
    /// Whether it is known to have arrived.
    pub arrived: bool,
}

/// What is known of the sinks as wholes.
#[derive(Default)]
pub struct Context {
    /// By sink, partitions that have lost their beginning, with the first place left.
    pub begins: BTreeMap<&'static str, BTreeMap<u16, Position>>,
    /// Whether a sink that is compared tells the dead letters of all.
    pub tells_letters: bool,
    /// Whether any sink tells the events' places.
    pub tells_places: bool,
    /// Below all that the stream brings.
    pub start: Option<Position>,
    /// Contents, by hash, that have changed after one of their events.
    pub changed: HashSet<u32>,
    /// Events whose letters were sent again, each by whose letter it was: they are to be there.
    pub replayed: Replayed,
    /// What the source has done to its events since.
    pub marks: EventMarks,
    /// Its partitions by time that have rows, where it has any.
    pub partitions: Option<Vec<Partition>>,
    /// Of fields that are enums, by their places: the hashes of the labels that there are.
    pub labels: Vec<(usize, HashSet<u32>)>,
    /// The extra columns that are compared.
    pub extras: Arc<Extras>,
    /// Which rows of before were brought to which sinks.
    pub brought: BroughtTo,
    /// Whether only events of some time are compared: one whose time was changed at the source is on one side alone.
    pub by_time: bool,
    /// What of that was seen, and of which contents.
    pub amended: Amended,
}

/// Events that the source has changed or deleted since they went out.
#[derive(Default)]
pub struct Amended {
    /// The contents, by hash, that have such events.
    pub contents: HashSet<u32>,
    /// Whether there are any.
    pub any: bool,
    /// How many of [`EventMarks::touched`] were found, at the source or in a sink.
    pub touched: u64,
}

impl Context {
    /// Whether the event was sent again to this sink, so that a letter of before excuses nothing.
    fn is_replayed(&self, sink: &str, event: &Record) -> bool {
        let by = |whose: &str| {
            self.replayed.get(&(whose.to_owned(), event.id)).is_some_and(|letter| letter.arrived)
        };
        !self.replayed.is_empty() && (by(sink) || by(dead_letters::ALL))
    }

    /// Whether an event that the source does not have was deleted there: by its id, with all others, or with its partition.
    fn is_gone(&self, event: &Record) -> bool {
        let emptied = self.marks.emptied_at.is_some_and(|at| event.position.commit_lsn < at);
        emptied || self.marks.touched.contains(event.id) || self.has_no_partition(event)
    }

    /// The fields in which an event has a label that there is no more: it was renamed since, and the source shows all rows
    /// under its new name.
    fn renamed_labels(&self, event: &Record) -> Fields {
        let gone = self
            .labels
            .iter()
            .filter(|(at, labels)| event.hash(*at).is_some_and(|hash| hash != 0 && !labels.contains(&hash)));
        gone.fold(0, |bits, (at, _)| bits | (1 << at))
    }

    fn has_no_partition(&self, event: &Record) -> bool {
        let Some(partitions) = &self.partitions else { return false };
        let from = i64::from(event.half_hour) * HALF_HOUR_MICROS;
        let held = |at: i64| {
            let holds = |one: &Partition| (one.from..one.to).contains(&at) && one.first_id <= event.id;
            partitions.iter().any(holds)
        };
        !held(from) || !held(from + HALF_HOUR_MICROS - 1)
    }

    /// Whether events have left the source of which nobody can say any more to which contents they belonged. What sums hold of
    /// them is more than the source has, and never less.
    fn has_lost_some(&self) -> bool {
        let trimmed = self.begins.values().any(|begins| !begins.is_empty());
        let untold = !self.tells_places || trimmed;
        untold
            && (self.marks.emptied_at.is_some()
                || self.partitions.is_some()
                || self.amended.touched < self.marks.touched.len())
    }

    /// Whether sums of a content's events, or of all contents' where that is `None`, may be found like this since the source
    /// has changed or deleted some.
    pub fn excuses(&self, content: Option<u32>, state: KeyState) -> bool {
        let only_more = matches!(state, KeyState::More | KeyState::Unexpected);
        only_more && self.has_lost_some()
            || content.map_or(self.amended.any, |content| self.amended.contents.contains(&content))
    }
}

/// One event as all sides have it.
struct Event<'a> {
    source: Option<&'a Record>,
    sinks: Vec<(&'static str, Cow<'a, [Record]>)>,
}

/// Compares one partition.
pub fn compare(source: &[Record], sides: &[Side], context: &mut Context, report: &mut Report) {
    let mut rest_of_source = source;
    let mut rests: Vec<(&'static str, &[Record])> =
        sides.iter().map(|side| (side.sink, side.records.as_slice())).collect();
    loop {
        let firsts = rests.iter().filter_map(|(_, rest)| rest.first()).chain(rest_of_source.first());
        let Some(id) = firsts.map(|record| record.id).min() else { break };
        let ours = take(&mut rest_of_source, id);
        let sinks = rests.iter_mut().map(|(sink, rest)| (*sink, take(rest, id).into())).collect();
        let events = match ours {
            [_, _, ..] => by_time(ours, sinks),
            _ => vec![Event { source: ours.first(), sinks }],
        };
        for event in events {
            event.amended(context);
            event.compare(context, report);
        }
    }
}

/// Rows that share an id, as partitions may have them, are told apart by their times. What a sink has of none of these times comes
/// last, and letters, which tell none, with each.
fn by_time<'a>(ours: &'a [Record], sinks: Vec<(&'static str, Cow<'a, [Record]>)>) -> Vec<Event<'a>> {
    let times: Vec<_> = ours.iter().map(|row| row.hash(EVENT_TS)).collect();
    let of = |belongs: &dyn Fn(&Record) -> bool| {
        let kept = |records: &[Record]| records.iter().filter(|record| belongs(record)).copied().collect();
        sinks.iter().map(|(sink, records)| (*sink, Cow::Owned(kept(records)))).collect()
    };
    let mut events: Vec<Event<'a>> = ours
        .iter()
        .zip(&times)
        .map(|(row, time)| {
            let sinks = of(&|record| record.has(flag::LETTER) || record.hash(EVENT_TS) == *time);
            Event { source: Some(row), sinks }
        })
        .collect();
    let others = of(&|record| !record.has(flag::LETTER) && !times.contains(&record.hash(EVENT_TS)));
    events.push(Event { source: None, sinks: others });
    events
}

fn take<'a>(rest: &mut &'a [Record], id: i64) -> &'a [Record] {
    let count = rest.iter().take_while(|record| record.id == id).count();
    let (taken, left) = rest.split_at(count);
    *rest = left;
    taken
}

impl Event<'_> {
    /// Keeps what sums of events need to know of this one.
    fn amended(&self, context: &mut Context) {
        let Some(first) = self.source.or_else(|| self.all().find(|record| !record.has(flag::LETTER))) else {
            return;
        };
        let touched = context.marks.touched.contains(first.id);
        context.amended.touched += u64::from(touched);
        if touched || first.has(flag::RENAMED) || self.source.is_none() && context.is_gone(first) {
            context.amended.any = true;
            let contents = self.source.into_iter().chain(self.all()).map(Record::content);
            context.amended.contents.extend(contents);
        }
    }

    fn compare(&self, context: &mut Context, report: &mut Report) {
        if let Some(source) = self.source {
            let line = report.line(source.half_hour);
            match source.has(flag::BEFORE) && source.brought == 0 {
                true => line.before_walcast += 1,
                false => line.source += 1,
            }
        }
        for (sink, records) in &self.sinks {
            let events: Vec<&Record> = records.iter().filter(|record| !record.has(flag::LETTER)).collect();
            match (self.source, events.as_slice()) {
                (Some(source), []) => self.absent(source, sink, records, context, report),
                (_, []) => {}
                (source, events) => self.present(source, sink, events, context, report),
            }
        }
        self.compare_sinks(context, report);
    }

    /// A sink has no event where the source has a row.
    fn absent(
        &self,
        source: &Record,
        sink: &'static str,
        letters: &[Record],
        context: &Context,
        report: &mut Report,
    ) {
        let counters = report.counters(sink, Some(source.half_hour));
        let letter_elsewhere = self.all().any(|record| record.has(flag::LETTER_FOR_ALL));
        let refused = source.has(flag::REFUSED) && !context.tells_letters;
        let excused = match context.is_replayed(sink, source) {
            true => letters.iter().any(|letter| letter.has(flag::STORED)),
            false => !letters.is_empty() || letter_elsewhere || refused,
        };
        let is_due = context.brought.holds(sink, source.brought, source.has(flag::BEFORE));
        if !is_due {
        } else if source.has(flag::RENAMED) || context.by_time && source.has(flag::TOUCHED) {
            counters.changed_at_source += 1;
        } else if excused {
            counters.dead_letters += 1;
        } else if self.expired(sink, source, context) {
            counters.expired += 1;
        } else {
            let what = || (format!("event {}", source.id), Vec::new());
            report.differs(sink, Some(source.half_hour), Difference::Missing, what);
        }
    }

    /// Whether the sink's retention has deleted the event. Where no other sink tells the event's place, it is taken
    /// for deleted when its partition has lost anything.
    fn expired(&self, sink: &str, source: &Record, context: &Context) -> bool {
        let Some(begins) = context.begins.get(sink) else { return false };
        let begin = match source.partition {
            ANY_PARTITION => begins.values().max(),
            partition => begins.get(&partition),
        };
        let position = self.all().find(|record| !record.has(flag::LETTER)).map(|record| record.position);
        begin.is_some_and(|begin| position.is_none_or(|position| position < *begin))
    }

    /// A sink has the event.
    fn present(
        &self,
        source: Option<&Record>,
        sink: &'static str,
        events: &[&Record],
        context: &mut Context,
        report: &mut Report,
    ) {
        let Some(first) = events.first() else { return };
        let half_hour = Some(source.unwrap_or(first).half_hour);
        report.counters(sink, half_hour).held += 1;
        let what = || (format!("event {} at {}", first.id, first.position), Vec::new());
        let Some(source) = source else {
            if context.by_time && context.marks.touched.contains(first.id) {
                report.counters(sink, half_hour).changed_at_source += 1;
                return;
            }
            return match context.is_gone(first) {
                true => report.counters(sink, half_hour).gone_at_source += 1,
                false => report.differs(sink, half_hour, Difference::Unexpected, what),
            };
        };
        if source.has(flag::TOUCHED) || source.has(flag::RENAMED) {
            report.counters(sink, half_hour).changed_at_source += 1;
            return;
        }
        for _ in events.iter().skip(1) {
            report.differs(sink, half_hour, Difference::Doubled, what);
        }
        // how contents were before the stream began nobody knows, and sums go by how they were then
        if first.position < source.position && context.start.is_none_or(|start| source.position > start) {
            context.changed.insert(source.content());
        }
        for event in events {
            let fields = differences(source, event);
            let renamed = fields & context.renamed_labels(event);
            let fields = fields & !renamed;
            if renamed != 0 {
                report.counters(sink, half_hour).changed_at_source += 1;
                context.amended.any = true;
                context.amended.contents.insert(source.content());
            }
            if fields != 0 {
                let names = names(fields, &context.extras);
                let what = || (format!("event {} at {}", event.id, event.position), names);
                report.differs(sink, half_hour, Difference::Different, what);
                break;
            }
        }
    }

    /// What only the sinks know must be the same in all; where the source tells, it has been compared already.
    fn compare_sinks(&self, context: &Context, report: &mut Report) {
        let events = self.sinks.iter().filter_map(|(sink, records)| {
            Some((*sink, records.iter().find(|record| !record.has(flag::LETTER))?))
        });
        let mut events = events
            .filter(|(sink, event)| !context.brought.is_anew(sink, event.id, event.position.commit_lsn));
        let Some((one, first)) = events.next() else { return };
        // two sinks may have a row of before by two backfills
        if context.marks.was_before(first.id) == Some(true) {
            return;
        }
        for (other, record) in events {
            let told =
                self.source.map_or(0, |source| differences(source, first) | differences(source, record));
            let fields = first.differences(record, !told);
            if fields != 0 {
                let half_hour = Some(self.source.unwrap_or(first).half_hour);
                let names = names(fields, &context.extras);
                let what = || (format!("event {} at {}, from {one},", record.id, record.position), names);
                report.differs(other, half_hour, Difference::Different, what);
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = &Record> {
        self.sinks.iter().flat_map(|(_, records)| records.iter())
    }
}

/// The fields in which a sink's record is not what the source says. The content row's are compared where the event
/// came after the version that the source tells of.
fn differences(source: &Record, event: &Record) -> Fields {
    let after = event.position > source.position;
    source.differences(event, if after { ALL } else { !OF_CONTENT })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::schema::Value;
    use crate::lsn::Lsn;

    fn at(commit_lsn: u64) -> Position {
        Position { commit_lsn: Lsn(commit_lsn), ordinal: 0 }
    }

    fn record(id: i64, commit_lsn: u64) -> Record {
        let mut record = Record::new(id, at(commit_lsn), 0);
        record.tell("device", Value::Text("tv".into()));
        record
    }

    fn flagged(mut record: Record, flags: u8) -> Record {
        record.flags = flags;
        record
    }

    fn letter(id: i64, flags: u8) -> Record {
        flagged(Record::new(id, at(1), 0), flags)
    }

    /// Kafka's and BigQuery's counters.
    fn compared(
        source: &[Record],
        kafka: &[Record],
        bigquery: &[Record],
        mut context: Context,
    ) -> [super::super::report::Counters; 2] {
        let side = |sink, records: &[Record]| Side { sink, records: records.to_vec() };
        let sides = [side("kafka", kafka), side("bigquery", bigquery)];
        let mut report = Report::default();
        compare(source, &sides, &mut context, &mut report);
        let total = report.total();
        ["kafka", "bigquery"].map(|sink| total.sinks.get(sink).copied().unwrap_or_default())
    }

    #[test]
    fn each_event_is_there_once_or_told() {
        let source = [record(1, 0), record(2, 0), record(3, 0)];
        let kafka = [record(1, 10), record(2, 11), record(2, 11), record(4, 12)];
        let bigquery = [record(1, 10), record(2, 11), record(3, 13)];
        let [kafka, bigquery] = compared(&source, &kafka, &bigquery, Context::default());
        assert_eq!((kafka.held, kafka.missing, kafka.doubled, kafka.unexpected), (3, 1, 1, 1));
        assert_eq!((bigquery.held, bigquery.missing, bigquery.doubled, bigquery.unexpected), (3, 0, 0, 0));
    }

    #[test]
    fn rows_that_share_an_id_are_told_apart_by_their_times() {
        let timed = |commit_lsn, event_ts| {
            let mut record = record(1, commit_lsn);
            record.tell("event_ts", Value::Time(event_ts));
            record
        };
        let source = [timed(0, 1), timed(0, 2), timed(0, 3)];
        let kafka = [timed(10, 3), timed(11, 1), timed(12, 2)];
        let bigquery = [timed(10, 3), timed(11, 1), timed(12, 1), timed(13, 9)];
        let [kafka, bigquery] = compared(&source, &kafka, &bigquery, Context::default());
        assert_eq!((kafka.held, kafka.missing, kafka.doubled, kafka.unexpected), (3, 0, 0, 0));
        assert_eq!((bigquery.held, bigquery.missing, bigquery.doubled, bigquery.unexpected), (3, 1, 1, 1));
        let refused = [flagged(timed(0, 1), flag::REFUSED), timed(0, 2)];
        let letters = [letter(1, flag::LETTER), timed(9, 2)];
        let [kafka, _] =
            compared(&refused, &letters, &[], Context { tells_letters: true, ..Context::default() });
        assert_eq!((kafka.held, kafka.dead_letters, kafka.missing), (1, 1, 0));
    }

    #[test]
    fn a_letter_stands_for_its_own_sink_or_for_all() {
        let source = [record(1, 0), record(2, 0), flagged(record(3, 0), flag::REFUSED)];
        let kafka = [letter(1, flag::LETTER | flag::LETTER_FOR_ALL), letter(2, flag::LETTER)];
        let context = || Context { tells_letters: true, ..Context::default() };
        let [kafka, bigquery] = compared(&source, &kafka, &[], context());
        assert_eq!((kafka.dead_letters, kafka.missing), (2, 1), "a refused row must be in Kafka's topic");
        assert_eq!((bigquery.dead_letters, bigquery.missing), (1, 2));
        let [kafka, _] = compared(&source[2..], &[], &[], Context::default());
        assert_eq!((kafka.dead_letters, kafka.missing), (1, 0));
    }

    #[test]
    fn a_letter_that_was_sent_again_excuses_nothing() {
        let source = [record(1, 0), flagged(record(2, 0), flag::REFUSED), record(3, 0)];
        let for_all = flag::LETTER | flag::LETTER_FOR_ALL;
        let kafka = [letter(1, flag::LETTER), letter(2, for_all), letter(3, for_all)];
        let replayed = [("kafka", 1), ("all", 2), ("all", 3)]
            .map(|(whose, id)| ((whose.to_owned(), id), ReplayedLetter { first: at(1), arrived: true }));
        let context = || Context {
            replayed: HashMap::from(replayed.clone()),
            tells_letters: true,
            ..Context::default()
        };
        let refused_again = [letter(3, flag::LETTER | flag::STORED)];
        let [kafka, bigquery] = compared(&source, &kafka, &refused_again, context());
        assert_eq!((kafka.dead_letters, kafka.missing), (0, 3));
        assert_eq!((bigquery.dead_letters, bigquery.missing), (1, 2));
    }

    #[test]
    fn what_retention_has_deleted_is_told_apart_by_its_place() {
        let mut source: Vec<Record> = (1..=3).map(|id| record(id, 0)).collect();
        source.iter_mut().for_each(|record| record.partition = record.id as u16 % 2);
        let bigquery = [record(1, 10), record(2, 11), record(3, 12)];
        let context = || Context {
            begins: BTreeMap::from([("kafka", BTreeMap::from([(1, at(12))]))]),
            ..Context::default()
        };
        let [kafka, _] = compared(&source, &[], &bigquery, context());
        assert_eq!((kafka.expired, kafka.missing), (1, 2), "only what lay before the first record left");
        let [kafka, _] = compared(&source, &[], &[], context());
        assert_eq!((kafka.expired, kafka.missing), (2, 1), "where nobody tells the place");
    }

    #[test]
    fn content_is_compared_where_the_event_came_after_the_version() {
        let titled = |id, commit_lsn, title: &str| {
            let mut record = record(id, commit_lsn);
            record.tell("title", Value::Text(title.into()));
            record
        };
        let source = [titled(1, 20, "new"), titled(2, 20, "new")];
        let kafka = [titled(1, 10, "old"), titled(2, 30, "old")];
        let [kafka_counters, _] = compared(&source, &kafka, &kafka, Context::default());
        assert_eq!(kafka_counters.different, 1);
        let bigquery = [titled(1, 10, "other"), titled(2, 30, "new")];
        let [_, bigquery] = compared(&source, &kafka, &bigquery, Context::default());
        assert_eq!(bigquery.different, 1, "between the sinks what the source does not tell");
    }

    #[test]
    fn what_left_the_source_explains_what_sums_have_besides_and_nothing_that_they_lack() {
        let some = vec![Partition { from: 0, to: 1, first_id: 1 }];
        let partitions = || Context { partitions: Some(some.clone()), ..Context::default() };
        let emptied = EventMarks { emptied_at: Some(Lsn(1)), ..EventMarks::default() };
        for context in [partitions(), Context { marks: emptied, ..Context::default() }] {
            for (state, excused) in [
                (KeyState::More, true),
                (KeyState::Unexpected, true),
                (KeyState::Missing, false),
                (KeyState::Different, false),
            ] {
                assert_eq!(
                    [None, Some(7)].map(|content| context.excuses(content, state)),
                    [excused; 2],
                    "{state:?}"
                );
            }
        }
        let told = Context { tells_places: true, ..partitions() };
        assert!(!told.excuses(Some(7), KeyState::More), "a sink would have told of it");
        let changed = Amended { contents: HashSet::from([7]), any: true, touched: 1 };
        let changed = Context { amended: changed, ..Context::default() };
        let excused = [Some(7), Some(8), None].map(|content| changed.excuses(content, KeyState::Different));
        assert_eq!(excused, [true, false, true]);
    }
}
