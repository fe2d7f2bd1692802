//! Where Redis is, and what it is: the server that is named, or the master that the sentinels name.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, TlsMode,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::config::RedisConfig;

/// How long opening a connection may take, the sentinels' answer included.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take: a slow disk under `appendfsync always`, or the rewrite of the file.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a sentinel may take to answer, where others may.
const SENTINEL_MAX: Duration = Duration::from_secs(1);
/// How long one is not asked that did not.
const SENTINEL_SILENT: Duration = Duration::from_secs(10);
/// How old what the sentinels know may be.
const REPLICAS_EVERY: Duration = Duration::from_secs(1);
/// How long a sentinel that does not answer is left alone.
const SENTINEL_AGAIN: Duration = Duration::from_secs(1);

/// What a server says of itself, whatever its user may do.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// `Redis`, `Valkey`, or what else it calls itself.
    pub name: String,
    /// Its own version, not the one of Redis that it is like.
    pub version: (u32, u32, u32),
    /// Whether it is one of a Redis Cluster.
    pub is_cluster: bool,
    /// Whether it is a sentinel.
    pub is_sentinel: bool,
    /// Whether it follows another.
    pub is_replica: bool,
}

impl Server {
    /// From the pairs that `HELLO` answers.
    pub fn of(pairs: &[(String, String)]) -> Server {
        let get = |name: &str| pairs.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value);
        let name = match get("server") {
            "redis" => "Redis".into(),
            "valkey" => "Valkey".into(),
            other => other.to_owned(),
        };
        Server {
            name,
            version: version(get("version")),
            is_cluster: get("mode") == "cluster",
            is_sentinel: get("mode") == "sentinel",
            is_replica: get("role") == "replica",
        }
    }

    /// From what `INFO` says, where `HELLO` is not known or not allowed. Valkey calls its mode otherwise than Redis.
    pub fn of_info(info: &str) -> Option<Server> {
        let field = |name| field(info, name);
        let mode = field("redis_mode").or(field("server_mode"));
        Some(Server {
            name: if field("valkey_version").is_some() { "Valkey".into() } else { "Redis".into() },
            version: version(field("valkey_version").or(field("redis_version"))?),
            is_cluster: mode == Some("cluster") || field("cluster_enabled") == Some("1"),
            is_sentinel: mode == Some("sentinel"),
            is_replica: field("role") == Some("slave"),
        })
    }

    /// Whether its users have rights by database.
    pub fn has_database_rights(&self) -> bool {
        self.name == "Valkey" && self.version >= (9, 1, 0)
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor, patch) = self.version;
        write!(f, "{} {major}.{minor}.{patch}", self.name)
    }
}

/// One field of `INFO`.
pub fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// `7.0.15` as numbers; what is none counts as 0.
pub fn version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or_default());
    let mut next = || parts.next().unwrap_or_default();
    (next(), next(), next())
}

/// What `INFO replication` says: how much the server has written, and of each replica that follows, as `host:port`, how much of it
/// that has acknowledged.
pub struct Replication {
    /// Bytes of the stream to the replicas.
    pub written: u64,
    /// The replicas.
    pub following: HashMap<String, u64>,
}

impl Replication {
    /// Reads it.
    pub fn of(info: &str) -> Replication {
        let written = field(info, "master_repl_offset").and_then(|offset| offset.parse().ok());
        // slave0:ip=10.0.0.2,port=6379,state=online,offset=4200,lag=0
        let lines = info.lines().filter_map(|line| line.strip_prefix("slave")?.split_once(':'));
        let one = |(number, line): (&str, &str)| {
            let get = |name: &str| {
                line.trim().split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            };
            let follows = number.parse::<u32>().is_ok() && get("state") == Some("online");
            let place = format!("{}:{}", get("ip")?, get("port")?);
            follows.then_some((place, get("offset")?.parse().ok()?))
        };
        // what cannot be read is had by nobody
        Replication { written: written.unwrap_or(u64::MAX), following: lines.filter_map(one).collect() }
    }
}

/// A connection to the server that takes writes, and who tells when that is another one.
pub async fn connect(config: &RedisConfig) -> RedisResult<(MultiplexedConnection, Switch)> {
    let client = match config.has_sentinels() {
        true => of_sentinels(config)?.async_get_client().await?,
        false => direct(config)?,
    };
    let switch = Switch::away_from(client.get_connection_info().addr(), config)?;
    Ok((open(&client).await?, switch))
}

async fn open(client: &Client) -> RedisResult<MultiplexedConnection> {
    let timeouts = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(ANSWER_MAX));
    client.get_multiplexed_async_connection_with_config(&timeouts).await
}

/// What the sentinels know, and when one of them has named another master. The listeners end with it.
pub struct Switch {
    switched: watch::Receiver<bool>,
    _listeners: JoinSet<()>,
    master: String,
    sentinels: Vec<Sentinel>,
    /// The replicas that they took for alive, and when they were asked.
    replicas: Option<(HashSet<String>, Instant)>,
}

