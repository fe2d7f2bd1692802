//! What the pages name exists: commands, settings, metrics, files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use walcast::config::{Config, environment_name};
use walcast::telemetry::metrics::{ALL, MetricKind};

use super::pages::{all, root};

/// What stands between single backticks on a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Every setting: `section.name`.
fn settings() -> BTreeSet<String> {
    let Value::Object(sections) = serde_json::to_value(Config::default()).unwrap() else { panic!() };
    let of = |(section, settings): (&String, &Value)| {
        settings.as_object().unwrap().keys().map(|name| format!("{section}.{name}")).collect::<Vec<_>>()
    };
    sections.iter().flat_map(of).collect()
}

/// What reads like a setting is one, or the id of a finding of `walcast check`.
#[test]
fn every_setting_that_is_named_exists() {
    let (settings, sources) = (settings(), sources(&root().join("src")));
    let sections: BTreeSet<&str> = settings.iter().filter_map(|key| Some(key.split_once('.')?.0)).collect();
    let mut unknown = Vec::new();
    for page in all() {
        for (number, name) in
            page.prose().flat_map(|(number, line)| quoted(line).map(move |name| (number, name)))
        {
            let Some((section, rest)) = name.split_once('.') else { continue };
            let reads_so =
                sections.contains(section) && rest.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if reads_so && !settings.contains(name) && !sources.contains(&format!("\"{name}\"")) {
                unknown.push(format!("{}:{number}: {name}", page.path));
            }
        }
    }
    assert!(unknown.is_empty(), "neither a setting nor a finding:\n{}", unknown.join("\n"));
}

fn sources(folder: &Path) -> String {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let text = |path: PathBuf| match path.is_dir() {
        true => sources(&path),
        false => std::fs::read_to_string(path).unwrap_or_default(),
    };
    paths.map(text).collect()
}

#[test]
fn every_environment_name_exists() {
    let known: BTreeSet<String> = settings().iter().map(|key| environment_name(key)).collect();
    let prefixes = ["POSTGRES_", "KAFKA_", "REDIS_", "BIGQUERY_", "PIPELINE_", "WEB_", "GENERATE_"];
    let mut unknown = Vec::new();
    for page in all() {
        for (number, line) in page.text.lines().enumerate() {
            for word in line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
                let base = word.strip_suffix("_FILE").unwrap_or(word);
                let ours =
                    prefixes.iter().any(|prefix| word.len() > prefix.len() && word.starts_with(prefix));
                if ours && !known.contains(word) && !known.contains(base) {
                    unknown.push(format!("{}:{}: {word}", page.path, number + 1));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "no setting has this name:\n{}", unknown.join("\n"));
}

#[test]
fn every_metric_that_is_named_exists() {
    let known: BTreeSet<String> = ALL
        .iter()
        .flat_map(|metric| {
            match metric.kind {
                MetricKind::Histogram => ["", "_bucket", "_sum", "_count"].as_slice(),
                _ => &[""],
            }
            .iter()
            .map(|end| format!("{}{end}", metric.name))
        })
        .collect();
    for page in all() {
        for (number, line) in page.text.lines().enumerate() {
            for word in line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
                let ours = word.starts_with("walcast_") && !word.ends_with('_');
                assert!(!ours || known.contains(word), "{}:{}: no metric {word}", page.path, number + 1);
            }
        }
    }
}

/// `walcast WORD` in code names a command that the binary has, and each `--option` after it is one of that command's.
#[test]
fn every_command_that_is_named_exists() {
    let mut helps = BTreeMap::new();
    let commands = help("help");
    // what is made from the binary's own help has prose in its code
    for page in all().into_iter().filter(|page| page.path != "docs/reference/cli.md") {
        for (number, code) in page.code() {
            for part in code.split("&& ") {
                let Some(rest) = part.strip_prefix("walcast ") else { continue };
                let end = rest.find(['|', ';', '#', '&', '<']).unwrap_or(rest.len());
                let mut words = rest[..end].split_whitespace();
                let command = words.next().filter(|word| word.chars().all(|c| c.is_ascii_lowercase()));
                let Some(command) = command else { continue };
                let place = format!("{}:{number}", page.path);
                assert!(commands.contains(&format!("\n  {command} ")), "{place}: no `walcast {command}`");
                let mut command = command.to_owned();
                let below = words.clone().next().unwrap_or_default();
                let known = helps.entry(command.clone()).or_insert_with(|| help(&command));
                if !below.is_empty() && known.contains(&format!("\n  {below} ")) {
                    command = format!("{command} {below}");
                }
                let help = helps.entry(command.clone()).or_insert_with(|| help(&command));
                for option in words.filter(|word| word.starts_with("--")) {
                    let option = option.split('=').next().unwrap();
                    assert!(help.contains(option), "{place}: `walcast {command}` has no {option}");
                }
            }
        }
    }
}

fn help(command: &str) -> String {
    let below = command.split(' ').filter(|word| *word != "help");
    let ended = Command::new(env!("CARGO_BIN_EXE_walcast")).arg("help").args(below).output().unwrap();
    assert!(ended.status.success(), "walcast help {command}");
    String::from_utf8(ended.stdout).unwrap()
}

/// Paths in backticks that begin with a folder of the repository.
#[test]
fn every_file_that_is_named_exists() {
    let folders =
        ["src/", "tests/", "docs/", "scripts/", "monitoring/", "migrations/", "sql/", "benches/", "docker/"];
    for page in all() {
        for (number, line) in page.prose() {
            for path in quoted(line).filter(|text| folders.iter().any(|folder| text.starts_with(folder))) {
                let path = path.split([' ', '*', '{', '#']).next().unwrap();
                assert!(root().join(path).exists(), "{}:{number}: there is no {path}", page.path);
            }
        }
    }
}

/// `make WORD` in code names a target of the Makefile.
#[test]
fn every_make_target_that_is_named_exists() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    for page in all() {
        for (number, code) in page.code() {
            let Some(rest) = code.strip_prefix("make ") else { continue };
            let target = rest.split_whitespace().next().unwrap();
            let known = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
            assert!(known, "{}:{number}: there is no `make {target}`", page.path);
        }
    }
}
