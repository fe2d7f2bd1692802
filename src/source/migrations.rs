//! What makes and changes walcast's schema, in order. A migration that has been released is never edited.

/// Number, name and statements of each.
pub static MIGRATIONS: &[(i32, &str, &str)] = &[
    (1, "source", include_str!("../../migrations/0001_source.sql")),
    (2, "state", include_str!("../../migrations/0002_state.sql")),
    (3, "role", include_str!("../../migrations/0003_role.sql")),
    (4, "published_entries", include_str!("../../migrations/0004_published_entries.sql")),
    (5, "content_version_by_commit", include_str!("../../migrations/0005_content_version_by_commit.sql")),
    (6, "dead_letter_store", include_str!("../../migrations/0006_dead_letter_store.sql")),
    (7, "words", include_str!("../../migrations/0007_words.sql")),
];
