//! The role `walcast`, which can do what `walcast run` needs: made, with its rights, at each `walcast init`, since tables come,
//! privacy changes, and who ran the first one may not have been allowed to.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::PostgresConfig;
use super::quote::{identifier, literal};
use super::slot::{self, ColumnFacts};
use super::sql;
use crate::error::Result;
use crate::event::place::{Place, Places};
use crate::event::schema::CONTENT;

/// Its name.
pub const NAME: &str = "walcast";

/// On Amazon RDS and Aurora nobody may give a role the attribute REPLICATION; membership in this one serves for it.
const BY_MEMBERSHIP: &str = "rds_replication";

async fn is_by_membership(client: &Client) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)";
    sql::get(&client.query_one(query, &[&BY_MEMBERSHIP]).await.map_err(sql::error)?, 0)
}

/// The statement that lets a role replicate.
pub async fn let_replicate(client: &Client, role: &str) -> Result<String> {
    let role = identifier(role);
    Ok(match is_by_membership(client).await? {
        true => format!("GRANT {BY_MEMBERSHIP} TO {role};"),
        false => format!("ALTER ROLE {role} REPLICATION;"),
    })
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Made {
    /// What is left for somebody who may do it, as SQL.
    pub left: Vec<String>,
    /// Nobody can log in as it.
    pub is_closed: bool,
}

/// Makes it, if it is not there, and gives it its rights, as far as our role may.
pub async fn make(client: &Client, config: &PostgresConfig, places: &Places) -> Result<Made> {
    // nobody grants anything to himself
    if config.user == NAME {
        return Ok(Made::default());
    }
    let there = role(client).await?;
    let wanted = match &there {
        None if is_by_membership(client).await? => {
            format!("CREATE ROLE {NAME} NOLOGIN; GRANT {BY_MEMBERSHIP} TO {NAME};")
        }
        None => format!("CREATE ROLE {NAME} NOLOGIN REPLICATION;"),
        Some(role) if !role.replicates => let_replicate(client, NAME).await?,
        Some(_) => String::new(),
    };
    let mut made = Made::default();
    match client.batch_execute(&wanted).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => made.left.push(wanted),
        // another init was quicker
        Err(error) if is_there(error.code()) => {}
        done => done.map_err(sql::error)?,
    }
    let Some(role) = role(client).await? else { return Ok(Made { is_closed: true, ..made }) };
    made.is_closed = !role.logs_in;
    for Grant { statement, holds } in grants(client, places).await? {
        // who may not grant all of it gets an error, or a warning: what counts is whether it holds
        match client.batch_execute(&statement).await {
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
            granted => granted.map_err(sql::error)?,
        }
        let row = client.query_one(&format!("SELECT {holds}"), &[]).await.map_err(sql::error)?;
        if sql::get::<Option<bool>>(&row, 0)? != Some(true) {
            made.left.push(statement);
        }
    }
    Ok(made)
}

fn is_there(code: Option<&SqlState>) -> bool {
    [SqlState::DUPLICATE_OBJECT, SqlState::UNIQUE_VIOLATION].iter().any(|there| code == Some(there))
}

struct Role {
    logs_in: bool,
    replicates: bool,
}

/// The role, if it is there.
async fn role(client: &Client) -> Result<Option<Role>> {
    let query = "SELECT rolcanlogin, rolreplication OR rolsuper
                   OR EXISTS (SELECT FROM pg_roles AS other WHERE other.rolname = $2 AND pg_has_role($1, other.oid, 'MEMBER'))
                 FROM pg_roles WHERE rolname = $1";
    let row = client.query_opt(query, &[&NAME, &BY_MEMBERSHIP]).await.map_err(sql::error)?;
    row.map(|row| Ok(Role { logs_in: sql::get(&row, 0)?, replicates: sql::get(&row, 1)? })).transpose()
}

/// Rights, and the condition that it has them.
struct Grant {
    statement: String,
    holds: String,
}

async fn grants(client: &Client, places: &Places) -> Result<Vec<Grant>> {
    let state = "pg_class WHERE relnamespace = 'walcast'::regnamespace AND relkind IN ('r', 'p')";
    let mut grants = vec![
        usage("walcast"),
        Grant {
            statement: format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walcast TO {NAME}; \
                 REVOKE INSERT, UPDATE, DELETE ON walcast.migration FROM {NAME};"
            ),
            holds: format!(
                "(SELECT bool_and(has_table_privilege('{NAME}', oid, 'SELECT') AND (relname = 'migration'
                    OR has_table_privilege('{NAME}', oid, 'INSERT') AND has_table_privilege('{NAME}', oid, 'UPDATE')
                       AND has_table_privilege('{NAME}', oid, 'DELETE'))) FROM {state})"
            ),
        },
    ];
    for place in places.all() {
        grants.push(usage(&place.schema));
        grants.push(reading(place, &slot::columns(client, place).await?));
    }
    Ok(grants)
}

fn usage(schema: &str) -> Grant {
    Grant {
        statement: format!("GRANT USAGE ON SCHEMA {} TO {NAME};", identifier(schema)),
        holds: format!("has_schema_privilege('{NAME}', {}, 'USAGE')", literal(schema)),
    }
}

/// Of a table that [privacy] drops a column of, it may read the columns that are read and no others: a right that it had on the
/// whole table is taken back.
fn reading(place: &Place, columns: &[ColumnFacts]) -> Grant {
    let table = place.sql();
    let whole = place.extra.asks_for_all() || place.row_filter.is_some();
    if whole || !columns.iter().any(|column| place.drops(&column.name)) {
        return Grant {
            statement: format!("GRANT SELECT ON {table} TO {NAME};"),
            holds: format!("has_table_privilege('{NAME}', {}, 'SELECT')", literal(&table)),
        };
    }
    let read = columns.iter().map(|column| column.name.as_str()).filter(|name| place.reads(name));
    // whose transaction a row is of, by which is known what was there before walcast
    let xmin = (place.table.name != CONTENT.name).then_some("xmin");
    let read: Vec<&str> = read.chain(xmin).collect();
    let names: Vec<String> = read.iter().map(|name| identifier(name)).collect();
    let may = |name: &&str| {
        format!("has_column_privilege('{NAME}', {}, {}, 'SELECT')", literal(&table), literal(name))
    };
    Grant {
        statement: format!(
            "REVOKE SELECT ON {table} FROM {NAME}; GRANT SELECT ({}) ON {table} TO {NAME};",
            names.join(", ")
        ),
        holds: read.iter().map(may).collect::<Vec<_>>().join(" AND "),
    }
}
