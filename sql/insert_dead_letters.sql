-- $1 the sink, $2 the history id, $3 the request that brought the rows again or NULL, then arrays, letter by letter.
-- Read again from the slot a letter stays as it is. One that was sent again, and is refused again, is open once more; a
-- request that is not the letter's own any more changes nothing.
INSERT INTO walcast.dead_letter AS known (sink, history_id, commit_lsn, ordinal, event_id, source_table, commit_ts, reason,
  message, record, event, unread)
SELECT $1, $2, letter.commit_lsn, letter.ordinal, letter.event_id, letter.source_table,
  to_timestamp(0) + letter.commit_ts_us * interval '1 microsecond', letter.reason, letter.message, letter.record::json,
  letter.event, string_to_array(letter.unread, ' ')
FROM unnest($4::pg_lsn[], $5::bigint[], $6::bigint[], $7::text[], $8::bigint[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[])
  AS letter (commit_lsn, ordinal, event_id, source_table, commit_ts_us, reason, message, record, event, unread)
ON CONFLICT (sink, history_id, commit_lsn, ordinal) DO UPDATE
SET state = 'open', attempts = known.attempts + 1, reason = excluded.reason, message = excluded.message, changed_at = now()
WHERE known.state = 'replaying' AND known.request = $3
