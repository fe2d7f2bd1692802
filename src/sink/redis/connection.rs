//! One connection to Redis, the scripts, and what Redis's errors mean.

use std::collections::HashSet;
use std::error::Error as StdError;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, Script, Value};

use rustls::AlertDescription;

use super::acl;
use super::config::{RedisConfig, Replicas};
use super::server::{self, CONNECT_MAX, Replication, Server, Switch};
use crate::error::{Code, Error, Result};

/// How long one waits before asking again which have it.
const REPLICAS_AGAIN: Duration = Duration::from_millis(10);

/// How long replicas may take to have what was written.
const REPLICAS_MAX: Duration = Duration::from_secs(1);

/// The scripts. Each but the two that take the fence begins with `fence.lua`: an instance or a connection that has been
/// replaced changes nothing.
macro_rules! script {
    ($begin:literal, $file:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                include_str!(concat!("scripts/", $begin)),
                include_str!(concat!("scripts/", $file))
            ))
        })
    };
    ($file:literal) => {
        script!("fence.lua", $file)
    };
}

/// Takes the fence and tells the checkpoint.
pub static CLAIM: LazyLock<Script> = script!("carry_over.lua", "claim.lua");
/// Takes the fence for a rebuild.
pub static REBUILD: LazyLock<Script> = script!("carry_over.lua", "rebuild.lua");
/// Deletes keys for a rebuild.
pub static CLEAR: LazyLock<Script> = script!("clear.lua");
/// Ends a rebuild.
pub static REBUILT: LazyLock<Script> = script!("rebuilt.lua");
/// Writes a flush and its checkpoint.
pub static FLUSH: LazyLock<Script> = script!("flush.lua");
/// Brings the boards up to date.
pub static BOARDS: LazyLock<Script> = script!("boards.lua");
/// Packs a bucket.
pub static PACK: LazyLock<Script> = script!("pack.lua");
/// Lets keys live longer.
pub static RENEW: LazyLock<Script> = script!("renew.lua");

/// A connection. After any error it is to be dropped: what was sent on it may still arrive, and the fence
/// that the next one takes keeps it out.
pub struct Connection {
    inner: MultiplexedConnection,
    address: String,
    /// `None` where it does not say.
    server: Option<Server>,
    switch: Switch,
    /// How many replicas followed when that was asked the last time.
    followers: u32,
}

/// The keys and arguments of a script call, in two buffers rather than one for each.
#[derive(Debug, Default)]
pub struct Call {
    keys: Words,
    args: Words,
}

#[derive(Debug, Default)]
struct Words {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Connection {
    /// Connects, authenticates and selects the database.
    pub async fn open(config: &RedisConfig) -> Result<Connection> {
        let address = config.address();
        let opened = tokio::time::timeout(CONNECT_MAX, server::connect(config)).await.map_err(|_| {
            Error::new(Code::RedisUnreachable, format!("{address} does not answer within {CONNECT_MAX:?}"))
        })?;
        let (inner, switch) = opened.map_err(|error| failed(&address, error))?;
        let mut connection = Connection { inner, address, server: None, switch, followers: 0 };
        // Before any script is sent: one that was sent to a node of a cluster has been seen to shut all others out.
        connection.know().await?;
        // Not left to the client library, which hides why the server refuses it.
        if config.db != 0 {
            connection.select(config.db).await?;
        }
        Ok(connection)
    }

    /// What it is, where that is told; refused where walcast cannot write to such a one.
    async fn know(&mut self) -> Result<()> {
        // whoever may log in may ask this
        let hello: Option<Value> = self.ask_if_allowed(redis::cmd("HELLO").arg(2)).await?;
        let pairs = hello.and_then(|hello| hello.into_map_iter().ok());
        let text = |value| redis::from_redis_value::<String>(value).unwrap_or_default();
        self.server = match pairs {
            Some(pairs) => {
                Some(Server::of(&pairs.map(|(key, value)| (text(key), text(value))).collect::<Vec<_>>()))
            }
            None => {
                let info: Option<String> = self.ask_if_allowed(&redis::cmd("INFO")).await?;
                info.as_deref().and_then(Server::of_info)
            }
        };
        match &self.server {
            Some(server) if server.is_cluster => Err(cluster(&self.address)),
            Some(server) if server.is_sentinel => Err(Error::new(
                Code::RedisUnfit,
                format!("{} is a sentinel, not a server", self.address),
            )
            .hint("put its address into redis.sentinel_addrs and name the master in redis.sentinel_master")),
            _ => Ok(()),
        }
    }

