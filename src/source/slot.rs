//! What the server says of itself, the slot and the publication, and whether that will do.

use std::pin::pin;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

use crate::error::{Code, Error, Result};
use crate::event::place::{Place, Places};
use crate::event::zone::Zone;
use crate::lsn::Lsn;
use crate::pgoutput::Column;
use crate::resume::RESYNC;
use crate::source::PostgresConfig;
use crate::source::quote::identifier;
use crate::source::server_error::{Asked, WAL_LEVEL};
use crate::source::sql::{self, get};

/// From this version on a server whose `wal_level` is replica writes what logical decoding needs as long as there is a
/// logical slot; `effective_wal_level` says so.
const LOGICAL_BY_SLOT: i32 = 190_000;

/// How often to say what the making of a slot waits for.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// The server, and what our role may do on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Such as 180006.
    pub version_num: i32,
    /// As it calls itself, such as 18.6 or 19rc1.
    pub version: String,
    /// minimal, replica or logical.
    pub wal_level: String,
    /// What is written now; from version 19.
    pub effective_wal_level: Option<String>,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Whether our role has the right to replicate.
    pub has_replication_role: bool,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Its output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Its database; `None` for a physical slot.
    pub database: Option<String>,
    /// Whether somebody reads it.
    pub active: bool,
    /// The process that reads it.
    pub active_pid: Option<i32>,
    /// Every transaction that ended before is forgotten.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// reserved, extended, unreserved or lost.
    pub wal_status: Option<String>,
    /// Why the slot can deliver no more; from version 17.
    pub invalidation_reason: Option<String>,
}

/// A publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationFacts {
    /// Its OID: another one for the same name means that it was made again.
    pub oid: u32,
    /// Whether it has inserts, updates, deletes and truncates.
    pub operations: Operations,
    /// Whether changes of partitions are published as changes of the partitioned table.
    pub via_root: bool,
    /// Whether all tables are published, whatever there is.
    pub all_tables: bool,
    /// Its tables, partitions in place of their partitioned table unless `via_root`.
    pub tables: Vec<PublishedTable>,
    /// The partitioned tables, `schema.name`, whose partitions are published as tables of their own.
    pub roots: Vec<String>,
    /// The tables that a publication of all tables leaves out; from version 19.
    pub excepted: Vec<PublishedTable>,
    /// Whether it has all sequences as well; from version 19.
    pub all_sequences: bool,
}

/// What a publication publishes of each table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    /// INSERT.
    pub insert: bool,
    /// UPDATE.
    pub update: bool,
    /// DELETE.
    pub delete: bool,
    /// TRUNCATE.
    pub truncate: bool,
}

/// A table in a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// The columns published, where they are listed; from version 15.
    pub columns: Option<Vec<String>>,
    /// The condition that rows must meet, as SQL; from version 15.
    pub row_filter: Option<String>,
    /// The OID of its entry in the publication; `None` when all tables, or all of a schema, are published. One that is left
    /// out of all has an entry too.
    pub entry: Option<u32>,
}

/// Which publication it is: another one with the same name may have left out changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationIdentity {
    /// Its OID: another one for the same name means that it was made again.
    pub oid: u32,
    /// OIDs of its entries for our tables, content first: another one means that the table was out of it for a while.
    pub entries: Vec<Option<u32>>,
}

/// What a publication publishes of our tables.
#[derive(Debug)]
pub struct Publication {
    /// Which it is.
    pub identity: PublicationIdentity,
    /// Our tables, with what is published of them.
    pub places: Places,
    /// What it lacks for walcast.
    pub fault: Option<Error>,
}

/// Asks the server of itself.
pub async fn server_facts(client: &Client) -> Result<ServerFacts> {
    let row = client.query_one(include_str!("../../sql/server_facts.sql"), &[]).await.map_err(sql::error)?;
    Ok(ServerFacts {
        version_num: get(&row, 0)?,
        version: get(&row, 1)?,
        wal_level: get(&row, 2)?,
        effective_wal_level: get(&row, 3)?,
        in_recovery: get(&row, 4)?,
        has_replication_role: get(&row, 5)?,
    })
}

