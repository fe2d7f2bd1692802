//! PostgreSQL fails over under load, again and again, with a walcast that streams and one that waits: where PostgreSQL's settings
//! keep all that was committed (synchronous replication, and `synchronized_standby_slots`), every event is in every sink once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::Client;
use walcast::source::{PostgresConfig, sql};

use crate::support::pair::{Pair, standby_of};
use crate::support::running::Running;
use crate::support::world::World;
use crate::support::{fresh_database, run, services, wait_until, wait_until_within};

/// A transaction of the load.
const ROWS: i64 = 100;
/// 3,333 rows a second.
const EVERY: Duration = Duration::from_millis(30);
const TAKEOVER_MAX: Duration = Duration::from_secs(5);
/// How long the load goes on between two failovers.
const CALM: Duration = Duration::from_secs(2);

fn rounds() -> usize {
    std::env::var("FAILOVERS").map_or(2, |rounds| rounds.parse().expect("FAILOVERS is a number"))
}

/// Two servers, of which one is the primary.
struct Cluster {
    labels: [String; 2],
    servers: [PostgresConfig; 2],
    primary: usize,
}

impl Cluster {
    fn standby(&self) -> usize {
        1 - self.primary
    }

    /// As applications name it.
    fn hosts(&self) -> String {
        self.servers.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect::<Vec<_>>().join(",")
    }

    async fn on_primary(&self) -> Client {
        sql::connect(&self.servers[self.primary]).await.unwrap()
    }

    /// Nothing is committed or sent to walcast that the standby has not.
    async fn keeps_all(&self) {
        let primary = self.on_primary().await;
        run(&primary, "ALTER SYSTEM SET synchronous_standby_names = 'walreceiver'").await;
        run(&primary, "ALTER SYSTEM SET synchronized_standby_slots = 'standby'").await;
        run(&primary, "SELECT pg_reload_conf()").await;
        wait_until("the standby is waited for", async || {
            let query = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')";
            primary.query_one(query, &[]).await.unwrap().get(0)
        })
        .await;
    }

    /// The primary dies, or is stopped in good order, and its standby takes its place. Returns when that took writes.
    async fn fail_over(&mut self, crash: bool) -> Instant {
        let how = if crash { "kill" } else { "down" };
        command(&["postgres", &self.labels[self.primary], how]);
        self.primary = self.standby();
        let new = self.on_primary().await;
        assert!(new.query_one("SELECT pg_promote()", &[]).await.unwrap().get::<_, bool>(0));
        let promoted = Instant::now();
        // what whoever leads a cluster does while there is no standby
        for setting in ["synchronous_standby_names", "synchronized_standby_slots"] {
            run(&new, &format!("ALTER SYSTEM SET {setting} = ''")).await;
        }
        run(&new, "SELECT pg_reload_conf()").await;
        promoted
    }

    /// The former primary comes back as the standby, with a copy of the new one's data.
    async fn rejoin(&self, slot: &str) {
        let [primary, standby] = [self.primary, self.standby()];
        let make = "SELECT pg_create_physical_replication_slot('standby')
                    WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'standby')";
        run(&self.on_primary().await, make).await;
        command(&["postgres", &self.labels[primary], "down"]);
        command(&["postgres", &self.labels[standby], "copy", &self.labels[primary], "standby"]);
        up(&self.labels[primary], &[]);
        let settings = standby_of(&self.servers[primary]);
        up(&self.labels[standby], &settings.each_ref().map(String::as_str));
        let standby = async || sql::connect(&self.servers[standby]).await;
        wait_until("the standby answers", async || standby().await.is_ok()).await;
        let (standby, primary) = (standby().await.unwrap(), self.on_primary().await);
        wait_until_within(Duration::from_secs(180), "the standby keeps the slot", async || {
            run(&primary, "SELECT pg_log_standby_snapshot()").await;
            let kept = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = $1";
            standby.query_opt(kept, &[&slot]).await.unwrap().is_some_and(|row| row.get(0))
        })
        .await;
    }
}

fn command(arguments: &[&str]) {
    tokio::task::block_in_place(|| services::command(arguments));
}

fn up(label: &str, settings: &[&str]) {
    tokio::task::block_in_place(|| services::postgres(label, settings));
}

