//! Where the two source tables are, and what their columns are called there.

use std::collections::BTreeMap;

use super::extra::Wanted;
use super::privacy::{Privacy, Rule};
use super::schema::{CONTENT, ENGAGEMENT_EVENTS, SourceColumn, SourceTable};
use super::zone::Zone;
use crate::error::{Code, Error, Result};
use crate::pgoutput::Column;
use crate::quote::identifier;

/// One of the source tables as a database has it.
#[derive(Debug, Clone)]
pub struct Place {
    /// Which of the two it is.
    pub table: &'static SourceTable,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The condition, as SQL, that the rows published meet; `None` for all rows.
    pub row_filter: Option<String>,
    /// Which of the columns that walcast does not know are passed on.
    pub extra: Wanted,
    /// Whose clock its local times show; `None` where there may be none.
    pub zone: Option<Zone>,
    /// What of people goes out.
    pub privacy: Privacy,
    /// What each column of [`SourceTable::columns`] is called.
    columns: Vec<Called>,
}

/// What a column is called.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Called {
    /// Its name, and those that it had before.
    names: Vec<String>,
    /// A table without it will do: its values are null then.
    dispensable: bool,
    /// It is not read, whether it is there or not.
    dropped: bool,
}

impl Called {
    fn is(&self, name: &str) -> bool {
        self.names.iter().any(|one| one == name)
    }
}

/// Both tables.
#[derive(Debug, Clone)]
pub struct Places {
    /// The table of contents.
    pub content: Place,
    /// The table of events.
    pub events: Place,
}

/// What a table's columns are called, by the names that walcast has for them: one name, or several with commas between
/// them, of which each row has one; an empty one where the row may have none.
pub type ColumnNames = BTreeMap<String, String>;

impl Place {
    /// `name` is `table` or `schema.table`, in `schema` where it names none.
    pub fn new(table: &'static SourceTable, schema: &str, name: &str, names: &ColumnNames) -> Place {
        let (schema, name) = name.split_once('.').unwrap_or((schema, name));
        let called = |column: &SourceColumn| {
            let called = names.get(column.name).map_or(column.name, String::as_str);
            let (none, names): (Vec<_>, Vec<_>) =
                called.split(',').map(|name| name.trim().to_owned()).partition(String::is_empty);
            Called { names, dispensable: !none.is_empty(), dropped: false }
        };
        let columns = table.columns.iter().map(called).collect();
        Place {
            table,
            schema: schema.to_owned(),
            name: name.to_owned(),
            row_filter: None,
            extra: Wanted::default(),
            zone: None,
            privacy: Privacy::default(),
            columns,
        }
    }

    /// The same with these rules for what of people goes out.
    pub fn with_privacy(mut self, privacy: &Privacy) -> Place {
        for (column, called) in self.table.columns.iter().zip(&mut self.columns) {
            called.dropped = privacy.rule(column.name) == Rule::Drop;
        }
        Place { privacy: privacy.clone(), ..self }
    }

    /// The same with these columns passed on.
    pub fn with_extra(self, names: &[String]) -> Place {
        Place { extra: Wanted::new(names), ..self }
    }

    /// Of a table's columns those that walcast does not know, each with what comes with it.
    pub fn unknown<'a, C>(
        &self,
        columns: impl Iterator<Item = (&'a Column, C)>,
    ) -> impl Iterator<Item = (&'a Column, C)> {
        columns.filter(|(column, _)| !self.knows(&column.name))
    }

    /// Refuses names for columns that walcast does not know, and a column left out that it cannot do without. `setting`
    /// is where the names come from.
    pub fn check(table: &SourceTable, names: &ColumnNames, setting: &str) -> Result<()> {
        for (ours, called) in names {
            let Some(column) = table.columns.iter().find(|column| column.name == ours) else {
                let known: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
                let message = format!("{setting}: walcast has no column {ours} in {}", table.name);
                return Err(Error::new(Code::Configuration, message)
                    .hint(format!("on the left stands one of {}", known.join(", "))));
            };
            if called.split(',').any(|name| name.trim().is_empty()) && column.required {
                let message = format!("{setting}: an event cannot do without {ours}");
                return Err(
                    Error::new(Code::Configuration, message).hint("name the table's column that holds it")
                );
            }
        }
        Ok(())
    }

