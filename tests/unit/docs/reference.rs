//! The pages of `docs/reference` that are made from the code.

use std::fmt::Write;
use std::process::Command;

use metrics::Unit;
use serde_json::Value;
use walcast::config::{self, Config};
use walcast::error::{Code, Explanation};
use walcast::event::reference;
use walcast::sink::bigquery::{column, extra};
use walcast::telemetry::metrics::{ALL, Metric, MetricKind};

use super::pages::root;

const MADE: &str = "<!-- Made from the code by tests/unit/docs/reference.rs; make docs rewrites it -->";

/// Compares a page with what the code says; writes it instead when told to.
fn compare(name: &str, made: &str) {
    let path = root().join("docs/reference").join(name);
    let made = format!("{MADE}\n\n{made}");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        return std::fs::write(path, made).unwrap();
    }
    let stands = std::fs::read_to_string(path).unwrap_or_default();
    let first = stands.lines().zip(made.lines()).find(|(stands, made)| stands != made);
    assert!(stands == made, "docs/reference/{name} is stale: run `make docs`; first at {first:#?}");
}

#[test]
fn the_settings_are_those_of_the_code() {
    compare("configuration.md", &configuration());
}

#[test]
fn the_metrics_are_those_of_the_code() {
    compare("metrics.md", &metrics());
}

#[test]
fn the_commands_are_those_of_the_binary() {
    compare("cli.md", &commands());
}

#[test]
fn the_errors_are_those_of_the_code() {
    compare("errors.md", &errors());
}

#[test]
fn the_record_is_that_of_the_code() {
    let (fields, columns) = (reference::records_markdown(), column::reference_markdown());
    let intro = include_str!("record_intro.md");
    compare("record.md", &format!("{intro}\n{fields}\n## BigQuery's columns\n\n{columns}"));
}

#[test]
fn the_tables_are_those_of_the_code() {
    let (intro, columns) = (include_str!("tables_intro.md"), reference::tables_markdown());
    let intro = intro.replace("EXTRA_TYPES\n", &extra::reference_markdown());
    compare("tables.md", &format!("{intro}\n{columns}"));
}

/// What an operator pastes from the page is what `walcast check` asks for.
#[test]
fn the_rights_at_redis_are_those_of_the_code() {
    let page = std::fs::read_to_string(root().join("docs/sinks/redis.md")).unwrap();
    let statement = format!("\nACL SETUSER walcast on >PASSWORD {}\n", walcast::sink::redis::ACL);
    assert!(page.contains(&statement), "docs/sinks/redis.md does not have {statement}");
}

/// The sections in the order that the configuration has them, and the settings in the order of each section.
fn configuration() -> String {
    let mut text = INTRODUCTION.to_owned();
    let schema =
        schemars::generate::SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = schema.into_generator().into_root_schema_for::<Config>();
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let written = serde_json::to_string(&Config::default()).unwrap();
    for (section, schema) in ordered(&schema.as_value()["properties"], &written) {
        let (_, written) = written.split_once(&format!("\"{section}\":{{")).unwrap();
        writeln!(text, "\n## \\[{section}\\]\n\n{}\n", sentence(&schema)).unwrap();
        text.push_str(
            "| setting, and its name in the environment | type | default | meaning |\n|---|---|---|---|\n",
        );
        for (name, schema) in ordered(&schema["properties"], written) {
            let environment = config::environment_name(&format!("{section}.{name}"));
            let default = default(&defaults[section][name]);
            let (kind, meaning) = (kind(&schema), meaning(&schema));
            writeln!(text, "| `{section}.{name}`<br>`{environment}` | {kind} | {default} | {meaning} |")
                .unwrap();
        }
    }
    text
}

/// The properties of a schema, in the order in which they are written.
fn ordered<'a>(properties: &'a Value, written: &str) -> Vec<(&'a str, Value)> {
    let properties = properties.as_object().unwrap().iter();
    let mut properties: Vec<_> = properties.map(|(name, schema)| (name.as_str(), schema.clone())).collect();
    properties.sort_by_key(|(name, _)| written.find(&format!("\"{name}\":")));
    properties
}

const INTRODUCTION: &str = "\
# Configuration

walcast reads a TOML file (`--config` or `WALCAST_CONFIG`), then the environment. The environment wins.

- `[postgres] host = \"db\"` in the file is `POSTGRES_HOST=db` in the environment.
- A name with `_FILE` after it names a file that holds the value: `POSTGRES_PASSWORD_FILE=/run/secrets/postgres`.
- A list is written with commas in the environment: `PIPELINE_SINKS=kafka,redis`.
- An unknown setting is an error (exit code 78), and walcast names the nearest known one: in the file, and in the environment where a
  name begins with that of a section, such as `POSTGRES_`. Names that Kubernetes makes for services are left alone.
- `walcast config show` prints each setting with its value and where the value comes from. Secrets are hidden.
";

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ")
}

/// The section's own sentence, without the section's name before it.
fn sentence(schema: &Value) -> String {
    let text = description(schema);
    let text = text.rsplit_once("`: ").map_or(text.as_str(), |(_, text)| text);
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

fn meaning(schema: &Value) -> String {
    let mut text = description(schema);
    for choice in schema["oneOf"].as_array().into_iter().flatten() {
        write!(text, "<br>`{}`: {}", choice["const"].as_str().unwrap(), description(choice)).unwrap();
    }
    text
}

fn kind(schema: &Value) -> &'static str {
    let named = match &schema["type"] {
        Value::Array(kinds) => &kinds[0],
        kind => kind,
    };
    match named.as_str() {
        Some("string") => "text",
        Some("integer") => "number",
        Some("boolean") => "true or false",
        Some("array") => "list",
        Some("object") => "table",
        _ if schema["oneOf"].is_array() => "choice",
        _ => panic!("a setting of an unknown type: {schema}"),
    }
}

