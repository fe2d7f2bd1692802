#!/bin/sh
# Draws each password of docker-compose.yml at the first start; later ones keep what is there. Every container reads them.
set -eu
umask 022

# draw NAME [PREFIX]: 256 bits, without a character that means something in a URL or a shell
draw() {
  file=/run/secrets/$1
  [ -s "$file" ] && return
  printf '%s%s' "${2:-}" "$(head -c 32 /dev/urandom | base64 | tr '+/' 'AB')" >"$file.part"
  mv "$file.part" "$file"
}

for name in postgres walcast redis web_token grafana; do draw $name; done
draw webhook whsec_
chown 10001:10001 /receiver
