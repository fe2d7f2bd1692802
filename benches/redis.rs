//! What the Redis sink costs, against a server of its own (`appendonly yes`, `appendfsync always`):
//! `cargo bench --bench redis [backlog|steady|day]`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, dead_code)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use uuid::Uuid;
use walcast::batch::{Batch, BatchBuilder, Event, Row};
use walcast::lsn::{Checkpoint, Lsn, Position};
use walcast::model::content::Content;
use walcast::sink::Sink;
use walcast::sink::redis::RedisSink;

use support::redis_server::{Server, connect, run};
use support::story::{SECOND, START, Time, session};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == name);
    if wants("backlog") {
        for contents in [10_000, 100_000] {
            backlog("uniform", contents, &mut |rng| rng.random_range(0..contents)).await;
            let zipf = Zipf::new(contents as f64, 1.0).unwrap();
            backlog("zipf", contents, &mut |rng| zipf.sample(rng) as u64 - 1).await;
        }
    }
    if wants("steady") {
        steady().await;
    }
    if wants("day") {
        day().await;
    }
}

struct Bench {
    server: Server,
    time: Time,
    sink: RedisSink,
    rng: StdRng,
    contents: Vec<Arc<Content>>,
    builder: BatchBuilder,
    next_lsn: u64,
}

impl Bench {
    async fn new(contents: u64) -> Bench {
        let server = Server::start(&["appendonly yes", "appendfsync always"]).await;
        let time = Time::real();
        let mut sink = RedisSink::with_clock(server.config.clone(), time.clock());
        sink.recover(&session(1)).await.unwrap();
        let contents = (0..contents).map(content).collect();
        let builder = BatchBuilder::new(Checkpoint::at(START));
        Bench { server, time, sink, rng: StdRng::seed_from_u64(7), contents, builder, next_lsn: START.0 + 8 }
    }

    /// A batch of one transaction.
    fn batch(&mut self, rows: usize, pick: &mut dyn FnMut(&mut StdRng) -> u64, age: i64) -> Arc<Batch> {
        let commit_lsn = Lsn(self.next_lsn);
        self.next_lsn += 48;
        let now = self.time.now();
        for ordinal in 0..rows as u64 {
            let content = Arc::clone(&self.contents[pick(&mut self.rng) as usize]);
            let kind = ["play", "pause", "finish", "click"][self.rng.random_range(0..4)];
            let event = Event {
                extra: Default::default(),
                position: Position { commit_lsn, ordinal },
                commit_ts: now,
                id: 0,
                content_id: Some(content.id),
                user_id: None,
                event_type: Some(self.builder.intern(kind)),
                event_ts: now - age - self.rng.random_range(0..2 * SECOND),
                duration_ms: (kind != "click").then(|| self.rng.random_range(1..300_000)),
                device: None,
                raw_payload: None,
                raw_payload_bytes: None,
                content: Some(content),
            };
            self.builder.push(Row::Event(event));
        }
        self.builder.hold(Lsn(commit_lsn.0 + 40));
        Arc::new(self.builder.finish(false))
    }

    async fn redis_cpu(&self) -> f64 {
        let info: String = run(&mut connect(&self.server.config).await, &["INFO", "cpu"]).await;
        let field = |name: &str| -> f64 {
            info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
        };
        field("used_cpu_sys:") + field("used_cpu_user:")
    }

    async fn redis_memory(&self) -> f64 {
        let info: String = run(&mut connect(&self.server.config).await, &["INFO", "memory"]).await;
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
        line.trim().parse::<f64>().unwrap() / 1e6
    }
}

fn content(n: u64) -> Arc<Content> {
    Arc::new(Content {
        id: Uuid::from_u64_pair(n.wrapping_mul(0x9E37_79B9_7F4A_7C15), n),
        slug: Some(format!("some-slug-of-content-{n}")),
        title: Some(format!("Some title of content {n}")),
        content_type: Some(["podcast", "newsletter", "video"][n as usize % 3].into()),
        length_seconds: Some(1_800),
        publish_ts: Some(1_767_323_045_678_901),
    })
}

