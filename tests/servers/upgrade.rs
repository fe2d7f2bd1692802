//! An installation of an earlier release goes on where it stood: no event is lost, and none is delivered again.
//!
//! What version 0.1 stored is made here from what this version stores, by the reverse of what carries it over.
//! `make upgrade-test` has version 0.1 itself store it: `FORMER_WALCAST` names its binary.

use walcast::source::sql;

use crate::support::world::World;
use crate::support::{env, fresh_database, postgres, run};

const CHECKPOINT_OF_0_1: &str = "- 'history_id' - 'durable_lsn'
  || jsonb_build_object('epoch', checkpoint -> 'history_id', 'held', checkpoint -> 'durable_lsn')";

const SCHEMA_OF_0_1: &str = "
  DROP TABLE walcast.backfill;
  DROP INDEX walcast.dead_letter_kept;
  DROP TABLE walcast.lane;
  DROP TABLE walcast.request;
  DROP TABLE walcast.extra_column;
  DROP TABLE walcast.event_mark;
  ALTER TABLE walcast.slot DROP COLUMN last_id_before, DROP COLUMN emptied_at, DROP COLUMN drained_from,
    DROP COLUMN drained_to, DROP COLUMN drained_shape, DROP COLUMN former_system_id;
  ALTER TABLE walcast.slot RENAME TO epoch;
  ALTER INDEX walcast.slot_pkey RENAME TO epoch_pkey;
  ALTER TABLE walcast.epoch RENAME COLUMN history_id TO epoch;
  ALTER TABLE walcast.epoch RENAME COLUMN fencing_token TO token;
  ALTER TABLE walcast.sink RENAME COLUMN history_id TO epoch;
  ALTER TABLE walcast.sink RENAME COLUMN first_checkpoint TO first_mark;
  ALTER TABLE walcast.progress RENAME COLUMN history_id TO epoch;
  ALTER TABLE walcast.progress RENAME COLUMN checkpoint TO mark;
  ALTER TABLE walcast.content_version RENAME COLUMN history_id TO epoch;
  ALTER TABLE walcast.dead_letter RENAME COLUMN history_id TO epoch;
  ALTER TABLE walcast.dead_letter
    DROP COLUMN source_table, DROP COLUMN commit_ts, DROP COLUMN attempts, DROP COLUMN state,
    DROP COLUMN event, DROP COLUMN unread, DROP COLUMN repair, DROP COLUMN request, DROP COLUMN changed_at,
    ALTER COLUMN record TYPE JSONB USING record::jsonb;
  DELETE FROM walcast.migration WHERE number > 5";

/// An installation of version 0.1 that was killed, and 20 events that came after.
struct Former {
    world: World,
    /// Version 0.1 itself, where there is one.
    binary: Option<World>,
}

async fn former_installation() -> Former {
    let world = World::new(fresh_database(postgres()).await).await;
    let former = env("FORMER_WALCAST", "");
    let binary = (!former.is_empty()).then(|| world.with_binary(&former));
    let earlier = binary.as_ref().unwrap_or(&world);
    earlier.walcast(["init"]).await.expect(0, &[]);
    let running = earlier.start().await;
    world.insert_events(50).await;
    world.wait_until_all_hold(50).await;
    running.kill().await;
    if binary.is_none() {
        store_as_version_0_1_did(&world).await;
    }
    world.insert_events(20).await;
    Former { world, binary }
}

/// An instance of version 0.1 that slept through the upgrade finds a newer one in the key that it knows.
async fn expect_former_shut_out(world: &World) {
    let mut redis = world.redis().await;
    let [former, now] = checkpoint_keys(world);
    let left: Vec<(String, i64)> = redis::cmd("HGETALL").arg(&former).query_async(&mut redis).await.unwrap();
    let token: i64 = redis::cmd("HGET").arg(&now).arg("fencing_token").query_async(&mut redis).await.unwrap();
    assert_eq!(left, [("token".to_owned(), token)]);
}

/// Of version 0.1 and of this one.
fn checkpoint_keys(world: &World) -> [String; 2] {
    ["mark", "checkpoint"].map(|word| format!("walcast:{word}:{}", world.postgres.slot))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_of_version_0_1_goes_on_where_it_stood() {
    let Former { world, binary } = former_installation().await;
    world.walcast(["run"]).await.expect(2, &["WC-214", "walcast init"]);
    world.walcast(["init"]).await.expect(0, &[]);
    if let Some(earlier) = binary {
        let ended = earlier.walcast(["run"]).await;
        assert_ne!(ended.code, Some(0), "there is no way back: {}", ended.output);
    }
    let again = world.start().await;
    expect_former_shut_out(&world).await;
    world.insert_events(30).await;
    world.wait_until_all_hold(100).await;
    world.verify().await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_of_redis_may_come_before_the_first_run() {
    let Former { world, .. } = former_installation().await;
    world.walcast(["init"]).await.expect(0, &[]);
    world.walcast(["rebuild", "redis"]).await.expect(0, &[]);
    expect_former_shut_out(&world).await;
    let again = world.start().await;
    world.insert_events(30).await;
    world.wait_until_all_hold(100).await;
    world.verify().await;
    again.stop().await;
}

async fn store_as_version_0_1_did(world: &World) {
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, &format!("UPDATE walcast.progress SET checkpoint = checkpoint {CHECKPOINT_OF_0_1}")).await;
    run(&client, SCHEMA_OF_0_1).await;

    let mut redis = world.redis().await;
    let [former, now] = checkpoint_keys(world);
    let (token, checkpoint): (i64, String) = redis::cmd("HMGET")
        .arg(&now)
        .arg(&["fencing_token", "checkpoint"])
        .query_async(&mut redis)
        .await
        .unwrap();
    let mut moved = redis::pipe();
    moved.del(&now).hset_multiple(&former, &[("token", token.to_string()), ("mark", of_0_1(&checkpoint))]);
    moved.query_async::<()>(&mut redis).await.unwrap();

    let newest = world.kafka_topic("progress").await.into_iter().rev();
    let newest =
        newest.map(|value| String::from_utf8(value).unwrap()).find(|text| text.contains("durable_lsn"));
    world.produce("progress", &world.postgres.slot, of_0_1(&newest.unwrap()).as_bytes()).await;
}

fn of_0_1(checkpoint: &str) -> String {
    assert!(checkpoint.contains("history_id") && checkpoint.contains("durable_lsn"), "{checkpoint}");
    checkpoint.replace("\"history_id\"", "\"epoch\"").replace("\"durable_lsn\"", "\"held\"")
}
