//! What walcast needs of the source before it can run, and what an operator should know of it, looked at without
//! changing anything.

pub mod lanes;
mod making;
mod server;
mod slot;
mod standby;
mod table;

use std::cmp::Ordering;
use std::time::Duration;

use tokio_postgres::Client;

pub use self::making::Making;
use self::server::Server;
use self::slot::Slot;
use crate::error::{Code, Error, Result};
use crate::event::place::Places;
use crate::finding::{self, Finding};
use crate::hop::is_loopback;
use crate::source::connection::Connection;
use crate::source::migrations::MIGRATIONS;
use crate::source::role as source_role;
use crate::source::slot::{self as source_slot, ServerFacts};
use crate::source::{PostgresConfig, SslMode, quote, rows, sql, synchrony};

const VERSION_MIN: i32 = 140_000;
/// Older ones get no fixes any more: version 14 had its last in November 2026.
const VERSION_MAINTAINED: i32 = 150_000;

/// A transaction that is open for longer is told.
pub const TRANSACTION_OPEN_MAX: Duration = Duration::from_secs(300);

/// What `walcast check` tells of the source, beyond what must be so for a start ([`check`]). One part that cannot be
/// looked at is one finding.
pub async fn survey(client: &Client, config: &PostgresConfig, open_max: Duration) -> Vec<Finding> {
    let mut findings = vec![wire(client, config).await];
    match survey_server(client, config).await {
        Ok(told) => findings.extend(told),
        Err(error) => findings.push(Finding::failed("postgres.settings", "postgres settings", &error)),
    }
    match table::findings(client, config).await {
        Ok(told) => findings.extend(told),
        Err(error) => findings.push(Finding::failed("postgres.rights", "postgres tables", &error)),
    }
    match slot::open_transactions(client, open_max).await {
        Ok(told) => findings.extend(told),
        Err(error) => {
            findings.push(Finding::failed("postgres.transactions", "postgres transactions", &error))
        }
    }
    findings
}

async fn survey_server(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let (server, slot) = (Server::ask(client).await?, Slot::ask(client, config).await?);
    let mut findings = server.findings(&config.slot, slot.is_some(), &quote::identifier(&config.user));
    findings.extend(slot.iter().flat_map(|slot| slot.findings(&server)));
    if slot.as_ref().is_some_and(Slot::fails_over) {
        findings.extend(standby::findings(client, config).await?);
    }
    findings.push(recovery(client).await?);
    Ok(findings)
}

/// walcast keeps its state in the database that it reads.
async fn recovery(client: &Client) -> Result<Finding> {
    let (id, subject) = ("postgres.recovery", "postgres recovery");
    let row = client
        .query_one(
            "SELECT pg_is_in_recovery(), (SELECT sender_host FROM pg_stat_wal_receiver),
                    (SELECT sender_port FROM pg_stat_wal_receiver)",
            &[],
        )
        .await
        .map_err(sql::error)?;
    let (standby, host, port): (bool, Option<String>, Option<i32>) =
        (sql::get(&row, 0)?, sql::get(&row, 1)?, sql::get(&row, 2)?);
    if !standby {
        return Ok(Finding::ok(id, subject, "is over: this server takes writes"));
    }
    let (host, port) = (host.unwrap_or_else(|| "<primary>".into()), port.unwrap_or(5432));
    let message = "is going on: this server is a standby, and walcast keeps its state in the primary";
    Ok(Finding::fail(
        Code::PostgresStandby,
        id,
        subject,
        message,
        format!("export POSTGRES_HOST={host} POSTGRES_PORT={port}"),
    ))
}

/// Of a server that lets nobody in: with the statement that lets our role in, where that is what it lacks.
pub fn no_session(config: &PostgresConfig, id: &'static str, subject: String, error: &Error) -> Finding {
    let mut finding = Finding::failed(id, subject, error);
    if error.code() == Code::PostgresRights {
        let (db, role) = (quote::identifier(&config.db), quote::identifier(&config.user));
        finding.fix = Some(format!("GRANT CONNECT ON DATABASE {db} TO {role};"));
    }
    finding
}

/// The replication connection, and what lies under it.
async fn wire(client: &Client, config: &PostgresConfig) -> Finding {
    match Connection::connect(config).await {
        Ok(connection) => tls(config, connection.is_encrypted(), connection.is_channel_bound()),
        Err(error) => {
            let mut finding =
                Finding::failed("postgres.replication", "postgres replication connection", &error);
            if error.code() == Code::PostgresRights {
                finding.fix = source_role::let_replicate(client, &config.user).await.ok().or(finding.fix);
            }
            finding
        }
    }
}

