-- $1 the history: which sinks have a slot of their own, and what it keeps. Columns that a version does not have yet are NULL by
-- way of JSON.
SELECT lane.sink,
       lane.slot,
       lane.state <> 'opening',
       CASE WHEN lane.state = 'given_up' THEN 'given up' WHEN slot.slot_name IS NULL THEN 'missing' ELSE coalesce(slot.wal_status, 'lost') END,
       CASE WHEN lane.state = 'given_up' THEN 'it kept more than lane.wal_bytes_max'
            ELSE to_jsonb(slot) ->> 'invalidation_reason' END,
       (slot.confirmed_flush_lsn - '0/0')::bigint,
       coalesce(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
                - slot.restart_lsn, 0)::bigint,
       slot.safe_wal_size
FROM walcast.lane LEFT JOIN pg_replication_slots AS slot ON slot.slot_name::text = lane.slot
WHERE lane.history_id = $1
ORDER BY lane.sink
