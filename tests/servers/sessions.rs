//! What a role or a database has set for its sessions is nothing to walcast.

use walcast::source::sql;

use crate::support::world::World;
use crate::support::{fresh_database, fresh_name, postgres, run, services, wait_until};

/// Each setting at its nastiest.
const NASTY: [(&str, &str); 24] = [
    ("statement_timeout", "'30ms'"),
    ("lock_timeout", "'1ms'"),
    ("idle_in_transaction_session_timeout", "'30ms'"),
    ("idle_session_timeout", "'30ms'"),
    ("default_transaction_isolation", "'serializable'"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("synchronous_commit", "off"),
    ("row_security", "on"),
    ("role", "'pg_monitor'"),
    ("search_path", "'nowhere'"),
    ("default_tablespace", "'nowhere'"),
    ("temp_tablespaces", "'nowhere'"),
    ("client_encoding", "'LATIN1'"),
    ("client_min_messages", "'error'"),
    ("DateStyle", "'German, DMY'"),
    ("IntervalStyle", "'sql_standard'"),
    ("TimeZone", "'America/St_Johns'"),
    ("extra_float_digits", "'-15'"),
    ("bytea_output", "'escape'"),
    ("quote_all_identifiers", "on"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "on"),
    ("transform_null_equals", "on"),
];

/// A policy hides rows from the role in silence, unless the session asks for an error.
#[tokio::test]
async fn rows_that_a_policy_hides_are_refused_and_not_left_out() {
    let world = World::new(fresh_database(postgres()).await).await.with("PIPELINE_SINKS", "redis");
    let owner = sql::connect(&world.postgres).await.unwrap();
    let role = fresh_name("role");
    run(&owner, include_str!("../../migrations/0001_source.sql")).await;
    world.insert_events(5).await;
    let make = format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'; GRANT pg_monitor TO {role};
         GRANT CREATE ON DATABASE {} TO {role}; GRANT SELECT ON content, engagement_events TO {role};
         CREATE PUBLICATION {} FOR TABLE content, engagement_events;
         CREATE SCHEMA walcast AUTHORIZATION {role};
         CREATE TABLE walcast.migration (number INTEGER PRIMARY KEY, name TEXT NOT NULL,
           applied_at TIMESTAMPTZ NOT NULL DEFAULT now());
         INSERT INTO walcast.migration (number, name) VALUES (1, 'source'), (3, 'role');
         ALTER TABLE walcast.migration OWNER TO {role};
         ALTER TABLE content ENABLE ROW LEVEL SECURITY; ALTER TABLE engagement_events ENABLE ROW LEVEL SECURITY;
         CREATE POLICY one ON content USING (slug = 'slug-1');
         CREATE POLICY three ON engagement_events USING (id <= 3)",
        world.postgres.db, world.postgres.publication
    );
    run(&owner, &make).await;
    let hide = format!("ALTER ROLE {role} NOBYPASSRLS");
    let show = format!("ALTER ROLE {role} BYPASSRLS");
    let as_role = world.with("POSTGRES_USER", &role).with("POSTGRES_PASSWORD", "x");
    let refused = ["WC-204", "row-level security"];
    as_role.walcast(["check"]).await.expect(2, &["row-level security of content", "hides rows", "BYPASSRLS"]);
    as_role.walcast(["init"]).await.expect(2, &refused);
    assert!(!world.has_slot().await, "a slot would keep WAL for nobody");
    run(&owner, &show).await;
    as_role.walcast(["init"]).await.expect(0, &[]);
    run(&owner, &hide).await;
    as_role.walcast(["rebuild", "redis"]).await.expect(2, &refused);
    as_role.walcast(["verify"]).await.expect(2, &refused);
    // nobody was shut out, and nothing is half made
    run(&owner, &show).await;
    let running = as_role.start().await;
    world.insert_events(10).await;
    wait_until("Redis has all", async || world.redis_plays().await == 10).await;
    as_role.verify().await;
    as_role.walcast(["check"]).await.expect(0, &["0 to mend"]);
    running.stop().await;
    run(&owner, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

async fn streams_verifies_and_rebuilds(version: &str, newer: &[(&str, &str)]) {
    let server = services::postgres(version, &[]);
    let world = World::new(fresh_database(server).await).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let database = &world.postgres.db;
    for (name, value) in NASTY.iter().chain(newer) {
        run(&client, &format!("ALTER DATABASE {database} SET {name} = {value}")).await;
    }
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    // long enough for the shortest of the deadlines to pass, in the stream and where all is read again
    world.insert_events(20_000).await;
    run(&client, "UPDATE public.content SET title = title || ' ñ', publish_ts = '2026-01-02 03:04:05+00'")
        .await;
    world.insert_events(10).await;
    world.verify().await;
    world.walcast(["check"]).await.expect(0, &[" 0 to mend"]);
    // by the one that runs, and by the command itself
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 20,010 events, counted anew"]);
    world.insert_events(10).await;
    world.verify().await;
    running.stop().await;
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 20020 events, all up to"]);
    let running = world.start().await;
    world.insert_events(10).await;
    world.verify().await;
    running.stop().await;
}

#[tokio::test]
async fn no_setting_of_a_database_ends_a_session_or_changes_what_is_read_from_14() {
    streams_verifies_and_rebuilds("14", &[]).await;
}

#[tokio::test]
async fn no_setting_of_a_database_ends_a_session_or_changes_what_is_read_from_18() {
    streams_verifies_and_rebuilds("18", &[("transaction_timeout", "'30ms'")]).await;
}
