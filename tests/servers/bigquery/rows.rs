//! What a reader sees, and when.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;
use walcast::batch::Batch;
use walcast::lsn::{Checkpoint, Lsn};
use walcast::sink::{Sink, Written};

use super::world::{World, batches, batches_with, ids_of, now_micros};
use crate::support::wait_until;

const NOTHING: [i64; 0] = [];

#[tokio::test]
async fn rows_are_seen_once_and_only_after_their_commit() {
    let world = World::new().await;
    let (mut sink, checkpoint) = world.start().await;
    assert_eq!(checkpoint, None);
    let batches = batches(4);
    assert_eq!(sink.write(&batches[..2]).await.unwrap(), Written::Accepted);
    assert_eq!(sink.write(&batches[2..3]).await.unwrap(), Written::Accepted);
    assert_eq!(world.ids().await, NOTHING);
    assert_eq!(sink.flush().await.unwrap(), Some(batches[2].checkpoint()));
    assert_eq!(world.ids().await, ids_of(&batches[..3]));
    assert_eq!(sink.flush().await.unwrap(), None, "nothing new");

    sink.write(&batches[3..]).await.unwrap();
    assert_eq!(sink.flush().await.unwrap(), Some(batches[3].checkpoint()));
    assert_eq!(world.ids().await, ids_of(&batches));
    assert!(matches!(world.progress().await, (Some(_), None)), "no intent is left");
    world.end().await;
}

#[tokio::test]
async fn every_column_is_what_the_event_says() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    let batches = batches_with(1, |builder, event| {
        if event.id == 3 {
            event.event_ts = -1_500_000; // before 1970
            event.device = Some(builder.intern("tv"));
            event.user_id = Some(Uuid::from_u128(0xabc));
        }
        if event.id == 4 {
            event.content = None;
            event.content_id = None;
            event.event_type = None;
            event.duration_ms = None;
            event.raw_payload = None;
            event.raw_payload_bytes = None;
        }
    });
    world.deliver(&mut sink, None, &batches).await.unwrap();
    let columns = "content_id, user_id, event_type, UNIX_MICROS(event_ts), duration_ms, device, JSON_VALUE(raw_payload, '$.n'), \
        raw_payload_bytes, slug, title, content_type, length_seconds, UNIX_MICROS(publish_ts), engagement_seconds, \
        engagement_pct, UNIX_MICROS(commit_ts) > 0, commit_lsn, ordinal, epoch, bucket_30m, UNIX_MICROS(ingested_at) > 0";
    let row = |id: i64| format!("SELECT {columns} FROM engagement_events WHERE event_id = {id}");
    let id = |number| json!(Uuid::from_u128(number).to_string());
    let history_id = world.history_id.uuid.to_string();
    assert_eq!(
        json!(world.query(&row(3)).await[0]),
        json!([
            id(1),
            id(0xabc),
            "play",
            "-1500000",
            "3000",
            "tv",
            "3",
            "8",
            "the-daily",
            "Zażółć gęślą jaźń",
            "podcast",
            "200",
            "1700000000000000",
            "3.0",
            "1.5",
            "true",
            "1000",
            "3",
            history_id,
            "9599",
            "true"
        ])
    );
    let row = &world.query(&row(4)).await[0];
    assert_eq!(json!(row[..3]), json!([null, null, null]));
    assert_eq!(json!(row[4..15]), json!(vec![Value::Null; 11]));
    world.end().await;
}

#[tokio::test]
async fn the_question_of_the_readme_has_its_answer() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    let batches = batches_with(1, |_, event| event.event_ts = now_micros());
    world.deliver(&mut sink, None, &batches).await.unwrap();
    let query = format!(
        "SELECT content_type, AVG(engagement_pct) FROM {}.engagement_events WHERE DATE(event_ts) = CURRENT_DATE() GROUP BY content_type",
        world.config.dataset
    );
    // 0 to 9 seconds of 200
    assert_eq!(json!(world.query(&query).await), json!([["podcast", "2.25"]]));
    world.end().await;
}

#[tokio::test]
async fn rows_appear_by_themselves_after_the_commit_interval() {
    let world = World::with(|config| config.commit_seconds = 1).await;
    let (mut sink, _) = world.start().await;
    let batches = batches(1);
    sink.write(&batches).await.unwrap();
    assert_eq!(sink.tick().await.unwrap(), None, "not yet");
    let sink = tokio::sync::Mutex::new(sink);
    wait_until("a tick commits", async || {
        sink.lock().await.tick().await.unwrap() == Some(batches[0].checkpoint())
    })
    .await;
    assert_eq!(world.ids().await, ids_of(&batches));
    world.end().await;
}

#[tokio::test]
async fn a_full_stream_does_not_wait() {
    let world = World::with(|config| config.batch_rows_max = 20).await;
    let (mut sink, _) = world.start().await;
    let batches = batches(5);
    assert_eq!(sink.write(&batches).await.unwrap(), Written::Accepted, "the fifth is still open");
    assert_eq!(world.ids().await, ids_of(&batches[..4]));
    assert_eq!(sink.tick().await.unwrap(), Some(batches[3].checkpoint()), "told at the next tick");
    assert_eq!(sink.flush().await.unwrap(), Some(batches[4].checkpoint()));
    assert_eq!(world.ids().await, ids_of(&batches));

    let world_of_bytes = World::with(|config| config.batch_bytes_max = 3_000).await;
    let (mut sink, _) = world_of_bytes.start().await;
    assert!(
        matches!(sink.write(&batches[..2]).await.unwrap(), Written::Durable(checkpoint) if checkpoint == batches[1].checkpoint())
    );
    world.end().await;
    world_of_bytes.end().await;
}

#[tokio::test]
async fn a_heartbeat_is_durable_at_once_or_with_the_open_stream() {
    let world = World::new().await;
    let (mut sink, _) = world.start().await;
    let heartbeat = |lsn| [Arc::new(Batch::empty(Checkpoint::at(Lsn(lsn)), false))];
    assert_eq!(sink.write(&heartbeat(50)).await.unwrap(), Written::Durable(Checkpoint::at(Lsn(50))));
    let (mut sink, checkpoint) = world.start().await;
    assert_eq!(checkpoint, Some(Checkpoint::at(Lsn(50))));

    let batches = batches(1);
    sink.write(&batches).await.unwrap();
    assert_eq!(sink.write(&heartbeat(5_000)).await.unwrap(), Written::Accepted);
    let checkpoint = batches[0].checkpoint().advanced(Checkpoint::at(Lsn(5_000)));
    assert_eq!(sink.flush().await.unwrap(), Some(checkpoint));
    let (_, stored) = world.start().await;
    assert_eq!(stored, Some(checkpoint));
    world.end().await;
}
