INSERT INTO content (id, slug, title, content_type, length_seconds, publish_ts)
SELECT *
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::int[], $6::timestamptz[])
ON CONFLICT DO NOTHING
