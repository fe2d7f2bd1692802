#!/usr/bin/env bash
# Where synchronous_standby_names has a star, a reader of a logical slot is the synchronous standby, and a commit is acknowledged that no
# standby has.
#
# PostgreSQL 17.11 and 18.6: `*` takes whoever streams, and of several with the same priority the one that came first, once it has
# confirmed something, is the one that commits wait for. With a reader of a logical slot (pg_recvlogical here, change data capture
# elsewhere) that came before the standby, pg_stat_replication says that the reader is sync and the standby potential: a commit returns
# while the standby receives nothing, and it waits for as long as the reader is stopped, though the standby has it.
#
# What follows for users of any reader: a primary that is lost then takes with it what was acknowledged, and a reader that is slow, or that
# writes its progress into the database which it reads before it confirms, holds up every commit, its own for ever. Name the standbys in
# synchronous_standby_names. walcast refuses a server where it would be waited for (WC-215).
#
# Needs Maven, unzip, tar, xz, and psql and pg_recvlogical (apt-get install postgresql-client); installs pinned packages into a temporary
# folder, which it deletes. Exit code 0: as described.
set -euo pipefail

home=$(mktemp -d)
bin='' data=''
clients=$(find /usr/lib/postgresql/*/bin -name pg_recvlogical -printf '%h\n' 2>/dev/null | sort -V | tail -1)
cleanup() {
  # shellcheck disable=SC2046  # one word each
  kill -KILL $(jobs -p) 2>/dev/null || true
  stop
  rm -rf "$home"
}
trap cleanup EXIT
chmod 755 "$home"
[ -n "$clients" ] || { echo "psql and pg_recvlogical are needed (apt-get install postgresql-client)" >&2; exit 1; }

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

stop() {
  local one
  for one in ${data:+"$data"-standby "$data"}; do
    [ ! -e "$one/postmaster.pid" ] || as_server "$bin/pg_ctl" -D "$one" -m immediate stop >/dev/null 2>&1 || true
  done
}

# A primary, and a copy of it that is to be its standby.
make() {
  bin=$home/$1/bin data=$home/data-$1
  mkdir "$data"
  [ "$EUID" != 0 ] || chown nobody:nogroup "$data"
  as_server "$bin/initdb" -D "$data" -U postgres -A trust --no-sync >/dev/null
  printf '%s\n' 'wal_level = logical' 'fsync = off' "listen_addresses = ''" >>"$data/postgresql.conf"
  cp -a "$data" "$data-standby"
  echo "unix_socket_directories = '$data'" >>"$data/postgresql.conf"
  printf '%s\n' "unix_socket_directories = '$data-standby'" "primary_conninfo = 'host=$data user=postgres'" >>"$data-standby/postgresql.conf"
  : >"$data-standby/standby.signal"
  start "$data"
}

start() { as_server "$bin/pg_ctl" -D "$1" -w -l "$1/log" start >/dev/null; }

sql() { "$clients/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h "$data" -U postgres -d postgres -c "$1"; }

until_true() { until [ "$(sql "SELECT $1")" = t ]; do sleep 0.1; done; }

# Whether a row is committed within five seconds; one that waits longer is left to be committed here alone.
commits() { if timeout 5 "$clients/psql" -X -q -h "$data" -U postgres -d postgres -c 'INSERT INTO play DEFAULT VALUES' >/dev/null 2>&1; then echo yes; else echo no; fi; }

failed=0
expect() { if [ "$2" = "$3" ]; then echo "  $1: $2"; else echo "  $1: $2, and not $3 as described"; failed=1; fi; }

story() {
  local reader standby
  sql "CREATE TABLE play (id serial PRIMARY KEY)"
  sql "SELECT pg_create_logical_replication_slot('reader', 'test_decoding')" >/dev/null
  "$clients/pg_recvlogical" -h "$data" -U postgres -d postgres --slot reader --start -f /dev/null -F 1 -s 1 2>/dev/null & reader=$!
  until_true "EXISTS (SELECT FROM pg_stat_replication WHERE application_name = 'pg_recvlogical' AND state = 'streaming')"
  start "$data-standby"
  until_true "EXISTS (SELECT FROM pg_stat_replication WHERE application_name = 'walreceiver' AND state = 'streaming')"
  standby=$("$clients/psql" -X -q -A -t -h "$data-standby" -U postgres -d postgres -c 'SELECT pid FROM pg_stat_wal_receiver')
  sql "ALTER SYSTEM SET synchronous_standby_names = '*'"
  sql "SELECT pg_reload_conf()" >/dev/null
  # a reader is a candidate once it has confirmed something; where it never is, the next line says so
  for _ in $(seq 50); do
    [ "$(sql "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'pg_recvlogical'")" != sync ] || break
    sleep 0.2
  done
  expect "what commits wait for" "$(sql "SELECT string_agg(application_name || ' ' || sync_state, ', ' ORDER BY 1) FROM pg_stat_replication" | sed 's/, /,/')" \
    "pg_recvlogical sync,walreceiver potential"
  kill -STOP $standby
  expect "a commit returns while the standby is stopped" "$(commits)" yes
  kill -CONT $standby
  kill -STOP $reader
  expect "a commit returns while the reader is stopped" "$(commits)" no
  kill -CONT $reader
  kill -KILL $reader
  wait $reader 2>/dev/null || true
}

for version in 17.11.0 18.6.0; do
  install $version && make $version
  echo "PostgreSQL $(sql 'SHOW server_version')"
  story
  stop
done
exit $failed
