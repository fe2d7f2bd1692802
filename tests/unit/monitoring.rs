//! The alerts, their runbook and the Grafana dashboard: every expression parses, every metric exists, every alert fires
//! for what it is meant for and is explained.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use walcast::telemetry::metrics::{ALL, MetricKind};

const PROMTOOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/promtool");

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// A folder of its own with these files, which goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Folder {
        let path = std::env::temp_dir().join(format!("walcast-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&path).unwrap();
        for (name, text) in files {
            fs::write(path.join(name), text).unwrap();
        }
        Folder(path)
    }

    /// Whether promtool is content, and what it said.
    fn promtool(&self, arguments: &[&str]) -> (bool, String) {
        let ended = Command::new(PROMTOOL).args(arguments).current_dir(&self.0).output().unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        (ended.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One alert: its name, expression and the address of its runbook.
struct Alert {
    name: String,
    expr: String,
    runbook: String,
}

fn alerts() -> Vec<Alert> {
    let text = file("monitoring/alerts.yml");
    let of = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {key} in {block}")).to_owned()
    };
    let blocks = text.split("- alert: ").skip(1);
    blocks
        .map(|block| Alert {
            name: block.lines().next().unwrap().to_owned(),
            expr: of(block, "expr"),
            runbook: of(block, "runbook_url"),
        })
        .collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&file("monitoring/grafana/walcast.json")).unwrap()
}

fn panel_expressions() -> Vec<String> {
    let dashboard = dashboard();
    let targets = |panel: &Value| panel["targets"].as_array().unwrap().clone();
    let panels = dashboard["panels"].as_array().unwrap();
    panels.iter().flat_map(targets).map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// The words that begin with our prefix.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words.filter(|word| word.starts_with("walcast_")).map(str::to_owned).collect()
}

/// The series that `/metrics` has: of a histogram three.
fn series() -> BTreeSet<String> {
    let names = ALL.iter().flat_map(|metric| match metric.kind {
        MetricKind::Histogram => {
            ["_bucket", "_sum", "_count"].map(|end| format!("{}{end}", metric.name)).to_vec()
        }
        _ => vec![metric.name.to_owned()],
    });
    names.collect()
}

#[test]
fn every_metric_of_the_alerts_and_the_dashboard_exists() {
    let known = series();
    for source in ["monitoring/alerts.yml", "monitoring/alerts.test.yml", "monitoring/grafana/walcast.json"] {
        let unknown: Vec<String> = metrics_in(&file(source)).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{source} names what /metrics does not have: {unknown:?}");
    }
}

#[test]
fn the_dashboard_shows_every_metric() {
    let shown = metrics_in(&panel_expressions().join(" "));
    for metric in ALL {
        let bucket = format!("{}_bucket", metric.name);
        assert!(shown.contains(metric.name) || shown.contains(&bucket), "{} is in no panel", metric.name);
    }
}

#[test]
fn every_expression_of_the_dashboard_parses() {
    let mut rules = "groups: [{ name: panels, rules: [\n".to_owned();
    for (number, expr) in panel_expressions().iter().enumerate() {
        let expr = expr.replace("$__rate_interval", "1m").replace("$instance", ".*");
        assert!(!expr.contains('$'), "a variable that is not known here: {expr}");
        let expr = serde_json::to_string(&expr).unwrap();
        rules.push_str(&format!("{{ record: panel_{number}, expr: {expr} }},\n"));
    }
    rules.push_str("] }]\n");
    let (ok, said) = Folder::with(&[("panels.yml", &rules)]).promtool(&["check", "rules", "panels.yml"]);
    assert!(ok, "{said}");
}

#[test]
fn every_panel_asks_the_data_source_that_is_provisioned() {
    let source = file("monitoring/grafana/provisioning/datasources/prometheus.yml");
    let uid = source.lines().find_map(|line| line.trim().strip_prefix("uid: ")).unwrap();
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels of one id: {panel}");
        assert_eq!(panel["datasource"]["uid"], uid, "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], uid, "{}", panel["title"]);
        }
    }
}

/// What a reader needs of each alert, in the runbook.
const PARTS: [&str; 5] = ["**What happened.**", "**Why.**", "**Look.**", "**Type.**", "**Over when**"];

#[test]
fn every_alert_has_its_section_in_the_runbook_and_no_section_is_left_over() {
    let runbook = file("docs/runbook.md");
    let sections: BTreeSet<&str> =
        runbook.lines().filter_map(|line| line.strip_prefix("## Walcast")).collect();
    let named: Vec<Alert> = alerts();
    let names: BTreeSet<&str> =
        named.iter().map(|alert| alert.name.strip_prefix("Walcast").unwrap()).collect();
    assert_eq!(sections, names);
    for alert in &named {
        assert_eq!(alert.runbook, format!("docs/runbook.md#{}", alert.name.to_lowercase()));
        let section = runbook.split("\n## ").find(|section| section.starts_with(&alert.name)).unwrap();
        for part in PARTS {
            assert!(section.contains(part), "{}: no {part}", alert.name);
        }
    }
}

#[test]
fn the_alerts_fire_when_they_must_and_only_then() {
    let files =
        [("alerts.yml", file("monitoring/alerts.yml")), ("tests.yml", file("monitoring/alerts.test.yml"))];
    let folder = Folder::with(&files.each_ref().map(|(name, text)| (*name, text.as_str())));
    let (ok, said) = folder.promtool(&["check", "rules", "alerts.yml"]);
    assert!(ok, "{said}");
    let (ok, said) = folder.promtool(&["test", "rules", "tests.yml"]);
    assert!(ok, "{said}");
}

/// A rule that can be broken without a test that fails is not tested.
#[test]
fn no_alert_can_be_broken_unnoticed() {
    let (rules, tests) = (file("monitoring/alerts.yml"), file("monitoring/alerts.test.yml"));
    let mut parts = tests.split("  - name: ");
    let head = parts.next().unwrap();
    let parts: Vec<&str> = parts.collect();
    for Alert { name, expr, .. } in alerts() {
        for (broken, title) in [("vector(1) > 1", "fires"), ("vector(1)", "keeps quiet")] {
            let title = format!("{name} {title}\n");
            let own = parts.iter().filter(|part| part.starts_with(&title));
            let own = own.fold(head.to_owned(), |tests, part| format!("{tests}  - name: {part}"));
            let rules = rules.replace(&format!("expr: {expr}\n"), &format!("expr: {broken}\n"));
            assert!(rules.contains(broken), "{name} was not broken");
            let folder = Folder::with(&[("alerts.yml", rules.as_str()), ("tests.yml", own.as_str())]);
            let (ok, said) = folder.promtool(&["test", "rules", "tests.yml"]);
            assert!(!ok && said.contains("FAILED"), "{name} may be `{broken}`, and no test fails: {said}");
        }
    }
}

#[test]
fn compose_brings_up_what_is_here() {
    let compose = file("docker-compose.yml");
    let monitoring = ["prometheus.yml", "alerts.yml", "grafana/provisioning", "grafana/walcast.json"];
    let monitoring = monitoring.map(|path| format!("monitoring/{path}"));
    for path in monitoring.into_iter().chain(["examples/http-receiver.py".to_owned()]) {
        assert!(compose.contains(&format!("./{path}:")), "{path} is not mounted");
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path).exists(), "{path}");
    }
    let folder = Folder::with(&[("prometheus.yml", &file("monitoring/prometheus.yml"))]);
    let (ok, said) = folder.promtool(&["check", "config", "--syntax-only", "prometheus.yml"]);
    assert!(ok, "{said}");
}
