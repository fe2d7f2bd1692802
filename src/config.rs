//! Configuration: a TOML file, then the environment, over defaults.
//!
//! Every setting `[section] name` has the environment name `SECTION_NAME` (`POSTGRES_HOST`, `KAFKA_BROKERS`);
//! `SECTION_NAME_FILE` names a file to read the value from.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Code, Error, Result};
use crate::event::privacy::PrivacyConfig;
use crate::generate::GenerateConfig;
use crate::sink::bigquery::BigQueryConfig;
use crate::sink::breaker::BreakerConfig;
use crate::sink::http::HttpConfig;
use crate::sink::kafka::KafkaConfig;
use crate::sink::redis::RedisConfig;
use crate::source::{self, PostgresConfig};
use crate::state::dead_letters::DeadLettersConfig;
use crate::streaming::Limits;
use crate::streaming::lane::LaneConfig;
use crate::transform::Bounds;
use crate::web::WebConfig;
use crate::web::access::Access;

/// All settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What runs between PostgreSQL and the sinks.
    pub pipeline: PipelineConfig,
    /// When a target that fails is left alone.
    pub breaker: BreakerConfig,
    /// What PostgreSQL keeps for a sink that has fallen behind.
    pub lane: LaneConfig,
    /// Where events come from, and where walcast keeps its state.
    pub postgres: PostgresConfig,
    /// What of people leaves PostgreSQL.
    pub privacy: PrivacyConfig,
    /// The rows that were refused.
    pub dead_letters: DeadLettersConfig,
    /// The Kafka sink.
    pub kafka: KafkaConfig,
    /// The Redis sink.
    pub redis: RedisConfig,
    /// The BigQuery sink.
    pub bigquery: BigQueryConfig,
    /// The HTTP sink.
    pub http: HttpConfig,
    /// Dashboard, health, metrics and status over HTTP.
    pub web: WebConfig,
    /// The load that `walcast generate` writes.
    pub generate: GenerateConfig,
}

/// `[pipeline]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineConfig {
    /// The sinks to write to: `kafka`, `redis`, `bigquery`, `http`.
    pub sinks: Vec<String>,
    /// Largest batch, in rows.
    pub batch_rows_max: usize,
    /// Largest batch, in bytes.
    pub batch_bytes_max: usize,
    /// How long a row may wait, in milliseconds, for more rows to join its batch.
    pub batch_age_ms_max: u64,
    /// Size of the queue in front of each sink, in bytes. A sink whose queue is full and stands still leaves the others,
    /// and is fed by a stream of its own until it has caught up.
    pub queue_bytes_max: usize,
    /// Largest row, in bytes of text. A larger row is delivered without its `raw_payload`.
    pub row_bytes_max: usize,
    /// How long the sinks may take at shutdown, in seconds, to write what they have been given.
    pub drain_seconds: u64,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        PipelineConfig {
            sinks: vec!["kafka".into(), "redis".into(), "bigquery".into()],
            batch_rows_max: 4096,
            batch_bytes_max: 1 << 20,
            batch_age_ms_max: 1,
            queue_bytes_max: 8 << 20,
            row_bytes_max: 900_000,
            drain_seconds: 30,
        }
    }
}

impl PipelineConfig {
    /// What the loop may take.
    pub fn limits(&self, breaker: &BreakerConfig) -> Limits {
        let drain = Duration::from_secs(self.drain_seconds);
        Limits { queue_bytes_max: self.queue_bytes_max, drain, breaker: breaker.clone() }
    }

    /// The bounds of a batch.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            batch_rows_max: self.batch_rows_max,
            batch_bytes_max: self.batch_bytes_max,
            batch_age_max: Duration::from_millis(self.batch_age_ms_max),
            idle_every: Duration::from_secs(10),
            row_bytes_max: self.row_bytes_max,
        }
    }
}

/// Environment names that are not made of section and setting.
const OTHER_NAMES: [(&str, &str); 3] = [
    ("GENERATION_RATE", "generate.rate_per_minute"),
    ("BURST_MODE", "generate.burst_mode"),
    ("BURST_COUNT", "generate.burst_count"),
];

/// The setting that says others.
const URI: &str = "postgres.uri";

