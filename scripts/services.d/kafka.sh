# shellcheck shell=bash
# Apache Kafka: each process is broker and controller (KRaft), from Maven Central's jars. A lone one is called kafka; of a cluster
# the others are kafka-2, kafka-3 and so on.

kafka_names() {
  local node names=kafka
  for ((node = 2; node <= kafka_brokers; node++)); do names="$names kafka-$node"; done
  echo "$names"
}

kafka_node() { if [ "$1" = kafka ]; then echo 1; else echo "${1#kafka-}"; fi; }
# node N is two ports further for each before it: one for clients, one for controllers
kafka_port_of() { echo $((kafka_port + 2 * ($(kafka_node "$1") - 1))); }
kafka_address() { echo "127.0.0.1:$(kafka_port_of "$1")"; }

# All brokers, as clients want them.
kafka_bootstrap() {
  local name addresses=
  for name in $(kafka_names); do addresses=$addresses,$(kafka_address "$name"); done
  echo "${addresses#,}"
}

kafka_start() {
  local dir heap=512m
  dir=$(dir_of "$1")
  case " $(kafka_names) " in *" $1 "*) ;; *) die "there is no $1 with SERVICES_KAFKA_BROKERS=$kafka_brokers" ;; esac
  need_port "$(kafka_port_of "$1")" SERVICES_KAFKA_PORT
  need_port $(($(kafka_port_of "$1") + kafka_controller_port - kafka_port)) SERVICES_KAFKA_CONTROLLER_PORT
  kafka_jars
  kafka_settings "$1" >"$dir/server.properties"
  if [ ! -d "$dir/data/__cluster_metadata-0" ]; then
    kafka_format "$dir"
  elif [ "$kafka_brokers" = 1 ] && [ "${SERVICES_KAFKA_FENCED:-yes}" = yes ]; then
    kafka_fence_last_broker "$dir"
  fi
  [ "$kafka_brokers" = 1 ] || heap=256m
  # shellcheck disable=SC2086  # the options are to be split
  launch "$1" "${jvm[@]}" -Xms$heap -Xmx$heap ${SERVICES_KAFKA_JVM_OPTS:-} kafka.Kafka "$dir/server.properties"
}

kafka_settings() {
  local name port voters= advertised=$kafka_advertised_port
  port=$(kafka_port_of "$1")
  [ "$kafka_brokers" = 1 ] || advertised=$port
  for name in $(kafka_names); do
    voters=$voters,$(kafka_node "$name")@127.0.0.1:$(($(kafka_port_of "$name") + kafka_controller_port - kafka_port))
  done
  sed -e "s|@NODE@|$(kafka_node "$1")|g" -e "s|@VOTERS@|${voters#,}|g" -e "s|@PORT@|$port|g" -e "s|@ADVERTISED_PORT@|$advertised|g" \
    -e "s|@CONTROLLER_PORT@|$((port + kafka_controller_port - kafka_port))|g" -e "s|@DATA@|$(dir_of "$1")/data|g" \
    "$here/services.d/server.properties.template"
  [ "$kafka_brokers" = 1 ] || cat "$here/services.d/cluster.properties"
  [ -z "${SERVICES_KAFKA_PROPERTIES:-}" ] || cat "$SERVICES_KAFKA_PROPERTIES"
}

kafka_ready() { grep -q 'Kafka Server started' "$(log_of "$1")" 2>/dev/null && listening "$(kafka_port_of "$1")"; }

kafka_jars() {
  local major
  major=$(java -version 2>&1 | sed -nE 's/.* version "([0-9]+).*/\1/p') || true
  [ "${major:-0}" -ge 17 ] || die "Kafka needs Java 17 or newer, found '${major:-none}'; install openjdk-17-jre-headless"
  # named after what was asked for, so that another pom.xml gets another folder
  lib=$home/kafka-${SERVICES_KAFKA_VERSION:+$SERVICES_KAFKA_VERSION-}$(sha256sum "$here/services.d/pom.xml" | cut -c1-12)
  fetch "$lib" kafka_fetch || die "Kafka's jars could not be fetched from Maven Central; the log: $home/kafka-fetch.log"
  # The first compiler alone: a third less CPU until ready. For minutes of load give SERVICES_KAFKA_JVM_OPTS=-XX:TieredStopAtLevel=4
  jvm=(java -cp "$lib/*" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:+ExitOnOutOfMemoryError -Djava.net.preferIPv4Stack=true
    -Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS
    -Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config.AbstractConfig=warn)
}

