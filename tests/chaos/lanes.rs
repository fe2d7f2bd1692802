//! Sinks that are dead for long under load: each alone, two at once, one from the very start; and one that is only ever slower
//! than the stream. What the others notice of it, what it takes, and how soon it is back.
//!
//! These are the long forms of `tests/servers/lanes.rs`. `LANE_MINUTES` is how long each trouble lasts: `make chaos` has 30.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use tokio::process::Child;
use walcast::source::{PostgresConfig, sql};

use crate::RATE_PER_MINUTE;
use crate::support::bigquery_server::BigQueryServer;
use crate::support::running::Running;
use crate::support::services::Servers;
use crate::support::wire::{Weather, Wire};
use crate::support::world::World;
use crate::support::{DEADLINE, fresh_database, postgres, wait_until_within};
use crate::witness::Witness;

const SINKS: [&str; 3] = ["kafka", "redis", "bigquery"];
/// Each story has ports of its own from here on.
const PORT_SHIFT: u16 = 3_200;
/// No reader of a sink that is well may wait longer than this for an event.
const LATE: Duration = Duration::from_secs(5);
/// What walcast may take, in megabytes.
const RSS_MAX_MB: u64 = 130;
/// A sink takes more than the stream brings, so that what it lacks is brought within some times what it took to come.
const BACK_WITHIN_TIMES: u32 = 3;
/// Bytes a second to Redis and back, which are less than the stream brings.
const SLOW: u32 = 250_000;

fn trouble() -> Duration {
    let minutes =
        std::env::var("LANE_MINUTES").map_or(0.2, |text| text.parse().expect("LANE_MINUTES is a number"));
    Duration::from_secs_f64(60.0 * minutes)
}

/// Servers of one's own, a stand-in for BigQuery that is as fast as the service, and a world on them.
struct Stage {
    world: World,
    servers: Servers,
    redis: Wire,
    bigquery: Wire,
    stand_in: BigQueryServer,
    port_shift: u16,
}

impl Stage {
    /// Of one story of six.
    async fn set(story: u16) -> Stage {
        let port_shift = PORT_SHIFT + 10 * story;
        let name = format!("lanes-{story}");
        let start = move || Servers::start_some(&name, port_shift, &[], &["postgres", "kafka", "redis"]);
        let servers = tokio::task::spawn_blocking(start).await.unwrap();
        let stand_in = BigQueryServer::start().await;
        let port = stand_in.url().rsplit(':').next().unwrap().parse().unwrap();
        let (redis, bigquery) = (Wire::to(26_379 + port_shift).await, Wire::to(port).await);
        let server = PostgresConfig { port: 25_432 + port_shift, ..postgres() };
        let through = format!("http://127.0.0.1:{}", bigquery.port);
        let world = World::new(fresh_database(server).await).await.with_all([
            ("KAFKA_BROKERS".into(), format!("127.0.0.1:{}", 29_092 + port_shift)),
            ("REDIS_PORT".into(), redis.port.to_string()),
            ("REDIS_DB".into(), "0".into()),
            ("BIGQUERY_REST_URL".into(), through.clone()),
            ("BIGQUERY_GRPC_URL".into(), through),
            ("BIGQUERY_COMMIT_SECONDS".into(), "1".into()),
        ]);
        world.walcast(["init"]).await.expect(0, &[]);
        Stage { world, servers, redis, bigquery, stand_in, port_shift }
    }

    fn command(&self, arguments: &[&str]) {
        drop(tokio::task::block_in_place(|| self.servers.command(arguments)));
    }

    /// The target of this sink is dead from now on.
    fn kill(&self, sink: &str) {
        match sink {
            "bigquery" => self.bigquery.set(Weather::Cut),
            server => self.command(&["kill", server, "KILL"]),
        }
    }

    /// And is there again, with the data that it had.
    fn revive(&self, sink: &str) {
        match sink {
            "bigquery" => self.bigquery.set(Weather::Fair),
            server => self.command(&["up", server]),
        }
    }

    /// Load, and who looks for some of it in each sink.
    async fn load(&self) -> (Child, Witness) {
        let load = self.world.generate(RATE_PER_MINUTE);
        let brokers = format!("127.0.0.1:{}", 29_092 + self.port_shift);
        let witness =
            Witness::begin(&self.world, brokers, 26_379 + self.port_shift, self.stand_in.clone()).await;
        (load, witness)
    }

    /// All that was committed is in each sink once, and nothing of a lane is left.
    async fn is_whole(&self, running: Running) {
        self.world.no_lane_is_left().await;
        // the stand-in answers no questions of `verify`
        self.world.with("PIPELINE_SINKS", "kafka,redis").verify().await;
        let peak = running.peak_rss_mb();
        running.stop().await;
        let mut held: Vec<i64> = {
            let store = self.stand_in.store();
            store.tables.values().flat_map(|table| table.rows.iter().map(|row| row.event_id)).collect()
        };
        held.sort_unstable();
        let client = sql::connect(&self.world.postgres).await.unwrap();
        let wanted = "SELECT id FROM engagement_events ORDER BY id";
        let rows = client.query_raw(wanted, std::iter::empty::<i64>()).await.unwrap();
        let mut rows = std::pin::pin!(rows);
        let mut events = 0;
        while let Some(row) = rows.try_next().await.unwrap() {
            let id: i64 = row.get(0);
            assert_eq!(held.get(events), Some(&id), "BigQuery has each event once");
            events += 1;
        }
        assert_eq!(held.len(), events, "BigQuery has no more than the source");
        println!("  {events} events in all, peak RSS {peak} MB");
        assert!(peak <= RSS_MAX_MB, "{peak} MB");
    }

