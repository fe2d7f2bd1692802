-- What was there before the stream is version 0/0#0. $1 the history id, $2 the ids, then one array a column.
INSERT INTO walcast.content_version (history_id, content_id, commit_lsn, ordinal, deleted, {stored})
SELECT $1, id, '0/0', 0, false, {stored}
FROM unnest($2::uuid[], {arrays}) AS content (id, {stored})
