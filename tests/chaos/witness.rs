//! A reader of each sink that is not walcast: it looks for events of a content that only it knows, and says how long each took
//! to be seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use tokio_postgres::Client;
use uuid::Uuid;
use walcast::sink::redis::RedisConfig;
use walcast::source::sql;

use crate::support::bigquery_server::BigQueryServer;
use crate::support::world::World;
use crate::support::{DEADLINE, redis_server, wait_until};

const SEND_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Sends an event a second, and has somebody look for them in each sink. Those end when it is dropped.
pub struct Witness {
    client: Client,
    content: Uuid,
    /// The time of them all, in microseconds since 1970.
    event_ts: i64,
    /// When each was committed.
    committed: Vec<Instant>,
    looks: Looks,
    send_at: Instant,
}

/// What the readers have seen so far.
#[derive(Clone, Default)]
struct Looks {
    kafka: Arc<AtomicUsize>,
    redis: Arc<AtomicUsize>,
    bigquery: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Looks {
    fn are_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.looks.over.store(true, Ordering::Relaxed);
    }
}

fn over_after(time: Duration) -> impl AsyncFn(&Witness) -> bool {
    let until = Instant::now() + time;
    async move |_| Instant::now() >= until
}

impl Witness {
    /// Begins when the load has: that is of the contents that were there before.
    pub async fn begin(world: &World, brokers: String, redis_port: u16, bigquery: BigQueryServer) -> Witness {
        let client = sql::connect(&world.postgres).await.unwrap();
        let begun = "SELECT EXISTS (SELECT FROM engagement_events)";
        wait_until("the load has begun", async || client.query_one(begun, &[]).await.unwrap().get(0)).await;
        let content = Uuid::new_v4();
        let insert = "INSERT INTO content VALUES ($1, 'witness', 'A witness', 'video', 60, now())";
        client.execute(insert, &[&content]).await.unwrap();
        let now = "SELECT (extract(epoch FROM now()) * 1000000)::bigint, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')";
        let now = client.query_one(now, &[]).await.unwrap();
        let (event_ts, day): (i64, String) = (now.get(0), now.get(1));
        let looks = Looks::default();
        let topic = format!("{}.events", world.topic_prefix);
        std::thread::spawn({
            let looks = looks.clone();
            move || look_into_kafka(&brokers, &topic, &content.to_string(), &looks)
        });
        let redis =
            RedisConfig { port: redis_port, password: "walcast".to_owned().into(), ..Default::default() };
        tokio::spawn(look_into_redis(redis, format!("engagement:{content}:{day}"), looks.clone()));
        tokio::spawn(look_into_bigquery(bigquery, event_ts, looks.clone()));
        Witness { client, content, event_ts, committed: Vec::new(), looks, send_at: Instant::now() }
    }

    /// How many it has sent.
    pub fn sent(&self) -> usize {
        self.committed.len()
    }

    /// How many of them were seen in this sink.
    pub fn seen(&self, sink: &str) -> usize {
        match sink {
            "kafka" => &self.looks.kafka,
            "redis" => &self.looks.redis,
            _ => &self.looks.bigquery,
        }
        .load(Ordering::Relaxed)
    }

    /// How many events there are, by their ids.
    pub async fn events(&self) -> i64 {
        let newest = "SELECT coalesce(max(id), 0) FROM engagement_events";
        self.client.query_one(newest, &[]).await.unwrap().get(0)
    }

    /// Returns when so many were seen in these sinks.
    pub async fn has_seen(&mut self, sinks: &[&str], count: usize) {
        let all = async |witness: &Witness| sinks.iter().all(|sink| witness.seen(sink) >= count);
        self.watch(sinks, DEADLINE, all).await;
    }

    /// Returns when these sinks have shown each event at once for a while: the load has begun in earnest.
    pub async fn is_steady(&mut self, sinks: &[&str]) {
        const STEADY: Duration = Duration::from_secs(10);
        let began = Instant::now();
        while self.watch(sinks, DEADLINE, over_after(STEADY)).await > Duration::from_secs(2) {
            assert!(began.elapsed() < 10 * DEADLINE, "{sinks:?} are late, and nothing is wrong yet");
        }
    }

    /// Goes on until `over`. An event that is not seen within `late` in one of these sinks fails the test; gives how late the
    /// latest was.
    pub async fn watch(
        &mut self,
        sinks: &[&str],
        late: Duration,
        over: impl AsyncFn(&Witness) -> bool,
    ) -> Duration {
        let mut latest = Duration::ZERO;
        let mut ask_at = Instant::now();
        loop {
            if self.send_at <= Instant::now() {
                self.send().await;
                self.send_at += SEND_EVERY;
            }
            for sink in sinks {
                let waits = self.committed.get(self.seen(sink)).map_or(Duration::ZERO, Instant::elapsed);
                assert!(waits <= late, "{sink} has not got an event of {waits:.1?} ago");
                latest = latest.max(waits);
            }
            // walcast has other things to do
            if ask_at <= Instant::now() {
                if over(self).await {
                    return latest;
                }
                ask_at = Instant::now() + SEND_EVERY / 4;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn send(&mut self) {
        let insert = "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms)
                      VALUES ($1, 'play', 'epoch'::timestamptz + $2::bigint * interval '1 microsecond', 1000)";
        self.client.execute(insert, &[&self.content, &self.event_ts]).await.unwrap();
        self.committed.push(Instant::now());
    }
}

/// From the beginning of the topic, as a `read_committed` reader; one that is dead is waited for.
fn look_into_kafka(brokers: &str, topic: &str, key: &str, looks: &Looks) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "walcast-witness")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut places = TopicPartitionList::new();
    for partition in 0..16 {
        places.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&places).unwrap();
    while !looks.are_over() {
        if let Some(Ok(message)) = consumer.poll(LOOK_EVERY)
            && message.key() == Some(key.as_bytes())
        {
            looks.kafka.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn look_into_redis(config: RedisConfig, key: String, looks: Looks) {
    let mut connection = None;
    while !looks.are_over() {
        let asked = match &mut connection {
            None => redis_server::try_connect(&config).await.map(|made| {
                connection = Some(made);
                None
            }),
            Some(connection) => redis::cmd("HGET").arg(&key).arg("plays").query_async(connection).await,
        };
        match asked {
            Ok(Some(plays)) => looks.redis.store(plays, Ordering::Relaxed),
            Ok(None) => {}
            Err(_) => connection = None,
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Each new row is looked at once.
async fn look_into_bigquery(server: BigQueryServer, event_ts: i64, looks: Looks) {
    let mut looked = 0;
    while !looks.are_over() {
        {
            let store = server.store();
            let rows = store.tables.values().next().map_or(&[][..], |table| &table.rows);
            let new = rows.get(looked..).unwrap_or_default();
            looks
                .bigquery
                .fetch_add(new.iter().filter(|row| row.event_ts == event_ts).count(), Ordering::Relaxed);
            looked = rows.len();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
