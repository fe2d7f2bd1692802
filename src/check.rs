//! Looks at everything that walcast needs, and changes nothing: the lines of `walcast check`.

use futures_util::future::{join, join_all};
use tokio_postgres::Client;

use crate::config::Config;
use crate::error::Result;
use crate::finding::{Finding, Verdict};
use crate::sink::{self, Sink};
use crate::source::{check as source_check, sql};
use crate::state::epoch;

/// What is so now, part by part. What cannot be reached is a finding, and hinders no other.
pub async fn findings(config: &Config) -> Vec<Finding> {
    let sinks = async {
        match sink::build(config) {
            Ok(sinks) => join_all(sinks.into_iter().map(targets)).await.concat(),
            Err(error) => vec![Finding::failed("configuration", "configuration", &error)],
        }
    };
    let (mut findings, targets) = join(source(config), sinks).await;
    findings.extend(targets);
    findings
}

async fn targets(mut sink: Box<dyn Sink>) -> Vec<Finding> {
    sink.check().await
}

async fn source(config: &Config) -> Vec<Finding> {
    let place = format!("postgres {}:{}", config.postgres.host, config.postgres.port);
    let client = match sql::connect(&config.postgres).await {
        Ok(client) => client,
        Err(error) => return vec![Finding::failed("postgres.server", place, &error)],
    };
    let mut findings =
        vec![Finding::ok("postgres.server", place, format!("answers, database {}", config.postgres.db))];
    match required(config, &client).await {
        Ok(told) => findings.extend(told),
        Err(error) => findings.push(Finding::failed("postgres.state", "postgres", &error)),
    }
    let open_max = source_check::TRANSACTION_OPEN_MAX;
    findings.extend(source_check::survey(&client, &config.postgres, open_max).await);
    findings
}

/// What a start asks for too.
async fn required(config: &Config, client: &Client) -> Result<Vec<Finding>> {
    let mut findings = source_check::check(client, &config.postgres).await?;
    if findings.iter().all(|finding| finding.verdict != Verdict::Fail) {
        findings.extend(epoch::check(&config.postgres, client).await?);
    }
    Ok(findings)
}
