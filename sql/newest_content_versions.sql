-- $1 the epoch: the newest version of every content row, and where in the stream it came.
SELECT DISTINCT ON (content_id)
  content_id, commit_lsn, ordinal, deleted, slug, title, content_type, length_seconds, publish_ts_us
FROM walcast.content_version
WHERE epoch = $1
ORDER BY content_id, commit_lsn DESC, ordinal DESC
