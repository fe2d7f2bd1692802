-- $1 seconds: transactions that have written and are open for longer, of all databases, oldest first. A slot keeps all
-- WAL since the oldest of them began. A prepared one has no process.
SELECT pid, NULL AS gid, database, seconds::bigint, who
FROM (
  SELECT pid, datname::text AS database, extract(epoch FROM clock_timestamp() - xact_start) AS seconds,
         concat_ws(', ', usename, nullif(application_name, ''), state) AS who
  FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
) AS open WHERE seconds >= $1::float8
UNION ALL
SELECT NULL, gid, database::text, extract(epoch FROM clock_timestamp() - prepared)::bigint, owner::text
FROM pg_prepared_xacts WHERE clock_timestamp() - prepared >= make_interval(secs => $1::float8)
ORDER BY 4 DESC
LIMIT 10
