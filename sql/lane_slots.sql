-- What the server says of the slots that sinks have alone, as slot_lag.sql says it of the walcast slot.
SELECT slot.slot_name::text AS slot,
       slot.active,
       coalesce(slot.wal_status, 'lost') AS wal_status,
       to_jsonb(slot) ->> 'invalidation_reason' AS invalidation_reason,
       coalesce(server.wal_lsn - slot.restart_lsn, 0)::bigint AS retained_bytes,
       slot.safe_wal_size
FROM pg_replication_slots AS slot,
     (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS wal_lsn)
       AS server
WHERE slot.slot_name::text = ANY ($1::text[])
