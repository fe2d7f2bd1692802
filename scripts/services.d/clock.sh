# shellcheck shell=bash
# Wall clocks that can be moved, by libfaketime. The monotonic clock goes on as it is, as when a real clock is set.

# clock_env FILE: what the environment of a program must have whose clock is off by what FILE says.
clock_env() {
  local waits=$home/clock.so source=$here/services.d/clock.c
  if [ "$source" -nt "$waits" ]; then
    mkdir -p "$home"
    gcc -O1 -shared -fPIC -o "$waits.$$" "$source" -pthread && mv -f "$waits.$$" "$waits" || die "$source cannot be compiled"
  fi
  cat <<V
LD_PRELOAD=$waits:$(clock_library)
FAKETIME_TIMESTAMP_FILE=$1
FAKETIME_NO_CACHE=1
DONT_FAKE_MONOTONIC=1
V
}

# clock_move FILE SECONDS: at once for all that look, never half written.
clock_move() {
  [[ $2 =~ ^[+-][0-9]+$ ]] || die "a clock is moved by seconds such as +3600, not '$2'"
  echo "$2" >"$1.new" && mv -f "$1.new" "$1"
}

clock_library() { find /usr/lib/*/faketime -name libfaketimeMT.so.1 -print -quit 2>/dev/null || true; }
