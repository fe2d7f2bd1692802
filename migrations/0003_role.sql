-- A role that can run walcast and nothing more. It cannot log in until you say
--   ALTER ROLE walcast LOGIN PASSWORD '…';
DO $$
BEGIN
  CREATE ROLE walcast NOLOGIN REPLICATION;
EXCEPTION
  WHEN duplicate_object OR unique_violation THEN NULL;
  WHEN insufficient_privilege THEN
    RAISE NOTICE 'role walcast not made: this needs CREATEROLE and REPLICATION';
END
$$;

DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'walcast') THEN
    GRANT USAGE ON SCHEMA walcast TO walcast;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA walcast TO walcast;
    GRANT SELECT ON content, engagement_events TO walcast;
  END IF;
END
$$;
