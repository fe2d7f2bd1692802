//! A broker with TLS, logins and ACLs: who is let in, and what is said to those who are not.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::check::operator::{Line, check, of};
use crate::support::certificates::Certificates;
use crate::support::running::Running;
use crate::support::services::Servers;
use crate::support::world::World;
use crate::support::{fresh_database, fresh_name, postgres, wait_until};

const PORT_SHIFT: u16 = 3_400;
/// How soon it must be said what is wrong.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// A broker that lets in the user walcast, and knows a user nobody whom it allows nothing.
struct Secured {
    servers: Servers,
    certificates: Certificates,
}

/// The listeners' ports.
const IN_CLEAR: u16 = 29_092 + PORT_SHIFT;
const SASL_SSL: u16 = IN_CLEAR + 2;
const SSL_WITH_CERTIFICATES: u16 = IN_CLEAR + 3;
const SASL_PLAINTEXT: u16 = IN_CLEAR + 4;
const OAUTHBEARER: u16 = IN_CLEAR + 5;

impl Secured {
    async fn start() -> Secured {
        let certificates = Certificates::new();
        let key = ["-newkey", "rsa:2048"];
        let authority = certificates.make("authority", &key, "DNS:authority");
        certificates.make("stranger", &key, "DNS:stranger");
        for name in ["server", "client"] {
            certificates.sign(name, "IP:127.0.0.1", &authority);
        }
        let text = |name: &str| std::fs::read_to_string(certificates.path.join(name)).unwrap();
        std::fs::write(certificates.path.join("server.pem"), text("server.key") + &text("server.crt"))
            .unwrap();
        let properties = certificates.path.join("server.properties");
        std::fs::write(&properties, broker_properties(&certificates)).unwrap();
        let settings = [("SERVICES_KAFKA_PROPERTIES", properties.display().to_string())];
        let start = move || Servers::start_some("secured", PORT_SHIFT, &settings, &["kafka"]);
        let servers = tokio::task::spawn_blocking(start).await.unwrap();
        let user = ["--entity-type", "users", "--entity-name", "walcast"];
        let scram = ["kafka-tool", "configs", "--alter", "--add-config", "SCRAM-SHA-512=[password=right]"];
        let secured = Secured { servers, certificates };
        secured.command(&[scram.as_slice(), &user].concat());
        secured
    }

    fn command(&self, arguments: &[&str]) {
        drop(tokio::task::block_in_place(|| self.servers.command(arguments)));
    }

    fn path(&self, name: &str) -> String {
        self.certificates.path.join(name).display().to_string()
    }

    /// A world of Kafka alone, which reaches the broker like this.
    async fn world(&self, port: u16, properties: &Value) -> World {
        World::new(fresh_database(postgres()).await).await.with_all([
            ("PIPELINE_SINKS".into(), "kafka".into()),
            ("KAFKA_BROKERS".into(), format!("127.0.0.1:{port}")),
            ("KAFKA_PROPERTIES".into(), properties.to_string()),
        ])
    }

    /// The properties of somebody who trusts this authority and logs in so.
    fn sasl(&self, mechanism: &str, user: &str, password: &str, authority: &str) -> Value {
        json!({
            "security.protocol": "SASL_SSL", "ssl.ca.location": self.path(authority),
            "sasl.mechanism": mechanism, "sasl.username": user, "sasl.password": password,
        })
    }
}