    /// As SQL.
    pub fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// The variable of the environment that says what its columns are called.
    pub fn names_variable(&self) -> &'static str {
        if self.table.name == CONTENT.name { "POSTGRES_CONTENT_COLUMNS" } else { "POSTGRES_EVENTS_COLUMNS" }
    }

    /// Whether it is called so.
    pub fn is(&self, schema: &str, name: &str) -> bool {
        self.schema == schema && self.name == name
    }

    /// The columns, in the order of the table's list, with what each is called; `None` for one that is not read.
    pub fn columns(&self) -> impl Iterator<Item = (&'static SourceColumn, Option<&str>)> {
        let read = |called: &Called| !called.dropped;
        let called = self
            .columns
            .iter()
            .map(move |called| called.names.first().filter(|_| read(called)).map(String::as_str));
        self.table.columns.iter().zip(called)
    }

    /// The columns that are read, with what each is called.
    pub fn present(&self) -> impl Iterator<Item = (&'static SourceColumn, &str)> {
        self.columns().filter_map(|(column, called)| Some((column, called?)))
    }

    /// The table's columns by their place in its list: which of those that are read one called so is.
    pub fn position(&self, called: &str) -> Option<usize> {
        self.columns.iter().position(|column| !column.dropped && column.is(called))
    }

    /// Whether one called so is a column of walcast's, read or not.
    pub fn knows(&self, called: &str) -> bool {
        self.columns.iter().any(|column| column.is(called))
    }

    /// Whether one called so is read, as ours or to be passed on.
    pub fn reads(&self, called: &str) -> bool {
        self.position(called).is_some() || self.extra.asks_for(called)
    }

    /// Whether one called so is ours and is not read.
    pub fn drops(&self, called: &str) -> bool {
        self.knows(called) && self.position(called).is_none()
    }

    /// What the column with this name of ours is called, read or not; ours where it is not there.
    pub fn called<'a>(&'a self, ours: &'a str) -> &'a str {
        let mut columns = self.table.columns.iter().zip(&self.columns);
        let column = columns.find(|(column, _)| column.name == ours);
        column.and_then(|(_, called)| called.names.first()).map_or(ours, String::as_str)
    }

    /// The columns that a table with such columns lacks, with what each should be called.
    pub fn missing(&self, has: impl Fn(&str) -> bool) -> Vec<(&'static SourceColumn, &str)> {
        let columns = self.table.columns.iter().zip(&self.columns);
        let missing = columns.filter(|(_, called)| {
            let dispensable = called.dispensable || called.dropped;
            !dispensable && !called.names.is_empty() && !called.names.iter().any(|name| has(name))
        });
        missing.filter_map(|(column, called)| Some((column, called.names.first()?.as_str()))).collect()
    }

    /// The table as it is now: of each column's names the one that it has.
    pub fn now(&self, has: impl Fn(&str) -> bool) -> Place {
        let mut place = self.clone();
        for called in &mut place.columns {
            match called.names.iter().find(|name| has(name)).cloned() {
                Some(name) => called.names = vec![name],
                None if called.dispensable => called.names.clear(),
                None => {}
            }
        }
        place
    }

    /// Only these columns are published, and only rows that meet this condition.
    pub fn published(&self, columns: Option<&[String]>, row_filter: Option<&str>) -> Place {
        let mut place = self.clone();
        for (column, called) in self.table.columns.iter().zip(&mut place.columns) {
            let left_out =
                columns.is_some_and(|columns| !called.names.iter().any(|name| columns.contains(name)));
            // of one that is not read anyway it must stay known that it is ours
            if left_out && !column.required && !called.dropped {
                called.names.clear();
            }
        }
        place.row_filter = row_filter.map(str::to_owned);
        place.extra = place.extra.published(columns);
        place
    }
}

impl Places {
    /// Both, content first.
    pub fn all(&self) -> [&Place; 2] {
        [&self.content, &self.events]
    }

    /// The tables as walcast makes them, in this schema.
    pub fn usual(schema: &str) -> Places {
        let place = |table: &'static SourceTable| Place::new(table, schema, table.name, &ColumnNames::new());
        Places { content: place(&CONTENT), events: place(&ENGAGEMENT_EVENTS) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pairs: &[(&str, &str)]) -> ColumnNames {
        pairs.iter().map(|(ours, called)| ((*ours).to_owned(), (*called).to_owned())).collect()
    }

    #[test]
    fn a_table_has_the_names_that_it_is_given() {
        let names = names(&[("id", "event_no"), ("device", "")]);
        let place = Place::new(&ENGAGEMENT_EVENTS, "public", "track.\"plays\"", &names);
        assert_eq!(place.sql(), r#""track"."""plays""""#);
        assert_eq!((place.called("id"), place.called("event_ts")), ("event_no", "event_ts"));
        assert_eq!(
            (place.position("event_no"), place.position("id"), place.position("device")),
            (Some(0), None, None)
        );
        let published = place.published(Some(&["event_no".to_owned()]), Some("a"));
        let missing = |place: &Place| {
            place
                .missing(|name| name == "event_no")
                .into_iter()
                .map(|(column, _)| column.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(missing(&published), ["event_ts"]);
        assert_eq!(
            missing(&place),
            ["content_id", "user_id", "event_type", "event_ts", "duration_ms", "raw_payload"]
        );
        assert_eq!(Places::usual("s").events.sql(), r#""s"."engagement_events""#);
    }

    #[test]
    fn a_column_may_have_had_another_name() {
        let names = names(&[("duration_ms", "watched_ms, duration_ms"), ("device", "device,")]);
        let place = Place::new(&ENGAGEMENT_EVENTS, "public", "plays", &names);
        assert_eq!((place.position("watched_ms"), place.position("duration_ms")), (Some(5), Some(5)));
        let now = |there: &[&str]| {
            let place = place.now(|name| there.contains(&name));
            let called = |ours| {
                place
                    .columns()
                    .find(|(column, _)| column.name == ours)
                    .and_then(|(_, called)| called.map(str::to_owned))
            };
            (called("duration_ms"), called("device"))
        };
        assert_eq!(now(&["duration_ms", "device"]), (Some("duration_ms".into()), Some("device".into())));
        assert_eq!(now(&["watched_ms"]), (Some("watched_ms".into()), None));
    }

    #[test]
    fn names_that_mean_nothing_are_refused() {
        let check = |pairs: &[(&str, &str)]| {
            Place::check(&ENGAGEMENT_EVENTS, &names(pairs), "postgres.events_columns")
        };
        assert!(check(&[("duration_ms", "watched_ms"), ("user_id", "")]).is_ok());
        for (pairs, word) in
            [([("watched_ms", "duration_ms")], "watched_ms"), ([("event_ts", "")], "event_ts")]
        {
            let error = check(&pairs).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
