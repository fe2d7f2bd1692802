//! What PostgreSQL 19 does otherwise than its forerunners. Debian experimental alone has it, so that `make chaos` runs these and
//! all others whose names end so: `scripts/services run cargo test --test servers -- --ignored _19`.

use tokio_postgres::Client;
use walcast::source::sql;

use crate::check::operator::{check, failed, of, paste};
use crate::rebuild::{bigquery_has, kafka_has};
use crate::support::running::Running;
use crate::support::world::World;
use crate::support::{fresh_database, run, services, wait_until};

async fn world(settings: &[&str], label: &str) -> World {
    World::new(fresh_database(services::postgres(label, settings)).await)
        .await
        .with("BIGQUERY_COMMIT_SECONDS", "1")
}

#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn every_event_reaches_every_sink_once_over_updates_and_kills_19() {
    let world = world(&[], "19").await;
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    let mut running = world.start().await;
    for round in 1..=3 {
        world.insert_events(500).await;
        run(&client, &format!("UPDATE content SET title = 'title of round {round}'")).await;
        run(&client, "UPDATE engagement_events SET duration_ms = 2000 WHERE id % 100 = 0").await;
        world.insert_events(500).await;
        running.kill().await;
        running = world.start().await;
    }
    world.wait_until_all_hold(3_000).await;
    world.verify().await;
    running.stop().await;
}

/// There a logical slot makes the WAL logical, without a restart.
#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn wal_level_replica_will_do_19() {
    services::command(&["postgres", "19:replica", "wipe"]);
    let world = world(&["wal_level=replica"], "19:replica").await;
    let told = async || {
        let (_, lines) = check(&world).await;
        assert!(of(&lines, "postgres.version", "").message.starts_with("19"), "{lines:#?}");
        let line = of(&lines, "postgres.wal_level", "").clone();
        assert_eq!(line.verdict, "ok", "{line:?}");
        line.message
    };
    assert!(told().await.contains("now it is replica"));
    world.walcast(["init"]).await.expect(0, &[]);
    assert!(told().await.contains("now it is logical"));
    let running = world.start().await;
    world.insert_events(100).await;
    world.wait_until_all_hold(100).await;
    running.kill().await;
    services::command(&["postgres", "19:replica", "kill"]);
    services::postgres("19:replica", &["wal_level=replica"]);
    let running = world.start().await;
    world.insert_events(100).await;
    world.wait_until_all_hold(200).await;
    running.stop().await;
    assert_eq!(check(&world).await.0, Some(0));
    drop(world);
    services::command(&["postgres", "19:replica", "wipe"]);
}

