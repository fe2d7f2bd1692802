//! Tables and publications.

use tokio_postgres::Client;
use walcast::finding::Verdict;
use walcast::ops::init;
use walcast::source::{PostgresConfig, check as source_check, sql};

use super::operator::{check, failed, found, mends, of, paste, survey};
use crate::support::world::World;
use crate::support::{in_fresh_database, postgres, run};

#[tokio::test]
async fn tables_that_cannot_be_followed_are_told_and_mended() {
    in_fresh_database(postgres(), async |config| {
        let mut client = sql::connect(config).await.unwrap();
        init::migrate(&mut client, config).await.unwrap();
        for (fault, id, words) in [
            ("ALTER TABLE content REPLICA IDENTITY NOTHING", "postgres.replica_identity", "is nothing"),
            (
                "ALTER TABLE engagement_events DROP CONSTRAINT engagement_events_content_id_fkey;
                 ALTER TABLE content DROP CONSTRAINT content_pkey",
                "postgres.replica_identity",
                "is nothing",
            ),
            (
                "CREATE UNIQUE INDEX by_slug ON content (slug); ALTER TABLE content REPLICA IDENTITY USING INDEX by_slug",
                "postgres.replica_identity",
                "is slug without id",
            ),
        ] {
            run(&client, fault).await;
            mends(&client, config, id, Verdict::Fail, words).await;
        }
        columns_are_mended(&client, config).await;
        let by_time = "ALTER TABLE engagement_events DROP CONSTRAINT engagement_events_pkey, ADD PRIMARY KEY (event_ts, id)";
        run(&client, by_time).await;
        mends(&client, config, "postgres.index", Verdict::Warn, "none begins with the id").await;
        run(
            &client,
            "ALTER TABLE content DROP COLUMN length_seconds;
             ALTER TABLE content ADD COLUMN length_seconds integer GENERATED ALWAYS AS (7) STORED",
        )
        .await;
        let generated = async || {
            let findings = source_check::check(&client, config).await.unwrap();
            findings.into_iter().find(|finding| finding.id == "postgres.generated_columns")
        };
        let line = generated().await.unwrap();
        assert_eq!((line.verdict, line.subject.as_str()), (Verdict::Fail, "column content.length_seconds"));
        paste(&client, &line.fix.unwrap()).await;
        assert!(generated().await.is_none());
    })
    .await;
}

async fn columns_are_mended(client: &Client, config: &PostgresConfig) {
    let of_content = async || {
        let findings = source_check::check(client, config).await.unwrap();
        findings.into_iter().find(|finding| finding.subject == "table public.content").unwrap()
    };
    run(client, "CREATE DOMAIN key AS uuid; CREATE DOMAIN content_key AS key; ALTER TABLE content ALTER id TYPE content_key").await;
    assert_eq!(of_content().await.verdict, Verdict::Ok, "a domain is what it is made of");
    for (fault, words) in [
        (
            "ALTER TABLE content DROP COLUMN slug, DROP COLUMN title",
            "POSTGRES_CONTENT_COLUMNS says so; lacks the column title (text)",
        ),
        ("ALTER TABLE content ALTER publish_ts TYPE timestamp", "publish_ts"),
    ] {
        run(client, fault).await;
        let line = of_content().await;
        assert!(line.verdict == Verdict::Fail && line.message.contains(words), "{line:?}");
        paste(client, &line.fix.unwrap()).await;
        assert_eq!(of_content().await.verdict, Verdict::Ok);
    }
}

#[tokio::test]
async fn a_publication_that_leaves_something_out_is_told_and_mended() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let name = &world.postgres.publication;
    for (fault, words) in [
        (format!("ALTER PUBLICATION {name} SET (publish = 'insert')"), "operations"),
        (
            format!("ALTER PUBLICATION {name} SET TABLE content (id, slug), engagement_events"),
            "the column title",
        ),
        (format!("ALTER PUBLICATION {name} DROP TABLE content"), "does not have the table"),
    ] {
        run(&client, &fault).await;
        let (code, lines) = check(&world).await;
        let line = of(&lines, "postgres.publication", "");
        assert_eq!((code, line.verdict.as_str()), (Some(2), "fail"));
        assert!(line.message.contains(words), "{line:?}");
        paste(&client, line.fix.as_ref().unwrap()).await;
        let (_, lines) = check(&world).await;
        assert_eq!(of(&lines, "postgres.publication", "").verdict, "ok", "{lines:#?}");
    }
}

#[tokio::test]
async fn tables_that_are_published_besides_are_told_and_taken_out() {
    let world = World::initialised().await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let name = &world.postgres.publication;
    run(&client, &format!("CREATE TABLE other (i int); ALTER PUBLICATION {name} ADD TABLE other")).await;
    let (code, lines) = check(&world).await;
    let line = of(&lines, "postgres.publication_tables", "");
    assert_eq!((code, line.verdict.as_str()), (Some(0), "warn"));
    assert!(line.message.contains("public.other"), "{line:?}");
    paste(&client, line.fix.as_ref().unwrap()).await;
    let (code, lines) = check(&world).await;
    assert_eq!((code, failed(&lines)), (Some(0), vec![]), "the slot still reads the same: {lines:#?}");
    assert!(lines.iter().all(|line| line.id != "postgres.publication_tables"), "{lines:#?}");

    in_fresh_database(postgres(), async |config| {
        let mut client = sql::connect(config).await.unwrap();
        init::migrate(&mut client, config).await.unwrap();
        run(&client, &format!("CREATE PUBLICATION {} FOR ALL TABLES", config.publication)).await;
        let line = found(config, "postgres.publication_tables").await;
        assert!(line.message.contains("postgres.publication"), "{line:?}");
        paste(&client, &line.fix.unwrap()).await;
        let alone = PostgresConfig { publication: "walcast_alone".into(), ..config.clone() };
        assert!(survey(&alone).await.iter().all(|finding| finding.id != "postgres.publication_tables"));
    })
    .await;
}

// --- Kafka
