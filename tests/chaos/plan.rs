//! Which deaths a series has, drawn from a seed.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// How one life of walcast ends.
#[derive(Debug, Clone)]
pub enum Death {
    /// kill -9 after so long, which may be in the middle of its start.
    After(Duration),
    /// At a failpoint, once it has let so many passes go by.
    At { failpoint: String, passes: u32 },
}

impl fmt::Display for Death {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Death::After(time) => write!(formatter, "kill -9 after {time:?}"),
            Death::At { failpoint, passes } => write!(formatter, "at {failpoint} after {passes} passes"),
        }
    }
}

/// From `WALCAST_SEED`, or from one that is printed.
pub fn seeded() -> StdRng {
    let seed = std::env::var("WALCAST_SEED").ok().map(|text| text.parse().unwrap());
    let seed = seed.unwrap_or_else(rand::random::<u64>);
    println!("WALCAST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// So many deaths: every second one at a failpoint, each of which has its turn before one comes again.
pub fn deaths(rng: &mut StdRng, count: usize) -> Vec<Death> {
    let mut turn = Vec::new();
    let mut deaths = Vec::new();
    while deaths.len() < count {
        deaths.push(Death::After(Duration::from_millis(rng.random_range(0..3_000))));
        if turn.is_empty() {
            turn = failpoints_of_a_run();
            turn.shuffle(rng);
        }
        deaths.extend(turn.pop().into_iter().flat_map(|failpoint| at(rng, failpoint)));
    }
    deaths.truncate(count);
    deaths
}

/// A death at a failpoint, after the one that lets it be reached.
fn at(rng: &mut StdRng, failpoint: String) -> Vec<Death> {
    let passes = match failpoint.as_str() {
        "kafka_after_row" => rng.random_range(0..500),
        "pipeline_after_batch" => rng.random_range(0..50),
        name if is_once_a_life(name) => 0,
        _ => rng.random_range(0..8),
    };
    // there is only something to settle after a commit that was begun
    let before = failpoint
        .starts_with("bigquery_recover")
        .then(|| Death::At { failpoint: "bigquery_before_commit".into(), passes: 0 });
    before.into_iter().chain([Death::At { failpoint, passes }]).collect()
}

fn is_once_a_life(failpoint: &str) -> bool {
    failpoint.contains("_recover_")
        || failpoint.starts_with("pipeline_after_")
        || failpoint.starts_with("bigquery_")
        // buckets are packed only once they have been at rest for seconds
        || failpoint == "redis_before_pack"
}

/// Those that `walcast run` on a slot that is there already can reach.
fn failpoints_of_a_run() -> Vec<String> {
    let elsewhere = ["history_id_", "driver_", "redis_rebuild_"];
    let in_a_run = |name: &String| !elsewhere.iter().any(|prefix| name.starts_with(prefix));
    failpoints().into_iter().filter(in_a_run).collect()
}

/// All that the source names.
pub fn failpoints() -> Vec<String> {
    let mut names = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    names.sort();
    names
}

fn collect(folder: &Path, names: &mut Vec<String>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            collect(&path, names);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for call in text.split("failpoint!(\"").skip(1) {
            let (name, rest) = call.split_once('"').unwrap();
            if rest.starts_with(");") || rest.starts_with(", blocking);") {
                names.push(name.to_owned());
            }
        }
    }
}
