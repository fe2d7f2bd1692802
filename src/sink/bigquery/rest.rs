//! Access to BigQuery: credentials, and the sorting of REST errors.

use async_trait::async_trait;
use gcp_bigquery_client::auth::Authenticator;
use gcp_bigquery_client::client_builder::ClientBuilder;
use gcp_bigquery_client::error::BQError;
use gcp_bigquery_client::{Client, yup_oauth2};
use std::sync::Arc;
use std::time::Duration;
use yup_oauth2::authenticator::{ApplicationDefaultCredentialsTypes, DefaultAuthenticator};
use yup_oauth2::{ApplicationDefaultCredentialsAuthenticator, ApplicationDefaultCredentialsFlowOpts};

use super::BigQueryConfig;
use crate::error::{Error, Kind, Result};

const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/bigquery"];
const DEADLINE: Duration = Duration::from_secs(30);

/// Who we are to Google; tokens are kept until they run out. Nobody, for an emulator.
#[derive(Clone)]
pub struct Credentials(Option<Arc<DefaultAuthenticator>>);

impl Credentials {
    /// From `credentials_file` (a service account's key), else the surroundings (GOOGLE_APPLICATION_CREDENTIALS,
    /// the metadata server). An endpoint of one's own without TLS gets none.
    pub async fn find(config: &BigQueryConfig) -> Result<Credentials> {
        if config.is_emulator() {
            return Ok(Credentials(None));
        }
        let refused = |error: std::io::Error| {
            Error::new(Kind::Setup, "BigQuery: no usable credentials")
                .because(error)
                .hint("set bigquery.credentials_file to a service account's key file, or GOOGLE_APPLICATION_CREDENTIALS")
        };
        let authenticator = match &config.credentials_file {
            Some(file) => {
                let key = yup_oauth2::read_service_account_key(file).await.map_err(refused)?;
                yup_oauth2::ServiceAccountAuthenticator::builder(key).build().await.map_err(refused)?
            }
            None => {
                let options = ApplicationDefaultCredentialsFlowOpts::default();
                match ApplicationDefaultCredentialsAuthenticator::builder(options).await {
                    ApplicationDefaultCredentialsTypes::InstanceMetadata(builder) => {
                        builder.build().await.map_err(refused)?
                    }
                    ApplicationDefaultCredentialsTypes::ServiceAccount(builder) => {
                        builder.build().await.map_err(refused)?
                    }
                }
            }
        };
        Ok(Credentials(Some(Arc::new(authenticator))))
    }

    /// A bearer token, unless nobody is asked for one.
    pub async fn token(&self) -> Result<Option<String>, yup_oauth2::Error> {
        let Some(authenticator) = &self.0 else { return Ok(None) };
        let token = authenticator.token(&SCOPES).await?;
        Ok(token.token().map(str::to_owned))
    }
}

#[async_trait]
impl Authenticator for Credentials {
    async fn access_token(&self) -> Result<String, BQError> {
        // an emulator takes any
        Ok(self.token().await?.unwrap_or_else(|| "none".to_owned()))
    }
}

/// A client for tables, datasets and queries.
pub async fn client(config: &BigQueryConfig, credentials: &Credentials) -> Result<Client> {
    let mut builder = ClientBuilder::new();
    if let Some(url) = &config.rest_url {
        builder.with_v2_base_url(format!("{}/bigquery/v2", url.trim_end_matches('/')));
    }
    let http = reqwest::Client::builder().timeout(DEADLINE).build();
    let http = http.map_err(|error| Error::new(Kind::Setup, "BigQuery: no HTTP client").because(error))?;
    builder.with_client(http);
    builder.build_from_authenticator(Arc::new(credentials.clone())).await.map_err(error)
}

/// What was asked for, or `None` when it is not there.
pub fn found<T>(answer: Result<T, BQError>) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(BQError::ResponseError { error }) if error.error.code == 404 => Ok(None),
        Err(other) => Err(error(other)),
    }
}

/// Made now, or there already because somebody else was quicker.
pub fn created(answer: Result<(), BQError>) -> Result<()> {
    match answer {
        Err(BQError::ResponseError { error }) if error.error.code == 409 => Ok(()),
        other => other.map_err(error),
    }
}

/// Sorts a REST error by what can be done about it.
pub fn error(error: BQError) -> Error {
    let (kind, message) = match &error {
        BQError::ResponseError { error } => {
            let kind = match error.error.code {
                408 | 429 | 500.. => Kind::Unavailable,
                _ => Kind::Setup,
            };
            (kind, format!("BigQuery answers {}: {}", error.error.code, error.error.message))
        }
        BQError::RequestError(_) => (Kind::Unavailable, "BigQuery cannot be reached".to_owned()),
        BQError::YupAuthError(_) | BQError::AuthError(_) | BQError::NoToken => {
            (Kind::Setup, "BigQuery: no token for these credentials".to_owned())
        }
        _ => (Kind::Protocol, "BigQuery gives an answer that is not understood".to_owned()),
    };
    Error::new(kind, message).because(error)
}