/// What the publication leaves out, and whether it has the sequences.
async fn left_out(client: &Client) -> (Vec<String>, bool) {
    let query = "SELECT ARRAY(SELECT prrelid::regclass::text FROM pg_publication_rel WHERE prexcept ORDER BY 1), puballsequences
        FROM pg_publication";
    let row = client.query_one(query, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn a_publication_that_leaves_out_our_tables_is_told_and_mended_without_harm_19() {
    let world = world(&[], "19").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, include_str!("../../migrations/0001_source.sql")).await;
    run(
        &client,
        "CREATE SCHEMA \"Of \"\"others\"; CREATE TABLE \"Of \"\"others\".secret (id int PRIMARY KEY)",
    )
    .await;
    run(&client, "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE heir () INHERITS (parent)").await;
    let publication = &world.postgres.publication;
    let others = "TABLE \"Of \"\"others\".secret, TABLE ONLY parent";
    let make = format!(
        "CREATE PUBLICATION {publication} FOR ALL TABLES EXCEPT (TABLE content, TABLE engagement_events, {others}), ALL SEQUENCES"
    );
    run(&client, &make).await;
    world.walcast(["init"]).await.expect(2, &["WC-206", "public.content (EXCEPT)", "ALTER PUBLICATION"]);

    let (_, lines) = check(&world).await;
    let line = of(&lines, "postgres.publication", "publication");
    assert_eq!(line.code.as_deref(), Some("WC-206"), "{line:?}");
    let fix = line.fix.clone().unwrap();
    paste(&client, &fix).await;
    let kept = || vec!["parent".to_owned(), "\"Of \"\"others\".secret".to_owned()];
    let (mut found, sequences) = left_out(&client).await;
    found.sort_by_key(|name| kept().iter().position(|kept| kept == name));
    assert_eq!((found, sequences), (kept(), true), "what its owner left out or took in is as it was: {fix}");
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    let (_, lines) = check(&world).await;
    assert!(failed(&lines).is_empty(), "{lines:#?}");
    left_out_later(&world, &client, running, &format!("{others}, TABLE engagement_events")).await;
}

/// The stream ends, and says so until the sinks have been brought what they lack.
async fn left_out_later(world: &World, client: &Client, mut running: Running, except: &str) {
    let publication = &world.postgres.publication;
    run(client, &format!("ALTER PUBLICATION {publication} SET ALL TABLES EXCEPT ({except}), ALL SEQUENCES"))
        .await;
    world.insert_events(10).await;
    assert_eq!(running.ended().await, Some(4), "{}", running.log.lock().await);
    world.walcast(["run"]).await.expect(4, &["WC-413", "walcast resync"]);
    let (_, lines) = check(world).await;
    assert_eq!(of(&lines, "postgres.slot", "").code.as_deref(), Some("WC-413"), "{lines:#?}");
    paste(client, &of(&lines, "postgres.publication", "publication").fix.clone().unwrap()).await;
    world.walcast(["run"]).await.expect(4, &["WC-413", "walcast resync"]);
    world.walcast(["resync", "--yes", "--detach"]).await.expect(0, &[]);
    let running = world.start().await;
    kafka_has(world, 20).await;
    bigquery_has(world, 20).await;
    wait_until("Redis has all", async || world.redis_plays().await == 20).await;
    world.verify().await;
    running.stop().await;
}

/// Nothing in the catalog tells it afterwards, and PostgreSQL sends no warning: docs/limits.md.
#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn a_table_left_out_and_taken_back_while_walcast_is_stopped_is_seen_by_verify_alone_19() {
    let world = world(&[], "19").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, include_str!("../../migrations/0001_source.sql")).await;
    let publication = &world.postgres.publication;
    run(&client, &format!("CREATE PUBLICATION {publication} FOR ALL TABLES")).await;
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    running.stop().await;
    run(&client, &format!("ALTER PUBLICATION {publication} SET ALL TABLES EXCEPT (TABLE engagement_events)"))
        .await;
    world.insert_events(1).await;
    run(&client, &format!("ALTER PUBLICATION {publication} SET ALL TABLES")).await;
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(20).await;
    world.walcast(["verify", "--wait-seconds", "60"]).await.expect(2, &["kafka", "11"]);
    running.stop().await;
}

/// The rows get new transaction numbers, and a new file; none of it is a change.
#[tokio::test]
#[ignore = "fetches PostgreSQL 19"]
async fn repack_concurrently_of_both_tables_under_load_sends_every_event_once_19() {
    let world = world(&[], "19").await;
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, include_str!("../../migrations/0001_source.sql")).await;
    // of before walcast, which no sink gets
    world.insert_events(1_000).await;
    world.walcast(["init"]).await.expect(0, &[]);
    let running = world.start().await;
    let load = async {
        for round in 0..30 {
            world.insert_events(200).await;
            run(&client, &format!("UPDATE content SET title = 'title of round {round}'")).await;
            run(&client, "UPDATE engagement_events SET device = 'phone' WHERE id % 500 = 7").await;
        }
    };
    let repacking = sql::connect(&world.postgres).await.unwrap();
    let (done, mut is_done) = tokio::sync::oneshot::channel();
    let repack = async {
        let mut times = 0;
        while is_done.try_recv().is_err() {
            for table in ["content", "engagement_events"] {
                run(&repacking, &format!("REPACK (CONCURRENTLY) {table}")).await;
                times += 1;
            }
        }
        times
    };
    let (times, ()) = tokio::join!(repack, async {
        load.await;
        done.send(()).unwrap();
    });
    assert!(times >= 6, "{times} times are few");
    let written = "SELECT count(DISTINCT xmin::text) FROM engagement_events WHERE id <= 1000";
    let written: i64 = client.query_one(written, &[]).await.unwrap().get(0);
    assert!(written < 10, "the table was written anew: {written}");
    running.kill().await;
    let running = world.start().await;
    world.wait_until_all_hold(6_000).await;
    world.verify().await;
    world.walcast(["rebuild", "redis"]).await.expect(0, &["redis holds 6,000 events"]);
    world.verify().await;
    running.stop().await;
}
