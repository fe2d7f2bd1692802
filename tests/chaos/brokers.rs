//! Three brokers under load: each is restarted, killed and cut off, and too few are left for a while; one walcast goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;
use tokio::process::Child;

use crate::RATE_PER_MINUTE;
use crate::support::running::Running;
use crate::support::services::Servers;
use crate::support::world::World;
use crate::support::{DEADLINE, fresh_database, postgres, wait_until_within};

const PORT_SHIFT: u16 = 3_600;
const NAMES: [&str; 3] = ["kafka", "kafka-2", "kafka-3"];
const PARTITIONS: i32 = 16;
/// How long the load goes on before the first fault, and between two.
const CALM: Duration = Duration::from_secs(10);
/// Longer than a broker's session.
const CUT_OFF: Duration = Duration::from_secs(15);
/// How long too few brokers are there.
const TOO_FEW: Duration = Duration::from_secs(20);

/// How old the newest event is for a reader that has caught up.
const CAUGHT_UP: Duration = Duration::from_secs(2);

struct Stage {
    world: World,
    servers: Servers,
    brokers: String,
    reader: Reader,
    load: Child,
}

impl Stage {
    async fn set() -> Stage {
        let three = ("SERVICES_KAFKA_BROKERS", "3".to_owned());
        let start = move || Servers::start_some("brokers", PORT_SHIFT, &[three], &NAMES);
        let servers = tokio::task::spawn_blocking(start).await.unwrap();
        let kafka = servers.environment().into_iter().filter(|(name, _)| name.starts_with("KAFKA_"));
        let kafka: Vec<_> = kafka.collect();
        let brokers = kafka.iter().find(|(name, _)| name == "KAFKA_BROKERS").unwrap().1.clone();
        let world = World::new(fresh_database(postgres()).await).await.with_all(kafka);
        let world = world.with("PIPELINE_SINKS", "kafka");
        world.walcast(["init"]).await.expect(0, &[]);
        let reader = Reader::start(&brokers, &format!("{}.events", world.topic_prefix));
        let load = world.generate(RATE_PER_MINUTE);
        Stage { world, servers, brokers, reader, load }
    }

    fn command(&self, arguments: &[&str]) -> String {
        tokio::task::block_in_place(|| self.servers.command(arguments))
    }

    /// All that is committed now is in Kafka, and all brokers have all of it. Says how late events were seen since `began`.
    async fn is_well_after(&mut self, what: &str, began: Instant, running: &mut Running) {
        let end = self.world.wal_end().await;
        wait_until_within(4 * DEADLINE, &format!("the slot passes {end} after {what}"), async || {
            self.world.confirmed_lsn().await >= end
        })
        .await;
        wait_until_within(2 * DEADLINE, "the replicas have all", async || self.replicas_have_all()).await;
        // or what it still has to read would count as late in what comes next
        wait_until_within(4 * DEADLINE, "the reader has caught up", async || self.reader.has_caught_up())
            .await;
        assert!(!running.ends_within(Duration::ZERO).await, "walcast ended: {}", running.log.lock().await);
        println!("{what}: {}", self.reader.lateness_since(began));
        if self.load.try_wait().unwrap().is_some() {
            self.load = self.world.generate(RATE_PER_MINUTE);
        }
    }

    fn replicas_have_all(&self) -> bool {
        let client: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap();
        let Ok(metadata) = client.fetch_metadata(None, Duration::from_secs(5)) else { return false };
        let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        partitions.all(|partition| partition.isr().len() == NAMES.len() && partition.leader() >= 0)
    }

    /// The broker that coordinates walcast's transactions: it leads the partition of the coordinators' topic that the id's hash
    /// names.
    async fn coordinator(&self) -> i32 {
        const TOPIC: &str = "__transaction_state";
        let id = format!("walcast.{}.{}", self.world.topic_prefix, self.world.postgres.slot);
        let hash = id.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(i32::from(byte)));
        let client: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap();
        let metadata = client.fetch_metadata(Some(TOPIC), DEADLINE).unwrap();
        let partitions = metadata.topics()[0].partitions();
        let place = (hash & i32::MAX) % partitions.len() as i32;
        partitions.iter().find(|partition| partition.id() == place).unwrap().leader()
    }

    /// The broker that is the active controller.
    fn controller(&self) -> usize {
        let told = self.command(&["kafka-tool", "metadata-quorum", "describe", "--status"]);
        let line = told.lines().find_map(|line| line.strip_prefix("LeaderId:")).unwrap();
        line.trim().parse().unwrap()
    }
}

fn name(node: usize) -> &'static str {
    NAMES[node - 1]
}

