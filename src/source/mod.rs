//! PostgreSQL: the replication connection, ordinary SQL, the slot and its snapshot.

pub mod tls;
pub mod frame;
pub mod server_error;
mod wire;
pub mod auth;
pub mod dial;
pub mod connection;
pub mod stream;
pub use crate::quote;
pub mod sql;
pub mod rows;
pub mod migrations;
pub mod slot;
pub mod snapshot;
pub mod check;
pub mod heartbeat;
#[cfg(test)]
mod script;

use serde::{Deserialize, Serialize};

/// `[postgres]`: where events come from, and where walcast keeps its state.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresConfig {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Database.
    pub db: String,
    /// Role; it needs REPLICATION, and to own the schema `walcast`.
    pub user: String,
    /// Its password.
    pub password: crate::secret::Secret,
    /// disable, prefer, require, verify-ca or verify-full, as libpq means them.
    pub sslmode: SslMode,
    /// PEM file of the certificate authorities to trust, instead of the system's.
    pub sslrootcert: Option<String>,
    /// Whether to answer a server that asks for an MD5 password.
    pub allow_md5: bool,
    /// The schema of `content` and `engagement_events`.
    pub schema: String,
    /// Name of the replication slot.
    pub slot: String,
    /// Name of the publication.
    pub publication: String,
}

/// How much TLS is asked of the server; libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server has it; no proof of who it is.
    Prefer,
    /// TLS or nothing; no proof of who it is.
    Require,
    /// TLS with a certificate from a trusted authority.
    VerifyCa,
    /// TLS with a certificate from a trusted authority for this very host.
    VerifyFull,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        PostgresConfig {
            host: "127.0.0.1".into(),
            port: 5432,
            db: "engagement".into(),
            user: "postgres".into(),
            password: Default::default(),
            sslmode: SslMode::Prefer,
            sslrootcert: None,
            allow_md5: false,
            schema: "public".into(),
            slot: "walcast".into(),
            publication: "walcast".into(),
        }
    }
}
