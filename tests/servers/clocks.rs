//! Wall clocks that jump by an hour and are set right again: walcast's, and the PostgreSQL server's.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::running::Running;
use crate::support::world::World;
use crate::support::{env, fresh_database, fresh_name, services, wait_until};

/// Heartbeats come every ten seconds.
const WELL_WITHIN: Duration = Duration::from_secs(25);
/// All that is measured in a test, summed up, is less than this; an hour is more.
const SECONDS_MAX: f64 = 900.0;
const SINKS: [&str; 4] = ["content", "kafka", "redis", "bigquery"];

/// A walcast at work, and what is to be true of it whatever a clock does.
struct Watched {
    world: World,
    running: Running,
    events: usize,
    began: i64,
    /// A board that shows all events, whatever the clock does that dates them.
    board: &'static str,
}

impl Watched {
    async fn start(world: World, board: &'static str) -> Watched {
        let world = world.with("BIGQUERY_COMMIT_SECONDS", "1");
        world.walcast(["init"]).await.expect(0, &[]);
        let running = world.start().await;
        let mut watched = Watched { world, running, events: 0, began: seconds_now(), board };
        watched.deliver().await;
        watched
    }

    /// Events are written, and come into every sink once.
    async fn deliver(&mut self) {
        self.world.insert_events(3).await;
        self.events += 3;
        self.world.wait_until_all_hold(self.events).await;
    }

    /// A clock has jumped: events arrive, figures stay those of what happens, and the sinks hold what they should.
    async fn goes_on(&mut self, when: &str) {
        let jumped = Instant::now();
        self.deliver().await;
        tokio::join!(self.is_well(jumped, when), self.check_boards(when));
        self.deliver().await;
        self.check_figures(when).await;
        self.world.verify().await;
    }

    /// Returns when every sink holds a heartbeat that was written since, and nothing is wrong.
    async fn is_well(&self, since: Instant, when: &str) {
        let wrong = Mutex::default();
        let well = wait_until("all is well", async || {
            let status = self.running.json("/api/status").await;
            let ready = self.running.json("/readyz").await;
            let unready = (ready["ready"] != true).then(|| ready.to_string());
            let found = unready.or_else(|| complaint(&status, since.elapsed().as_secs_f64()));
            let well = found.is_none();
            *wrong.lock().unwrap() = found;
            well
        });
        if tokio::time::timeout(WELL_WITHIN, well).await.is_err() {
            let (wrong, log) = (wrong.into_inner().unwrap(), self.running.log.lock().await);
            panic!("{when}: {wrong:?}\n{log}");
        }
    }

    async fn check_figures(&self, when: &str) {
        let metrics = self.running.metrics().await;
        let measured = |name: &str| {
            let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            let value = value.unwrap_or_else(|| panic!("no {name} in {metrics}"));
            assert!((0.0..SECONDS_MAX).contains(&value), "{name} is {value}, {when}");
        };
        measured("walcast_source_commit_to_receive_seconds_sum ");
        measured("walcast_slot_reply_age_seconds ");
        for sink in SINKS {
            measured(&format!("walcast_end_to_end_latency_seconds_sum{{sink=\"{sink}\"}} "));
            measured(&format!("walcast_sink_heartbeat_seconds{{sink=\"{sink}\"}} "));
        }
        let history = self.running.json("/api/history").await;
        let rates = history["events_per_second"].as_array().unwrap().iter().filter_map(Value::as_f64);
        let most = rates.fold(0.0, f64::max);
        assert!((0.1..=50.0).contains(&most), "{most} events a second, {when}");
        for time in kafka_times(&self.world) {
            assert!((self.began - 1..=seconds_now() + 1).contains(&time), "a record is of {time}, {when}");
        }
    }

