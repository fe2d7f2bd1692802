//! Ordinary SQL sessions.

use tokio::sync::oneshot;
use tokio_postgres::{Client, NoTls};

use crate::error::{Error, Kind, Result};
use crate::source::PostgresConfig;
use crate::source::server_error::ServerError;

/// Opens a session for ordinary SQL. The session ends when the client is dropped.
pub async fn connect(config: &PostgresConfig) -> Result<Client> {
    connect_watched(config).await.map(|(client, _)| client)
}

/// As [`connect`], with a receiver that gives the reason when the session ends.
pub async fn connect_watched(config: &PostgresConfig) -> Result<(Client, oneshot::Receiver<Error>)> {
    let mut options = tokio_postgres::Config::new();
    options
        .host(&config.host)
        .port(config.port)
        .dbname(&config.db)
        .user(&config.user)
        .password(config.password.expose())
        .application_name("walcast");
    let (client, connection) = options.connect(NoTls).await.map_err(error)?;
    let (ended, watched) = oneshot::channel();
    tokio::spawn(async move {
        let reason = match connection.await {
            Ok(()) => Error::new(Kind::Unavailable, "the SQL session was closed"),
            Err(reason) => error(reason),
        };
        // Most sessions are not watched: their users see the next statement fail.
        let _ = ended.send(reason);
    });
    Ok((client, watched))
}

/// Sorts an error of an SQL session by what can be done about it.
pub fn error(error: tokio_postgres::Error) -> Error {
    let sorted = match error.as_db_error() {
        Some(refusal) => ServerError::from(refusal).into_error(),
        None => Error::new(Kind::Unavailable, "PostgreSQL cannot be reached"),
    };
    sorted.because(error)
}
