# shellcheck shell=bash
# Redis, with the durability that walcast asks for.

redis_address() { echo "127.0.0.1:$redis_port"; }

redis_start() {
  local dir
  dir=$(dir_of "$1")
  need_port "$redis_port" SERVICES_REDIS_PORT
  mkdir -p "$dir/data"
  (umask 077 && redis_conf "$dir/data" >"$dir/redis.conf")
  # Debian's redis-tools holds the server under this name; the name it is called by decides what it is
  ln -sf "${SERVICES_REDIS_SERVER:-$(command -v redis-server || command -v redis-check-rdb)}" "$dir/redis-server"
  launch "$1" "$dir/redis-server" "$dir/redis.conf"
}

redis_ready() {
  [ "$(REDISCLI_AUTH=$redis_password redis-cli -h 127.0.0.1 -p "$redis_port" PING 2>/dev/null)" = PONG ]
}

redis_conf() {
  cat <<C
bind 127.0.0.1
port $redis_port
requirepass $redis_password
dir $1
databases 256
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
C
}
