-- $1 the history id; $2 to $4 names, empty for any; $5 the sink, $6 the reason, $7 since when, $8 the state, each NULL for
-- any; $9 how many at most.
SELECT sink, commit_lsn, ordinal, event_id, source_table, reason, message, state, attempts,
  (extract(epoch FROM created_at) * 1000000)::bigint, (extract(epoch FROM commit_ts) * 1000000)::bigint,
  record::text, event, unread
FROM walcast.dead_letter
WHERE history_id = $1
  AND (cardinality($2::text[]) = 0
    OR (sink, commit_lsn, ordinal) IN (SELECT * FROM unnest($2::text[], $3::pg_lsn[], $4::bigint[])))
  AND ($5::text IS NULL OR sink = $5)
  AND ($6::text IS NULL OR reason = $6)
  AND ($7::bigint IS NULL OR created_at >= to_timestamp(0) + $7 * interval '1 microsecond')
  AND ($8::text IS NULL OR state = $8)
ORDER BY created_at, commit_lsn, ordinal, sink
LIMIT $9
