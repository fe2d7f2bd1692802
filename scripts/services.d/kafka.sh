# shellcheck shell=bash
# Apache Kafka: one process as broker and controller (KRaft), from Maven Central's jars.

kafka_address() { echo "127.0.0.1:$kafka_port"; }

kafka_start() {
  local dir
  dir=$(dir_of "$1")
  need_port "$kafka_port" SERVICES_KAFKA_PORT
  need_port "$kafka_controller_port" SERVICES_KAFKA_CONTROLLER_PORT
  kafka_jars
  sed -e "s|@PORT@|$kafka_port|g" -e "s|@ADVERTISED_PORT@|$kafka_advertised_port|g" -e "s|@CONTROLLER_PORT@|$kafka_controller_port|g" -e "s|@DATA@|$dir/data|g" \
    "$here/services.d/server.properties.template" >"$dir/server.properties"
  [ -z "${SERVICES_KAFKA_PROPERTIES:-}" ] || cat "$SERVICES_KAFKA_PROPERTIES" >>"$dir/server.properties"
  if [ -d "$dir/data/__cluster_metadata-0" ]; then kafka_fence_last_broker "$dir"; else kafka_format "$dir"; fi
  # shellcheck disable=SC2086  # the options are to be split
  launch "$1" "${jvm[@]}" -Xms512m -Xmx512m ${SERVICES_KAFKA_JVM_OPTS:-} kafka.Kafka "$dir/server.properties"
}

kafka_ready() { grep -q 'Kafka Server started' "$(log_of "$1")" 2>/dev/null && listening "$kafka_port"; }

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

# What Kafka's own kafka-NAME.sh does, against this broker.
kafka_tool() {
  local class
  case ${1:-} in
    acls) class=org.apache.kafka.tools.AclCommand ;;
    configs) class=kafka.admin.ConfigCommand ;;
    *) usage ;;
  esac
  shift
  kafka_jars
  "${jvm[@]}" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn "$class" --bootstrap-server "$(kafka_address)" "$@"
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
