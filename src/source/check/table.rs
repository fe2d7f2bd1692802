//! How the two tables must be so that their changes can be told apart and read.

use tokio_postgres::Client;

use crate::error::{Code, Result};
use crate::event::schema::{CONTENT, SOURCE_TABLES, SourceTable};
use crate::finding::Finding;
use crate::source::quote::identifier;
use crate::source::slot::{self, PublishedTable};
use crate::source::sql::{self, get};
use crate::source::{PostgresConfig, rows};

/// A table, as `sql/check_table.sql` tells.
struct Table {
    name: &'static str,
    /// As SQL, with its schema.
    place: String,
    replica_identity: String,
    primary_key: Vec<String>,
    identity_columns: Vec<String>,
    generated: Vec<String>,
    may_read: bool,
    /// Policies of row-level security hold for our role.
    filtered: bool,
}

/// What is so of the tables that are there.
pub(super) async fn findings(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut readable = 0;
    let (mut unreadable, mut filtered) = (Vec::new(), Vec::new());
    for source in SOURCE_TABLES {
        let Some(table) = ask(client, config, source).await? else { continue };
        findings.push(table.identity());
        findings.extend(table.generated(source, config));
        if table.filtered {
            filtered.push(table.place.clone());
        }
        match table.may_read {
            true => readable += 1,
            false => unreadable.push(table.place),
        }
    }
    if readable + unreadable.len() > 0 {
        findings.push(rights(config, &unreadable));
    }
    if !filtered.is_empty() {
        findings.push(row_security(config, &filtered));
    }
    findings.extend(unreadable_content(client, config).await);
    findings.extend(published_besides(client, config).await?);
    Ok(findings)
}

/// Rows of `content` that walcast leaves out, where a look at them is possible: that a column is missing, or may not be
/// read, has a finding of its own.
async fn unreadable_content(client: &Client, config: &PostgresConfig) -> Option<Finding> {
    let (place, readable) = (CONTENT.place(&config.schema), rows::content_is_readable());
    let query = format!("SELECT count(*) FROM {place} WHERE NOT ({readable})");
    let count: i64 = client.query_one(&query, &[]).await.ok()?.try_get(0).ok()?;
    let (id, subject) = ("postgres.content_rows", format!("rows of {}", CONTENT.name));
    Some(match count {
        0 => Finding::ok(id, subject, "can all be read"),
        _ => {
            let message =
                format!("has {count} that walcast leaves out: their events have no title and no length");
            Finding::warn(id, subject, message, format!("SELECT * FROM {place} WHERE NOT ({readable});"))
        }
    })
}

/// Other tables in the publication are decoded, sent and dropped: walcast's own state too, where all are published.
async fn published_besides(client: &Client, config: &PostgresConfig) -> Result<Option<Finding>> {
    let Some(facts) = slot::publication_facts(client, &config.publication).await? else { return Ok(None) };
    let ours = |table: &&PublishedTable| {
        table.schema == config.schema && SOURCE_TABLES.iter().any(|ours| ours.name == table.table)
    };
    let (ours, others): (Vec<_>, Vec<_>) = facts.tables.iter().partition(ours);
    let Some(first) = others.first() else { return Ok(None) };
    let message = format!(
        "has {} more tables, such as {}.{}: PostgreSQL sends their changes too, and walcast drops them",
        others.len(),
        first.schema,
        first.table
    );
    let name = identifier(&config.publication);
    let both = format!("TABLE {}", SOURCE_TABLES.map(|table| table.place(&config.schema)).join(", "));
    let (message, fix) = match ours.iter().all(|table| table.entry.is_some()) {
        true => (message, format!("ALTER PUBLICATION {name} SET {both};")),
        false => (
            message + "; a new slot can read one of the two alone, named in postgres.publication",
            format!("CREATE PUBLICATION walcast_alone FOR {both};"),
        ),
    };
    let subject = format!("tables of publication {}", config.publication);
    Ok(Some(Finding::warn("postgres.publication_tables", subject, message, fix)))
}

