-- walcast's own state. Not in the publication. Every write by a running instance is guarded by
-- walcast.epoch.token, so that an older instance can change nothing.
CREATE SCHEMA IF NOT EXISTS walcast;

-- One row a replication slot: the history that all marks of that slot belong to.
CREATE TABLE walcast.epoch (
  slot TEXT PRIMARY KEY,
  epoch UUID NOT NULL,                  -- drawn anew whenever the slot is made
  system_id TEXT NOT NULL,
  timeline INTEGER NOT NULL,
  publication TEXT NOT NULL,
  publication_oid OID NOT NULL,         -- another one than the catalog's = the publication was made again
  state TEXT NOT NULL CHECK (state IN ('in progress', 'ready')),
  consistent_point PG_LSN,              -- where the stream begins
  snapshot PG_SNAPSHOT,                 -- what it sees was there before walcast
  token BIGINT NOT NULL DEFAULT 0,      -- the newest instance's number
  created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- A sink that once made a mark durable. Registered without a mark at its target = it lost its data.
CREATE TABLE walcast.sink (
  epoch UUID NOT NULL,
  name TEXT NOT NULL,
  first_mark JSONB NOT NULL,
  registered_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (epoch, name)
);

-- Marks of the sinks whose target cannot hold one itself, and what they are about to commit.
CREATE TABLE walcast.progress (
  epoch UUID NOT NULL,
  sink TEXT NOT NULL,
  mark JSONB,
  intent JSONB,
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (epoch, sink)
);

-- Every version of a content row that an event may still be joined with; version 0/0#0 is the state at
-- the slot's snapshot. Pruned below the confirmed LSN, keeping each id's newest version.
CREATE TABLE walcast.content_version (
  epoch UUID NOT NULL,
  content_id UUID NOT NULL,
  commit_lsn PG_LSN NOT NULL,
  ordinal BIGINT NOT NULL,
  deleted BOOLEAN NOT NULL,
  slug TEXT,
  title TEXT,
  content_type TEXT,
  length_seconds INTEGER,
  publish_ts_us BIGINT,                 -- microseconds since 1970; NULL outside the years 1 to 9999
  PRIMARY KEY (epoch, content_id, commit_lsn, ordinal)
);

-- Rows that one sink alone refuses.
CREATE TABLE walcast.dead_letter (
  sink TEXT NOT NULL,
  epoch UUID NOT NULL,
  commit_lsn PG_LSN NOT NULL,
  ordinal BIGINT NOT NULL,
  event_id BIGINT,
  reason TEXT NOT NULL,
  message TEXT NOT NULL,
  record JSONB,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (sink, epoch, commit_lsn, ordinal)
);
