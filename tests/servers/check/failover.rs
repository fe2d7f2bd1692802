//! What a failover would lose.

use walcast::finding::{Finding, Verdict};
use walcast::source::sql;

use super::operator::{check, exported, failed, found, mends, of};
use crate::support::pair::Pair;
use crate::support::world::World;
use crate::support::{fresh_database, wait_until};

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

// --- tables, rights, publication
