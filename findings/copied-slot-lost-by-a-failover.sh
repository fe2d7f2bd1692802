#!/usr/bin/env bash
# Two copies of one failover slot, made in the same way: one survives a failover, the other is gone. Which, was decided by another slot.
#
# PostgreSQL 17.11 and 18.6, a standby with sync_replication_slots. pg_copy_logical_replication_slot gives a slot without
# failover, and ALTER_REPLICATION_SLOT … (FAILOVER true) sets it. A copy that nobody reads is kept on the standby at its first look
# if the slot that it was made of has not moved on there yet. If that one has moved on between the copy and that look, by a row or
# so, the standby has let go of what the copy needs (it keeps the catalog's old rows for its own slots alone), and says so in
# its log as LOG. From then on the copy stays temporary there for as long as nobody reads it: that others go on changes nothing. The
# primary says failover = true of both, the standby synced = true, the worker runs without an error. The promotion drops the temporary
# one, with all that it alone kept. The other stands where it stood on the primary, and gives every row since.
# A copy like the lost one that is read afterwards is kept once it has moved.
#
# What follows for users: after a copy, or before a subscription is disabled, let the slot that was copied stand still until the
# standby shows "synced AND NOT temporary".
#
# Needs Maven, psql, unzip, tar and xz; installs pinned packages into a temporary folder, which it deletes. Exit code 0: as described.
set -euo pipefail

home=$(mktemp -d)
bin=
cleanup() { [ -z "$bin" ] || for name in standby primary; do stop $name; done; rm -rf "$home"; }
trap cleanup EXIT
chmod 755 "$home"

# PostgreSQL refuses to run as root
as_server() { if [ "$EUID" = 0 ]; then (cd / && setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"); else "$@"; fi; }

install() {
  local version=$1 machine jar
  case $(uname -m) in x86_64) machine=amd64 ;; aarch64) machine=arm64v8 ;; *) echo "no package for $(uname -m)" >&2; exit 1 ;; esac
  jar=embedded-postgres-binaries-linux-$machine
  mvn -q -B dependency:copy -Dartifact="io.zonky.test.postgres:$jar:$version" -DoutputDirectory="$home/jars" </dev/null
  mkdir -p "$home/$version"
  unzip -q -p "$home/jars/$jar-$version.jar" '*.txz' | tar -xJ -C "$home/$version"
  bin=$home/$version/bin
}

start() { as_server "$bin/pg_ctl" -D "$home/$1" -w -l "$home/$1.log" start >/dev/null; }
stop() { as_server "$bin/pg_ctl" -D "$home/$1" -m "${2:-immediate}" stop >/dev/null 2>&1 || true; }
sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 -h "$home/$1" -U postgres -d postgres -c "$2"; }