/// What was loaded, and where each setting came from.
pub struct Loaded {
    /// The settings.
    pub config: Config,
    origins: BTreeMap<String, String>,
}

impl Loaded {
    /// Loads `file` (which must exist when it is given), then `environment`.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded> {
        let defaults = flatten(&Config::default());
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        let mut origins = BTreeMap::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Error::new(Code::ConfigurationUnreadable, format!("{} cannot be read", path.display()))
                    .because(error)
            })?;
            figment = figment.merge(Toml::string(&text));
            for key in defaults.keys().filter(|key| Figment::from(Toml::string(&text)).contains(key)) {
                origins.insert(key.clone(), path.display().to_string());
            }
        }
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        refuse_unknown(&environment, &defaults)?;
        let uri = match from_environment(URI, &environment)? {
            Some((_, uri)) => Some(uri),
            None => figment.extract_inner::<String>(URI).ok(),
        };
        let said = uri.filter(|uri| !uri.is_empty()).map(|uri| source::uri::settings(&uri)).transpose()?;
        for (name, value) in said.unwrap_or_default() {
            // what the file says of its own comes before
            if let Entry::Vacant(vacant) = origins.entry(format!("postgres.{name}")) {
                figment = figment.merge((vacant.key().as_str(), value));
                vacant.insert(URI.to_owned());
            }
        }
        for (key, default) in &defaults {
            if let Some((name, text)) = from_environment(key, &environment)? {
                figment = figment.merge((key.as_str(), typed(default, &text, &name)?));
                origins.insert(key.clone(), name);
            }
        }
        let mut config: Config = figment.extract().map_err(|error| explain(error, &defaults))?;
        config.postgres.privacy = config.privacy.rules()?;
        config.validate()?;
        Ok(Loaded { config, origins })
    }

    /// Every setting with its value and origin, secrets hidden, a line each: `walcast config show`.
    pub fn show(&self) -> String {
        let mut text = String::new();
        for (key, value) in flatten(&self.config) {
            let origin = self.origins.get(&key).map_or("default", String::as_str);
            let setting = format!("{key} = {value}");
            text.push_str(&format!("{setting:<64} # {origin}\n"));
        }
        text
    }
}

impl Config {
    fn validate(&self) -> Result<()> {
        let bounds = [
            ("pipeline.batch_rows_max", self.pipeline.batch_rows_max),
            ("pipeline.batch_bytes_max", self.pipeline.batch_bytes_max),
            ("pipeline.queue_bytes_max", self.pipeline.queue_bytes_max),
            ("pipeline.row_bytes_max", self.pipeline.row_bytes_max),
        ];
        for (name, value) in bounds {
            if value == 0 {
                return Err(Error::new(Code::Configuration, format!("{name} is 0: nothing could ever pass"))
                    .hint("give it a number above 0"));
            }
        }
        self.breaker.validate()?;
        self.postgres.check_names()?;
        self.postgres.check_tls()?;
        Access::new(&self.web.token)?;
        Ok(())
    }

    /// The same for one server: of several hosts of PostgreSQL the one that takes writes now. Where two do, as after a failover
    /// that has left the old primary running, each connection might choose another, and what they say is not of one history.
    pub async fn on_one_host(&self) -> Result<Config> {
        Ok(Config { postgres: source::sql::choose_host(&self.postgres).await?, ..self.clone() })
    }
}

/// Settings as `section.name` → value.
fn flatten(config: &Config) -> BTreeMap<String, Value> {
    fn walk(prefix: &str, value: Value, into: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(map) if prefix.matches('.').count() < 1 => {
                for (name, value) in map {
                    let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                    walk(&key, value, into);
                }
            }
            value => {
                into.insert(prefix.to_owned(), value);
            }
        }
    }
    let mut settings = BTreeMap::new();
    walk("", serde_json::to_value(config).unwrap_or_default(), &mut settings);
    settings
}

/// What a setting, such as `postgres.host`, is called in the environment.
pub fn environment_name(key: &str) -> String {
    match OTHER_NAMES.iter().find(|(_, other)| *other == key) {
        Some((name, _)) => (*name).to_owned(),
        None => key.replace('.', "_").to_uppercase(),
    }
}

