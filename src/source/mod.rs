//! PostgreSQL: the replication connection, ordinary SQL, the slot and its snapshot.

pub mod tls;
pub mod frame;
pub mod server_error;
mod wire;
pub mod auth;
pub mod connect;
pub mod connection;
pub mod session;
pub mod stream;
pub use crate::quote;
pub mod sql;
pub mod rows;
pub mod migrations;
pub mod slot;
pub mod role;
pub mod snapshot;
pub mod check;
pub mod request;
pub mod heartbeat;
#[cfg(test)]
mod script;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::event::extra;
use crate::event::place::{ColumnNames, Place, Places};
use crate::event::privacy::Privacy;
use crate::event::schema::{CONTENT, ENGAGEMENT_EVENTS};
use crate::event::zone::Zone;

/// `[postgres]`: where events come from, and where walcast keeps its state.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresConfig {
    /// Host name or address of PostgreSQL itself, not of a connection pooler.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Database that has the two tables.
    pub db: String,
    /// Role to connect as. It needs `REPLICATION`, the right to read the two tables, and the right to write the
    /// schema `walcast`.
    pub user: String,
    /// Password of the role.
    pub password: crate::secret::Secret,
    /// How much TLS to ask for, with libpq's names.
    pub sslmode: SslMode,
    /// PEM file with the certificate authorities to trust. Unset: the system's authorities.
    pub sslrootcert: Option<String>,
    /// Whether to answer a server that asks for an MD5 password.
    pub allow_md5: bool,
    /// Schema of the two tables, where their names have none.
    pub schema: String,
    /// The table of events: `name` or `schema.name`. `walcast init` makes it only under its usual name.
    pub events_table: String,
    /// The table of contents: `name` or `schema.name`.
    pub content_table: String,
    /// What the columns of the events table are called, where not as here: `duration_ms = "watched_ms"`. Several names
    /// with commas are those that it had one after the other; an empty one is for a column that is not there, and null.
    pub events_columns: ColumnNames,
    /// What the columns of the contents table are called.
    pub content_columns: ColumnNames,
    /// Columns of the events table to pass on beside those that walcast knows, typed, under their own names: into Kafka's
    /// records and BigQuery's table. `["*"]` is for all of them, those too that are added while walcast runs.
    pub extra_columns: Vec<String>,
    /// The time zone whose clock columns of the type `timestamp` show, by its name in the IANA's database, such as
    /// `Europe/Warsaw` or `UTC`. It must stay the same as long as there are rows that were read with it. Empty: such columns
    /// are refused.
    pub timestamp_zone: String,
    /// Name of the replication slot.
    pub slot: String,
    /// Name of the publication.
    pub publication: String,
    /// What of people leaves PostgreSQL, as `[privacy]` says.
    #[serde(skip)]
    pub privacy: Privacy,
}

/// How much TLS to ask for, with libpq's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it; the server proves nothing.
    Prefer,
    /// TLS always; the server proves nothing unless `sslrootcert` is set.
    Require,
    /// The certificate must come from a trusted authority.
    VerifyCa,
    /// The certificate must come from a trusted authority and be for this host name.
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
            events_table: ENGAGEMENT_EVENTS.name.into(),
            content_table: CONTENT.name.into(),
            events_columns: ColumnNames::new(),
            content_columns: ColumnNames::new(),
            extra_columns: Vec::new(),
            timestamp_zone: String::new(),
            slot: "walcast".into(),
            publication: "walcast".into(),
            privacy: Privacy::default(),
        }
    }
}

impl PostgresConfig {
    /// The two tables, as they are said to be.
    pub fn places(&self) -> Places {
        // one that there is not has been refused, and means that there is none
        let zone = self.zone().ok().flatten();
        let place = |table, name, columns| {
            let mut place = Place::new(table, &self.schema, name, columns).with_privacy(&self.privacy);
            place.zone.clone_from(&zone);
            place
        };
        Places {
            content: place(&CONTENT, &self.content_table, &self.content_columns),
            events: place(&ENGAGEMENT_EVENTS, &self.events_table, &self.events_columns)
                .with_extra(&self.extra_columns),
        }
    }

    fn zone(&self) -> Result<Option<Zone>> {
        let name = Some(self.timestamp_zone.trim()).filter(|name| !name.is_empty());
        name.map(|name| Zone::named(name, "postgres.timestamp_zone")).transpose()
    }

    /// Refuses names of columns, and of a time zone, that mean nothing.
    pub fn check_names(&self) -> Result<()> {
        self.zone()?;
        Place::check(&CONTENT, &self.content_columns, "postgres.content_columns")?;
        Place::check(&ENGAGEMENT_EVENTS, &self.events_columns, "postgres.events_columns")?;
        let events = self.places().events;
        for name in events.extra.named() {
            let why = match (events.position(name), events.knows(name)) {
                (Some(_), _) => Some("walcast passes it on already, as postgres.events_columns says"),
                (None, true) => Some("[privacy] leaves it out"),
                (None, false) => extra::unfit_name(name),
            };
            if let Some(why) = why {
                let message = format!("postgres.extra_columns: {name} cannot be passed on: {why}");
                return Err(Error::new(Code::Configuration, message)
                    .hint("leave it out, or give the column another name in the table"));
            }
        }
        Ok(())
    }
}
