-- What an operator should know of the server, in one row; NULL where a version has no such setting.
SELECT (SELECT setting::int FROM pg_settings WHERE name = 'max_replication_slots'),
       (SELECT count(*)::int FROM pg_replication_slots),
       (SELECT setting::int FROM pg_settings WHERE name = 'max_wal_senders'),
       (SELECT count(*)::int FROM pg_stat_replication),
       pg_size_bytes(current_setting('max_slot_wal_keep_size')),
       extract(epoch FROM current_setting('idle_replication_slot_timeout', true)::interval)::float8,
       extract(epoch FROM current_setting('wal_sender_timeout')::interval)::float8,
       pg_size_bytes(current_setting('logical_decoding_work_mem')),
       (SELECT (wal_bytes / nullif(extract(epoch FROM clock_timestamp() - stats_reset), 0))::float8 FROM pg_stat_wal),
       extract(epoch FROM clock_timestamp())::float8,
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
       current_setting('synchronized_standby_slots', true),
       current_setting('server_version_num')::int,
       (SELECT array_agg(slot_name::text ORDER BY slot_name) FROM pg_replication_slots
        WHERE slot_type = 'physical' AND active),
       (SELECT count(*)::int FROM pg_stat_replication AS sender
        WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid = sender.pid)
          AND application_name <> 'pg_basebackup'),
       (SELECT array_agg(slot_name::text ORDER BY slot_name) FROM pg_replication_slots WHERE NOT active)