fn tls(config: &PostgresConfig, encrypted: bool, bound: bool) -> Finding {
    let (id, subject) = ("postgres.tls", "postgres connection");
    let proof = match config.sslmode {
        SslMode::VerifyFull => Some("the server's name is proved"),
        SslMode::VerifyCa => Some("the server's authority is proved"),
        SslMode::Require if config.sslrootcert.is_some() => Some("the server's authority is proved"),
        _ => None,
    };
    let fix = "export POSTGRES_SSLMODE=verify-full";
    let is_here = |one: &PostgresConfig| is_loopback(&one.host) || one.is_local_socket();
    match (encrypted, proof, config.each_host().iter().all(is_here)) {
        (true, Some(proof), _) => Finding::ok(id, subject, format!("TLS, {proof}")),
        (true, None, true) => Finding::ok(id, subject, "TLS, on this machine"),
        (false, _, true) => Finding::ok(id, subject, "without TLS, on this machine"),
        (true, None, false) => {
            let message = match bound {
                true => {
                    "TLS, and this login was bound to the server's certificate, but nothing asks that of the next one: \
                     whoever stands between then can read and change all"
                }
                false => {
                    "TLS, but nothing proves that it is the server: whoever stands between can read and change all"
                }
            };
            Finding::warn(id, subject, message, fix)
        }
        (false, _, false) => Finding::warn(id, subject, "without TLS: rows and state travel in clear", fix),
    }
}

/// Server, role, tables and state schema.
pub async fn check(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let mut findings = check_server(client, config).await?;
    findings.extend(table::streamable(client, config, &places(client, config).await?).await?);
    let state = state_schema(client, config).await?;
    let making = making::findings(client, config, state.migrations).await?;
    // who may not make the schema has to be let before `walcast init` does
    if making.iter().all(|finding| finding.id != state.finding.id) {
        findings.push(state.finding);
    }
    findings.extend(making);
    Ok(findings)
}

/// What must hold for a stream to begin. What our role may make is of no weight there: it makes nothing.
pub async fn check_to_stream(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let mut findings = check_server(client, config).await?;
    findings.extend(table::streamable(client, config, &places(client, config).await?).await?);
    findings.push(state_schema(client, config).await?.finding);
    Ok(findings)
}

/// Our tables, with what is published of them where that is known.
async fn places(client: &Client, config: &PostgresConfig) -> Result<Places> {
    let publication = source_slot::publication(client, config).await?;
    Ok(publication.map_or_else(|| config.places(), |publication| publication.places))
}

/// Whether the tables that are there can be published and read, and what is not there may be made.
pub async fn check_before_making(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let mut findings = table::usable(client, config, &places(client, config).await?).await?;
    let state = state_schema(client, config).await?;
    findings.extend(making::findings(client, config, state.migrations).await?);
    findings.extend(Some(state.finding).filter(|finding| finding.code == Some(Code::PostgresRights)));
    Ok(findings)
}

/// The tables as they are now; refused when they, or the rights of our role, are not as they must be.
pub async fn readable(client: &Client, config: &PostgresConfig, places: &Places) -> Result<Places> {
    finding::refuse(&table::streamable(client, config, places).await?)?;
    finding::refuse(&table::usable(client, config, places).await?)?;
    let now = source_slot::now(client, places).await?;
    rows::probe(client, &now).await?;
    Ok(now)
}

/// The part that must hold before `walcast init` can make the rest.
pub async fn check_server(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let server = source_slot::server_facts(client).await?;
    let role = role(client, &server, config).await?;
    Ok(vec![version(&server), wal_level(&server), role, synchrony::finding(client).await?])
}

fn version(server: &ServerFacts) -> Finding {
    let (id, subject, version) = ("postgres.version", "postgres version", &server.version);
    match server.version_num {
        VERSION_MAINTAINED.. => Finding::ok(id, subject, version),
        VERSION_MIN.. => Finding::warn(
            id,
            subject,
            format!("{version}: PostgreSQL 14 ended in November 2026, and gets no fixes any more"),
            "upgrade the server: `walcast drain`, pg_upgrade, `walcast adopt`",
        ),
        _ => Finding::fail(
            Code::PostgresVersion,
            id,
            subject,
            version,
            "upgrade the server: walcast needs PostgreSQL 14 or newer",
        ),
    }
}

