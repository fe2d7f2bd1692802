//! The ways in beside a password over TLS that is asked for: a certificate of ours, TLS at once, a Unix socket; and what is
//! required of a server before it is believed.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use walcast::error::Code;
use walcast::source::{AuthMethod, Binding, PostgresConfig, SslMode, SslNegotiation, sql};

use super::expect;
use super::login::{log_in, with};
use crate::support::certificates::Certificates;
use crate::support::pair::Pair;
use crate::support::{fresh_name, postgres, run, services, wait_until};

/// Every step changes the rules of one server, so they are one test.
#[tokio::test]
async fn a_certificate_of_ours_lets_us_in() {
    let config = services::postgres("17:cert", &[]);
    let folder = Certificates::new();
    let authority = folder.make("authority", &["-newkey", "rsa:2048"], "DNS:authority");
    // its subject is CN=walcast
    let ours = folder.sign("ours", "DNS:walcast", &authority);
    let key = ours.with_extension("key");
    let admin = sql::connect(&config).await.unwrap();
    let setting =
        async |name: &str| -> String { admin.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0) };
    let (data, hba) = (setting("data_directory").await, setting("hba_file").await);
    let trusted = format!("{data}/clients.crt");
    std::fs::copy(&authority, &trusted).unwrap();
    std::fs::set_permissions(&trusted, std::fs::Permissions::from_mode(0o644)).unwrap();
    let rules = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("hostssl all walcast all cert\n{rules}")).unwrap();
    run(&admin, "ALTER SYSTEM SET ssl_ca_file = 'clients.crt'").await;
    run(&admin, "SELECT pg_reload_conf()").await;

    let walcast = PostgresConfig {
        user: "walcast".into(),
        password: String::new().into(),
        ..with(&config, SslMode::Require, None)
    };
    let path = |path: &std::path::Path| path.display().to_string();
    let shown = PostgresConfig { sslcert: path(&ours), sslkey: path(&key), ..walcast.clone() };
    wait_until("the new rules hold", async || sql::connect(&shown).await.is_ok()).await;
    assert!(!log_in(&shown).await.unwrap(), "there is no password to bind");
    expect(log_in(&walcast).await, Code::PostgresLogin, &["28000", "certificate"]);

    // what is required is asked of such a server too
    let bound = PostgresConfig { channel_binding: Binding::Require, ..shown.clone() };
    expect(log_in(&bound).await, Code::PostgresLogin, &["without asking for a password", "channel_binding"]);
    let scram = PostgresConfig { require_auth: vec![AuthMethod::ScramSha256], ..shown.clone() };
    expect(log_in(&scram).await, Code::PostgresLogin, &["without asking for a password", "require_auth"]);
    let none = PostgresConfig { require_auth: vec![AuthMethod::None], ..shown.clone() };
    log_in(&none).await.unwrap();

    // files that will not do
    let locked = folder.path.join("locked.key");
    let lock = ["pkey", "-aes256", "-passout", "pass:secret", "-in", &path(&key), "-out", &path(&locked)];
    assert!(std::process::Command::new("openssl").args(lock).status().unwrap().success());
    let unfit = Code::ConfigurationUnreadable;
    let with_key = |file: &std::path::Path| PostgresConfig { sslkey: path(file), ..shown.clone() };
    expect(log_in(&with_key(&locked)).await, unfit, &["postgres.sslkey", "POSTGRES_SSLPASSWORD"]);
    let unlocked =
        |password: &str| PostgresConfig { sslpassword: password.to_owned().into(), ..with_key(&locked) };
    expect(log_in(&unlocked("wrong")).await, unfit, &["postgres.sslkey", "must be its password"]);
    assert!(!log_in(&unlocked("secret")).await.unwrap(), "there is no password to bind");
    // one that is not needed
    let open = PostgresConfig { sslpassword: "secret".to_owned().into(), ..shown.clone() };
    assert!(!log_in(&open).await.unwrap());
    expect(log_in(&with_key(&folder.path.join("none.key"))).await, unfit, &["postgres.sslkey", "none.key"]);
    expect(log_in(&with_key(&authority.with_extension("key"))).await, unfit, &["postgres.sslcert"]);
    let no_certificate = PostgresConfig { sslcert: path(&key), ..shown };
    expect(log_in(&no_certificate).await, unfit, &["postgres.sslcert"]);

    run(&admin, "ALTER SYSTEM RESET ssl_ca_file").await;
    std::fs::write(&hba, rules).unwrap();
    drop(admin);
    services::command(&["postgres", "17:cert", "wipe"]);
}

#[tokio::test]
async fn tls_may_begin_at_once() {
    let direct = |config: &PostgresConfig| PostgresConfig {
        sslnegotiation: SslNegotiation::Direct,
        channel_binding: Binding::Require,
        ..with(config, SslMode::Require, None)
    };
    assert!(log_in(&direct(&postgres())).await.unwrap(), "the login is bound");
    // an older server takes it for a startup packet of nobody's
    let older = services::postgres("16", &[]);
    expect(log_in(&direct(&older)).await, Code::PostgresUnreachable, &["17", "postgres.sslnegotiation"]);
}

#[tokio::test]
async fn a_socket_of_this_machine_leads_in() {
    let folder = std::env::temp_dir().join(fresh_name("walcast_socket"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let path = folder.display().to_string();
    let config = services::postgres("17:socket", &[&format!("unix_socket_directories='{path}'")]);
    let local = PostgresConfig {
        host: path.clone(),
        password: String::new().into(),
        ..with(&config, SslMode::Disable, None)
    };
    assert!(!log_in(&local).await.unwrap());
    let elsewhere = PostgresConfig { port: config.port + 1, ..local };
    expect(log_in(&elsewhere).await, Code::PostgresUnreachable, &[".s.PGSQL.", "unix_socket_directories"]);
    services::command(&["postgres", "17:socket", "wipe"]);
    std::fs::remove_dir_all(folder).unwrap();
}

/// A dead server, a standby and its primary; and after a failover the standby that was.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_hosts_the_one_that_takes_writes_is_found() {
    let pair = Pair::new("hosts").await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = |port: u16| format!("127.0.0.1:{port}");
    let host = [dead.to_string(), at(pair.standby.port), at(pair.primary.port)].join(",");
    let config = PostgresConfig { host, ..pair.primary.clone() };
    let port = async || {
        log_in(&config).await.unwrap();
        let row = sql::connect(&config).await.unwrap().query_one("SHOW port", &[]).await.unwrap();
        row.get::<_, String>(0)
    };
    let is_up = async |one: &PostgresConfig| sql::connect(one).await.is_ok();
    wait_until("the standby answers", async || is_up(&pair.standby).await).await;
    assert_eq!(port().await, pair.primary.port.to_string());
    // one that takes connections, and never says a word
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let behind_mute = format!("{},{}", mute.local_addr().unwrap(), config.host);
    let behind_mute = PostgresConfig { host: behind_mute, ..config.clone() };
    let begun = std::time::Instant::now();
    log_in(&behind_mute).await.unwrap();
    sql::connect(&behind_mute).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let [primary, standby] = &pair.labels;
    services::command(&["postgres", primary, "kill", "KILL"]);
    let refused = log_in(&config).await;
    expect(refused, Code::PostgresUnreachable, &["none of", "is a standby", &dead.to_string()]);
    run(&sql::connect(&pair.standby).await.unwrap(), "SELECT pg_promote()").await;
    assert_eq!(port().await, pair.standby.port.to_string());
    for label in [primary, standby] {
        services::command(&["postgres", label, "wipe"]);
    }
}