    async fn select(&mut self, db: u16) -> Result<()> {
        match redis::cmd("SELECT").arg(db).query_async(&mut self.inner).await {
            Err(error) if error.code() == Some("NOPERM") => {
                let message = format!("{} does not let this user into database {db}", self.address);
                let hint = format!(
                    "allow it `+select` and, where a Valkey has rights by database, `db={db}`; or name another one in redis.db"
                );
                Err(Error::new(Code::RedisRights, message).hint(hint))
            }
            answer => answer.map_err(|error| failed(&self.address, error)),
        }
    }

    /// What it is; `None` where it does not say.
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// Returns once the replicas have all that was written up to now.
    pub async fn replicated(&mut self, replicas: Replicas) -> Result<()> {
        let least = match replicas {
            Replicas::None => return Ok(()),
            Replicas::AtLeast(min) => min,
            Replicas::EachThatSentinelsKnow => 1,
        };
        let mut written = None;
        let begun = Instant::now();
        loop {
            // WAIT has them asked how far they are; it counts, and does not say whom
            let (before, after) = self.wait(least.max(self.followers)).await?;
            let written = *written.get_or_insert(before.written);
            let mut lacking: Vec<String> = match replicas {
                Replicas::EachThatSentinelsKnow => {
                    self.followers = u32::try_from(after.following.len()).unwrap_or(u32::MAX);
                    let alive = self.alive_replicas().await?;
                    alive.into_iter().filter(|place| !after.following.contains_key(place)).collect()
                }
                _ => Vec::new(),
            };
            let (have, lag): (Vec<_>, Vec<_>) =
                after.following.into_iter().partition(|(_, offset)| *offset >= written);
            let enough = have.len() >= least as usize;
            if replicas == Replicas::EachThatSentinelsKnow {
                lacking.extend(lag.into_iter().map(|(place, _)| place));
            }
            if enough && lacking.is_empty() {
                return Ok(());
            }
            if begun.elapsed() >= REPLICAS_MAX {
                return Err(self.not_replicated(have.len(), least as usize, &lacking));
            }
            tokio::time::sleep(REPLICAS_AGAIN).await;
        }
    }

    /// The replicas that the sentinels take for alive.
    pub async fn alive_replicas(&mut self) -> Result<HashSet<String>> {
        let alive = self.switch.replicas().await;
        alive.cloned().map_err(|error| failed(&self.address, error))
    }

    /// How far the replicas are before and after so many have acknowledged all that was written, or that lasts too long.
    async fn wait(&mut self, replicas: u32) -> Result<(Replication, Replication)> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("INFO").arg("replication");
        pipeline.cmd("WAIT").arg(replicas).arg(REPLICAS_MAX.as_millis() as u64);
        pipeline.cmd("INFO").arg("replication");
        let answers: RedisResult<(String, u32, String)> = tokio::select! {
            biased;
            () = self.switch.happened() => return Err(switched(&self.address)),
            answers = pipeline.query_async(&mut self.inner) => answers,
        };
        let (before, _, after) = answers.map_err(|error| failed(&self.address, error))?;
        Ok((Replication::of(&before), Replication::of(&after)))
    }

    fn not_replicated(&self, have: usize, least: usize, lacking: &[String]) -> Error {
        let whom = match lacking {
            [] => format!("of {least} that are to have it"),
            lacking => format!("and not {}", lacking.join(", ")),
        };
        let message = format!(
            "{}: what was written is on {have} replicas {whom}: a failover would lose it",
            self.address
        );
        Error::new(Code::RedisNotReplicated, message).hint(
            "see to it that the replicas run and follow (`redis-cli INFO replication`), and have the sentinels forget one that is no \
             more (SENTINEL RESET); walcast goes on by itself then",
        )
    }

