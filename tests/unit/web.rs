//! Health, metrics and status over a real listener, and `walcast status` as its reader.

mod strangers;

use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;
use walcast::error::{Code, Error};
use walcast::lsn::{Checkpoint, Lsn, Position};
use walcast::shutdown::{Shutdown, Trigger};
use walcast::telemetry::metrics;
use walcast::telemetry::queue_gauge::QueueGauge;
use walcast::telemetry::registry::StatusRegistry;
use walcast::telemetry::status::SlotStatus;
use walcast::web::{Web, WebConfig};

const DEADLINE: Duration = Duration::from_secs(30);

/// A served registry.
struct Site {
    registry: StatusRegistry,
    address: String,
    stop: Trigger,
    serving: JoinHandle<()>,
}

impl Site {
    async fn start(hosts: &[&str]) -> Site {
        let hosts = hosts.iter().map(|host| host.to_string()).collect();
        Site::serve(WebConfig { listen: "127.0.0.1:0".into(), hosts, ..WebConfig::default() }).await
    }

    async fn with_token(listen: &str, token: &str) -> Site {
        let token = token.to_owned().into();
        Site::serve(WebConfig { listen: listen.into(), token, ..WebConfig::default() }).await
    }

    async fn serve(config: WebConfig) -> Site {
        let web = Web::bind(&config).await.unwrap();
        let address = web.address().unwrap().to_string();
        let registry = StatusRegistry::new();
        let (stop, mut stopped) = Shutdown::manual();
        let recorder = metrics::install().unwrap();
        let serving =
            tokio::spawn(web.serve(registry.clone(), recorder, async move { stopped.wait().await }));
        Site { registry, address, stop, serving }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.address)).await.unwrap();
        assert_eq!(answer.headers().get("x-content-type-options").unwrap(), "nosniff", "{path}");
        assert!(answer.headers().get("access-control-allow-origin").is_none(), "{path}");
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn json(&self, path: &str) -> (u16, Value) {
        let (code, text) = self.get(path).await;
        (code, serde_json::from_str(&text).unwrap())
    }

    async fn asked_as(&self, host: &str) -> u16 {
        let request = reqwest::Client::new().get(format!("http://{}/api/status", self.address));
        request.header("host", host).send().await.unwrap().status().as_u16()
    }
}

#[tokio::test]
async fn readiness_names_what_is_not_ready() {
    let site = Site::start(&[]).await;
    let mut kafka = site.registry.sink("kafka", Checkpoint::at(Lsn(1)));
    site.registry.sink("redis", Checkpoint::at(Lsn(1)));
    let (code, answer) = site.json("/readyz").await;
    assert_eq!((code, &answer["checks"][0]["why"]), (503, &Value::from("it is starting")));

    site.registry.streaming(true);
    assert_eq!(site.json("/readyz").await.0, 200);

    kafka.failed(&Error::new(Code::KafkaUnreachable, "no broker answers").hint("start one"));
    assert_eq!(site.json("/readyz").await.0, 200, "no sink's trouble is another's");
    let (code, answer) = site.json("/readyz?sinks").await;
    assert_eq!(code, 503);
    let failed = serde_json::json!([
        { "name": "source", "ok": true, "why": null },
        { "name": "sink kafka", "ok": false, "why": "no broker answers; start one (WC-310)" },
        { "name": "sink redis", "ok": true, "why": null },
    ]);
    assert_eq!(answer, serde_json::json!({ "ready": false, "checks": failed }));
    assert_eq!(site.get("/livez").await, (200, "ok\n".to_owned()), "a restart would not help");
}

