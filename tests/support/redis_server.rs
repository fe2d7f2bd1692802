//! Redis servers and databases for tests, and a way to look into them.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisResult};
use uuid::Uuid;
use walcast::sink::redis::RedisConfig;

use super::{DEADLINE, env, fresh_name, wait_until};

/// Databases of the main server that tests may use; the one before them keeps account of who has which.
const DATABASES: std::ops::Range<u16> = 32..256;
const ACCOUNT: u16 = 31;

/// An empty database of the main server that no other test uses until this is dropped.
pub struct Database {
    config: RedisConfig,
    lease: String,
}

impl Deref for Database {
    type Target = RedisConfig;

    fn deref(&self) -> &RedisConfig {
        &self.config
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Ok(mut account) = Client::open(url(&self.config, ACCOUNT)).and_then(|c| c.get_connection())
        else {
            return;
        };
        let _ = redis::cmd("DEL").arg(&self.lease).query::<i64>(&mut account);
    }
}

/// Takes a database.
pub async fn fresh_database() -> Database {
    let config = RedisConfig {
        host: env("REDIS_HOST", "127.0.0.1"),
        port: env("REDIS_PORT", "26379").parse().unwrap(),
        password: env("REDIS_PASSWORD", "walcast").into(),
        ..Default::default()
    };
    let mut account = connect(&RedisConfig { db: ACCOUNT, ..config.clone() }).await;
    for db in DATABASES {
        let lease = format!("database:{db}");
        let mut take = redis::cmd("SET");
        take.arg(&lease).arg(std::process::id()).arg("NX").arg("EX").arg(3600);
        if take.query_async::<Option<String>>(&mut account).await.unwrap().is_some() {
            let database = Database { config: RedisConfig { db, ..config }, lease };
            run::<()>(&mut connect(&database).await, &["FLUSHDB"]).await;
            return database;
        }
    }
    panic!("all test databases are in use: they are free again an hour after the last test run");
}

/// A connection of the test's own.
pub async fn connect(config: &RedisConfig) -> MultiplexedConnection {
    try_connect(config).await.unwrap()
}

/// The same, where the server may be away.
pub async fn try_connect(config: &RedisConfig) -> RedisResult<MultiplexedConnection> {
    let patient = AsyncConnectionConfig::new().set_response_timeout(Some(DEADLINE));
    let client = Client::open(url(config, config.db)).unwrap();
    client.get_multiplexed_async_connection_with_config(&patient).await
}

fn url(config: &RedisConfig, db: u16) -> String {
    let password = config.password.expose();
    let login = if password.is_empty() { String::new() } else { format!(":{password}@") };
    format!("redis://{login}{}:{}/{db}", config.host, config.port)
}

/// Runs one command.
pub async fn run<T: redis::FromRedisValue>(connection: &mut MultiplexedConnection, words: &[&str]) -> T {
    try_run(connection, words).await.unwrap()
}

/// Runs one command, which may fail.
pub async fn try_run<T: redis::FromRedisValue>(
    connection: &mut MultiplexedConnection,
    words: &[&str],
) -> redis::RedisResult<T> {
    let (name, args) = words.split_first().unwrap();
    redis::cmd(name).arg(args).query_async(connection).await
}

/// The value of a key, comparable.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Fields and values.
    Hash(BTreeMap<String, String>),
    /// Members and scores in milliseconds.
    Board(BTreeMap<String, u64>),
}

/// Everything that readers are promised: all keys but walcast's own.
pub async fn public(config: &RedisConfig) -> BTreeMap<String, Shape> {
    let mut connection = connect(config).await;
    let keys: Vec<String> = run(&mut connection, &["KEYS", "*"]).await;
    let mut shapes = BTreeMap::new();
    for key in keys.into_iter().filter(|key| !key.starts_with("walcast:")) {
        let shape = match run::<String>(&mut connection, &["TYPE", &key]).await.as_str() {
            "hash" => Shape::Hash(run(&mut connection, &["HGETALL", &key]).await),
            "zset" => {
                let scores: Vec<(String, f64)> =
                    run(&mut connection, &["ZRANGE", &key, "0", "-1", "WITHSCORES"]).await;
                Shape::Board(
                    scores.into_iter().map(|(id, score)| (id, (score * 1000.0).round() as u64)).collect(),
                )
            }
            other => panic!("{key} is a {other}"),
        };
        shapes.insert(key, shape);
    }
    shapes
}

/// A Redis server of the test's own, killed when it is dropped.
pub struct Server {
    child: Child,
    dir: PathBuf,
    /// How to reach it.
    pub config: RedisConfig,
    settings: Vec<String>,
    kind: Kind,
}

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Debian's Redis.
    Redis,
    /// Valkey.
    Valkey,
}

impl Server {
    /// Starts one; each setting is a word pair of redis.conf, such as `appendonly yes`.
    pub async fn start(settings: &[&str]) -> Server {
        Server::start_as(Kind::Redis, settings).await
    }

    /// The same of either.
    pub async fn start_as(kind: Kind, settings: &[&str]) -> Server {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = std::env::temp_dir().join(fresh_name("redis"));
        std::fs::create_dir(&dir).unwrap();
        let config = RedisConfig { port, ..Default::default() };
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut server = Server { child: spawn(kind, &dir, port, &settings), dir, config, settings, kind };
        server.wait_until_up().await;
        server
    }

    /// Kills it as a power cut would, and starts it again on the same data.
    pub async fn crash(&mut self) {
        self.kill();
        self.start_again().await;
    }

    /// Starts it on the data that it left.
    pub async fn start_again(&mut self) {
        self.child = spawn(self.kind, &self.dir, self.config.port, &self.settings);
        self.wait_until_up().await;
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn wait_until_up(&mut self) {
        let port = self.config.port;
        wait_until("redis-server answers", async || {
            let client = Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
            let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
            match try_run::<String>(&mut connection, &["PING"]).await {
                Ok(_) => true,
                Err(error) => error.code() == Some("NOAUTH"),
            }
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn spawn(kind: Kind, dir: &Path, port: u16, settings: &[String]) -> Child {
    let file = dir.join("redis.conf");
    let mut text = format!("bind 127.0.0.1\nport {port}\ndir {}\nsave \"\"\n", dir.display());
    settings.iter().for_each(|setting| text += &format!("{setting}\n"));
    if !file.exists() {
        std::fs::write(&file, text).unwrap();
    }
    let sentinel = settings.iter().any(|setting| setting.starts_with("sentinel "));
    let mut command = match (kind, Command::new("redis-server").arg("--version").output()) {
        (Kind::Valkey, _) => Command::new(env("TEST_VALKEY_SERVER", "valkey-server")),
        (Kind::Redis, Ok(_)) => Command::new("redis-server"),
        // Debian's redis-tools has the server under another name; the name it is called by decides what it is.
        (Kind::Redis, Err(_)) => Command::new("redis-check-rdb"),
    };
    if kind == Kind::Redis {
        command.arg0("redis-server");
    }
    command.arg(&file).args(sentinel.then_some("--sentinel"));
    command.stdout(Stdio::null()).spawn().expect("redis-server is needed: apt-get install redis-tools")
}

/// Text for a content id.
pub fn id_text(n: u128) -> String {
    Uuid::from_u128(n).to_string()
}
