-- $1 the epoch, $2 its slot. A version can go when a newer one of its id lies below the confirmed LSN, where
-- every start begins at the earliest; the newest there can go too when it says that the row was deleted.
-- EXISTS under OR is looked up row by row in the primary key, whatever the statistics say: a join, planned before the
-- first ANALYZE, compares every version with every other.
DELETE FROM walcast.content_version AS version
USING pg_replication_slots AS slot
WHERE slot.slot_name = $2
  AND version.epoch = $1
  AND version.commit_lsn < slot.confirmed_flush_lsn
  AND (version.deleted OR EXISTS (
    SELECT FROM walcast.content_version AS newer
    WHERE newer.epoch = $1
      AND newer.content_id = version.content_id
      AND newer.commit_lsn < slot.confirmed_flush_lsn
      AND (newer.commit_lsn, newer.ordinal) > (version.commit_lsn, version.ordinal)))
