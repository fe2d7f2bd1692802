#!/usr/bin/env bash
# One name of a time zone means two things in one PostgreSQL session, an hour apart for half of the year.
#
# PostgreSQL 17.11 and 18.6, each with the time zone database that its package has: with TimeZone = 'CET', a timestamp that is
# cast to timestamptz is read by the rules of the place CET, with summer time. AT TIME ZONE 'CET', also when it is given
# current_setting('TimeZone'), reads it by the abbreviation CET, which is one hour from UTC all year. So are 'EET', 'MET' and
# 'WET'. 'EST5EDT' has no abbreviation of its own, and means the same both ways. Python's zoneinfo has CET as a place alone.
#
# What follows for users: ALTER TABLE … ALTER COLUMN … TYPE timestamptz USING … AT TIME ZONE 'CET' is off by an hour for every
# summer's rows, where the same without USING is right in a session of that zone; and a reader that asks a time zone database
# of its own for CET differs from what SQL shows. Name a place: Europe/Brussels. walcast refuses the names that mean both
# (postgres.timestamp_zone), and docs/reference/tables.md says so.
#
# Needs Maven, psql, Python 3 with venv, unzip, tar and xz; installs pinned packages into a temporary folder, which it deletes.
# Exit code 0: as described.
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
  printf '%s\n' 'fsync = off' "listen_addresses = ''" "unix_socket_directories = '$data'" >>"$data/postgresql.conf"
  as_server "$bin/pg_ctl" -D "$data" -w -l "$data/log" start >/dev/null
}

stop() { as_server "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null; bin=; }

# the hour, in UTC, that noon of a day is in a zone: as a cast reads it, and as AT TIME ZONE does
hours() {
  psql -X -q -A -t -F ' ' -v ON_ERROR_STOP=1 -h "$data" -U postgres -d postgres -c "SET TimeZone = '$1'" -c "
    SELECT to_char(noon::timestamptz AT TIME ZONE 'UTC', 'HH24'),
           to_char((noon AT TIME ZONE current_setting('TimeZone')) AT TIME ZONE 'UTC', 'HH24')
    FROM (VALUES (timestamp '2026-01-15 12:00'), (timestamp '2026-07-15 12:00')) AS day (noon)" | paste -sd ' '
}

seen=
for version in 17.11.0 18.6.0; do
  install "$version"
  start "$version"
  for zone in CET EET MET WET Europe/Brussels EST5EDT; do
    seen+="$version $zone $(hours "$zone")"$'\n'
  done
  stop
done

python3 -m venv "$home/python"
"$home/python/bin/pip" -q install tzdata==2025.2
seen+=$(PYTHONTZPATH='' "$home/python/bin/python" - <<'PY'
from datetime import datetime, timezone
from zoneinfo import ZoneInfo
for zone in ('CET', 'Europe/Brussels'):
    hours = (datetime(2026, month, 15, 12, tzinfo=ZoneInfo(zone)).astimezone(timezone.utc).hour for month in (1, 7))
    print('zoneinfo', zone, *hours)
PY
)

echo "reader, zone; UTC hour of noon in January by cast and by AT TIME ZONE, in July by both:"
echo "$seen"

wanted=
for version in 17.11.0 18.6.0; do
  wanted+="$version CET 11 11 10 11
$version EET 10 10 09 10
$version MET 11 11 10 11
$version WET 12 12 11 12
$version Europe/Brussels 11 11 10 10
$version EST5EDT 17 17 16 16
"
done
wanted+="zoneinfo CET 11 10
zoneinfo Europe/Brussels 11 10"
[ "$seen" = "$wanted" ] || { echo "that is no longer as described" >&2; exit 1; }
