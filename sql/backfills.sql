-- $1 the history id. Oldest first.
SELECT id, sinks, since::text, until::text, rows_per_second, last_id, done_id, row_count, estimated_rows, state,
  extract(epoch FROM since)::float8, extract(epoch FROM until)::float8, rebuild, begins::text, begins_xid::text, keeps_below
FROM walcast.backfill WHERE history_id = $1 ORDER BY created_at, id
