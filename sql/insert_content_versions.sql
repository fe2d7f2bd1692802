-- $1 the history id, then one array a column. A change that moves an id gives two rows of one position, but of two ids.
INSERT INTO walcast.content_version (history_id, content_id, commit_lsn, ordinal, deleted, {stored})
SELECT $1, *
FROM unnest($2::uuid[], $3::pg_lsn[], $4::bigint[], $5::boolean[], {arrays})
ON CONFLICT DO NOTHING
