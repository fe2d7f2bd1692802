//! Stable codes: each failure that an operator can meet has a number that keeps its meaning in every version, and one
//! explanation. `walcast explain`, the log, `walcast check` and docs/reference/errors.md are made from this table.

use super::Kind;

/// What an operator wants to know of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// What happened.
    pub title: &'static str,
    /// Why it happens.
    pub why: &'static str,
    /// What to look at.
    pub look: &'static str,
    /// What to type or to set.
    pub fix: &'static str,
    /// How to know that it is over.
    pub over: &'static str,
}

macro_rules! codes {
    ($($name:ident = $number:literal {
        title: $title:literal,
        why: $why:literal,
        look: $look:literal,
        fix: $fix:literal,
        over: $over:literal $(,)?
    })*) => {
        /// A failure's number. The hundreds are its [`Kind`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Code {
            $(
                #[doc = $title]
                $name = $number,
            )*
        }

        impl Code {
            /// Every code, in the order of their numbers.
            pub const ALL: &[Code] = &[$(Code::$name),*];

            /// What it means, and what to do.
            pub fn explanation(self) -> Explanation {
                match self {
                    $(Code::$name => Explanation { title: $title, why: $why, look: $look, fix: $fix, over: $over },)*
                }
            }
        }
    };
}

codes! {
    Configuration = 100 {
        title: "A setting has a value that cannot be used.",
        why: "The configuration file, an environment variable or an option says something that walcast cannot read or that cannot work.",
        look: "The message names the setting. `walcast config show` prints every setting, its value and where it came from; the environment wins over the file.",
        fix: "Correct the setting as the message says.",
        over: "`walcast config show` ends with exit code 0.",
    }
    ConfigurationUnreadable = 101 {
        title: "A file that the configuration names cannot be read.",
        why: "The file of `--config` (or WALCAST_CONFIG), the one that a variable ending in _FILE names, or one with certificates is not there, may not be read, or has something else in it.",
        look: "`ls -l FILE`, as the user that runs walcast.",
        fix: "Correct the path, or let that user read the file.",
        over: "`walcast config show` ends with exit code 0.",
    }
    UnknownSetting = 102 {
        title: "There is no setting of this name.",
        why: "A name in the configuration file or in the environment is misspelled, or stands in the wrong section.",
        look: "The message has the nearest name. docs/reference/configuration.md has all of them.",
        fix: "Use the right name, or delete the line; a variable of another program is taken away with `env -u NAME walcast …`.",
        over: "`walcast config show` ends with exit code 0.",
    }
    TokenMissing = 103 {
        title: "The page would be open to everybody.",
        why: "`web.listen` is an address that other machines can reach, and `web.token` is empty.",
        look: "`walcast config show | grep web`",
        fix: "Set WEB_TOKEN (web.token) to what `openssl rand -hex 16` prints, or WEB_LISTEN (web.listen) to 127.0.0.1:8080.",
        over: "`walcast run` starts, and says where the dashboard is.",
    }
    TokenRefused = 104 {
        title: "The walcast that runs asks for another token.",
        why: "`web.token` here differs from that of the walcast that listens on `web.listen`.",
        look: "`walcast config show | grep web`, where the other one runs and here.",
        fix: "Set WEB_TOKEN (web.token) to the token of the walcast that runs.",
        over: "`walcast status` shows it.",
    }
    KafkaConnection = 105 {
        title: "Kafka's brokers want another connection than kafka.properties says.",
        why: "The password, the mechanism or the protocol is another, the brokers' certificate is of an authority or a name that is not trusted, or they ask for a certificate.",
        look: "The message has the reason. `openssl s_client -connect HOST:PORT` shows the certificate, if the listener speaks TLS.",
        fix: "Set kafka.brokers, and in kafka.properties security.protocol, sasl.mechanism, sasl.username, sasl.password and ssl.ca.location, as the brokers want them: docs/sinks/kafka.md.",
        over: "`walcast check` says how many brokers answer.",
    }
    Prerequisite = 200 {
        title: "Something that walcast needs is missing or has another shape.",
        why: "A server, a table, a topic or the machine is not as walcast needs it, and trying again would change nothing.",
        look: "`walcast check` lists everything that walcast needs. Below each line that is not ok stands what mends it.",
        fix: "Do what stands below the line that says FAIL.",
        over: "`walcast check` has no line that says FAIL.",
    }
    PostgresLogin = 201 {
        title: "PostgreSQL does not let walcast in.",
        why: "The password is wrong or missing, pg_hba.conf has no line for this user, database and address, or the server asks for a method that walcast refuses to use.",
        look: "PostgreSQL's log has the reason. `walcast config show | grep postgres`",
        fix: "Set POSTGRES_USER and POSTGRES_PASSWORD, or the role's password: ALTER ROLE <user> PASSWORD '…'; or add a line to pg_hba.conf: host <db> <user> <address> scram-sha-256.",
        over: "`walcast check` says that PostgreSQL answers.",
    }
    PostgresTls = 202 {
        title: "TLS with PostgreSQL failed.",
        why: "The server has no TLS, its certificate is not trusted or is of another name, or somebody stands between walcast and the server.",
        look: "`openssl s_client -starttls postgres -connect HOST:PORT` shows the certificate.",
        fix: "Set POSTGRES_SSLROOTCERT (postgres.sslrootcert) to the authority's PEM file, and postgres.host to the name in the certificate; or postgres.sslmode to what the server has.",
        over: "`walcast check` says that PostgreSQL answers.",
    }
    PostgresVersion = 203 {
        title: "This PostgreSQL is too old.",
        why: "walcast needs PostgreSQL 14 or newer.",
        look: "SELECT version();",
        fix: "Upgrade PostgreSQL, or set postgres.host to a newer server.",
        over: "`walcast check` says which version answers.",
    }
    PostgresRights = 204 {
        title: "The PostgreSQL role lacks a right.",
        why: "The role of `postgres.user` may not replicate, read the tables, publish them, or make or write the schema walcast.",
        look: "`walcast check` names each right that is missing.",
        fix: "Run the statement that `walcast check` prints, as the owner or a superuser: ALTER ROLE <user> REPLICATION, or a GRANT.",
        over: "`walcast check` has no line that says FAIL.",
    }
    WalLevel = 205 {
        title: "PostgreSQL does not write what logical decoding needs.",
        why: "wal_level is not logical, nor replica on PostgreSQL 19 or newer, where a slot makes it logical.",
        look: "SHOW wal_level;",
        fix: "ALTER SYSTEM SET wal_level = logical; then restart PostgreSQL. Managed services have a switch for it.",
        over: "SHOW wal_level says logical.",
    }
    PublicationUnfit = 206 {
        title: "The publication is missing, or leaves something out.",
        why: "It lacks one of the two tables, a column that they are nothing without, or one of the four operations, or it has partitions in place of their table.",
        look: "`walcast check` says what is left out.",
        fix: "`walcast init` makes a missing publication. Otherwise run the statement that `walcast check` prints.",
        over: "`walcast check` says that the publication has both tables and all operations.",
    }
    SourceTableUnfit = 207 {
        title: "A source table is missing, lacks a column, or has one of another type.",
        why: "A table or a column that walcast reads was never made, was dropped, renamed, or has a type that cannot be read as what it should be; or the table is a view, unlogged, or has children by INHERITS, whose rows would not come.",
        look: "The message names the column. docs/reference/tables.md has the columns, the types accepted, and what is refused.",
        fix: "Add the column, or give it a type that is accepted; a publication with a column list must have it too.",
        over: "`walcast check` has no line that says FAIL.",
    }
    SlotUnfit = 208 {
        title: "The replication slot belongs to something else.",
        why: "A slot of the name `postgres.slot` exists, and is of another plugin or another database.",
        look: "SELECT slot_name, plugin, database FROM pg_replication_slots;",
        fix: "Set POSTGRES_SLOT (postgres.slot) to another name, or POSTGRES_DB (postgres.db) to the slot's database.",
        over: "`walcast check` says whose the slot is.",
    }
    SlotsExhausted = 209 {
        title: "PostgreSQL has no replication slot to spare.",
        why: "max_replication_slots slots exist already.",
        look: "SELECT slot_name, active, restart_lsn FROM pg_replication_slots;",
        fix: "Drop slots that nobody reads any more: SELECT pg_drop_replication_slot('<slot>'); or raise max_replication_slots and restart PostgreSQL.",
        over: "`walcast init` ends with exit code 0.",
    }
    DatabaseMissing = 210 {
        title: "The database does not exist.",
        why: "`postgres.db` names a database that was dropped, or never made.",
        look: "`psql -l`",
        fix: "Set POSTGRES_DB (postgres.db), or make it: CREATE DATABASE <db>.",
        over: "`walcast check` says that PostgreSQL answers.",
    }
    Pooler = 211 {
        title: "A connection pooler answers instead of PostgreSQL.",
        why: "Poolers such as PgBouncer do not pass replication on.",
        look: "`walcast config show | grep 'postgres.host\\|postgres.port'`",
        fix: "Set POSTGRES_HOST and POSTGRES_PORT to PostgreSQL itself.",
        over: "`walcast check` says that PostgreSQL answers.",
    }
    MigrationFailed = 212 {
        title: "walcast's own tables could not be made or changed.",
        why: "A statement of a migration failed. Nothing of that migration was kept.",
        look: "The message has PostgreSQL's reason: mostly a right that is missing, or a lock that somebody holds.",
        fix: "Remove the cause, and run `walcast init` again.",
        over: "`walcast init` ends with exit code 0.",
    }
    NotInitialised = 213 {
        title: "The slot was not made yet.",
        why: "A command needs the history that begins with the slot, and walcast never ran here.",
        look: "`walcast check`",
        fix: "Run `walcast init`, then `walcast run`.",
        over: "`walcast check` says whose the slot is.",
    }
    StateOtherVersion = 214 {
        title: "walcast's tables in PostgreSQL are of another version of walcast.",
        why: "walcast was upgraded and `walcast init` was not run since, or an older walcast was started after a newer one.",
        look: "`walcast --version`; SELECT * FROM walcast.migration ORDER BY number;",
        fix: "After an upgrade, run `walcast init`: it keeps all that is there. An older walcast cannot go on after a newer one: start the newer one.",
        over: "`walcast check` says that the schema walcast is there.",
    }
    CommitsAwaitWalcast = 215 {
        title: "PostgreSQL's commits would wait for walcast.",
        why: "synchronous_standby_names is * or names walcast, and any stream counts as a standby then. Each commit would wait until every sink has it, and walcast's own commits for themselves: the database would stand still.",
        look: "SHOW synchronous_standby_names; SELECT application_name, sync_state FROM pg_stat_replication;",
        fix: "Name the standbys that commits are to wait for: ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (<standby>)'; SELECT pg_reload_conf(); A standby's name is the application_name of its primary_conninfo, else its cluster_name, else walreceiver.",
        over: "`walcast check` says that no commit waits for walcast.",
    }
    KafkaRefused = 220 {
        title: "Kafka refuses what walcast does.",
        why: "The user is not known or lacks a right, a setting of the broker is in the way, its clock and walcast's differ by too much, or the broker is too old.",
        look: "The message has Kafka's reason, and the topic where it is about one. `walcast check` asks for each right.",
        fix: "Do what `walcast check` prints: mostly a `kafka-acls.sh --add`, or kafka.properties with the right sasl.* settings.",
        over: "`walcast check` has no line on Kafka that says FAIL.",
    }
    KafkaTopicUnfit = 221 {
        title: "A Kafka topic has another shape than walcast needs.",
        why: "The topic has another number of partitions, is not compacted where it must be, or its size limits are too small.",
        look: "`kafka-topics.sh --bootstrap-server \"$KAFKA_BROKERS\" --describe --topic TOPIC`",
        fix: "Run the command that `walcast check` prints, or set KAFKA_TOPIC_PREFIX (kafka.topic_prefix) to another name.",
        over: "`walcast check` says that the topic is as it should be.",
    }
    KafkaTransactionHung = 222 {
        title: "An open transaction holds up Kafka's readers.",
        why: "A producer, perhaps not walcast, has begun a transaction that neither commits nor ends. Readers of committed records wait behind it, and so does walcast when it starts.",
        look: "`kafka-transactions.sh --bootstrap-server \"$KAFKA_BROKERS\" find-hanging --topic TOPIC --partition PARTITION --max-transaction-timeout 1`: it lists those that their coordinator has forgotten. Without a topic it looks at one broker, and without the minutes for 15 of them.",
        fix: "If it is listed, run the `kafka-transactions.sh abort` line that walcast prints. If not, its producer lives: wait for it, or end that producer; an abort would leave readers its second half.",
        over: "`walcast status` no longer names the partition.",
    }
    RedisLogin = 230 {
        title: "Redis does not let walcast in.",
        why: "The password or the user is wrong or missing.",
        look: "`redis-cli -u redis://USER@HOST:PORT ping`",
        fix: "Set REDIS_PASSWORD (redis.password) to the server's requirepass, or with REDIS_USERNAME (redis.username) to the ACL user's.",
        over: "`walcast check` says that Redis answers.",
    }
    RedisRights = 231 {
        title: "The Redis user may not do what walcast does.",
        why: "The ACL of `redis.username` lacks a command or a key pattern.",
        look: "`redis-cli ACL GETUSER <user>`",
        fix: "Run the ACL SETUSER line that walcast prints.",
        over: "`walcast check` has no line on Redis that says FAIL.",
    }
    RedisKeyTaken = 232 {
        title: "Something else uses one of walcast's Redis keys.",
        why: "A key that walcast writes exists and is of another type.",
        look: "`redis-cli TYPE KEY`",
        fix: "Give walcast a database of its own (REDIS_DB, redis.db), or delete the key.",
        over: "`walcast status` shows redis as ok.",
    }
    RedisUnfit = 233 {
        title: "This Redis is not set up as walcast needs it.",
        why: "It is a sentinel or part of a cluster, it may evict keys, or it does not write each change to its disk.",
        look: "`redis-cli INFO server`, `redis-cli CONFIG GET appendfsync`",
        fix: "Do what `walcast check` prints.",
        over: "`walcast check` has no line on Redis that says FAIL.",
    }
    RedisTls = 234 {
        title: "TLS with Redis failed.",
        why: "The server's certificate is not trusted, or is of another name.",
        look: "`openssl s_client -connect HOST:PORT` shows the certificate.",
        fix: "Set REDIS_TLS_CA_FILE (redis.tls_ca_file) to the authority's PEM file, and redis.host to the name in the certificate.",
        over: "`walcast check` says that Redis answers.",
    }
    BigQueryRefused = 240 {
        title: "BigQuery refuses what walcast does.",
        why: "The credentials cannot be used, or the account lacks a role.",
        look: "`walcast check`; the service account's roles in the console.",
        fix: "Give the account BigQuery Data Editor on the dataset and BigQuery Job User on the project; set BIGQUERY_CREDENTIALS_FILE (bigquery.credentials_file).",
        over: "`walcast check` says that BigQuery answers.",
    }
    BigQueryTableUnfit = 241 {
        title: "The BigQuery table has another shape than walcast needs.",
        why: "A column is missing or of another type, or the table is partitioned in another way.",
        look: "`bq show --schema DATASET.engagement_events`",
        fix: "Do what `walcast check` prints, or set BIGQUERY_DATASET (bigquery.dataset) to a fresh one.",
        over: "`walcast check` describes the table as ok.",
    }
    ListenFailed = 250 {
        title: "The address of the page cannot be taken.",
        why: "Something else listens on `web.listen`, or the user may not use that port.",
        look: "`ss -ltnp`",
        fix: "Stop what listens there, or set WEB_LISTEN (web.listen) to another address.",
        over: "`walcast run` says where the dashboard is.",
    }
    DeadLetterNotFound = 251 {
        title: "There is no such dead letter.",
        why: "No dead letter of this slot has the name that was asked for, or it is not in the state that the command needs.",
        look: "`walcast dead-letters list --state any` shows all letters and their states.",
        fix: "Name a letter as the list does, such as bigquery@16/B374D848#7.",
        over: "The command ends with exit code 0.",
    }
    DeadLetterUnfit = 252 {
        title: "A dead letter cannot be sent again as it is.",
        why: "The row is still against the rule that refused it, a field of it could not be read, or it is a row of the content table.",
        look: "`walcast dead-letters show NAME` shows the reason, the row's fields, and which of them could not be read.",
        fix: "Give the fields other values with --set. Of a content row: update the row in PostgreSQL, which brings it again, and discard the letter.",
        over: "`walcast dead-letters replay NAME --dry-run` says that it would send the row.",
    }
    BackfillOpen = 253 {
        title: "Another backfill is open.",
        why: "One of a slot is at work at a time; one that is paused is open too.",
        look: "`walcast backfill status`",
        fix: "Let it end, `walcast backfill resume` it, or `walcast backfill cancel` it.",
        over: "`walcast backfill status` shows none that is running or paused.",
    }
    BackfillUnfit = 254 {
        title: "Rows of before walcast cannot be brought like that.",
        why: "The sink takes no single rows of before (Redis), is not among pipeline.sinks, or the slot was made by a version that did not note which rows were there.",
        look: "`walcast config show` shows the sinks; `SELECT last_id_before FROM walcast.slot` is NULL for such a slot.",
        fix: "Name other sinks, or make a new slot: docs/operate/resync.md.",
        over: "`walcast backfill --dry-run` says what it would bring.",
    }
    RebuildUnconfirmed = 255 {
        title: "A sink would be emptied, and nobody has said yes.",
        why: "`walcast rebuild` and `walcast resync` delete what a sink's target has, and bring the rows that PostgreSQL has now. What PostgreSQL has no more is gone then.",
        look: "The message says what would go, and about how many rows come.",
        fix: "Run it again with --yes. To keep what is there, set another topic prefix or table name first.",
        over: "`walcast backfill status` shows the rebuild.",
    }
    RowsStillCome = 256 {
        title: "The source is still written to.",
        why: "`walcast drain` leaves nothing to be read by the slot, and somebody has written events or contents meanwhile; or a sink has a slot of its own, or rows of before are on their way.",
        look: "`walcast status`; `SELECT usename, query FROM pg_stat_activity WHERE backend_xid IS NOT NULL`",
        fix: "Stop who writes. Let `walcast run` end what the message names. Then run `walcast drain` again.",
        over: "`walcast drain` says that PostgreSQL may be stopped.",
    }
    Unavailable = 300 {
        title: "A server does not answer, or says that it cannot now.",
        why: "It is down, overloaded, or cannot be reached from here. walcast tries again by itself; the slot keeps what was not delivered.",
        look: "`walcast status` names the server, and since when.",
        fix: "See that the server runs and can be reached from here.",
        over: "`walcast status` says ready.",
    }
    PostgresUnreachable = 301 {
        title: "PostgreSQL cannot be reached, or the connection to it broke.",
        why: "The server is down or restarting, the name or the port is wrong, or the network is in the way. walcast tries again by itself.",
        look: "`pg_isready -h HOST -p PORT`; PostgreSQL's log.",
        fix: "Start the server, or set POSTGRES_HOST and POSTGRES_PORT.",
        over: "`walcast status` says streaming.",
    }
    PostgresStandby = 302 {
        title: "This PostgreSQL is a standby.",
        why: "walcast keeps its state in the database and needs the primary.",
        look: "SELECT pg_is_in_recovery();",
        fix: "Set POSTGRES_HOST to the primary, or promote this server: walcast goes on when it is promoted.",
        over: "`walcast status` says streaming.",
    }
    SlotBusy = 303 {
        title: "Another process reads the slot.",
        why: "Only one process can read a slot. A second walcast waits for its turn, and takes over when the first ends.",
        look: "SELECT pid, application_name, client_addr, backend_start FROM pg_stat_replication;",
        fix: "Nothing for a standby instance. Otherwise stop the other process.",
        over: "`walcast status` says streaming.",
    }
    PostgresSilent = 304 {
        title: "PostgreSQL has sent nothing for a minute, though it was asked.",
        why: "The connection is dead although it was not closed: a proxy, a firewall or a machine in between has dropped it. walcast connects anew by itself.",
        look: "The network between walcast and PostgreSQL.",
        fix: "Nothing, unless it comes again and again: then look for what drops idle connections.",
        over: "`walcast status` says streaming.",
    }
    ConnectionsExhausted = 305 {
        title: "PostgreSQL has no connection to spare.",
        why: "max_connections or max_wal_senders is reached. walcast tries again by itself.",
        look: "SELECT pid, application_name, state FROM pg_stat_replication; SELECT count(*) FROM pg_stat_activity;",
        fix: "End connections that nobody needs, or raise max_wal_senders or max_connections and restart PostgreSQL.",
        over: "`walcast status` says streaming.",
    }
    SinkBeginsAnew = 306 {
        title: "The only sink is to be filled anew.",
        why: "`walcast rebuild` was asked for. With other sinks they go on meanwhile; the only one is begun with walcast's next life.",
        look: "`walcast backfill status`",
        fix: "Nothing: walcast starts again by itself.",
        over: "`walcast backfill status` says that rows are sent.",
    }
    KafkaUnreachable = 310 {
        title: "Kafka cannot be reached, or cannot write now.",
        why: "A broker is down, a partition has no leader or too few replicas in sync, or the network is in the way. walcast tries again by itself.",
        look: "`kafka-topics.sh --bootstrap-server \"$KAFKA_BROKERS\" --describe --under-min-isr-partitions`; `walcast status`",
        fix: "Start the broker, or set KAFKA_BROKERS (kafka.brokers).",
        over: "`walcast status` shows kafka as ok.",
    }
    RedisUnreachable = 320 {
        title: "Redis cannot be reached, or does not answer as it should.",
        why: "It is down, restarting or failing over, or the network is in the way. walcast tries again by itself.",
        look: "`redis-cli -h HOST -p PORT ping`; `walcast status`",
        fix: "Start the server, or set REDIS_HOST and REDIS_PORT.",
        over: "`walcast status` shows redis as ok.",
    }
    RedisFull = 321 {
        title: "Redis has no memory left.",
        why: "maxmemory is reached, and walcast's keys must not be evicted.",
        look: "`redis-cli INFO memory`",
        fix: "`redis-cli CONFIG SET maxmemory 2gb`, or move what else lies there. walcast goes on by itself.",
        over: "`walcast status` shows redis as ok.",
    }
    RedisCannotWrite = 322 {
        title: "Redis cannot write to its disk.",
        why: "Its append-only file or its snapshot cannot be written, mostly because the disk is full. It refuses writes until it can.",
        look: "The server's log; `redis-cli INFO persistence`; `df -h`",
        fix: "Make room on the disk. walcast goes on by itself.",
        over: "`walcast status` shows redis as ok.",
    }
    RedisReplica = 323 {
        title: "This Redis is a replica.",
        why: "A failover has made another server the master, or redis.host names the wrong one.",
        look: "`redis-cli INFO replication`",
        fix: "Set REDIS_HOST (redis.host) to the master, or redis.sentinel_addrs and redis.sentinel_master.",
        over: "`walcast status` shows redis as ok.",
    }
    RedisChanged = 324 {
        title: "Redis no longer has what walcast last wrote.",
        why: "It restarted or failed over without its last writes, or somebody deleted or changed walcast's keys. walcast connects anew and reads what is there.",
        look: "The server's log; does somebody delete keys or run FLUSHDB?",
        fix: "Nothing if it was a restart. Otherwise keep others away from walcast's keys.",
        over: "`walcast status` shows redis as ok.",
    }
    RedisNotReplicated = 325 {
        title: "Too few replicas of Redis have what walcast wrote.",
        why: "Fewer replicas follow the master than redis.replicas_min asks for (by default: all that the sentinels take for alive), or one lags. walcast confirms nothing that a failover would lose.",
        look: "`redis-cli INFO replication`",
        fix: "Start the replicas, or lower REDIS_REPLICAS_MIN (redis.replicas_min): 0 takes it that a failover loses the last writes. walcast goes on by itself.",
        over: "`walcast status` shows redis as ok.",
    }
    BigQueryUnreachable = 330 {
        title: "BigQuery cannot be reached, or cannot answer now.",
        why: "The service or the network is in the way, or a quota is used up for the moment. walcast tries again by itself.",
        look: "`walcast status`; the project's quotas in the console.",
        fix: "Nothing, unless it lasts: then look at the network and the quotas.",
        over: "`walcast status` shows bigquery as ok.",
    }
    HttpUnreachable = 335 {
        title: "The HTTP target cannot be reached, or cannot take events now.",
        why: "It is down, overloaded (408, 425, 429, 5xx), too slow, asks to be left alone for a while (Retry-After), or TLS with it fails. walcast tries again by itself.",
        look: "`walcast status`; the target's log; `curl -v -X OPTIONS URL`",
        fix: "See that the target runs and can be reached from here; for TLS set HTTP_TLS_CA_FILE (http.tls_ca_file); for a slow one raise HTTP_TIMEOUT_MS (http.timeout_ms).",
        over: "`walcast status` shows http as ok.",
    }
    HttpRefused = 336 {
        title: "The HTTP target refuses whatever it is sent.",
        why: "The address, the credentials or the form of the requests is wrong (3xx, 401, 403, 404, 405, 410 and the like), or the target refuses every event alike. No event is given up for that; walcast tries again by itself.",
        look: "The message has the status. The target's log says why.",
        fix: "Set HTTP_URL (http.url), HTTP_HEADERS (http.headers) or HTTP_SIGNING_SECRETS (http.signing_secrets) as the target wants them, and start again; or mend the target.",
        over: "`walcast status` shows http as ok.",
    }
    WalcastUnreachable = 340 {
        title: "No walcast answers.",
        why: "No walcast runs here, or it listens at another address.",
        look: "`walcast config show | grep web.listen`",
        fix: "Start `walcast run`, or set WEB_LISTEN (web.listen) as the running one has it.",
        over: "`walcast status` shows it.",
    }
    SinksBehind = 341 {
        title: "Nothing was compared, since the sinks are behind.",
        why: "`walcast verify` waits until every sink has what is to be compared. It waited for as long as it may.",
        look: "`walcast status` shows which sink is behind.",
        fix: "Start `walcast run` if it does not run, or give more time: `walcast verify --wait-seconds 600`.",
        over: "`walcast verify` prints a result.",
    }
    SinkBelowSlot = 401 {
        title: "The slot has moved past what a sink has.",
        why: "The slot was moved by hand, or the sink was restored from an older state, or it was left out of `pipeline.sinks` for a while.",
        look: "`walcast check` shows both positions.",
        fix: "Fill the sink anew: `walcast rebuild kafka`, or whatever its name is; see docs/operate/verify-rebuild.md.",
        over: "`walcast check` shows the sink's position as ok.",
    }
    SinkLostItsData = 402 {
        title: "A sink had data once and has none now.",
        why: "Its checkpoint is gone, or a topic or table that the checkpoint speaks of: it was emptied, deleted, made anew, or walcast writes to another one than before.",
        look: "Is the target the right one? `walcast config show`",
        fix: "Correct the setting, restore a BigQuery table by time travel, or fill the sink anew: `walcast rebuild kafka`, or whatever its name is; see docs/operate/verify-rebuild.md.",
        over: "`walcast check` shows the sink's position as ok.",
    }
    OtherHistory = 403 {
        title: "A sink's checkpoint belongs to another history.",
        why: "The slot was made again, or the target was written from another database or slot. Positions of two histories cannot be compared.",
        look: "The message has both histories.",
        fix: "Give walcast targets of its own, or fill the sink anew: `walcast rebuild kafka`, or whatever its name is; see docs/operate/verify-rebuild.md.",
        over: "`walcast check` shows the sink's position as ok.",
    }
    LostInFailover = 404 {
        title: "A sink has events that a failover lost.",
        why: "A standby was promoted that had not received everything. The sink has events that this PostgreSQL never had.",
        look: "The message says where the server left the old timeline, and what the sink has beyond.",
        fix: "Delete from the sink what lies beyond (walcast prints the statement for BigQuery), or fill it anew: `walcast rebuild kafka`, or whatever its name is; see docs/operate/verify-rebuild.md.",
        over: "`walcast check` shows the sink's position as ok.",
    }
    SinkAheadOfServer = 405 {
        title: "A sink has events that this PostgreSQL does not have.",
        why: "The server was restored from an older state. New rows would get places that the sink takes for rows it has.",
        look: "The message has the sink's last event and the end of the server's WAL.",
        fix: "Restore the sinks from the same time, or fill them anew from this server: `walcast resync`; see docs/operate/resync.md.",
        over: "`walcast check` shows the sink's position as ok.",
    }
    OtherOrdinalRule = 406 {
        title: "A sink stopped inside a transaction, under another rule of counting.",
        why: "Another version of walcast was killed in the middle of a transaction, and this version counts its changes in another way.",
        look: "The message has both rules.",
        fix: "Run the former version until it has stopped in good order (SIGTERM, exit code 0), then this one.",
        over: "`walcast run` streams.",
    }
    CheckpointUnreadable = 407 {
        title: "A sink's checkpoint cannot be read.",
        why: "A newer walcast has written it, or something else writes where walcast keeps it.",
        look: "The message names the place.",
        fix: "Run the newer version. If something else writes there, keep it away, and fill the sink anew: see docs/operate/verify-rebuild.md.",
        over: "`walcast check` shows the sink's position as ok.",
    }
    ServerForgotInstance = 408 {
        title: "A sink knows of a newer walcast than PostgreSQL does.",
        why: "PostgreSQL was restored from an older state: it has forgotten walcast's last starts.",
        look: "Was this server restored, or is postgres.host an old copy?",
        fix: "Set POSTGRES_HOST to the right server, or restore the sinks from the same time, or fill them anew from this one: `walcast resync --new-slot`; see docs/operate/resync.md.",
        over: "`walcast check` has no line that says FAIL.",
    }
    LaneLost = 409 {
        title: "The slot that a sink alone had is gone or invalidated.",
        why: "The sink had fallen behind and read the WAL by a slot of its own. It kept more than lane.wal_bytes_max, somebody dropped it, PostgreSQL invalidated it (max_slot_wal_keep_size, idle_replication_slot_timeout), or a failover went to a server without it.",
        look: "The message names the slot. The other sinks go on; `walcast status` shows them.",
        fix: "Fill that sink anew: `walcast rebuild kafka`, or whatever its name is; see docs/operate/verify-rebuild.md.",
        over: "`walcast status` shows the sink as ok, and `walcast verify` is clean.",
    }
    SlotGone = 410 {
        title: "The replication slot is gone.",
        why: "Somebody dropped it, or a failover went to a standby that did not have it. The WAL that was not delivered is gone with it.",
        look: "SELECT slot_name FROM pg_replication_slots; the message says where it began.",
        fix: "Stop walcast. `walcast resync` says what it would do: make a new slot, and fill the sinks anew. With --yes it does so.",
        over: "`walcast check` says whose the slot is.",
    }
    SlotInvalidated = 411 {
        title: "PostgreSQL has invalidated the slot.",
        why: "The slot kept more WAL than max_slot_wal_keep_size allows, was idle for longer than idle_replication_slot_timeout, or lost rows it needs.",
        look: "SELECT wal_status, to_jsonb(s) ->> 'invalidation_reason' FROM pg_replication_slots s;",
        fix: "Raise the bound that was passed, and stop walcast. `walcast resync` says what it would do: make a new slot, and fill the sinks anew. With --yes it does so.",
        over: "`walcast check` says whose the slot is.",
    }
    SlotNotOurs = 412 {
        title: "The slot was not made by walcast.",
        why: "A slot of this name exists, and walcast does not know what it has delivered.",
        look: "SELECT * FROM pg_replication_slots;",
        fix: "Set POSTGRES_SLOT (postgres.slot) to another name, or drop it if nobody needs it: SELECT pg_drop_replication_slot('<slot>'). If walcast's schema was lost: `walcast resync`.",
        over: "`walcast check` says whose the slot is.",
    }
    PublicationChanged = 413 {
        title: "The publication, or a table in it, was dropped or leaves something out.",
        why: "While it was so, PostgreSQL left rows out of the stream. A slot cannot read them later, also when all was put back.",
        look: "`walcast check`; who changed the publication?",
        fix: "Put it right, and stop walcast. `walcast resync` says what it would do: make a new slot, and fill the sinks anew. With --yes it does so.",
        over: "`walcast check` has no line that says FAIL.",
    }
    OtherCluster = 414 {
        title: "This database was restored from another cluster.",
        why: "walcast's tables came along with the data; the slot and the WAL they speak of did not.",
        look: "SELECT system_identifier FROM pg_control_system();",
        fix: "Set POSTGRES_HOST to the right server, or begin a new history here: `walcast resync` says what it would do.",
        over: "`walcast check` says whose the slot is.",
    }
    OtherTimeline = 415 {
        title: "This server did not grow out of what walcast has read.",
        why: "postgres.host names a server that was left behind by a failover, or one that was promoted beside the real primary.",
        look: "SELECT timeline_id FROM pg_control_checkpoint();",
        fix: "Set POSTGRES_HOST to the newest primary.",
        over: "`walcast status` says streaming.",
    }
    HistoryForgotten = 416 {
        title: "PostgreSQL no longer knows this slot's history.",
        why: "Somebody deleted its row from walcast's tables, or the schema walcast was dropped, while walcast ran.",
        look: "SELECT * FROM walcast.slot;",
        fix: "See whether that was meant. `walcast resync` says what it would do: make a new slot, and fill the sinks anew. With --yes it does so.",
        over: "`walcast check` says whose the slot is.",
    }
    RebuildUnfinished = 417 {
        title: "A rebuild of Redis is at work, or was broken off.",
        why: "Redis is half filled until a rebuild has ended.",
        look: "Does `walcast rebuild redis` still run?",
        fix: "Wait until it has ended, or run `walcast rebuild redis` again.",
        over: "`walcast check` shows the position of redis as ok.",
    }
    RedisRemains = 418 {
        title: "Redis has counters of walcast and no checkpoint of this slot.",
        why: "They belong to another slot, or their checkpoint was deleted. Adding to them would count twice.",
        look: "`redis-cli KEYS 'walcast:*'`",
        fix: "Give walcast a database of its own (REDIS_DB, redis.db), or run `walcast rebuild redis`, which replaces what walcast keeps there.",
        over: "`walcast check` shows the position of redis as ok.",
    }
    SlotMovedDuringRebuild = 419 {
        title: "The slot has moved past the place where the rebuilt sink would begin.",
        why: "A walcast without this sink reads the slot while the rebuild runs.",
        look: "SELECT active_pid, confirmed_flush_lsn FROM pg_replication_slots;",
        fix: "Stop the other walcast, and run `walcast rebuild redis` again.",
        over: "The rebuild ends with exit code 0.",
    }
    TableWasUnfit = 420 {
        title: "A source table had other columns when rows of it were written.",
        why: "A column was renamed, dropped or given another type, and rows were written meanwhile. A slot reads what was written with the columns of then: to put the column back later changes nothing about these rows.",
        look: "The message names the transaction, the table and its columns of then. `walcast check` says how the table is now.",
        fix: "The rows are kept in the slot. Say in POSTGRES_EVENTS_COLUMNS or POSTGRES_CONTENT_COLUMNS (postgres.events_columns, postgres.content_columns) what the column was called besides, as the message shows, and start again. docs/reference/tables.md has the steps.",
        over: "`walcast run` goes on.",
    }
    Fenced = 500 {
        title: "A newer walcast has taken over.",
        why: "Another instance started with the same slot. Only the newest may write; this one ends and has done no harm.",
        look: "Where else does walcast run? SELECT pid, client_addr FROM pg_stat_replication;",
        fix: "Leave the other one alone, or stop it first.",
        over: "One walcast runs.",
    }
    Lost = 600 {
        title: "A target lost rows that it had accepted and not made durable.",
        why: "It restarted or failed over. The slot still has them: walcast reads them again by itself.",
        look: "`walcast status`",
        fix: "Nothing. If it comes again and again, look at the target's log.",
        over: "`walcast status` shows the sink as ok.",
    }
    Protocol = 900 {
        title: "A server or a stored record says something that walcast does not understand.",
        why: "A defect of walcast, or a server that is not supported.",
        look: "The message and the log around it.",
        fix: "Please report it, with the message, the versions and the log.",
        over: "It does not come again.",
    }
    WalcastBroke = 901 {
        title: "A part of walcast broke down.",
        why: "A defect of walcast. Nothing is lost: the next start goes on from the checkpoints.",
        look: "The log around it.",
        fix: "Start walcast again, and please report it, with the log.",
        over: "It does not come again.",
    }
    RedisKeyUnreadable = 902 {
        title: "One of walcast's Redis keys has something that walcast did not write.",
        why: "Something else writes to walcast's keys.",
        look: "The message names the key.",
        fix: "Give walcast a database of its own (REDIS_DB, redis.db), and run `walcast rebuild redis`.",
        over: "`walcast check` shows the position of redis as ok.",
    }
}

impl Code {
    /// Whether it is about PostgreSQL, the slot, our own settings or another walcast, and so about every sink.
    pub fn concerns_the_source(self) -> bool {
        matches!(self as u16, 100..=219 | 405 | 408 | 410..=416 | 420 | 500..=599)
    }

    /// What kind of failure it is: what may be done about it, and the exit code.
    pub fn kind(self) -> Kind {
        // it ends by itself, or by somebody's command, and nothing here has to be started again
        if self == Code::KafkaTransactionHung {
            return Kind::Unavailable;
        }
        match self as u16 / 100 {
            1 => Kind::Config,
            2 => Kind::Setup,
            3 => Kind::Unavailable,
            4 => Kind::Resync,
            5 => Kind::Fenced,
            6 => Kind::Lost,
            _ => Kind::Protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_explanation_is_whole_and_one_line_a_part() {
        for code in Code::ALL {
            let Explanation { title, why, look, fix, over } = code.explanation();
            for part in [title, why, look, fix, over] {
                assert!(part.len() > 5 && !part.contains('\n') && !part.contains("README"), "{code}: {part}");
            }
            assert!(title.len() < 90 && title.ends_with('.'), "{code}: {title}");
        }
    }
}
