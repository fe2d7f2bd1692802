-- Rows of the events table that were there before walcast, on their way to some of the sinks. One of a history is open at a time.
CREATE TABLE walcast.backfill (
  id UUID PRIMARY KEY,
  history_id UUID NOT NULL,
  sinks TEXT[] NOT NULL,                 -- whom it is for
  since TIMESTAMPTZ,                     -- of event_ts, from there on; NULL: from the first
  until TIMESTAMPTZ,                     -- of event_ts, before that; NULL: up to the last
  rows_per_second INTEGER,               -- at most; NULL: as fast as the sinks take them
  last_id BIGINT NOT NULL,               -- no row that was there before has a higher id
  done_id BIGINT,                        -- all rows up to this id are sent
  row_count BIGINT NOT NULL DEFAULT 0,   -- how many those are
  estimated_rows BIGINT NOT NULL,
  state TEXT NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'paused', 'cancelled', 'done')),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  changed_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX backfill_open ON walcast.backfill (history_id) WHERE state IN ('running', 'paused');

DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'walcast') THEN
    GRANT SELECT, INSERT, UPDATE, DELETE ON walcast.backfill TO walcast;
  END IF;
END
$$;
