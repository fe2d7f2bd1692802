//! What the server says of itself, the slot and the publication.

use walcast::error::Code;
use walcast::source::connection::Connection;
use walcast::source::{PostgresConfig, slot, sql};

use super::{expect, server};
use crate::support::services;
use crate::support::{fresh_name, in_fresh_database, postgres, run};

const TABLES: &str = "CREATE TABLE content (id uuid PRIMARY KEY, slug text, title text, content_type text,
      length_seconds integer, publish_ts timestamptz);
    CREATE TABLE engagement_events (id bigserial PRIMARY KEY, content_id uuid, user_id uuid, event_type text,
      event_ts timestamptz, duration_ms integer, device text, raw_payload jsonb)";

async fn facts_are_read(version: &str) {
    in_fresh_database(server(version), async |config| {
        let client = sql::connect(config).await.unwrap();
        let number: i32 = version.parse().unwrap();
        let facts = slot::server_facts(&client).await.unwrap();
        assert_eq!(facts.version_num / 10_000, number);
        assert!(facts.version.starts_with(version), "{facts:?}");
        assert_eq!(facts.effective_wal_level.as_deref(), (number >= 19).then_some("logical"));
        assert_eq!((facts.wal_level.as_str(), facts.in_recovery), ("logical", false));
        assert!(facts.has_replication_role);

        assert_eq!(slot::facts(&client, &config.slot).await.unwrap(), None);
        let mut connection = Connection::connect(config).await.unwrap();
        let created = connection.create_slot(&config.slot, true).await.unwrap();
        let facts = slot::facts(&client, &config.slot).await.unwrap().unwrap();
        assert_eq!(facts.plugin.as_deref(), Some("pgoutput"));
        assert_eq!(facts.database.as_deref(), Some(config.db.as_str()));
        assert_eq!((facts.active, facts.active_pid), (false, None));
        assert_eq!(facts.confirmed_flush_lsn, Some(created.consistent_point));
        assert_eq!(facts.wal_status.as_deref(), Some("reserved"));
        assert_eq!(facts.lost(), None);
        facts.check_usable(config).unwrap();

        run(&client, TABLES).await;
        publication_facts_are_read(&client, config, number).await;
    })
    .await;
}

