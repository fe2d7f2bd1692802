-- Every content row, as walcast joins it.
SELECT id::uuid, slug::text, title::text, content_type::text, length_seconds::integer,
  CASE WHEN publish_ts >= '0001-01-01 00:00:00+00' AND publish_ts < '10000-01-01 00:00:00+00'
       THEN (EXTRACT(EPOCH FROM publish_ts) * 1000000)::bigint END
FROM {schema}.content