    /// The answer, unless another server becomes the master meanwhile.
    async fn unless_switched<T: redis::FromRedisValue>(&mut self, command: &Cmd) -> Result<RedisResult<T>> {
        tokio::select! {
            biased;
            () = self.switch.happened() => Err(switched(&self.address)),
            answer = command.query_async(&mut self.inner) => Ok(answer),
        }
    }

    /// Runs a script; gives what it answers after `ok`.
    pub async fn run(&mut self, script: &Script, call: &Call) -> Result<Vec<String>> {
        let answer: Vec<String> = self.call(script, call).await?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["ok", rest @ ..] => Ok(rest.iter().map(|text| (*text).to_owned()).collect()),
            ["type", key, kind] => Err(wrong_type(&self.address, key, kind)),
            ["rebuilding", key] => Err(self.rebuilding(key)),
            ["fenced", fencing_token] => Err(Error::new(
                Code::Fenced,
                format!("{}: a newer walcast (fencing token {fencing_token}) writes here", self.address),
            )),
            ["lost", what] => Err(Error::new(Code::RedisChanged, format!("{}: {what}", self.address))),
            _ => Err(Error::new(Code::Protocol, format!("{}: a script gave another answer", self.address))),
        }
    }

    /// Runs a script that only reads; gives the list that it answers.
    pub async fn answer(&mut self, script: &Script, call: &Call) -> Result<Vec<Value>> {
        self.call(script, call).await
    }

    async fn call<T: redis::FromRedisValue>(&mut self, script: &Script, call: &Call) -> Result<T> {
        let command = call.command(script);
        let answer: RedisResult<T> = match self.unless_switched(&command).await? {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                script.load_async(&mut self.inner).await.map_err(|error| failed(&self.address, error))?;
                self.unless_switched(&command).await?
            }
            answer => answer,
        };
        answer.map_err(|error| failed(&self.address, error))
    }

    /// Runs one command.
    pub async fn ask<T: redis::FromRedisValue>(&mut self, command: &Cmd) -> Result<T> {
        command.query_async(&mut self.inner).await.map_err(|error| failed(&self.address, error))
    }

    /// Runs one command that the server may not know or not allow; `None` then.
    pub async fn ask_if_allowed<T: redis::FromRedisValue>(&mut self, command: &Cmd) -> Result<Option<T>> {
        match command.query_async(&mut self.inner).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => Ok(None),
            Err(error) => Err(failed(&self.address, error)),
        }
    }

    /// Which of the commands this user may not run; none of them is run. Redis looks at a user's rights when a command
    /// is put into a transaction, which is dropped again.
    pub async fn forbidden<'a>(&mut self, commands: &[&'a str]) -> Result<Vec<&'a str>> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("MULTI");
        for line in commands {
            let mut words = line.split(' ');
            pipeline.cmd(words.next().unwrap_or_default()).arg(words.collect::<Vec<_>>());
        }
        pipeline.cmd("DISCARD");
        let answers: Vec<RedisResult<Value>> = pipeline
            .ignore_errors()
            .query_async(&mut self.inner)
            .await
            .map_err(|error| failed(&self.address, error))?;
        let mut answers = answers.into_iter();
        if let Some(Err(error)) = answers.next() {
            return Err(failed(&self.address, error));
        }
        let refused = commands.iter().zip(answers).filter(|(_, answer)| {
            // it may have other reasons, such as being full
            answer.as_ref().is_err_and(|error| error.code() == Some("NOPERM"))
        });
        Ok(refused.map(|(line, _)| *line).collect())
    }

    /// Runs commands that read one key each, in one round trip.
    pub async fn read(&mut self, pipeline: &mut Pipeline) -> Result<Vec<Value>> {
        let answers: Vec<RedisResult<Value>> = pipeline
            .ignore_errors()
            .query_async(&mut self.inner)
            .await
            .map_err(|error| failed(&self.address, error))?;
        let answers = answers.into_iter().zip(pipeline.cmd_iter());
        answers
            .map(|(answer, command)| {
                answer.map_err(|error| match error.code() {
                    Some("WRONGTYPE") => wrong_type(&self.address, &key_of(command), "something else"),
                    _ => failed(&self.address, error),
                })
            })
            .collect()
    }

    /// The error of a Redis that is not whole yet.
    pub fn rebuilding(&self, key: &str) -> Error {
        let message = format!("{}: a rebuild is at work or was broken off ({key} is there)", self.address);
        Error::new(Code::RebuildUnfinished, message)
            .hint("wait until `walcast rebuild redis` has ended, or run it again")
    }

    /// The error of a key that holds what walcast has not written.
    pub fn unreadable(&self, key: &str, what: &str) -> Error {
        Error::new(Code::RedisKeyUnreadable, format!("{}: {key} holds {what}", self.address))
            .hint("something else writes to walcast's keys: give walcast a database of its own (redis.db), and run `walcast rebuild redis`")
    }
}

