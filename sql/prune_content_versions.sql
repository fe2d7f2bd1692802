-- $1 the epoch, $2 and $3 the confirmed LSN then and now, where every start begins at the earliest. What came in
-- between puts an end to all earlier versions of its id; and to itself, when it says that the row was deleted.
DELETE FROM walcast.content_version AS version
USING walcast.content_version AS newer
WHERE newer.epoch = $1 AND newer.commit_lsn >= $2 AND newer.commit_lsn < $3
  AND version.epoch = $1
  AND version.content_id = newer.content_id
  AND ((version.commit_lsn, version.ordinal) < (newer.commit_lsn, newer.ordinal)
       OR newer.deleted AND (version.commit_lsn, version.ordinal) = (newer.commit_lsn, newer.ordinal))
