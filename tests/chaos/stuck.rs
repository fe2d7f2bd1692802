//! A lone broker of Kafka 4.4.0 that is killed under producers leaves transactions behind that nobody ends (KAFKA-20734): walcast
//! finds them, its command tells them from one that lives, and ends them.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

use crate::support::services::Servers;
use crate::support::world::World;
use crate::support::{DEADLINE, PATIENCE, fresh_database, fresh_name, postgres, wait_until_within};

const PORT_SHIFT: u16 = 3_800;
const PARTITIONS: i32 = 16;
/// Producers at once, each with an id of its own that nobody takes up again.
const PRODUCERS: usize = 3;
/// How often the broker is killed at most until a transaction is left behind.
const KILLS_MAX: usize = 8;
/// How long after its start a broker has ended what it still knows: their time-out of 5 s, and looks at it each second.
const ENDED_AFTER: Duration = Duration::from_secs(15);

/// The command asks after transactions that are open for longer than a minute.
const LOOKED_AT_AFTER: Duration = Duration::from_secs(90);

/// `kafka-transactions.sh`, as the printed commands call it.
const TOOL: &str = "#!/bin/sh\nshift 2\nexec \"$SERVICES\" kafka-tool transactions \"$@\"\n";

fn settings() -> [(&'static str, String); 2] {
    [("SERVICES_KAFKA_VERSION", "4.4.0".into()), ("SERVICES_KAFKA_FENCED", "no".into())]
}

#[ignore = "long: make chaos"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_broker_leaves_behind_is_ended_by_the_command_as_printed() {
    let start = || Servers::start_some("stuck", PORT_SHIFT, &settings(), &["kafka"]);
    let servers = tokio::task::spawn_blocking(start).await.unwrap();
    let brokers = format!("127.0.0.1:{}", 29_092 + PORT_SHIFT);
    let world = World::new(fresh_database(postgres()).await)
        .await
        .with_all([("KAFKA_BROKERS".into(), brokers.clone()), ("PIPELINE_SINKS".into(), "kafka".into())]);
    world.walcast(["init"]).await.expect(0, &[]);
    let version = finding(&world, "kafka.version").await;
    assert!(version["verdict"] == "warn" && version.to_string().contains("KAFKA-20734"), "{version}");

    let events = format!("{}.events", world.topic_prefix);
    let mut stuck = Vec::new();
    for kill in 1..=KILLS_MAX {
        tokio::task::block_in_place(|| {
            let strangers = Strangers::start(&brokers, &events);
            std::thread::sleep(Duration::from_secs(3)); // of load
            servers.command(&["kill", "kafka", "KILL"]);
            strangers.stop();
            servers.command(&["up", "kafka"]);
        });
        tokio::time::sleep(ENDED_AFTER).await;
        stuck = open_partitions(&brokers, &events);
        println!("kill {kill}: {} partitions are stuck: {stuck:?}", stuck.len());
        if !stuck.is_empty() {
            break;
        }
    }
    assert!(!stuck.is_empty(), "{KILLS_MAX} kills have left nothing behind");

    // and one that lives, beside them
    let content = format!("{}.content", world.topic_prefix);
    let alive = producer(&brokers, "alive", 600_000);
    alive.init_transactions(DEADLINE).unwrap();
    alive.begin_transaction().unwrap();
    send(&alive, &content, 3);
    alive.flush(DEADLINE).unwrap();
    let opened = Instant::now();

    let found = finding(&world, "kafka.transactions").await;
    let commands = found["fix"].as_str().unwrap();
    assert!(
        found["verdict"] == "warn" && commands.contains(&content) && commands.contains(&events),
        "{found}"
    );
    println!("{}\n{commands}", found["message"]);
    let (look, end) = commands.split_once(" # and what ends those that it lists: ").unwrap();
    wait_until_within(2 * PATIENCE, "all that are stuck are listed", async || {
        let listed = shell(look);
        stuck.iter().all(|partition| is_listed(&listed, &events, *partition))
    })
    .await;
    // so long that it is not left out for its age alone
    tokio::time::sleep(LOOKED_AT_AFTER.saturating_sub(opened.elapsed())).await;
    let listed = shell(look);
    assert!(!is_listed(&listed, &content, 3), "one that lives is none of them: {listed}");
    println!("{listed}{}", shell(end));
    wait_until_within(DEADLINE, "readers see all", async || open_partitions(&brokers, &events).is_empty())
        .await;
    assert_eq!(open_partitions(&brokers, &content), [3], "the one that lives is left alone");
    alive.commit_transaction(DEADLINE).unwrap();
    wait_until_within(PATIENCE, "check finds nothing", async || {
        finding(&world, "kafka.transactions").await["verdict"] == "ok"
    })
    .await;
}