impl ServerFacts {
    /// Refuses a server that is a standby: walcast keeps its state in the database that it reads.
    pub fn check_primary(&self) -> Result<()> {
        match self.in_recovery {
            false => Ok(()),
            true => Err(Error::new(Code::PostgresStandby, "this server is a standby")
                .hint("walcast goes on when it is promoted; or set `postgres.host` to the primary")),
        }
    }

    /// Whether a logical slot can be made and read.
    pub fn can_decode(&self) -> bool {
        match self.wal_level.as_str() {
            "logical" => true,
            "replica" => self.version_num >= LOGICAL_BY_SLOT,
            _ => false,
        }
    }

    /// Refuses a server that cannot decode its WAL now.
    pub fn check_usable(&self) -> Result<()> {
        self.check_primary()?;
        match self.can_decode() {
            true => Ok(()),
            false => {
                let message = format!("wal_level is {}, and must be logical", self.wal_level);
                Err(Error::new(Code::WalLevel, message).hint(WAL_LEVEL))
            }
        }
    }
}

/// The slot, if there is one of that name.
pub async fn facts(client: &Client, slot: &str) -> Result<Option<SlotFacts>> {
    let statement = include_str!("../../sql/slot_facts.sql");
    let row = client.query_opt(statement, &[&slot]).await.map_err(sql::error)?;
    row.as_ref().map(slot_of).transpose()
}

fn slot_of(row: &Row) -> Result<SlotFacts> {
    let lsn = |column| Ok(get::<Option<PgLsn>>(row, column)?.map(|lsn| Lsn(lsn.into())));
    Ok(SlotFacts {
        plugin: get(row, 0)?,
        database: get(row, 1)?,
        active: get(row, 2)?,
        active_pid: get(row, 3)?,
        confirmed_flush_lsn: lsn(4)?,
        wal_status: get(row, 5)?,
        invalidation_reason: get(row, 6)?,
    })
}

impl SlotFacts {
    /// Refuses a slot of another plugin or database, or one that can deliver no more.
    pub fn check_usable(&self, config: &PostgresConfig) -> Result<()> {
        let slot = &config.slot;
        if self.plugin.as_deref() != Some("pgoutput") {
            return Err(Error::new(
                Code::SlotUnfit,
                format!("slot {slot} is not a logical slot of pgoutput"),
            )
            .hint("choose another `postgres.slot`"));
        }
        if self.database.as_deref() != Some(config.db.as_str()) {
            let database = self.database.as_deref().unwrap_or_default();
            let message = format!("slot {slot} belongs to the database {database}, not to {}", config.db);
            return Err(Error::new(Code::SlotUnfit, message)
                .hint("choose another `postgres.slot`, or set `postgres.db` to the slot's database"));
        }
        match self.lost() {
            Some(reason) => Err(slot_lost(config, reason)),
            None => Ok(()),
        }
    }

    /// Why the slot can deliver no more, if that is so.
    pub fn lost(&self) -> Option<&str> {
        self.invalidation_reason
            .as_deref()
            .or_else(|| self.wal_status.as_deref().filter(|status| *status == "lost"))
    }
}

fn slot_lost(config: &PostgresConfig, reason: &str) -> Error {
    let mend = match reason {
        "idle_timeout" => "raise idle_replication_slot_timeout",
        "rows_removed" | "wal_level_insufficient" => "see PostgreSQL's log",
        _ => "raise max_slot_wal_keep_size",
    };
    Error::new(Code::SlotInvalidated, format!("slot {} can deliver no more ({reason})", config.slot))
        .hint(format!("{mend}; {RESYNC}"))
}

