//! Servers are killed and restarted, and wires to them fail, under load, while one walcast goes on.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::process::Child;

use crate::plan::seeded;
use crate::support::running::Running;
use crate::support::services::Servers;
use crate::support::wire::{Weather, Wire};
use crate::support::world::World;
use crate::support::{fresh_database, wait_until_within};
use crate::{RATE_PER_MINUTE, is_long};
use walcast::source::PostgresConfig;

const PORT_SHIFT: u16 = 3_000;
/// How long a fault of the wire lasts.
const BAD_WEATHER: Duration = Duration::from_secs(3);
/// How long a fault's backlog may take; the emulator of BigQuery is slower than the load while it catches up.
const FLOWS_WITHIN: Duration = Duration::from_secs(300);
/// How soon lost data must have ended the process.
const GAP_WITHIN: Duration = Duration::from_secs(10);

/// Servers of one's own, a wire before each, and a world that goes through them.
struct Stage {
    world: World,
    wires: Vec<(&'static str, Wire)>,
    servers: Servers,
}

impl Stage {
    async fn set() -> Stage {
        let wire = async |port: u16| Wire::to(port + PORT_SHIFT).await;
        let wires = vec![
            ("postgres", wire(25_432).await),
            ("kafka", wire(29_092).await),
            ("redis", wire(26_379).await),
            ("bigquery rest", wire(29_050).await),
            ("bigquery grpc", wire(29_060).await),
        ];
        let kafka = ("SERVICES_KAFKA_ADVERTISED_PORT", wires[1].1.port.to_string());
        let servers =
            tokio::task::spawn_blocking(|| Servers::start("chaos", PORT_SHIFT, &[kafka])).await.unwrap();
        let postgres = PostgresConfig { port: 25_432 + PORT_SHIFT, ..crate::support::postgres() };
        let world = World::new(fresh_database(postgres).await).await;
        let through = |name: usize| wires[name].1.port;
        let world = world.with_all([
            ("POSTGRES_PORT".into(), through(0).to_string()),
            ("KAFKA_BROKERS".into(), format!("127.0.0.1:{}", through(1))),
            ("KAFKA_TIMEOUT_MS".into(), "5000".into()),
            ("REDIS_PORT".into(), through(2).to_string()),
            ("BIGQUERY_REST_URL".into(), format!("http://127.0.0.1:{}", through(3))),
            ("BIGQUERY_GRPC_URL".into(), format!("http://127.0.0.1:{}", through(4))),
            ("BIGQUERY_COMMIT_SECONDS".into(), "1".into()),
        ]);
        world.walcast(["init"]).await.expect(0, &[]);
        Stage { world, wires, servers }
    }

    /// Load that does not go through a wire.
    fn load(&self) -> Child {
        let direct = self.world.with("POSTGRES_PORT", &self.world.postgres.port.to_string());
        direct.generate(if is_long() { RATE_PER_MINUTE } else { RATE_PER_MINUTE / 5 })
    }