/// One sentinel.
struct Sentinel {
    client: Client,
    connection: Option<MultiplexedConnection>,
    /// Until when it is left alone, since it did not answer in time.
    silent_until: Option<Instant>,
}

impl Switch {
    /// Listens to each sentinel, if there are any: some may be away, or cut off from the others.
    fn away_from(here: &ConnectionAddr, config: &RedisConfig) -> RedisResult<Switch> {
        let (tell, switched) = watch::channel(false);
        let (mut listeners, mut all) = (JoinSet::new(), Vec::new());
        if config.has_sentinels() {
            for address in sentinels(config)? {
                let sentinel = sentinel(config, address)?;
                let words = (config.sentinel_master.clone(), here.to_string());
                listeners.spawn(listen(sentinel.clone(), words, tell.clone()));
                all.push(Sentinel { client: sentinel, connection: None, silent_until: None });
            }
        }
        let master = config.sentinel_master.clone();
        Ok(Switch { switched, _listeners: listeners, master, sentinels: all, replicas: None })
    }

    /// Returns once another server is the master.
    pub async fn happened(&mut self) {
        if self.switched.wait_for(|switched| *switched).await.is_err() {
            // nobody listens
            std::future::pending().await
        }
    }

    /// The replicas that a failover may go to: those that a sentinel takes for alive, also one that does not follow, since it was the
    /// master a moment ago, or has just been made one. As it was a second ago at most, or as it was last.
    pub async fn replicas(&mut self) -> RedisResult<&HashSet<String>> {
        let is_new = self.replicas.as_ref().is_some_and(|(_, asked)| asked.elapsed() < REPLICAS_EVERY);
        if !is_new {
            let asking = self.sentinels.iter_mut().map(|sentinel| sentinel.alive(&self.master));
            // one that is cut off may know less than the others
            let answers: Vec<HashSet<String>> = join_all(asking).await.into_iter().flatten().collect();
            if !answers.is_empty() {
                self.replicas = Some((answers.into_iter().flatten().collect(), Instant::now()));
            }
        }
        let silent = || RedisError::from((ErrorKind::Io, "no sentinel says which replicas there are"));
        Ok(&self.replicas.as_ref().ok_or_else(silent)?.0)
    }
}

impl Sentinel {
    /// The replicas that it takes for alive; `None` when it does not answer.
    async fn alive(&mut self, master: &str) -> Option<HashSet<String>> {
        if self.silent_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let known = tokio::time::timeout(SENTINEL_MAX, self.known(master)).await;
        self.silent_until = known.is_err().then(|| Instant::now() + SENTINEL_SILENT);
        known.ok()?.ok()
    }

    async fn known(&mut self, master: &str) -> RedisResult<HashSet<String>> {
        let mut asked = match self.connection.take() {
            Some(open) => open,
            None => open(&self.client).await?,
        };
        let mut command = redis::cmd("SENTINEL");
        let replicas: Vec<HashMap<String, String>> =
            command.arg("REPLICAS").arg(master).query_async(&mut asked).await?;
        self.connection = Some(asked);
        let is_up = |replica: &HashMap<String, String>| {
            let flags = replica.get("flags").map_or("", String::as_str);
            flags.split(',').all(|flag| !flag.ends_with("_down"))
        };
        let place = |replica: HashMap<String, String>| {
            Some(format!("{}:{}", replica.get("ip")?, replica.get("port")?))
        };
        Ok(replicas.into_iter().filter(is_up).filter_map(place).collect())
    }
}

/// What happens while a sentinel is not listened to is not missed for good: the old master takes no more writes soon, and no
/// replica has what it took.
async fn listen(sentinel: Client, (master, here): (String, String), tell: watch::Sender<bool>) {
    loop {
        let _: RedisResult<()> = async {
            let mut pubsub = sentinel.get_async_pubsub().await?;
            pubsub.subscribe("+switch-master").await?;
            let mut messages = pubsub.into_on_message();
            while let Some(message) = messages.next().await {
                if names_another(&message.get_payload::<String>()?, &master, &here) {
                    tell.send_replace(true);
                }
            }
            Ok(())
        }
        .await;
        tokio::time::sleep(SENTINEL_AGAIN).await;
    }
}

/// Whether `NAME OLD-HOST OLD-PORT NEW-HOST NEW-PORT` moves this master away from here. Each sentinel says it once, the last one
/// when we are there already.
fn names_another(message: &str, master: &str, here: &str) -> bool {
    match message.split(' ').collect::<Vec<_>>().as_slice() {
        [name, _, _, host, port] => *name == master && here != format!("{host}:{port}"),
        _ => false,
    }
}

fn direct(config: &RedisConfig) -> RedisResult<Client> {
    let mut settings = RedisConnectionInfo::default();
    if !config.username.is_empty() {
        settings = settings.set_username(&config.username);
    }
    if !config.password.expose().is_empty() {
        settings = settings.set_password(config.password.expose());
    }
    client(config, address(config, &config.host, config.port), settings)
}

