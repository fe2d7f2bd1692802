# shellcheck shell=bash
# One server, one folder: $servers/NAME holds its data, log, lock and pid file.
# The part of NAME before the first "-" is its kind; KIND_start, KIND_ready and KIND_address are in KIND.sh.

dir_of() { echo "$servers/$1"; }
log_of() { echo "$servers/$1/log"; }
address() { "${1%%-*}_address" "$1"; }
known() { [ ! -d "$servers" ] || ls "$servers"; }

up() {
  local name=$1 kind=${1%%-*} begun=$SECONDS
  declare -F "${kind}_start" >/dev/null || die "no server is called $name"
  lock "$name"
  if running_elsewhere "$name"; then
    die "$name runs with other settings ($(recorded_address "$name")); 'scripts/services down $name' first"
  fi
  if ! pid_of "$name" >/dev/null; then
    "${kind}_start" "$name"
    await_ready "$name"
    say "$name is up after $((SECONDS - begun)) s on $(address "$name")"
  else
    await_ready "$name"
  fi
}

down() {
  local name=$1 signal=TERM pid deadline=$((SECONDS + 30))
  [ "${name%%-*}" != postgres ] || signal=INT # its fast shutdown
  [ -d "$(dir_of "$name")" ] || return 0
  lock "$name"
  pid=$(pid_of "$name") || return 0
  kill -"$signal" "$pid"
  while pid_of "$name" >/dev/null; do
    if [ $SECONDS -ge $deadline ]; then
      say "$name has not stopped within 30 s: killed"
      kill -KILL "$pid" || true
      deadline=$((SECONDS + 30))
    fi
    sleep 0.05
  done
  say "$name is down"
}

wipe() {
  local dir
  dir=$(dir_of "$1")
  down "$1"
  rm -rf "$dir/data" "$dir/log" "$dir/log.old" "$dir/pid"
  [ "${1#*-}" = "$1" ] || rm -rf "$dir"
}

restart() { down "$1" && up "$1"; }

signal() { # NAME [SIGNAL]
  local pid signal=${2:-KILL}
  pid=$(pid_of "$1") || die "$1 does not run"
  kill -"$signal" "$pid"
  case $signal in
    CONT) return ;;
    # the kernel stops the threads only when one of them has taken the signal
    STOP) while grep -Eqv '\) [TZX] ' /proc/"$pid"/task/*/stat; do sleep 0.02; done && return ;;
  esac
  while pid_of "$1" >/dev/null; do sleep 0.02; done
}

# One command at a time for one server. What is started below gets 9>&-, or it would hold the lock for as long as it lives.
lock() {
  mkdir -p "$(dir_of "$1")"
  exec 9>"$(dir_of "$1")/lock"
  flock -w 600 9 || die "another scripts/services has held $(dir_of "$1")/lock for ten minutes"
}

# launch NAME COMMAND…: in a session of its own, so that a Ctrl-C in this terminal does not stop it.
launch() {
  local name=$1 log
  log=$(log_of "$name")
  shift
  [ ! -e "$log" ] || mv -f "$log" "$log.old"
  # no descriptor of the caller's either: a lock it holds would be held for as long as the server lives
  setsid "$@" </dev/null >"$log" 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&- &
  echo "$! $(start_time $!) $(address "$name")" >"$(dir_of "$name")/pid"
}

await_ready() {
  local name=$1 deadline=$((SECONDS + start_seconds_max))
  until "${name%%-*}_ready" "$name"; do
    pid_of "$name" >/dev/null || { tail -n 8 "$(log_of "$name")" >&2; die "$name ended while starting; its log: $(log_of "$name")"; }
    [ $SECONDS -lt $deadline ] || die "$name is not ready after $start_seconds_max s; its log: $(log_of "$name")"
    sleep 0.1
  done
}

# The pid of the live server, or false. A pid alone proves nothing, since pids are used again: its start time must agree.
pid_of() {
  local pid start _
  read -r pid start _ 2>/dev/null <"$(dir_of "$1")/pid" || return 1
  [ -n "$start" ] && [ "$(start_time "$pid")" = "$start" ] && echo "$pid"
}

recorded_address() { cut -d' ' -f3- "$(dir_of "$1")/pid"; }
running_elsewhere() { pid_of "$1" >/dev/null && [ "$(recorded_address "$1")" != "$(address "$1")" ]; }

start_time() { # in clock ticks since boot; nothing for a zombie
  awk '{ sub(/^.*\) /, ""); if ($1 != "Z" && $1 != "X") print $20 }' "/proc/$1/stat" 2>/dev/null || true
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
need_port() { # PORT VARIABLE. What was just killed may hold its port until the last of its threads is gone.
  local deadline=$((SECONDS + 5))
  while listening "$1"; do
    [ $SECONDS -lt $deadline ] || die "port $1 is taken by another process; choose another one: $2"
    sleep 0.05
  done
}

# fetch FOLDER COMMAND…: the command fills the folder whose path it gets as last word; a fetch cut short leaves nothing.
fetch() (
  folder=$1
  shift
  [ ! -e "$folder" ] || exit 0
  mkdir -p "$home"
  exec 8>"$folder.lock"
  flock 8
  [ ! -e "$folder" ] || exit 0
  rm -rf "$folder.part" && mkdir "$folder.part"
  "$@" "$folder.part" 8>&- 9>&- </dev/null && mv "$folder.part" "$folder"
)
