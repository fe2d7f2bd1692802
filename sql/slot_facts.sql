-- $1 the slot's name. Columns that a version does not have yet are NULL by way of JSON.
SELECT plugin::text, database::text, active, active_pid, confirmed_flush_lsn, wal_status,
       to_jsonb(slot) ->> 'invalidation_reason'
FROM pg_replication_slots AS slot
WHERE slot_name = $1
