-- $1 the history id, $2 the confirmed LSN: no start reads below it again. Whether other requests are left. The letters of
-- a request that nobody has refused again have arrived.
WITH passed AS (
  DELETE FROM walcast.request WHERE history_id = $1 AND commit_lsn < $2 RETURNING id
), arrived AS (
  UPDATE walcast.dead_letter SET state = 'replayed', changed_at = now()
  FROM passed WHERE request = passed.id AND dead_letter.state = 'replaying'
)
SELECT EXISTS (SELECT FROM walcast.request WHERE history_id = $1 AND (commit_lsn IS NULL OR commit_lsn >= $2))