fn broker_properties(certificates: &Certificates) -> String {
    let path = |name: &str| certificates.path.join(name).display().to_string();
    let listeners = format!(
        "PLAINTEXT://127.0.0.1:{IN_CLEAR},SASL_SSL://127.0.0.1:{SASL_SSL},MTLS://127.0.0.1:{SSL_WITH_CERTIFICATES},\
         SASL_PLAINTEXT://127.0.0.1:{SASL_PLAINTEXT},OAUTH://127.0.0.1:{OAUTHBEARER}"
    );
    let plain = "org.apache.kafka.common.security.plain.PlainLoginModule required user_walcast=\"right\" \
                 user_nobody=\"right\";";
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    // it believes tokens that nobody has signed
    let oauth = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
                 unsecuredLoginStringClaim_sub=\"broker\";";
    format!(
        "listeners={listeners},CONTROLLER://127.0.0.1:{}\n\
         advertised.listeners={listeners}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,MTLS:SSL,\
         SASL_PLAINTEXT:SASL_PLAINTEXT,OAUTH:SASL_PLAINTEXT\n\
         listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER\n\
         listener.name.oauth.oauthbearer.sasl.jaas.config={oauth}\n\
         sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512\n\
         listener.name.sasl_ssl.plain.sasl.jaas.config={plain}\n\
         listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram}\n\
         listener.name.sasl_plaintext.plain.sasl.jaas.config={plain}\n\
         listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config={scram}\n\
         ssl.keystore.type=PEM\n\
         ssl.keystore.location={}\n\
         ssl.truststore.type=PEM\n\
         ssl.truststore.location={}\n\
         listener.name.mtls.ssl.client.auth=required\n\
         listener.name.mtls.ssl.principal.mapping.rules=RULE:^CN=([^,]+).*$/$1/,DEFAULT\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS\n",
        IN_CLEAR + 1,
        path("server.pem"),
        path("authority.crt"),
    )
}

/// `check`, `init` and `run` say the same of what is wrong, and none of them keeps anybody waiting.
async fn is_refused(world: &World, id: &str, exit_code: i32, code: &str, words: &[&str]) {
    let began = Instant::now();
    let (_, lines) = check(world).await;
    assert!(began.elapsed() < TOLD_WITHIN, "{:?}", began.elapsed());
    let line = of(&lines, id, "");
    assert_eq!((line.verdict.as_str(), line.code.as_deref()), ("fail", Some(code)), "{line:?}");
    let told = format!("{} {}", line.message, line.fix.as_ref().unwrap());
    for word in words {
        assert!(told.contains(word), "no {word:?} in {told}");
    }
    for command in ["init", "run"] {
        let began = Instant::now();
        world.walcast([command]).await.expect(exit_code, &[&[code], words].concat());
        assert!(began.elapsed() < TOLD_WITHIN, "{command}: {:?}", began.elapsed());
    }
}

async fn wrong_settings_are_named(secured: &Secured) {
    let tls = |more: Value| {
        let mut properties =
            json!({"security.protocol": "SSL", "ssl.ca.location": secured.path("authority.crt")});
        properties.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        properties
    };
    let sasl = |mechanism: &str, password: &str, authority: &str| {
        secured.sasl(mechanism, "walcast", password, authority)
    };
    let stranger = json!({
        "ssl.certificate.location": secured.path("stranger.crt"), "ssl.key.location": secured.path("stranger.key"),
    });
    let in_clear = json!({
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN",
        "sasl.username": "walcast", "sasl.password": "right",
    });
    let (none, certificate) = (json!({}), ["certificate that it knows", "ssl.certificate.location"]);
    let cases: [(u16, Value, [&str; 2]); 12] = [
        (
            SASL_SSL,
            sasl("PLAIN", "wrong", "authority.crt"),
            ["Invalid username or password", "sasl.password"],
        ),
        (SASL_SSL, sasl("SCRAM-SHA-512", "wrong", "authority.crt"), ["SCRAM-SHA-512", "sasl.password"]),
        (
            SASL_SSL,
            sasl("SCRAM-SHA-256", "right", "authority.crt"),
            ["PLAIN,SCRAM-SHA-512", "sasl.mechanism"],
        ),
        (SASL_SSL, sasl("PLAIN", "right", "stranger.crt"), ["certificate verify failed", "ssl.ca.location"]),
        (SASL_SSL, none.clone(), ["speaks TLS", "security.protocol"]),
        (SASL_SSL, in_clear.clone(), ["speaks TLS", "sasl_ssl"]),
        (SASL_SSL, tls(none.clone()), ["asks for a login (PLAIN, SCRAM-SHA-512)", "sasl_ssl"]),
        (SASL_PLAINTEXT, none.clone(), ["asks for a login (PLAIN, SCRAM-SHA-512)", "sasl.username"]),
        (SSL_WITH_CERTIFICATES, tls(none.clone()), certificate),
        (SSL_WITH_CERTIFICATES, tls(stranger), certificate),
        (IN_CLEAR, tls(none), ["speaks no TLS", "security.protocol"]),
        (IN_CLEAR, in_clear, ["asks for no login", "security.protocol"]),
    ];
    for some in cases.chunks(3) {
        join_all(some.iter().map(async |(port, properties, words)| {
            let world = secured.world(*port, properties).await;
            is_refused(&world, "kafka.brokers", 78, "WC-105", words).await;
        }))
        .await;
    }
}

