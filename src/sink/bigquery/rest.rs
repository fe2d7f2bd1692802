//! The REST service: making and looking at the table, and asking what it holds.

use std::sync::Arc;
use std::time::Duration;

use gcp_bigquery_client::Client;
use gcp_bigquery_client::client_builder::ClientBuilder;
use gcp_bigquery_client::error::{BQError, NestedResponseError};
use gcp_bigquery_client::model::dataset::Dataset;
use gcp_bigquery_client::model::get_query_results_parameters::GetQueryResultsParameters;
use gcp_bigquery_client::model::query_request::QueryRequest;
use gcp_bigquery_client::model::table::Table;
use gcp_bigquery_client::model::table_row::TableRow;
use uuid::Uuid;

use super::auth::{Credentials, token_error};
use super::column::Footprint;
use super::config::BigQueryConfig;
use super::extra::{ExtraTable, ExtraType};
use super::table;
use crate::error::{Class, Code, Error, Result};
use crate::event::ExtraColumn;
use crate::lsn::{Lsn, Position};
use crate::sink::erasure::Subject;

const GOOGLE: &str = "https://bigquery.googleapis.com";
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Rows of one page of a large answer.
const PAGE_ROWS: i32 = 5_000;
const QUERY_WITHIN: Duration = Duration::from_secs(60);
const ANSWER_WITHIN: Duration = Duration::from_secs(70);
/// How long to wait before what failed is asked for again.
const PAUSES: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(3)];

/// The REST service for one table.
pub struct Rest {
    client: Client,
    config: BigQueryConfig,
}

