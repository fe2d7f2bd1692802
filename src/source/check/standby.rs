//! The standbys: whether PostgreSQL waits for one before it sends anything, and whether the slot is there after a failover.

use tokio_postgres::Client;

use crate::error::Result;
use crate::finding::Finding;
use crate::source::PostgresConfig;
use crate::source::quote::literal;
use crate::source::sql::{self, get};

/// What is to be told of the standbys of a failover slot. Those are asked that `postgres.host` names too.
pub(super) async fn findings(client: &Client, config: &PostgresConfig) -> Result<Vec<Finding>> {
    let mut findings: Vec<Finding> = awaited(client).await?.into_iter().collect();
    let hosts = config.each_host();
    if hosts.len() > 1 {
        for host in &hosts {
            findings.extend(standby(host).await);
        }
    }
    Ok(findings)
}

/// The standbys that it waits for in vain.
async fn awaited(client: &Client) -> Result<Option<Finding>> {
    let rows =
        client.query(include_str!("../../../sql/missing_standbys.sql"), &[]).await.map_err(sql::error)?;
    let missing = rows.iter().map(|row| Ok((get::<String>(row, 0)?, get::<bool>(row, 1)?)));
    let missing: Vec<(String, bool)> = missing.collect::<Result<_>>()?;
    if missing.is_empty() {
        return Ok(None);
    }
    let row = client.query_one("SELECT current_setting('synchronized_standby_slots', true)", &[]).await;
    let all: String = get(&row.map_err(sql::error)?, 0)?;
    let named = |word: &&str| missing.iter().all(|(name, _)| name != word.trim_matches([' ', '"']));
    let rest: Vec<&str> = all.split(',').map(str::trim).filter(named).collect();
    let how = |(name, exists): &(String, bool)| match exists {
        true => format!("{name}, which no standby reads"),
        false => format!("{name}, which does not exist"),
    };
    let told: Vec<String> = missing.iter().map(how).collect();
    let message =
        format!("names {}: PostgreSQL sends walcast nothing that its standby does not have", told.join("; "));
    let fix = format!(
        "ALTER SYSTEM SET synchronized_standby_slots = {}; SELECT pg_reload_conf();",
        literal(&rest.join(", "))
    );
    let (id, subject) = ("postgres.standbys_awaited", "postgres synchronized_standby_slots");
    Ok(Some(Finding::warn(id, subject, message, fix)))
}

/// What one of several hosts says; nothing where it is the primary.
async fn standby(host: &PostgresConfig) -> Option<Finding> {
    let (id, subject) = ("postgres.standby", format!("standby {}:{}", host.host, host.port));
    match kept(host).await {
        Ok(Some(Kept::Yes)) => Some(Finding::ok(id, subject, format!("keeps slot {}", host.slot))),
        Ok(Some(Kept::No { message, fix })) => Some(Finding::warn(id, subject, message, fix)),
        Ok(None) => None,
        Err(error) => {
            let message = format!("cannot be asked: {}", error.chain());
            Some(Finding::warn(id, subject, message, "start it, or take it out of postgres.host"))
        }
    }
}

enum Kept {
    Yes,
    No { message: String, fix: String },
}

async fn kept(host: &PostgresConfig) -> Result<Option<Kept>> {
    let client = sql::connect(host).await?;
    let row = client.query_one(include_str!("../../../sql/check_standby.sql"), &[&host.slot]).await;
    let row = row.map_err(sql::error)?;
    let (in_recovery, exists, synced): (bool, bool, Option<bool>) =
        (get(&row, 0)?, get(&row, 1)?, get(&row, 2)?);
    let (temporary, invalid): (bool, Option<String>) = (get(&row, 3)?, get(&row, 4)?);
    let (syncs, names_database): (Option<bool>, Option<bool>) = (get(&row, 5)?, get(&row, 7)?);
    // version 19 says it of each slot
    let skipped: Option<String> = get(&row, 6)?;
    let skipped = skipped.filter(|reason| reason != "none").map(|reason| format!(" ({reason})"));
    let skipped = skipped.unwrap_or_default();
    if !in_recovery {
        return Ok(None);
    }
    let slot = &host.slot;
    let there = format!(" -- at {}:{}", host.host, host.port);
    let no = |message: String, fix: &str| Ok(Some(Kept::No { message, fix: format!("{fix}{there}") }));
    match (exists, synced, syncs) {
        // it was the primary once, or somebody made one
        (true, Some(false), _) => no(
            format!(
                "has a slot {slot} of its own, as a former primary does: as long as it is there PostgreSQL keeps no slot in step on \
                 this standby, and a failover to it loses the slot"
            ),
            &format!("SELECT pg_drop_replication_slot({});", literal(slot)),
        ),
        (true, ..) if invalid.is_some() => no(
            format!(
                "has lost slot {slot} ({}): a failover to it loses the slot",
                invalid.unwrap_or_default()
            ),
            &format!("SELECT pg_drop_replication_slot({});", literal(slot)),
        ),
        (_, _, None) => Ok(None),
        (_, _, Some(false)) => no(
            "keeps no slots: a failover to it loses the slot".into(),
            "ALTER SYSTEM SET sync_replication_slots = on; SELECT pg_reload_conf();",
        ),
        (false, _, Some(true)) if names_database == Some(false) => no(
            "keeps no slots, since its primary_conninfo names no database: a failover to it loses the slot"
                .into(),
            "ALTER SYSTEM SET primary_conninfo = '<as it is> dbname=postgres'; SELECT pg_reload_conf();",
        ),
        (true, _, Some(true)) if !temporary => Ok(Some(Kept::Yes)),
        (_, _, Some(true)) => no(
            format!(
                "does not keep slot {slot} yet{skipped}: it does once that has moved, and the standby has what it needs"
            ),
            "SELECT slot_name, synced, temporary FROM pg_replication_slots; SELECT pg_sync_replication_slots();",
        ),
    }
}
