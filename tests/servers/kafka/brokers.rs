//! Topics and brokers that are not as they must be, transactions that hang, each told with what mends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, Producer};
use walcast::error::{Class, Code};
use walcast::lsn::Lsn;
use walcast::sink::kafka::KafkaConfig;
use walcast::sink::{Finding, Sink, SinkAdmin, Verdict};

use super::fixture::{Fixture, admin, create_topic, events, transactional_producer};
use crate::support::services::command;
use crate::support::world::World;
use crate::support::{self, DEADLINE};

#[tokio::test(flavor = "multi_thread")]
async fn prepare_makes_topics_that_check_finds_right() {
    let fixture = Fixture::new("prepare").await;
    let mut sink = fixture.sink();
    let missing = sink.check().await;
    let fails = missing.iter().filter(|finding| finding.verdict == Verdict::Fail);
    assert_eq!(fails.count(), 4, "{missing:?}");
    let metadata = admin(&fixture.config);
    let metadata = metadata.inner().fetch_metadata(None, Duration::from_secs(10)).unwrap();
    assert!(!metadata.topics().iter().any(|topic| topic.name().starts_with(&fixture.config.topic_prefix)));

    sink.prepare().await.unwrap();
    sink.prepare().await.unwrap();
    let findings = sink.check().await;
    assert_eq!(findings.len(), 9);
    for finding in &findings {
        let single_broker = finding.subject == "kafka brokers";
        let wanted = if single_broker { Verdict::Warn } else { Verdict::Ok };
        assert_eq!(finding.verdict, wanted, "{finding:?}");
        assert!(
            !finding.fix.as_ref().is_some_and(|fix| fix.contains("REPLICATION_FACTOR=3")),
            "there is one broker"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_another_shape_is_refused_by_name_with_the_fix() {
    for (topic, partitions, settings, message, fix) in [
        ("events", 8, ("retention.ms", "604800000"), "has 8 partitions instead of 4", "kafka.partitions = 8"),
        ("events", 4, ("cleanup.policy", "compact"), "cleanup.policy = compact", "cleanup.policy=delete"),
        ("content", 4, ("cleanup.policy", "delete"), "cleanup.policy = delete", "cleanup.policy=compact"),
        ("progress", 3, ("cleanup.policy", "compact"), "has 3 partitions instead of 1", "kafka.topic_prefix"),
        ("dlq", 1, ("max.message.bytes", "1000"), "max.message.bytes = 1000", "max.message.bytes=1010000"),
    ] {
        let fixture = Fixture::new("shape").await;
        let name = format!("{}.{topic}", fixture.config.topic_prefix);
        create_topic(&fixture.config, &name, partitions, &[settings]).await;
        let mut sink = fixture.sink();
        let error = sink.prepare().await.unwrap_err();
        assert_eq!(error.code(), Code::KafkaTopicUnfit);
        assert!(error.chain().contains(&name) && error.chain().contains(message), "{error:?}");
        assert!(error.advice().contains(fix), "{error:?}");
        let findings = sink.check().await;
        let finding = findings.iter().find(|finding| finding.subject.ends_with(&name)).unwrap();
        assert_eq!(finding.verdict, Verdict::Fail);
        if finding.message.contains("partitions") {
            assert_eq!(
                sink.recover(&fixture.session().await).await.unwrap_err().code(),
                Code::KafkaTopicUnfit
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_replicas_than_brokers_is_refused_with_the_fix() {
    let mut fixture = Fixture::new("replicas").await;
    fixture.config.replication_factor = 3;
    let error = fixture.sink().prepare().await.unwrap_err();
    assert_eq!(error.code(), Code::KafkaRefused);
    assert!(error.advice().contains("kafka.replication_factor"), "{error:?}");
}

/// As where the clocks differ by more than the topic allows.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_topic_refuses_is_not_tried_again_and_names_the_topic() {
    for rows in [1, 50] {
        let fixture = Fixture::new("refused").await;
        let setting = ("message.timestamp.before.max.ms", "0");
        create_topic(&fixture.config, &fixture.topics.events, 4, &[setting]).await;
        let mut sink = fixture.ready().await;
        let error = sink.write(&[events(100, rows)]).await.unwrap_err();
        assert_eq!((error.code(), error.class()), (Code::KafkaRefused, Class::Definite), "{error:?}");
        assert!(error.chain().contains(&fixture.topics.events), "{error:?}");
        assert!(error.advice().contains("message.timestamp.before.max.ms"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_is_unavailable_soon() {
    let mut fixture = Fixture::new("down").await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    fixture.config.brokers = format!("127.0.0.1:{port}");
    fixture.config.timeout_ms = 1_000;
    let (mut sink, session, started) = (fixture.sink(), fixture.session().await, Instant::now());
    for error in [sink.recover(&session).await.unwrap_err(), sink.prepare().await.unwrap_err()] {
        assert_eq!(error.code(), Code::KafkaUnreachable, "{error:?}");
    }
    let findings = sink.check().await;
    assert_eq!(findings[0].verdict, Verdict::Fail, "{findings:?}");
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
}

/// librdkafka's own broker in this process: it has no isolation, and serves here for what happens when a
/// broker goes away in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_under_a_write_is_unavailable_soon() {
    let mut fixture = Fixture::new("gone").await;
    let cluster = MockCluster::new(1).unwrap();
    fixture.config.brokers = cluster.bootstrap_servers();
    fixture.config.timeout_ms = 1_000;
    for (topic, partitions) in [
        (&fixture.topics.events, 4),
        (&fixture.topics.content, 4),
        (&fixture.topics.dlq, 1),
        (&fixture.topics.progress, 1),
    ] {
        cluster.create_topic(topic, partitions, 1).unwrap();
    }
    let (mut sink, session) = (fixture.sink(), fixture.session().await);
    sink.recover(&session).await.unwrap();
    sink.write(&[events(100, 10)]).await.unwrap();
    cluster.broker_down(1).unwrap();
    let started = Instant::now();
    assert_eq!(sink.write(&[events(200, 10)]).await.unwrap_err().code(), Code::KafkaUnreachable);
    assert_eq!(sink.recover(&session).await.unwrap_err().code(), Code::KafkaUnreachable);
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    cluster.broker_up(1).unwrap();
    let stored = sink.recover(&session).await.unwrap().unwrap();
    assert_eq!(stored.checkpoint.durable_lsn, Lsn(110));
    sink.write(&[events(200, 10)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_transaction_is_named_with_the_command_that_ends_it() {
    let mut fixture = Fixture::new("hung").await;
    let mut sink = fixture.ready().await;
    sink.write(&[events(100, 1)]).await.unwrap();
    // nobody ends this one for as long as the test runs
    let hung = transactional_producer(&fixture.config, &fixture.config.topic_prefix, 120_000);
    hung.begin_transaction().unwrap();
    let record = BaseRecord::<str, str>::to(&fixture.topics.progress).key("other_slot").payload("{}");
    hung.send(record).map_err(|(error, _)| error).unwrap();
    hung.flush(Duration::from_secs(10)).unwrap();

    let finding = sink.check().await.pop().unwrap();
    assert_eq!(finding.verdict, Verdict::Warn, "{finding:?}");
    let start = format!("abort --topic {} --partition 0 --start-offset 4", fixture.topics.progress);
    assert!(finding.fix.as_ref().unwrap().contains(&start), "{finding:?}");

    fixture.config.timeout_ms = 1_000;
    let error = fixture.sink().recover(&fixture.session().await).await.unwrap_err();
    assert_eq!((error.code(), error.class()), (Code::KafkaTransactionHung, Class::Transient), "{error:?}");
    assert!(error.chain().contains(&fixture.topics.progress) && error.advice().contains(&start), "{error:?}");

    hung.abort_transaction(Duration::from_secs(10)).unwrap();
    let stored = fixture.sink().recover(&fixture.session().await).await.unwrap().unwrap();
    assert_eq!(stored.checkpoint.durable_lsn, Lsn(110));
}

/// Its only sink waits for it, as for a target that is down.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_the_transaction_of_another_and_says_so() {
    let world = World::initialised()
        .await
        .with_all([("PIPELINE_SINKS".into(), "kafka".into()), ("KAFKA_TIMEOUT_MS".into(), "1000".into())]);
    let config = KafkaConfig {
        brokers: support::env("KAFKA_BROKERS", "127.0.0.1:29092"),
        topic_prefix: world.topic_prefix.clone(),
        ..KafkaConfig::default()
    };
    let other = transactional_producer(&config, &format!("{}.other", world.topic_prefix), 120_000);
    other.begin_transaction().unwrap();
    let progress = config.topics().progress;
    let record = BaseRecord::<str, str>::to(&progress).key("other_slot").payload("{}");
    other.send(record).map_err(|(error, _)| error).unwrap();
    other.flush(Duration::from_secs(10)).unwrap();

    world.insert_events(30).await;
    let mut running = world.spawn();
    let log = Arc::clone(&running.log);
    support::wait_until("it says why it waits", async || log.lock().await.matches("WC-222").count() >= 2)
        .await;
    assert!(!running.ends_within(Duration::ZERO).await);
    other.abort_transaction(Duration::from_secs(10)).unwrap();
    running.wait_until_streaming().await;
    support::wait_until("Kafka has all", async || world.kafka_ids().await.len() == 30).await;
    running.stop().await;
}

/// As init made it before it bounded what the markers of transactions take.
#[tokio::test(flavor = "multi_thread")]
async fn a_progress_topic_that_grows_is_told_with_what_bounds_it() {
    let fixture = Fixture::new("grows").await;
    create_topic(&fixture.config, &fixture.topics.progress, 1, &[("cleanup.policy", "compact")]).await;
    let mut sink = fixture.ready().await;
    let of = |findings: Vec<Finding>| {
        findings.into_iter().find(|finding| finding.subject.ends_with(".progress")).unwrap()
    };
    let finding = of(sink.check().await);
    assert_eq!(finding.verdict, Verdict::Warn, "{finding:?}");
    let fix = finding.fix.unwrap();
    let (_, settings) = fix.split_once("--add-config ").unwrap();
    assert!(settings.contains("segment.bytes=52428800,delete.retention.ms=600000"), "{fix}");
    let config = &fixture.config.brokers;
    assert!(fix.starts_with(&format!("kafka-configs.sh --bootstrap-server {config} ")), "{fix}");
    let topic = ["--alter", "--entity-type", "topics", "--entity-name", &fixture.topics.progress];
    command(&[&["kafka-tool", "configs"], &topic[..], &["--add-config", settings]].concat());
    let finding = of(sink.check().await);
    assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_the_release_of_the_brokers() {
    let fixture = Fixture::new("release").await;
    let findings = fixture.sink().check().await;
    let finding = findings.iter().find(|finding| finding.id == "kafka.version").unwrap();
    assert_eq!((finding.verdict, finding.message.as_str()), (Verdict::Ok, "4.2"), "{finding:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_hangs_beside_a_running_sink_is_its_trouble() {
    let mut fixture = Fixture::new("hanging").await;
    fixture.config.transaction_timeout_ms = 10_000;
    let hung = transactional_producer(&fixture.config, &fixture.config.topic_prefix, 120_000);
    let mut sink = fixture.ready().await;
    sink.write(&[events(100, 1)]).await.unwrap();
    assert_eq!(sink.trouble(), None);
    hung.begin_transaction().unwrap();
    let record = BaseRecord::<str, str>::to(&fixture.topics.events).partition(2).key("other").payload("{}");
    hung.send(record).map_err(|(error, _)| error).unwrap();
    hung.flush(Duration::from_secs(10)).unwrap();
    support::wait_until("it is told", async || sink.trouble().is_some()).await;
    let trouble = sink.trouble().unwrap();
    let named = format!("{} partition 2", fixture.topics.events);
    let command = format!("abort --topic {} --partition 2 --start-offset ", fixture.topics.events);
    assert!(trouble.contains(&named) && trouble.contains(&command), "{trouble}");
    hung.abort_transaction(Duration::from_secs(10)).unwrap();
    support::wait_until("it is told no more", async || sink.trouble().is_none()).await;
}