fn client(
    config: &RedisConfig,
    address: ConnectionAddr,
    settings: RedisConnectionInfo,
) -> RedisResult<Client> {
    let info = address.into_connection_info()?.set_redis_settings(settings);
    match certificates(config)? {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    }
}

/// Who asks the sentinels which server is the master now.
fn of_sentinels(config: &RedisConfig) -> RedisResult<SentinelClient> {
    let master = SentinelServerType::Master;
    let mut builder = SentinelClientBuilder::new(sentinels(config)?, &config.sentinel_master, master)?;
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
    builder.build()
}

fn sentinels(config: &RedisConfig) -> RedisResult<Vec<ConnectionAddr>> {
    if config.sentinel_addrs.is_empty() || config.sentinel_master.is_empty() {
        let text = "redis.sentinel_addrs and redis.sentinel_master need each other";
        return Err((ErrorKind::InvalidClientConfig, text).into());
    }
    let addresses = config.sentinel_addrs.iter();
    let addresses = addresses.map(|text| host_and_port(text).map(|(host, port)| address(config, host, port)));
    let addresses = addresses.collect::<Option<_>>();
    Ok(addresses
        .ok_or((ErrorKind::InvalidClientConfig, "redis.sentinel_addrs: host:port is expected of each"))?)
}

/// One of them.
fn sentinel(config: &RedisConfig, address: ConnectionAddr) -> RedisResult<Client> {
    let mut settings = RedisConnectionInfo::default();
    if !config.sentinel_password.expose().is_empty() {
        settings = settings.set_password(config.sentinel_password.expose());
    }
    client(config, address, settings)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(pairs: &[(&str, &str)]) -> Server {
        Server::of(&pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<Vec<_>>())
    }

    #[test]
    fn a_server_is_called_by_its_own_name_and_version() {
        let valkey =
            hello(&[("server", "valkey"), ("version", "9.1.2"), ("mode", "cluster"), ("role", "replica")]);
        assert_eq!((valkey.to_string().as_str(), valkey.has_database_rights()), ("Valkey 9.1.2", true));
        assert!(valkey.is_cluster && valkey.is_replica && !valkey.is_sentinel);
        let redis =
            hello(&[("server", "redis"), ("version", "8.6.3"), ("mode", "sentinel"), ("role", "master")]);
        assert_eq!((redis.to_string().as_str(), redis.has_database_rights()), ("Redis 8.6.3", false));
        assert!(redis.is_sentinel && !redis.is_cluster && !redis.is_replica);
        assert_eq!(hello(&[("server", "another"), ("version", "1.x")]).to_string(), "another 1.0.0");
        assert!(!hello(&[("server", "valkey"), ("version", "8.1.4")]).has_database_rights());
    }

    #[test]
    fn a_server_without_hello_is_known_by_its_info() {
        let info = "# Server\r\nredis_version:6.0.16\r\nredis_mode:cluster\r\nrole:slave\r\n";
        let redis = Server::of_info(info).unwrap();
        assert_eq!(
            (redis.to_string().as_str(), redis.is_cluster, redis.is_replica),
            ("Redis 6.0.16", true, true)
        );
        let info =
            "redis_version:7.2.4\r\nserver_mode:sentinel\r\nvalkey_version:9.1.2\r\ncluster_enabled:1\r\n";
        let valkey = Server::of_info(info).unwrap();
        assert_eq!(
            (valkey.to_string().as_str(), valkey.is_cluster, valkey.is_sentinel),
            ("Valkey 9.1.2", true, true)
        );
        assert!(Server::of_info("").is_none());
    }

    #[test]
    fn a_replica_follows_once_it_is_online() {
        let info = "# Replication\r\nrole:master\r\nconnected_slaves:3\r\n\
                    slave0:ip=10.0.0.2,port=6379,state=online,offset=4200,lag=0\r\n\
                    slave1:ip=10.0.0.3,port=6379,state=wait_bgsave,offset=0,lag=0\r\n\
                    slave2:ip=::1,port=6380,state=online,offset=90,lag=11,type=replica\r\n\
                    master_repl_offset:4300\r\nslave_repl_offset:7\r\n";
        let Replication { written, following } = Replication::of(info);
        let all =
            [("10.0.0.2:6379", 4200), ("::1:6380", 90)].map(|(place, offset)| (place.to_owned(), offset));
        assert_eq!((written, following), (4300, all.into()));
        let nothing = Replication::of("");
        assert!(nothing.following.is_empty() && nothing.written == u64::MAX);
    }

    #[test]
    fn only_what_moves_our_master_away_is_a_switch() {
        let away = |message| names_another(message, "mymaster", "10.0.0.1:6379");
        assert!(away("mymaster 10.0.0.1 6379 10.0.0.2 6379"));
        assert!(!away("mymaster 10.0.0.2 6379 10.0.0.1 6379"), "we are there already");
        assert!(!away("other 10.0.0.1 6379 10.0.0.2 6379"));
        assert!(!away("mymaster") && !away(""));
    }
}
