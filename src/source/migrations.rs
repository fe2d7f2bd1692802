//! What makes and changes walcast's schema, in order. A migration that has been released is never edited.

use std::borrow::Cow;

use crate::event::place::{Place, Places};
use crate::source::check::Making;

/// Number, name and statements of each.
pub static MIGRATIONS: &[(i32, &str, &str)] = &[
    (1, "source", include_str!("../../migrations/0001_source.sql")),
    (2, "state", include_str!("../../migrations/0002_state.sql")),
    (3, "role", include_str!("../../migrations/0003_role.sql")),
    (4, "published_entries", include_str!("../../migrations/0004_published_entries.sql")),
    (5, "content_version_by_commit", include_str!("../../migrations/0005_content_version_by_commit.sql")),
    (6, "dead_letter_store", include_str!("../../migrations/0006_dead_letter_store.sql")),
    (7, "words", include_str!("../../migrations/0007_words.sql")),
    (8, "event_marks", include_str!("../../migrations/0008_event_marks.sql")),
    (9, "extra_columns", include_str!("../../migrations/0009_extra_columns.sql")),
    (10, "dead_letter_replay", include_str!("../../migrations/0010_dead_letter_replay.sql")),
    (11, "lanes", include_str!("../../migrations/0011_lanes.sql")),
    (12, "lanes given up", include_str!("../../migrations/0012_lanes_given_up.sql")),
    (13, "dead_letter_retention", include_str!("../../migrations/0013_dead_letter_retention.sql")),
    (14, "backfill", include_str!("../../migrations/0014_backfill.sql")),
    (15, "rebuild", include_str!("../../migrations/0015_rebuild.sql")),
    (16, "recount", include_str!("../../migrations/0016_recount.sql")),
    (17, "missing", include_str!("../../migrations/0017_missing.sql")),
    (18, "drained", include_str!("../../migrations/0018_drained.sql")),
];

const SOURCE: &str = include_str!("../../migrations/0001_source.sql");
const OUR_SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS walcast;";
const OUR_TABLES: &str = "GRANT SELECT ON content, engagement_events TO walcast;";

/// A migration as it is to be done here. The schema is there by then. Source tables that are there already are not made,
/// and may have other names; who may read them, [`super::role`] says.
pub fn for_tables<'a>(statements: &'a str, places: &Places, making: &Making) -> Cow<'a, str> {
    let usual = places.all().iter().all(|place| place.name == place.table.name);
    if statements == SOURCE {
        return if making.has_tables() || !usual { "".into() } else { SOURCE.into() };
    }
    statements.replace(OUR_SCHEMA, "").replace(OUR_TABLES, "").into()
}

/// The statement that makes a source table in its place, for whoever may.
pub fn making_table(place: &Place, places: &Places) -> String {
    let begins = format!("CREATE TABLE IF NOT EXISTS {} ", place.table.name);
    let from = SOURCE.find(&begins).and_then(|at| SOURCE.get(at + begins.len()..)).unwrap_or_default();
    let columns = from.split(';').next().unwrap_or_default();
    let refers = format!("REFERENCES {} ", places.content.sql());
    format!("CREATE TABLE {} {};", place.sql(), columns.replace("REFERENCES content ", &refers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(places: &Places, making: &Making) -> String {
        MIGRATIONS.iter().map(|(_, _, statements)| for_tables(statements, places, making)).collect()
    }

    #[test]
    fn what_is_there_already_is_not_made() {
        let mut places = Places::usual("public");
        let nothing = Making::of_owner(&[]);
        assert!(all(&places, &nothing).contains("CREATE TABLE IF NOT EXISTS engagement_events"));
        assert!(!all(&places, &nothing).contains(OUR_TABLES));
        assert!(!all(&places, &nothing).contains("CREATE SCHEMA"));
        let both = Making::of_owner(&["content", "engagement_events"]);
        assert!(!all(&places, &both).contains("CREATE TABLE IF NOT EXISTS"));
        places.events.name = "plays".into();
        assert!(!all(&places, &nothing).contains("CREATE TABLE IF NOT EXISTS"));
    }
}