/// The publication, if there is one of that name.
pub async fn publication_facts(client: &Client, publication: &str) -> Result<Option<PublicationFacts>> {
    let statement = include_str!("../../sql/publication_facts.sql");
    let rows = match client.query(statement, &[&publication]).await {
        // dropped while it was looked at: the view asks a function, which sees what is there now (PostgreSQL 14 to 18:
        // findings/publication-view-of-two-times.sh)
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => return Ok(None),
        rows => rows.map_err(sql::error)?,
    };
    let Some(first) = rows.first() else { return Ok(None) };
    let (schemas, names, entries): (Vec<String>, Vec<String>, Vec<u32>) =
        (get(first, 13)?, get(first, 14)?, get(first, 15)?);
    let excepted = schemas.into_iter().zip(names).zip(entries);
    let excepted = excepted.map(|((schema, table), entry)| PublishedTable {
        schema,
        table,
        columns: None,
        row_filter: None,
        entry: Some(entry),
    });
    Ok(Some(PublicationFacts {
        oid: get(first, 0)?,
        operations: Operations {
            insert: get(first, 1)?,
            update: get(first, 2)?,
            delete: get(first, 3)?,
            truncate: get(first, 4)?,
        },
        via_root: get(first, 5)?,
        all_tables: get(first, 11)?,
        roots: get(first, 12)?,
        excepted: excepted.collect(),
        all_sequences: get(first, 16)?,
        tables: rows.iter().filter_map(|row| published(row).transpose()).collect::<Result<_>>()?,
    }))
}

fn published(row: &Row) -> Result<Option<PublishedTable>> {
    let (Some(schema), Some(table)) = (get(row, 6)?, get(row, 7)?) else { return Ok(None) };
    Ok(Some(PublishedTable {
        schema,
        table,
        columns: get(row, 8)?,
        row_filter: get(row, 9)?,
        entry: get(row, 10)?,
    }))
}

/// The publication, if there is one of that name, whether or not it is as walcast needs it.
pub async fn publication(client: &Client, config: &PostgresConfig) -> Result<Option<Publication>> {
    let Some(facts) = publication_facts(client, &config.publication).await? else { return Ok(None) };
    let ours = config.places();
    let entry =
        |place: &Place| facts.table(place).or_else(|| facts.excepted(place)).and_then(|table| table.entry);
    let entries = ours.all().map(entry).to_vec();
    let places = Places { content: facts.published(&ours.content), events: facts.published(&ours.events) };
    let identity = PublicationIdentity { oid: facts.oid, entries };
    Ok(Some(Publication { identity, places, fault: facts.check_usable(config).err() }))
}

/// The tables as they are now, by the columns that they have now: what SQL reads.
pub async fn now(client: &Client, places: &Places) -> Result<Places> {
    Ok(Places {
        content: now_of(client, &places.content).await?,
        events: now_of(client, &places.events).await?,
    })
}

async fn now_of(client: &Client, place: &Place) -> Result<Place> {
    let columns = columns(client, place).await?;
    Ok(place.now(|name| columns.iter().any(|column| column.name == name)))
}

/// A column of a table.
#[derive(Debug)]
pub struct ColumnFacts {
    /// Its name.
    pub name: String,
    /// Its type, of a domain the type that it is made of.
    pub type_oid: u32,
    /// Whether our role may read it.
    pub may_read: bool,
    /// Whether its values are texts, labels of an enum, or arrays.
    pub says_text: bool,
}

impl ColumnFacts {
    /// As the stream describes it.
    pub fn of_stream(&self) -> Column {
        Column { name: self.name.clone(), type_oid: self.type_oid, type_modifier: -1, key: false }
    }

    /// Whether it is one of ours, of local times.
    pub fn is_local_time(&self, place: &Place) -> bool {
        let ours = place.position(&self.name).and_then(|at| place.table.columns.get(at));
        ours.is_some_and(|ours| ours.wants_zone(&self.of_stream()))
    }
}

/// The columns of a table; none of one that does not exist.
pub async fn columns(client: &Client, place: &Place) -> Result<Vec<ColumnFacts>> {
    let statement = include_str!("../../sql/check_columns.sql");
    let rows = client.query(statement, &[&place.schema, &place.name]).await.map_err(sql::error)?;
    let column = |row: &Row| {
        let (name, type_oid, may_read) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
        Ok(ColumnFacts { name, type_oid, may_read, says_text: get(row, 3)? })
    };
    rows.iter().map(column).collect()
}

/// The zone of a column's times, where these are local ones.
pub async fn local_times<'a>(client: &Client, place: &'a Place, called: &str) -> Result<Option<&'a Zone>> {
    let columns = columns(client, place).await?;
    let column = columns.iter().find(|column| column.name == called);
    let is_local = column.is_some_and(|column| column.is_local_time(place));
    Ok(place.zone.as_ref().filter(|_| is_local))
}

