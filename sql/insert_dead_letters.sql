-- Rows that were refused before the sinks. Read again from the slot they stay as they are.
INSERT INTO walcast.dead_letter (sink, history_id, commit_lsn, ordinal, source_table, commit_ts, reason, message, record)
SELECT 'all', $1, letter.commit_lsn, letter.ordinal, letter.source_table,
  to_timestamp(0) + letter.commit_ts_us * interval '1 microsecond', letter.reason, letter.message, letter.record::json
FROM unnest($2::pg_lsn[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[])
  AS letter (commit_lsn, ordinal, source_table, commit_ts_us, reason, message, record)
ON CONFLICT DO NOTHING