# What Kafka's own kafka-NAME.sh does, against these brokers. The tools are those of the usual version whatever the brokers' is: they
# do not run on another one's jars.
kafka_tool() {
  local class
  case ${1:-} in
    acls) class=org.apache.kafka.tools.AclCommand ;;
    configs) class=kafka.admin.ConfigCommand ;;
    topics) class=org.apache.kafka.tools.TopicCommand ;;
    transactions) class=org.apache.kafka.tools.TransactionsCommand ;;
    console-consumer) class=org.apache.kafka.tools.consumer.ConsoleConsumer ;;
    console-share-consumer) class=org.apache.kafka.tools.consumer.ConsoleShareConsumer ;;
    metadata-quorum) class=org.apache.kafka.tools.MetadataQuorumCommand ;;
    *) usage ;;
  esac
  shift
  SERVICES_KAFKA_VERSION='' kafka_jars
  "${jvm[@]}" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn "$class" --bootstrap-server "$(kafka_bootstrap)" "$@"
}

kafka_fetch() {
  say "fetching Kafka"
  # -C: a wrong checksum is an error, not a warning; -U: ask again for what was missing
  # the tools of another version do: not each one's can be had
  mvn -B -ntp -U -C -f "$here/services.d/pom.xml" ${SERVICES_KAFKA_VERSION:+"-Dkafka.version=$SERVICES_KAFKA_VERSION"} \
    dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$1" \
    >"$home/kafka-fetch.log" 2>&1
}

kafka_format() {
  # "=": an id may begin with "-" and would be taken for an option after a blank
  "${jvm[@]}" kafka.tools.StorageTool format --cluster-id=d2FsY2FzdC1zZXJ2aWNlcw --config "$1/server.properties" \
    >"$1/format.log" 2>&1 9>&- </dev/null || die "Kafka's data folder could not be formatted; the log: $1/format.log"
}

# After a restart the controller still counts the last broker as alive and refuses the new one until its session has run
# out, 30 s here. So the controller runs alone first, with a short session, until it has fenced the last broker. Kafka 4.3
# and 4.4 moreover hide acknowledged transactions when a broker is fenced while it starts (KAFKA-20734).
kafka_fence_last_broker() {
  local dir=$1 log=$1/fence.log pid spare=20 deadline=$((SECONDS + start_seconds_max))
  {
    sed -E '/^(advertised\.)?listeners=/d' "$dir/server.properties"
    printf '%s\n' process.roles=controller "listeners=CONTROLLER://127.0.0.1:$kafka_controller_port" \
      broker.session.timeout.ms=200 broker.heartbeat.interval.ms=50
  } >"$dir/fence.properties"
  "${jvm[@]}" -Xmx256m kafka.Kafka "$dir/fence.properties" >"$log" 2>&1 9>&- </dev/null &
  pid=$!
  # shellcheck disable=SC2064  # expand now: pid is local
  trap "kill -KILL $pid 2>/dev/null || true" EXIT
  # it may have been fenced already: then a second of an active controller is enough
  until grep -q 'Fencing broker ' "$log" || [ "$spare" -eq 0 ]; do
    [ $SECONDS -lt $deadline ] && kill -0 $pid 2>/dev/null || die "Kafka's controller failed; its log: $log"
    ! grep -q 'Activated periodic tasks' "$log" || spare=$((spare - 1))
    sleep 0.05
  done
  sleep 0.5 # it says so before the record is in the metadata log
  kill -TERM $pid
  wait $pid || true
  trap - EXIT
}
