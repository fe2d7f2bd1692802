//! A headless Chromium, driven by WebDriver: plain JSON over HTTP.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, MutexGuard};

use super::{fresh_name, wait_until};

/// Starting a browser on a busy machine takes its time.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// One browser at a time: a machine with few cores is to show a page within the seconds that a test counts.
static TURN: Mutex<()> = Mutex::const_new(());

/// The keys that WebDriver names by private characters.
pub const TAB: &str = "\u{e004}";
pub const ARROW_RIGHT: &str = "\u{e014}";
pub const SPACE: &str = " ";

/// A browser with one page. It ends when dropped.
pub struct Browser {
    _driver: Child,
    driver_url: String,
    session: String,
    client: reqwest::Client,
    profile: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    /// Starts one and opens this page.
    pub async fn open(url: &str) -> Browser {
        let turn = TURN.lock().await;
        let (driver, port) = driver().await;
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build().unwrap();
        let profile = std::env::temp_dir().join(fresh_name("walcast-browser"));
        let driver_url = format!("http://127.0.0.1:{port}");
        let session = format!("{driver_url}/session");
        let mut browser = Browser { _driver: driver, driver_url, session, client, profile, _turn: turn };
        let made = browser.post("", browser.capabilities()).await;
        browser.session = format!("{}/{}", browser.session, made["sessionId"].as_str().unwrap());
        browser.post("/url", json!({ "url": url })).await;
        browser
    }

    fn capabilities(&self) -> Value {
        let profile = format!("--user-data-dir={}", self.profile.display());
        // the sandbox cannot be had by root, nor in most containers
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            &profile,
        ];
        json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        }}})
    }

    /// What a script returns, such as `return document.title`; `arguments[0]` is the argument.
    pub async fn eval(&self, script: &str, argument: impl Into<Value>) -> Value {
        self.post("/execute/sync", json!({ "script": script, "args": [argument.into()] })).await
    }

    /// Waits until a JavaScript expression is true.
    pub async fn wait(&self, expression: &str) {
        let script = format!("return Boolean({expression})");
        wait_until(expression, async || self.eval(&script, ()).await == Value::Bool(true)).await;
    }

    /// The text of the first element with this selector.
    pub async fn text(&self, selector: &str) -> String {
        let text = self.eval("return document.querySelector(arguments[0]).textContent", selector).await;
        text.as_str().unwrap().to_owned()
    }

    /// Presses and releases a key.
    pub async fn press(&self, key: &str) {
        let pressed = ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key }));
        self.post("/actions", json!({ "actions": [{ "type": "key", "id": "keys", "actions": pressed }] }))
            .await;
    }

    /// The size of the page in pixels, and whether it is dark.
    pub async fn look(&self, width: u32, dark: bool) {
        let scheme = json!({ "name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" } });
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": [scheme] })).await;
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Writes a picture of the whole page.
    pub async fn picture(&self, path: &Path) {
        let size = self
            .eval("const page = document.documentElement; return [page.clientWidth, page.scrollHeight]", ())
            .await;
        let clip = json!({ "x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1 });
        let options = json!({ "captureBeyondViewport": true, "clip": clip });
        let taken = self.devtools("Page.captureScreenshot", options).await;
        std::fs::write(path, STANDARD.decode(taken["data"].as_str().unwrap()).unwrap()).unwrap();
    }

    /// What the browser has complained of since it was last asked: errors, warnings, violations of policy.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", json!({ "type": "browser" })).await;
        let lines =
            log.as_array().unwrap().iter().filter(|line| line["level"] != "INFO" && line["level"] != "DEBUG");
        lines.map(|line| line["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// By hand: this must be over before the driver is gone, and nothing waits for a task in `drop`.
    fn end(&self) -> std::io::Result<()> {
        let path = self.session.trim_start_matches(&self.driver_url);
        let mut driver = std::net::TcpStream::connect(self.driver_url.trim_start_matches("http://"))?;
        driver.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(driver, "DELETE {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        driver.read_to_end(&mut Vec::new()).map(drop)
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.client.post(format!("{}{path}", self.session)).json(&body).send().await.unwrap();
        let mut answer: Value = answer.json().await.unwrap();
        let value = answer["value"].take();
        assert!(value.get("error").is_none(), "{path} {body}: {value}");
        value
    }
}

impl Drop for Browser {
    /// Told that its session ends the driver ends the browser, all of its processes.
    fn drop(&mut self) {
        let _ = self.end();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// The driver ends at once when the port that it was given for IPv4 is taken for IPv6, as one of many connections may have it.
async fn driver() -> (Child, u16) {
    for _ in 0..10 {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver starts (scripts/services up installs it)");
        if let Some(port) = port_of(&mut driver).await {
            return (driver, port);
        }
    }
    panic!("chromedriver ended ten times without a port");
}

async fn port_of(driver: &mut Child) -> Option<u16> {
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let Some((_, rest)) = line.split_once("started successfully on port ") else { continue };
        return Some(rest.trim_end_matches('.').parse().unwrap());
    }
    None
}
