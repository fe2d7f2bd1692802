//! walcast as users run it, with the sample receiver: check, run, status, verify.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::http_server::{Fault, HttpServer};
use crate::support::world::{World, http};
use crate::support::{env, wait_until};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The sample receiver; killed when dropped.
struct Receiver {
    url: String,
    _process: Child,
}

impl Receiver {
    async fn start(secrets: &str) -> Receiver {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/http-receiver.py");
        let mut process = Command::new(env("TEST_PYTHON", "python3"))
            .args([script, "--port", "0"])
            .env("WEBHOOK_SECRETS", secrets)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = lines.next_line().await.unwrap().unwrap();
        Receiver { url, _process: process }
    }

    async fn counts(&self) -> Value {
        http().get(&self.url).send().await.unwrap().json().await.unwrap()
    }

    async fn count(&self, what: &str) -> u64 {
        self.counts().await[what].as_u64().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_receiver_has_every_event_once_and_verify_finds_it_whole() {
    for (batch_rows, compression) in [("1", "none"), ("20", "gzip")] {
        let receiver = Receiver::start(&format!("whsec_{} {SECRET}", "A".repeat(32))).await;
        let world = World::initialised()
            .await
            .with("PIPELINE_SINKS", "http")
            .with("HTTP_URL", &receiver.url)
            .with("HTTP_VERIFY_URL", &format!("{}events", receiver.url))
            .with("HTTP_SIGNING_SECRETS", SECRET)
            .with("HTTP_BATCH_ROWS", batch_rows)
            .with("HTTP_COMPRESSION", compression);
        world.walcast(["check"]).await.expect(0, &["http http://127.0.0.1", "can be reached"]);
        let mut running = world.with("FAILPOINTS", "http_before_store=1*off->return").spawn();
        world.insert_events(60).await;
        assert!(running.ends_within(std::time::Duration::from_secs(20)).await, "killed before it stores");
        let running = world.start().await;
        world.insert_events(60).await;
        wait_until("the receiver has all", async || receiver.count("events").await == 120).await;
        world.walcast(["verify"]).await.expect(0, &["http", "all agree"]);
        assert_eq!(receiver.count("refused").await, 0);
        let status = running.json("/api/status").await;
        let line =
            status["sinks"].as_array().unwrap().iter().find(|sink| sink["name"] == "http").unwrap().clone();
        assert!(line["guarantee"].as_str().unwrap().starts_with("at least once: every repeat"), "{line}");
        assert_eq!(line["state"], "ok", "{line}");

        // a receiver that has lost all
        running.stop().await;
        let other = Receiver::start(SECRET).await;
        let empty =
            world.with("HTTP_VERIFY_URL", &format!("{}events", other.url)).with("HTTP_URL", &other.url);
        let running = empty.start().await;
        empty.walcast(["verify", "--json"]).await.expect(2, &["\"missing\": 120"]);
        empty.walcast(["rebuild", "http"]).await.expect(2, &["WC-255", "under another id", "--yes"]);
        empty.walcast(["rebuild", "http", "--yes"]).await.expect(0, &["done", "120 rows sent to http"]);
        empty.walcast(["verify"]).await.expect(0, &["http", "all agree"]);
        assert_eq!(other.count("events").await, 120, "each once");
        let acknowledged = world.with("HTTP_VERIFY_URL", "");
        acknowledged
            .walcast(["verify"])
            .await
            .expect(0, &["http: not read back; its target has acknowledged all"]);
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_receiver_takes_nothing_that_is_signed_by_another_and_walcast_says_why() {
    let receiver = Receiver::start(&format!("whsec_{}", "A".repeat(32))).await;
    let world = World::initialised().await.with("PIPELINE_SINKS", "http").with("HTTP_URL", &receiver.url);
    let world = world.with("HTTP_SIGNING_SECRETS", SECRET);
    let running = world.start().await;
    world.insert_events(5).await;
    wait_until("the sink tells its trouble", async || {
        let status = running.json("/api/status").await;
        status["sinks"].as_array().unwrap().iter().any(|sink| sink.to_string().contains("WC-336"))
    })
    .await;
    assert_eq!(receiver.count("events").await, 0);
    assert!(!running.log.lock().await.contains(SECRET));
    running.kill().await;
    let running = world.with("HTTP_SIGNING_SECRETS", &format!("whsec_{}", "A".repeat(32))).start().await;
    wait_until("the receiver has all", async || receiver.count("events").await == 5).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_counts_what_the_receiver_has_refused() {
    let server = HttpServer::start().await;
    server.refuses(|event| (event["event_id"] == 3).then_some(422));
    let world = World::initialised().await.with("PIPELINE_SINKS", "http").with("HTTP_URL", &server.url());
    let running = world.start().await;
    world.insert_events(10).await;
    world.walcast(["verify"]).await.expect(0, &["has acknowledged all up to", "but for 1 that"]);
    assert_eq!(server.event_ids().len(), 9);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_cannot_be_reached_and_posts_nothing() {
    let server = HttpServer::start().await;
    let world = World::initialised().await.with("PIPELINE_SINKS", "http").with("HTTP_URL", &server.url());
    world.walcast(["check"]).await.expect(0, &["can be reached (answers 204", "requests are not signed"]);
    server.always(Fault::Answer(405, ""));
    let told = world.walcast(["check"]).await;
    told.expect(0, &["can be reached (answers 405"]);
    assert!(server.posted().iter().all(|posted| posted.id().is_empty() && posted.body.is_empty()));
    let dead = world.with("HTTP_URL", "http://127.0.0.1:1/hook?token=canary").walcast(["check"]).await;
    dead.expect(2, &["http http://127.0.0.1:1", "WC-335"]);
    let unknown = world.with("HTTP_URL", "http://no-such-host.invalid/canary").walcast(["check"]).await;
    unknown.expect(2, &["http http://no-such-host.invalid:80", "WC-335"]);
    let wrong = world.with("HTTP_URL", "example.com/canary").walcast(["check"]).await;
    wrong.expect(2, &["http.url is not a URL"]);
    for ended in [told, dead, unknown, wrong] {
        assert!(!ended.output.contains("canary"), "{}", ended.output);
    }
}
