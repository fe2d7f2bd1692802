-- No row of the events table that was there when the slot was made has a higher id; the lowest bigint for an empty table,
-- NULL for a slot that was made before this migration.
ALTER TABLE walcast.slot
  ADD COLUMN last_id_before BIGINT,
  ADD COLUMN emptied_at PG_LSN;         -- the last TRUNCATE of the events table

-- What the stream has told of events, by their ids. late: inserted after the slot was made, with an id that is not above
-- last_id_before. touched: updated or deleted since. renamed: has its id by an update. Bit n of a block is the id 1024 * block + n.
CREATE TABLE walcast.event_mark (
  history_id UUID NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('late', 'touched', 'renamed')),
  block BIGINT NOT NULL,
  ids BIT VARYING(1024) NOT NULL,
  PRIMARY KEY (history_id, kind, block)
);

DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'walcast') THEN
    GRANT SELECT, INSERT, UPDATE, DELETE ON walcast.event_mark TO walcast;
  END IF;
END
$$;
