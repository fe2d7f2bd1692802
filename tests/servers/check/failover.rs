//! What a failover would lose.

use std::time::Duration;

use walcast::finding::{Finding, Verdict};
use walcast::source::{PostgresConfig, sql};

use super::operator::{check, exported, failed, found, mends, of};
use crate::support::pair::Pair;
use crate::support::world::World;
use crate::support::{fresh_database, run, services, wait_until};

#[tokio::test]
async fn a_failover_that_would_lose_something_is_told_and_mended() {
    let pair = Pair::new("check").await;
    let world = World::new(fresh_database(pair.primary.clone()).await).await.with("PIPELINE_SINKS", "null");
    world.walcast(["init"]).await.expect(0, &[]);
    let client = sql::connect(&world.postgres).await.unwrap();
    wait_until("the standby follows", async || {
        let row = client.query_one("SELECT count(*) FROM pg_stat_replication", &[]).await;
        row.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    mends(
        &client,
        &world.postgres,
        "postgres.failover",
        Verdict::Warn,
        "synchronized_standby_slots is empty",
    )
    .await;

    let line = found(&world.postgres, "postgres.failover").await;
    assert_eq!(line.verdict, Verdict::Ok, "{line:?}");
    let shell = |command: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", command]).env("PGPASSWORD", world.postgres.password.expose());
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    };
    let fix = |line: &Finding| line.fix.clone().unwrap();
    // the opposite of the fix, made of one that says it
    let place = format!(
        "host={} port={} dbname={} user={} replication=database",
        world.postgres.host, world.postgres.port, world.postgres.db, world.postgres.user
    );
    shell(&format!(
        r#"psql '{place}' -c 'ALTER_REPLICATION_SLOT "{}" (FAILOVER false)'"#,
        world.postgres.slot
    ));
    let line = found(&world.postgres, "postgres.failover").await;
    assert_eq!(line.verdict, Verdict::Warn);
    assert!(line.message.contains("a failover loses it"), "{line:?}");
    shell(&fix(&line));
    assert_eq!(found(&world.postgres, "postgres.failover").await.verdict, Verdict::Ok);

    let standby = pair.after(&world);
    let line = found(&standby.postgres, "postgres.recovery").await;
    assert_eq!(line.verdict, Verdict::Fail);
    let (code, lines) = check(&exported(&standby, &fix(&line))).await;
    assert_eq!((code, of(&lines, "postgres.recovery", "").verdict.as_str()), (Some(0), "ok"), "{lines:#?}");
    let (code, lines) = check(&standby).await;
    assert_eq!((code, failed(&lines)), (Some(2), vec!["postgres.recovery"]), "{lines:#?}");
    drop((client, standby, world));
    pair.wipe();
}

#[tokio::test]
async fn a_standby_that_keeps_no_slot_is_told_and_mended() {
    let pair = Pair::new("former").await;
    let world = World::new(fresh_database(pair.primary.clone()).await).await.with("PIPELINE_SINKS", "null");
    let slot = world.postgres.slot.clone();
    let [primary, standby] = [sql::connect(&world.postgres).await.unwrap(), {
        let standby = pair.after(&world).postgres;
        wait_until("the standby has the database", async || sql::connect(&standby).await.is_ok()).await;
        sql::connect(&standby).await.unwrap()
    }];
    // as a former primary has one
    let make = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    let mut making = std::pin::pin!(standby.batch_execute(&make));
    loop {
        tokio::select! {
            made = &mut making => break made.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(50)) => run(&primary, "SELECT pg_log_standby_snapshot()").await,
        }
    }
    world.walcast(["init"]).await.expect(0, &[]);
    let both = format!("127.0.0.1:{},127.0.0.1:{}", pair.primary.port, pair.standby.port);
    let config = PostgresConfig { host: both, ..world.postgres.clone() };
    let told = found(&config, "postgres.standby").await;
    assert_eq!(told.verdict, Verdict::Warn);
    assert!(told.message.contains("of its own"), "{told:?}");
    run(&standby, &told.fix.unwrap()).await;
    let running = world.start().await;
    pair.synced(&world).await;
    let told = found(&config, "postgres.standby").await;
    assert_eq!(told.verdict, Verdict::Ok, "{told:?}");
    run(&standby, "ALTER SYSTEM SET sync_replication_slots = off").await;
    run(&standby, "SELECT pg_reload_conf()").await;
    wait_until("it keeps no slots", async || {
        found(&config, "postgres.standby").await.message.contains("keeps no slots")
    })
    .await;
    let told = found(&config, "postgres.standby").await;
    for statement in told.fix.unwrap().split(';').filter(|statement| !statement.contains("--")) {
        run(&standby, statement).await;
    }
    wait_until("it keeps slots", async || found(&config, "postgres.standby").await.verdict == Verdict::Ok)
        .await;
    running.stop().await;
    drop((primary, world));
    pair.wipe();
}

/// With a standby that does not exist PostgreSQL sends nothing at all, and says so to nobody but its log.
#[tokio::test]
async fn a_standby_that_is_awaited_in_vain_is_told_and_mended() {
    services::command(&["postgres", "18:vain", "wipe"]);
    let server = services::postgres("18:vain", &["synchronized_standby_slots='gone, \"there\"'"]);
    let world = World::new(fresh_database(server).await).await.with("PIPELINE_SINKS", "null");
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, "SELECT pg_create_physical_replication_slot('there', true)").await;
    world.walcast(["init"]).await.expect(0, &[]);
    let told = found(&world.postgres, "postgres.standbys_awaited").await;
    assert_eq!(told.verdict, Verdict::Warn);
    let words = "gone, which does not exist; there, which no standby reads";
    assert!(told.message.contains(words), "{told:?}");
    for statement in told.fix.unwrap().split_inclusive(';') {
        run(&client, statement).await;
    }
    wait_until("nothing is awaited", async || {
        let (_, lines) = check(&world).await;
        lines.iter().all(|line| line.id != "postgres.standbys_awaited")
    })
    .await;
    drop((client, world));
    services::command(&["postgres", "18:vain", "wipe"]);
}

// --- tables, rights, publication
