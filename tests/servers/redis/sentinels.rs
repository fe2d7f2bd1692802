//! Sentinels, and the failovers that they lead.

use std::time::Instant;

use walcast::error::Code;
use walcast::lsn::Checkpoint;
use walcast::sink::redis::{RedisConfig, RedisSink};
use walcast::sink::{Sink, SinkAdmin, Verdict, Written};

use super::{assert_shown, recovered, refused};
use crate::support::redis_server::{Kind, Server, connect, run, try_connect, try_run};
use crate::support::story::{Story, Time, session};
use crate::support::{DEADLINE, env, wait_until};

const MASTER: &str = "mymaster";
/// What a failover may make of a write.
const OF_A_FAILOVER: [Code; 4] =
    [Code::RedisUnreachable, Code::RedisReplica, Code::RedisNotReplicated, Code::RedisChanged];

/// How many failovers in a row; `make chaos` has more.
fn failovers(few: usize) -> usize {
    env("FAILOVERS", &few.to_string()).parse().unwrap()
}

/// A master, its replicas, and one sentinel that watches them.
struct Watched {
    servers: Vec<Server>,
    sentinel: Server,
}

impl Watched {
    async fn start(kind: Kind, replicas: usize) -> Watched {
        let durable = ["appendonly yes", "appendfsync always", "repl-diskless-sync-delay 0"];
        let master = Server::start_as(kind, &durable).await;
        let port = master.config.port;
        let mut servers = vec![master];
        for _ in 0..replicas {
            let follow = format!("replicaof 127.0.0.1 {port}");
            servers.push(Server::start_as(kind, &[&durable[..], &[&follow]].concat()).await);
        }
        let monitor = format!("sentinel monitor {MASTER} 127.0.0.1 {port} 1");
        // not so little that it takes a master for dead to which it has just turned
        let patience = format!("sentinel down-after-milliseconds {MASTER} 3000");
        let timeout = format!("sentinel failover-timeout {MASTER} 3000");
        let sentinel = Server::start_as(kind, &[&monitor, &patience, &timeout]).await;
        let watched = Watched { servers, sentinel };
        watched.wait_for(replicas).await;
        watched
    }

    /// Returns when so many replicas follow the master, and the sentinel knows them.
    async fn wait_for(&self, replicas: usize) {
        wait_until("the replicas follow", async || {
            let Ok(mut master) = try_connect(&self.master().await.config).await else { return false };
            let info: String = run(&mut master, &["INFO", "replication"]).await;
            info.matches("state=online").count() == replicas
        })
        .await;
        wait_until("the sentinel knows the replicas", async || {
            let mut sentinel = connect(&self.sentinel.config).await;
            run::<String>(&mut sentinel, &["INFO", "sentinel"]).await.contains(&format!("slaves={replicas}"))
        })
        .await;
    }

    fn config(&self) -> RedisConfig {
        RedisConfig {
            sentinel_master: MASTER.into(),
            sentinel_addrs: vec![format!("127.0.0.1:{}", self.sentinel.config.port)],
            ..Default::default()
        }
    }

    async fn master_at(&self) -> usize {
        let mut sentinel = connect(&self.sentinel.config).await;
        let (_, port): (String, u16) =
            run(&mut sentinel, &["SENTINEL", "get-master-addr-by-name", MASTER]).await;
        self.servers.iter().position(|server| server.config.port == port).unwrap()
    }

    /// Asks for a planned one; the sentinel may not know the replicas well enough yet.
    async fn fail_over(&self) {
        wait_until("the sentinel begins", async || {
            let mut sentinel = connect(&self.sentinel.config).await;
            try_run::<String>(&mut sentinel, &["SENTINEL", "FAILOVER", MASTER]).await.is_ok()
        })
        .await;
    }

    async fn master(&self) -> &Server {
        &self.servers[self.master_at().await]
    }
}

/// A sink that writes event after event.
struct Writer {
    config: RedisConfig,
    sink: RedisSink,
    story: Story,
    /// What the sink has said it keeps.
    kept: Checkpoint,
    /// How often it was to be recovered.
    recovered: usize,
}

impl Writer {
    async fn start(config: RedisConfig) -> Writer {
        let story = Story::new(&Time::real());
        let (sink, kept) = recovered(&config, &story.time, 1).await;
        Writer { config, sink, story, kept, recovered: 0 }
    }

    /// One event more, and all that the sink does not keep yet. What it has kept it still has after a failover.
    async fn write(&mut self) {
        self.story.event(Some(1), Some("play"), 0, Some(1_000)).commit();
        let begun = Instant::now();
        while self.kept != self.story.end() {
            match self.sink.write(&self.story.beyond(self.kept, 100)).await {
                Ok(Written::Durable(kept)) => self.kept = kept,
                Ok(Written::Accepted) => panic!("a flush is durable"),
                Err(error) => {
                    assert!(OF_A_FAILOVER.contains(&error.code()), "{error:?}");
                    self.recover(begun).await;
                }
            }
        }
    }

