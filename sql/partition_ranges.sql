-- $1 schema, $2 table, $3 the column of its events' times: what range of time each of its partitions holds, in microseconds
-- since 1970, NULL for no end within the years 1 to 9999, and the condition that its rows meet: who may read the table need not
-- be let read its partitions by their names. No row where the table is not partitioned by range of that column.
WITH bound AS (
  SELECT regexp_match(pg_get_expr(relpartbound, inhrelid), 'FROM \(''?([^'')]+)''?\) TO \(''?([^'')]+)''?\)') AS ends
  FROM pg_partitioned_table
  JOIN pg_attribute ON attrelid = partrelid AND attnum = partattrs[0] AND attname = $3::text
  JOIN pg_inherits ON inhparent = partrelid
  JOIN pg_class ON pg_class.oid = inhrelid
  WHERE partrelid = to_regclass(format('%I.%I', $1::text, $2::text)) AND partstrat = 'r' AND partnatts = 1
),
range AS (
  SELECT nullif(ends[1], 'MINVALUE')::timestamptz AS from_ts, nullif(ends[2], 'MAXVALUE')::timestamptz AS to_ts,
         concat_ws(' AND ', 'true', format('%I >= ', $3::text) || quote_literal(nullif(ends[1], 'MINVALUE')),
           format('%I < ', $3::text) || quote_literal(nullif(ends[2], 'MAXVALUE'))) AS within
  FROM bound WHERE ends IS NOT NULL
)
SELECT CASE WHEN from_ts >= '0001-01-01 00:00:00+00' THEN (extract(epoch FROM from_ts) * 1000000)::bigint END,
       CASE WHEN to_ts < '10000-01-01 00:00:00+00' THEN (extract(epoch FROM to_ts) * 1000000)::bigint END,
       within
FROM range
