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
    ALTER COLUMN record TYPE JSONB USING record::jsonb;
  DELETE FROM walcast.migration WHERE number > 5";

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_of_version_0_1_goes_on_where_it_stood() {
    let world = World::new(fresh_database(postgres()).await).await;
    let former = env("FORMER_WALCAST", "");
    let earlier_is_real = !former.is_empty();
    let earlier = if earlier_is_real { world.with_binary(&former) } else { world.clone() };
    earlier.walcast(["init"]).await.expect(0, &[]);
    let running = earlier.start().await;
    world.insert_events(50).await;
    world.wait_until_all_hold(50).await;
    running.kill().await;
    if !earlier_is_real {
        store_as_version_0_1_did(&world).await;
    }
    world.insert_events(20).await; // while nobody runs

    world.walcast(["run"]).await.expect(2, &["WC-214", "walcast init"]);
    world.walcast(["init"]).await.expect(0, &[]);
    if earlier_is_real {
        let ended = earlier.walcast(["run"]).await;
        assert_ne!(ended.code, Some(0), "there is no way back: {}", ended.output);
    }
    let again = world.start().await;
    world.insert_events(30).await;
    world.wait_until_all_hold(100).await;
    world.verify().await;
    again.stop().await;

    // an instance of version 0.1 that slept through all this finds a newer one
    let mut redis = world.redis().await;
    let (former, now) = (
        "walcast:mark:".to_owned() + &world.postgres.slot,
        format!("walcast:checkpoint:{}", world.postgres.slot),
    );
    let left: Vec<(String, i64)> = redis::cmd("HGETALL").arg(&former).query_async(&mut redis).await.unwrap();
    let token: i64 = redis::cmd("HGET").arg(&now).arg("fencing_token").query_async(&mut redis).await.unwrap();
    assert_eq!(left, [("token".to_owned(), token)]);
}

async fn store_as_version_0_1_did(world: &World) {
    let client = sql::connect(&world.postgres).await.unwrap();
    run(&client, &format!("UPDATE walcast.progress SET checkpoint = checkpoint {CHECKPOINT_OF_0_1}")).await;
    run(&client, SCHEMA_OF_0_1).await;

    let mut redis = world.redis().await;
    let (former, now) = (
        "walcast:mark:".to_owned() + &world.postgres.slot,
        format!("walcast:checkpoint:{}", world.postgres.slot),
    );
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
