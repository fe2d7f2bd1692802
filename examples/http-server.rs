//! An HTTP target as a process of its own, for measuring: it counts events, and how old they are when they come.
#![allow(missing_docs)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::get;
use clap::Parser;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Answers 204 to every POST, and keeps nothing but counts; GET tells them and begins anew.
///
/// Prints its URL, for HTTP_URL, and serves until it is killed.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// How much later each request is answered, in milliseconds.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

const COMMITTED: &[u8] = b"\"commit_ts\":\"";

#[derive(Default)]
struct Seen {
    requests: u64,
    events: u64,
    /// Of the oldest event of each request, in milliseconds.
    ages: Vec<u64>,
}

struct Target {
    seen: Mutex<Seen>,
    delay: Duration,
}

impl Target {
    fn take(&self, body: &[u8]) -> Option<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_micros();
        let events = body.windows(COMMITTED.len()).filter(|window| *window == COMMITTED).count();
        let first = body.windows(COMMITTED.len()).position(|window| window == COMMITTED)? + COMMITTED.len();
        let text = std::str::from_utf8(body.get(first..)?.split(|byte| *byte == b'"').next()?).ok()?;
        let committed = text.parse::<Timestamp>().ok()?.as_microsecond();
        let age = now.saturating_sub(u128::try_from(committed).ok()?) / 1_000;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.requests += 1;
        seen.events += events as u64;
        seen.ages.push(age as u64);
        Some(())
    }

    fn told(&self) -> Value {
        let mut seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        seen.ages.sort_unstable();
        let share = |share: usize| seen.ages.get(seen.ages.len().saturating_sub(1) * share / 1_000);
        json!({
            "requests": seen.requests, "events": seen.events,
            "p50_ms": share(500), "p95_ms": share(950), "p99_ms": share(990), "p999_ms": share(999), "max_ms": share(1_000),
        })
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let target =
        Arc::new(Target { seen: Mutex::default(), delay: Duration::from_millis(arguments.delay_ms) });
    let post = async |State(target): State<Arc<Target>>, body: Bytes| {
        if !target.delay.is_zero() {
            tokio::time::sleep(target.delay).await;
        }
        match target.take(&body) {
            Some(()) => StatusCode::NO_CONTENT,
            None => StatusCode::BAD_REQUEST,
        }
    };
    let tell = async |State(target): State<Arc<Target>>| Json(target.told());
    let routes = axum::Router::new()
        .route("/", get(tell).post(post))
        .layer(DefaultBodyLimit::disable())
        .with_state(target);
    let listener = tokio::net::TcpListener::bind(&arguments.listen).await?;
    println!("http://{}/", listener.local_addr()?);
    axum::serve(listener, routes).await
}
