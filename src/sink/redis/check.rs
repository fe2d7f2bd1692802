//! What the server must be like.

use std::collections::HashSet;
use std::time::Duration;

use super::acl;
use super::clock::system_micros;
use super::config::{Durability, RedisConfig, Replicas};
use super::connection::Connection;
use super::server::{self, Replication, Server};
use crate::error::{Code, Result};
use crate::hop::in_clear;
use crate::sink::{Finding, Verdict};
use crate::size::size;

/// Looks at the server's version, mode and settings; changes nothing.
pub async fn inspect(connection: &mut Connection, config: &RedisConfig) -> Result<Vec<Finding>> {
    let info: Option<String> = connection.ask_if_allowed(&redis::cmd("INFO")).await?;
    let info = Info(info.unwrap_or_default());
    let server = told(connection.server(), &info);
    let mut findings = vec![version(config, server.as_ref(), &info)];
    if server.as_ref().is_some_and(|server| server.is_replica) {
        findings.push(replica(config));
        return Ok(findings);
    }
    findings.extend(password(config));
    if config.is_exposed() {
        findings.push(in_clear("redis.tls", config.address(), "export REDIS_TLS=true"));
    }
    findings.push(durability(connection, config, &info).await?);
    findings.push(eviction(config, &info));
    findings.extend(memory(config, &info));
    findings.extend(replicas(connection, config, &info).await?);
    findings.push(clock(connection, config).await?);
    findings.push(rights(connection, config, server.as_ref()).await?);
    Ok(findings)
}

/// The first with users and their rights.
const VERSION_MIN: (u32, u32, u32) = (6, 0, 0);
/// A server this full refuses writes soon.
const MEMORY_SHARE_MAX: f64 = 0.9;
/// Boards are drained and keys expire by the server's clock, and events are dated by other ones.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(2);
/// Every command that walcast sends or that its scripts run, on a key of each kind that it is used for. No key of
/// these names is walcast's: should a server run them after all, nothing of worth is touched.
const COMMANDS: &[&str] = &[
    "EVALSHA 0000000000000000000000000000000000000000 1 walcast:check",
    "SCRIPT LOAD return",
    "SCAN 0",
    "TYPE walcast:check",
    "EXISTS walcast:check",
    "HGET walcast:check a",
    "HMGET walcast:check a",
    "HGETALL walcast:check",
    "HSCAN walcast:check 0",
    "HLEN walcast:check",
    "HSET walcast:check a b",
    "HDEL walcast:check a",
    "GETRANGE walcast:check 0 1",
    "STRLEN walcast:check",
    "SETBIT walcast:check 0 1",
    "APPEND walcast:check a",
    "DEL walcast:check",
    "UNLINK walcast:check",
    "EXPIREAT walcast:check 1",
    "HSET content:check a b",
    "HSET engagement:check a b",
    "HSET stats:events:check a b",
    "EXPIREAT content:check 1",
    "EXPIREAT engagement:check 1",
    "EXPIREAT stats:events:check 1",
    "TTL content:check",
    "ZCARD top_engagement:check",
    "ZRANGE top_engagement:check 0 1",
    "ZADD top_engagement:check 1 a",
    "ZREM top_engagement:check a",
    "EXPIRE top_engagement:check 1",
    "PTTL top_engagement:check",
    "ZREVRANGE top_engagement:check 0 1",
    "TIME",
];
/// What it sends where replicas are to have each write.
const OF_REPLICAS: &str = "WAIT 0 1";

/// What INFO says; empty when it may not be asked.
struct Info(String);

impl Info {
    fn get(&self, name: &str) -> Option<&str> {
        server::field(&self.0, name)
    }
}

fn finding(
    id: &'static str,
    config: &RedisConfig,
    verdict: Verdict,
    message: String,
    fix: Option<&str>,
) -> Finding {
    let code = (verdict == Verdict::Fail).then_some(match id {
        "redis.rights" => Code::RedisRights,
        _ => Code::RedisUnfit,
    });
    Finding { id, subject: config.address(), verdict, message, fix: fix.map(str::to_owned), code }
}

/// A Valkey that is told to pass for Redis says so to all but who asks for its version.
fn told(server: Option<&Server>, info: &Info) -> Option<Server> {
    let server = server.cloned()?;
    Some(match info.get("valkey_version") {
        Some(version) => Server { name: "Valkey".into(), version: server::version(version), ..server },
        None => server,
    })
}

fn version(config: &RedisConfig, server: Option<&Server>, info: &Info) -> Finding {
    let id = "redis.server";
    match server {
        Some(server) if server.name == "Redis" && server.version < VERSION_MIN => {
            let message = format!("answers, {server}: walcast is tested with 6 and newer");
            let fix = Some("install Redis 6 or newer, best 7, or Valkey");
            finding(id, config, Verdict::Warn, message, fix)
        }
        Some(server) if !info.0.is_empty() => {
            finding(id, config, Verdict::Ok, format!("answers, {server}"), None)
        }
        _ => {
            let name = server.map_or_else(String::new, |server| format!(", {server}"));
            let message = format!(
                "answers{name}, but INFO is not allowed to this user: nothing is known of its settings"
            );
            finding(id, config, Verdict::Warn, message, Some(&acl(user(config))))
        }
    }
}

/// For a moment also the master while it fails over.
fn replica(config: &RedisConfig) -> Finding {
    let message = "is a replica: it takes no writes".into();
    let fix = "connect to the master, or name the sentinels in redis.sentinel_addrs";
    let finding = finding("redis.mode", config, Verdict::Fail, message, Some(fix));
    Finding { code: Some(Code::RedisReplica), ..finding }
}

