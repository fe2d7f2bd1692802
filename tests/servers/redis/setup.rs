//! Servers that are not as they must be.

use walcast::error::Code;
use walcast::secret::Secret;
use walcast::sink::redis::{ACL, Durability, RedisConfig, RedisSink};
use walcast::sink::{Finding, Sink, SinkAdmin, Verdict};

use super::{recovered, refused, write};
use crate::support::redis_server::{Server, connect, fresh_database, public, run};
use crate::support::story::{Story, Time, session};
use crate::support::{fresh_name, wait_until};

fn secret(text: &str) -> Secret {
    text.to_owned().into()
}

async fn findings(config: &RedisConfig) -> Vec<Finding> {
    RedisSink::new(config.clone()).check().await
}

async fn worst(config: &RedisConfig) -> Finding {
    let severity = |finding: &Finding| match finding.verdict {
        Verdict::Ok => 0,
        Verdict::Warn => 1,
        Verdict::Fail => 2,
    };
    findings(config).await.into_iter().max_by_key(severity).unwrap()
}

#[tokio::test]
async fn a_server_as_it_must_be_is_fine() {
    let config = fresh_database().await;
    for finding in findings(&config).await {
        assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
    }
    RedisSink::new(config.clone()).prepare().await.unwrap();
    assert!(public(&config).await.is_empty());
}

#[tokio::test]
async fn passwords_that_do_not_fit_are_told_with_the_fix() {
    let config = fresh_database().await;
    let open = Server::start(&["appendonly yes", "appendfsync always"]).await;
    let cases = [
        (RedisConfig { password: secret("wrong"), ..config.clone() }, "REDIS_PASSWORD"),
        (RedisConfig { password: secret(""), ..config.clone() }, "REDIS_PASSWORD"),
        (RedisConfig { username: "nobody".into(), ..config.clone() }, "redis.username"),
        (RedisConfig { password: secret("needless"), ..open.config.clone() }, "leave it empty"),
    ];
    for (config, words) in cases {
        let mut sink = RedisSink::new(config.clone());
        refused(sink.prepare().await, Code::RedisLogin, words);
        refused(sink.recover(&session(1)).await, Code::RedisLogin, words);
        let finding = worst(&config).await;
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.fix.unwrap().contains(words));
    }
    RedisSink::new(open.config.clone()).prepare().await.unwrap();
    let finding = worst(&open.config).await;
    assert_eq!(finding.verdict, Verdict::Warn, "{finding:?}");
    assert!(finding.fix.unwrap().contains("requirepass"));
}

#[tokio::test]
async fn a_server_that_may_lose_writes_is_refused_unless_that_is_wanted() {
    for settings in [vec!["appendonly no"], vec!["appendonly yes", "appendfsync everysec"]] {
        let server = Server::start(&settings).await;
        refused(
            RedisSink::new(server.config.clone()).prepare().await,
            Code::RedisUnfit,
            "appendfsync always",
        );
        let config = RedisConfig { durability: Durability::None, ..server.config.clone() };
        RedisSink::new(config.clone()).prepare().await.unwrap();
        assert_eq!(worst(&config).await.verdict, Verdict::Warn);
    }
}

#[tokio::test]
async fn a_user_who_may_not_ask_for_settings_gets_a_warning() {
    let server = Server::start(&[
        "appendonly yes",
        "appendfsync always",
        "user walcast on >secret ~walcast:* ~top_engagement:* ~content:* ~engagement:* ~stats:events:* +@all -@dangerous +info",
    ])
    .await;
    let config =
        RedisConfig { username: "walcast".into(), password: secret("secret"), ..server.config.clone() };
    let mut sink = RedisSink::new(config.clone());
    sink.prepare().await.unwrap();
    assert_eq!(worst(&config).await.verdict, Verdict::Warn);
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("video"), Some(1)).event(Some(1), Some("play"), 0, Some(1)).commit();
    let (mut sink, checkpoint) = recovered(&config, &story.time, 1).await;
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
    sink.tick().await.unwrap();
}

