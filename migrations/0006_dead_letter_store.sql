-- One store for every refused row, whatever sinks there are. sink = 'all': refused before the sinks.
ALTER TABLE walcast.dead_letter
  ADD COLUMN source_table TEXT,          -- schema.name
  ADD COLUMN commit_ts TIMESTAMPTZ,      -- when the row's transaction committed
  ADD COLUMN attempts INTEGER NOT NULL DEFAULT 1,
  ADD COLUMN state TEXT NOT NULL DEFAULT 'open',
  ADD CONSTRAINT dead_letter_state CHECK (state IN ('open', 'replaying', 'replayed', 'discarded')),
  -- jsonb refuses texts that json takes, such as half of a surrogate pair
  ALTER COLUMN record TYPE JSON USING record::json;
