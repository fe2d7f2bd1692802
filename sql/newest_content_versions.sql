-- $1 the history id: the newest version of every content row, and where in the stream it came.
SELECT DISTINCT ON (content_id) commit_lsn, ordinal, deleted, content_id, {stored}
FROM walcast.content_version
WHERE history_id = $1
ORDER BY content_id, commit_lsn DESC, ordinal DESC