    async fn recover(&mut self, begun: Instant) {
        self.recovered += 1;
        loop {
            match self.sink.recover(&session(1)).await {
                Ok(stored) => {
                    let stored = stored.map(|stored| stored.checkpoint).unwrap_or_default();
                    assert!(
                        stored.covers(&self.kept),
                        "{stored:?} is behind {:?}, which was kept",
                        self.kept
                    );
                    self.kept = stored;
                    return;
                }
                Err(error) => {
                    assert!(OF_A_FAILOVER.contains(&error.code()), "{error:?}");
                    assert!(begun.elapsed() < DEADLINE, "{error:?}");
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Writes until the sentinel names another master, and some events more.
    async fn write_until_switched(&mut self, watched: &Watched, from: usize) {
        let begun = Instant::now();
        while watched.master_at().await == from {
            assert!(begun.elapsed() < DEADLINE, "no failover");
            self.write().await;
        }
        for _ in 0..20 {
            self.write().await;
        }
    }
}

#[tokio::test]
async fn nothing_that_was_kept_is_lost_in_planned_failovers() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let watched = Watched::start(kind, 2).await;
        RedisSink::new(watched.config()).prepare().await.unwrap();
        let mut writer = Writer::start(watched.config()).await;
        for _ in 0..failovers(2) {
            for _ in 0..20 {
                writer.write().await;
            }
            let (from, recovered) = (watched.master_at().await, writer.recovered);
            watched.fail_over().await;
            writer.write_until_switched(&watched, from).await;
            assert!(writer.recovered > recovered, "it went on at the former master");
            // which follows by then
            watched.wait_for(2).await;
        }
        let shown = RedisConfig { db: writer.config.db, ..watched.master().await.config.clone() };
        writer.sink.tick().await.unwrap();
        assert_shown(&shown, &writer.story, "at the last master").await;
    }
}

#[tokio::test]
async fn nothing_that_was_kept_is_lost_when_the_master_is_killed() {
    for kind in [Kind::Redis, Kind::Valkey] {
        let mut watched = Watched::start(kind, 2).await;
        let mut writer = Writer::start(watched.config()).await;
        for _ in 0..failovers(1) {
            for _ in 0..20 {
                writer.write().await;
            }
            let from = watched.master_at().await;
            watched.servers[from].kill();
            writer.write_until_switched(&watched, from).await;
            // comes back as one that follows
            watched.servers[from].start_again().await;
            watched.wait_for(2).await;
        }
        writer.write().await;
        writer.sink.tick().await.unwrap();
        assert_shown(&watched.master().await.config, &writer.story, "at the last master").await;
    }
}

#[tokio::test]
async fn without_a_replica_nothing_counts_as_kept() {
    let mut watched = Watched::start(Kind::Redis, 1).await;
    let mut writer = Writer::start(watched.config()).await;
    writer.write().await;
    let replica = 1 - watched.master_at().await;
    watched.servers[replica].kill();
    writer.story.event(Some(1), Some("play"), 0, Some(1_000)).commit();
    let lonely = writer.sink.write(&writer.story.beyond(writer.kept, 100)).await;
    let place = format!("on 0 replicas and not 127.0.0.1:{}", watched.servers[replica].config.port);
    refused(lonely, Code::RedisNotReplicated, &place);
    // what is there, and may be lost, is not what it goes on from
    refused(writer.sink.recover(&session(1)).await, Code::RedisNotReplicated, "INFO replication");
    let told = RedisSink::new(watched.config()).check().await;
    let told = told.into_iter().find(|finding| finding.id == "redis.replicas").unwrap();
    assert_eq!(told.verdict, Verdict::Warn, "{told:?}");
    let asks_none = RedisConfig { replicas_min: Some(0), ..watched.config() };
    RedisSink::new(asks_none).recover(&session(1)).await.unwrap();
    watched.servers[replica].start_again().await;
    writer.recover(Instant::now()).await;
    writer.write().await;
}

#[tokio::test]
async fn sentinels_that_cannot_be_asked_are_told_as_what_they_are() {
    let named = |master: &str, addrs: &[&str]| RedisConfig {
        sentinel_master: master.into(),
        sentinel_addrs: addrs.iter().map(|addr| (*addr).to_owned()).collect(),
        ..Default::default()
    };
    for config in [named("mymaster", &[]), named("", &["127.0.0.1:1"])] {
        refused(RedisSink::new(config).prepare().await, Code::Configuration, "need each other");
    }
    let without_port = named("mymaster", &["localhost"]);
    refused(RedisSink::new(without_port).prepare().await, Code::Configuration, "host:port");
    let absent = named("mymaster", &["127.0.0.1:1"]);
    refused(RedisSink::new(absent).prepare().await, Code::RedisUnreachable, "redis master mymaster");
}