#[tokio::test]
async fn the_status_has_everything_of_every_sink() {
    let site = Site::start(&[]).await;
    let redis = site.registry.sink("redis", Checkpoint::at(Lsn(0x10)));
    let mut redis = redis.promising("exactly once", Duration::from_secs(5));
    site.registry.streaming(true);
    let position = Position { commit_lsn: Lsn(0x20), ordinal: 3 };
    redis.wrote([(position, tokio::time::Instant::now())]);
    redis.durable(Checkpoint { position: Some(position), durable_lsn: Lsn(0x30) });
    site.registry.source(Lsn(0x40), Lsn(0x30));
    site.registry.queue("redis", QueueGauge::full(9));
    site.registry.slot(SlotStatus { name: "w".into(), retained_bytes: 5, ..SlotStatus::default() });
    let (code, answer) = site.json("/api/status").await;
    assert_eq!(code, 200);
    assert_eq!(answer["state"], "streaming");
    assert_eq!(answer["confirmed_lsn"], "0/30");
    assert_eq!(answer["source"]["received_lsn"], "0/40");
    assert_eq!(answer["source"]["slot"]["retained_bytes"], 5);
    let mut sink = answer["sinks"][0].clone();
    assert!(sink["lag_seconds"].take().is_number());
    let expected = serde_json::json!({
        "name": "redis", "guarantee": "exactly once", "state": "ok", "durable_lsn": "0/30", "position": { "commit_lsn": "0/20", "ordinal": 3 },
        "lag_bytes": 16, "queue_lag_bytes": 16, "delivery_lag_bytes": 0, "lag_seconds": null,
        "heartbeat_age_seconds": null, "heartbeat_seconds": null, "queue_bytes": 9, "backpressure": false,
        "rows_total": 1, "last_error": null, "last_error_code": null, "failing_seconds": null, "trouble": null,
        "breaker": "closed", "next_probe_seconds": null, "lane": null,
    });
    assert_eq!(sink, expected);
}

#[tokio::test]
async fn metrics_are_prometheus_text_with_the_state_of_now() {
    let site = Site::start(&[]).await;
    site.registry.sink("web-test", Checkpoint::at(Lsn(0x10)));
    site.registry.source(Lsn(0x40), Lsn(0x10));
    site.registry.queue("web-test", QueueGauge::full(123));
    site.registry.backpressure(Some("web-test"));
    site.registry.slot(SlotStatus {
        wal_status: "unreserved".into(),
        wal_lsn: Lsn(0x50),
        restart_lsn: Some(Lsn(0x8)),
        catalog_xmin_age_transactions: Some(17),
        spill_bytes_total: 1_000,
        memory_exceeded_total: Some(3),
        keep_bytes_max: Some(4_096),
        ..SlotStatus::default()
    });
    let (code, text) = site.get("/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "# TYPE walcast_queue_bytes gauge",
        r#"walcast_queue_bytes{sink="web-test"} 123"#,
        r#"walcast_sink_lag_bytes{sink="web-test"} 48"#,
        r#"walcast_backpressure_active{sink="web-test"} 1"#,
        r#"walcast_sink_up{sink="web-test"} 1"#,
        r#"walcast_sink_blocked{sink="web-test"} 0"#,
        r#"walcast_sink_queue_lag_bytes{sink="web-test"} 48"#,
        "walcast_source_lag_bytes 16",
        "walcast_restart_lsn 8",
        "walcast_slot_keep_max_bytes 4096",
        "walcast_slot_safe_wal_bytes inf",
        "walcast_slot_catalog_xmin_age_transactions 17",
        "walcast_slot_spilled_bytes_total 1000",
        "walcast_slot_memory_exceeded_total 3",
        r#"walcast_slot_wal_status{status="unreserved"} 1"#,
        r#"walcast_slot_wal_status{status="missing"} 0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
    }
}

#[tokio::test]
async fn the_index_names_the_endpoints_and_other_paths_do_not_exist() {
    let site = Site::start(&[]).await;
    let (code, text) = site.get("/").await;
    assert_eq!(code, 200);
    for path in ["/livez", "/readyz", "/metrics", "/api/status"] {
        assert!(text.contains(path), "{path}");
    }
    assert_eq!(site.get("/nothing").await.0, 404);
}

#[tokio::test]
async fn a_foreign_name_is_refused() {
    let site = Site::start(&["walcast.internal"]).await;
    assert_eq!(site.asked_as("rebound.example:8080").await, 421);
    assert_eq!(site.asked_as("walcast.internal:8080").await, 200);
    assert_eq!(site.asked_as("localhost").await, 200);
    let mut socket = TcpStream::connect(&site.address).await.unwrap();
    socket.write_all(b"GET /api/status HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 421"), "{answer}");
}

const TOKEN: &str = "canary-b1946ac92492d234";

