#!/bin/bash
# The role that walcast streams as. It may log in and replicate; `walcast init` gives it its rights.
psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 -U postgres -d postgres -v password="$(cat /run/secrets/walcast)" <<'SQL'
CREATE ROLE walcast LOGIN REPLICATION PASSWORD :'password';
GRANT pg_read_all_stats TO walcast;
SQL
