//! What walcast needs of the source before it can run, looked at without changing anything.

use tokio_postgres::Client;

use crate::error::Result;
use crate::finding::Finding;
use crate::model::{content, engagement};
use crate::source::slot::ServerFacts;
use crate::source::{PostgresConfig, quote, slot, sql};

const VERSION_MIN: i32 = 140_000;

/// How many migrations this walcast's state schema has.
pub const MIGRATIONS: usize = 5;

/// Server, role, tables and state schema.
pub async fn check(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let mut findings = check_server(client, config).await?;
    findings.extend([
        table(client, config, "content", content::column_names().collect()).await?,
        table(client, config, "engagement_events", engagement::column_names().collect()).await?,
        state_schema(client).await?,
    ]);
    Ok(findings)
}

/// The part that must hold before `walcast init` can make the rest.
pub async fn check_server(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let server = slot::server_facts(client).await?;
    Ok(vec![version(&server), wal_level(&server), role(&server, config)])
}

fn version(server: &ServerFacts) -> Finding {
    let version = server.version_num;
    let (subject, message) = ("postgres version", format!("{}.{}", version / 10_000, version % 10_000));
    match version >= VERSION_MIN {
        true => Finding::ok(subject, message),
        false => Finding::fail(subject, message, "walcast needs PostgreSQL 14 or newer"),
    }
}

fn wal_level(server: &ServerFacts) -> Finding {
    let (subject, level) = ("postgres wal_level", &server.wal_level);
    match level.as_str() {
        "logical" => Finding::ok(subject, level.as_str()),
        _ => Finding::fail(
            subject,
            format!("is {level}, logical decoding needs logical"),
            "ALTER SYSTEM SET wal_level = logical, then restart PostgreSQL (managed services have a switch for it)",
        ),
    }
}

fn role(server: &ServerFacts, config: &PostgresConfig) -> Finding {
    let subject = format!("postgres role {}", config.user);
    match server.has_replication_role {
        true => Finding::ok(subject, "may replicate"),
        false => {
            let fix = format!("ALTER ROLE {} REPLICATION", quote::identifier(&config.user));
            Finding::fail(subject, "may not replicate", fix)
        }
    }
}

async fn table(client: &Client, config: &PostgresConfig, table: &str, wanted: Vec<&str>) -> Result<Finding> {
    let query = "SELECT attname::text FROM pg_attribute
                 WHERE attrelid = to_regclass(format('%I.%I', $1::text, $2::text)) AND attnum > 0 AND NOT attisdropped";
    let rows = client.query(query, &[&config.schema, &table]).await.map_err(sql::error)?;
    let columns: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let subject = format!("table {}.{table}", config.schema);
    if columns.is_empty() {
        return Ok(Finding::fail(
            subject,
            "does not exist",
            "run `walcast init`, or set postgres.schema and postgres.db to where it is",
        ));
    }
    let missing: Vec<&str> =
        wanted.into_iter().filter(|name| !columns.iter().any(|column| column == name)).collect();
    Ok(match missing.as_slice() {
        [] => Finding::ok(subject, "has the columns that walcast needs"),
        missing => Finding::fail(
            subject,
            format!("lacks the column(s) {}", missing.join(", ")),
            "add them with ALTER TABLE; the README has the two tables",
        ),
    })
}

async fn state_schema(client: &Client) -> Result<Finding> {
    let query =
        "SELECT to_regclass('walcast.epoch') IS NOT NULL AND has_table_privilege('walcast.epoch', 'UPDATE')";
    let whole: Option<bool> = client.query_one(query, &[]).await.map_err(sql::error)?.get(0);
    let subject = "schema walcast";
    let fix = "run `walcast init` as the owner of the database";
    if whole != Some(true) {
        return Ok(Finding::fail(subject, "does not exist, or this role may not write to it", fix));
    }
    let applied: i64 =
        client.query_one("SELECT count(*) FROM walcast.migration", &[]).await.map_err(sql::error)?.get(0);
    Ok(match applied < MIGRATIONS as i64 {
        true => Finding::fail(subject, "is that of an older walcast", fix),
        false => Finding::ok(subject, "is there"),
    })
}