/// Writes events, one transaction after the other, to whichever host takes them; gives the ids of those that were said to be
/// committed.
fn load(config: PostgresConfig, ended: Arc<AtomicBool>) -> JoinHandle<Vec<i64>> {
    const INSERT: &str = "
        INSERT INTO engagement_events (content_id, user_id, event_type, event_ts, duration_ms, device)
        SELECT ('00000000-0000-0000-0000-00000000000' || 1 + i % 3)::uuid, gen_random_uuid(), 'play', now(), 1000, 'tv'
        FROM generate_series(1, $1::bigint) AS i RETURNING id";
    tokio::spawn(async move {
        let (mut committed, mut tick) = (Vec::new(), tokio::time::interval(EVERY));
        'sessions: while !ended.load(Ordering::SeqCst) {
            tick.tick().await;
            let Ok(client) = sql::connect(&config).await else { continue };
            while !ended.load(Ordering::SeqCst) {
                tick.tick().await;
                match client.query(INSERT, &[&ROWS]).await {
                    Ok(rows) => committed.extend(rows.iter().map(|row| row.get::<_, i64>(0))),
                    Err(_) => continue 'sessions,
                }
            }
        }
        committed
    })
}

async fn nothing_is_lost(version: &str) {
    let pair = Pair::of(version, "failovers").await;
    let mut cluster = Cluster {
        labels: pair.labels.clone(),
        servers: [pair.primary.clone(), pair.standby.clone()],
        primary: 0,
    };
    let config = PostgresConfig { host: cluster.hosts(), ..fresh_database(pair.primary.clone()).await };
    let world = World::new(config.clone())
        .await
        .with("PIPELINE_SINKS", "kafka,redis")
        .with("POSTGRES_HOST", &cluster.hosts());
    world.walcast(["init"]).await.expect(0, &[]);
    let mut running = [world.start().await, world.spawn()];
    world.insert_events(ROWS).await;
    let mut at_first = world.clone();
    at_first.postgres = PostgresConfig { host: pair.primary.host.clone(), ..config.clone() };
    pair.synced(&at_first).await;
    drop(at_first);
    cluster.keeps_all().await;
    let ended = Arc::new(AtomicBool::new(false));
    let writing = load(config.clone(), Arc::clone(&ended));
    let mut takeovers = Vec::new();
    for round in 0..rounds() {
        tokio::time::sleep(CALM).await; // load, no condition: what follows must strike in the middle of it
        let crash = round % 2 == 0;
        let promoted = cluster.fail_over(crash).await;
        wait_until("one of them streams", async || streams(&running).await).await;
        takeovers.push((crash, promoted.elapsed()));
        cluster.rejoin(&config.slot).await;
        cluster.keeps_all().await;
        for one in &mut running {
            // the one that had the slot finds it taken, and whoever runs services starts it again
            if one.ends_within(Duration::ZERO).await {
                assert_eq!(one.ended().await, Some(5), "{}", one.log.lock().await);
                *one = world.spawn();
            }
        }
        wait_until("one of them streams", async || streams(&running).await).await;
    }
    ended.store(true, Ordering::SeqCst);
    let committed = writing.await.unwrap();
    assert!(!committed.is_empty());
    let client = sql::connect(&config).await.unwrap();
    let lost = "SELECT count(*) FROM unnest($1::bigint[]) AS id
                WHERE NOT EXISTS (SELECT FROM engagement_events AS event WHERE event.id = id)";
    let lost: i64 = client.query_one(lost, &[&committed]).await.unwrap().get(0);
    assert_eq!(lost, 0, "PostgreSQL itself has lost what it had committed: this proves nothing");
    world.verify().await;
    println!("PostgreSQL {version}: {} events over {} failovers", committed.len(), takeovers.len());
    for (crash, took) in &takeovers {
        println!(
            "  {}: streaming again {took:.1?} after the promotion",
            if *crash { "a crash" } else { "a switchover" }
        );
    }
    assert!(takeovers.iter().all(|(_, took)| *took < TAKEOVER_MAX), "{takeovers:?}");
    for one in running {
        one.kill().await;
    }
    drop((client, world));
    pair.wipe();
}

async fn streams(running: &[Running; 2]) -> bool {
    running[0].is_streaming().await || running[1].is_streaming().await
}

#[ignore = "long: make chaos"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_in_failovers_of_17() {
    nothing_is_lost("17").await;
}

#[ignore = "long: make chaos"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_in_failovers_of_18() {
    nothing_is_lost("18").await;
}

#[ignore = "long: make chaos"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_in_failovers_of_19() {
    nothing_is_lost("19").await;
}
