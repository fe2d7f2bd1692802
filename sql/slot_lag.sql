-- What the server says of one slot, the same for PostgreSQL 14 to 18: columns that an old one does not have
-- are read through JSON, where they are null. WAL positions are differences from 0/0, so numbers.
SELECT slot.active,
       coalesce(slot.wal_status, 'lost') AS wal_status,
       slot.safe_wal_size,
       (slot.restart_lsn - '0/0')::bigint AS restart_lsn,
       (slot.confirmed_flush_lsn - '0/0')::bigint AS confirmed_lsn,
       (server.wal_lsn - '0/0')::bigint AS wal_lsn,
       (SELECT (sent_lsn - '0/0')::bigint FROM pg_stat_replication WHERE pid = slot.active_pid) AS sent_lsn,
       extract(epoch FROM clock_timestamp() - (to_jsonb(slot) ->> 'inactive_since')::timestamptz)::float8
         AS inactive_seconds,
       to_jsonb(slot) ->> 'invalidation_reason' AS invalidation_reason
FROM pg_replication_slots AS slot,
     (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS wal_lsn)
       AS server
WHERE slot.slot_name = $1