/// The environment's value for a setting, with the name it came under.
fn from_environment(key: &str, environment: &BTreeMap<String, String>) -> Result<Option<(String, String)>> {
    let name = environment_name(key);
    if let Some(text) = environment.get(&name) {
        return Ok(Some((name, text.clone())));
    }
    let name = name + "_FILE";
    let Some(path) = environment.get(&name) else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::new(Code::ConfigurationUnreadable, format!("{name}: {path} cannot be read")).because(error)
    })?;
    Ok(Some((name, text.trim_end_matches(['\r', '\n']).to_owned())))
}

/// Refuses a name that begins as ours do and is none: whoever set it believes that it works.
fn refuse_unknown(environment: &BTreeMap<String, String>, known: &BTreeMap<String, Value>) -> Result<()> {
    let names: BTreeSet<String> = known.keys().map(|key| environment_name(key)).collect();
    let sections: BTreeSet<String> =
        known.keys().filter_map(|key| Some(key.split_once('.')?.0.to_uppercase() + "_")).collect();
    let is_ours = |name: &str| sections.iter().any(|section| name.starts_with(section));
    let is_known =
        |name: &str| names.contains(name.strip_suffix("_FILE").unwrap_or(name)) || names.contains(name);
    let mut named = environment.keys().map(String::as_str);
    let Some(unknown) = named.find(|name| is_ours(name) && !is_known(name) && !is_elses(name)) else {
        return Ok(());
    };
    let error =
        Error::new(Code::UnknownSetting, format!("{unknown} in the environment is no setting of walcast"));
    let (bare, file) = unknown.strip_suffix("_FILE").map_or((unknown, ""), |bare| (bare, "_FILE"));
    Err(match nearest(bare, names.iter().map(String::as_str)) {
        Some(name) => error.hint(format!("did you mean {name}{file}? Else unset it")),
        None => error.hint(format!("unset it for walcast: env -u {unknown} walcast …")),
    })
}

/// Names that others give to processes: proxies, and the links to services of Kubernetes and Docker (a service called
/// `redis` makes `REDIS_SERVICE_HOST`, `REDIS_PORT_6379_TCP_ADDR` and more).
fn is_elses(name: &str) -> bool {
    name == "HTTP_PROXY" || name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || {
        let (_, port) = name.split_once("_PORT_").unwrap_or_default();
        port.starts_with(|first: char| first.is_ascii_digit())
    }
}

/// The one of these names that is meant by this one, most likely.
fn nearest<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let close = names.map(|name| (strsim::damerau_levenshtein(name, unknown), name));
    close.filter(|(distance, _)| *distance <= 4).min().map(|(_, name)| name)
}

/// The text as the type that the setting's default has: a password of digits stays text.
fn typed(default: &Value, text: &str, name: &str) -> Result<Value> {
    let wrong = |shape: &str| {
        let error = Error::new(Code::Configuration, format!("{name} is not {shape}"));
        error.hint(match text.contains("://") && name.ends_with("_PORT") {
            true => format!(
                "Kubernetes sets {name} for a service of that name: give the pod enableServiceLinks: false, or set {name} yourself"
            ),
            false => format!("set {name} to {shape}, or unset it"),
        })
    };
    Ok(match default {
        Value::Bool(_) => Value::Bool(text.parse().map_err(|_| wrong("true or false"))?),
        Value::Number(_) => Value::Number(text.parse().map_err(|_| wrong("a number"))?),
        Value::Object(_) => {
            serde_json::from_str(text).map(Value::Object).map_err(|_| wrong("a JSON object"))?
        }
        Value::Array(_) => text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect(),
        // a setting without a default: a number if it reads as one
        Value::Null => text.parse().map_or_else(|_| Value::String(text.to_owned()), Value::Number),
        _ => Value::String(text.to_owned()),
    })
}

/// What stands before the text of a file's line, where an error quotes it.
fn is_line_number(text: &str) -> bool {
    text.trim().bytes().all(|byte| byte.is_ascii_digit())
}

