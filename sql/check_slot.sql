-- $1 the slot's name: what walks with it beside its facts. Columns that a version does not have yet are NULL by way of
-- JSON.
SELECT active_pid,
       (SELECT application_name || coalesce(' from ' || host(client_addr), '') FROM pg_stat_activity WHERE pid = active_pid),
       coalesce(wal_status, 'lost'),
       safe_wal_size,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                       restart_lsn)::bigint,
       (to_jsonb(slot) ->> 'failover')::boolean,
       coalesce((to_jsonb(slot) ->> 'two_phase')::boolean, false),
       stats.spill_bytes,
       (to_jsonb(stats) ->> 'mem_exceeded_count')::bigint
FROM pg_replication_slots AS slot LEFT JOIN pg_stat_replication_slots AS stats USING (slot_name)
WHERE slot_name = $1