#[tokio::test]
async fn a_user_who_may_not_write_is_told_what_is_needed() {
    let server = Server::start(&["user walcast on >secret ~walcast:* %R~stats:events:* +@all"]).await;
    let config =
        RedisConfig { username: "walcast".into(), password: secret("secret"), ..server.config.clone() };
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(1)).commit();
    let (mut sink, checkpoint) = recovered(&config, &story.time, 1).await;
    let allow = format!("ACL SETUSER <user> {ACL}");
    refused(sink.write(&story.beyond(checkpoint, 100)).await, Code::RedisRights, &allow);
    let keys: Vec<String> = run(&mut connect(&server.config).await, &["KEYS", "*"]).await;
    assert_eq!(keys, ["walcast:checkpoint:walcast"]);
}

/// Every right is looked at, nothing is written, and what is said mends it.
#[tokio::test]
async fn rights_that_are_missing_are_told_before_a_write_needs_them() {
    let server =
        Server::start(&["appendonly yes", "appendfsync always", "user walcast on >secret +@all"]).await;
    let config =
        RedisConfig { username: "walcast".into(), password: secret("secret"), ..server.config.clone() };
    let mut admin = connect(&server.config).await;
    for (command, key) in [
        ("HSET", "walcast:check"),
        ("HSET", "content:check"),
        ("HSET", "engagement:check"),
        ("HSET", "stats:events:check"),
        ("ZADD", "top_engagement:check"),
    ] {
        run::<()>(&mut admin, &[command, key, "1", "kept"]).await;
    }
    let rights = async || findings(&config).await.into_iter().find(|one| one.id == "redis.rights").unwrap();
    for fault in
        ["resetkeys ~walcast:*", "allkeys -@write", "allkeys -hset", "allkeys -evalsha", "allkeys -script"]
    {
        let words: Vec<&str> =
            ["ACL", "SETUSER", "walcast", "+@all"].into_iter().chain(fault.split(' ')).collect();
        run::<()>(&mut admin, &words).await;
        let finding = rights().await;
        assert_eq!(finding.verdict, Verdict::Fail, "{fault}: {finding:?}");
        refused(RedisSink::new(config.clone()).prepare().await, Code::RedisRights, "ACL SETUSER walcast");
        run::<()>(&mut admin, &["ACL", "SETUSER", "walcast", "resetkeys"]).await;
        let fix = finding.fix.unwrap();
        run::<()>(&mut admin, &fix.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(rights().await.verdict, Verdict::Ok, "{fault}");
    }
    let keys: Vec<String> = run(&mut admin, &["KEYS", "*"]).await;
    assert_eq!(keys.len(), 5, "{keys:?}");
    for key in keys.iter().filter(|key| !key.starts_with("top")) {
        let fields: Vec<String> = run(&mut admin, &["HGETALL", key]).await;
        let time_to_live: i64 = run(&mut admin, &["TTL", key]).await;
        assert_eq!((fields, time_to_live), (vec!["1".to_owned(), "kept".to_owned()], -1), "{key}");
    }
}

/// The user of the documentation may do what walcast does, and nothing else that this server knows.
#[tokio::test]
async fn the_users_rights_are_narrow() {
    let server = Server::start(&["appendonly yes", "appendfsync always", "user walcast on >secret"]).await;
    let mut admin = connect(&server.config).await;
    let statement: Vec<&str> = ["ACL", "SETUSER", "walcast"].into_iter().chain(ACL.split(' ')).collect();
    run::<()>(&mut admin, &statement).await;
    let allowed: Vec<&str> = ACL.split(' ').filter_map(|word| word.strip_prefix('+')).collect();
    let commands: Vec<Vec<redis::Value>> = run(&mut admin, &["COMMAND"]).await;
    let mut denied = 0;
    for command in commands {
        let [name, arity, flags, ..] = command.as_slice() else { panic!("{command:?}") };
        let name: String = redis::from_redis_value(name.clone()).unwrap();
        let arity: i64 = redis::from_redis_value(arity.clone()).unwrap();
        let flags: Vec<String> = redis::from_redis_value(flags.clone()).unwrap();
        // who is not logged in yet may say these
        if allowed.contains(&name.as_str()) || flags.iter().any(|flag| flag == "no_auth") {
            continue;
        }
        let words = std::iter::repeat_n("walcast:check", arity.unsigned_abs() as usize - 1);
        let tried: Vec<&str> = ["ACL", "DRYRUN", "walcast", &name].into_iter().chain(words).collect();
        let told: Result<String, _> =
            redis::cmd(tried[0]).arg(&tried[1..]).query_async::<String>(&mut admin).await;
        let told = match told {
            // one that is nothing without a second word
            Err(_) => {
                redis::cmd("ACL").arg(&["DRYRUN", "walcast", &name, "help"]).query_async(&mut admin).await
            }
            told => told,
        };
        assert!(told.as_ref().is_ok_and(|told| told.contains("no permissions")), "{name}: {told:?}");
        denied += 1;
    }
    assert!(denied > 150, "{denied}");
    for more in ["CONFIG SET maxmemory 1", "SCRIPT FLUSH", "GET other:key", "HGET other:key a", "ACL WHOAMI"]
    {
        let tried: Vec<&str> = ["DRYRUN", "walcast"].into_iter().chain(more.split(' ')).collect();
        let told: String = redis::cmd("ACL").arg(&tried).query_async(&mut admin).await.unwrap();
        assert!(told.contains("no permissions"), "{more}: {told}");
    }
    // and all of the sink works as this user
    let config =
        RedisConfig { username: "walcast".into(), password: secret("secret"), ..server.config.clone() };
    assert!(findings(&config).await.iter().all(|finding| finding.verdict == Verdict::Ok));
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(1)).commit();
    let (mut sink, checkpoint) = recovered(&config, &story.time, 1).await;
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
    assert_eq!(recovered(&config, &story.time, 1).await.1, story.end());
}

