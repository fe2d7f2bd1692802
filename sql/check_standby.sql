-- A slot as a standby has it, and what keeps it in step there (from version 17). primary_conninfo holds a password: all that is asked is
-- whether it names a database; NULL where this role may not see it.
SELECT pg_is_in_recovery(),
       slot.slot_name IS NOT NULL,
       (to_jsonb(slot) ->> 'synced')::boolean,
       coalesce(slot.temporary, false),
       to_jsonb(slot) ->> 'invalidation_reason',
       current_setting('sync_replication_slots', true)::boolean,
       to_jsonb(slot) ->> 'slotsync_skip_reason',
       (SELECT setting ~ '\mdbname\s*=' FROM pg_settings WHERE name = 'primary_conninfo' AND setting <> '')
FROM (VALUES (1)) AS one LEFT JOIN pg_replication_slots AS slot ON slot.slot_name = $1::text