# A primary, and a standby that keeps its slots as the manual says.
pair() {
  local name
  rm -rf "$home"/primary* "$home"/standby*
  for name in primary standby; do touch "$home/$name.log"; mkdir "$home/$name"; done
  [ "$EUID" != 0 ] || chown nobody:nogroup "$home"/primary* "$home"/standby*
  as_server "$bin/initdb" -D "$home/primary" -U postgres -A trust --no-sync >/dev/null
  printf '%s\n' 'wal_level = logical' 'fsync = off' 'autovacuum = off' "listen_addresses = ''" \
    "unix_socket_directories = '$home/primary'" >>"$home/primary/postgresql.conf"
  start primary
  sql primary "SELECT pg_create_physical_replication_slot('standby')" >/dev/null
  sql primary "CREATE TABLE play (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY); CREATE PUBLICATION plays FOR TABLE play"
  stop primary fast
  cp -a "$home/primary/." "$home/standby"
  rm -rf "$home"/standby/pg_replslot/*
  as_server touch "$home/standby/standby.signal"
  printf '%s\n' "unix_socket_directories = '$home/standby'" "primary_conninfo = 'host=$home/primary user=postgres dbname=postgres'" \
    'primary_slot_name = standby' 'hot_standby_feedback = on' 'sync_replication_slots = on' >>"$home/standby/postgresql.conf"
  start primary
  start standby
}

# The ids of the rows that a slot gives, and it moves on.
read_slot() {
  sql "$1" "SELECT string_agg(convert_from(substring(data FROM 14), 'UTF8'), ' ')
            FROM pg_logical_slot_get_binary_changes('$2', NULL, NULL, 'proto_version', '1', 'publication_names', 'plays')
            WHERE get_byte(data, 0) = ascii('I')"
}

# A row, and what the standby needs to find a place to decode from; these slots are read to their ends.
move() {
  local slot
  sql primary "INSERT INTO play DEFAULT VALUES"
  sql primary "SELECT pg_log_standby_snapshot()" >/dev/null
  for slot in "$@"; do read_slot primary "$slot" >/dev/null; done
}

copy() {
  sql primary "SELECT pg_copy_logical_replication_slot('read', '$1', false)" >/dev/null
}

with_failover() {
  psql -X -q "host=$home/primary user=postgres dbname=postgres replication=database" -c "ALTER_REPLICATION_SLOT $1 (FAILOVER true)" >/dev/null
}

on_standby() { sql standby "SELECT CASE WHEN temporary THEN 'temporary' ELSE 'kept' END FROM pg_replication_slots WHERE slot_name = '$1' AND synced"; }
place() { sql "$1" "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '$2'"; }

# until SECONDS COMMAND…: tries it again and again.
until_true() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do [ $SECONDS -lt $deadline ] || { echo "not within the time: $*" >&2; exit 1; }; sleep 0.2; done
}
is() { [ "$(on_standby "$1")" = "$2" ]; }
moved_and_is() { move "${@:3}"; is "$1" "$2"; }
same_place() { [ "$(place primary "$1")" = "$(place standby "$1")" ]; }
replayed() { [ "$(sql standby "SELECT pg_last_wal_replay_lsn() >= '$1'")" = t ]; }

story() {
  pair
  sql primary "SELECT pg_create_logical_replication_slot('read', 'pgoutput', false, false, true)" >/dev/null
  until_true 60 moved_and_is read kept read
  until_true 60 same_place read

  copy late && copy later_read
  # the slot that was copied moves on, here and on the standby, before those are looked at
  for _ in 1 2 3; do move read; done
  until_true 60 same_place read
  with_failover late && with_failover later_read
  until_true 60 is late temporary
  # and here it does not
  from=$(sql primary 'SELECT max(id) + 1 FROM play')
  copy early && with_failover early
  until_true 60 is early kept
  before=$(place standby read)
  deadline=$((SECONDS + 30))
  while [ $SECONDS -lt $deadline ]; do move read; sleep 0.3; done
  until_true 60 same_place read
  after=$(place standby read)
  half_a_minute_later=$(on_standby late)
  until_true 60 moved_and_is later_read kept read later_read
  failover=$(sql primary "SELECT string_agg(DISTINCT failover::text, ' ') FROM pg_replication_slots WHERE slot_type = 'logical'")
  early_at=$(place primary early)
  told=$(grep -c 'LOG:  could not sync.* slot "late"' "$home/standby.log" || true)
  errors=$(grep -c 'ERROR:\|FATAL:' "$home/standby.log" || true)

  until_true 60 replayed "$(sql primary 'SELECT pg_current_wal_lsn()')"
  to=$(sql primary 'SELECT max(id) FROM play')
  stop primary
  sql standby 'SELECT pg_promote()' >/dev/null
  left=$(sql standby "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_type = 'logical'")
  early_after=$(place standby early)
  gives=$(read_slot standby early)
}

failed=0
expect() { if [ "$2" = "$3" ]; then echo "  $1: $2"; else echo "  $1: $2, and not $3 as described"; failed=1; fi; }

command -v psql >/dev/null || { echo "psql is needed (apt-get install postgresql-client)" >&2; exit 1; }

for version in 17.11.0 18.6.0; do
  install $version
  story
  echo "PostgreSQL $(sql standby 'SHOW server_version')"
  expect "failover of all slots, on the primary" "$failover" true
  expect "late, on the standby, after half a minute" "$half_a_minute_later" temporary
  expect "read moved on there meanwhile" "$([ "$before" != "$after" ] && echo yes || echo no)" yes
  expect "LOG lines of it on the standby" "$([ "$told" -gt 5 ] && echo many || echo "$told")" many
  expect "errors on the standby" "$errors" 0
  expect "slots after the promotion" "$left" "early later_read read"
  expect "early stands where it stood" "$([ "$early_at" = "$early_after" ] && echo yes || echo no)" yes
  expect "early gives what came since its copy" "$([ "$gives" = "$(seq -s ' ' "$from" "$to")" ] && echo yes || echo "$gives")" yes
  stop standby
done
exit $failed
