//! What `walcast check` looks at: the dataset, the table, and both services.

use super::{BigQueryConfig, Target, table};
use crate::error::Result;
use crate::hop::in_clear;
use crate::sink::Finding;

/// Looks at the table, and whether both services let us in.
pub async fn inspect(config: &BigQueryConfig) -> Result<Vec<Finding>> {
    let Target { rest, client } = Target::new(config).await?;
    let dataset = format!("bigquery {}.{}", config.project_id, config.dataset);
    let missing = |id, subject| Finding::warn(id, subject, "does not exist yet", "walcast init");
    let mut findings = vec![match rest.dataset().await? {
        Some(location) => Finding::ok("bigquery.dataset", dataset, location),
        None => missing("bigquery.dataset", dataset),
    }];
    if config.is_exposed() {
        let fix = "unset BIGQUERY_REST_URL and BIGQUERY_GRPC_URL, or begin them with https://";
        findings.push(in_clear("bigquery.tls", config.address(), fix));
    }
    let Some(found) = rest.table().await? else {
        findings.push(missing("bigquery.table", config.address()));
        return Ok(findings);
    };
    findings.push(match table::verify(config, &found) {
        Ok(()) => Finding::ok("bigquery.table", config.address(), table::describe(&found)),
        Err(error) => Finding::failed("bigquery.table", config.address(), &error),
    });
    findings.extend(table::lifetime(config, &found));
    findings.push(answers("bigquery.queries", "bigquery queries", rest.probe().await));
    let wrote =
        client.probe().await.map_err(|refusal| refusal.into_error("no write stream can be looked at"));
    findings.push(answers("bigquery.write", "bigquery write service", wrote));
    Ok(findings)
}

fn answers(id: &'static str, subject: &str, answer: Result<()>) -> Finding {
    match answer {
        Ok(()) => Finding::ok(id, subject, "answers"),
        Err(error) => Finding::failed(id, subject, &error),
    }
}
