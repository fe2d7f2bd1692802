-- A row that one sink refuses; refused again after a replay it stays as it is. $8 is the event as JSON.
INSERT INTO walcast.dead_letter (sink, history_id, commit_lsn, ordinal, event_id, reason, message, record)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::json)
ON CONFLICT DO NOTHING
