//! Servers of another kind: Valkey, a node of a cluster, a replica, a sentinel.

use walcast::error::Code;
use walcast::sink::redis::{ACL, RedisConfig, RedisSink};
use walcast::sink::{Finding, Sink, SinkAdmin, Verdict};

use super::{assert_shown, refused, told};
use crate::support::redis_server::{Kind, Server, connect, run};
use crate::support::story::{Story, Time, session};

const KINDS: [Kind; 2] = [Kind::Redis, Kind::Valkey];
const DURABLE: [&str; 2] = ["appendonly yes", "appendfsync always"];

async fn finding(config: &RedisConfig, id: &str) -> Finding {
    let findings = RedisSink::new(config.clone()).check().await;
    findings.into_iter().find(|finding| finding.id == id).unwrap()
}

#[tokio::test]
async fn each_server_is_known_by_its_own_name_and_version() {
    for (settings, words) in [
        (&DURABLE[..], "answers, Valkey 9."),
        // which says that it is Redis 7.2.4 to all who ask what they know
        (&["extended-redis-compatibility yes"][..], "answers, Valkey 9."),
    ] {
        let valkey = Server::start_as(Kind::Valkey, settings).await;
        let finding = finding(&valkey.config, "redis.server").await;
        assert_eq!(finding.verdict, Verdict::Ok);
        assert!(finding.message.starts_with(words), "{}", finding.message);
    }
    let redis = Server::start(&DURABLE).await;
    let message = finding(&redis.config, "redis.server").await.message;
    assert!(message.starts_with("answers, Redis "), "{message}");
}

#[tokio::test]
async fn valkey_shows_what_redis_shows() {
    let valkey = Server::start_as(Kind::Valkey, &DURABLE).await;
    let mut story = Story::new(&Time::real());
    story.content(1, "One", Some("podcast"), Some(100)).content(2, "Two", None, None).commit();
    story
        .event(Some(1), Some("play"), 0, Some(30_000))
        .event(Some(1), Some("finish"), 0, Some(45_500))
        .event(Some(2), Some("click"), 0, Some(1_234_567_891_234))
        .commit();
    let mut sink = told(&valkey.config, &story).await;
    assert_shown(&valkey.config, &story, "on Valkey").await;
    let stored = sink.recover(&session(1)).await.unwrap().unwrap();
    assert_eq!(stored.checkpoint, story.end());
}

#[tokio::test]
async fn a_node_of_a_cluster_is_refused_before_any_script_is_sent() {
    for kind in KINDS {
        let node = Server::start_as(kind, &["cluster-enabled yes"]).await;
        for db in [0, 1] {
            let config = RedisConfig { db, ..node.config.clone() };
            refused(RedisSink::new(config.clone()).prepare().await, Code::RedisUnfit, "Redis Cluster");
            let mut sink = RedisSink::new(config.clone());
            refused(sink.recover(&session(1)).await, Code::RedisUnfit, "Redis Cluster");
            refused(sink.peek(&session(1)).await, Code::RedisUnfit, "Redis Cluster");
            assert_eq!(finding(&config, "redis.server").await.verdict, Verdict::Fail);
        }
        let stats: String = run(&mut connect(&node.config).await, &["INFO", "commandstats"]).await;
        assert!(stats.contains("cmdstat_hello"), "{stats}");
        assert!(!stats.contains("cmdstat_eval") && !stats.contains("cmdstat_script"), "{stats}");
    }
}

#[tokio::test]
async fn a_replica_and_a_sentinel_are_refused() {
    for kind in KINDS {
        let master = Server::start_as(kind, &[]).await;
        let replicaof = format!("replicaof 127.0.0.1 {}", master.config.port);
        let replica = Server::start_as(kind, &[&replicaof]).await;
        refused(RedisSink::new(replica.config.clone()).prepare().await, Code::RedisReplica, "replica");
        let recovered = RedisSink::new(replica.config.clone()).recover(&session(1)).await;
        refused(recovered, Code::RedisReplica, "replica");
        let sentinel = Server::start_as(kind, &["sentinel monitor mymaster 127.0.0.1 1 1"]).await;
        refused(RedisSink::new(sentinel.config.clone()).prepare().await, Code::RedisUnfit, "is a sentinel");
    }
}

#[tokio::test]
async fn a_user_who_may_use_other_databases_only_is_told_which_right_he_lacks() {
    let valkey = Server::start_as(Kind::Valkey, &DURABLE).await;
    let mut admin = connect(&valkey.config).await;
    let words: Vec<&str> =
        "ACL SETUSER walcast on >secret resetdbs db=7".split(' ').chain(ACL.split(' ')).collect();
    run::<()>(&mut admin, &words).await;
    let user = RedisConfig {
        username: "walcast".into(),
        password: String::from("secret").into(),
        ..valkey.config.clone()
    };
    let other = RedisConfig { db: 6, ..user.clone() };
    refused(RedisSink::new(other).prepare().await, Code::RedisRights, "`db=6`");
    RedisSink::new(RedisConfig { db: 7, ..user.clone() }).prepare().await.unwrap();
    // the one that no one selects
    let finding = finding(&user, "redis.rights").await;
    assert_eq!((finding.verdict, finding.code), (Verdict::Fail, Some(Code::RedisRights)));
    let fix = finding.fix.unwrap();
    run::<()>(&mut admin, &fix.split(' ').collect::<Vec<_>>()).await;
    RedisSink::new(user).prepare().await.unwrap();
}
