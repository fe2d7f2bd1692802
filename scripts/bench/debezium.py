"""Debezium: its embedded engine with a handler that does nothing, and Kafka Connect, exactly once, into 16 partitions.

Both begin where the slot does: there is no stored offset, snapshot.mode=no_data takes no rows, and Debezium then streams from
the confirmed LSN of a slot that exists. That every event came is counted, by the handler and in the topic.

Settings are Debezium's own except where said, and then in its favour: JSON without schemas, lz4 as walcast has it, batches four
times the default, and sent after 100 ms, not 500, as walcast does to Kafka. The slot's confirmed LSN is what ends the clock for
it too, so offsets and heartbeats, which move that, come each 100 ms instead of each minute and never: the clock may stop that
much late. The JVM's flags are those of Kafka Connect's start script.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import time
import urllib.request

import confluent_kafka

import report
import targets
from clients import PUBLICATION, Client
from processes import free_port

HERE = pathlib.Path(__file__).parent / "debezium"
JVM = ["-Xms256M", "-Xmx2G", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"]
PARTITIONS = 16
REST_SECONDS_MAX = 120
COUNT_SECONDS_MAX = 300
SIGTERM_EXIT = 143


class Unavailable(Exception):
    """Why Debezium cannot take part."""


def fetch(folder):
    """The class path: its jars and the compiled engine, fetched once. Named after what was asked for."""
    sources = [HERE / "pom.xml", HERE / "NoOpEngine.java"]
    jars = folder / f"debezium-{hashlib.sha256(b''.join(source.read_bytes() for source in sources)).hexdigest()[:12]}"
    for tool in ("mvn", "java", "javac"):
        if not shutil.which(tool):
            raise Unavailable(f"{tool} is not installed")
    if not jars.exists():
        part = jars.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        log = folder / "debezium-fetch.log"
        with log.open("wb") as out:
            made(out, ["mvn", "-B", "-ntp", "-U", "-C", "-f", sources[0], "dependency:copy-dependencies", "-DincludeScope=runtime",
                       f"-DoutputDirectory={part}"], "its jars could not be fetched from Maven Central")
            made(out, ["javac", "-cp", f"{part}/*", "-d", part, sources[1]], "its engine did not compile")
        part.rename(jars)
    return f"{jars}:{jars}/*"


def made(out, command, otherwise):
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out).returncode:
        report.say(f"bench: the log: {out.name}")
        raise Unavailable(otherwise)


def version(class_path):
    jar = next(pathlib.Path(class_path.partition(":")[0]).glob("debezium-embedded-*.jar"))
    return jar.stem.removeprefix("debezium-embedded-")


def connector(slot):
    env = slot.environment
    return {
        "name": slot.name,
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": env["POSTGRES_HOST"], "database.port": env["POSTGRES_PORT"], "database.dbname": env["POSTGRES_DB"],
        "database.user": env["POSTGRES_USER"], "database.password": os.environ["POSTGRES_PASSWORD"], "database.sslmode": "disable",
        "plugin.name": "pgoutput", "slot.name": slot.name, "publication.name": PUBLICATION, "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "topic.prefix": slot.name, "topic.heartbeat.prefix": f"{slot.name}.heartbeat", "heartbeat.interval.ms": "100",
        "max.batch.size": "8192", "max.queue.size": "32768", "poll.interval.ms": "100",
    }


class Debezium(Client):
    exit_codes = (0, SIGTERM_EXIT)

    def __init__(self, class_path):
        self.class_path = class_path

    def java(self, *rest):
        return ["java", *JVM, "-Dorg.apache.logging.log4j.level=WARN", "-cp", self.class_path, *rest]

    def has_all(self, look, slot, environment):
        return look.confirmed


class Engine(Debezium):
    def command(self, slot, environment):
        return self.java("NoOpEngine")

    def environment(self, slot, fresh):
        settings = connector(slot) | {"offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
                                      "offset.flush.interval.ms": "100"}
        return {"DEBEZIUM_PROPERTIES": "".join(f"{name}={value}\n" for name, value in settings.items())}

    def prove(self, slot, child):
        counted = [int(line.split()[1]) for line in child.log.read_text().splitlines() if line.startswith("events ")]
        if not counted or counted[-1] < slot.events:
            child.give_up(f"took {counted} events of {slot.events}")


class Connect(Debezium):
    def __init__(self, class_path, folder):
        super().__init__(class_path)
        self.folder = folder

    def environment(self, slot, fresh):
        return {"CONNECT_REST": f"http://127.0.0.1:{free_port()}"}

    def command(self, slot, environment):
        settings = self.folder / "connect.properties"
        settings.write_text("".join(f"{name}={value}\n" for name, value in worker(slot.name, environment["CONNECT_REST"]).items()))
        return self.java("org.apache.kafka.connect.cli.ConnectDistributed", settings)

    def begin(self, child, slot, environment):
        """Makes the connector, once the worker is there. Until then it answers 404 or 503, or nobody does."""
        settings = connector(slot) | {
            "topic.creation.default.partitions": str(PARTITIONS), "topic.creation.default.replication.factor": "1",
            "exactly.once.support": "required", "producer.override.compression.type": "lz4",
        }
        request = urllib.request.Request(f"{environment['CONNECT_REST']}/connectors/{slot.name}/config", json.dumps(settings).encode(),
                                         {"Content-Type": "application/json"}, method="PUT")
        deadline = time.monotonic() + REST_SECONDS_MAX
        while True:
            try:
                urllib.request.urlopen(request, timeout=30).close()
                return
            except OSError as problem:  # what urllib raises is one
                if time.monotonic() > deadline or not child.runs():
                    child.give_up(f"took no connector: {problem}")
                time.sleep(0.1)

    def topic(self, slot):
        return f"{slot.name}.public.engagement_events"

    def prove(self, slot, child):
        held = count_committed(self.topic(slot))
        if held < slot.events:
            child.give_up(f"wrote {held} events of {slot.events}")


def worker(name, rest):
    json_converter = "org.apache.kafka.connect.json.JsonConverter"
    internal = {f"{kind}.storage.{setting}": value for kind in ("config", "offset", "status")
                for setting, value in (("topic", f"{name}.connect.{kind}"), ("replication.factor", "1"))}
    return internal | {
        "bootstrap.servers": os.environ["KAFKA_BROKERS"], "group.id": name, "listeners": rest, "exactly.once.source.support": "enabled",
        "offset.storage.partitions": "1", "status.storage.partitions": "1", "plugin.discovery": "service_load",
        "key.converter": json_converter, "key.converter.schemas.enable": "false",
        "value.converter": json_converter, "value.converter.schemas.enable": "false",
    }


def count_committed(topic):
    """Records that a read_committed reader finds. Offsets would count the transactions' markers too."""
    reader = confluent_kafka.Consumer(targets.KAFKA | targets.COMMITTED | {"group.id": topic, "enable.partition.eof": True})
    left, held, deadline = set(range(PARTITIONS)), 0, time.monotonic() + COUNT_SECONDS_MAX
    reader.assign([confluent_kafka.TopicPartition(topic, partition, confluent_kafka.OFFSET_BEGINNING) for partition in left])
    while left and time.monotonic() < deadline:
        for message in reader.consume(10_000, 1):
            if message.error() is None:
                held += 1
            else:
                left.discard(message.partition())
    reader.close()
    return held
