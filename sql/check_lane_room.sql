-- $1 the walcast slot's name: how many slots and walsenders are free once that one is there and read, and how many there are.
SELECT slots - (SELECT count(*) FROM pg_replication_slots)
         - (SELECT count(*) FROM (VALUES (1)) AS one WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name::text = $1)),
       senders - (SELECT count(*) FROM pg_stat_replication)
         - (SELECT count(*) FROM (VALUES (1)) AS one
            WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name::text = $1 AND active)),
       slots,
       senders
FROM (SELECT current_setting('max_replication_slots')::bigint AS slots,
             current_setting('max_wal_senders')::bigint AS senders) AS settings
