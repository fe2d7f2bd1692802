"""What PostgreSQL says is due, and what each target holds, read by ordinary clients."""

import collections
import dataclasses
import json
import os
import re
import time
import urllib.request

import confluent_kafka
import psycopg
import redis

import receiver

ENV = os.environ
TOPIC = "engagement.events"
DAY_KEY = re.compile(r"engagement:[0-9a-f-]{36}:(\d{4}-\d\d-\d\d)$")
READ_SECONDS_MAX = 60  # of one look: an open transaction hides the end of its partition
DAY_FIELDS = ("plays", "pauses", "finishes", "clicks")


@dataclasses.dataclass
class Due:
    """Events that every sink must hold. Those refused for a negative duration and those from before the slot are not due."""

    all: int
    this_run: int
    refused: int
    by_live_day: dict  # UTC day -> events with a content_id, for the days whose Redis keys have not expired
    last_id: int
    first_id_of_run: int


@dataclasses.dataclass
class Held:
    events: int
    due: int
    twice: int = 0
    refused: int = 0  # requests that nobody should have sent
    note: str = ""

    @property
    def missing(self):
        return max(0, self.due - self.events)

    @property
    def whole(self):
        return self.events == self.due and self.twice == 0 and self.refused == 0


class Source:
    STREAMED = """engagement_events WHERE NOT coalesce(pg_visible_in_snapshot(xmin::text::xid8,
        (SELECT snapshot FROM walcast.slot ORDER BY created_at DESC LIMIT 1)), false)"""

    def __init__(self):
        self.connection = connect()
        (last_id,) = self.connection.execute("SELECT coalesce(max(id), 0) FROM engagement_events").fetchone()
        self.first_id_of_run = last_id + 1
        (self.history,) = self.connection.execute("SELECT history_id::text FROM walcast.slot ORDER BY created_at DESC LIMIT 1").fetchone()

    def without_http(self):
        """Whether earlier runs were without it: what they made can no longer come to it."""
        names = {name for (name,) in self.connection.execute("SELECT name FROM walcast.sink WHERE history_id = %s", [self.history])}
        return bool(names) and "http" not in names

    def due(self):
        everything, this_run, refused, last_id = self.connection.execute(
            f"""SELECT count(*) FILTER (WHERE ok), count(*) FILTER (WHERE ok AND id >= %s), count(*) FILTER (WHERE NOT ok),
                       coalesce(max(id), 0)
                FROM (SELECT id, coalesce(duration_ms, 0) >= 0 AS ok FROM {self.STREAMED}) AS e""",
            [self.first_id_of_run]).fetchone()
        return Due(everything, this_run, refused, self.by_live_day(), last_id, self.first_id_of_run)

    def by_live_day(self):
        rows = self.connection.execute(
            f"""SELECT day, count(*)
                FROM (SELECT (event_ts AT TIME ZONE 'UTC')::date AS day FROM {self.STREAMED}
                      AND content_id IS NOT NULL AND coalesce(duration_ms, 0) >= 0) AS e
                WHERE day + 3 > now() AT TIME ZONE 'UTC'  -- 48 h after the day's end
                GROUP BY day""")
        return {str(day): events for day, events in rows}


class KafkaEvents:
    """Counts distinct ids, from the topic's beginning, as a read_committed consumer sees them."""

    def __init__(self):
        self.consumer = kafka_consumer({"enable.partition.eof": True})
        partitions = kafka_partitions(self.consumer)
        self.shortened = any(self.consumer.get_watermark_offsets(p, timeout=10)[0] > 0 for p in partitions)
        self.consumer.assign([confluent_kafka.TopicPartition(p.topic, p.partition, confluent_kafka.OFFSET_BEGINNING)
                              for p in partitions])
        self.partitions = partitions
        self.read_up_to = {}  # partition -> the offset at which it had no more to give
        self.seen = bytearray()
        self.twice = 0

    def read(self, due):
        first = due.first_id_of_run if self.shortened else 0
        self.seen.extend(bytes(due.last_id + 1 - len(self.seen)))
        self.read_to_end()
        note = "earlier runs are past the topic's retention" if self.shortened else ""
        return Held(sum(self.seen[first:]), due.this_run if self.shortened else due.all, self.twice, note=note)

    def read_to_end(self):
        ends = {p.partition: self.consumer.get_watermark_offsets(p, timeout=10)[1] for p in self.partitions}
        deadline = time.monotonic() + READ_SECONDS_MAX
        while any(self.read_up_to.get(p, -1) < end for p, end in ends.items()) and time.monotonic() < deadline:
            for message in self.consumer.consume(5000, timeout=0.2):
                if message.error() is None:
                    self.count(json.loads(message.value())["event_id"])
                elif message.error().code() == confluent_kafka.KafkaError._PARTITION_EOF:
                    self.read_up_to[message.partition()] = message.offset()
                else:
                    raise confluent_kafka.KafkaException(message.error())

    def count(self, event_id):
        if event_id >= len(self.seen):
            return  # newer than what is due
        self.twice += self.seen[event_id]
        self.seen[event_id] = 1