/// What a failover costs.
async fn replicas(connection: &mut Connection, config: &RedisConfig, info: &Info) -> Result<Option<Finding>> {
    let follow: HashSet<String> = Replication::of(&info.0).following.into_keys().collect();
    let (lacks, message) = match config.replicas() {
        Replicas::None if config.has_sentinels() => {
            let message = "a failover loses what the replica does not have yet: no write waits for it".into();
            let fix = "unset REDIS_REPLICAS_MIN; export REDIS_DURABILITY=aof";
            return Ok(Some(finding("redis.replicas", config, Verdict::Warn, message, Some(fix))));
        }
        Replicas::None => return Ok(None),
        _ if info.0.is_empty() => return Ok(None),
        Replicas::AtLeast(min) => (
            (min as usize).saturating_sub(follow.len()),
            format!("each write is on {min} of {} replicas before it counts", follow.len()),
        ),
        Replicas::EachThatSentinelsKnow => {
            let absent = connection.alive_replicas().await?.difference(&follow).count();
            (
                absent.max(usize::from(follow.is_empty())),
                format!("each write is on all {} replicas before it counts", follow.len()),
            )
        }
    };
    let lacking =
        format!("{} replicas follow, and {lacks} more are to: walcast waits until they do", follow.len());
    let start = "start the replicas; REDIS_REPLICAS_MIN=0 takes it that a failover loses the last writes";
    Ok(Some(match lacks {
        0 => finding("redis.replicas", config, Verdict::Ok, message, None),
        _ => finding("redis.replicas", config, Verdict::Warn, lacking, Some(start)),
    }))
}

fn password(config: &RedisConfig) -> Option<Finding> {
    config.password.expose().is_empty().then(|| {
        finding(
            "redis.password",
            config,
            Verdict::Warn,
            "asks for no password: whoever reaches it can change the boards; tell walcast of it by REDIS_PASSWORD".into(),
            Some("CONFIG SET requirepass <password>\nCONFIG REWRITE"),
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
            Some("export REDIS_DURABILITY=aof"),
        ));
    }
    const FIX: &str = "CONFIG SET appendonly yes\nCONFIG SET appendfsync always\nCONFIG REWRITE";
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
            format!(
                "may lose writes in a crash: appendonly {appendonly}, appendfsync {appendfsync} (redis.durability = \"none\" takes that)"
            ),
            Some(FIX),
        ),
        (_, _, Some("0")) => finding(
            "redis.durability",
            config,
            Verdict::Fail,
            "may lose writes in a crash: it has no append-only file (redis.durability = \"none\" takes that)"
                .into(),
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
            Some("CONFIG SET maxmemory-policy noeviction\nCONFIG REWRITE"),
        ),
    }
}

fn memory(config: &RedisConfig, info: &Info) -> Option<Finding> {
    let number = |field| info.get(field)?.parse::<f64>().ok();
    let (used, most) = (number("used_memory")?, number("maxmemory").filter(|most| *most > 0.0)?);
    let message = format!("uses {} of {} (maxmemory)", size(used as u64), size(most as u64));
    let (verdict, fix) = match used > most * MEMORY_SHARE_MAX {
        true => (Verdict::Warn, Some(format!("CONFIG SET maxmemory {:.0}\nCONFIG REWRITE", used * 2.0))),
        false => (Verdict::Ok, None),
    };
    Some(finding("redis.memory", config, verdict, message, fix.as_deref()))
}

async fn clock(connection: &mut Connection, config: &RedisConfig) -> Result<Finding> {
    let asked = system_micros();
    let time: Option<(i64, i64)> = connection.ask_if_allowed(&redis::cmd("TIME")).await?;
    let id = "redis.clock";
    let Some((seconds, micros)) = time else {
        return Ok(finding(id, config, Verdict::Ok, "does not tell its time to this user".into(), None));
    };
    let ours = asked + (system_micros() - asked) / 2;
    let skew = Duration::from_micros((seconds * 1_000_000 + micros - ours).unsigned_abs());
    Ok(match skew > CLOCK_SKEW_MAX {
        true => {
            let message = format!(
                "has a clock that is {:.1} s from this machine's: boards are drained and keys expire by Redis's; set the one that is wrong",
                skew.as_secs_f64()
            );
            finding(id, config, Verdict::Warn, message, Some("timedatectl set-ntp true"))
        }
        false => finding(id, config, Verdict::Ok, "has the same time as this machine".into(), None),
    })
}

fn user(config: &RedisConfig) -> &str {
    if config.username.is_empty() { "default" } else { &config.username }
}

async fn rights(
    connection: &mut Connection,
    config: &RedisConfig,
    server: Option<&Server>,
) -> Result<Finding> {
    let id = "redis.rights";
    let of_replicas = (config.replicas() != Replicas::None).then_some(OF_REPLICAS);
    let commands: Vec<&str> = COMMANDS.iter().copied().chain(of_replicas).collect();
    let refused = connection.forbidden(&commands).await?;
    let Some(first) = refused.first() else {
        return Ok(finding(id, config, Verdict::Ok, "allows this user all that walcast does".into(), None));
    };
    let user = user(config);
    let message =
        format!("forbids user {user} {} of {} commands, such as {first}", refused.len(), commands.len());
    let mut fix = acl(user);
    if server.is_some_and(Server::has_database_rights) {
        fix.push_str(&format!(" db={}", config.db));
    }
    Ok(finding(id, config, Verdict::Fail, message, Some(&fix)))
}
