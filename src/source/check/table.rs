//! How the two tables must be so that their changes can be told apart and read.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::error::{Code, Result};
use crate::event::place::{Place, Places};
use crate::event::schema::CONTENT;
use crate::event::time::time_text;
use crate::finding::Finding;
use crate::pgoutput::{Column, oid};
use crate::source::quote::identifier;
use crate::source::slot::{self, ColumnFacts, PublicationFacts, PublishedTable};
use crate::source::sql::{self, get};
use crate::source::{PostgresConfig, rows};

/// A table, as `sql/check_table.sql` tells.
struct Table<'a> {
    place: &'a Place,
    columns: Vec<ColumnFacts>,
    replica_identity: String,
    primary_key: Vec<String>,
    identity_columns: Vec<String>,
    generated: Vec<String>,
    may_use_schema: bool,
    may_read: bool,
    /// Whose transaction a row is of, by which `walcast verify` and `rebuild` know what was there before.
    may_read_xmin: bool,
    /// Policies of row-level security hold for our role.
    filtered: bool,
    /// `relkind`.
    kind: String,
    unlogged: bool,
    /// Tables that inherit from it and are no partitions, as SQL.
    children: Vec<String>,
    /// Partitions whose changes are not in the WAL, as SQL.
    not_logged: Vec<String>,
    /// Partitions whose old rows are known by nothing, as SQL.
    without_identity: Vec<String>,
    /// An index gives its rows in the order of their ids.
    ordered_by_id: bool,
    /// Our publication has it already.
    published: bool,
}

/// What must be so of the tables before they can be streamed.
pub(super) async fn streamable(
    client: &Client,
    config: &PostgresConfig,
    places: &Places,
) -> Result<Vec<Finding>> {
    let told = |(place, table): (&Place, Option<Table<'_>>)| match table {
        Some(table) => table.streamable(config),
        None => vec![missing(place, config)],
    };
    Ok(ask(client, config, places).await?.into_iter().flat_map(told).collect())
}

/// What must be so of the tables that are there before they can be published and read.
pub(super) async fn usable(
    client: &Client,
    config: &PostgresConfig,
    places: &Places,
) -> Result<Vec<Finding>> {
    let tables = ask(client, config, places).await?;
    let there = tables.iter().filter_map(|(_, table)| table.as_ref());
    let mut findings: Vec<Finding> =
        there.flat_map(|table| [table.streamable(config), table.usable(config)].concat()).collect();
    findings.extend(filters(client, config, places).await?);
    Ok(findings)
}

/// The columns of a row filter may be others than those that walcast reads, and our role must be let read them as well.
async fn filters(client: &Client, config: &PostgresConfig, places: &Places) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for place in places.all().into_iter().filter(|place| place.row_filter.is_some()) {
        let nothing = format!("SELECT 1 FROM {}{} LIMIT 0", place.sql(), rows::only(place, None));
        let refused = client.execute(&nothing, &[]).await.map_err(sql::error).err();
        // what else may be wrong has a finding of its own
        if refused.is_some_and(|error| error.code() == Code::PostgresRights) {
            findings.push(Finding::fail(
                Code::PostgresRights,
                "postgres.rights",
                format!("rights of {} on {}", config.user, place.name),
                format!("may not read the columns of the row filter of {}", config.publication),
                format!("GRANT SELECT ON {} TO {};", place.sql(), identifier(&config.user)),
            ));
        }
    }
    Ok(findings)
}

/// What an operator should know of the tables that are there.
pub(super) async fn findings(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let publication = slot::publication(client, config).await?;
    let places = publication.map_or_else(|| config.places(), |publication| publication.places);
    let tables = ask(client, config, &places).await?;
    findings.extend(tables.iter().flat_map(|(_, table)| table.iter().flat_map(|table| table.usable(config))));
    findings.extend(tables.iter().flat_map(|(_, table)| table.iter().flat_map(Table::extra_columns)));
    findings.extend(tables.iter().filter_map(|(_, table)| table.as_ref()?.partitions()));
    findings.extend(tables.iter().filter_map(|(_, table)| table.as_ref()?.index()));
    findings.extend(filters(client, config, &places).await?);
    let places = slot::now(client, &places).await?;
    findings.extend(unreadable_content(client, &places.content).await);
    findings.extend(local_times(client, &tables).await?);
    findings.extend(places.all().into_iter().flat_map(|place| left_out(config, place)));
    findings.extend(published_besides(client, config).await?);
    Ok(findings)
}

