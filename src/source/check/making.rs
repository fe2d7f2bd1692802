//! What `walcast init` makes in the database, and whether our role may make it. Where it may not, the statement that mends
//! it is for the owner or a superuser.

use tokio_postgres::{Client, Row};

use crate::error::{Code, Result};
use crate::event::place::Place;
use crate::finding::Finding;
use crate::source::migrations::{MIGRATIONS, making_table};
use crate::source::quote::identifier;
use crate::source::sql::{self, get};
use crate::source::{PostgresConfig, slot};

/// One row of `sql/check_making.sql`.
pub struct Making {
    may_create: bool,
    /// Whether things may be made in the schema walcast; `None` where there is none.
    may_make_in_state: Option<bool>,
    /// Tables in it that belong to another role, as SQL.
    others: Vec<String>,
    /// Of the source tables those that are there.
    tables: Vec<String>,
    /// Of the source tables those that belong to another role.
    tables_of_others: i64,
    /// Schemas in which a source table is missing and may not be made.
    closed_schemas: Vec<String>,
    /// What can be published of the source tables.
    publishable: Vec<Publishable>,
}

/// A row of `sql/check_published_columns.sql`.
struct Publishable {
    schema: String,
    table: String,
    columns: Vec<String>,
    /// `None`: all of its columns are published, or none.
    known_by: Option<Vec<String>>,
}

impl Making {
    /// Asks the server.
    pub async fn ask(client: &Client, config: &PostgresConfig) -> Result<Making> {
        let places = config.places();
        let [schemas, names] =
            [places.all().map(|place| place.schema.as_str()), places.all().map(|place| place.name.as_str())];
        let statement = include_str!("../../../sql/check_making.sql");
        let row = client.query_one(statement, &[&schemas.as_slice(), &names.as_slice()]).await;
        let row = row.map_err(sql::error)?;
        let statement = include_str!("../../../sql/check_published_columns.sql");
        let publishable = client.query(statement, &[&schemas.as_slice(), &names.as_slice()]).await;
        let publishable =
            publishable.map_err(sql::error)?.iter().map(Publishable::of).collect::<Result<_>>()?;
        Ok(Making {
            may_create: get(&row, 0)?,
            may_make_in_state: get(&row, 1)?,
            others: get(&row, 2)?,
            tables: get(&row, 3)?,
            tables_of_others: get(&row, 4)?,
            closed_schemas: get(&row, 5)?,
            publishable,
        })
    }

    /// Whether both source tables are there.
    pub fn has_tables(&self) -> bool {
        self.tables.len() == 2
    }

    /// Whether our role may let others read all source tables that are there.
    pub fn owns_tables(&self) -> bool {
        self.tables_of_others == 0
    }

    /// Of a role that owns the database and these tables.
    #[cfg(test)]
    pub fn of_owner(tables: &[&str]) -> Making {
        Making {
            may_create: true,
            may_make_in_state: None,
            others: Vec::new(),
            tables: tables.iter().map(|name| (*name).to_owned()).collect(),
            tables_of_others: 0,
            closed_schemas: Vec::new(),
            publishable: Vec::new(),
        }
    }

    /// What stands in the way of the schema walcast, or of changing it.
    fn state(&self, role: &str, migrations: i64) -> Option<(&'static str, String)> {
        match self.may_make_in_state {
            None if self.may_create => None,
            None => Some((
                "may not make the schema walcast",
                format!("CREATE SCHEMA walcast AUTHORIZATION {role};"),
            )),
            Some(_) if migrations == MIGRATIONS.len() as i64 => None,
            Some(false) => Some((
                "may not make tables in the schema walcast",
                format!("GRANT USAGE, CREATE ON SCHEMA walcast TO {role};"),
            )),
            Some(true) if self.others.is_empty() => None,
            Some(true) => {
                let change = |table: &String| format!("ALTER TABLE {table} OWNER TO {role};");
                let all: Vec<String> = self.others.iter().map(change).collect();
                Some((
                    "may not change the tables of the schema walcast, which are another role's",
                    all.join(" "),
                ))
            }
        }
    }