/// 600,000 events as fast as they go, in writes of 16 batches.
async fn backlog(name: &str, contents: u64, pick: &mut dyn FnMut(&mut StdRng) -> u64) {
    let mut bench = Bench::new(contents).await;
    let events = 600_000;
    let writes: Vec<Vec<_>> =
        (0..events / 16_384).map(|_| (0..4).map(|_| bench.batch(4_096, pick, 0)).collect()).collect();
    let (cpu, redis_cpu, begun) = (process_cpu(), bench.redis_cpu().await, Instant::now());
    for batches in &writes {
        bench.sink.write(batches).await.unwrap();
        bench.sink.tick().await.unwrap();
    }
    let (seconds, events) = (begun.elapsed().as_secs_f64(), (writes.len() * 4 * 4_096) as f64);
    let per_event = |cpu: f64| cpu / events * 1e6;
    println!(
        "backlog, {contents} contents {name:>7}: {:>7.0} events/s, {:.2} us CPU an event here, {:.2} at Redis",
        events / seconds,
        per_event(process_cpu() - cpu),
        per_event(bench.redis_cpu().await - redis_cpu),
    );
}

/// 3,333 events a second, a batch every 2 ms, for 10 s: how long a write takes.
async fn steady() {
    let mut bench = Bench::new(10_000).await;
    let zipf = Zipf::new(10_000.0, 1.0).unwrap();
    let mut pick = |rng: &mut StdRng| zipf.sample(rng) as u64 - 1;
    let mut writes = Vec::new();
    let mut ticks = Vec::new();
    let (cpu, redis_cpu, begun) = (process_cpu(), bench.redis_cpu().await, Instant::now());
    let (mut events, mut passed) = (0, 0);
    while begun.elapsed() < Duration::from_secs(10) {
        let due = (begun.elapsed().as_secs_f64() * 3_333.0) as usize;
        bench.time.pass(begun.elapsed().as_micros() as i64 - passed);
        passed = begun.elapsed().as_micros() as i64;
        if due > events {
            let batch = bench.batch(due - events, &mut pick, 0);
            events = due;
            let at = Instant::now();
            bench.sink.write(&[batch]).await.unwrap();
            writes.push(at.elapsed());
        }
        if ticks.len() < (begun.elapsed().as_millis() / 100) as usize {
            let at = Instant::now();
            bench.sink.tick().await.unwrap();
            ticks.push(at.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "steady, {:.0} events/s: write {}, tick {}, {:.1} us CPU an event here, {:.1} at Redis",
        events as f64 / seconds,
        quantiles(&mut writes),
        quantiles(&mut ticks),
        (process_cpu() - cpu) / events as f64 * 1e6,
        (bench.redis_cpu().await - redis_cpu) / events as f64 * 1e6,
    );
}

/// 100,000 contents, each active in every bucket of the day: memory, boards, restart.
async fn day() {
    const CONTENTS: u64 = 100_000;
    let mut bench = Bench::new(CONTENTS).await;
    println!("day, at first: {:.0} MB resident, {:.0} MB at Redis", resident(), bench.redis_memory().await);
    let begun = Instant::now();
    for bucket in (0..60).rev() {
        let mut n = 0;
        for _ in 0..CONTENTS.div_ceil(4_096) {
            let mut each = |_: &mut StdRng| {
                n = (n + 1) % CONTENTS;
                n
            };
            let batch = bench.batch(4_096, &mut each, bucket * 24 * 60 * SECOND);
            bench.sink.write(&[batch]).await.unwrap();
            // as time would pass between two batches
            bench.time.pass(SECOND);
            bench.sink.tick().await.unwrap();
        }
    }
    println!(
        "day, 6,000,000 sums: {:.0} MB resident, {:.0} MB at Redis, after {:.0?}",
        resident(),
        bench.redis_memory().await,
        begun.elapsed()
    );
    let mut ticks = Vec::new();
    let mut cpu = Vec::new();
    for _ in 0..100 {
        let batch = bench.batch(333, &mut |rng| rng.random_range(0..CONTENTS), 0);
        bench.sink.write(&[batch]).await.unwrap();
        bench.time.pass(SECOND / 10);
        let (at, before) = (Instant::now(), process_cpu());
        bench.sink.tick().await.unwrap();
        ticks.push(at.elapsed());
        cpu.push(Duration::from_secs_f64(process_cpu() - before));
    }
    println!("day, boards every 100 ms: tick {}, CPU here {}", quantiles(&mut ticks), quantiles(&mut cpu));
    let begun = Instant::now();
    bench.sink.recover(&session(2)).await.unwrap();
    println!(
        "day, recovered in {:.0?}; {:.0} MB resident, peak {:.0} MB",
        begun.elapsed(),
        resident(),
        peak()
    );
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("p50 {:.1?} p99 {:.1?} max {:.1?}", at(0.5), at(0.99), at(1.0))
}

fn status(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1e3
}

fn resident() -> f64 {
    status("VmRSS:")
}

fn peak() -> f64 {
    status("VmHWM:")
}

/// Seconds of CPU of this process.
fn process_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    let main = text.split(' ').next().unwrap().parse::<f64>().unwrap();
    main / 1e9
}
