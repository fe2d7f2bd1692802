//! `[bigquery]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::hop::is_exposed;

/// The service takes less than 10 MB in one append, framing included.
pub const APPEND_BYTES_LIMIT: usize = 9 << 20;

/// `[bigquery]`: the table that gets one row for each event.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BigQueryConfig {
    /// Google Cloud project. Required when `pipeline.sinks` has `bigquery`.
    pub project_id: String,
    /// Dataset. walcast creates it if it does not exist.
    pub dataset: String,
    /// Table. walcast creates it if it does not exist.
    pub table: String,
    /// Location of a dataset that walcast creates, such as `EU`. Empty: BigQuery's default.
    pub location: String,
    /// How the table is partitioned.
    pub partitioning: Partitioning,
    /// Key file of a service account, or the file that `gcloud auth application-default login` writes. Empty: the
    /// application default credentials (`GOOGLE_APPLICATION_CREDENTIALS`, gcloud's file, the metadata server).
    pub credentials_file: String,
    /// Address of the REST service. Empty: Google's. With `http://`, walcast uses neither TLS nor credentials.
    pub rest_url: String,
    /// Address of the Storage Write service (gRPC). Empty: Google's. With `http://`, walcast uses neither TLS nor
    /// credentials.
    pub grpc_url: String,
    /// How often rows become visible, in seconds.
    pub commit_seconds: u64,
    /// Most rows in one commit. More rows make walcast commit early.
    pub batch_rows_max: u64,
    /// Most bytes of rows in one commit. More bytes make walcast commit early.
    pub batch_bytes_max: u64,
    /// Most bytes of rows in one append request. Only a single row may be larger.
    pub append_bytes_max: usize,
}

/// How the table is partitioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Partitioning {
    /// By half hour, on a ring of 9,600 partitions (200 days), in the column `bucket_30m`.
    HalfHour,
    /// By hour of `event_ts`, BigQuery's own kind; at most 10,000 partitions (416 days).
    Hour,
    /// Not at all: for an emulator that has no partitions, or a small table. Each query reads the whole table, and so do walcast's own.
    None,
}

impl Default for BigQueryConfig {
    fn default() -> Self {
        BigQueryConfig {
            project_id: String::new(),
            dataset: "analytics".into(),
            table: "engagement_events".into(),
            location: String::new(),
            partitioning: Partitioning::HalfHour,
            credentials_file: String::new(),
            rest_url: String::new(),
            grpc_url: String::new(),
            commit_seconds: 30,
            batch_rows_max: 50_000,
            batch_bytes_max: 64 << 20,
            append_bytes_max: 1 << 20,
        }
    }
}

impl BigQueryConfig {
    /// The first setting that cannot be meant, as an error of kind `Config`.
    pub fn validate(&self) -> Result<()> {
        if self.project_id.is_empty() {
            return Err(wrong("project_id", "is empty", "name the Google Cloud project"));
        }
        let names = [("project_id", &self.project_id), ("dataset", &self.dataset), ("table", &self.table)];
        for (setting, name) in names {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
            if name.is_empty() || !name.chars().all(allowed) {
                return Err(wrong(setting, "is not a name", "letters, digits and underscores are a name"));
            }
        }
        for (setting, url) in [("rest_url", &self.rest_url), ("grpc_url", &self.grpc_url)] {
            if !(url.is_empty() || url.starts_with("http://") || url.starts_with("https://")) {
                return Err(wrong(setting, "is not a URL", "begin it with https:// or http://, or unset it"));
            }
            if url.contains('@') {
                return Err(wrong(setting, "has a user in it", "leave the user out: the service takes none"));
            }
        }
        let numbers = [
            ("commit_seconds", self.commit_seconds),
            ("batch_rows_max", self.batch_rows_max),
            ("batch_bytes_max", self.batch_bytes_max),
            ("append_bytes_max", self.append_bytes_max as u64),
        ];
        for (setting, number) in numbers {
            if number == 0 {
                return Err(wrong(setting, "is 0", "give it a number above 0"));
            }
        }
        if self.append_bytes_max > APPEND_BYTES_LIMIT {
            return Err(wrong("append_bytes_max", "is above what the service takes", "9437184 is the most"));
        }
        Ok(())
    }

    /// Whether rows travel in clear where others may listen.
    pub fn is_exposed(&self) -> bool {
        [&self.rest_url, &self.grpc_url].iter().filter_map(|url| url.parse().ok()).any(|url| is_exposed(&url))
    }

    /// How messages name the table: `bigquery project.dataset.table`.
    pub fn address(&self) -> String {
        format!("bigquery {}.{}.{}", self.project_id, self.dataset, self.table)
    }

    /// The table in SQL, quoted.
    pub fn sql_table(&self) -> String {
        format!("`{}.{}.{}`", self.project_id, self.dataset, self.table)
    }

    /// The table as the Storage Write service names it.
    pub fn table_path(&self) -> String {
        format!("projects/{}/datasets/{}/tables/{}", self.project_id, self.dataset, self.table)
    }

    /// How long rows wait to become visible.
    pub fn commit_every(&self) -> Duration {
        Duration::from_secs(self.commit_seconds)
    }
}

fn wrong(setting: &str, what: &str, fix: &str) -> Error {
    Error::new(Code::Configuration, format!("bigquery.{setting} {what}"))
        .hint(format!("{fix} (BIGQUERY_{})", setting.to_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_this_machine_without_tls_is_exposed() {
        let exposed = |url: &str| BigQueryConfig { grpc_url: url.into(), ..Default::default() }.is_exposed();
        assert!(exposed("http://emulator:9060"));
        assert!(!exposed("http://127.0.0.1:9060") && !exposed("https://emulator:9060") && !exposed(""));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let good = BigQueryConfig { project_id: "acme".into(), ..Default::default() };
        assert!(good.validate().is_ok());
        let cases: [(&str, BigQueryConfig); 7] = [
            ("project_id", BigQueryConfig::default()),
            ("dataset", BigQueryConfig { dataset: "a`b".into(), ..good.clone() }),
            ("table", BigQueryConfig { table: String::new(), ..good.clone() }),
            ("grpc_url", BigQueryConfig { grpc_url: "localhost:9060".into(), ..good.clone() }),
            (
                "rest_url",
                BigQueryConfig { rest_url: "http://a:canary@localhost:9050".into(), ..good.clone() },
            ),
            ("commit_seconds", BigQueryConfig { commit_seconds: 0, ..good.clone() }),
            ("append_bytes_max", BigQueryConfig { append_bytes_max: 10_000_000, ..good.clone() }),
        ];
        for (setting, config) in cases {
            let error = config.validate().unwrap_err();
            assert_eq!(error.code(), Code::Configuration);
            assert!(error.to_string().contains(setting), "{error}");
            assert!(error.advice().contains("BIGQUERY_"), "{}", error.advice());
        }
        let error = serde_json::from_str::<BigQueryConfig>(r#"{"project": "x"}"#).unwrap_err();
        assert!(error.to_string().contains("project"), "{error}");
    }
}