/// What a fix says, typed into redis-cli.
#[tokio::test]
async fn settings_are_mended_by_what_is_said() {
    let server = Server::start(&["maxmemory-policy allkeys-lru", "maxmemory 1100000"]).await;
    let mut admin = connect(&server.config).await;
    for (id, verdict) in [
        ("redis.durability", Verdict::Fail),
        ("redis.eviction", Verdict::Warn),
        ("redis.memory", Verdict::Warn),
        ("redis.password", Verdict::Warn),
    ] {
        let finding = findings(&server.config).await.into_iter().find(|one| one.id == id).unwrap();
        assert_eq!(finding.verdict, verdict, "{finding:?}");
        if id == "redis.password" {
            break;
        }
        for line in finding.fix.unwrap().lines() {
            run::<()>(&mut admin, &line.split(' ').collect::<Vec<_>>()).await;
        }
        let mended = findings(&server.config).await.into_iter().find(|one| one.id == id).unwrap();
        assert_eq!(mended.verdict, Verdict::Ok, "{mended:?}");
    }
}

#[tokio::test]
async fn a_full_server_refuses_the_whole_flush_and_takes_it_later() {
    let server = Server::start(&["maxmemory-policy noeviction"]).await;
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(1)).commit();
    let (mut sink, checkpoint) = recovered(&server.config, &story.time, 1).await;
    let mut connection = connect(&server.config).await;
    run::<()>(&mut connection, &["CONFIG", "SET", "maxmemory", "1"]).await;
    refused(sink.write(&story.beyond(checkpoint, 100)).await, Code::RedisFull, "maxmemory");
    assert!(public(&server.config).await.is_empty());
    run::<()>(&mut connection, &["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(sink.recover(&session(1)).await.unwrap(), None);
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
}

#[tokio::test]
async fn a_server_that_cannot_write_to_its_disk_takes_the_flush_when_it_can() {
    // a save point, since only with one a failed snapshot stops the writes
    let server = Server::start(&["save 3600 1000000"]).await;
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(1)).commit();
    let (mut sink, checkpoint) = recovered(&server.config, &story.time, 1).await;
    let mut admin = connect(&server.config).await;
    let folder: Vec<String> = run(&mut admin, &["CONFIG", "GET", "dir"]).await;
    let snapshot = std::path::Path::new(&folder[1]).join("dump.rdb");
    let snapshot_ends = async |status: &str| {
        run::<String>(&mut connect(&server.config).await, &["BGSAVE"]).await;
        wait_until("the snapshot has ended", async || {
            let told: String = run(&mut connect(&server.config).await, &["INFO", "persistence"]).await;
            told.contains(&format!("rdb_last_bgsave_status:{status}"))
        })
        .await;
    };
    std::fs::create_dir(&snapshot).unwrap();
    snapshot_ends("err").await;
    refused(sink.write(&story.beyond(checkpoint, 100)).await, Code::RedisCannotWrite, "disk");
    assert!(public(&server.config).await.is_empty());
    std::fs::remove_dir(&snapshot).unwrap();
    snapshot_ends("ok").await;
    assert_eq!(sink.recover(&session(1)).await.unwrap(), None);
    write(&mut sink, &story.beyond(checkpoint, 100)).await;
}