impl Call {
    /// Adds a key.
    pub fn key(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        self.keys.push(key.as_ref());
        self
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<[u8]>) -> &mut Self {
        self.args.push(arg.as_ref());
        self
    }

    /// Adds a number as an argument.
    pub fn number(&mut self, number: impl std::fmt::Display) -> &mut Self {
        self.args.push_text(number);
        self
    }

    /// Adds a number as an argument, an empty one when there is none.
    pub fn number_if(&mut self, number: Option<impl std::fmt::Display>) -> &mut Self {
        match number {
            Some(number) => self.number(number),
            None => self.arg(""),
        }
    }

    /// Adds all keys and arguments of another.
    pub fn append(&mut self, other: &Call) {
        other.keys.iter().for_each(|key| self.keys.push(key));
        other.args.iter().for_each(|arg| self.args.push(arg));
    }

    /// The command that runs a script with these.
    pub fn command(&self, script: &Script) -> Cmd {
        let words = 3 + self.keys.ends.len() + self.args.ends.len();
        let mut command = Cmd::with_capacity(words, 64 + self.keys.bytes.len() + self.args.bytes.len());
        command.arg("EVALSHA").arg(script.get_hash()).arg(self.keys.ends.len());
        for word in self.keys.iter().chain(self.args.iter()) {
            command.arg(word);
        }
        command
    }
}

impl Words {
    fn push(&mut self, word: &[u8]) {
        self.bytes.extend_from_slice(word);
        self.ends.push(self.bytes.len());
    }

    fn push_text(&mut self, word: impl std::fmt::Display) {
        // writing into a Vec cannot fail
        let _ = std::io::Write::write_fmt(&mut self.bytes, format_args!("{word}"));
        self.ends.push(self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| self.bytes.get(start..*end).unwrap_or_default())
    }
}

fn switched(address: &str) -> Error {
    Error::new(Code::RedisReplica, format!("{address}: a sentinel has named another server the master"))
        .hint("nothing: walcast goes on there by itself")
}

fn key_of(command: &Cmd) -> String {
    let key = command.args_iter().nth(1);
    match key {
        Some(redis::Arg::Simple(key)) => String::from_utf8_lossy(key).into_owned(),
        _ => String::new(),
    }
}

fn wrong_type(address: &str, key: &str, kind: &str) -> Error {
    Error::new(
        Code::RedisKeyTaken,
        format!("{address}: the key {key} is of another type ({kind}) than walcast keeps there"),
    )
    .hint(format!(
        "rename or delete {key}, or give walcast a database of its own (redis.db); nothing was written"
    ))
}

