//! A role that may do nothing: `walcast check` names each right that it lacks, and pasting what it prints is all that
//! anybody needs to do.

use tokio_postgres::Client;
use walcast::source::migrations::MIGRATIONS;
use walcast::source::sql;

use crate::check::operator::{Line, check, paste};
use crate::support::world::World;
use crate::support::{fresh_database, fresh_name, postgres, run, wait_until};

/// A database with the two tables, a superuser in it, and a role of walcast's.
struct Shop {
    /// As the role.
    world: World,
    owner: Client,
    role: String,
    owning: String,
}

impl Shop {
    /// The tables lie in a schema that the role may not use, and belong to a role that it is a member of and whose rights
    /// it does not have. Its sessions are set to act as that one.
    async fn closed() -> Shop {
        let world = World::new(fresh_database(postgres()).await).await;
        let owner = sql::connect(&world.postgres).await.unwrap();
        let (role, owning) = (fresh_name("role"), fresh_name("owner"));
        let db = &world.postgres.db;
        let make = format!(
            "CREATE ROLE {owning}; CREATE ROLE {role} LOGIN NOINHERIT PASSWORD 'x' IN ROLE {owning};
             ALTER ROLE {role} SET role = {owning};
             REVOKE ALL ON DATABASE {db} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC;
             CREATE SCHEMA shop AUTHORIZATION {owning}; SET search_path TO shop;"
        );
        run(&owner, &(make + include_str!("../../migrations/0001_source.sql"))).await;
        run(
            &owner,
            &format!(
                "ALTER TABLE content OWNER TO {owning}; ALTER TABLE engagement_events OWNER TO {owning}"
            ),
        )
        .await;
        let world = world
            .with("POSTGRES_USER", &role)
            .with("POSTGRES_PASSWORD", "x")
            .with("POSTGRES_SCHEMA", "shop")
            .with("PIPELINE_SINKS", "redis");
        Shop { world, owner, role, owning }
    }

    /// Checks and pastes until nothing fails; what was pasted.
    async fn mend(&self) -> Vec<String> {
        let mut pasted = Vec::new();
        for _ in 0..12 {
            let (code, lines) = check(&self.world).await;
            let failed: Vec<&Line> = lines.iter().filter(|line| line.verdict == "fail").collect();
            if failed.is_empty() {
                assert_eq!(code, Some(0));
                return pasted;
            }
            let is_sql = |line: &&&Line| line.fix.as_ref().is_some_and(|fix| fix.ends_with(';'));
            let Some(line) = failed.iter().find(is_sql) else {
                assert!(failed.iter().all(|line| line.fix.as_deref() == Some("walcast init")), "{failed:#?}");
                self.world.walcast(["init"]).await.expect(0, &[]);
                pasted.push("walcast init".into());
                continue;
            };
            self.makes_nothing().await;
            let fix = line.fix.clone().unwrap();
            assert!(!pasted.contains(&fix), "it did not help: {line:?}");
            paste(&self.owner, &fix).await;
            let postgres = &self.world.postgres;
            let names = [(&self.role, "ROLE"), (&postgres.publication, "PUBLICATION"), (&postgres.db, "DB")];
            pasted.push(names.iter().fold(fix, |fix, (name, word)| fix.replace(*name, word)));
        }
        panic!("no end: {pasted:#?}")
    }

    /// What is not made whole is not begun.
    async fn makes_nothing(&self) {
        let made = "SELECT (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_class WHERE relkind = 'r'),
                      (SELECT count(*) FROM pg_namespace), (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())";
        let count = async || {
            let row = self.owner.query_one(made, &[]).await.unwrap();
            [0, 1, 2, 3].map(|at| row.get::<_, i64>(at))
        };
        let before = count().await;
        self.world.walcast(["init"]).await.expect(2, &["WC-"]);
        assert_eq!(count().await, before);
    }