fn wal_level(server: &ServerFacts) -> Finding {
    let (id, subject, level) = ("postgres.wal_level", "postgres wal_level", &server.wal_level);
    match (server.can_decode(), level.as_str()) {
        (true, "logical") => Finding::ok(id, subject, "logical"),
        (true, _) => {
            let now = server.effective_wal_level.as_deref().unwrap_or(level);
            let message = format!(
                "{level}, and logical while there is a logical slot; now it is {now} (effective_wal_level)"
            );
            Finding::ok(id, subject, message)
        }
        (false, _) => Finding::fail(
            Code::WalLevel,
            id,
            subject,
            format!(
                "is {level}, and must be logical; PostgreSQL is to be restarted then (managed services have a switch for it)"
            ),
            "ALTER SYSTEM SET wal_level = logical;",
        ),
    }
}

async fn role(client: &Client, server: &ServerFacts, config: &PostgresConfig) -> Result<Finding> {
    let (id, subject) = ("postgres.role", format!("postgres role {}", config.user));
    if server.has_replication_role {
        return Ok(Finding::ok(id, subject, "may replicate"));
    }
    let fix = source_role::let_replicate(client, &config.user).await?;
    Ok(Finding::fail(Code::PostgresRights, id, subject, "may not replicate", fix))
}

/// walcast's own schema.
struct StateSchema {
    finding: Finding,
    /// How many migrations it has; as many as there are where that cannot be seen.
    migrations: i64,
}

async fn state_schema(client: &Client, config: &PostgresConfig) -> Result<StateSchema> {
    let (id, subject) = ("postgres.state", "schema walcast");
    let row =
        client.query_one(include_str!("../../../sql/check_state.sql"), &[]).await.map_err(sql::error)?;
    let (tables, writable, recorded): (i64, bool, bool) =
        (sql::get(&row, 0)?, sql::get(&row, 1)?, sql::get(&row, 2)?);
    if tables == 0 {
        let message = "does not exist; the database's owner can make it";
        let finding = Finding::fail(Code::NotInitialised, id, subject, message, "walcast init");
        return Ok(StateSchema { finding, migrations: 0 });
    }
    let all = MIGRATIONS.len() as i64;
    if !writable {
        let role = quote::identifier(&config.user);
        let fix = format!(
            "GRANT USAGE ON SCHEMA walcast TO {role}; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walcast TO {role};"
        );
        let message = "may not be written by this role";
        let finding = Finding::fail(Code::PostgresRights, id, subject, message, fix);
        return Ok(StateSchema { finding, migrations: all });
    }
    let migrations = match recorded {
        true => {
            let applied = "SELECT count(*) FROM walcast.migration";
            sql::get(&client.query_one(applied, &[]).await.map_err(sql::error)?, 0)?
        }
        false => 0,
    };
    let other_version = |message, fix| Finding::fail(Code::StateOtherVersion, id, subject, message, fix);
    let finding = match migrations.cmp(&all) {
        Ordering::Less => other_version("is that of an older walcast", "walcast init"),
        Ordering::Equal => Finding::ok(id, subject, "is there"),
        Ordering::Greater => other_version("is that of a newer walcast", "start the newer walcast"),
    };
    Ok(StateSchema { finding, migrations })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Verdict;

    #[test]
    fn a_server_that_proves_nothing_is_told_unless_it_is_this_machine() {
        let verdict = |host: &str, sslmode, encrypted| {
            let config = PostgresConfig { host: host.into(), sslmode, ..PostgresConfig::default() };
            // that one login was bound says nothing of the next
            let [bound, unbound] = [true, false].map(|bound| tls(&config, encrypted, bound));
            assert_eq!(bound.verdict, unbound.verdict, "{host}");
            let told = bound.message != unbound.message;
            assert_eq!(told, encrypted && unbound.verdict == Verdict::Warn, "{host}: {}", bound.message);
            unbound.verdict
        };
        for host in ["127.0.0.1", "localhost", "::1", "127.1.2.3"] {
            assert_eq!(verdict(host, SslMode::Disable, false), Verdict::Ok, "{host}");
        }
        for host in ["db.internal", "10.0.0.7", "2001:db8::1", "localhost.example"] {
            assert_eq!(verdict(host, SslMode::Prefer, false), Verdict::Warn, "{host}");
            assert_eq!(verdict(host, SslMode::Require, true), Verdict::Warn, "{host}");
            assert_eq!(verdict(host, SslMode::VerifyCa, true), Verdict::Ok, "{host}");
            assert_eq!(verdict(host, SslMode::VerifyFull, true), Verdict::Ok, "{host}");
        }
    }
}