class RedisEvents:
    """Sums the counters of engagement:<id>:<day>. Events without content and of expired days have none."""

    def __init__(self):
        self.client = redis_client()

    def read(self, due):
        events = sum(n for day, n in self.by_day().items() if day in due.by_live_day)
        expected = sum(due.by_live_day.values())
        left_out = due.all - expected
        note = f"{left_out:,} have no key: no content, or their day has expired" if left_out else ""
        return Held(min(events, expected), expected, max(0, events - expected), note=note)

    def by_day(self):
        days, batch = collections.Counter(), []
        for key in self.client.scan_iter("engagement:*", count=5000):
            if DAY_KEY.match(key):
                batch.append(key)
            if len(batch) == 5000:
                self.add(days, batch)
                batch = []
        self.add(days, batch)
        return days

    def add(self, days, keys):
        pipeline = self.client.pipeline(transaction=False)
        for key in keys:
            pipeline.hmget(key, DAY_FIELDS)
        for key, counts in zip(keys, pipeline.execute()):
            days[DAY_KEY.match(key)[1]] += sum(int(n or 0) for n in counts)


class BigQueryEvents:
    def read(self, due):
        ((rows, ids),) = bigquery(f"SELECT COUNT(*), COUNT(DISTINCT event_id) FROM {bigquery_table()}")
        return Held(int(ids), due.all, int(rows) - int(ids))


class HttpEvents:
    """Counts distinct ids among what the sample receiver gives back, once it says that it has all."""

    def __init__(self, history):
        self.history = history

    def read(self, due):
        counts = receiver.counts(history=self.history)
        requests, repeats, refused = counts["requests"], counts["repeats"], counts["refused"]
        note = f"{requests:,} requests; {repeats:,} repeats dropped; {refused:,} refused"
        events, twice = counts["events"], 0
        if events >= due.all:
            ids = list(receiver.events(self.history))
            events, twice = len(set(ids)), len(ids) - len(set(ids))
        return Held(events, due.all, twice, refused, note)


def top_five():
    client = redis_client()
    board = client.zrevrange("top_engagement:10min", 0, 4, withscores=True)
    return [(client.hget(f"content:{content}", "title") or content, engaged) for content, engaged in board]


def connect():
    return psycopg.connect(host=ENV["POSTGRES_HOST"], port=ENV["POSTGRES_PORT"], dbname=ENV["POSTGRES_DB"],
                           user=ENV["POSTGRES_USER"], password=ENV["POSTGRES_PASSWORD"], autocommit=True)


def redis_client():
    return redis.Redis(ENV["REDIS_HOST"], int(ENV["REDIS_PORT"]), password=ENV["REDIS_PASSWORD"], decode_responses=True)


def kafka_consumer(more=None):
    return confluent_kafka.Consumer({"bootstrap.servers": ENV["KAFKA_BROKERS"], "group.id": "walcast-demo",
                                     "enable.auto.commit": False, "isolation.level": "read_committed", **(more or {})})


def kafka_partitions(consumer):
    topic = consumer.list_topics(TOPIC, timeout=10).topics[TOPIC]
    return [confluent_kafka.TopicPartition(TOPIC, partition) for partition in topic.partitions]


def bigquery_table():
    return f"`{ENV['BIGQUERY_PROJECT_ID']}.{ENV['BIGQUERY_DATASET']}.engagement_events`"


def bigquery(sql):
    """The rows as tuples of text."""
    request = urllib.request.Request(f"{ENV['BIGQUERY_REST_URL']}/bigquery/v2/projects/{ENV['BIGQUERY_PROJECT_ID']}/queries",
                                     json.dumps({"query": sql, "useLegacySql": False}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [tuple(cell["v"] for cell in row["f"]) for row in json.load(answer).get("rows", [])]