    /// A table of ours beside one of another role's would be published by neither.
    fn tables(&self, config: &PostgresConfig, usual: bool) -> Option<(&'static str, String)> {
        let (role, places) = (identifier(&config.user), config.places());
        let schemas: Vec<String> = self.closed_schemas.iter().map(|schema| identifier(schema)).collect();
        match self.tables_of_others {
            _ if !usual || self.has_tables() => None,
            0 if schemas.is_empty() => None,
            0 => Some((
                "may not make the tables",
                format!("GRANT USAGE, CREATE ON SCHEMA {} TO {role};", schemas.join(", ")),
            )),
            _ => {
                let absent = places.all().into_iter().filter(|place| !self.tables.contains(&place.name));
                let making: Vec<String> = absent.map(|place| making_table(place, &places)).collect();
                Some((
                    "may not make the one table and publish the other, which is another role's",
                    making.join(" "),
                ))
            }
        }
    }

    /// Only its owner publishes a table.
    fn publication(&self, config: &PostgresConfig) -> Option<(&'static str, String)> {
        let making = self.making_publication(config);
        let (role, db) = (identifier(&config.user), identifier(&config.db));
        match (self.has_tables(), self.owns_tables()) {
            (true, false) => Some(("may not publish the tables: it does not own them", format!("{making};"))),
            (true, true) if !self.may_create => {
                Some(("may not make a publication in this database", format!("{making};")))
            }
            (false, true) if !self.may_create => Some((
                "may not make a publication in this database",
                format!("GRANT CREATE ON DATABASE {db} TO {role};"),
            )),
            _ => None,
        }
    }

    /// The statement that makes the publication. A table that is partitioned, or will be one day, comes under its own name.
    pub fn making_publication(&self, config: &PostgresConfig) -> String {
        let table = |place: &Place| match self.published_columns(place) {
            Some(columns) => format!("{} ({})", place.sql(), columns.join(", ")),
            None => place.sql(),
        };
        let tables = config.places().all().map(table).join(", ");
        format!(
            "CREATE PUBLICATION {} FOR TABLE {tables} WITH (publish_via_partition_root = true)",
            identifier(&config.publication)
        )
    }

    /// The columns to publish, as SQL; `None` for all. What [privacy] drops need not leave PostgreSQL, and with it stays what
    /// nobody has asked for. Where every column is asked for, those are too that do not exist yet.
    fn published_columns(&self, place: &Place) -> Option<Vec<String>> {
        let found = self.publishable.iter().find(|found| place.is(&found.schema, &found.table))?;
        let known_by = found.known_by.as_ref()?;
        if place.extra.asks_for_all() || !found.columns.iter().any(|name| place.drops(name)) {
            return None;
        }
        let wanted = |name: &&String| place.reads(name) || known_by.contains(name);
        Some(found.columns.iter().filter(wanted).map(|name| identifier(name)).collect())
    }
}

impl Publishable {
    fn of(row: &Row) -> Result<Publishable> {
        Ok(Publishable {
            schema: get(row, 0)?,
            table: get(row, 1)?,
            columns: get(row, 2)?,
            known_by: get(row, 3)?,
        })
    }
}

/// What is missing, and may not be made by our role; nothing where all is there.
pub(super) async fn findings(
    client: &Client,
    config: &PostgresConfig,
    migrations: i64,
) -> Result<Vec<Finding>> {
    let making = Making::ask(client, config).await?;
    let published = slot::publication_facts(client, &config.publication).await?.is_some();
    let role = identifier(&config.user);
    let usual = config.places().all().iter().all(|place| place.name == place.table.name);
    let told = [
        ("postgres.state", making.state(&role, migrations)),
        ("postgres.table", making.tables(config, usual)),
        ("postgres.publication", making.publication(config).filter(|_| !published)),
    ];
    let subject = || format!("what {} may make", config.user);
    let told = told.into_iter().filter_map(|(id, told)| {
        let (message, fix) = told?;
        Some(Finding::fail(Code::PostgresRights, id, subject(), message, fix))
    });
    Ok(told.collect())
}
