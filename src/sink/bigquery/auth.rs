//! Who walcast is to Google: one token, kept until it expires, for REST and gRPC alike.
//!
//! How long it is good is told by the monotonic clock. By the wall clock, one would be shown for an hour after its end where that
//! is set back by an hour.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use gcp_bigquery_client::auth::Authenticator;
use gcp_bigquery_client::error::BQError;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use yup_oauth2::authenticator::{ApplicationDefaultCredentialsTypes, DefaultAuthenticator};
use yup_oauth2::{
    ApplicationDefaultCredentialsAuthenticator, ApplicationDefaultCredentialsFlowOpts,
    AuthorizedUserAuthenticator, ServiceAccountAuthenticator,
};

use crate::error::{Code, Error, Result};

/// Google's tokens live for an hour.
const GOOD_SECONDS_MAX: i64 = 3_600;
/// How long before its end a token is not shown any more.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/bigquery"];

/// What a service is shown.
#[derive(Clone)]
pub enum Credentials {
    /// Nothing: an emulator.
    None,
    /// A Google access token.
    Google(Google),
}

/// Gets access tokens, and keeps the last. Clones share it.
#[derive(Clone)]
pub struct Google {
    authenticator: DefaultAuthenticator,
    known: Arc<Mutex<Option<Known>>>,
}

struct Known {
    token: String,
    good_until: Instant,
}

impl Google {
    fn new(authenticator: DefaultAuthenticator) -> Self {
        Google { authenticator, known: Arc::default() }
    }

    async fn token(&self) -> Result<Option<String>, yup_oauth2::Error> {
        let mut known = self.known.lock().await;
        if let Some(known) = known.as_ref().filter(|known| Instant::now() < known.good_until) {
            return Ok(Some(known.token.clone()));
        }
        // the library's own store goes by the wall clock
        let got = self.authenticator.force_refreshed_token(&SCOPES).await;
        let got = got.map_err(|error| if known.is_some() { once_taken(error) } else { error })?;
        let expires_at = got.expiration_time().map(|at| at.unix_timestamp());
        let Some(token) = got.token().map(str::to_owned) else { return Ok(None) };
        let good_until = Instant::now() + good_for(expires_at, seconds_now());
        *known = Some(Known { token: token.clone(), good_until });
        Ok(Some(token))
    }
}

/// How long a token is shown that has just come, by times in seconds since 1970.
fn good_for(expires_at: Option<i64>, now: i64) -> Duration {
    let left = expires_at.map_or(0, |at| at.saturating_sub(now).clamp(0, GOOD_SECONDS_MAX));
    Duration::from_secs(left.unsigned_abs()).saturating_sub(RENEW_BEFORE)
}

fn seconds_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed()
}

/// Google has taken these credentials before. What it refuses now may be the time in our request, while this machine's clock
/// is wrong: that is worth another try.
fn once_taken(error: yup_oauth2::Error) -> yup_oauth2::Error {
    yup_oauth2::Error::LowLevelError(std::io::Error::other(error))
}

impl Credentials {
    /// Reads `file`, or finds the application default credentials when it is empty.
    pub async fn load(file: &str) -> Result<Self> {
        let path = if file.is_empty() { default_file() } else { Some(PathBuf::from(file)) };
        let built = match path {
            Some(path) => from_file(&path).await?,
            None => from_metadata_server().await,
        };
        built.map(|built| Credentials::Google(Google::new(built))).map_err(|error| {
            Error::new(Code::BigQueryRefused, "the Google credentials cannot be used")
                .because(error)
                .hint(FIX)
        })
    }

    /// The access token; `None` where none is wanted.
    pub async fn token(&self) -> Result<Option<String>> {
        match self {
            Credentials::None => Ok(None),
            Credentials::Google(google) => google.token().await.map_err(token_error),
        }
    }
}

#[async_trait]
impl Authenticator for Credentials {
    async fn access_token(&self) -> Result<String, BQError> {
        match self {
            // sent as a bearer token that nobody reads
            Credentials::None => Ok("none".to_owned()),
            Credentials::Google(google) => google.token().await?.ok_or(BQError::NoToken),
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

const FIX: &str = "set bigquery.credentials_file to a service account's key file, or run where there are application default credentials; the account needs roles/bigquery.dataEditor on the dataset and roles/bigquery.jobUser; Google gives none to a machine whose clock is wrong";

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
    use crate::error::Class;

    #[test]
    fn a_token_is_good_for_what_it_is_given_for_and_never_longer_than_google_gives_one() {
        let seconds = |left: Option<i64>| good_for(left.map(|left| 7_000 + left), 7_000).as_secs();
        assert_eq!(seconds(Some(3_599)), 3_539);
        assert_eq!(seconds(Some(7_200)), 3_540, "our clock was set while it came");
        assert_eq!([Some(-3_600), Some(59), None].map(seconds), [0; 3]);
    }

    #[test]
    fn what_google_refuses_to_whom_it_has_taken_before_is_tried_again() {
        let refused = || yup_oauth2::Error::MissingAccessToken;
        assert_eq!(token_error(refused()).code(), Code::BigQueryRefused);
        let again = token_error(once_taken(refused()));
        assert_eq!((again.code(), again.class()), (Code::BigQueryUnreachable, Class::Transient), "{again:?}");
        assert!(again.advice().contains("clock"), "{again:?}");
    }

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
