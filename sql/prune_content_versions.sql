-- $1 the history id, $2 and $3 the confirmed LSN then and now, where every start begins at the earliest. Of the ids that
-- changed in between, a version can go when a newer one lies below that; the newest too, when it says "deleted".
-- ARRAY, and EXISTS under OR, are looked up in the primary key whatever the statistics say: a join, planned before
-- the first ANALYZE, compares every version with every other.
DELETE FROM walcast.content_version AS version
WHERE history_id = $1
  AND commit_lsn < $3
  AND content_id = ANY (ARRAY(
    SELECT DISTINCT content_id FROM walcast.content_version
    WHERE history_id = $1 AND commit_lsn > '0/0' AND commit_lsn >= $2 AND commit_lsn < $3))
  AND (deleted OR EXISTS (
    SELECT FROM walcast.content_version AS newer
    WHERE newer.history_id = $1
      AND newer.content_id = version.content_id
      AND newer.commit_lsn < $3
      AND (newer.commit_lsn, newer.ordinal) > (version.commit_lsn, version.ordinal)))
