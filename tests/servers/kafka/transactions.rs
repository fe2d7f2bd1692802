//! A write is one transaction: all or nothing, once, whatever breaks off, and closed to older instances.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use walcast::batch::Batch;
use walcast::error::Code;
use walcast::lsn::{Checkpoint, Lsn, StoredCheckpoint, TargetState};
use walcast::sink::{Sink, SinkAdmin, Written};

use super::fixture::{
    Fixture, create_topic, events, header, ids, is_time_of_writing, json, position, read,
    transactional_producer,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_hides_what_was_aborted_and_shuts_older_producers_out() {
    let fixture = Fixture::new("broker").await;
    create_topic(&fixture.config, &fixture.topics.events, 1, &[]).await;
    let topic = &fixture.topics.events;
    let send = |producer: &BaseProducer, text: &str| {
        producer.begin_transaction().unwrap();
        producer.send(BaseRecord::<str, str>::to(topic).payload(text)).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
    };
    let older = fixture.producer();
    send(&older, "committed");
    older.commit_transaction(Duration::from_secs(10)).unwrap();
    send(&older, "aborted");
    older.abort_transaction(Duration::from_secs(10)).unwrap();
    send(&older, "zombie");
    let newer = fixture.producer();
    assert!(older.commit_transaction(Duration::from_secs(10)).is_err(), "a zombie committed");
    send(&newer, "heir");
    newer.commit_transaction(Duration::from_secs(10)).unwrap();

    let texts = |isolation| -> Vec<String> {
        let messages = read(&fixture.config, topic, isolation);
        messages.iter().map(|message| message.payload_view::<str>().unwrap().unwrap().to_owned()).collect()
    };
    assert_eq!(texts("read_uncommitted"), ["committed", "aborted", "zombie", "heir"]);
    assert_eq!(fixture.committed(topic).len(), 2);
    assert_eq!(texts("read_committed"), ["committed", "heir"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_its_rows_and_one_checkpoint_in_one_transaction() {
    let fixture = Fixture::new("write").await;
    let mut sink = fixture.ready().await;
    let written = sink.write(&[events(100, 30), events(200, 3)]).await.unwrap();
    let checkpoint = Checkpoint { position: Some(position(200, 2)), durable_lsn: Lsn(210) };
    assert_eq!(written, Written::Durable(checkpoint));

    let records = fixture.committed(&fixture.topics.events);
    assert_eq!(ids(&records).into_iter().collect::<HashSet<_>>(), (100..130).chain(200..203).collect());
    assert_eq!(records.len(), 33);
    let mut ends: BTreeMap<String, Vec<i64>> = [("events", 4), ("content", 4), ("dlq", 1)]
        .map(|(name, count)| (name.to_owned(), vec![0; count]))
        .into();
    for record in &records {
        ends.get_mut("events").unwrap()[record.partition() as usize] += 1;
    }
    let target = TargetState { ends, ..Default::default() };
    assert_eq!(fixture.checkpoints(), [StoredCheckpoint::new(&fixture.history_id, checkpoint).at(target)]);
    let first = records.iter().find(|message| json(message)["event_id"] == 100).unwrap();
    assert_eq!(header(first, "lsn").unwrap(), "0/64#0");
    assert_eq!(header(first, "op").unwrap(), "c");
    assert!(first.timestamp().to_millis().is_some_and(is_time_of_writing));
    assert_eq!(json(first)["engagement_seconds"], 1.5);

    // one transaction: each partition it touched has one marker and nothing else besides its records
    let offsets = records.iter().map(|message| (message.partition(), message.offset())).collect::<Vec<_>>();
    let partitions: HashSet<i32> = offsets.iter().map(|(partition, _)| *partition).collect();
    let last: i64 = partitions
        .iter()
        .map(|p| offsets.iter().filter(|(q, _)| q == p).map(|(_, o)| o + 1).max().unwrap())
        .sum();
    assert_eq!(last, 33, "a marker lies between the records");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_which_one_record_is_refused_leaves_nothing() {
    // room for transaction markers and not for events, or for the fence record and not for a checkpoint
    for (small, bytes) in [("events", "100"), ("progress", "230")] {
        let fixture = Fixture::new("refused").await;
        for (topic, partitions) in [("events", 4), ("content", 4), ("dlq", 1), ("progress", 1)] {
            let limit = if topic == small { bytes } else { "1100000" };
            let name = format!("{}.{topic}", fixture.config.topic_prefix);
            create_topic(&fixture.config, &name, partitions, &[("max.message.bytes", limit)]).await;
        }
        let mut sink = fixture.sink();
        sink.recover(&fixture.session().await).await.unwrap();
        let error = sink.write(&[events(100, 20)]).await.unwrap_err();
        assert_eq!(error.code(), Code::KafkaTopicUnfit, "{small}: {error:?}");
        assert!(error.advice().contains("max.message.bytes"), "{error:?}");
        assert_eq!(sink.recover(&fixture.session().await).await.unwrap(), None, "{small}");
        assert!(fixture.committed(&fixture.topics.events).is_empty(), "{small}");
        assert!(fixture.checkpoints().is_empty(), "{small}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_rows_moves_the_checkpoint_and_never_back() {
    let fixture = Fixture::new("empty").await;
    let mut sink = fixture.ready().await;
    sink.write(&[events(100, 3)]).await.unwrap();
    let idle = Arc::new(Batch::empty(Checkpoint::at(Lsn(500)), false));
    let checkpoint = Checkpoint { position: Some(position(100, 2)), durable_lsn: Lsn(500) };
    assert_eq!(sink.write(&[idle]).await.unwrap(), Written::Durable(checkpoint));
    assert_eq!(
        fixture.sink().recover(&fixture.session().await).await.unwrap().unwrap().checkpoint,
        checkpoint
    );
    assert_eq!(fixture.checkpoints().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_uncommitted_is_never_seen() {
    let fixture = Fixture::new("crash").await;
    let mut sink = fixture.ready().await;
    sink.write(&[events(100, 5)]).await.unwrap();
    drop(sink);
    // an instance that died between produce and commit: records and checkpoint are at the broker
    let dead = fixture.producer();
    dead.begin_transaction().unwrap();
    let checkpoint = StoredCheckpoint::new(&fixture.history_id, Checkpoint::at(Lsn(999))).to_json();
    for (topic, key, payload) in [
        (&fixture.topics.events, "k", r#"{"event_id":7}"#),
        (&fixture.topics.progress, &*fixture.history_id.slot, &*checkpoint),
    ] {
        dead.send(BaseRecord::to(topic).key(key).payload(payload)).map_err(|(error, _)| error).unwrap();
    }
    dead.flush(Duration::from_secs(10)).unwrap();
    std::mem::forget(dead);

    let mut sink = fixture.sink();
    let stored = sink.recover(&fixture.session().await).await.unwrap().unwrap();
    assert_eq!(stored.checkpoint, Checkpoint { position: Some(position(100, 4)), durable_lsn: Lsn(110) });
    sink.write(&[events(200, 1)]).await.unwrap();
    assert_eq!(ids(&fixture.committed(&fixture.topics.events)).len(), 6);
    assert!(!ids(&fixture.committed(&fixture.topics.events)).contains(&7));
    assert!(ids(&read(&fixture.config, &fixture.topics.events, "read_uncommitted")).contains(&7));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_instance_stops_and_leaves_the_newer_one_alone() {
    let fixture = Fixture::new("fenced").await;
    let first = fixture.session().await;
    let mut older = fixture.sink();
    older.prepare().await.unwrap();
    assert_eq!(older.recover(&first).await.unwrap(), None);
    older.write(&[events(100, 1)]).await.unwrap();

    let mut newer = fixture.sink();
    newer.recover(&fixture.session().await).await.unwrap();
    assert_eq!(older.write(&[events(200, 1)]).await.unwrap_err().code(), Code::Fenced);
    assert_eq!(older.recover(&first).await.unwrap_err().code(), Code::Fenced);
    newer.write(&[events(200, 1)]).await.unwrap();
    assert_eq!(ids(&fixture.committed(&fixture.topics.events)), [100, 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn fenced_with_the_newest_fencing_token_begins_again() {
    let fixture = Fixture::new("timeout").await;
    let session = fixture.session().await;
    let mut sink = fixture.sink();
    sink.prepare().await.unwrap();
    sink.recover(&session).await.unwrap();
    let _other = fixture.producer();
    assert_eq!(sink.write(&[events(100, 1)]).await.unwrap_err().code(), Code::KafkaUnreachable);
    assert_eq!(sink.write(&[events(100, 1)]).await.unwrap_err().code(), Code::KafkaUnreachable);
    assert_eq!(sink.recover(&session).await.unwrap(), None);
    sink.write(&[events(100, 1)]).await.unwrap();
    assert_eq!(ids(&fixture.committed(&fixture.topics.events)), [100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checkpoint_is_found_behind_markers_and_many_records_of_others() {
    let fixture = Fixture::new("checkpoints").await;
    let mut sink = fixture.ready().await;
    for lsn in [100, 200, 300] {
        sink.write(&[events(lsn, 1)]).await.unwrap();
    }
    let other = transactional_producer(&fixture.config, &fixture.config.topic_prefix, 60_000);
    for round in 0..15 {
        other.begin_transaction().unwrap();
        for _ in 0..50 {
            let checkpoint = StoredCheckpoint::new(&fixture.history_id, Checkpoint::at(Lsn(round))).to_json();
            let record = BaseRecord::to(&fixture.topics.progress).key("other_slot").payload(&checkpoint);
            other.send(record).map_err(|(error, _)| error).unwrap();
        }
        other.flush(Duration::from_secs(10)).unwrap();
        if round % 2 == 0 {
            other.commit_transaction(Duration::from_secs(10)).unwrap();
        } else {
            other.abort_transaction(Duration::from_secs(10)).unwrap();
        }
    }
    for _ in 0..3 {
        let stored = sink.recover(&fixture.session().await).await.unwrap().unwrap();
        assert_eq!(stored.checkpoint, Checkpoint { position: Some(position(300, 0)), durable_lsn: Lsn(310) });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_cut_off_at_random_leave_every_event_once_and_in_order() {
    let seed =
        std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let fixture = Fixture::new("cut").await;
    fixture.ready().await;
    const WRITES: u64 = 40;
    let all: Vec<Arc<Batch>> = (1..=WRITES).map(|n| events(n * 1000, 50)).collect();
    let (mut next, mut cuts) = (0, 0);
    while next < all.len() {
        let mut sink = fixture.sink();
        let stored = sink.recover(&fixture.session().await).await.unwrap();
        let held = stored.map_or_else(Checkpoint::default, |stored| stored.checkpoint);
        next = all.iter().take_while(|batch| batch.beyond(&held).is_none()).count();
        while next < all.len() {
            let until = (next + random.random_range(1..4)).min(all.len());
            let patience = Duration::from_micros(random.random_range(0..25_000));
            match tokio::time::timeout(patience, sink.write(&all[next..until])).await {
                Ok(written) => drop(written.unwrap()),
                Err(_) => break,
            }
            next = until;
        }
        cuts += 1;
    }
    println!("{cuts} cuts");
    let records = fixture.committed(&fixture.topics.events);
    let mut by_key: BTreeMap<Vec<u8>, Vec<i64>> = BTreeMap::new();
    for message in &records {
        by_key
            .entry(message.key().unwrap().to_vec())
            .or_default()
            .push(json(message)["event_id"].as_i64().unwrap());
    }
    assert_eq!(records.len() as u64, WRITES * 50, "seed {seed}");
    assert_eq!(ids(&records).into_iter().collect::<HashSet<_>>().len() as u64, WRITES * 50, "seed {seed}");
    assert!(by_key.values().all(|ids| ids.is_sorted()), "seed {seed}");
    assert!(fixture.checkpoints().is_sorted_by_key(|stored| stored.checkpoint.durable_lsn), "seed {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_dropped_must_be_asked_after() {
    let fixture = Fixture::new("dropped").await;
    let session = fixture.session().await;
    let mut sink = fixture.ready().await;
    assert!(tokio::time::timeout(Duration::ZERO, sink.write(&[events(100, 500)])).await.is_err());
    assert_eq!(sink.write(&[events(100, 500)]).await.unwrap_err().code(), Code::KafkaUnreachable);
    assert_eq!(sink.recover(&session).await.unwrap_err().code(), Code::Fenced, "an older session");
    if sink.recover(&fixture.session().await).await.unwrap().is_none() {
        sink.write(&[events(100, 500)]).await.unwrap();
    }
    assert_eq!(ids(&fixture.committed(&fixture.topics.events)).len(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_larger_than_the_producers_queue_passes() {
    const ROWS: u64 = 120_000;
    let fixture = Fixture::new("queue").await;
    let mut sink = fixture.ready().await;
    sink.write(&[events(1000, ROWS)]).await.unwrap();
    let records = fixture.committed(&fixture.topics.events);
    assert_eq!(ids(&records).into_iter().collect::<HashSet<_>>().len() as u64, ROWS);
    assert_eq!(records.len() as u64, ROWS);
}

/// rdkafka's flush, which its commit calls, waits in steps of 100 ms while records are under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_does_not_wait_for_rdkafkas_flush() {
    let fixture = Fixture::new("cost").await;
    let mut sink = fixture.ready().await;
    let mut took = Vec::new();
    for n in 1..=20 {
        let started = Instant::now();
        sink.write(&[events(n * 1000, 300)]).await.unwrap();
        took.push(started.elapsed());
    }
    took.sort();
    println!("a write of 300 events: median {:?}, longest {:?}", took[10], took[19]);
    assert!(took[10] < Duration::from_millis(80), "{took:?}");
}