fn default(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        Value::Object(_) => String::new(),
        other => other.to_string(),
    };
    if text.is_empty() { "–".to_owned() } else { format!("`{text}`") }
}

fn metrics() -> String {
    let mut text = "\
# Metrics

`walcast run` serves them at `/metrics` in the format of Prometheus. [Monitoring](../operate/monitoring.md) says which of
them to watch.
"
    .to_owned();
    type Belongs = fn(&str) -> bool;
    let groups: [(&str, Belongs); 5] = [
        ("The replication slot and the server's WAL", |name| {
            name.contains("_slot_")
                || ["walcast_wal_lsn", "walcast_sent_lsn", "walcast_restart_lsn"].contains(&name)
        }),
        ("Redis", |name| name.contains("_redis_")),
        ("Kafka", |name| name.contains("_kafka_")),
        ("Each sink", |name| {
            ["_sink_", "_queue_", "_backpressure_", "_end_to_end_"].iter().any(|part| name.contains(part))
        }),
        ("The stream", |_| true),
    ];
    let group_of = |metric: &Metric| groups.iter().position(|(_, belongs)| belongs(metric.name)).unwrap();
    for shown in [4, 0, 3, 2, 1] {
        writeln!(text, "\n## {}\n\n| metric | type | unit | meaning |\n|---|---|---|---|", groups[shown].0)
            .unwrap();
        for metric in ALL.iter().filter(|metric| group_of(metric) == shown) {
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            };
            let unit = match metric.unit {
                Unit::Seconds => "seconds",
                Unit::Bytes => "bytes",
                _ => "",
            };
            writeln!(text, "| `{}` | {kind} | {unit} | {} |", metric.name, metric.help).unwrap();
        }
    }
    text
}

/// What `walcast explain` says of each code.
fn errors() -> String {
    let mut text = "\
# Errors

Each failure has a code, which keeps its meaning in every version. `walcast explain CODE` says the same as this page.
[Deploy](../operate/deploy.md#exit-codes) lists the exit codes. [Resync](../operate/resync.md) has the way back for exit code 4.
"
    .to_owned();
    for code in Code::ALL {
        let Explanation { title, why, look, fix, over } = code.explanation();
        let exit_code = code.kind().policy().exit_code;
        writeln!(text, "\n## {code}\n\n**{title}** Exit code {exit_code}.\n").unwrap();
        for (head, part) in [("Why", why), ("Look at", look), ("Do", fix), ("Over when", over)] {
            writeln!(text, "- **{head}:** {}", escaped(part)).unwrap();
        }
    }
    text
}

/// `<user>` outside code would be taken for HTML.
fn escaped(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let parts = parts.map(|(place, part)| match place % 2 {
        0 => part.replace('<', "&lt;"),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("`")
}

/// What each command's `--help` says, to be read without the binary.
fn commands() -> String {
    let mut text = "\
# Commands

What `walcast help` and `walcast help COMMAND` print. Each command also takes the options of `walcast` itself.
"
    .to_owned();
    command(&[], &mut text);
    text
}

fn command(path: &[&str], text: &mut String) {
    let mut arguments = path.to_vec();
    arguments.push("--help");
    let ended = Command::new(env!("CARGO_BIN_EXE_walcast")).args(&arguments).output().unwrap();
    assert!(ended.status.success(), "walcast {arguments:?}");
    let help = String::from_utf8(ended.stdout).unwrap();
    let name = ["walcast"].iter().chain(path).copied().collect::<Vec<_>>().join(" ");
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    let lines = if path.is_empty() { lines } else { without_global_options(lines) };
    writeln!(text, "\n## {name}\n\n```text\n{}\n```", lines.join("\n").trim_end()).unwrap();
    let listed = lines.iter().skip_while(|line| **line != "Commands:").skip(1);
    for line in listed.take_while(|line| !line.is_empty()) {
        // a line that goes on the one before is indented further
        let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else { continue };
        let name = name.split_whitespace().next().unwrap();
        if name != "help" {
            command(&[path, &[name]].concat(), text);
        }
    }
}

/// The options of `walcast` itself stand in its own section, and need not stand in every other.
fn without_global_options(lines: Vec<&str>) -> Vec<&str> {
    let mut kept: Vec<&str> = Vec::new();
    let mut skip = false;
    for line in lines {
        let option = line.trim_start();
        let indent = line.len() - option.len();
        if option.starts_with('-') && indent <= 6 {
            skip = ["--config ", "--log ", "--log-format ", "-h, --help"]
                .iter()
                .any(|own| option.starts_with(own));
        } else if !line.is_empty() && indent == 0 {
            skip = false;
        }
        if !skip {
            kept.push(line);
        }
    }
    if let Some(place) = kept.iter().position(|line| *line == "Options:")
        && kept.get(place + 1).is_none_or(|next| next.is_empty() || !next.starts_with(' '))
    {
        kept.remove(place);
    }
    kept
}
