//! What makes and changes walcast's schema, in order. A migration that has been released is never edited.

use std::borrow::Cow;

use crate::event::place::Places;

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
];

const SOURCE: &str = include_str!("../../migrations/0001_source.sql");
const OUR_TABLES: &str = "GRANT SELECT ON content, engagement_events TO walcast";

/// A migration where the source tables may have other names: such tables are there already, and none is made.
pub fn for_places<'a>(statements: &'a str, places: &Places) -> Cow<'a, str> {
    let usual = |place: &&crate::event::place::Place| place.name == place.table.name;
    if places.all().iter().all(usual) {
        return statements.into();
    }
    match statements {
        SOURCE => "".into(),
        _ => {
            let tables = places.all().map(|place| place.sql()).join(", ");
            statements.replace(OUR_TABLES, &format!("GRANT SELECT ON {tables} TO walcast")).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_may_read_the_tables_whatever_their_names() {
        let mut places = Places::usual("public");
        let grants = |places: &Places| {
            let all: Vec<_> =
                MIGRATIONS.iter().map(|(_, _, statements)| for_places(statements, places)).collect();
            all.concat().matches("GRANT SELECT ON ").map(str::to_owned).count()
        };
        assert_eq!(grants(&places), 1);
        places.events.name = "plays".into();
        let all: String =
            MIGRATIONS.iter().map(|(_, _, statements)| for_places(statements, &places)).collect();
        assert!(all.contains(r#"GRANT SELECT ON "public"."content", "public"."plays" TO walcast"#), "{all}");
        assert!(!all.contains("CREATE TABLE IF NOT EXISTS"), "{all}");
    }
}
