//! Ordinary SQL sessions.

use tokio_postgres::{Client, NoTls};

use crate::error::{Error, Kind, Result};
use crate::source::PostgresConfig;
use crate::source::server_error::ServerError;

/// Opens a session for ordinary SQL. The session ends when the client is dropped.
pub async fn connect(config: &PostgresConfig) -> Result<Client> {
    let mut options = tokio_postgres::Config::new();
    options
        .host(&config.host)
        .port(config.port)
        .dbname(&config.db)
        .user(&config.user)
        .password(config.password.expose())
        .application_name("walcast");
    let (client, connection) = options.connect(NoTls).await.map_err(error)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %error, "SQL session ended");
        }
    });
    Ok(client)
}

/// Sorts an error of an SQL session by what can be done about it.
pub fn error(error: tokio_postgres::Error) -> Error {
    let sorted = match error.as_db_error() {
        Some(refusal) => ServerError::from(refusal).into_error(),
        None => Error::new(Kind::Unavailable, "PostgreSQL cannot be reached"),
    };
    sorted.because(error)
}
