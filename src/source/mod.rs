//! PostgreSQL: the replication connection, ordinary SQL, the slot and its snapshot.

pub mod uri;
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
pub mod synchrony;
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

/// In the place of a file of authorities: the system's.
const SYSTEM: &str = "system";

/// `[postgres]`: where events come from, and where walcast keeps its state.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresConfig {
    /// All of it in one connection URI: `postgres://user:password@host:5432/db?sslmode=verify-full`. A setting of its own comes
    /// before what the URI says. Empty: there is none.
    pub uri: crate::secret::Secret,
    /// Host name or address of PostgreSQL itself, not of a connection pooler; or the folder of its Unix socket, which begins with
    /// a slash. Several with commas between them, each with a port of its own if it has another one (`a,b:5433`), are a primary and
    /// its standbys: the one that takes writes is found.
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
    /// PEM file with the certificate authorities to trust. Unset, or `system`: the system's authorities, with which only
    /// `verify-full` proves anything.
    pub sslrootcert: Option<String>,
    /// PEM file with the certificate, and those between it and its authority, that a server is shown that asks for one.
    pub sslcert: String,
    /// PEM file with the certificate's key.
    pub sslkey: String,
    /// The password of the file `sslkey`, where it has one. The file is then PKCS #8 (`BEGIN ENCRYPTED PRIVATE KEY`).
    pub sslpassword: crate::secret::Secret,
    /// How TLS begins.
    pub sslnegotiation: SslNegotiation,
    /// Whether the login must be bound to the server's certificate, so that nobody can stand between.
    pub channel_binding: Binding,
    /// The ways to log in that are taken part in: `scram-sha-256`, `md5`, `password` (in clear text; over TLS alone that proves who
    /// the server is) and `none` (a certificate, or a server that asks for nothing). Empty: `scram-sha-256` and `none`.
    pub require_auth: Vec<AuthMethod>,
    /// Whether to answer a server that asks for an MD5 password, as with `md5` in `require_auth`.
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

/// How TLS begins, with libpq's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SslNegotiation {
    /// PostgreSQL is asked for it first.
    Postgres,
    /// At once, which saves a round trip, and which proxies that know only TLS need (PostgreSQL 17). With `sslmode` = `require` or
    /// more.
    Direct,
}

/// Whether the login must be bound to the server's certificate, with libpq's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Binding {
    /// Where both sides can.
    Prefer,
    /// Always: SCRAM over TLS, and nothing else.
    Require,
}