/// The commands of docs/sinks/kafka.md that give the rights, for these topics.
fn rights_of_the_docs(topic_prefix: &str) -> Vec<Vec<String>> {
    let docs = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sinks/kafka.md")).replace("\\\n", " ");
    let commands = docs.lines().filter(|line| line.starts_with("kafka-acls.sh ")).map(|line| {
        let words = line.split_whitespace().skip(3); // its name and the brokers
        words.map(|word| word.trim_matches('"').replace("engagement", topic_prefix)).collect()
    });
    commands.collect()
}

impl Secured {
    fn acls(&self, command: &[String]) {
        let words = command.iter().map(String::as_str);
        self.command(&["kafka-tool", "acls"].into_iter().chain(words).collect::<Vec<_>>());
    }
}

async fn missing_rights_are_named(secured: &Secured) {
    let nobody = secured.sasl("PLAIN", "nobody", "right", "authority.crt");
    let world = secured.world(SASL_SSL, &nobody).await;
    is_refused(&world, "kafka.brokers", 2, "WC-220", &["topic", "Topic authorization failed"]).await;
}

/// As the user whom the docs make, in each way of proving who one is.
async fn the_rights_of_the_docs_are_enough(secured: &Secured) {
    let prefix = fresh_name("t");
    let commands = rights_of_the_docs(&prefix);
    assert_eq!(commands.len(), 4, "topics, transactional id, group, and deleting records for a rebuild");
    commands.iter().for_each(|command| secured.acls(command));
    let certificate = json!({
        "security.protocol": "SSL", "ssl.ca.location": secured.path("authority.crt"),
        "ssl.certificate.location": secured.path("client.crt"), "ssl.key.location": secured.path("client.key"),
    });
    let tokens = token_server().await;
    let ways = [
        (OAUTHBEARER, oidc(&tokens, "right")),
        (SASL_SSL, secured.sasl("PLAIN", "walcast", "right", "authority.crt")),
        (SASL_SSL, secured.sasl("SCRAM-SHA-512", "walcast", "right", "authority.crt")),
        (SSL_WITH_CERTIFICATES, certificate),
    ];
    for (way, (port, properties)) in ways.into_iter().enumerate() {
        let world =
            secured.world(port, &properties).await.with("KAFKA_TOPIC_PREFIX", &format!("{prefix}.{way}"));
        world.walcast(["init"]).await.expect(0, &[]);
        let mut running = world.start().await;
        world.insert_events(50).await;
        world.verify().await;
        if way == 1 {
            let more = commands.last().unwrap().iter();
            let right: Vec<String> = more
                .map(|word| word.replace(&format!("{prefix}.events"), &format!("{prefix}.1.events")))
                .collect();
            running = filled_anew_with(&right, secured, &world, running).await;
        }
        running.stop().await;
        what_is_not_told_is_not_called_well(&world, port != SSL_WITH_CERTIFICATES).await;
    }
    // without the right to read the topics' settings it works as well, and says what it does not know
    let (port, properties) = (SASL_SSL, secured.sasl("PLAIN", "walcast", "right", "authority.crt"));
    let world = secured.world(port, &properties).await.with("KAFKA_TOPIC_PREFIX", &format!("{prefix}.1"));
    let topics = ["--topic", &prefix, "--resource-pattern-type", "prefixed"];
    let remove =
        ["--remove", "--force", "--allow-principal", "User:walcast", "--operation", "DescribeConfigs"];
    secured.acls(&[remove.as_slice(), &topics].concat().into_iter().map(str::to_owned).collect::<Vec<_>>());
    let (_, lines) = check(&world).await;
    let topics: Vec<&Line> = lines.iter().filter(|line| line.id == "kafka.topic").collect();
    assert_eq!(topics.len(), 4, "{topics:?}");
    for topic in topics {
        assert!(topic.verdict == "warn" && topic.message.contains("not told"), "{topic:?}");
        assert!(topic.fix.as_ref().unwrap().contains("--operation DescribeConfigs --topic"), "{topic:?}");
    }
}

