#!/bin/bash
# KAFKA_LOG_DIRS=… becomes log.dirs=…, as in Apache's image.
set -eu
settings=/opt/kafka/config/server.properties
env | grep '^KAFKA_' | grep -vE '^KAFKA_(HEAP_OPTS|OPTS)=' | while IFS='=' read -r name value; do
  name=${name#KAFKA_}
  name=${name,,}
  echo "${name//_/.}=$value"
done >"$settings"
jvm=(java -cp '/opt/kafka/libs/*' -Dorg.slf4j.simpleLogger.showDateTime=true)
[ -e "$KAFKA_LOG_DIRS/meta.properties" ] ||
  "${jvm[@]}" kafka.tools.StorageTool format --cluster-id=5L6g3nShT-eMCtK--X86sw --config "$settings"
# shellcheck disable=SC2086  # the options are to be split
exec "${jvm[@]}" -XX:+UseSerialGC ${KAFKA_HEAP_OPTS:-} kafka.Kafka "$settings"