impl Rest {
    /// A client; it connects at its first call.
    pub async fn new(config: &BigQueryConfig, credentials: Credentials) -> Result<Self> {
        let wrong = |error| failed(config, "has no client", error);
        let base = if config.rest_url.is_empty() { GOOGLE } else { config.rest_url.trim_end_matches('/') };
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN)
            // reading them takes a moment, and a plain address has no use for them
            .tls_built_in_root_certs(base.starts_with("https://"))
            .build()
            .map_err(|error| wrong(error.into()))?;
        let client = ClientBuilder::new()
            .with_v2_base_url(format!("{base}/bigquery/v2"))
            .with_client(http)
            .build_from_authenticator(Arc::new(credentials))
            .await
            .map_err(wrong)?;
        Ok(Rest { client, config: config.clone() })
    }

    /// Where it asks.
    pub fn config(&self) -> &BigQueryConfig {
        &self.config
    }

    /// The table as it is; `None` when it is not there.
    pub async fn table(&self) -> Result<Option<Table>> {
        let BigQueryConfig { project_id, dataset, table, .. } = &self.config;
        match self.client.table().get(project_id, dataset, table, None).await {
            Ok(table) => Ok(Some(table)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed("cannot be looked at", error)),
        }
    }

    /// Where the dataset lies; `None` when it is not there.
    pub async fn dataset(&self) -> Result<Option<String>> {
        let BigQueryConfig { project_id, dataset, .. } = &self.config;
        match self.client.dataset().get(project_id, dataset).await {
            Ok(found) => {
                let place = found.location.map(|location| format!("is there, in {location}"));
                Ok(Some(place.unwrap_or_else(|| "is there".to_owned())))
            }
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed("has a dataset that cannot be looked at", error)),
        }
    }

    /// Makes the table, and its dataset when that is missing too. Somebody else may have been faster.
    pub async fn create(&self) -> Result<()> {
        self.create_dataset().await?;
        match self.client.table().create(table::wanted(&self.config)).await {
            Ok(_) => tracing::info!("{} made", self.config.address()),
            Err(error) if code(&error) == Some(409) => {}
            Err(error) => return Err(self.failed("cannot be made", error)),
        }
        Ok(())
    }

    /// The table's columns that are known, and those for these, which are added where it has none.
    pub async fn columns_for<'a>(
        &self,
        known: impl Iterator<Item = &'a str> + Clone,
        extra: impl Iterator<Item = &'a ExtraColumn> + Clone,
    ) -> Result<ExtraTable> {
        // each once, in the order in which they came: the same name may come with another shape
        let mut names: Vec<&str> = Vec::new();
        for name in known.chain(extra.clone().map(|column| column.name.as_str())) {
            if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                names.push(name);
            }
        }
        let names = || names.iter().copied();
        let there = self.extra_table(names()).await?;
        let missing: Vec<&ExtraColumn> = extra.clone().filter(|column| !there.has(column)).collect();
        if missing.is_empty() {
            return Ok(there);
        }
        // one that has come in two shapes takes both as texts
        let mut add: Vec<(&str, ExtraType)> = Vec::new();
        for column in missing {
            let wanted = ExtraType::wanted(column.shape);
            match add.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case(&column.name)) {
                Some((_, known)) if *known != wanted => *known = ExtraType::String,
                Some(_) => {}
                None => add.push((&column.name, wanted)),
            }
        }
        let clauses: Vec<String> = add
            .iter()
            .map(|(name, column_type)| format!("ADD COLUMN IF NOT EXISTS `{name}` {}", column_type.sql()))
            .collect();
        self.query(&format!("ALTER TABLE {} {}", self.config.sql_table(), clauses.join(", "))).await?;
        let names_added: Vec<&str> = add.iter().map(|(name, _)| *name).collect();
        tracing::info!("{} has the columns {} from now on", self.config.address(), names_added.join(", "));
        let there = self.extra_table(names()).await?;
        match extra.clone().find(|column| !there.has(column)) {
            None => Ok(there),
            Some(column) => {
                let message = format!("{} does not show column {} yet", self.config.address(), column.name);
                Err(Error::new(Code::BigQueryUnreachable, message))
            }
        }
    }

    /// Those of these columns that the table has.
    async fn extra_table<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<ExtraTable> {
        let table = self.table().await?;
        let fields = table.as_ref().and_then(|table| table.schema.fields().as_deref());
        Ok(ExtraTable::of(fields.unwrap_or_default(), names))
    }

    async fn create_dataset(&self) -> Result<()> {
        let BigQueryConfig { project_id, dataset, location, .. } = &self.config;
        match self.client.dataset().get(project_id, dataset).await {
            Ok(_) => return Ok(()),
            Err(error) if code(&error) == Some(404) => {}
            Err(error) => return Err(self.failed("has a dataset that cannot be looked at", error)),
        }
        let mut wanted = Dataset::new(project_id, dataset);
        if !location.is_empty() {
            wanted = wanted.location(location);
        }
        match self.client.dataset().create(wanted).await {
            Err(error) if code(&error) != Some(409) => {
                Err(self.failed("has no dataset, and none can be made", error))
            }
            _ => Ok(()),
        }
    }

    /// Makes the table function when it is missing. A convenience for readers: where it cannot be had,
    /// nothing else is hindered.
    pub async fn create_function(&self) {
        let BigQueryConfig { project_id, dataset, .. } = &self.config;
        match self.client.routine().get(project_id, dataset, table::FUNCTION).await {
            Err(error) if code(&error) == Some(404) => {}
            _ => return,
        }
        if let Err(error) = self.query(&table::function_sql(&self.config)).await {
            tracing::warn!(code = %error.code(), error = error.chain(), "no table function {}", table::FUNCTION);
        }
    }

    /// The last event of a history id, not before `from`, that the table has within a footprint. Commits are
    /// atomic and in order: all events before it are there too.
    pub async fn last_position(
        &self,
        history_id: Uuid,
        within: &Footprint,
        from: Position,
    ) -> Result<Option<Position>> {
        let buckets: Vec<String> = within.buckets.iter().map(i64::to_string).collect();
        let rows = self
            .query(&format!(
                "SELECT commit_lsn, ordinal FROM {} WHERE epoch = '{history_id}' AND bucket_30m IN ({}) \
                 AND event_ts BETWEEN TIMESTAMP_MICROS({}) AND TIMESTAMP_MICROS({}) AND commit_lsn >= {} \
                 ORDER BY commit_lsn DESC, ordinal DESC LIMIT 1",
                self.config.sql_table(),
                buckets.join(", "),
                within.event_ts_min,
                within.event_ts_max,
                from.commit_lsn.0,
            ))
            .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let number = |index: usize| {
            let cell = row.columns.as_ref()?.get(index)?.value.as_ref()?;
            cell.as_str().map_or_else(|| cell.as_u64(), |text| text.parse().ok())
        };
        match (number(0), number(1)) {
            (Some(commit_lsn), Some(ordinal)) => {
                Ok(Some(Position { commit_lsn: Lsn(commit_lsn), ordinal }).filter(|last| *last >= from))
            }
            _ => Err(Error::new(
                Code::Protocol,
                format!("{} gave a position in another shape", self.config.address()),
            )),
        }
    }

    /// How many events name somebody.
    pub async fn count_of(&self, subject: &Subject) -> Result<u64> {
        let query = format!("SELECT count(*) FROM {} WHERE {}", self.config.sql_table(), of(subject));
        let rows = self.query(&query).await?;
        let cell = rows.first().and_then(|row| row.columns.as_ref()?.first()?.value.as_ref());
        let count =
            cell.and_then(|cell| cell.as_str().map_or_else(|| cell.as_u64(), |text| text.parse().ok()));
        count.ok_or_else(|| {
            Error::new(Code::Protocol, format!("{} gave a count in another shape", self.config.address()))
        })
    }

    /// Deletes them.
    pub async fn delete(&self, subject: &Subject) -> Result<()> {
        self.query(&format!("DELETE FROM {} WHERE {}", self.config.sql_table(), of(subject))).await.map(drop)
    }

    /// Takes all rows out, those of other histories too. Time travel has them for as long as the table's settings say.
    pub async fn empty(&self) -> Result<()> {
        self.query(&format!("TRUNCATE TABLE {}", self.config.sql_table())).await.map(drop)
    }

    /// Whether this account may query at all; reads nothing.
    pub async fn probe(&self) -> Result<()> {
        self.query("SELECT 1").await.map(drop)
    }

    /// Runs a statement that may give many rows; gives them page by page, each cell as text.
    pub async fn pages(
        &self,
        sql: &str,
        mut page: impl FnMut(&[Vec<Option<String>>]) -> Result<()>,
    ) -> Result<()> {
        let project = &self.config.project_id;
        let mut request = QueryRequest::new(sql);
        request.use_query_cache = Some(false);
        request.timeout_ms = Some(QUERY_WITHIN.as_millis() as i32);
        request.max_results = Some(PAGE_ROWS);
        let mut patience = Patience::default();
        let first = loop {
            match self.client.job().query(project, request.clone()).await {
                Ok(first) => break first,
                Err(error) => patience.after(self.failed("cannot be queried", without_words(error))).await?,
            }
        };
        let job = first.job_reference.unwrap_or_default();
        let (mut done, mut token) = (first.job_complete == Some(true), first.page_token);
        if done {
            page(&cells(first.rows))?;
        }
        while !done || token.is_some() {
            let next = GetQueryResultsParameters {
                location: job.location.clone(),
                max_results: Some(PAGE_ROWS),
                page_token: token.take(),
                timeout_ms: Some(QUERY_WITHIN.as_millis() as i32),
                ..Default::default()
            };
            let id = job.job_id.as_deref().unwrap_or_default();
            let mut patience = Patience::default();
            let answer = loop {
                match self.client.job().get_query_results(project, id, next.clone()).await {
                    Ok(answer) => break answer,
                    Err(error) => {
                        let failed = self.failed("does not give a query's rows", without_words(error));
                        patience.after(failed).await?;
                    }
                }
            };
            done = answer.job_complete == Some(true);
            token = answer.page_token;
            page(&cells(answer.rows))?;
        }
        Ok(())
    }

    /// Runs a statement that gives few rows, never from the query cache.
    async fn query(&self, sql: &str) -> Result<Vec<TableRow>> {
        let mut request = QueryRequest::new(sql);
        request.use_query_cache = Some(false);
        request.timeout_ms = Some(QUERY_WITHIN.as_millis() as i32);
        let answer = self
            .client
            .job()
            .query(&self.config.project_id, request)
            .await
            .map_err(|error| self.failed("cannot be queried", error))?;
        if answer.job_complete == Some(false) {
            let message = format!("a query on {} took longer than {QUERY_WITHIN:?}", self.config.address());
            return Err(Error::new(Code::BigQueryUnreachable, message));
        }
        Ok(answer.rows.unwrap_or_default())
    }

    fn failed(&self, what: &str, error: BQError) -> Error {
        failed(&self.config, what, error)
    }
}

