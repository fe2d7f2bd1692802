-- The extra columns that events have, of which type, and since which event. attnum is the column's number in the table: one
-- that was dropped and made again has another.
CREATE TABLE walcast.extra_column (
  history_id UUID NOT NULL,
  name TEXT NOT NULL,
  shape TEXT NOT NULL,
  attnum SMALLINT,
  since_lsn PG_LSN NOT NULL,
  since_ordinal BIGINT NOT NULL,
  PRIMARY KEY (history_id, name)
);

DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'walcast') THEN
    GRANT SELECT, INSERT, UPDATE, DELETE ON walcast.extra_column TO walcast;
  END IF;
END
$$;
