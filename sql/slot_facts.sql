-- $1 the slot's name. Columns that a version does not have yet are NULL by way of JSON.
SELECT plugin::text, database::text, active, active_pid, restart_lsn, confirmed_flush_lsn, wal_status, safe_wal_size,
       to_jsonb(slot) ->> 'invalidation_reason',
       (to_jsonb(slot) ->> 'failover')::boolean
FROM pg_replication_slots AS slot
WHERE slot_name = $1
