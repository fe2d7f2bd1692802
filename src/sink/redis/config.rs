//! `[redis]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hop::{host_of, is_loopback};
use crate::secret::Secret;

/// `[redis]`: where leaderboards and counters are kept. Give walcast a database (`db`) of its own.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// ACL user. Empty: the default user.
    pub username: String,
    /// Password of the user. Empty: the server asks for none.
    pub password: Secret,
    /// Database number.
    pub db: u16,
    /// Whether to use TLS.
    pub tls: bool,
    /// PEM file with the certificate authorities to trust. Empty: the system's authorities.
    pub tls_ca_file: String,
    /// PEM file with the certificate that a server is shown that asks for one, as servers of Redis do unless `tls-auth-clients` says
    /// otherwise.
    pub tls_client_cert_file: String,
    /// PEM file with its key.
    pub tls_client_key_file: String,
    /// Name of the master that the sentinels watch. Empty: connect to `host`.
    pub sentinel_master: String,
    /// The sentinels, each as `host:port`.
    pub sentinel_addrs: Vec<String>,
    /// Password of the sentinels. Empty: they ask for none.
    pub sentinel_password: Secret,
    /// What a crash of Redis may cost.
    pub durability: Durability,
    /// How many replicas must have a write before walcast takes it as kept: with all of them, a failover loses nothing. Without so
    /// many walcast waits. Unset: where sentinels are named and `durability` is not `none`, each that they take for alive; else 0.
    pub replicas_min: Option<u32>,
    /// How often walcast refreshes the leaderboards, in milliseconds, while events arrive; at least 10.
    pub refresh_ms: u64,
    /// How many hours ahead of Redis's clock an event may be dated; at least 1. One that is further ahead counts for all time, and in
    /// no day, minute or window.
    pub future_hours_max: u64,
}

/// What a crash of Redis may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing. The server must have `appendonly yes` and `appendfsync always`.
    Aof,
    /// Whatever the server's settings let it lose. Exactly-once does not cover a crash of Redis then.
    None,
}

/// Which replicas must have a write before it is taken as kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replicas {
    /// None: what the server has is kept.
    None,
    /// So many, whichever.
    AtLeast(u32),
    /// Each that the sentinels take for alive: any may be the master next.
    EachThatSentinelsKnow,
}

impl Default for RedisConfig {
    fn default() -> Self {
        RedisConfig {
            host: "127.0.0.1".into(),
            port: 6379,
            username: String::new(),
            password: Secret::default(),
            db: 0,
            tls: false,
            tls_ca_file: String::new(),
            tls_client_cert_file: String::new(),
            tls_client_key_file: String::new(),
            sentinel_master: String::new(),
            sentinel_addrs: Vec::new(),
            sentinel_password: Secret::default(),
            durability: Durability::Aof,
            replicas_min: None,
            refresh_ms: 100,
            future_hours_max: 48,
        }
    }
}

impl RedisConfig {
    /// The latest time of an event that counts by its time, microseconds since 1970, when it is `now`.
    pub fn horizon(&self, now: i64) -> i64 {
        let hours = i64::try_from(self.future_hours_max).unwrap_or(i64::MAX).max(1);
        now.saturating_add(hours.saturating_mul(3_600_000_000))
    }

    /// Whether sentinels name the server.
    pub fn has_sentinels(&self) -> bool {
        !self.sentinel_master.is_empty() || !self.sentinel_addrs.is_empty()
    }

    /// Which replicas must have a write.
    pub fn replicas(&self) -> Replicas {
        match self.replicas_min {
            Some(0) => Replicas::None,
            Some(min) => Replicas::AtLeast(min),
            None if self.has_sentinels() && self.durability != Durability::None => {
                Replicas::EachThatSentinelsKnow
            }
            None => Replicas::None,
        }
    }

    /// Whether rows and the password travel in clear where others may listen.
    pub fn is_exposed(&self) -> bool {
        let sentinels = self.sentinel_addrs.iter().map(|address| host_of(address));
        let mut hosts = sentinels.chain(self.sentinel_master.is_empty().then_some(self.host.as_str()));
        !self.tls && !hosts.all(is_loopback)
    }

    /// How messages name this database: `redis 127.0.0.1:6379/0`.
    pub fn address(&self) -> String {
        if self.sentinel_master.is_empty() {
            format!("redis {}:{}/{}", self.host, self.port, self.db)
        } else {
            format!("redis master {}/{}", self.sentinel_master, self.db)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_this_machine_without_tls_is_exposed() {
        let of = |json: &str| serde_json::from_str::<RedisConfig>(json).unwrap().is_exposed();
        assert!(of(r#"{"host": "cache"}"#) && !of(r#"{"host": "cache", "tls": true}"#));
        assert!(!of(r#"{"host": "::1"}"#));
        assert!(of(r#"{"sentinel_master": "m", "sentinel_addrs": ["127.0.0.1:1", "b:1"]}"#));
    }

    #[test]
    fn sentinels_have_each_write_replicated_unless_it_is_said_otherwise() {
        let of = |json: &str| serde_json::from_str::<RedisConfig>(json).unwrap().replicas();
        assert_eq!(of("{}"), Replicas::None);
        assert_eq!(of(r#"{"replicas_min": 2}"#), Replicas::AtLeast(2));
        assert_eq!(
            of(r#"{"sentinel_master": "m", "sentinel_addrs": ["a:1"]}"#),
            Replicas::EachThatSentinelsKnow
        );
        assert_eq!(of(r#"{"sentinel_master": "m", "replicas_min": 0}"#), Replicas::None);
        assert_eq!(of(r#"{"sentinel_master": "m", "durability": "none"}"#), Replicas::None);
    }

    #[test]
    fn an_unknown_setting_is_refused_and_the_password_is_not_shown() {
        let error = serde_json::from_str::<RedisConfig>(r#"{"hosts": "x"}"#).unwrap_err();
        assert!(error.to_string().contains("hosts"), "{error}");
        let config: RedisConfig =
            serde_json::from_str(r#"{"password": "swordfish", "durability": "none"}"#).unwrap();
        assert_eq!(config.durability, Durability::None);
        let shown = format!("{config:?}{}", serde_json::to_string(&config).unwrap());
        assert!(!shown.contains("swordfish"), "{shown}");
    }
}
