-- A sink that keeps sums of events is filled anew otherwise than row by row:
--   asked     the sink is to stop
--   counting  it has stopped, a slot of its own keeps what follows, and all events are counted as of one place in the WAL
--   counted   its target holds their sums, and goes on from that place
ALTER TABLE walcast.backfill DROP CONSTRAINT backfill_rebuild_check;
ALTER TABLE walcast.backfill ADD CONSTRAINT backfill_rebuild_check
  CHECK (rebuild IN ('asked', 'stopped', 'marked', 'emptied', 'counting', 'counted'));
-- one that waits until those before it have ended
ALTER TABLE walcast.backfill DROP CONSTRAINT backfill_state_check;
ALTER TABLE walcast.backfill ADD CONSTRAINT backfill_state_check
  CHECK (state IN ('waiting', 'running', 'paused', 'cancelled', 'done'));
