-- A sink that is brought what it lacks, and keeps the rest: what it holds from places in the WAL below this one stays. NULL: it is
-- emptied first.
ALTER TABLE walcast.backfill ADD COLUMN keeps_below PG_LSN;
