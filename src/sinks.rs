//! The sinks that there are, each made from its own part of the configuration. Whoever runs, checks or compares them
//! asks here, and knows no sink by name.

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::resume::SinkName;
use crate::sink::bigquery::{self, BigQuerySink};
use crate::sink::content::ContentSink;
use crate::sink::http::{self, HttpSink};
use crate::sink::kafka::{self, KafkaSink};
use crate::sink::null::{self, NullSink};
use crate::sink::recount::Recount;
use crate::sink::redis::{self, RedisSink};
use crate::sink::{Leaderboards, Sink, SinkAdmin};
use crate::state::State;

/// A sink that configuration can name.
struct Entry {
    /// The name in `pipeline.sinks`.
    name: SinkName,
    sink: fn(&Config) -> Result<Box<dyn Sink>>,
    admin: fn(&Config) -> Result<Box<dyn SinkAdmin>>,
}

const SINKS: [Entry; 5] = [
    Entry {
        name: kafka::NAME,
        sink: |config| Ok(Box::new(kafka(config)?)),
        admin: |config| Ok(Box::new(kafka(config)?)),
    },
    Entry {
        name: redis::NAME,
        sink: |config| Ok(Box::new(RedisSink::new(config.redis.clone()))),
        admin: |config| Ok(Box::new(RedisSink::new(config.redis.clone()))),
    },
    Entry {
        name: bigquery::NAME,
        sink: |config| Ok(Box::new(bigquery(config)?)),
        admin: |config| Ok(Box::new(bigquery(config)?)),
    },
    Entry {
        name: http::NAME,
        sink: |config| Ok(Box::new(HttpSink::new(config.http.clone(), &config.postgres)?)),
        admin: |config| Ok(Box::new(HttpSink::new(config.http.clone(), &config.postgres)?)),
    },
    Entry {
        name: null::NAME,
        sink: |_| Ok(Box::new(NullSink::default())),
        admin: |_| Ok(Box::new(NullSink::default())),
    },
];

fn content(config: &Config) -> ContentSink {
    ContentSink::new(&config.postgres, config.dead_letters.retention())
}

fn kafka(config: &Config) -> Result<KafkaSink> {
    KafkaSink::new(config.kafka.clone(), config.pipeline.row_bytes_max, State::new(config.postgres.clone()))
}

fn bigquery(config: &Config) -> Result<BigQuerySink> {
    config.bigquery.validate()?;
    Ok(BigQuerySink::new(config.bigquery.clone(), &config.postgres))
}

/// Refuses a configuration that names a sink that there is not.
pub fn validate(config: &Config) -> Result<()> {
    let unknown = |name: &&String| SINKS.iter().all(|entry| entry.name.as_str() != *name);
    let Some(unknown) = config.pipeline.sinks.iter().find(unknown) else { return Ok(()) };
    let names = SINKS.map(|entry| entry.name.as_str()).join(", ");
    Err(Error::new(Code::Configuration, format!("pipeline.sinks: there is no sink {unknown:?}"))
        .hint(format!("the sinks are {names}")))
}

/// The sinks that the configuration asks for, after the content versions that joins need.
pub fn build(config: &Config) -> Result<Vec<Box<dyn Sink>>> {
    let content: Box<dyn Sink> = Box::new(content(config));
    std::iter::once(Ok(content)).chain(named(config).map(|entry| (entry.sink)(config))).collect()
}

/// Their targets, as an operator sees them; in the same order.
pub fn admins(config: &Config) -> Result<Vec<Box<dyn SinkAdmin>>> {
    let content: Box<dyn SinkAdmin> = Box::new(content(config));
    std::iter::once(Ok(content)).chain(named(config).map(|entry| (entry.admin)(config))).collect()
}

/// The leaderboards for people to look at, where a sink keeps some.
pub fn leaderboards(config: &Config) -> Option<Leaderboards> {
    named(config).any(|entry| entry.name == redis::NAME).then(|| Leaderboards::new(config.redis.clone()))
}

/// What counts all events anew for a sink, also one that the configuration does not name; `None` where it keeps no sums.
pub fn recount(config: &Config, sink: SinkName) -> Result<Option<Box<dyn Recount>>> {
    let Some(entry) = SINKS.iter().find(|entry| entry.name == sink) else { return Ok(None) };
    Ok((entry.admin)(config)?.recount())
}

/// The targets that the configuration names.
pub fn wanted(config: &Config) -> Result<Vec<Box<dyn SinkAdmin>>> {
    named(config).map(|entry| (entry.admin)(config)).collect()
}

fn named(config: &Config) -> impl Iterator<Item = &'static Entry> {
    SINKS.iter().filter(|entry| config.pipeline.sinks.iter().any(|name| name == entry.name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sink_has_its_own_name_and_a_guarantee() {
        let mut config = Config::default();
        config.pipeline.sinks = SINKS.iter().map(|entry| entry.name.to_string()).collect();
        config.bigquery.project_id = "p".into();
        config.http.url = "http://127.0.0.1/".to_owned().into();
        let (sinks, admins) = (build(&config).unwrap(), admins(&config).unwrap());
        assert_eq!(sinks.len(), 1 + SINKS.len());
        for (sink, admin) in sinks.iter().zip(&admins) {
            assert_eq!((sink.name(), sink.guarantee()), (admin.name(), admin.guarantee()));
        }
        for (entry, sink) in SINKS.iter().zip(&sinks[1..]) {
            assert_eq!(entry.name, sink.id());
            assert_eq!(sink.guarantee().keeps_checkpoint(), entry.name != null::NAME);
        }
    }

    #[test]
    fn a_sink_that_there_is_not_is_refused_by_name() {
        let mut config = Config::default();
        config.pipeline.sinks = vec!["kafka".into(), "kinesis".into()];
        let error = validate(&config).unwrap_err();
        assert_eq!(error.exit_code(), 78);
        assert!(
            error.to_string().contains("kinesis") && error.advice().contains("kafka, redis"),
            "{error:?}"
        );
    }
}
