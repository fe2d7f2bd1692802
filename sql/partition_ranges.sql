-- $1 schema, $2 table, $3 the column of its events' times: what ranges of time its partitions hold, each with whether it
-- has rows, in microseconds since 1970, NULL for no end. No row where it is not partitioned by range of that column.
SELECT (extract(epoch FROM nullif(ends[1], 'MINVALUE')::timestamptz) * 1000000)::bigint,
       (extract(epoch FROM nullif(ends[2], 'MAXVALUE')::timestamptz) * 1000000)::bigint,
       format('%I.%I', nspname, relname)
FROM pg_partitioned_table
JOIN pg_attribute ON attrelid = partrelid AND attnum = partattrs[0] AND attname = $3
JOIN pg_inherits ON inhparent = partrelid
JOIN pg_class ON pg_class.oid = inhrelid
JOIN pg_namespace ON pg_namespace.oid = relnamespace
CROSS JOIN regexp_match(pg_get_expr(relpartbound, inhrelid),
                        'FROM \(''?([^'')]+)''?\) TO \(''?([^'')]+)''?\)') AS ends
WHERE partrelid = to_regclass(format('%I.%I', $1::text, $2::text)) AND partstrat = 'r' AND partnatts = 1
  AND ends IS NOT NULL