impl Publication {
    /// Kind `Setup` when it is not as walcast needs it.
    pub fn require_fit(self) -> Result<Publication> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(self),
        }
    }
}

impl PublicationFacts {
    /// Refuses a publication that lacks one of our tables, or a column that they are nothing without, or some of their
    /// changes.
    pub fn check_usable(&self, config: &PostgresConfig) -> Result<()> {
        let name = &config.publication;
        config.places().all().into_iter().try_for_each(|place| self.check_table(config, place))?;
        if self.operations != (Operations { insert: true, update: true, delete: true, truncate: true }) {
            return Err(Error::new(
                Code::PublicationUnfit,
                format!("publication {name} leaves out some operations"),
            )
            .hint(format!(
                "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');",
                identifier(name)
            )));
        }
        Ok(())
    }

    /// What is published of one of our tables.
    pub fn table(&self, place: &Place) -> Option<&PublishedTable> {
        self.tables.iter().find(|one| place.is(&one.schema, &one.table))
    }

    /// Whether it leaves out one of our tables by name.
    pub fn leaves_out_ours(&self, config: &PostgresConfig) -> bool {
        config.places().all().into_iter().any(|place| self.excepted(place).is_some())
    }

    /// One of our tables that it leaves out by name.
    fn excepted(&self, place: &Place) -> Option<&PublishedTable> {
        self.excepted.iter().find(|one| place.is(&one.schema, &one.table))
    }

    fn published(&self, place: &Place) -> Place {
        let table = self.table(place);
        let columns = table.and_then(|table| table.columns.as_deref());
        place.published(columns, table.and_then(|table| table.row_filter.as_deref()))
    }

    /// The statement that publishes our tables too, of those that it leaves out. What else it leaves out or has stays so: SET ALL
    /// TABLES alone would publish tables that their owner keeps to himself, and take the sequences out.
    fn except_no_longer(&self, config: &PostgresConfig) -> String {
        let ours = config.places();
        let is_ours =
            |table: &&PublishedTable| ours.all().iter().any(|place| place.is(&table.schema, &table.table));
        // each that inherits from one of them has its own entry
        let only = |table: &PublishedTable| {
            format!("TABLE ONLY {}.{}", identifier(&table.schema), identifier(&table.table))
        };
        let others: Vec<String> = self.excepted.iter().filter(|table| !is_ours(table)).map(only).collect();
        let except =
            if others.is_empty() { String::new() } else { format!(" EXCEPT ({})", others.join(", ")) };
        let sequences = if self.all_sequences { ", ALL SEQUENCES" } else { "" };
        format!("ALTER PUBLICATION {} SET ALL TABLES{except}{sequences};", identifier(&config.publication))
    }

    fn check_table(&self, config: &PostgresConfig, place: &Place) -> Result<()> {
        let name = &config.publication;
        let (quoted, table) = (identifier(name), format!("{}.{}", place.schema, place.name));
        let unfit =
            |message: String, mend: String| Err(Error::new(Code::PublicationUnfit, message).hint(mend));
        if self.roots.contains(&table) {
            return unfit(
                format!("publication {name} has the partitions of {table} as tables of their own"),
                format!("ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true);"),
            );
        }
        if self.excepted(place).is_some() {
            let message = format!(
                "publication {name} leaves out the table {table} (EXCEPT); where there is a slot already, let `walcast run` see that \
                 before it is mended, so that it asks for what the stream lacks"
            );
            return unfit(message, self.except_no_longer(config));
        }
        let Some(published) = self.table(place) else {
            let mend = match self.all_tables {
                true => format!("see that {table} exists, is a table, and is logged: `walcast check`"),
                false => format!("ALTER PUBLICATION {quoted} ADD TABLE {};", place.sql()),
            };
            return unfit(format!("publication {name} does not have the table {table}"), mend);
        };
        let Some(listed) = &published.columns else { return Ok(()) };
        let lacking = place.missing(|name| listed.iter().any(|listed| listed == name));
        match lacking.into_iter().find(|(column, _)| column.required) {
            None => Ok(()),
            Some((_, column)) => unfit(
                format!("publication {name} leaves out the column {column} of {table}"),
                format!(
                    "BEGIN; ALTER PUBLICATION {quoted} DROP TABLE {0}; ALTER PUBLICATION {quoted} ADD TABLE {0}; COMMIT;",
                    place.sql()
                ),
            ),
        }
    }
}