/// What the publication is made to leave out.
fn left_out(config: &PostgresConfig, place: &Place) -> Vec<Finding> {
    let name = &config.publication;
    let filter = place.row_filter.as_deref().map(|filter| {
        let message = format!("brings the rows that meet {filter}; verify and rebuild read no others");
        Finding::ok("postgres.row_filter", format!("row filter of {name} on {}", place.name), message)
    });
    let absent: Vec<&str> =
        place.columns().filter(|(_, called)| called.is_none()).map(|(column, _)| column.name).collect();
    let columns = (!absent.is_empty()).then(|| {
        let message = "are not there to be read, by what is configured or published: always null";
        Finding::ok("postgres.columns", format!("columns {} of {}", absent.join(", "), place.name), message)
    });
    filter.into_iter().chain(columns).collect()
}

/// Whether PostgreSQL's own database of time zones says of local times what walcast's says. Which days are asked for is of no
/// weight: a rule that another release has changed holds for months.
async fn local_times(client: &Client, tables: &[(&Place, Option<Table<'_>>)]) -> Result<Option<Finding>> {
    let any = tables.iter().find_map(|(place, table)| {
        let column = table.as_ref()?.columns.iter().find(|column| column.is_local_time(place))?;
        Some((place.zone.as_ref()?, format!("{}.{}", place.name, column.name)))
    });
    let Some((zone, column)) = any else { return Ok(None) };
    let (id, subject) = ("postgres.timestamp_zone", format!("time zone {}", zone.name()));
    let fix = "update PostgreSQL, or its system's tzdata, and walcast, so that both have the newest rules";
    let days = "SELECT (extract(epoch FROM local) * 1000000)::bigint, (extract(epoch FROM local AT TIME ZONE $1) * 1000000)::bigint
        FROM generate_series(timestamp '1970-01-01 12:00', localtimestamp + interval '5 years', '1 day') AS local";
    let days = match client.query(days, &[&zone.name()]).await {
        Ok(days) => days,
        Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => {
            return Ok(Some(Finding::warn(id, subject, "is not known to PostgreSQL", fix)));
        }
        Err(error) => return Err(sql::error(error)),
    };
    let mut others = Vec::new();
    for day in &days {
        let (local, instant): (i64, i64) = (get(day, 0)?, get(day, 1)?);
        if zone.instant(local) != instant {
            others.extend(time_text(local));
        }
    }
    let day = |text: &[u8; 27]| String::from_utf8_lossy(text.get(..10).unwrap_or_default()).into_owned();
    Ok(Some(match (others.first(), others.last()) {
        (Some(first), Some(last)) => {
            let message = format!(
                "has other rules in PostgreSQL than in walcast, for {} days from {} to {}: on these, walcast's hold",
                others.len(),
                day(first),
                day(last)
            );
            Finding::warn(id, subject, message, fix)
        }
        _ => {
            Finding::ok(id, subject, format!("is that of {column}, and PostgreSQL has the same rules for it"))
        }
    }))
}

fn missing(place: &Place, config: &PostgresConfig) -> Finding {
    let (setting, schema) = (setting(place), &place.schema);
    let message = format!(
        "does not exist here; postgres.{setting} ({}) says what it is called, and postgres.schema where it is",
        environment_name(setting)
    );
    let (id, subject) = ("postgres.table", format!("table {schema}.{}", place.name));
    let usual = config.places().all().iter().all(|place| place.name == place.table.name);
    let fix = if usual {
        "walcast init".to_owned()
    } else {
        format!("export {}=schema.name", environment_name(setting))
    };
    Finding::fail(Code::SourceTableUnfit, id, subject, message, fix)
}

/// Which setting names the table.
fn setting(place: &Place) -> &'static str {
    if place.table.name == CONTENT.name { "content_table" } else { "events_table" }
}

fn environment_name(setting: &str) -> String {
    format!("POSTGRES_{}", setting.to_uppercase())
}

/// Rows of `content` that walcast leaves out, where a look at them is possible: that a column is missing, or may not be
/// read, has a finding of its own.
async fn unreadable_content(client: &Client, content: &Place) -> Option<Finding> {
    let unreadable = rows::only(content, Some(&format!("NOT ({})", rows::content_is_readable(content))));
    let query = format!("SELECT count(*) FROM {}{unreadable}", content.sql());
    let count: i64 = client.query_one(&query, &[]).await.ok()?.try_get(0).ok()?;
    let (id, subject) = ("postgres.content_rows", format!("rows of {}", content.name));
    Some(match count {
        0 => Finding::ok(id, subject, "can all be read"),
        _ => {
            let message =
                format!("has {count} that walcast leaves out: their events have no title and no length");
            Finding::warn(id, subject, message, format!("SELECT * FROM {}{unreadable};", content.sql()))
        }
    })
}

/// Other tables in the publication are decoded, sent and dropped: walcast's own state too, where all are published.
async fn published_besides(client: &Client, config: &PostgresConfig) -> Result<Option<Finding>> {
    let Some(facts) = slot::publication_facts(client, &config.publication).await? else { return Ok(None) };
    let places = config.places();
    let ours =
        |table: &&PublishedTable| places.all().into_iter().any(|place| place.is(&table.schema, &table.table));
    let others: Vec<&PublishedTable> = facts.tables.iter().filter(|table| !ours(table)).collect();
    let Some(first) = others.first() else { return Ok(None) };
    let message = format!(
        "has {} more tables, such as {}.{}: PostgreSQL sends their changes too, and walcast drops them",
        others.len(),
        first.schema,
        first.table
    );
    let name = identifier(&config.publication);
    let place =
        |table: &&PublishedTable| format!("{}.{}", identifier(&table.schema), identifier(&table.table));
    let (message, fix) = match others.iter().all(|table| table.entry.is_some()) {
        // ours stay as they are: to name them again would make new entries where rows are filtered
        true => {
            let others: Vec<String> = others.iter().map(place).collect();
            (message, format!("ALTER PUBLICATION {name} DROP TABLE {};", others.join(", ")))
        }
        false => (
            message + "; a new slot can read one of the two alone, named in postgres.publication",
            format!(
                "CREATE PUBLICATION walcast_alone FOR TABLE {} WITH (publish_via_partition_root = true);",
                places.all().map(|place| place.sql()).join(", ")
            ),
        ),
    };
    let subject = format!("tables of publication {}", config.publication);
    Ok(Some(Finding::warn("postgres.publication_tables", subject, message, fix)))
}

/// Both tables; `None` for one that is not there.
async fn ask<'a>(
    client: &Client,
    config: &PostgresConfig,
    places: &'a Places,
) -> Result<[(&'a Place, Option<Table<'a>>); 2]> {
    let publication = slot::publication_facts(client, &config.publication).await?;
    let [content, events] = places.all();
    Ok([
        (content, ask_one(client, publication.as_ref(), content).await?),
        (events, ask_one(client, publication.as_ref(), events).await?),
    ])
}

