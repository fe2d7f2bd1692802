-- $1 history; $2 schema and $3 name of the events table; $4 names of the extra columns, $5 their shapes; $6 LSN and $7 ordinal
-- of the first event that has them. A column that was there as it is now keeps its beginning.
WITH gone AS (
  DELETE FROM walcast.extra_column WHERE history_id = $1 AND name <> ALL ($4::text[])
), now AS (
  SELECT attname::text AS name, attnum
  FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
  WHERE nspname = $2::text AND relname = $3::text AND attnum > 0 AND NOT attisdropped
)
INSERT INTO walcast.extra_column AS kept (history_id, name, shape, attnum, since_lsn, since_ordinal)
SELECT $1, name, shape, attnum, $6, $7
FROM unnest($4::text[], $5::text[]) AS told (name, shape) LEFT JOIN now USING (name)
ON CONFLICT (history_id, name) DO UPDATE
SET shape = excluded.shape, attnum = excluded.attnum, since_lsn = excluded.since_lsn, since_ordinal = excluded.since_ordinal
WHERE (kept.shape, kept.attnum) IS DISTINCT FROM (excluded.shape, excluded.attnum)
