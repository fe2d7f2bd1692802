# shellcheck shell=bash
# Debian's packages: what the servers, the tests and the Rust build need besides Rust, Java 17, Maven and Python 3.13.

install_packages() {
  local missing
  missing=$(missing_packages)
  [ -n "$missing" ] || return 0
  say "installing: $missing"
  apt_install "$missing" || die "these packages are missing; install them, then run this again: apt-get install $missing"
}

# redis-tools and not redis-server: it holds the server's binary too, and installing it starts no daemon.
missing_packages() {
  local tool package out=
  while read -r tool package; do
    command -v "$tool" >/dev/null || out="$out $package"
  done <<T
redis-check-rdb redis-tools
kcat kcat
psql postgresql-client
unzip unzip
xz xz-utils
openssl openssl
setpriv util-linux
cmake cmake
gcc gcc
g++ g++
make make
pkg-config pkg-config
valgrind valgrind
chromedriver chromium-driver
T
  pkg-config --exists openssl 2>/dev/null || out="$out libssl-dev"
  pkg-config --exists zlib 2>/dev/null || out="$out zlib1g-dev"
  pkg-config --exists libcurl 2>/dev/null || out="$out libcurl4-openssl-dev"
  [ -e /usr/share/zoneinfo/UTC ] || out="$out tzdata"
  [ -n "$(clock_library)" ] || out="$out libfaketime"
  echo "${out# }"
}

# Debian's own PostgreSQL speaks other languages, and `locales` has what a locale is made of. The package would start a
# server of its own; this keeps it from that.
install_debian_postgres() {
  local settings=/etc/postgresql-common/createcluster.d sudo=()
  [ -z "$(debian_postgres)" ] || [ ! -e /usr/share/i18n/locales/de_DE ] || return 0
  say "installing: postgresql locales"
  [ "$EUID" = 0 ] || sudo=(sudo -n)
  if "${sudo[@]}" mkdir -p $settings; then echo 'create_main_cluster = false' | "${sudo[@]}" tee $settings/walcast.conf >/dev/null; fi
  apt_install 'postgresql locales' || die "these packages are missing; install them, then run this again: apt-get install postgresql locales"
}

# The bin folder of its newest version; nothing where there is none.
debian_postgres() {
  find /usr/lib/postgresql/*/bin -maxdepth 1 -name initdb -printf '%h\n' 2>/dev/null | sort -V | tail -1
}

apt_install() {
  local sudo=()
  command -v apt-get >/dev/null || return 1
  if [ "$EUID" != 0 ]; then
    sudo -n true 2>/dev/null || return 1
    sudo=(sudo -n)
  fi
  # shellcheck disable=SC2206  # the list is to be split
  local install=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $1)
  "${install[@]}" </dev/null >/dev/null 2>&1 && return # the lists on the machine may do
  "${sudo[@]}" apt-get update -q </dev/null >&2 && "${install[@]}" </dev/null >&2
}
