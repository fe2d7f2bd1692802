//! Two PostgreSQL servers, of which one follows the other.

use tokio_postgres::Client;
use walcast::source::{PostgresConfig, sql};

use super::services;
use super::world::World;
use super::{run, wait_until};

/// A primary and its standby, which keeps slots too.
pub struct Pair {
    /// What `scripts/services` calls the two.
    pub labels: [String; 2],
    pub primary: PostgresConfig,
    pub standby: PostgresConfig,
}

impl Pair {
    /// Of PostgreSQL 17, the first whose standbys keep slots.
    pub async fn new(name: &str) -> Pair {
        Pair::of("17", name).await
    }

    pub async fn of(version: &str, name: &str) -> Pair {
        let labels = [format!("{version}:{name}-primary"), format!("{version}:{name}-standby")];
        let [primary, standby] = &labels;
        for label in [primary, standby] {
            services::command(&["postgres", label, "wipe"]);
        }
        let server = services::postgres(primary, &[]);
        run(&sql::connect(&server).await.unwrap(), "SELECT pg_create_physical_replication_slot('standby')")
            .await;
        services::command(&["postgres", primary, "down"]);
        services::command(&["postgres", standby, "copy", primary, "standby"]);
        services::postgres(primary, &[]);
        let settings = standby_of(&server);
        let standby = services::postgres(standby, &settings.each_ref().map(String::as_str));
        Pair { labels, primary: server, standby }
    }

    /// The same world after a failover.
    pub fn after(&self, world: &World) -> World {
        let mut world = world.clone();
        world.postgres.port = self.standby.port;
        world
    }

    async fn on_standby(&self, world: &World) -> Client {
        sql::connect(&self.after(world).postgres).await.unwrap()
    }

    /// Waits until the standby keeps the slot for good, which takes movement on the primary.
    pub async fn synced(&self, world: &World) {
        self.synced_slot(world, &world.postgres.slot).await;
    }

    /// The same of any slot.
    pub async fn synced_slot(&self, world: &World, slot: &str) {
        let primary = sql::connect(&world.postgres).await.unwrap();
        let standby = self.on_standby(world).await;
        let kept = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = $1";
        wait_until("the standby keeps the slot", async || {
            let move_on = "SELECT pg_log_standby_snapshot(), pg_logical_emit_message(true, 'other', '')";
            run(&primary, move_on).await;
            let row = standby.query_opt(kept, &[&slot]).await.unwrap();
            row.is_some_and(|row| row.get(0))
        })
        .await;
    }

    /// Waits until the standby has all that the primary has, and the slot where it is there.
    pub async fn level(&self, world: &World) {
        let (end, confirmed) = (world.wal_end().await, world.confirmed_lsn().await);
        let standby = self.on_standby(world).await;
        wait_until("the standby has the primary's WAL", async || {
            let replayed = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
            standby.query_one(replayed, &[&end.to_string()]).await.unwrap().get(0)
        })
        .await;
        wait_until("the standby has the slot's place", async || {
            self.after(world).confirmed_lsn().await >= confirmed
        })
        .await;
    }

    pub fn kill_primary(&self) {
        services::command(&["postgres", &self.labels[0], "kill"]);
    }

    pub async fn promote(&self) {
        let standby = sql::connect(&self.standby).await.unwrap();
        assert!(standby.query_one("SELECT pg_promote()", &[]).await.unwrap().get::<_, bool>(0));
    }

    pub fn wipe(&self) {
        for label in &self.labels {
            services::command(&["postgres", label, "wipe"]);
        }
    }
}

/// The settings of a standby of this server, which keeps its slots too.
pub fn standby_of(server: &PostgresConfig) -> [String; 4] {
    let source = format!(
        "primary_conninfo='host={} port={} user={} password={} dbname=postgres'",
        server.host,
        server.port,
        server.user,
        server.password.expose()
    );
    let others = ["primary_slot_name=standby", "hot_standby_feedback=on", "sync_replication_slots=on"];
    let [slot, feedback, sync] = others.map(str::to_owned);
    [source, slot, feedback, sync]
}