/// Waits for a slot that is being made, and says what it waits for when that takes long.
pub async fn made<T>(client: &Client, making: impl Future<Output = Result<T>>) -> Result<T> {
    let mut making = pin!(making);
    loop {
        match tokio::time::timeout(SAY_EVERY, &mut making).await {
            Ok(made) => return made,
            Err(_) => say_what_writes(client).await?,
        }
    }
}

/// The transactions that have written and have not ended, the oldest first.
pub async fn what_writes(client: &Client) -> Result<String> {
    let rows =
        client.query(include_str!("../../sql/writing_transactions.sql"), &[]).await.map_err(sql::error)?;
    let holder = |row: &Row| Ok(format!("{} for {} s", get::<String>(row, 0)?, get::<i64>(row, 1)?));
    let holders = rows.iter().map(holder).collect::<Result<Vec<_>>>()?;
    Ok(if holders.is_empty() { "not visible to this role".to_owned() } else { holders.join(", ") })
}

async fn say_what_writes(client: &Client) -> Result<()> {
    let oldest = what_writes(client).await?;
    tracing::warn!(
        oldest,
        "PostgreSQL makes the slot once every transaction that has written has ended; SELECT pg_terminate_backend(pid) ends one"
    );
    Ok(())
}

/// The end of what is written to the WAL, perhaps not on disk yet: whatever has committed lies below.
pub async fn wal_insert_lsn(client: &Client) -> Result<Lsn> {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await.map_err(sql::error)?;
    Ok(Lsn(get::<PgLsn>(&row, 0)?.into()))
}

/// The slots of `synchronized_standby_slots` that nobody reads: PostgreSQL sends no stream beyond what the standbys of
/// these have.
pub async fn missing_standbys(client: &Client) -> Result<Vec<String>> {
    let statement = include_str!("../../sql/missing_standbys.sql");
    client.query(statement, &[]).await.map_err(sql::error)?.iter().map(|row| get(row, 0)).collect()
}

/// Waits while another process reads the slot: this is how a standby instance waits for its turn. `waiting` is called
/// when there is something to wait for; whether there was.
pub async fn wait_until_free(client: &Client, slot: &str, waiting: impl FnOnce()) -> Result<bool> {
    let is_read = async || Ok::<_, Error>(facts(client, slot).await?.is_some_and(|facts| facts.active));
    if !is_read().await? {
        return Ok(false);
    }
    tracing::info!(slot, "another process reads the slot; waiting for its end");
    waiting();
    while is_read().await? {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(true)
}

/// Where the slot begins; `None` when it is gone.
pub async fn confirmed(client: &Client, slot: &str) -> Result<Option<Lsn>> {
    Ok(facts(client, slot).await?.and_then(|facts| facts.confirmed_flush_lsn))
}

/// Drops a slot.
pub async fn drop(client: &Client, slot: &str) -> Result<()> {
    client
        .execute("SELECT pg_drop_replication_slot($1)", &[&slot])
        .await
        .map(std::mem::drop)
        .map_err(|error| sql::error_to(Asked::UseSlot, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_makes_replica_logical_from_19() {
        let usable = |version_num, wal_level: &str| {
            let facts = ServerFacts {
                version_num,
                version: String::new(),
                wal_level: wal_level.into(),
                effective_wal_level: None,
                in_recovery: false,
                has_replication_role: true,
            };
            facts.check_usable().is_ok()
        };
        for (version_num, replica) in [(140_000, false), (180_006, false), (190_000, true), (200_001, true)] {
            assert!(usable(version_num, "logical"));
            assert_eq!(usable(version_num, "replica"), replica, "{version_num}");
            assert!(!usable(version_num, "minimal"));
        }
    }
}
