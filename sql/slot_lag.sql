-- What the server says of one slot, the same for PostgreSQL 14 to 19: columns that an old one does not have
-- are read through JSON, where they are null. WAL positions are differences from 0/0, so numbers. Without
-- pg_read_all_stats a role sees nothing of the walsender but its pid.
SELECT slot.active,
       slot.active_pid,
       slot.plugin::text,
       slot.database::text,
       slot.two_phase,
       (to_jsonb(slot) ->> 'failover')::boolean AS failover,
       (to_jsonb(slot) ->> 'synced')::boolean AS synced,
       coalesce(slot.wal_status, 'lost') AS wal_status,
       to_jsonb(slot) ->> 'invalidation_reason' AS invalidation_reason,
       slot.safe_wal_size,
       nullif(pg_size_bytes(current_setting('max_slot_wal_keep_size')), -1) AS keep_bytes_max,
       (server.wal_lsn - '0/0')::bigint AS wal_lsn,
       (sender.sent_lsn - '0/0')::bigint AS sent_lsn,
       (slot.confirmed_flush_lsn - '0/0')::bigint AS confirmed_lsn,
       (slot.restart_lsn - '0/0')::bigint AS restart_lsn,
       sender.state AS walsender_state,
       extract(epoch FROM clock_timestamp() - sender.reply_time)::float8 AS reply_age_seconds,
       extract(epoch FROM clock_timestamp() - (to_jsonb(slot) ->> 'inactive_since')::timestamptz)::float8
         AS inactive_seconds,
       age(slot.catalog_xmin)::bigint AS catalog_xmin_age,
       (SELECT max(extract(epoch FROM clock_timestamp() - since))::float8
        FROM (SELECT xact_start AS since FROM pg_stat_activity WHERE backend_xid IS NOT NULL
              UNION ALL SELECT prepared FROM pg_prepared_xacts) AS writing) AS oldest_transaction_seconds,
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_sessions,
       quote_ident(current_user) AS role,
       spilled.spill_txns,
       spilled.spill_bytes,
       (to_jsonb(spilled) ->> 'mem_exceeded_count')::bigint AS memory_exceeded
FROM pg_replication_slots AS slot
     LEFT JOIN pg_stat_replication AS sender ON sender.pid = slot.active_pid
     LEFT JOIN pg_stat_replication_slots AS spilled ON spilled.slot_name = slot.slot_name,
     (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS wal_lsn)
       AS server
WHERE slot.slot_name = $1
