//! What the server must be like.

use super::config::{Durability, RedisConfig};
use super::connection::Connection;
use crate::error::{Error, Kind, Result};
use crate::sink::{Finding, Verdict};

/// Looks at the server's version, mode and settings; changes nothing.
pub async fn inspect(connection: &mut Connection, config: &RedisConfig) -> Result<Vec<Finding>> {
    let info: Option<String> = connection.ask_if_allowed(&redis::cmd("INFO")).await?;
    let info = Info(info.unwrap_or_default());
    let mut findings = vec![version(config, &info)];
    findings.extend(mode(config, &info));
    findings.extend(password(config));
    findings.push(durability(connection, config, &info).await?);
    findings.push(eviction(config, &info));
    Ok(findings)
}

/// The error of a server that is part of a Redis Cluster.
pub fn cluster(address: &str) -> Error {
    Error::new(Kind::Setup, format!("{address} is part of a Redis Cluster, which walcast does not support"))
        .hint("use a standalone server, or one that sentinels watch (redis.sentinel_addrs)")
}

/// What INFO says; empty when it may not be asked.
struct Info(String);

impl Info {
    fn get(&self, field: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::trim)
    }
}

fn finding(
    id: &'static str,
    config: &RedisConfig,
    verdict: Verdict,
    message: String,
    fix: Option<&str>,
) -> Finding {
    Finding { id, subject: config.address(), verdict, message, fix: fix.map(str::to_owned) }
}

fn version(config: &RedisConfig, info: &Info) -> Finding {
    match info.get("redis_version") {
        Some(version) => {
            finding("redis.server", config, Verdict::Ok, format!("answers, version {version}"), None)
        }
        None => finding(
            "redis.server",
            config,
            Verdict::Warn,
            "answers, but INFO is not allowed to this user: nothing is known of its settings".into(),
            Some("ACL SETUSER <user> +info"),
        ),
    }
}

fn mode(config: &RedisConfig, info: &Info) -> Option<Finding> {
    let fail =
        |message: String, fix: &str| Some(finding("redis.mode", config, Verdict::Fail, message, Some(fix)));
    match (info.get("redis_mode"), info.get("role")) {
        (Some("cluster"), _) => {
            let error = cluster("the server");
            fail(error.to_string(), error.advice())
        }
        (Some("sentinel"), _) => fail(
            "is a sentinel, not a server".into(),
            "put its address into redis.sentinel_addrs and name the master in redis.sentinel_master",
        ),
        (_, Some("slave")) => fail(
            "is a replica: it takes no writes".into(),
            "connect to the master, or name the sentinels in redis.sentinel_addrs",
        ),
        _ => None,
    }
}

fn password(config: &RedisConfig) -> Option<Finding> {
    config.password.expose().is_empty().then(|| {
        finding(
            "redis.password",
            config,
            Verdict::Warn,
            "asks for no password: whoever reaches it can change the boards".into(),
            Some("CONFIG SET requirepass <password> (and in redis.conf), then set REDIS_PASSWORD"),
        )
    })
}

async fn durability(connection: &mut Connection, config: &RedisConfig, info: &Info) -> Result<Finding> {
    if config.durability == Durability::None {
        let message =
            "redis.durability is none: what Redis loses in a crash is not delivered again by itself";
        return Ok(finding(
            "redis.durability",
            config,
            Verdict::Warn,
            message.into(),
            Some("redis.durability = \"aof\""),
        ));
    }
    const FIX: &str = "CONFIG SET appendonly yes, CONFIG SET appendfsync always (and in redis.conf), or say redis.durability = \"none\"";
    let settings = redis::cmd("CONFIG").arg("GET").arg("append*").to_owned();
    let settings: Option<std::collections::HashMap<String, String>> =
        connection.ask_if_allowed(&settings).await?;
    let setting = |name| settings.as_ref().and_then(|settings| settings.get(name)).map(String::as_str);
    Ok(match (setting("appendonly"), setting("appendfsync"), info.get("aof_enabled")) {
        (Some("yes"), Some("always"), _) => finding(
            "redis.durability",
            config,
            Verdict::Ok,
            "keeps every write (appendonly yes, appendfsync always)".into(),
            None,
        ),
        (Some(appendonly), Some(appendfsync), _) => finding(
            "redis.durability",
            config,
            Verdict::Fail,
            format!("may lose writes in a crash: appendonly {appendonly}, appendfsync {appendfsync}"),
            Some(FIX),
        ),
        (_, _, Some("0")) => finding(
            "redis.durability",
            config,
            Verdict::Fail,
            "may lose writes in a crash: it has no append-only file".into(),
            Some(FIX),
        ),
        _ => finding(
            "redis.durability",
            config,
            Verdict::Warn,
            "does not say whether appendfsync is always: CONFIG GET is not allowed".into(),
            Some("see to it that it is, or say redis.durability = \"none\""),
        ),
    })
}

fn eviction(config: &RedisConfig, info: &Info) -> Finding {
    match info.get("maxmemory_policy") {
        Some("noeviction") | None => finding(
            "redis.eviction",
            config,
            Verdict::Ok,
            "evicts nothing (maxmemory-policy noeviction)".into(),
            None,
        ),
        Some(policy) => finding(
            "redis.eviction",
            config,
            Verdict::Warn,
            format!("may throw walcast's state away when it is full: maxmemory-policy {policy}"),
            Some("CONFIG SET maxmemory-policy noeviction (and in redis.conf)"),
        ),
    }
}