    /// The boards show what was written lately, and stay while nothing is.
    async fn check_boards(&self, when: &str) {
        let mut redis = self.world.redis().await;
        let key = format!("top_engagement:{}", self.board);
        let members: i64 = redis::cmd("ZCARD").arg(&key).query_async(&mut redis).await.unwrap();
        assert_eq!(members, 3, "{when}");
        // one that is not refreshed only ever loses seconds, until it is gone
        let least = AtomicI64::new(i64::MAX);
        wait_until("the board is refreshed", async || {
            let mut redis = redis.clone();
            let seconds: i64 = redis::cmd("TTL").arg(&key).query_async(&mut redis).await.unwrap();
            assert!((0..=30).contains(&seconds), "{key} lives {seconds} s, {when}");
            seconds > least.swap(seconds, Ordering::Relaxed)
        })
        .await;
    }
}

/// What is wrong, or has been so for as long as this.
fn complaint(status: &Value, seconds: f64) -> Option<String> {
    let is_old = |sink: &&Value| sink["heartbeat_age_seconds"].as_f64().is_none_or(|age| age >= seconds);
    let is_late = |sink: &&Value| sink["lag_seconds"].as_f64().is_none_or(|lag| lag > 30.0);
    let sink = status["sinks"].as_array().unwrap().iter().find(|sink| is_old(sink) || is_late(sink));
    let problem = (!status["problem"].is_null()).then(|| status["problem"].to_string());
    problem.or_else(|| sink.map(Value::to_string))
}

fn seconds_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed()
}

/// The timestamps of the events' records, in seconds since 1970, as another client shows them.
fn kafka_times(world: &World) -> Vec<i64> {
    let kcat = std::process::Command::new("kcat")
        .args(["-C", "-q", "-e", "-o", "beginning", "-X", "isolation.level=read_committed", "-f", "%T\n"])
        .args(["-b", &env("KAFKA_BROKERS", "127.0.0.1:29092"), "-t"])
        .arg(format!("{}.events", world.topic_prefix))
        .output()
        .expect("kcat runs: install it with apt-get install kcat");
    let text = String::from_utf8(kcat.stdout).unwrap();
    text.lines().map(|millis| millis.parse::<i64>().unwrap() / 1000).collect()
}

/// The clock of walcast's machine jumps, and is set right again.
async fn walcasts_clock_jumps(seconds: &str) {
    let file = std::env::temp_dir().join(fresh_name("clock"));
    let set = |seconds: &str| {
        // as one act: it is read at each look at the clock
        std::fs::write(file.with_extension("new"), seconds).unwrap();
        std::fs::rename(file.with_extension("new"), &file).unwrap();
    };
    set("+0");
    let variables = services::command(&["clock", &file.to_string_lossy()]);
    let variables = variables.lines().filter_map(|line| line.split_once('='));
    let world = World::new(fresh_database(crate::support::postgres()).await).await;
    let world = world.with_all(variables.map(|(name, value)| (name.into(), value.into())));
    let mut watched = Watched::start(world, "10min").await;
    for seconds in [seconds, "+0"] {
        set(seconds);
        let when = format!("walcast's clock at {seconds} s");
        watched.goes_on(&when).await;
    }
    watched.running.stop().await;
    std::fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn walcasts_clock_jumps_forward_and_back() {
    walcasts_clock_jumps("+3605").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn walcasts_clock_jumps_back_and_forward() {
    walcasts_clock_jumps("-3605").await;
}

/// The clock of PostgreSQL's machine jumps, and is set right again.
async fn the_servers_clock_jumps(version: &str, seconds: &str) {
    services::command(&["postgres", version, "wipe"]);
    let set = |seconds: &str| drop(services::command(&["postgres", version, "clock", seconds]));
    set("+0");
    let server = services::postgres(version, &[]);
    let world = World::new(fresh_database(server).await).await;
    let mut watched = Watched::start(world, "24h").await;
    for seconds in [seconds, "+0"] {
        // the walsender takes the jump for a long silence: what no sink holds yet comes again by the new clock
        watched.world.insert_events(3).await;
        watched.events += 3;
        set(seconds);
        watched.goes_on(&format!("PostgreSQL's clock at {seconds} s")).await;
    }
    let Watched { world, running, .. } = watched;
    running.stop().await;
    drop(world);
    services::command(&["postgres", version, "wipe"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_clock_jumps_forward_and_back() {
    the_servers_clock_jumps("18:ahead", "+3605").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_clock_jumps_back_and_forward() {
    the_servers_clock_jumps("18:behind", "-3605").await;
}