/// Adds the nearest known name to an error about an unknown one.
fn explain(error: figment::Error, known: &BTreeMap<String, Value>) -> Error {
    let unknown = match &error.kind {
        Kind::UnknownField(name, _) => Some(name.clone()),
        _ => None,
    };
    // without what stands in the file: it may be a password
    let told = match &error.kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("{} is not {expected}", error.path.join("."))
        }
        _ => {
            let text = error.to_string();
            let quoted = |line: &str| line.split_once('|').is_some_and(|(before, _)| is_line_number(before));
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !quoted(line));
            lines.collect::<Vec<_>>().join(": ")
        }
    };
    let Some(unknown) = unknown else { return Error::new(Code::Configuration, told) };
    let explained = Error::new(Code::UnknownSetting, told);
    let sections: BTreeSet<&str> = known.keys().filter_map(|key| Some(key.split_once('.')?.0)).collect();
    let within = error.path.first().and_then(|first| sections.get(first.as_str()));
    let meant = match within {
        Some(section) => {
            let names = known.keys().filter_map(|key| key.strip_prefix(*section)?.strip_prefix('.'));
            nearest(&unknown, names).map(|name| format!("{name} in [{section}]"))
        }
        None => nearest(&unknown, sections.iter().copied()).map(|name| format!("[{name}]")),
    };
    match meant {
        Some(meant) => explained.hint(format!("did you mean {meant}?")),
        None => explained,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str, environment: &[(&str, &str)]) -> Result<Config> {
        let directory = std::env::temp_dir().join(format!("walcast-config-{}", uuid::Uuid::new_v4()));
        std::fs::write(&directory, toml)
            .map_err(|error| Error::new(Code::Configuration, error.to_string()))?;
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let loaded = Loaded::load(Some(&directory), environment).map(|loaded| loaded.config);
        let _ = std::fs::remove_file(directory);
        loaded
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_defaults() {
        let toml = "[postgres]\nhost = \"file\"\nport = 1234\n";
        let config = load(toml, &[("POSTGRES_HOST", "environment"), ("UNRELATED", "x")]).unwrap();
        assert_eq!((config.postgres.host.as_str(), config.postgres.port), ("environment", 1234));
        assert_eq!(config.postgres.db, "engagement");
    }

    #[test]
    fn the_names_of_the_old_stack_work_as_they_stand() {
        let config = load(
            "",
            &[
                ("POSTGRES_DB", "d"),
                ("REDIS_HOST", "r"),
                ("REDIS_PASSWORD", "12345"),
                ("KAFKA_BROKERS", "a:1,b:2"),
                ("BIGQUERY_PROJECT_ID", "p"),
                ("BIGQUERY_DATASET", "s"),
                ("GENERATION_RATE", "500000"),
                ("BURST_MODE", "true"),
                ("BURST_COUNT", "7"),
            ],
        )
        .unwrap();
        assert_eq!(config.redis.password.expose(), "12345");
        assert_eq!((config.kafka.brokers.as_str(), config.bigquery.dataset.as_str()), ("a:1,b:2", "s"));
        assert_eq!(
            (config.generate.rate_per_minute, config.generate.burst_mode, config.generate.burst_count),
            (500_000, true, 7)
        );
    }

    #[test]
    fn a_table_is_a_json_object_in_the_environment() {
        let properties = r#"{"linger.ms": 7, "sasl.password": "can,ary=1"}"#;
        let config =
            load("[kafka.properties]\nlinger.ms = 9\n", &[("KAFKA_PROPERTIES", properties)]).unwrap();
        let shown = format!("{:?}", config.kafka);
        assert!(shown.contains(r#""linger.ms": "7""#) && !shown.contains("can,ary"), "{shown}");
        let error = load("", &[("KAFKA_PROPERTIES", r#"["canary"]"#)]).unwrap_err();
        assert!(error.to_string().contains("KAFKA_PROPERTIES is not a JSON object"), "{error}");
        assert!(!error.chain().contains("canary"), "{}", error.chain());
    }

    #[test]
    fn a_uri_says_what_nothing_else_says() {
        let uri = "postgres://theirs:p%40ss@a,b:7/theirs?sslmode=require&require_auth=none";
        let config =
            load("[postgres]\ndb = \"file\"\n", &[("POSTGRES_URI", uri), ("POSTGRES_USER", "own")]).unwrap();
        let PostgresConfig { db, user, password, host, sslmode, require_auth, .. } = &config.postgres;
        assert_eq!(
            (db.as_str(), user.as_str(), password.expose(), host.as_str()),
            ("file", "own", "p@ss", "a,b:7")
        );
        assert_eq!((*sslmode, require_auth.len()), (source::SslMode::Require, 1));
        let config = load(&format!("[postgres]\nuri = \"{uri}\"\n"), &[]).unwrap();
        assert_eq!((config.postgres.db.as_str(), config.postgres.port), ("theirs", 5432));
        let error = load("", &[("POSTGRES_URI", "postgres://u:canary@h/db?sslmode=allow")]).unwrap_err();
        assert!(error.to_string().contains("sslmode") && !error.chain().contains("canary"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_name() {
        let error = load("[postgres]\nhots = \"x\"\n", &[]).unwrap_err();
        assert_eq!(
            (error.code(), error.advice()),
            (Code::UnknownSetting, "did you mean host in [postgres]?")
        );
        let error = load("[postgre]\nhost = \"x\"\n", &[]).unwrap_err();
        assert_eq!(error.advice(), "did you mean [postgres]?");
    }

    #[test]
    fn an_unknown_name_in_the_environment_is_refused_with_the_nearest() {
        for (unknown, advice) in [
            ("POSTGRES_SSLMOD", "did you mean POSTGRES_SSLMODE? Else unset it"),
            ("REDIS_PASWORD_FILE", "did you mean REDIS_PASSWORD_FILE? Else unset it"),
            (
                "KAFKA_HEAP_OPTS_OF_ANOTHER_PROGRAM",
                "unset it for walcast: env -u KAFKA_HEAP_OPTS_OF_ANOTHER_PROGRAM walcast …",
            ),
        ] {
            let error = load("", &[(unknown, "canary")]).unwrap_err();
            assert_eq!((error.code(), error.advice()), (Code::UnknownSetting, advice));
            assert!(error.to_string().contains(unknown) && !error.chain().contains("canary"), "{error}");
        }
    }

    #[test]
    fn names_that_others_give_to_every_process_are_left_alone() {
        for name in [
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "PATH",
            "REDIS_SERVICE_HOST",
            "REDIS_SERVICE_PORT_MAIN",
            "KAFKA_PORT_9092_TCP_ADDR",
        ] {
            assert!(load("", &[(name, "tcp://10.0.0.1:6379")]).is_ok(), "{name}");
        }
        let error = load("", &[("REDIS_PORT", "tcp://10.0.0.1:6379")]).unwrap_err();
        assert!(error.advice().contains("enableServiceLinks"), "{error:?}");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        /// Half a file, or one for another program.
        #[test]
        fn any_text_is_settings_or_is_refused(
            lines in proptest::collection::vec("(\\[[a-z.\"]{0,9}\\]?|[a-z_]{1,12} = .{0,12}|.{0,16})", 0..8),
        ) {
            let known = "[postgres]\nhost = \"db\"\n[privacy]\nkey = \"canary-of-a-key\"\n";
            let error = load(&format!("{known}{}", lines.join("\n")), &[]).err();
            proptest::prop_assert!(error.is_none_or(|error| !error.chain().contains("canary")));
        }
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_name() {
        let error = load("", &[("POSTGRES_PORT", "many")]).unwrap_err();
        assert!(error.to_string().contains("POSTGRES_PORT"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_toml_is_refused_by_line_and_without_its_text() {
        let error = load("[postgres]\nhost = \"db\"\npassword = canary\n", &[]).unwrap_err();
        assert!(error.to_string().contains("line 3") && !error.chain().contains("canary"), "{error}");
        assert!(!error.to_string().contains("\\n"), "{error}");
    }

    #[test]
    fn a_value_of_another_type_is_not_quoted() {
        for (text, key) in [
            ("[postgres]\npassword = 7355608\n", "postgres.password"),
            ("[kafka]\nbrokers = 7355608\n", "kafka.brokers"),
            ("[redis]\nport = \"7355608\"\n", "redis.port"),
        ] {
            let error = load(text, &[]).unwrap_err();
            assert!(error.to_string().contains(key) && !error.chain().contains("7355608"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let loaded = Loaded::load(None, [("POSTGRES_PASSWORD".to_owned(), "canary".to_owned())]).unwrap();
        assert!(!loaded.show().contains("canary"), "{}", loaded.show());
        assert!(loaded.show().contains("POSTGRES_PASSWORD"));
        assert!(!format!("{:?}", loaded.config).contains("canary"));
    }
}
