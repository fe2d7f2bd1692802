//! Logs, metrics, and the state that operators see.

pub mod latency;
pub mod metrics;
pub mod delivery;
pub mod status;
pub mod problem;
pub mod gauges;
pub mod queue_gauge;
pub mod sink_status;
pub mod registry;
pub mod log_throttle;
pub mod herald;
pub mod lag;
pub mod history;
pub mod live;

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::{Code, Error, Result};

/// Libraries that say more than an operator wants; a filter that names one of them wins.
const QUIET: &str = "rdkafka=warn,librdkafka=warn,h2=warn,hyper=warn,hyper_util=warn,tonic=warn,\
reqwest=warn,rustls=warn,tower=warn,tokio_postgres=warn,yup_oauth2=warn";

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(LogFormat::Auto),
            "pretty" => Ok(LogFormat::Pretty),
            "json" => Ok(LogFormat::Json),
            _ => Err("auto, pretty or json"),
        }
    }
}

/// Sends logs to stderr from now on. `filter` is a level or a list such as `info,walcast=debug`.
pub fn init_logging(filter: &str, format: LogFormat) -> Result<()> {
    let filter = parse_filter(filter)?;
    let terminal = std::io::stderr().is_terminal();
    let pretty = match format {
        LogFormat::Auto => terminal,
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let started = if pretty {
        registry.with(lines.with_ansi(may_colour(terminal))).try_init()
    } else {
        registry
            .with(lines.json().flatten_event(true).with_current_span(true).with_span_list(false))
            .try_init()
    };
    started.map_err(|error| Error::new(Code::Prerequisite, "logging was set up already").because(error))
}

/// Whether to write in colours to what is a terminal or not: <https://no-color.org>.
pub fn may_colour(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

fn parse_filter(filter: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(format!("{QUIET},{filter}")).map_err(|error| {
        Error::new(Code::Configuration, format!("the log filter {filter:?} cannot be read"))
            .because(error)
            .hint("give a level (error, warn, info, debug, trace), or a list such as info,walcast=debug")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_a_list() {
        for filter in ["info", "debug", "warn,walcast::sink=trace", "rdkafka=debug"] {
            parse_filter(filter).unwrap();
        }
        assert_eq!(parse_filter("walcast=loud").unwrap_err().code(), Code::Configuration);
    }

    #[test]
    fn a_filter_that_names_a_quiet_library_wins() {
        let filter = parse_filter("info,rdkafka=trace").unwrap().to_string();
        let rules: Vec<&str> = filter.split(',').collect();
        assert!(rules.contains(&"rdkafka=trace") && !rules.contains(&"rdkafka=warn"), "{filter}");
    }
}