async fn ask_one<'a>(
    client: &Client,
    publication: Option<&PublicationFacts>,
    place: &'a Place,
) -> Result<Option<Table<'a>>> {
    let statement = include_str!("../../../sql/check_table.sql");
    let row = client.query_opt(statement, &[&place.schema, &place.name, &place.called("id")]).await;
    let row = row.map_err(sql::error)?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Table {
        place,
        columns: slot::columns(client, place).await?,
        replica_identity: get(&row, 0)?,
        primary_key: get(&row, 1)?,
        identity_columns: get(&row, 2)?,
        generated: get(&row, 3)?,
        may_use_schema: get(&row, 4)?,
        may_read: get(&row, 5)?,
        may_read_xmin: get(&row, 6)?,
        filtered: get(&row, 7)?,
        kind: get(&row, 8)?,
        unlogged: get(&row, 9)?,
        children: get(&row, 10)?,
        not_logged: get(&row, 11)?,
        without_identity: get(&row, 12)?,
        ordered_by_id: get(&row, 13)?,
        published: publication.is_some_and(|facts| {
            facts.table(place).is_some() || facts.roots.contains(&format!("{}.{}", place.schema, place.name))
        }),
    }))
}

impl Table<'_> {
    fn streamable(&self, config: &PostgresConfig) -> Vec<Finding> {
        [Some(self.shape()), self.kind(), self.generated(config)].into_iter().flatten().collect()
    }

    fn usable(&self, config: &PostgresConfig) -> Vec<Finding> {
        let findings = [Some(self.identity()), self.rights(config), self.row_security(config)];
        findings.into_iter().flatten().collect()
    }

    fn subject(&self) -> String {
        format!("table {}.{}", self.place.schema, self.place.name)
    }

    fn fault(&self, id: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding::fail(Code::SourceTableUnfit, id, self.subject(), message, fix)
    }

    /// Whether it has the columns that walcast needs, in types that it reads.
    fn shape(&self) -> Finding {
        let Table { place, columns, .. } = self;
        let has = |name: &str| columns.iter().any(|column| column.name == name);
        let lacks = place.missing(has).into_iter().map(|(column, called)| {
            let what = match column.name == called {
                true => called.to_owned(),
                false => format!("{called}, which is to be {}", column.name),
            };
            let message = format!(
                "lacks the column {what} ({}); if it has it under another name, {} says so",
                column.sql_type(),
                place.names_variable()
            );
            (message, column.add_to(place, called))
        });
        let other_types = columns.iter().filter_map(|column| {
            let wanted = place.table.columns.get(place.position(&column.name)?)?;
            let misfit = wanted.misfit(place, &column.of_stream())?;
            Some((misfit, wanted.retype_in(place, &column.name)))
        });
        let (messages, fixes): (Vec<_>, Vec<_>) = lacks.chain(other_types).unzip();
        match messages.is_empty() {
            true => Finding::ok("postgres.table", self.subject(), "has the columns that walcast needs"),
            false => self.fault("postgres.table", messages.join("; "), fixes.join(" ")),
        }
    }

    /// What never comes into the WAL, or under a name that is not its own.
    fn kind(&self) -> Option<Finding> {
        let id = "postgres.table_kind";
        let place = self.place.sql();
        if !matches!(self.kind.as_str(), "r" | "p") {
            let message = "is no table: a view and a foreign table have no changes in the WAL";
            return Some(self.fault(
                id,
                message,
                format!("export {}=schema.name", environment_name(setting(self.place))),
            ));
        }
        if self.unlogged && self.kind == "r" {
            return Some(self.fault(
                id,
                "is unlogged: its changes are not in the WAL",
                format!("ALTER TABLE {place} SET LOGGED;"),
            ));
        }
        if let Some(first) = self.not_logged.first() {
            let message =
                format!("has partitions whose changes are not in the WAL: {}", self.not_logged.join(", "));
            return Some(self.fault(id, message, format!("ALTER TABLE {first} SET LOGGED;")));
        }
        let first = self.children.first()?;
        let message = format!(
            "has children by INHERITS ({}), whose rows come under their own names and would be lost; partitions \
             (PARTITION OF) come as rows of the table",
            self.children.join(", ")
        );
        Some(self.fault(id, message, format!("ALTER TABLE {first} NO INHERIT {place};")))
    }

    /// What comes of its partitions. When one was attached, and what it had by then, the catalog does not tell.
    fn partitions(&self) -> Option<Finding> {
        let message = "come as rows of the table; what one had before it was attached never comes, and `walcast verify` calls \
                       it missing";
        let subject = format!("partitions of {}", self.place.name);
        (self.kind == "p").then(|| Finding::ok("postgres.partitions", subject, message))
    }

    /// Rows of before are read in the order of their ids.
    fn index(&self) -> Option<Finding> {
        let (id, subject) = ("postgres.index", format!("indexes of {}", self.place.name));
        if self.is_content() {
            return None;
        }
        if self.ordered_by_id {
            return Some(Finding::ok(
                id,
                subject,
                "one begins with the id, which a backfill or rebuild reads by",
            ));
        }
        let message =
            "none begins with the id: a backfill or rebuild sorts what is left of the table for each read";
        // of a partitioned table it cannot be made beside those who write
        let aside = if self.kind == "p" { "" } else { "CONCURRENTLY " };
        let fix =
            format!("CREATE INDEX {aside}ON {} ({});", self.place.sql(), identifier(self.place.called("id")));
        Some(Finding::warn(id, subject, message, fix))
    }

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
        let Table { place, .. } = self;
        let (id, subject) = ("postgres.replica_identity", format!("replica identity of {}", place.name));
        if let Some(first) = self.without_identity.first() {
            let message = format!(
                "is nothing in the partitions {}: once published, PostgreSQL refuses every UPDATE and DELETE of them",
                self.without_identity.join(", ")
            );
            return self.nothing(id, subject, message, format!("ALTER TABLE {first} REPLICA IDENTITY FULL;"));
        }
        let Some(columns) = self.known_by() else {
            return Finding::ok(id, subject, "is the whole row");
        };
        let ours = place.called("id");
        if columns.iter().any(|column| column == ours) || self.kind == "p" && columns.is_empty() {
            return Finding::ok(id, subject, format!("is {}", columns.join(", ")));
        }
        let place = place.sql();
        let fix = match self.primary_key.as_slice() {
            [] => format!("ALTER TABLE {place} ADD PRIMARY KEY ({});", identifier(ours)),
            [only] if only == ours => format!("ALTER TABLE {place} REPLICA IDENTITY DEFAULT;"),
            _ => format!("ALTER TABLE {place} REPLICA IDENTITY FULL;"),
        };
        match columns {
            [] => {
                let message = "is nothing: once published, PostgreSQL refuses every UPDATE and DELETE of it";
                self.nothing(id, subject, message.to_owned(), fix)
            }
            _ if self.is_content() => Finding::fail(
                Code::SourceTableUnfit,
                id,
                subject,
                format!("is {} without {ours}: a deleted content cannot be told", columns.join(", ")),
                fix,
            ),
            _ => Finding::ok(id, subject, format!("is {}", columns.join(", "))),
        }
    }

    fn is_content(&self) -> bool {
        self.place.table.name == CONTENT.name
    }

    /// To publish such a table would break whoever uses it; where that has been done, events come all the same.
    fn nothing(&self, id: &'static str, subject: String, message: String, fix: String) -> Finding {
        match self.published && !self.is_content() {
            true => Finding::warn(id, subject, message, fix),
            false => Finding::fail(Code::SourceTableUnfit, id, subject, message, fix),
        }
    }

    /// Generated columns are not in the WAL stream.
    fn generated(&self, config: &PostgresConfig) -> Option<Finding> {
        let column = self.generated.iter().find(|column| self.place.position(column).is_some())?;
        let published = identifier(&config.publication);
        Some(Finding::fail(
            Code::SourceTableUnfit,
            "postgres.generated_columns",
            format!("column {}.{column}", self.place.name),
            format!(
                "is generated, and so not in the stream (from PostgreSQL 18 ALTER PUBLICATION {published} SET \
                 (publish_generated_columns = stored) puts it there)"
            ),
            format!("ALTER TABLE {} ALTER COLUMN {} DROP EXPRESSION;", self.place.sql(), identifier(column)),
        ))
    }

    /// A new slot, `walcast verify` and `walcast rebuild` read it with SQL.
    fn rights(&self, config: &PostgresConfig) -> Option<Finding> {
        let (id, subject) = ("postgres.rights", format!("rights of {} on {}", config.user, self.place.name));
        let (role, schema) = (identifier(&config.user), identifier(&self.place.schema));
        let fail =
            |message: &str, fix| Finding::fail(Code::PostgresRights, id, subject.clone(), message, fix);
        if !self.may_use_schema {
            return Some(fail(
                "may not use its schema",
                format!("GRANT USAGE ON SCHEMA {schema} TO {role};"),
            ));
        }
        let is_read = |column: &&ColumnFacts| self.place.reads(&column.name);
        let unreadable = |column: &&ColumnFacts| !column.may_read;
        let read = || self.columns.iter().filter(is_read);
        let mut columns: Vec<String> =
            read().filter(unreadable).map(|column| identifier(&column.name)).collect();
        let all = columns.len() == read().count();
        columns.extend((!self.is_content() && !self.may_read_xmin).then(|| "xmin".to_owned()));
        if self.may_read || columns.is_empty() {
            return Some(Finding::ok(id, subject, "may read it"));
        }
        let what = if all { String::new() } else { format!(" ({})", columns.join(", ")) };
        let message = match all {
            true => "may not read it: a new slot, `walcast verify` and `walcast rebuild` must".to_owned(),
            false => format!(
                "may not read its columns {}: a new slot, `walcast verify` and `walcast rebuild` must",
                columns.join(", ")
            ),
        };
        Some(fail(&message, format!("GRANT SELECT{what} ON {} TO {role};", self.place.sql())))
    }

    /// What becomes of the columns that walcast does not know.
    fn extra_columns(&self) -> Vec<Finding> {
        let id = "postgres.extra_columns";
        let Place { name: table, extra: wanted, .. } = self.place;
        let columns: Vec<Column> = self.columns.iter().map(ColumnFacts::of_stream).collect();
        let (taken, refused) = wanted.split(self.place.unknown(columns.iter().zip(&self.columns)));
        let why_not = |facts: &ColumnFacts| {
            if self.generated.contains(&facts.name) {
                Some("it is generated, and so not in the stream")
            } else if facts.type_oid >= oid::FIRST_USER && !facts.says_text {
                Some("its type has no form that walcast writes: it is always null")
            } else {
                None
            }
        };
        let mut refused: Vec<(&str, &str)> =
            refused.iter().map(|(name, why)| (*name, why.as_str())).collect();
        let mut names = Vec::new();
        for (column, facts) in &taken {
            match why_not(facts) {
                Some(why) => refused.push((&column.name, why)),
                None => names.push(column.name.as_str()),
            }
        }
        let passed_on = (!names.is_empty()).then(|| {
            let subject = format!("columns {} of {table}", names.join(", "));
            Finding::ok(id, subject, "go out as they are, to Kafka and BigQuery")
        });
        let fix = format!("export {}={}", environment_name("extra_columns"), names.join(","));
        let refused = refused.into_iter().map(|(name, why)| {
            let subject = format!("column {name} of {table}");
            Finding::warn(id, subject, format!("does not go out: {why}"), fix.clone())
        });
        let absent = wanted.named().filter(|name| columns.iter().all(|column| column.name != *name));
        let absent = absent.map(|name| {
            let fix = format!("ALTER TABLE {} ADD COLUMN {} text;", self.place.sql(), identifier(name));
            let subject = format!("column {name} of {table}");
            let message = "is not there yet: it goes out from the first row on that has it";
            Finding::warn(id, subject, message, fix)
        });
        passed_on.into_iter().chain(refused).chain(absent).collect()
    }

    /// The stream brings all rows, whatever a policy says; what is read with SQL would be without those that it hides.
    fn row_security(&self, config: &PostgresConfig) -> Option<Finding> {
        self.filtered.then(|| {
            Finding::fail(
                Code::PostgresRights,
                "postgres.row_security",
                format!("row-level security of {}", self.place.name),
                format!(
                    "hides rows from {}: PostgreSQL refuses it what a new slot, a start, `walcast verify` and `walcast \
                     rebuild` must read",
                    config.user
                ),
                format!("ALTER ROLE {} BYPASSRLS;", identifier(&config.user)),
            )
        })
    }
}
