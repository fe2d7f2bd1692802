-- A sink that is brought what it lacks, and keeps the rest: what it holds from places in the WAL below this one stays. NULL: it is
-- emptied first.
ALTER TABLE walcast.backfill ADD COLUMN keeps_below PG_LSN;
--   asked to keep  as asked; a walcast of before this, which would empty the sink, does not know it
ALTER TABLE walcast.backfill DROP CONSTRAINT backfill_rebuild_check;
ALTER TABLE walcast.backfill ADD CONSTRAINT backfill_rebuild_check
  CHECK (rebuild IN ('asked', 'asked to keep', 'stopped', 'marked', 'emptied', 'counting', 'counted'));
-- rows on their way are packed faster, where the server can
DO $$
BEGIN
  ALTER TABLE walcast.request ALTER COLUMN rows SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported OR invalid_parameter_value THEN NULL;
END
$$;