/// A way to log in, with libpq's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AuthMethod {
    /// SCRAM, by which the server proves too that it knows the password.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// A hash of the password, which PostgreSQL itself is giving up.
    #[serde(rename = "md5")]
    Md5,
    /// The password in clear text.
    #[serde(rename = "password")]
    Password,
    /// The server asks for nothing, or for a certificate.
    #[serde(rename = "none")]
    None,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        PostgresConfig {
            uri: Default::default(),
            host: "127.0.0.1".into(),
            port: 5432,
            db: "engagement".into(),
            user: "postgres".into(),
            password: Default::default(),
            sslmode: SslMode::Prefer,
            sslrootcert: None,
            sslcert: String::new(),
            sslkey: String::new(),
            sslpassword: Default::default(),
            sslnegotiation: SslNegotiation::Postgres,
            channel_binding: Binding::Prefer,
            require_auth: Vec::new(),
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

    /// Each of the hosts by itself.
    pub fn each_host(&self) -> Vec<PostgresConfig> {
        // an address with colons of its own has a port only behind brackets
        let with_port = |text: &str| {
            let (host, port) = text.rsplit_once(':')?;
            let port = port.parse().ok()?;
            (host.starts_with('[') || !host.contains(':')).then(|| (host.to_owned(), port))
        };
        let one = |text: &str| {
            let text = text.trim();
            let (host, port) = with_port(text).unwrap_or_else(|| (text.to_owned(), self.port));
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::to_owned);
            PostgresConfig { host: bare.unwrap_or(host), port, ..self.clone() }
        };
        self.host.split(',').map(one).collect()
    }

    /// Whether the host is the folder of a Unix socket.
    pub fn is_local_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// Refuses what would prove less than it seems to.
    pub fn check_tls(&self) -> Result<()> {
        let refused = |what: &str, hint: &str| Err(Error::new(Code::Configuration, what).hint(hint));
        let named = self.sslrootcert.as_deref();
        if named == Some(SYSTEM) && self.sslmode != SslMode::VerifyFull {
            return refused(
                "postgres.sslrootcert = system trusts whoever has a public certificate, for any name",
                "export POSTGRES_SSLMODE=verify-full",
            );
        }
        if named.is_none() && self.sslmode == SslMode::VerifyCa {
            return refused(
                "postgres.sslmode = verify-ca without postgres.sslrootcert trusts whoever has a public certificate, for any name",
                "export POSTGRES_SSLMODE=verify-full, or POSTGRES_SSLROOTCERT with the file of your own authority",
            );
        }
        if self.sslnegotiation == SslNegotiation::Direct
            && matches!(self.sslmode, SslMode::Disable | SslMode::Prefer)
        {
            return refused(
                "postgres.sslnegotiation = direct begins with TLS, and postgres.sslmode does not ask for any",
                "export POSTGRES_SSLMODE=verify-full, or require",
            );
        }
        if self.sslcert.is_empty() != self.sslkey.is_empty() {
            return refused(
                "postgres.sslcert and postgres.sslkey are of no use without each other",
                "set both, to the PEM files of the certificate and of its key",
            );
        }
        let allows = |method| self.require_auth.contains(&method);
        if allows(AuthMethod::Password) && !tls::proves(self) {
            return refused(
                "postgres.require_auth has password: in clear text it is shown only over TLS that proves who the server is",
                "export POSTGRES_SSLMODE=verify-full",
            );
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_its_own_port_or_that_of_all() {
        let config = |host: &str| PostgresConfig { host: host.into(), ..PostgresConfig::default() };
        for (text, hosts) in [
            ("db", &[("db", 5432)][..]),
            ("a, b:5433", &[("a", 5432), ("b", 5433)]),
            ("::1,[::1]:5433,[fe80::1]", &[("::1", 5432), ("::1", 5433), ("fe80::1", 5432)]),
            ("/run/postgresql,10.0.0.7:6432", &[("/run/postgresql", 5432), ("10.0.0.7", 6432)]),
            ("db:x", &[("db:x", 5432)]),
        ] {
            let each = config(text).each_host();
            let each: Vec<(&str, u16)> = each.iter().map(|one| (one.host.as_str(), one.port)).collect();
            assert_eq!(each, hosts, "{text}");
        }
        assert!(config("/run/postgresql").is_local_socket());
    }

    #[test]
    fn what_proves_less_than_it_seems_to_is_refused() {
        let refused = |json: &str| {
            let config: PostgresConfig = serde_json::from_str(json).unwrap();
            config.check_tls().err().map(|error| error.to_string())
        };
        for (json, word) in [
            (r#"{"sslmode": "verify-ca"}"#, "verify-ca"),
            (r#"{"sslmode": "verify-ca", "sslrootcert": "system"}"#, "system"),
            (r#"{"sslrootcert": "system"}"#, "system"),
            (r#"{"sslnegotiation": "direct"}"#, "sslnegotiation"),
            (r#"{"sslcert": "a"}"#, "sslkey"),
            (r#"{"sslkey": "a"}"#, "sslcert"),
            (r#"{"require_auth": ["password"], "sslmode": "require"}"#, "clear text"),
        ] {
            assert!(refused(json).is_some_and(|told| told.contains(word)), "{json}: {:?}", refused(json));
        }
        for json in [
            "{}",
            r#"{"sslmode": "verify-ca", "sslrootcert": "ca.pem"}"#,
            r#"{"sslmode": "verify-full", "sslrootcert": "system", "sslnegotiation": "direct"}"#,
            r#"{"sslcert": "a", "sslkey": "b", "channel_binding": "require", "require_auth": ["scram-sha-256"]}"#,
            r#"{"require_auth": ["password", "none"], "sslmode": "verify-full"}"#,
        ] {
            assert_eq!(refused(json), None, "{json}");
        }
    }
}
