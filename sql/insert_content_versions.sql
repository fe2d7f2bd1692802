-- $1 the epoch, then one array a column. A change that moves an id gives two rows of one position, but of two ids.
INSERT INTO walcast.content_version
  (epoch, content_id, commit_lsn, ordinal, deleted, slug, title, content_type, length_seconds, publish_ts_us)
SELECT $1, *
FROM unnest($2::uuid[], $3::pg_lsn[], $4::bigint[], $5::boolean[], $6::text[], $7::text[], $8::text[],
            $9::integer[], $10::bigint[])
ON CONFLICT DO NOTHING