async fn ask(client: &Client, config: &PostgresConfig, source: &SourceTable) -> Result<Option<Table>> {
    let (statement, name) = (include_str!("../../../sql/check_table.sql"), source.name);
    let row = client.query_opt(statement, &[&config.schema, &name]).await.map_err(sql::error)?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Table {
        name,
        place: source.place(&config.schema),
        replica_identity: get(&row, 0)?,
        primary_key: get(&row, 1)?,
        identity_columns: get(&row, 2)?,
        generated: get(&row, 3)?,
        may_read: get(&row, 4)?,
        filtered: get(&row, 5)?,
    }))
}

impl Table {
    /// The columns of an old row that are in the WAL; `None` for all of them.
    fn known_by(&self) -> Option<&[String]> {
        match self.replica_identity.as_str() {
            "f" => None,
            "d" => Some(&self.primary_key),
            "i" => Some(&self.identity_columns),
            _ => Some(&[]),
        }
    }

    /// A published table without an identity refuses UPDATE and DELETE of whoever uses it.
    fn identity(&self) -> Finding {
        let Table { name, place, .. } = self;
        let (id, subject) = ("postgres.replica_identity", format!("replica identity of {name}"));
        let Some(columns) = self.known_by() else {
            return Finding::ok(id, subject, "is the whole row");
        };
        if columns.iter().any(|column| column == "id") {
            return Finding::ok(id, subject, format!("is {}", columns.join(", ")));
        }
        let fix = match self.primary_key.as_slice() {
            [] => format!("ALTER TABLE {place} ADD PRIMARY KEY (id);"),
            [only] if only == "id" => format!("ALTER TABLE {place} REPLICA IDENTITY DEFAULT;"),
            _ => format!("ALTER TABLE {place} REPLICA IDENTITY FULL;"),
        };
        match (columns, *name) {
            ([], name) if name == CONTENT.name => Finding::fail(
                Code::SourceTableUnfit,
                id,
                subject,
                "is nothing: once published, PostgreSQL refuses every UPDATE and DELETE of it",
                fix,
            ),
            ([], _) => Finding::warn(
                id,
                subject,
                "is nothing: once published, PostgreSQL refuses every UPDATE and DELETE of it",
                fix,
            ),
            (_, name) if name == CONTENT.name => Finding::fail(
                Code::SourceTableUnfit,
                id,
                subject,
                format!("is {} without id: a deleted content cannot be told", columns.join(", ")),
                fix,
            ),
            _ => Finding::ok(id, subject, format!("is {}", columns.join(", "))),
        }
    }

    /// Generated columns are not in the WAL stream.
    fn generated(&self, source: &SourceTable, config: &PostgresConfig) -> Option<Finding> {
        let Table { name, place, generated, .. } = self;
        let column =
            generated.iter().find(|column| source.column_names().any(|wanted| wanted == **column))?;
        let published = identifier(&config.publication);
        Some(Finding::fail(
            Code::SourceTableUnfit,
            "postgres.generated_columns",
            format!("column {name}.{column}"),
            format!(
                "is generated, and so not in the stream (from PostgreSQL 18 ALTER PUBLICATION {published} SET \
                 (publish_generated_columns = stored) puts it there)"
            ),
            format!("ALTER TABLE {place} ALTER COLUMN {} DROP EXPRESSION;", identifier(column)),
        ))
    }
}

/// The stream brings all rows, whatever a policy says; what is read with SQL would be without those that it hides.
fn row_security(config: &PostgresConfig, filtered: &[String]) -> Finding {
    let message = format!(
        "filters {} for this role: PostgreSQL refuses it what a new slot, a start, `walcast verify` and `walcast rebuild` \
         must read",
        filtered.join(", ")
    );
    let fix = format!("ALTER ROLE {} BYPASSRLS;", identifier(&config.user));
    Finding::fail(Code::PostgresRights, "postgres.row_security", "row-level security", message, fix)
}

fn rights(config: &PostgresConfig, unreadable: &[String]) -> Finding {
    let (id, subject) = ("postgres.rights", format!("rights of {}", config.user));
    if unreadable.is_empty() {
        return Finding::ok(id, subject, "may read the tables");
    }
    let (tables, role) = (unreadable.join(", "), identifier(&config.user));
    let message = format!("may not read {tables}: a new slot, `walcast verify` and `walcast rebuild` must");
    let schema = identifier(&config.schema);
    let fix = format!("GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON {tables} TO {role};");
    Finding::fail(Code::PostgresRights, id, subject, message, fix)
}
