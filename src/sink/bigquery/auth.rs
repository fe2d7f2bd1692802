//! Who walcast is to Google: one token, cached until it expires, for REST and gRPC alike.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use gcp_bigquery_client::auth::Authenticator;
use gcp_bigquery_client::error::BQError;
use serde::Deserialize;
use yup_oauth2::authenticator::{ApplicationDefaultCredentialsTypes, DefaultAuthenticator};
use yup_oauth2::{
    ApplicationDefaultCredentialsAuthenticator, ApplicationDefaultCredentialsFlowOpts,
    AuthorizedUserAuthenticator, ServiceAccountAuthenticator,
};

use crate::error::{Code, Error, Result};

const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/bigquery"];

/// What a service is shown.
#[derive(Clone)]
pub enum Credentials {
    /// Nothing: an emulator.
    None,
    /// A Google access token.
    Google(DefaultAuthenticator),
}

impl Credentials {
    /// Reads `file`, or finds the application default credentials when it is empty.
    pub async fn load(file: &str) -> Result<Self> {
        let path = if file.is_empty() { default_file() } else { Some(PathBuf::from(file)) };
        let built = match path {
            Some(path) => from_file(&path).await?,
            None => from_metadata_server().await,
        };
        built.map(Credentials::Google).map_err(|error| {
            Error::new(Code::BigQueryRefused, "the Google credentials cannot be used")
                .because(error)
                .hint(FIX)
        })
    }

    /// The access token; `None` where none is wanted.
    pub async fn token(&self) -> Result<Option<String>> {
        match self {
            Credentials::None => Ok(None),
            Credentials::Google(google) => {
                let token = google.token(&SCOPES).await.map_err(token_error)?;
                Ok(token.token().map(str::to_owned))
            }
        }
    }
}

#[async_trait]
impl Authenticator for Credentials {
    async fn access_token(&self) -> Result<String, BQError> {
        match self {
            // sent as a bearer token that nobody reads
            Credentials::None => Ok("none".to_owned()),
            Credentials::Google(google) => {
                let token = google.token(&SCOPES).await?;
                token.token().map(str::to_owned).ok_or(BQError::NoToken)
            }
        }
    }
}

/// Sorts a failure to get a token: the network's is worth another try.
pub fn token_error(error: yup_oauth2::Error) -> Error {
    use yup_oauth2::Error::{HttpClientError, HttpError, LowLevelError};
    let code = match error {
        HttpError(_) | HttpClientError(_) | LowLevelError(_) => Code::BigQueryUnreachable,
        _ => Code::BigQueryRefused,
    };
    Error::new(code, "Google gives no access token").because(error).hint(FIX)
}

const FIX: &str = "set bigquery.credentials_file to a service account's key file, or run where there are application default credentials; the account needs roles/bigquery.dataEditor on the dataset and roles/bigquery.jobUser";

/// Where the application default credentials lie; `None` leaves the metadata server.
fn default_file() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("GOOGLE_APPLICATION_CREDENTIALS") {
        return Some(path.into());
    }
    let path =
        Path::new(&std::env::var_os("HOME")?).join(".config/gcloud/application_default_credentials.json");
    path.exists().then_some(path)
}

async fn from_file(path: &Path) -> Result<std::io::Result<DefaultAuthenticator>> {
    #[derive(Deserialize)]
    struct Named {
        r#type: String,
    }
    let unreadable = |message: &str| {
        Error::new(Code::BigQueryRefused, format!("the credentials file {} {message}", path.display()))
            .hint(FIX)
    };
    let text = tokio::fs::read(path).await.map_err(|error| unreadable("cannot be read").because(error))?;
    // serde_json's errors name a place, never the text
    let wrong = |error: serde_json::Error| unreadable("has another shape").because(error);
    let Named { r#type } = serde_json::from_slice(&text).map_err(wrong)?;
    match r#type.as_str() {
        "service_account" => {
            let key = serde_json::from_slice(&text).map_err(wrong)?;
            Ok(ServiceAccountAuthenticator::builder(key).build().await)
        }
        "authorized_user" => {
            let secret = serde_json::from_slice(&text).map_err(wrong)?;
            Ok(AuthorizedUserAuthenticator::builder(secret).build().await)
        }
        other => Err(unreadable(&format!("is of type {other:?}, not service_account or authorized_user"))),
    }
}

async fn from_metadata_server() -> std::io::Result<DefaultAuthenticator> {
    let options = ApplicationDefaultCredentialsFlowOpts::default();
    match ApplicationDefaultCredentialsAuthenticator::builder(options).await {
        ApplicationDefaultCredentialsTypes::InstanceMetadata(metadata) => metadata.build().await,
        ApplicationDefaultCredentialsTypes::ServiceAccount(account) => account.build().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_no_credentials_is_named_and_not_shown() {
        let path = std::env::temp_dir().join(format!("walcast-{}.json", uuid::Uuid::new_v4()));
        std::fs::write(&path, r#"{"type": "canary", "private_key": "swordfish"}"#).unwrap();
        let error = Credentials::load(&path.to_string_lossy()).await.err().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(error.code(), Code::BigQueryRefused);
        assert!(error.chain().contains("canary") && !error.chain().contains("swordfish"), "{error:?}");
        let error = Credentials::load(&path.to_string_lossy()).await.err().unwrap();
        assert!(error.chain().contains("cannot be read"), "{error:?}");
    }
}