#[tokio::test]
async fn all_but_the_probes_asks_for_the_token() {
    let site = Site::with_token("127.0.0.1:0", TOKEN).await;
    site.registry
        .sink("kafka", Checkpoint::at(Lsn(1)))
        .failed(&Error::new(Code::KafkaUnreachable, "no broker answers"));
    let client = reqwest::Client::new();
    let url = |path: &str| format!("http://{}{path}", site.address);
    for path in [
        "/",
        "/page/main.js",
        "/metrics",
        "/api/status",
        "/api/stream",
        "/api/history",
        "/api/checks",
        "/nothing",
    ] {
        let stranger = client.get(url(path)).send().await.unwrap();
        assert_eq!(stranger.status(), 401, "{path}");
        assert!(stranger.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic "), "{path}");
        let told = stranger.text().await.unwrap();
        assert!(!told.contains("kafka") && !told.contains(TOKEN), "{path}: {told}");
        let wrong = client.get(url(path)).bearer_auth("canary-b1946ac92492d235").send().await.unwrap();
        assert_eq!(wrong.status(), 401, "{path}");
        assert_eq!(client.get(url(&format!("{path}?token={TOKEN}"))).send().await.unwrap().status(), 401);
        let known = if path == "/nothing" { 404 } else { 200 };
        for request in [
            client.get(url(path)).bearer_auth(TOKEN),
            client.get(url(path)).basic_auth("anybody", Some(TOKEN)),
        ] {
            assert_eq!(request.send().await.unwrap().status(), known, "{path}");
        }
    }
    let rebound = client.get(url("/api/status")).bearer_auth(TOKEN).header("host", "rebound.example");
    assert_eq!(rebound.send().await.unwrap().status(), 421, "a browser may have the password saved");
}

#[tokio::test]
async fn the_probes_tell_a_stranger_no_more_than_yes_or_no() {
    let site = Site::with_token("127.0.0.1:0", TOKEN).await;
    assert_eq!(site.get("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(site.get("/readyz").await, (503, r#"{"ready":false}"#.to_owned()));
    site.registry.streaming(true);
    assert_eq!(site.get("/readyz").await, (200, r#"{"ready":true}"#.to_owned()));
    let known = reqwest::Client::new().get(format!("http://{}/readyz", site.address)).bearer_auth(TOKEN);
    assert!(known.send().await.unwrap().text().await.unwrap().contains("checks"));
}

#[tokio::test]
async fn who_listens_to_others_needs_a_token() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let open = WebConfig { listen: listen.into(), ..WebConfig::default() };
        let refused = Web::bind(&open).await.err().unwrap();
        assert_eq!((refused.code(), refused.exit_code()), (Code::TokenMissing, 78));
        assert!(refused.advice().contains("WEB_TOKEN"), "{}", refused.advice());
    }
    Site::with_token("0.0.0.0:0", TOKEN).await;
    for listen in ["localhost:0", "127.0.0.2:0", "[::1]:0"] {
        let loopback = WebConfig { listen: listen.into(), ..WebConfig::default() };
        assert!(Web::bind(&loopback).await.is_ok(), "{listen}");
    }
    let ended = walcast("0.0.0.0:0", &["run"]).await;
    assert_eq!(ended.status.code(), Some(78), "{}", text(&ended.stderr));
    assert!(text(&ended.stderr).contains("set WEB_TOKEN (web.token)"), "{}", text(&ended.stderr));
}

#[tokio::test]
async fn walcast_status_brings_the_token() {
    let site = Site::with_token("127.0.0.1:0", TOKEN).await;
    site.registry.streaming(true);
    let stranger = walcast(&site.address, &["status"]).await;
    assert_eq!(stranger.status.code(), Some(78));
    assert!(text(&stranger.stderr).contains("error WC-104: walcast on"), "{}", text(&stranger.stderr));
    assert!(text(&stranger.stderr).contains("WEB_TOKEN"));
    let file = std::env::temp_dir().join(format!("walcast-token-{}", std::process::id()));
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file = file.to_str().unwrap();
    for (name, value) in [("WEB_TOKEN", TOKEN), ("WEB_TOKEN_FILE", file)] {
        let known = walcast_with(&site.address, &["status"], &[(name, value)]).await;
        assert_eq!(known.status.code(), Some(0), "{name}: {}", text(&known.stderr));
        assert!(!text(&known.stdout).contains(TOKEN));
    }
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn it_ends_when_told_even_while_somebody_holds_a_connection() {
    let site = Site::start(&[]).await;
    let mut idle = TcpStream::connect(&site.address).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: loc").await.unwrap();
    assert_eq!(site.get("/livez").await.0, 200);
    site.stop.signal();
    tokio::time::timeout(DEADLINE, site.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_taken_port_and_a_wrong_address_are_told_with_the_fix() {
    let site = Site::start(&[]).await;
    let refused = async |listen: &str| {
        let config = WebConfig { listen: listen.into(), ..WebConfig::default() };
        Web::bind(&config).await.err().unwrap()
    };
    let taken = refused(&site.address).await;
    assert_eq!(taken.code(), Code::ListenFailed);
    assert_eq!(taken.to_string(), format!("{} is taken by another program", site.address));
    assert!(taken.advice().contains("WEB_LISTEN"));
    for wrong in ["8080", "127.0.0.1", "localhost:port", ""] {
        assert_eq!(refused(wrong).await.code(), Code::Configuration, "{wrong}");
    }
    assert_eq!(refused("192.0.2.1:8080").await.code(), Code::ListenFailed);
}

async fn walcast(listen: &str, arguments: &[&str]) -> Output {
    walcast_with(listen, arguments, &[]).await
}

async fn walcast_with(listen: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walcast"));
    command.args(arguments).env_clear().env("WEB_LISTEN", listen).envs(variables.iter().copied());
    tokio::time::timeout(DEADLINE, command.output()).await.unwrap().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn walcast_status_shows_the_state_and_exits_0_only_when_ready() {
    let site = Site::start(&[]).await;
    site.registry.streaming(true);
    let mut kafka = site.registry.sink("kafka", Checkpoint::at(Lsn(0x10)));
    let ready = walcast(&site.address, &["status"]).await;
    assert_eq!(ready.status.code(), Some(0));
    assert!(text(&ready.stdout).contains(": ready\n"), "{}", text(&ready.stdout));

    kafka.failed(&Error::new(Code::KafkaUnreachable, "no broker answers").hint("start one"));
    let failing = walcast(&site.address, &["status"]).await;
    assert_eq!(failing.status.code(), Some(1));
    assert!(text(&failing.stdout).ends_with(
        "\nproblem: kafka takes no rows and holds the WAL back: no broker answers; start one (WC-310)\n"
    ));

    let json = walcast(&site.address, &["status", "--json"]).await;
    assert_eq!(json.status.code(), Some(1));
    let state: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(state["sinks"][0]["state"], "retrying");
}

/// `walcast status --watch`, with its lines as they come.
struct Watcher {
    child: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Watcher {
    fn start(listen: &str, arguments: &[&str]) -> Watcher {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walcast"));
        command.args(["status", "--watch"]).args(arguments).env_clear().env("WEB_LISTEN", listen);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Watcher { child, lines: Some(lines) }
    }

    async fn until(&mut self, words: &str) -> String {
        let lines = self.lines.as_mut().unwrap();
        let reading = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("it goes on");
                if line.contains(words) {
                    return line;
                }
            }
        };
        tokio::time::timeout(DEADLINE, reading).await.unwrap_or_else(|_| panic!("no line says {words}"))
    }

    async fn ends(mut self) -> Option<i32> {
        tokio::time::timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap().code()
    }
}

#[tokio::test]
async fn a_watch_goes_on_while_nothing_answers_and_ends_well() {
    let site = Site::start(&[]).await;
    site.registry.streaming(true);
    site.registry.sink("kafka", Checkpoint::at(Lsn(0x10)));
    let mut watcher = Watcher::start(&site.address, &[]);
    watcher.until("  ready  streaming  ").await;
    let address = site.address.clone();
    site.stop.signal();
    site.serving.await.unwrap();
    let silent = watcher.until("no walcast answers").await;
    assert!(silent.contains(&address) && silent.contains("start `walcast run`"), "{silent}");
    let again = Site::serve(WebConfig { listen: address, ..WebConfig::default() }).await;
    again.registry.failed(&Error::new(Code::PostgresUnreachable, "PostgreSQL is down").hint("start it"));
    watcher.until("problem: not streaming: PostgreSQL is down; start it (WC-301)").await;
    let pid = watcher.child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(watcher.ends().await, Some(0));
}

#[tokio::test]
async fn a_watch_ends_when_nobody_reads_it_any_more() {
    let site = Site::start(&[]).await;
    let mut watcher = Watcher::start(&site.address, &["--json"]);
    let first: Value = serde_json::from_str(&watcher.until("{").await).unwrap();
    assert_eq!(first["state"], "starting");
    drop(watcher.lines.take());
    assert_eq!(watcher.ends().await, Some(0));
}

#[tokio::test]
async fn a_watch_on_a_terminal_draws_in_place_and_in_colours() {
    let site = Site::start(&[]).await;
    site.registry
        .sink("kafka", Checkpoint::at(Lsn(0x10)))
        .failed(&Error::new(Code::KafkaUnreachable, "no broker answers"));
    // the reader goes after the second picture, and with it the watch
    let pictures = async |variables: &str| {
        let watch = format!("{variables} exec {} status --watch", env!("CARGO_BIN_EXE_walcast"));
        let mut command = Command::new("script");
        command.args(["-qfec", &watch, "/dev/null"]).env("WEB_LISTEN", &site.address).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let (mut out, mut seen) = (child.stdout.take().unwrap(), Vec::new());
        let reading = async {
            while String::from_utf8_lossy(&seen).matches("\x1b[H").count() < 3 {
                assert!(out.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
            }
        };
        tokio::time::timeout(DEADLINE, reading).await.unwrap();
        String::from_utf8(seen).unwrap()
    };
    let seen = pictures("").await;
    assert!(seen.contains("\x1b[31mkafka ") && seen.contains("\x1b[31mNOT READY\x1b[0m"), "{seen}");
    let seen = pictures("NO_COLOR=1").await;
    assert!(seen.contains("NOT READY") && !seen.contains("\x1b[31m"), "{seen}");
}

/// What a walcast without a database logs, until a line says `words`.
async fn logged(mut command: Command, words: &str) -> String {
    command.env("POSTGRES_PORT", "1").env("WEB_LISTEN", "127.0.0.1:0").stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut both = child.stdout.take().unwrap().chain(child.stderr.take().unwrap());
    let mut seen = Vec::new();
    let reading = async {
        while !(String::from_utf8_lossy(&seen).contains(words) && seen.ends_with(b"\n")) {
            assert!(both.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.unwrap();
    String::from_utf8(seen).unwrap()
}

fn on_terminal(variables: &str) -> Command {
    let mut command = Command::new("script");
    command.args(["-qfec", &format!("{variables} exec {} run", env!("CARGO_BIN_EXE_walcast")), "/dev/null"]);
    command
}

#[tokio::test]
async fn logs_are_json_except_on_a_terminal_and_coloured_there_unless_unwanted() {
    let seen = logged(on_terminal(""), "starting again").await;
    assert!(seen.contains("\x1b[") && !seen.contains('{'), "{seen}");
    for variables in ["NO_COLOR=1", "WALCAST_LOG_FORMAT=json"] {
        let seen = logged(on_terminal(variables), "starting again").await;
        assert!(!seen.contains('\x1b'), "{variables}: {seen}");
        assert_eq!(seen.contains("{\"timestamp\""), variables != "NO_COLOR=1", "{seen}");
    }
    let mut piped = Command::new("sh");
    piped.args(["-c", &format!("exec {} run 2>&1", env!("CARGO_BIN_EXE_walcast"))]);
    let seen = logged(piped, "starting again").await;
    let warning = seen.lines().find(|line| line.contains("starting again")).unwrap();
    let warning: Value = serde_json::from_str(warning).unwrap();
    assert_eq!(warning["level"], "WARN");
    assert!(warning["error"].as_str().unwrap().contains("cannot reach PostgreSQL"), "{warning}");
}

#[tokio::test]
async fn walcast_run_touches_nothing_when_its_port_is_taken() {
    let site = Site::start(&[]).await;
    let ended = walcast(&site.address, &["run"]).await;
    assert_eq!(ended.status.code(), Some(2), "{}", text(&ended.stderr));
    let taken = format!("error WC-250: {} is taken by another program", site.address);
    assert!(text(&ended.stderr).starts_with(&taken), "{}", text(&ended.stderr));
}

#[tokio::test]
async fn walcast_status_says_what_to_do_when_nothing_answers() {
    let unused = Site::start(&[]).await;
    let address = unused.address.clone();
    unused.stop.signal();
    unused.serving.await.unwrap();
    let silent = walcast(&address, &["status"]).await;
    assert_eq!(silent.status.code(), Some(1));
    let told = text(&silent.stderr);
    assert!(told.contains(&format!("no walcast answers on {address}")), "{told}");
    assert!(told.contains("error WC-340") && told.contains("start `walcast run`"), "{told}");
}

#[tokio::test]
async fn the_page_lets_nothing_in_from_elsewhere() {
    let site = Site::start(&[]).await;
    for (path, kind) in [
        ("/", "text/html"),
        ("/page/main.js", "text/javascript"),
        ("/page/style.css", "text/css"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/page/uplot/uPlot.iife.min.js", "text/javascript"),
        ("/page/uplot/LICENSE", "text/plain"),
    ] {
        let answer = reqwest::get(format!("http://{}{path}", site.address)).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let header = |name: &str| answer.headers().get(name).unwrap().to_str().unwrap().to_owned();
        assert!(header("content-type").starts_with(kind), "{path}");
        let policy = header("content-security-policy");
        for rule in ["default-src 'self'", "base-uri 'none'", "frame-ancestors 'none'"] {
            assert!(policy.contains(rule) && !policy.contains("unsafe"), "{path}: {policy}");
        }
        assert_eq!(
            (header("referrer-policy"), header("x-content-type-options")),
            ("no-referrer".into(), "nosniff".into())
        );
        let text = answer.text().await.unwrap();
        assert!(
            !text.contains("style=\"") && !text.contains("onclick="),
            "{path} has what the policy forbids"
        );
    }
    let page = site.get("/").await.1;
    for elsewhere in ["http://", "https://", "//cdn"] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
}

#[tokio::test]
async fn the_stream_tells_the_state_every_second_and_ends_with_the_service() {
    let site = Site::start(&[]).await;
    site.registry.sink("kafka", Checkpoint::at(Lsn(1)));
    site.registry.streaming(true);
    let mut answer = reqwest::get(format!("http://{}/api/stream", site.address)).await.unwrap();
    assert_eq!(answer.headers().get("content-type").unwrap(), "text/event-stream");
    let mut text = String::new();
    while text.matches("\n\n").count() < 3 {
        text.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
    }
    let events: Vec<Vec<&str>> = text.split("\n\n").take(3).map(|event| event.lines().collect()).collect();
    let mut last = 0;
    for event in &events {
        let field = |name: &str| event.iter().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        assert_eq!(field("event:"), "live");
        let id: i64 = field("id:").parse().unwrap();
        assert!(id > last, "{id} after {last}");
        last = id;
        let state: Value = serde_json::from_str(field("data:")).unwrap();
        assert_eq!(
            (state["at_ms"].as_i64(), &state["status"]["state"]),
            (Some(id), &Value::from("streaming"))
        );
        assert_eq!(state["step"]["at_ms"], serde_json::json!([id]));
    }
    let (code, history) = site.json("/api/history").await;
    assert_eq!(code, 200);
    assert!(history["at_ms"].as_array().unwrap().len() >= 3);
    let (_, later) = site.json(&format!("/api/history?after={last}")).await;
    assert!(later["at_ms"].as_array().unwrap().iter().all(|at| at.as_i64() > Some(last)));
    assert_eq!(site.get("/api/history?after=yesterday").await.0, 400);

    site.stop.signal();
    let stopped = std::time::Instant::now();
    while answer.chunk().await.unwrap_or_default().is_some() {}
    tokio::time::timeout(DEADLINE, site.serving).await.unwrap().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(2), "an open page holds the end up");
}

#[tokio::test]
async fn without_redis_the_boards_say_so_and_too_many_readers_are_sent_away() {
    let site = Site::start(&[]).await;
    let (code, board) = site.json("/api/boards/10min").await;
    assert_eq!((code, board["places"].as_array().map(Vec::len)), (200, Some(0)));
    assert!(board["why"].as_str().unwrap().contains("Redis is no sink"), "{board}");
    assert_eq!(site.json("/api/checks").await.1["findings"], serde_json::json!([]));

    let open = || reqwest::get(format!("http://{}/api/stream", site.address));
    let mut readers = Vec::new();
    for _ in 0..64 {
        readers.push(open().await.unwrap());
        assert_eq!(readers.last().unwrap().status(), 200);
    }
    assert_eq!(open().await.unwrap().status(), 503);
    readers.pop();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while open().await.unwrap().status() != 200 {
        assert!(tokio::time::Instant::now() < deadline, "a reader that has left keeps its place");
    }
}
