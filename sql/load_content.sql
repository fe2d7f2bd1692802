-- $1 the history id, $2 the start: each row's newest version below it.
SELECT content_id, {stored}
FROM (
  SELECT DISTINCT ON (content_id) *
  FROM walcast.content_version
  WHERE history_id = $1 AND commit_lsn < $2
  ORDER BY content_id, commit_lsn DESC, ordinal DESC
) AS newest
WHERE NOT deleted