    /// The slot passes what the WAL's end is now, and every sink with it.
    async fn flows(&self, after: &str) {
        let end = self.world.wal_end().await;
        let passes = format!("the slot passes {end} after {after}");
        wait_until_within(FLOWS_WITHIN, &passes, async || self.world.confirmed_lsn().await >= end).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_everywhere_once_after_each_server_died_and_each_wire_failed() {
    let mut rng = seeded();
    let stage = Stage::set().await;
    let mut load = stage.load();
    // at first: every comparison reads all that the emulator has, some thousand rows a second
    let mut running = redis_comes_back_empty(&stage).await;
    for fault in faults(&mut rng) {
        println!("{fault:?}");
        fault.strike(&stage).await;
        if load.try_wait().unwrap().is_some() {
            load = stage.load();
        }
        stage.flows(&format!("{fault:?}")).await;
        still_runs(&mut running).await;
    }
    let mut sinks = ["kafka", "redis", "bigquery"];
    sinks.shuffle(&mut rng);
    for sink in sinks.into_iter().take(if is_long() { 3 } else { 1 }) {
        filled_anew_while_servers_die(&stage, sink).await;
        still_runs(&mut running).await;
    }
    // the emulator, while it is written, reads a third as fast
    drop(load);
    stage.world.verify().await;
    running.stop().await;
}

/// The gap is loud and soon, the other sinks go on, and rebuilding mends it while events go on arriving.
async fn redis_comes_back_empty(stage: &Stage) -> Running {
    let running = stage.world.start().await;
    stage.flows("start").await;
    tokio::task::block_in_place(|| {
        stage.servers.command(&["kill", "redis", "KILL"]);
        stage.servers.command(&["wipe", "redis"]);
        stage.servers.command(&["up", "redis"]);
    });
    wait_until_within(GAP_WITHIN, "an empty Redis is told", async || {
        running.sink("redis").await["last_error_code"] == "WC-402"
    })
    .await;
    stage.flows("Redis lost its data").await;
    stage.world.walcast(["rebuild", "redis"]).await.expect(0, &["counted anew"]);
    stage.world.verify().await;
    running
}

async fn still_runs(running: &mut Running) {
    let ended = running.ends_within(Duration::ZERO).await;
    assert!(!ended, "walcast ended: {}", running.log.lock().await);
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// A server gets this signal, and is started again on its data.
    Signal(&'static str, &'static str),
    /// A server is stopped in good order, and started again.
    Restart(&'static str),
    /// A wire, by its place.
    Wire(usize, Weather),
}

/// PostgreSQL dies, and the target, while all rows are brought to it again.
async fn filled_anew_while_servers_die(stage: &Stage, sink: &'static str) {
    println!("{sink} is filled anew");
    let rebuild: &[&str] = match sink {
        "redis" => &["rebuild", "redis", "--detach"],
        _ => &["rebuild", sink, "--yes", "--rows-per-second", "5000", "--detach"],
    };
    stage.world.walcast(rebuild.iter().copied()).await.expect(0, &[]);
    for server in ["postgres", sink] {
        Fault::Signal(server, "KILL").strike(stage).await;
    }
    wait_until_within(FLOWS_WITHIN, "it is filled anew", async || {
        let told = stage.world.walcast(["backfill", "status"]).await.output;
        told.contains("done") && !told.contains("running")
    })
    .await;
    stage.flows("it was filled anew").await;
}

/// In random order: each server's deaths and three troubles of wires, and in the long form all of them.
fn faults(rng: &mut StdRng) -> Vec<Fault> {
    let mut faults = wire_faults();
    faults.shuffle(rng);
    if !is_long() {
        // silence is noticed after tens of seconds
        faults.retain(|fault| !matches!(fault, Fault::Wire(_, Weather::Silent)));
        faults.truncate(3);
    }
    faults.extend([
        Fault::Signal("postgres", "KILL"),
        // PostgreSQL's immediate shutdown, and with Restart its fast one
        Fault::Signal("postgres", "QUIT"),
        Fault::Restart("postgres"),
        Fault::Signal("kafka", "KILL"),
        Fault::Signal("redis", "KILL"),
        Fault::Signal("bigquery", "KILL"),
    ]);
    faults.shuffle(rng);
    faults
}

fn wire_faults() -> Vec<Fault> {
    let weathers = [Weather::Cut, Weather::Reset, Weather::Slow(20_000), Weather::Silent];
    (0..5).flat_map(|wire| weathers.map(|weather| Fault::Wire(wire, weather))).collect()
}

impl Fault {
    async fn strike(self, stage: &Stage) {
        let command =
            |arguments: &[&str]| drop(tokio::task::block_in_place(|| stage.servers.command(arguments)));
        match self {
            Fault::Signal(server, signal) => {
                command(&["kill", server, signal]);
                command(&["up", server]);
            }
            Fault::Restart(server) => command(&["restart", server]),
            Fault::Wire(wire, weather) => {
                let wire = &stage.wires[wire].1;
                wire.set(weather);
                tokio::time::sleep(BAD_WEATHER).await;
                wire.set(Weather::Fair);
            }
        }
    }
}