async fn publication_facts_are_read(client: &tokio_postgres::Client, config: &PostgresConfig, version: i32) {
    let name = &config.publication;
    assert!(slot::publication(client, config).await.unwrap().is_none());
    let publication = async || slot::publication(client, config).await.unwrap().unwrap();
    run(client, &format!("CREATE PUBLICATION {name}")).await;
    expect(publication().await.require_fit(), Code::PublicationUnfit, &["public.content", "ADD TABLE"]);
    run(client, &format!("ALTER PUBLICATION {name} SET TABLE content, engagement_events")).await;
    let oid = publication().await.require_fit().unwrap().identity.oid;

    let facts = slot::publication_facts(client, name).await.unwrap().unwrap();
    assert_eq!((facts.oid, facts.via_root), (oid, false));
    let tables: Vec<_> = facts.tables.iter().map(|one| (one.schema.as_str(), one.table.as_str())).collect();
    assert_eq!(tables, [("public", "content"), ("public", "engagement_events")]);
    assert_eq!(facts.tables[0].columns, None);

    run(client, &format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete')")).await;
    expect(publication().await.require_fit(), Code::PublicationUnfit, &["operations", "SET (publish ="]);
    run(client, &format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"))
        .await;
    if version < 15 {
        return;
    }
    let set = |tables: &str| format!("ALTER PUBLICATION {name} SET TABLE {tables}");
    run(client, &set("content, engagement_events WHERE (id > 7)")).await;
    let facts = slot::publication_facts(client, name).await.unwrap().unwrap();
    assert_eq!(facts.tables[1].row_filter.as_deref(), Some("(id > 7)"));
    facts.check_usable(config).unwrap();
    let filtered = publication().await.places.events;
    assert_eq!(filtered.row_filter.as_deref(), Some("(id > 7)"));
    run(client, &set("content (id, slug), engagement_events")).await;
    expect(
        publication().await.require_fit(),
        Code::PublicationUnfit,
        &["the column title of public.content"],
    );
    run(client, &set("content (id, slug, title), engagement_events")).await;
    let now = slot::now(client, &publication().await.require_fit().unwrap().places).await.unwrap();
    assert_eq!(
        now.content.present().map(|(column, _)| column.name).collect::<Vec<_>>(),
        ["id", "slug", "title"]
    );
    run(client, &set("content, engagement_events")).await;
    assert_eq!(publication().await.require_fit().unwrap().identity.oid, oid);
}

#[tokio::test]
async fn facts_are_read_from_14() {
    facts_are_read("14").await;
}

#[tokio::test]
async fn facts_are_read_from_15() {
    facts_are_read("15").await;
}

#[tokio::test]
async fn facts_are_read_from_16() {
    facts_are_read("16").await;
}

#[tokio::test]
async fn facts_are_read_from_17() {
    facts_are_read("17").await;
}

#[tokio::test]
async fn facts_are_read_from_18() {
    facts_are_read("18").await;
}

#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn facts_are_read_from_19() {
    facts_are_read("19").await;
}

#[tokio::test]
async fn a_server_that_writes_no_logical_wal_says_so() {
    for version in ["14", "18"] {
        let server = services::postgres(&format!("{version}:replica"), &["wal_level=replica"]);
        in_fresh_database(server, async |config| {
            let client = sql::connect(config).await.unwrap();
            assert_eq!(slot::server_facts(&client).await.unwrap().wal_level, "replica");
            let mut connection = Connection::connect(config).await.unwrap();
            let created = connection.create_slot(&config.slot, false).await;
            expect(created, Code::WalLevel, &["wal_level", "ALTER SYSTEM SET wal_level = logical"]);
        })
        .await;
    }
}

#[tokio::test]
async fn a_role_without_the_right_to_replicate_is_told_how_to_get_it() {
    for version in ["14", "18"] {
        let admin = sql::connect(&server(version)).await.unwrap();
        let role = fresh_name("role");
        run(&admin, &format!("CREATE ROLE {role} LOGIN PASSWORD 'x'")).await;
        let config =
            PostgresConfig { user: role.clone(), password: "x".to_owned().into(), ..server(version) };
        let facts = slot::server_facts(&sql::connect(&config).await.unwrap()).await.unwrap();
        assert!(!facts.has_replication_role);
        expect(Connection::connect(&config).await, Code::PostgresRights, &["42501", "ALTER ROLE"]);
        run(&admin, &format!("ALTER ROLE {role} REPLICATION")).await;
        Connection::connect(&config).await.unwrap().close().await.unwrap();
        run(&admin, &format!("DROP ROLE {role}")).await;
    }
}

#[tokio::test]
async fn physical_and_foreign_slots_are_refused() {
    in_fresh_database(postgres(), async |config| {
        let client = sql::connect(config).await.unwrap();
        let make = format!("SELECT pg_create_physical_replication_slot('{}')", config.slot);
        run(&client, &make).await;
        let facts = slot::facts(&client, &config.slot).await.unwrap().unwrap();
        expect(facts.check_usable(config), Code::SlotUnfit, &["not a logical slot of pgoutput"]);
        slot::drop(&client, &config.slot).await.unwrap();
        let make = format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", config.slot);
        run(&client, &make).await;
        let facts = slot::facts(&client, &config.slot).await.unwrap().unwrap();
        let elsewhere = PostgresConfig { db: "elsewhere".into(), ..config.clone() };
        expect(facts.check_usable(&elsewhere), Code::SlotUnfit, &["belongs to the database", "elsewhere"]);
    })
    .await;
}