async fn finding(world: &World, id: &str) -> Value {
    let checked = world.walcast(["check", "--json"]).await.output;
    let array = checked.find('[').zip(checked.rfind(']')).map(|(first, last)| &checked[first..=last]);
    let findings: Vec<Value> = array.and_then(|array| serde_json::from_str(array).ok()).unwrap_or_default();
    let mut findings = findings.into_iter();
    findings.find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("no {id}: {checked}"))
}

/// Runs it as an operator does.
fn shell(commands: &str) -> String {
    let tools = std::env::temp_dir().join(fresh_name("walcast-tools"));
    std::fs::create_dir(&tools).unwrap();
    let tool = tools.join("kafka-transactions.sh");
    std::fs::write(&tool, TOOL).unwrap();
    Command::new("chmod").arg("+x").arg(&tool).status().unwrap();
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-c", commands]).env("PATH", path);
    command.env("SERVICES", concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services"));
    command.env("SERVICES_SET", "stuck").env("SERVICES_PORT_SHIFT", PORT_SHIFT.to_string()).envs(settings());
    let Output { status, stdout, stderr } = tokio::task::block_in_place(|| command.output()).unwrap();
    std::fs::remove_dir_all(&tools).unwrap();
    assert!(status.success(), "{commands}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn is_listed(listed: &str, topic: &str, partition: i32) -> bool {
    let mut lines = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.any(|line| line.starts_with(&[topic, &partition.to_string()]))
}

/// Partitions of which a `read_committed` reader does not see the end.
fn open_partitions(brokers: &str, topic: &str) -> Vec<i32> {
    let [committed, all] = ["read_committed", "read_uncommitted"].map(|isolation| {
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", brokers).set("group.id", "walcast-stuck");
        let reader: BaseConsumer = settings.set("isolation.level", isolation).create().unwrap();
        reader
    });
    let end =
        |reader: &BaseConsumer, partition| reader.fetch_watermarks(topic, partition, DEADLINE).unwrap().1;
    (0..PARTITIONS).filter(|partition| end(&committed, *partition) < end(&all, *partition)).collect()
}

fn producer(brokers: &str, id: &str, timeout_ms: u32) -> BaseProducer {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", brokers).set("transactional.id", id).set("linger.ms", "0");
    settings.set("transaction.timeout.ms", timeout_ms.to_string()).create().unwrap()
}

fn send(producer: &BaseProducer, topic: &str, partition: i32) {
    let record = BaseRecord::<str, str>::to(topic).partition(partition).key("key").payload("a stranger's");
    let _ = producer.send(record);
}

/// Producers that write to all partitions in transactions as small as can be.
struct Strangers {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Strangers {
    fn start(brokers: &str, topic: &str) -> Strangers {
        let over = Arc::new(AtomicBool::new(false));
        let thread = |_| {
            let (over, brokers, topic) = (Arc::clone(&over), brokers.to_owned(), topic.to_owned());
            std::thread::spawn(move || {
                let producer = producer(&brokers, &fresh_name("stranger"), 5_000);
                let short = Duration::from_secs(4);
                // what fails does so because the broker is gone: then this one is done for
                if producer.init_transactions(DEADLINE).is_err() {
                    return;
                }
                while !over.load(Ordering::Relaxed) && producer.begin_transaction().is_ok() {
                    (0..PARTITIONS).for_each(|partition| send(&producer, &topic, partition));
                    if producer.commit_transaction(short).is_err() {
                        return;
                    }
                }
            })
        };
        let threads = (0..PRODUCERS).map(thread).collect();
        Strangers { over, threads }
    }

    fn stop(self) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
