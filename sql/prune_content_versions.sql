-- $1 the epoch, $2 its slot. A version can go when a newer one of its id lies below the confirmed LSN, where
-- every start begins at the earliest; the newest there can go too when it says that the row was deleted.
WITH floor AS (
  SELECT confirmed_flush_lsn AS lsn FROM pg_replication_slots WHERE slot_name = $2
), newest AS (
  SELECT DISTINCT ON (content_id) content_id, commit_lsn, ordinal, deleted
  FROM walcast.content_version, floor
  WHERE epoch = $1 AND commit_lsn < floor.lsn
  ORDER BY content_id, commit_lsn DESC, ordinal DESC
)
DELETE FROM walcast.content_version AS version
USING newest
WHERE version.epoch = $1
  AND version.content_id = newest.content_id
  AND ((version.commit_lsn, version.ordinal) < (newest.commit_lsn, newest.ordinal)
       OR newest.deleted AND (version.commit_lsn, version.ordinal) = (newest.commit_lsn, newest.ordinal))
