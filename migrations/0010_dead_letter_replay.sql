-- What a dead letter needs to be sent again.
ALTER TABLE walcast.dead_letter
  ADD COLUMN event TEXT,                 -- of a row refused before the sinks: its record as JSON, as far as it could be read
  ADD COLUMN unread TEXT[] NOT NULL DEFAULT '{}',  -- the fields that could not
  ADD COLUMN repair JSON,                -- the fields that were set when it was last sent again
  ADD COLUMN request UUID,               -- what sends it again, or did so last
  ADD COLUMN changed_at TIMESTAMPTZ NOT NULL DEFAULT now();
CREATE INDEX dead_letter_open ON walcast.dead_letter (history_id, sink, reason) WHERE state IN ('open', 'replaying');

-- What a control message of ours asks for. Anybody may emit messages: one counts only in the transaction that inserted
-- the request it names.
CREATE TABLE walcast.request (
  id UUID PRIMARY KEY,
  history_id UUID NOT NULL,
  xid XID8 NOT NULL DEFAULT pg_current_xact_id(),
  kind TEXT NOT NULL CHECK (kind IN ('replay', 'chunk')),
  sinks TEXT[] NOT NULL,                 -- whom it is for
  rows TEXT NOT NULL,                    -- JSON; a row's ordinal is its index
  state TEXT NOT NULL DEFAULT 'sent' CHECK (state IN ('sent', 'taken', 'refused')),
  commit_lsn PG_LSN,                     -- where the stream brought its message
  created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'walcast') THEN
    GRANT SELECT, INSERT, UPDATE, DELETE ON walcast.request TO walcast;
  END IF;
END
$$;
