-- $1 the history id, $2 the checkpoint that is being stored, $3 whether a sink may begin there. Whether marking begins with it, and whether marks are kept at all.
WITH begun AS (
  UPDATE walcast.backfill SET rebuild = 'marked', begins = $2, begins_xid = pg_current_xact_id(), changed_at = now()
  WHERE history_id = $1 AND rebuild = 'stopped' AND state = 'running' AND $3 RETURNING id
)
SELECT EXISTS (SELECT FROM begun),
  EXISTS (SELECT FROM walcast.backfill
          WHERE history_id = $1 AND rebuild IN ('marked', 'emptied') AND state IN ('running', 'paused'))
