-- What walcast drain has seen: from drained_from to drained_to in the WAL lies nothing that a sink is to have. drained_to is NULL until
-- the next start, when it is where the slot begins. drained_shape is what the publication was.
-- After pg_upgrade, walcast adopt notes whose WAL that was: checkpoints of that server count on.
ALTER TABLE walcast.slot ADD COLUMN drained_from PG_LSN;
ALTER TABLE walcast.slot ADD COLUMN drained_to PG_LSN;
ALTER TABLE walcast.slot ADD COLUMN drained_shape TEXT;
ALTER TABLE walcast.slot ADD COLUMN former_system_id TEXT;
