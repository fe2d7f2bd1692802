-- A sink that has fallen behind and reads the WAL by a slot of its own. While it is 'opening' the sink still counts for the
-- walcast slot's confirmed LSN, and the lane's slot may not be there; once it is 'open' only that slot keeps what it lacks.
CREATE TABLE walcast.lane (
  history_id UUID NOT NULL,
  sink TEXT NOT NULL,
  slot TEXT NOT NULL,                    -- never used twice
  state TEXT NOT NULL CHECK (state IN ('opening', 'open')),
  since TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (history_id, sink)
);

DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'walcast') THEN
    GRANT SELECT, INSERT, UPDATE, DELETE ON walcast.lane TO walcast;
  END IF;
END
$$;
