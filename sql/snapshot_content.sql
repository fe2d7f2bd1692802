-- Run under the slot's exported snapshot: what was there before the stream is version 0/0#0. $1 the epoch.
INSERT INTO walcast.content_version
  (epoch, content_id, commit_lsn, ordinal, deleted, slug, title, content_type, length_seconds, publish_ts_us)
SELECT $1, id, '0/0', 0, false, slug, title, content_type, length_seconds,
  CASE WHEN publish_ts >= '0001-01-01 00:00:00+00' AND publish_ts < '10000-01-01 00:00:00+00'
       THEN (EXTRACT(EPOCH FROM publish_ts) * 1000000)::bigint END
FROM {schema}.content