/// What an error of Redis means.
fn failed(address: &str, error: RedisError) -> Error {
    let told = |code, message: &str| Error::new(code, format!("{address} {message}"));
    let mapped = match (error.kind(), error.code(), tls_refusal(&error)) {
        (ErrorKind::AuthenticationFailed, ..) | (_, Some("WRONGPASS"), _) => {
            told(Code::RedisLogin, "refuses the password").hint(
                "set REDIS_PASSWORD (redis.password) to what the server's requirepass says, or with redis.username the ACL user's; leave it empty for a server that has none",
            )
        }
        (_, Some("NOAUTH"), _) => told(Code::RedisLogin, "asks for a password")
            .hint("set REDIS_PASSWORD (redis.password) to what the server's requirepass says"),
        (_, Some("NOPERM"), _) => told(Code::RedisRights, "does not allow this user what walcast does")
            .hint(acl("<user>")),
        (_, Some("MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN"), _) => cluster(address),
        (_, Some("OOM"), _) => told(Code::RedisFull, "is full")
            .hint("raise the server's maxmemory: walcast's state must not be evicted"),
        (_, Some("MISCONF"), _) => told(Code::RedisCannotWrite, "cannot write to its disk")
            .hint("look into the server's log: it refuses writes until its append-only file or snapshot can be written"),
        (_, Some("READONLY"), _) => told(Code::RedisReplica, "is a replica")
            .hint("connect to the master, or name the sentinels in redis.sentinel_addrs"),
        (.., Some(rustls::Error::InvalidCertificate(_))) => {
            told(Code::RedisTls, "has a certificate that is not trusted")
                .hint("name the file of its certificate authority in redis.tls_ca_file, and the server as the certificate does in redis.host")
        }
        (.., Some(_)) => told(Code::RedisTls, "breaks TLS off")
            .hint("a server that asks who comes (tls-auth-clients yes) wants redis.tls_client_cert_file and redis.tls_client_key_file, signed by an authority that it trusts"),
        (ErrorKind::InvalidClientConfig, ..) => told(Code::Configuration, "cannot be connected to as configured"),
        _ => told(Code::RedisUnreachable, "does not answer as it should"),
    };
    match error.kind() {
        // the client quotes the answer that it cannot read
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => mapped,
        _ => mapped.because(error),
    }
}

/// What a server says that does not let us in without a certificate, or with the one that we have. Before TLS 1.3 the lack of one
/// is no more than a failed handshake.
const NOT_TRUSTED: [AlertDescription; 8] = [
    AlertDescription::CertificateRequired,
    AlertDescription::HandshakeFailure,
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnknownCA,
];

/// Why TLS failed, if it did: we do not trust the server, or it does not trust us.
fn tls_refusal(error: &RedisError) -> Option<&rustls::Error> {
    let shared = error.source()?.downcast_ref::<Arc<dyn StdError + Send + Sync>>()?;
    let tls = shared.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref::<rustls::Error>()?;
    let is_refusal = match tls {
        rustls::Error::InvalidCertificate(_) => true,
        rustls::Error::AlertReceived(alert) => NOT_TRUSTED.contains(alert),
        _ => false,
    };
    is_refusal.then_some(tls)
}

/// The error of a server that is part of a Redis Cluster.
fn cluster(address: &str) -> Error {
    Error::new(
        Code::RedisUnfit,
        format!("{address} is part of a Redis Cluster, which walcast does not support"),
    )
    .hint("use a standalone server, or one that sentinels watch (redis.sentinel_addrs)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_read_is_not_quoted() {
        let answer = redis::Value::BulkString(b"canary".to_vec());
        let error = redis::from_redis_value::<i64>(answer).map_err(RedisError::from).unwrap_err();
        assert!(error.to_string().contains("canary"), "{error}: redis quotes it no longer");
        let error = failed("redis", error);
        assert_eq!(
            (error.code(), error.chain().as_str()),
            (Code::RedisUnreachable, "redis does not answer as it should")
        );
    }

    #[test]
    fn each_refusal_of_redis_has_its_code() {
        for (said, code) in [
            ("WRONGPASS invalid username-password pair", Code::RedisLogin),
            ("NOAUTH Authentication required.", Code::RedisLogin),
            ("NOPERM this user has no permissions", Code::RedisRights),
            ("MOVED 3999 127.0.0.1:6381", Code::RedisUnfit),
            ("CLUSTERDOWN Hash slot not served", Code::RedisUnfit),
            ("OOM command not allowed when used memory > 'maxmemory'.", Code::RedisFull),
            ("MISCONF Redis is configured to save RDB snapshots", Code::RedisCannotWrite),
            ("READONLY You can't write against a read only replica.", Code::RedisReplica),
            ("LOADING Redis is loading the dataset in memory", Code::RedisUnreachable),
        ] {
            let answer = redis::parse_redis_value(format!("-{said}\r\n").as_bytes());
            let refused = answer.and_then(redis::Value::extract_error);
            assert_eq!(refused.err().map(|error| failed("redis", error).code()), Some(code), "{said}");
        }
    }
}
