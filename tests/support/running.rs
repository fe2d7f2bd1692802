//! A walcast that runs until it is stopped: its log, its answers, its signals and its end.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::world::http;
use super::{PATIENCE, wait_until};

/// A `walcast run`; killed when dropped.
pub struct Running {
    child: Child,
    pub log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    token: String,
}

impl Running {
    /// Starts it; `token` is what its page asks for.
    pub fn spawn(mut command: Command, token: String) -> Running {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = Arc::clone(&log);
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let mut kept = kept.lock().await;
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        Running { child, log, reader: Some(reader), token }
    }

    /// Returns when `/readyz` says that the stream is open, whatever the sinks do.
    pub async fn wait_until_streaming(&self) {
        let streaming = async {
            while !self.is_streaming().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, streaming).await.is_err() {
            panic!("it does not stream within {PATIENCE:?}: {}", self.log.lock().await);
        }
    }

    /// Returns when `/readyz` says these words of why it is not ready.
    pub async fn wait_until_told(&self, words: &str) {
        wait_until(words, async || {
            self.checks()
                .await
                .iter()
                .any(|check| check["why"].as_str().is_some_and(|why| why.contains(words)))
        })
        .await;
    }

    /// Whether `/readyz` says that the stream is open.
    pub async fn is_streaming(&self) -> bool {
        self.checks().await.iter().any(|check| check["name"] == "source" && check["ok"] == true)
    }

    /// What `/readyz` says; nothing before it is served.
    async fn checks(&self) -> Vec<Value> {
        let Some(port) = self.listening_port() else { return Vec::new() };
        let Ok(answer) = self.get(port, "/readyz").await else { return Vec::new() };
        let Ok(ready) = answer.json::<Value>().await else { return Vec::new() };
        ready["checks"].as_array().cloned().unwrap_or_default()
    }

    async fn get(&self, port: u16, path: &str) -> reqwest::Result<reqwest::Response> {
        http().get(format!("http://127.0.0.1:{port}{path}")).bearer_auth(&self.token).send().await
    }

    /// Where it is asked how it is: `http://127.0.0.1:…`.
    pub async fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// What `/metrics` says now.
    pub async fn metrics(&self) -> String {
        self.get(self.port(), "/metrics").await.unwrap().text().await.unwrap()
    }

    /// Whether it streams to this sink apart from the others; `false` too when it does not answer.
    pub async fn is_in_a_lane(&self, sink: &str) -> bool {
        let Some(port) = self.child.id().and_then(|_| self.listening_port()) else { return false };
        let Ok(answer) = self.get(port, "/api/status").await else { return false };
        let Ok(status) = answer.json::<Value>().await else { return false };
        let sinks = status["sinks"].as_array().cloned().unwrap_or_default();
        sinks.iter().any(|line| line["name"] == sink && line["lane"].is_object())
    }

    /// What it says of this sink now.
    pub async fn sink(&self, name: &str) -> Value {
        let status = self.json("/api/status").await;
        status["sinks"].as_array().unwrap().iter().find(|sink| sink["name"] == name).unwrap().clone()
    }

    /// What it answers at this path now.
    pub async fn json(&self, path: &str) -> Value {
        self.get(self.port(), path).await.unwrap().json().await.unwrap()
    }

    /// The most memory that it has ever had, in megabytes.
    pub fn peak_rss_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    /// Where its page is.
    pub fn port(&self) -> u16 {
        self.listening_port().expect("it listens")
    }

    /// As its log says; the kernel tells only root of a process whose memory is private.
    fn listening_port(&self) -> Option<u16> {
        const SAYS: &str = "status on http://127.0.0.1:";
        let told = self.log.try_lock().ok().and_then(|log| {
            let (_, rest) = log.split_once(SAYS)?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        });
        told.or_else(|| listening_port(self.pid()))
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// SIGTERM; it must drain and end well.
    pub async fn stop(self) {
        let log = Arc::clone(&self.log);
        let code = self.signal("TERM").await;
        assert_eq!(code, Some(0), "{}", log.lock().await);
    }

    /// kill -9.
    pub async fn kill(self) {
        self.signal("KILL").await;
    }

    async fn signal(mut self, signal: &str) -> Option<i32> {
        self.send(signal);
        self.ended().await
    }

    /// Whether it ends by itself within this time.
    pub async fn ends_within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.child.wait()).await.is_ok()
    }

    /// Sends a signal, such as STOP or CONT.
    pub fn send(&self, signal: &str) {
        send(signal, self.pid());
    }

    /// Waits for its end and its last words; the exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        let Ok(ended) = ended else {
            panic!("it has not ended within 60 s: {}", self.log.lock().await);
        };
        let code = ended.unwrap().code();
        if let Some(reader) = self.reader.take() {
            reader.await.unwrap();
        }
        code
    }
}

/// Whoever looks for the cause of a failed test has walcast's last words.
impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(log) = self.log.try_lock()
        {
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{}", lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n"));
        }
    }
}

/// Sends a signal to any process. After STOP nothing of it runs any more: the kernel stops the threads only when one of
/// them has taken the signal, and on a busy machine the others go on until then.
pub fn send(signal: &str, pid: u32) {
    let arguments = [format!("-{signal}"), pid.to_string()];
    assert!(std::process::Command::new("kill").args(arguments).status().unwrap().success());
    while signal == "STOP" && !is_stopped(pid) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat"))).all(|stat| {
        // the state comes after the name in parentheses: stopped, or dead
        stat.is_ok_and(|stat| {
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 'Z', 'X']))
        })
    })
}

/// The port that a process listens on, as the kernel knows it.
fn listening_port(pid: u32) -> Option<u16> {
    const LISTENING: &str = "0A";
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let sockets: BTreeSet<String> = files
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, LISTENING, _, _, _, _, _, inode, ..] = fields[..] else { return None };
        let (_, port) = local.split_once(':').filter(|_| sockets.contains(inode))?;
        u16::from_str_radix(port, 16).ok()
    })
}
