-- On Amazon RDS the right to replicate is membership in rds_replication.
SELECT current_setting('server_version_num')::int,
       split_part(current_setting('server_version'), ' ', 1),
       current_setting('wal_level'),
       current_setting('effective_wal_level', true),
       pg_is_in_recovery(),
       EXISTS (SELECT FROM pg_roles WHERE rolname = current_user AND (rolreplication OR rolsuper))
         OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication' AND pg_has_role(oid, 'MEMBER'))