#[ignore = "long: make chaos"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_in_kafka_once_whatever_befalls_its_three_brokers() {
    let mut stage = Stage::set().await;
    let mut running = stage.world.start().await;
    tokio::time::sleep(CALM).await; // load, no condition: what follows must strike in the middle of it
    let began = Instant::now();
    tokio::time::sleep(2 * CALM).await;
    stage.is_well_after("nothing", began, &mut running).await;

    let began = Instant::now();
    for broker in NAMES {
        stage.command(&["restart", broker]);
        wait_until_within(2 * DEADLINE, "the replicas have all", async || stage.replicas_have_all()).await;
    }
    stage.is_well_after("a rolling restart", began, &mut running).await;

    for broker in NAMES {
        let began = Instant::now();
        stage.command(&["kill", broker, "KILL"]);
        tokio::time::sleep(CALM).await;
        stage.command(&["up", broker]);
        stage.is_well_after(&format!("{broker} was killed"), began, &mut running).await;
    }

    let (began, controller) = (Instant::now(), stage.controller());
    stage.command(&["kill", name(controller), "KILL"]);
    wait_until_within(DEADLINE, "another controls", async || stage.controller() != controller).await;
    stage.command(&["up", name(controller)]);
    stage.is_well_after("the controller was killed", began, &mut running).await;

    let (began, coordinator) = (Instant::now(), stage.coordinator().await);
    stage.command(&["down", name(coordinator as usize)]);
    assert_ne!(stage.coordinator().await, coordinator, "another coordinates");
    tokio::time::sleep(CALM).await;
    stage.command(&["up", name(coordinator as usize)]);
    stage.is_well_after("the coordinator moved", began, &mut running).await;

    let (began, coordinator) = (Instant::now(), stage.coordinator().await);
    stage.command(&["kill", name(coordinator as usize), "STOP"]);
    tokio::time::sleep(CUT_OFF).await;
    stage.command(&["kill", name(coordinator as usize), "CONT"]);
    stage.is_well_after("the coordinator was cut off", began, &mut running).await;

    too_few_brokers(&mut stage, &mut running).await;

    stage.load.kill().await.unwrap();
    stage.world.verify().await;
    running.stop().await;
}

/// Two of three are away: nothing can be acknowledged, walcast waits and says so, and goes on when they are back.
async fn too_few_brokers(stage: &mut Stage, running: &mut Running) {
    let began = Instant::now();
    for broker in &NAMES[1..] {
        stage.command(&["kill", broker, "STOP"]);
    }
    let told = async || running.sink("kafka").await["last_error_code"] == "WC-310";
    wait_until_within(2 * DEADLINE, "walcast says that Kafka cannot write", told).await;
    tokio::time::sleep(TOO_FEW.saturating_sub(began.elapsed())).await;
    let stood_still = stage.world.confirmed_lsn().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(stage.world.confirmed_lsn().await, stood_still, "nothing is confirmed that Kafka has not");
    for broker in &NAMES[1..] {
        stage.command(&["kill", broker, "CONT"]);
    }
    stage.is_well_after("too few brokers", began, running).await;
}

/// Reads the topic of events as its consumers do, and notes how long after its commit each event was seen.
struct Reader {
    seen: Arc<Mutex<Vec<(Instant, Duration)>>>,
    over: Arc<AtomicBool>,
}

impl Reader {
    fn start(brokers: &str, topic: &str) -> Reader {
        let reader = Reader { seen: Arc::default(), over: Arc::default() };
        let (seen, over) = (Arc::clone(&reader.seen), Arc::clone(&reader.over));
        let mut places = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            places.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        let mut settings = ClientConfig::new();
        settings
            .set("bootstrap.servers", brokers)
            .set("group.id", "walcast-latency")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false");
        std::thread::spawn(move || {
            let consumer: BaseConsumer = settings.create().unwrap();
            consumer.assign(&places).unwrap();
            while !over.load(Ordering::Relaxed) {
                let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else { continue };
                let event: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
                let committed: Timestamp = event["commit_ts"].as_str().unwrap().parse().unwrap();
                let late = Timestamp::now().duration_since(committed).unsigned_abs();
                seen.lock().unwrap().push((Instant::now(), late));
            }
        });
        reader
    }

    fn has_caught_up(&self) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.last().is_some_and(|(at, late)| at.elapsed() + *late < CAUGHT_UP)
    }

    fn lateness_since(&self, began: Instant) -> String {
        let seen = self.seen.lock().unwrap();
        let mut late: Vec<Duration> =
            seen.iter().filter(|(at, _)| *at >= began).map(|(_, late)| *late).collect();
        late.sort();
        let at = |share: f64| late.get((late.len() as f64 * share) as usize).copied().unwrap_or_default();
        let (seconds, last) = (began.elapsed().as_secs_f64(), late.last().copied().unwrap_or_default());
        format!(
            "{} events in {seconds:.0} s, seen after p50 {:.2?}, p99 {:.2?}, at most {last:.2?}",
            late.len(),
            at(0.5),
            at(0.99),
        )
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
