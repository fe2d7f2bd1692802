//! One connection to Redis, the scripts, and what Redis's errors mean.

use std::error::Error as StdError;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    Pipeline, RedisConnectionInfo, RedisError, RedisResult, Script, TlsCertificates, TlsMode, Value,
};

use rustls::AlertDescription;

use super::acl;
use super::config::RedisConfig;
use crate::error::{Code, Error, Result};

/// How long opening a connection may take, the sentinels' answer included.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long an answer may take: a slow disk under `appendfsync always`, or the rewrite of the file.
const ANSWER_MAX: Duration = Duration::from_secs(10);

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
        let opened = tokio::time::timeout(CONNECT_MAX, connect(config)).await.map_err(|_| {
            Error::new(Code::RedisUnreachable, format!("{address} does not answer within {CONNECT_MAX:?}"))
        })?;
        let inner = opened.map_err(|error| failed(&address, error))?;
        let mut connection = Connection { inner, address };
        // Not left to the client library, which hides why the server refuses it.
        if config.db != 0 {
            connection.ask::<()>(redis::cmd("SELECT").arg(config.db)).await?;
        }
        Ok(connection)
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
        let answer: RedisResult<T> = match command.query_async(&mut self.inner).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                script.load_async(&mut self.inner).await.map_err(|error| failed(&self.address, error))?;
                command.query_async(&mut self.inner).await
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

async fn connect(config: &RedisConfig) -> RedisResult<MultiplexedConnection> {
    let client = match config.sentinel_master.is_empty() && config.sentinel_addrs.is_empty() {
        true => direct(config)?,
        false => of_sentinels(config).await?,
    };
    let timeouts = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(ANSWER_MAX));
    client.get_multiplexed_async_connection_with_config(&timeouts).await
}

fn direct(config: &RedisConfig) -> RedisResult<Client> {
    let mut settings = RedisConnectionInfo::default();
    if !config.username.is_empty() {
        settings = settings.set_username(&config.username);
    }
    if !config.password.expose().is_empty() {
        settings = settings.set_password(config.password.expose());
    }
    let address = address(config, &config.host, config.port);
    let info = address.into_connection_info()?.set_redis_settings(settings);
    match certificates(config)? {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    }
}

/// Asks the sentinels which server is the master now.
async fn of_sentinels(config: &RedisConfig) -> RedisResult<Client> {
    if config.sentinel_addrs.is_empty() || config.sentinel_master.is_empty() {
        let text = "redis.sentinel_addrs and redis.sentinel_master need each other";
        return Err((ErrorKind::InvalidClientConfig, text).into());
    }
    let addresses: Vec<ConnectionAddr> = config
        .sentinel_addrs
        .iter()
        .map(|text| host_and_port(text).map(|(host, port)| address(config, host, port)))
        .collect::<Option<_>>()
        .ok_or((ErrorKind::InvalidClientConfig, "redis.sentinel_addrs: host:port is expected of each"))?;
    let master = SentinelServerType::Master;
    let mut builder = SentinelClientBuilder::new(addresses, &config.sentinel_master, master)?;
    if !config.username.is_empty() {
        builder = builder.set_client_to_redis_username(&config.username);
    }
    if !config.password.expose().is_empty() {
        builder = builder.set_client_to_redis_password(config.password.expose());
    }
    if !config.sentinel_password.expose().is_empty() {
        builder = builder.set_client_to_sentinel_password(config.sentinel_password.expose());
    }
    if config.tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates(config)? {
        builder = builder
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates);
    }
    builder.build()?.async_get_client().await
}

fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.trim().rsplit_once(':')?;
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

fn address(config: &RedisConfig, host: &str, port: u16) -> ConnectionAddr {
    let host = host.to_owned();
    match config.tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    }
}

fn certificates(config: &RedisConfig) -> RedisResult<Option<TlsCertificates>> {
    let RedisConfig { tls_ca_file, tls_client_cert_file, tls_client_key_file, .. } = config;
    if !config.tls || tls_ca_file.is_empty() && tls_client_cert_file.is_empty() {
        return Ok(None);
    }
    let root_cert = match tls_ca_file.is_empty() {
        true => None,
        false => Some(pem(tls_ca_file, "redis.tls_ca_file cannot be read")?),
    };
    let client_tls = match tls_client_cert_file.is_empty() {
        true => None,
        false => Some(ClientTlsConfig {
            client_cert: pem(tls_client_cert_file, "redis.tls_client_cert_file cannot be read")?,
            client_key: pem(tls_client_key_file, "redis.tls_client_key_file cannot be read")?,
        }),
    };
    Ok(Some(TlsCertificates { client_tls, root_cert }))
}

fn pem(file: &str, unreadable: &'static str) -> RedisResult<Vec<u8>> {
    let told = |error| (ErrorKind::InvalidClientConfig, unreadable, format!("{file}: {error}"));
    Ok(std::fs::read(file).map_err(told)?)
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
pub(super) fn cluster(address: &str) -> Error {
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