#[tokio::test]
async fn eviction_is_warned_about() {
    let server = Server::start(&[
        "maxmemory-policy allkeys-lru",
        "requirepass x",
        "appendonly yes",
        "appendfsync always",
    ])
    .await;
    let config = RedisConfig { password: secret("x"), ..server.config.clone() };
    let finding = worst(&config).await;
    assert_eq!(finding.verdict, Verdict::Warn);
    assert!(finding.fix.unwrap().contains("noeviction"));
    RedisSink::new(config).prepare().await.unwrap();
}

fn openssl(dir: &std::path::Path, arguments: &str) {
    let mut command = std::process::Command::new("openssl");
    let output = command.args(arguments.split(' ')).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn tls_is_spoken_with_a_server_that_a_trusted_authority_vouches_for() {
    let dir = std::env::temp_dir().join(fresh_name("certificates"));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("names"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE").unwrap();
    for authority in ["ca", "other"] {
        openssl(
            &dir,
            &format!(
                "req -x509 -newkey rsa:2048 -nodes -keyout {authority}.key -out {authority}.crt -days 2 -subj /CN={authority}"
            ),
        );
    }
    openssl(&dir, "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server");
    openssl(
        &dir,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile names",
    );
    let path = |name: &str| dir.join(name).display().to_string();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start(&[
        "appendonly yes",
        "appendfsync always",
        "tls-auth-clients no",
        &format!("tls-port {port}"),
        &format!("tls-cert-file {}", path("server.crt")),
        &format!("tls-key-file {}", path("server.key")),
        &format!("tls-ca-cert-file {}", path("ca.crt")),
    ])
    .await;
    let host = "localhost".to_owned();
    let config = RedisConfig { host, port, tls: true, tls_ca_file: path("ca.crt"), ..server.config.clone() };
    RedisSink::new(config.clone()).prepare().await.unwrap();
    let mut story = Story::new(&Time::real());
    story.event(Some(1), Some("play"), 0, Some(1)).commit();
    let (mut sink, checkpoint) = recovered(&config, &story.time, 1).await;
    write(&mut sink, &story.beyond(checkpoint, 100)).await;

    let other = RedisConfig { tls_ca_file: path("other.crt"), ..config.clone() };
    refused(RedisSink::new(other).prepare().await, Code::RedisTls, "redis.tls_ca_file");
    let another_name = RedisConfig { host: "127.0.0.1".into(), ..config.clone() };
    refused(RedisSink::new(another_name).prepare().await, Code::RedisTls, "certificate");
    let missing = RedisConfig { tls_ca_file: path("missing.crt"), ..config.clone() };
    refused(RedisSink::new(missing).prepare().await, Code::Configuration, "missing.crt");

    // as it is unless it is said otherwise: it asks who comes
    let mut admin = connect(&server.config).await;
    run::<()>(&mut admin, &["CONFIG", "SET", "tls-auth-clients", "yes"]).await;
    refused(RedisSink::new(config.clone()).prepare().await, Code::RedisTls, "redis.tls_client_cert_file");
    let shown = RedisConfig {
        tls_client_cert_file: path("server.crt"),
        tls_client_key_file: path("server.key"),
        ..config
    };
    RedisSink::new(shown.clone()).prepare().await.unwrap();
    let no_key = RedisConfig { tls_client_key_file: path("missing.key"), ..shown };
    refused(RedisSink::new(no_key).prepare().await, Code::Configuration, "missing.key");
    std::fs::remove_dir_all(dir).unwrap();
}