/// The only sink ends walcast without the right that the docs name for it, which says so, and is filled anew with it.
async fn filled_anew_with(
    right: &[String],
    secured: &Secured,
    world: &World,
    mut running: Running,
) -> Running {
    world.walcast(["rebuild", "kafka", "--yes", "--detach"]).await.expect(0, &[]);
    assert_eq!(running.ended().await, Some(2), "{}", running.log.lock().await);
    assert!(running.log.lock().await.contains("WC-220"), "{}", running.log.lock().await);
    secured.acls(right);
    let running = world.start().await;
    wait_until("all rows are sent", async || {
        world.walcast(["backfill", "status"]).await.output.contains("done       50 rows sent to kafka")
    })
    .await;
    world.verify().await;
    running
}

/// Who has a token told by an identity provider.
fn oidc(tokens: &str, secret: &str) -> Value {
    json!({
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "OAUTHBEARER", "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.client.id": "walcast-client", "sasl.oauthbearer.client.secret": secret,
        "sasl.oauthbearer.token.endpoint.url": tokens,
    })
}

/// Gives whoever has the right secret a token of the user walcast; its address.
async fn token_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/token", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = Vec::new();
                while !String::from_utf8_lossy(&asked).contains("grant_type=client_credentials") {
                    if client.read_buf(&mut asked).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let right = format!("Basic {}", STANDARD.encode("walcast-client:right"));
                let answer = match String::from_utf8_lossy(&asked).contains(&right) {
                    true => answer("200 OK", &json!({ "access_token": token(), "token_type": "Bearer" })),
                    false => answer("401 Unauthorized", &json!({ "error": "invalid_client" })),
                };
                let _ = client.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

fn answer(status: &str, body: &Value) -> String {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close");
    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A token that lasts for five minutes and that nobody has signed.
fn token() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({ "sub": "walcast", "iat": now, "exp": now + 300, "scope": "kafka" });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", part(&json!({ "alg": "none" })), part(&claims))
}

async fn a_refused_token_is_named(secured: &Secured) {
    let tokens = token_server().await;
    let world = secured.world(OAUTHBEARER, &oidc(&tokens, "wrong")).await;
    is_refused(&world, "kafka.brokers", 78, "WC-105", &["OAUTHBEARER", "sasl.oauthbearer"]).await;
}

/// This user may not read the brokers' settings. Their release is told before any login, behind TLS that lets in whoever asks.
async fn what_is_not_told_is_not_called_well(world: &World, is_told_its_release: bool) {
    let (_, lines) = check(world).await;
    let version = of(&lines, "kafka.version", "");
    assert_eq!(version.message == "4.2", is_told_its_release, "{version:?}");
    assert!(is_told_its_release || version.message.contains("not told"), "{version:?}");
    let timeout = of(&lines, "kafka.transaction_timeout", "");
    assert!(timeout.verdict == "warn" && timeout.message.contains("not told"), "{timeout:?}");
    let id = of(&lines, "kafka.transactional_id", "");
    assert!(!id.message.contains("no ACLs"), "{id:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secured_broker_lets_in_who_is_allowed_and_says_to_others_why_not() {
    let secured = Secured::start().await;
    wrong_settings_are_named(&secured).await;
    missing_rights_are_named(&secured).await;
    a_refused_token_is_named(&secured).await;
    the_rights_of_the_docs_are_enough(&secured).await;
}