    /// What each of the others was confirmed up to goes on.
    async fn goes_on(&self) {
        let end = self.world.wal_end().await;
        wait_until_within(DEADLINE, "the others are confirmed", async || {
            self.world.confirmed_lsn().await >= end
        })
        .await;
    }
}

/// Until these sinks are fed with the others again, and hold what was committed when their targets came back.
async fn come_back(sinks: &[&str], running: &Running, witness: &mut Witness, well: &[&str]) -> Duration {
    let (began, sent) = (Instant::now(), witness.sent());
    let within = BACK_WITHIN_TIMES * trouble() + 4 * DEADLINE;
    let mut late = Duration::ZERO;
    for sink in sinks {
        let back = async |witness: &Witness| {
            assert!(began.elapsed() < within, "{sink} is not back: {}", running.sink(sink).await);
            witness.seen(sink) >= sent && running.sink(sink).await["lane"].is_null()
        };
        late = late.max(witness.watch(well, LATE, back).await);
    }
    println!("  back {:.1?} after; the others were {late:.1?} late meanwhile", began.elapsed());
    began.elapsed()
}

/// These are dead for as long as is asked; the others go on, and in the end all is as if nothing had been.
async fn dead_for_long(story: u16, dead: &[&str], from_the_start: bool) {
    let stage = Stage::set(story).await;
    let well: Vec<&str> = SINKS.into_iter().filter(|sink| !dead.contains(sink)).collect();
    if from_the_start {
        dead.iter().for_each(|sink| stage.kill(sink));
    }
    let running = stage.world.start().await;
    let (load, mut witness) = stage.load().await;
    let warm = if from_the_start { well.as_slice() } else { &SINKS };
    witness.has_seen(warm, 3).await;
    witness.is_steady(warm).await;
    if !from_the_start {
        dead.iter().for_each(|sink| stage.kill(sink));
    }
    let (began, before) = (Instant::now(), witness.events().await);
    let late = witness.watch(&well, LATE, async |_| began.elapsed() >= trouble()).await;
    for sink in dead {
        assert!(running.sink(sink).await["lane"].is_object(), "{sink} has a lane");
    }
    stage.goes_on().await;
    let missed = witness.events().await - before;
    println!(
        "{dead:?} dead for {:.0?}: {missed} events meanwhile; the others were {late:.1?} late at most",
        began.elapsed()
    );
    dead.iter().for_each(|sink| stage.revive(sink));
    come_back(dead, &running, &mut witness, &well).await;
    drop(load);
    stage.is_whole(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make chaos"]
async fn kafka_may_be_dead_for_long_while_redis_and_bigquery_go_on() {
    dead_for_long(0, &["kafka"], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make chaos"]
async fn redis_may_be_dead_for_long() {
    dead_for_long(1, &["redis"], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make chaos"]
async fn bigquery_may_be_dead_for_long() {
    dead_for_long(2, &["bigquery"], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make chaos"]
async fn two_sinks_may_be_dead_for_long_at_once() {
    dead_for_long(3, &["kafka", "bigquery"], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make chaos"]
async fn a_sink_may_be_dead_for_long_from_the_first_start_on() {
    dead_for_long(4, &["redis"], true).await;
}

/// It takes rows all the time, and fewer than come: it stays in its lane, and does not come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make chaos"]
async fn a_sink_may_be_slower_than_the_stream_for_ever() {
    let stage = Stage::set(5).await;
    let running = stage.world.start().await;
    let (load, mut witness) = stage.load().await;
    witness.has_seen(&SINKS, 3).await;
    witness.is_steady(&SINKS).await;
    stage.redis.set(Weather::Slow(SLOW));
    let well = ["kafka", "bigquery"];
    let began = Instant::now();
    let mut late = witness
        .watch(&well, LATE, async |_| {
            assert!(began.elapsed() < 2 * DEADLINE, "Redis gets no lane");
            running.sink("redis").await["lane"].is_object()
        })
        .await;
    let rows = async || running.sink("redis").await["rows_total"].as_i64().unwrap();
    let (began, before) = (Instant::now(), rows().await);
    let stays = async |_: &Witness| {
        let lane = running.sink("redis").await["lane"]["state"].clone();
        assert!(
            lane == "parked" || lane == "catching-up",
            "it does not come back while it cannot keep up: {lane}"
        );
        assert!(began.elapsed() < trouble() + 2 * DEADLINE, "it is slow, and not dead");
        began.elapsed() >= trouble() && rows().await > before
    };
    late = late.max(witness.watch(&well, LATE, stays).await);
    let taken = rows().await - before;
    println!(
        "redis slow for {:.0?}: it took {taken} rows; the others were {late:.1?} late at most",
        began.elapsed()
    );
    let opened = running.log.lock().await.matches("has fallen behind").count();
    assert_eq!(opened, 1, "one lane all the time");
    stage.goes_on().await;
    stage.redis.set(Weather::Fair);
    come_back(&["redis"], &running, &mut witness, &well).await;
    drop(load);
    stage.is_whole(running).await;
}