    /// Streams, verifies and rebuilds as the role.
    async fn works(&self) {
        self.world.walcast(["init"]).await.expect(0, &[]);
        let running = self.world.start().await;
        run(
            &self.owner,
            "INSERT INTO content VALUES ('00000000-0000-0000-0000-000000000001', 'one', 'one', 'podcast', 100, now())
               ON CONFLICT DO NOTHING;
             INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
             SELECT '00000000-0000-0000-0000-000000000001', 'play', now(), 1000 FROM generate_series(1, 10)",
        )
        .await;
        wait_until("Redis has all", async || self.world.redis_plays().await >= 10).await;
        self.world.walcast(["verify"]).await.expect(0, &[]);
        running.stop().await;
        self.world.walcast(["rebuild", "redis"]).await.expect(0, &[]);
        let running = self.world.start().await;
        self.world.walcast(["verify"]).await.expect(0, &[]);
        running.stop().await;
        self.world.walcast(["check"]).await.expect(0, &[" 0 to mend"]);
    }

    async fn close(self) {
        let drop = format!("DROP OWNED BY {0}, {1} CASCADE; DROP ROLE {0}, {1}", self.role, self.owning);
        run(&self.owner, &drop).await;
    }
}

#[tokio::test]
async fn a_role_that_may_do_nothing_needs_only_what_check_prints() {
    let shop = Shop::closed().await;
    insta::assert_snapshot!(shop.mend().await.join("\n"), @r#"
    GRANT CONNECT ON DATABASE "DB" TO "ROLE";
    ALTER ROLE "ROLE" REPLICATION;
    CREATE SCHEMA walcast AUTHORIZATION "ROLE";
    CREATE PUBLICATION "PUBLICATION" FOR TABLE "shop"."content", "shop"."engagement_events" WITH (publish_via_partition_root = true);
    GRANT USAGE ON SCHEMA "shop" TO "ROLE";
    GRANT SELECT ON "shop"."content" TO "ROLE";
    GRANT SELECT ON "shop"."engagement_events" TO "ROLE";
    walcast init
    "#);
    shop.works().await;
    shop.close().await;
}

/// Somebody else has run `walcast init`, and later walcast is to run as a role of its own; the tables have columns that it
/// may read, and a row filter on one that it may not.
#[tokio::test]
async fn a_role_that_comes_later_needs_only_what_check_prints() {
    let shop = Shop::closed().await;
    let (role, publication) = (&shop.role, &shop.world.postgres.publication);
    run(&shop.owner, &format!(
        "ALTER TABLE engagement_events ADD COLUMN tenant int NOT NULL DEFAULT 7;
         CREATE PUBLICATION {publication} FOR TABLE content, engagement_events WHERE (tenant = 7);
         ALTER TABLE engagement_events REPLICA IDENTITY FULL;
         GRANT CONNECT ON DATABASE {} TO {role}; GRANT USAGE ON SCHEMA shop TO {role}; ALTER ROLE {role} REPLICATION;
         GRANT SELECT ON content TO {role};
         GRANT SELECT (id, content_id, user_id, event_type, event_ts, duration_ms) ON engagement_events TO {role}",
        shop.world.postgres.db
    ))
    .await;
    let other = shop
        .world
        .with("POSTGRES_USER", "postgres")
        .with("POSTGRES_PASSWORD", shop.world.postgres.password.expose());
    other.walcast(["init"]).await.expect(0, &[]);
    insta::assert_snapshot!(shop.mend().await.join("\n"), @r#"
    GRANT USAGE ON SCHEMA walcast TO "ROLE"; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walcast TO "ROLE";
    GRANT SELECT ("device", "raw_payload", xmin) ON "shop"."engagement_events" TO "ROLE";
    GRANT SELECT ON "shop"."engagement_events" TO "ROLE";
    "#);
    shop.works().await;
    shop.close().await;
}

/// A schema of that name which somebody made, with nothing in it.
#[tokio::test]
async fn an_empty_schema_of_somebody_else_is_made_usable() {
    let shop = Shop::closed().await;
    run(
        &shop.owner,
        &format!(
            "CREATE SCHEMA walcast; GRANT CONNECT ON DATABASE {0} TO {1}; GRANT USAGE ON SCHEMA shop TO {1};
             ALTER ROLE {1} REPLICATION; GRANT SELECT ON content, engagement_events TO {1};
             DROP TABLE engagement_events, content",
            shop.world.postgres.db, shop.role
        ),
    )
    .await;
    insta::assert_snapshot!(shop.mend().await.join("\n"), @r#"
    GRANT USAGE, CREATE ON SCHEMA walcast TO "ROLE";
    GRANT USAGE, CREATE ON SCHEMA "shop" TO "ROLE";
    GRANT CREATE ON DATABASE "DB" TO "ROLE";
    walcast init
    "#);
    shop.works().await;
    shop.close().await;
}

/// The tables of the schema walcast belong to who has run an older `walcast init`, and some migrations are to be made yet.
#[tokio::test]
async fn a_schema_of_an_older_walcast_and_another_role_can_be_changed() {
    let shop = Shop::closed().await;
    const LAST: i32 = 6;
    let before: String = MIGRATIONS
        .iter()
        .filter(|(number, name, _)| *number <= LAST && !matches!(*name, "source" | "role"))
        .map(|(_, _, statements)| *statements)
        .collect();
    let (role, publication) = (&shop.role, &shop.world.postgres.publication);
    let rest = format!(
        "CREATE TABLE walcast.migration (
           number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TIMESTAMPTZ NOT NULL DEFAULT now());
         INSERT INTO walcast.migration (number, name) SELECT i, 'older' FROM generate_series(1, {LAST}) AS i;
         CREATE PUBLICATION {publication} FOR TABLE content, engagement_events;
         GRANT CONNECT ON DATABASE {} TO {role}; GRANT USAGE ON SCHEMA shop, walcast TO {role};
         ALTER ROLE {role} REPLICATION; GRANT SELECT ON content, engagement_events TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walcast TO {role}",
        shop.world.postgres.db
    );
    run(&shop.owner, &(before + &rest)).await;
    insta::assert_snapshot!(shop.mend().await.join("\n"), @r#"
    GRANT USAGE, CREATE ON SCHEMA walcast TO "ROLE";
    ALTER TABLE walcast.content_version OWNER TO "ROLE"; ALTER TABLE walcast.dead_letter OWNER TO "ROLE"; ALTER TABLE walcast.epoch OWNER TO "ROLE"; ALTER TABLE walcast.migration OWNER TO "ROLE"; ALTER TABLE walcast.progress OWNER TO "ROLE"; ALTER TABLE walcast.sink OWNER TO "ROLE";
    walcast init
    "#);
    shop.works().await;
    shop.close().await;
}

/// A table that walcast made beside one of another role's could not be published.
#[tokio::test]
async fn one_table_of_somebody_else_gets_the_other_from_the_same() {
    let shop = Shop::closed().await;
    run(
        &shop.owner,
        &format!(
            "CREATE SCHEMA walcast AUTHORIZATION {1}; DROP TABLE engagement_events;
             GRANT CREATE, CONNECT ON DATABASE {0} TO {1}; GRANT USAGE, CREATE ON SCHEMA shop TO {1};
             ALTER ROLE {1} REPLICATION; GRANT SELECT ON content TO {1}",
            shop.world.postgres.db, shop.role
        ),
    )
    .await;
    insta::assert_snapshot!(shop.mend().await.join("\n"), @r#"
    CREATE TABLE "shop"."engagement_events" (
      id BIGSERIAL PRIMARY KEY,
      content_id UUID REFERENCES "shop"."content" (id),
      user_id UUID,
      event_type TEXT CHECK (event_type IN ('play', 'pause', 'finish', 'click')),
      event_ts TIMESTAMPTZ NOT NULL,
      duration_ms INTEGER,
      device TEXT,
      raw_payload JSONB
    );
    CREATE PUBLICATION "PUBLICATION" FOR TABLE "shop"."content", "shop"."engagement_events" WITH (publish_via_partition_root = true);
    GRANT SELECT ON "shop"."engagement_events" TO "ROLE";
    walcast init
    "#);
    shop.works().await;
    shop.close().await;
}
