"""Fresh places for each run of walcast to write to, gone afterwards."""

import contextlib
import json
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import confluent_kafka.admin
import redis

from processes import end_with_parent, listener

ENV = os.environ
CLAIM_SECONDS = 12 * 3600
KAFKA = {"bootstrap.servers": ENV.get("KAFKA_BROKERS")}
COMMITTED = {"isolation.level": "read_committed", "enable.auto.commit": False}


class Targets:
    def __init__(self, stand_in, receiver):
        """stand_in: the program that takes BigQuery's place; None for the emulator. receiver: the one that events are posted to; or None."""
        self.stand_in, self.receiver = stand_in, receiver

    def __enter__(self):
        self.bigquery, self.http, self.started = {}, {}, []
        if self.stand_in:
            url = self.start(self.stand_in, "--forget-rows")
            self.bigquery = {"BIGQUERY_GRPC_URL": url, "BIGQUERY_REST_URL": url}
        if self.receiver:
            self.http = {"HTTP_URL": self.start(self.receiver)}
        self.kafka = confluent_kafka.admin.AdminClient(KAFKA)
        self.claims = redis_client(0)
        self.redis_db, self.redis_db_aside = self.claim(), self.claim()
        return self

    def __exit__(self, *_):
        for db in (self.redis_db, self.redis_db_aside):
            redis_client(db).flushdb()
            self.claims.delete(f"claimed:{db}")
        for process in self.started:
            process.kill()
            process.wait()

    def claim(self):
        """How the tests keep out of each other's way too."""
        return next(db for db in range(1, 256) if self.claims.set(f"claimed:{db}", "bench", nx=True, ex=CLAIM_SECONDS))

    def servers(self):
        """The processes behind the targets that run on this machine, by name."""
        url = self.bigquery.get("BIGQUERY_REST_URL", ENV["BIGQUERY_REST_URL"])
        ports = {"Kafka": ENV["KAFKA_BROKERS"].rpartition(":")[2], "Redis": ENV["REDIS_PORT"], "BigQuery": urllib.parse.urlsplit(url).port}
        if self.http:
            ports["HTTP"] = urllib.parse.urlsplit(self.http["HTTP_URL"]).port
        found = {name: listener(int(port)) for name, port in ports.items()}
        return {name: pid for name, pid in found.items() if pid}

    def start(self, program, *arguments):
        """The URL that it serves."""
        process = subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                                   start_new_session=True, preexec_fn=end_with_parent)
        self.started.append(process)
        return process.stdout.readline().strip()

    @contextlib.contextmanager
    def fresh(self, name, aside=False):
        """What walcast is to have in its environment. aside: while another one has the other."""
        redis_db = self.redis_db_aside if aside else self.redis_db
        self.clear(name, redis_db)  # what a killed one left
        try:
            yield {"KAFKA_TOPIC_PREFIX": name, "REDIS_DB": str(redis_db), "BIGQUERY_DATASET": name, **self.bigquery, **self.http}
        finally:
            self.clear(name, redis_db)

    def clear(self, name, redis_db):
        redis_client(redis_db).flushdb()
        self.delete_groups(name)
        topics = [topic for topic in self.kafka.list_topics(timeout=30).topics if topic.startswith(f"{name}.")]
        for deleted in (self.kafka.delete_topics(topics) if topics else {}).values():
            deleted.result()
        delete_dataset(self.bigquery.get("BIGQUERY_REST_URL", ENV["BIGQUERY_REST_URL"]), name)

    def delete_groups(self, name):
        listed = self.kafka.list_consumer_groups(request_timeout=30).result().valid
        groups = [group.group_id for group in listed if group.group_id.startswith(name)]
        for deleted in (self.kafka.delete_consumer_groups(groups) if groups else {}).values():
            deleted.result()


def received(url):
    """What the receiver has counted since this was last asked: events, and how old the oldest of each request was when it came."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def redis_client(db):
    return redis.Redis(ENV["REDIS_HOST"], int(ENV["REDIS_PORT"]), db, ENV["REDIS_PASSWORD"])


def delete_dataset(service, name):
    url = f"{service}/bigquery/v2/projects/{ENV['BIGQUERY_PROJECT_ID']}/datasets/{name}?deleteContents=true"
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=60).close()
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise


def versions():
    return {"redis": redis_client(0).info("server")["redis_version"]}