/// For what may be asked for twice. A connection that was idle may be closed by the service at the moment that it is used
/// again, and a comparison of millions of rows is not to end with that.
struct Patience(std::slice::Iter<'static, Duration>);

impl Default for Patience {
    fn default() -> Self {
        Patience(PAUSES.iter())
    }
}

impl Patience {
    /// Waits before the next try; an error that is for good, or one too many, is given back.
    async fn after(&mut self, error: Error) -> Result<()> {
        let pause = self.0.next().filter(|_| error.class() == Class::Transient).ok_or(error)?;
        tokio::time::sleep(*pause).await;
        Ok(())
    }
}

/// The condition that an event names somebody.
fn of(subject: &Subject) -> String {
    let ids: Vec<String> = subject.ids().iter().map(|id| format!("'{id}'")).collect();
    format!("{} IN ({})", subject.field(), ids.join(", "))
}

fn cells(rows: Option<Vec<TableRow>>) -> Vec<Vec<Option<String>>> {
    let text = |value: serde_json::Value| match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    let row = |row: TableRow| {
        let columns = row.columns.unwrap_or_default().into_iter();
        columns.map(|cell| cell.value.and_then(text)).collect()
    };
    rows.unwrap_or_default().into_iter().map(row).collect()
}

/// What is found wrong with a query that reads rows may quote one: its reasons' names are left.
fn without_words(error: BQError) -> BQError {
    match error {
        BQError::ResponseError { mut error } if error.error.code == 400 => {
            let reasons = error.error.errors.iter().filter_map(|one| one.get("reason").map(String::as_str));
            error.error.message = reasons.collect::<Vec<_>>().join(", ");
            BQError::ResponseError { error }
        }
        other => other,
    }
}

fn code(error: &BQError) -> Option<i64> {
    match error {
        BQError::ResponseError { error } => Some(error.error.code),
        _ => None,
    }
}

/// What Google refuses with 403 though the account may do it: another time it may work.
const LIMITS: [&str; 3] = ["rateLimitExceeded", "quotaExceeded", "jobRateLimitExceeded"];

/// Whether a limit was reached, by the service's own names for its reasons.
fn is_limited(error: &NestedResponseError) -> bool {
    error.errors.iter().filter_map(|one| one.get("reason")).any(|reason| LIMITS.contains(&reason.as_str()))
}

fn failed(config: &BigQueryConfig, what: &str, error: BQError) -> Error {
    let new = |code| Error::new(code, format!("{} {what}", config.address()));
    match error {
        BQError::ResponseError { error } => {
            let cause = format!("{} ({})", error.error.message, error.error.code);
            match error.error.code {
                403 if is_limited(&error.error) => new(Code::BigQueryUnreachable).because(cause),
                401 | 403 => new(Code::BigQueryRefused).because(cause).hint(ROLES),
                429 | 500.. => new(Code::BigQueryUnreachable).because(cause),
                _ => new(Code::BigQueryRefused).because(cause),
            }
        }
        BQError::YupAuthError(error) => token_error(error),
        BQError::RequestError(error) => new(Code::BigQueryUnreachable).because(error),
        error => new(Code::Protocol).because(error),
    }
}

/// What the account needs.
pub const ROLES: &str = "give the account roles/bigquery.dataEditor on the dataset and roles/bigquery.jobUser on the project; to make the dataset it needs roles/bigquery.user too";

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn what_a_query_of_rows_is_refused_for_quotes_none() {
        let errors = serde_json::json!([{ "reason": "invalidQuery", "message": "Bad value: canary" }]);
        let told = serde_json::json!({
            "error": { "code": 400, "errors": errors, "message": "Bad value: canary", "status": "INVALID_ARGUMENT" }
        });
        let error = BQError::ResponseError { error: serde_json::from_value(told).unwrap() };
        let error = failed(&BigQueryConfig::default(), "x", without_words(error));
        assert!(error.chain().ends_with("x: invalidQuery (400)"), "{error:?}");
    }

    /// A service that answers one request a connection with these, one after the other; an empty one hangs up instead.
    async fn answering(answers: Vec<(u16, serde_json::Value)>) -> Rest {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = BigQueryConfig {
            project_id: "p".into(),
            rest_url: format!("http://{}", listener.local_addr().unwrap()),
            ..BigQueryConfig::default()
        };
        tokio::spawn(async move {
            for (status, body) in answers {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut heard = [0; 4096];
                assert!(client.read(&mut heard).await.unwrap() > 0);
                let body = body.to_string();
                let head =
                    format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}", body.len());
                if status > 0 {
                    client.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
                }
            }
        });
        Rest::new(&config, Credentials::None).await.unwrap()
    }

    async fn read(rest: &Rest) -> Result<Vec<String>> {
        let mut read = Vec::new();
        let taken = rest.pages("SELECT 1", |rows| {
            read.extend(rows.iter().flatten().flatten().cloned());
            Ok(())
        });
        taken.await.map(|()| read)
    }

    #[tokio::test]
    async fn what_may_be_asked_twice_is() {
        let page = |value: &str, token: Option<&str>| {
            serde_json::json!({
                "kind": "x", "jobComplete": true, "jobReference": { "projectId": "p", "jobId": "j" },
                "pageToken": token, "rows": [{ "f": [{ "v": value }] }],
            })
        };
        let refusal = |code: u16| serde_json::json!({ "error": { "code": code, "errors": [], "message": "m", "status": "S" } });
        let nothing = serde_json::Value::Null;
        let answers = vec![
            (0, nothing.clone()),
            (200, page("1", Some("t"))),
            (0, nothing.clone()),
            (503, refusal(503)),
            (200, page("2", None)),
        ];
        assert_eq!(read(&answering(answers).await).await.ok(), Some(vec!["1".to_owned(), "2".to_owned()]));
        // what is refused for good is not asked for again, and what is refused again and again is told
        let refused = read(&answering(vec![(400, refusal(400)), (200, page("1", None))]).await).await;
        assert_eq!(refused.err().map(|error| error.code()), Some(Code::BigQueryRefused));
        let unreachable = read(&answering(vec![(503, refusal(503)); 4]).await).await;
        assert_eq!(unreachable.err().map(|error| error.code()), Some(Code::BigQueryUnreachable));
    }

    #[test]
    fn a_limit_reached_is_no_lack_of_rights() {
        for (reason, kind) in
            [("rateLimitExceeded", Code::BigQueryUnreachable), ("accessDenied", Code::BigQueryRefused)]
        {
            let errors = serde_json::json!([{ "reason": reason, "message": "quota" }]);
            let told = serde_json::json!({
                "error": { "code": 403, "errors": errors, "message": "no", "status": "PERMISSION_DENIED" }
            });
            let error = serde_json::from_value(told).map(|error| BQError::ResponseError { error });
            let kinds = error.map(|error| failed(&BigQueryConfig::default(), "x", error).code());
            assert_eq!(kinds.ok(), Some(kind), "{reason}");
        }
    }
}
