//! What is wrong with a sink.

use std::collections::BTreeMap;

use walcast::source::sql;

use super::operator::{check, exported, failed, of};
use crate::support::world::World;
use crate::support::{env, fresh_database, postgres};

#[tokio::test]
async fn a_sink_that_the_slot_can_no_longer_serve_is_told_with_both_positions() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    running.stop().await;
    world.insert_events(10).await;
    let client = sql::connect(&world.postgres).await.unwrap();
    let advance = "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())::text";
    client.query_one(advance, &[&world.postgres.slot]).await.unwrap();
    let (code, lines) = check(&world).await;
    assert_eq!(code, Some(2));
    let slot = world.confirmed_lsn().await.to_string();
    for sink in ["content", "kafka", "redis", "bigquery"] {
        let line = of(&lines, "sink.position", sink);
        assert_eq!(line.verdict, "fail", "{line:?}");
        assert!(line.message.contains(&slot), "{line:?}");
    }
}

#[tokio::test]
async fn a_redis_that_lost_its_data_is_told_and_rebuilt() {
    let world = World::initialised().await;
    let running = world.start().await;
    world.insert_events(10).await;
    world.wait_until_all_hold(10).await;
    running.stop().await;
    let _: () = redis::cmd("FLUSHDB").query_async(&mut world.redis().await).await.unwrap();
    let (code, lines) = check(&world).await;
    let line = of(&lines, "sink.position", "redis");
    assert_eq!((code, failed(&lines)), (Some(2), vec!["sink.position"]));
    assert!(line.message.contains("lost its data"), "{line:?}");
    assert_eq!(line.fix.as_deref(), Some("walcast rebuild redis"));
    let remains = redis::cmd("HSET").arg("walcast:all").arg("a").arg(1).to_owned();
    let _: i64 = remains.query_async(&mut world.redis().await).await.unwrap();
    let (_, lines) = check(&world).await;
    let line = of(&lines, "sink.position", "redis");
    assert!(line.message.contains("holds counters of walcast"), "{line:?}");
    assert_eq!(line.code.as_deref(), Some("WC-418"));
    assert!(line.fix.as_ref().unwrap().contains("database of its own"), "{line:?}");
    world.walcast(["rebuild", "redis"]).await.expect(0, &[]);
    assert_eq!(check(&world).await.0, Some(0));
}

// --- the server's settings, on a server of its own

#[tokio::test]
async fn more_replicas_than_brokers_are_told_and_mended() {
    let world = World::new(fresh_database(postgres()).await).await;
    let wanting = world.with("KAFKA_REPLICATION_FACTOR", "3").with("KAFKA_MIN_INSYNC_REPLICAS", "2");
    let (_, lines) = check(&wanting).await;
    let line = of(&lines, "kafka.brokers", "");
    assert_eq!(line.verdict, "fail");
    let (_, lines) = check(&exported(&wanting, line.fix.as_ref().unwrap())).await;
    assert_eq!(of(&lines, "kafka.brokers", "").verdict, "warn", "one disk is one disk");
    assert_eq!(of(&lines, "kafka.transaction_timeout", "").verdict, "ok");
    assert!(of(&lines, "kafka.transactional_id", "").message.contains(&world.postgres.slot));
}

// --- how it looks

/// A name of this machine that does not say so is one of another to whoever reads it.
#[tokio::test]
async fn what_leaves_the_machine_in_clear_is_told() {
    let world = World::initialised().await;
    let clear = ["kafka.tls", "redis.tls", "bigquery.tls", "http.tls"];
    let told = async |world: &World| {
        let (_, lines) = check(world).await;
        let lines = lines.into_iter().filter(|line| clear.contains(&line.id.as_str()));
        lines.map(|line| (line.id, line.verdict)).collect::<BTreeMap<_, _>>()
    };
    let here =
        world.with("PIPELINE_SINKS", "kafka,redis,bigquery,http").with("HTTP_URL", "http://127.0.0.1:1/");
    assert_eq!(told(&here).await, BTreeMap::new());
    let elsewhere = |url: &str| url.replace("127.0.0.1", "127.1");
    let rest = elsewhere(&env("BIGQUERY_REST_URL", "http://127.0.0.1:29050"));
    let away = here
        .with("KAFKA_BROKERS", &elsewhere(&env("KAFKA_BROKERS", "127.0.0.1:29092")))
        .with("REDIS_HOST", "127.1")
        .with("BIGQUERY_REST_URL", &rest)
        .with("HTTP_URL", "http://127.1:1/");
    assert_eq!(told(&away).await, clear.map(|id| (id.to_owned(), "warn".to_owned())).into());
}
