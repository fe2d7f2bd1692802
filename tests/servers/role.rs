//! The role `walcast`: made anew at each `walcast init`, with what `walcast run` needs and no more; and what is left to do
//! where whoever runs `init` may not make it.

use tokio::process::Command;
use tokio_postgres::Client;
use walcast::source::sql;

use crate::support::world::World;
use crate::support::{fresh_database, fresh_name, run, services, wait_until};

/// A server of its own: roles belong to all databases of one.
const SERVER: &str = "17:role";

async fn may(client: &Client, right: &str) -> bool {
    client.query_one(&format!("SELECT {right}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_is_made_as_far_as_may_be_and_what_is_left_is_told() {
    let world = World::new(fresh_database(services::postgres(SERVER, &[])).await).await;
    let owner = sql::connect(&world.postgres).await.unwrap();
    run(&owner, "DROP ROLE IF EXISTS walcast").await;
    let keeper = fresh_name("keeper");
    let db = &world.postgres.db;
    run(
        &owner,
        &format!(
            "CREATE ROLE {keeper} LOGIN REPLICATION PASSWORD 'x'; ALTER DATABASE {db} OWNER TO {keeper};
             CREATE SCHEMA shop AUTHORIZATION {keeper}"
        ),
    )
    .await;
    let world = world.with("POSTGRES_SCHEMA", "shop").with("PIPELINE_SINKS", "redis");
    let as_keeper = world.with("POSTGRES_USER", &keeper).with("POSTGRES_PASSWORD", "x");
    // who may not make roles is told what is left to do, and can run walcast all the same
    as_keeper.walcast(["init"]).await.expect(0, &["CREATE ROLE walcast NOLOGIN REPLICATION;"]);
    run(&owner, "CREATE ROLE walcast NOLOGIN REPLICATION").await;
    as_keeper.walcast(["init"]).await.expect(0, &["ALTER ROLE walcast LOGIN PASSWORD"]);
    run(&owner, "ALTER ROLE walcast LOGIN PASSWORD 'small'").await;
    as_keeper.walcast(["init"]).await.expect(0, &[]);

    let small = world.with("POSTGRES_USER", "walcast").with("POSTGRES_PASSWORD", "small");
    small.walcast(["check"]).await.expect(0, &[]);
    let running = small.start().await;
    run(
        &owner,
        "INSERT INTO shop.content VALUES ('00000000-0000-0000-0000-00000000000a', 's', 't', 'podcast', 100, now());
         INSERT INTO shop.engagement_events (content_id, event_type, event_ts, duration_ms)
         VALUES ('00000000-0000-0000-0000-00000000000a', 'play', now(), 1000)",
    )
    .await;
    wait_until("Redis counts it", async || world.redis_plays().await == 1).await;
    small.walcast(["verify"]).await.expect(0, &[]);
    running.stop().await;
    small.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 1 events"]);

    let events = "'shop.engagement_events'";
    for (right, wanted) in [
        (format!("has_table_privilege('walcast', {events}, 'SELECT')"), true),
        (format!("has_table_privilege('walcast', {events}, 'INSERT')"), false),
        ("has_schema_privilege('walcast', 'shop', 'CREATE')".to_owned(), false),
        ("has_schema_privilege('walcast', 'walcast', 'CREATE')".to_owned(), false),
        ("has_table_privilege('walcast', 'walcast.migration', 'DELETE')".to_owned(), false),
    ] {
        assert_eq!(may(&owner, &right).await, wanted, "{right}");
    }
    // what is dropped is not its to read any more, and a table of another's is told
    let dropping = as_keeper.with("PRIVACY_DEVICE", "drop");
    dropping.walcast(["init"]).await.expect(0, &[]);
    let column = |name: &str| format!("has_column_privilege('walcast', {events}, '{name}', 'SELECT')");
    assert!(!may(&owner, &column("device")).await && may(&owner, &column("user_id")).await);
    let discreet = small.with("PRIVACY_DEVICE", "drop");
    let running = discreet.start().await;
    discreet.walcast(["verify"]).await.expect(0, &[]);
    running.stop().await;
    run(&owner, "ALTER TABLE shop.content OWNER TO postgres; REVOKE SELECT ON shop.content FROM walcast")
        .await;
    run(&owner, &format!("GRANT SELECT ON shop.content TO {keeper}")).await;
    let grant = r#"GRANT SELECT ON "shop"."content" TO walcast;"#;
    dropping.walcast(["init"]).await.expect(0, &["by who may", r#"\"content\" TO walcast;"#]);
    run(&owner, grant).await;
    let again = dropping.walcast(["init"]).await;
    again.expect(0, &[]);
    assert!(!again.output.contains("by who may"), "{}", again.output);
    narrowed_by_the_documented_lines(&small, &owner).await;
    by_membership(&as_keeper, &small, &owner).await;
    drop(owner);
    drop(world);
    services::command(&["postgres", SERVER, "wipe"]);
}

/// With the lines of the documentation before those that initdb writes, walcast comes in, and a copy of the cluster is refused.
async fn narrowed_by_the_documented_lines(small: &World, owner: &Client) {
    let copies = async || {
        let postgres = &small.postgres;
        let target = format!(
            "host={} port={} user=walcast password=small dbname=replication replication=true",
            postgres.host, postgres.port
        );
        Command::new("psql")
            .args([&target, "-XtAc", "IDENTIFY_SYSTEM"])
            .output()
            .await
            .unwrap()
            .status
            .success()
    };
    assert!(copies().await, "initdb's own lines let it");
    let told = include_str!("../../docs/operate/deploy.md");
    let lines = told.split_once("# TYPE").and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    let lines = format!("# TYPE{lines}")
        .replace("10.0.0.7/32", "127.0.0.1/32")
        .replace("engagement  ", &small.postgres.db);
    let hba: String = owner.query_one("SHOW hba_file", &[]).await.unwrap().get(0);
    let rules = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("{lines}\n{rules}")).unwrap();
    run(owner, "SELECT pg_reload_conf()").await;
    wait_until("a copy is refused", async || !copies().await).await;
    let errors = "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL";
    assert_eq!(owner.query_one(errors, &[]).await.unwrap().get::<_, i64>(0), 0);
    let running = small.start().await;
    running.stop().await;
    small.with("POSTGRES_DB", "postgres").walcast(["check"]).await.expect(2, &["pg_hba"]);
}

/// As on Amazon RDS and Aurora, where nobody may give a role the right to replicate.
async fn by_membership(as_keeper: &World, small: &World, owner: &Client) {
    run(owner, "DROP OWNED BY walcast; DROP ROLE walcast; CREATE ROLE rds_replication").await;
    let made = "CREATE ROLE walcast NOLOGIN; GRANT rds_replication TO walcast;";
    as_keeper.walcast(["init"]).await.expect(0, &[made]);
    run(owner, made).await;
    run(owner, "ALTER ROLE walcast LOGIN PASSWORD 'small'; GRANT SELECT ON shop.content TO walcast").await;
    let again = as_keeper.walcast(["init"]).await;
    again.expect(0, &[]);
    assert!(!again.output.contains("rds_replication"), "{}", again.output);
    run(owner, "REVOKE rds_replication FROM walcast").await;
    let told = small.walcast(["check"]).await;
    told.expect(2, &["may not replicate", r#"GRANT rds_replication TO "walcast";"#]);
    assert!(!told.output.contains("ALTER ROLE"), "{}", told.output);
    as_keeper.walcast(["init"]).await.expect(0, &["GRANT rds_replication TO"]);
}
