-- Transactions that have written, of all databases, oldest first: who runs it, and for how many seconds.
SELECT holder, extract(epoch FROM clock_timestamp() - since)::bigint
FROM (
  SELECT 'pid ' || pid AS holder, xact_start AS since
  FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
  UNION ALL
  SELECT 'the prepared transaction ' || gid, prepared FROM pg_prepared_xacts
) AS writing
ORDER BY since
LIMIT 3
