"""Commit-to-visible latency: an event each second into a content row of its own, and one outside reader a target that
watches for it. The one of BigQuery looks once a second only."""

import datetime
import json
import threading
import time
import uuid

import receiver
import targets

EVERY_SECONDS = 1
LAST_LOOK_SECONDS_MAX = 5


class Probes:
    def __init__(self, source):
        self.first_id_of_run = source.first_id_of_run
        # The highest of ids: the generator takes the lowest that are there, so none but the probes engage with it.
        self.content = f"ffffffff-ffff-4fff-bfff-{uuid.uuid4().hex[:12]}"
        self.days = {today()}
        self.sent = {}  # event id -> when its COMMIT was sent
        self.seen = {"kafka": {}, "redis": {}, "bigquery": {}, "http": {}}  # sink -> event id -> when a reader found it
        self.sending, self.watching = threading.Event(), threading.Event()
        self.sending.set()
        self.watching.set()
        self.problems = []
        self.threads = [threading.Thread(target=self.guarded, args=[work], daemon=True)
                        for work in (self.send, self.watch_kafka, self.watch_redis, self.watch_bigquery, self.watch_http)]
        for thread in self.threads:
            thread.start()

    def guarded(self, work):
        try:
            work()
        except Exception as problem:  # a reader that fails costs its figure, not the demo
            self.problems.append(f"{work.__name__.replace('_', ' ')}: {problem}")

    def latencies(self, sink):
        """Seconds, sorted. From the moment COMMIT is sent, so the commit itself is in it."""
        return sorted(at - self.sent[event] for event, at in self.seen[sink].items() if event in self.sent)

    def end_sending(self):
        self.sending.clear()
        self.threads[0].join()

    def end_watching(self):
        """Call it once the targets hold all: then the watchers need one more look only."""
        deadline = time.monotonic() + LAST_LOOK_SECONDS_MAX
        while any(len(seen) < len(self.sent) for seen in self.seen.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.watching.clear()

    def send(self):
        with targets.connect() as connection:
            self.wait_for_generator(connection)
            connection.execute(
                "INSERT INTO content VALUES (%s, %s, 'A probe of the demo', 'video', 60, now())",
                [self.content, f"demo-probe-{self.content}"])
            while self.sending.is_set():
                now = datetime.datetime.now(datetime.timezone.utc)
                self.days.add(now.date().isoformat())
                with connection.transaction():
                    (event,) = connection.execute(
                        "INSERT INTO engagement_events (content_id, event_type, event_ts) VALUES (%s, 'click', %s) RETURNING id",
                        [self.content, now]).fetchone()
                    self.sent[event] = time.monotonic()
                time.sleep(EVERY_SECONDS)

    def wait_for_generator(self, connection):
        """Until its first event: by then it has chosen its content."""
        newest = "SELECT coalesce(max(id), 0) FROM engagement_events"
        while connection.execute(newest).fetchone()[0] < self.first_id_of_run and self.sending.is_set():
            time.sleep(0.05)

    def watch_kafka(self):
        consumer = targets.kafka_consumer()
        key = self.content.encode()
        partitions = targets.kafka_partitions(consumer)
        for partition in partitions:
            partition.offset = consumer.get_watermark_offsets(partition, timeout=10)[1]
        consumer.assign(partitions)
        while self.watching.is_set():
            message = consumer.poll(0.2)
            if message is not None and message.error() is None and message.key() == key:
                self.seen["kafka"].setdefault(event_id(message), time.monotonic())

    def watch_redis(self):
        client = targets.redis_client()
        self.watch_count("redis", 0.001, lambda: sum(int(client.hget(f"engagement:{self.content}:{day}", "clicks") or 0)
                                                     for day in list(self.days)))

    def watch_http(self):
        self.watch_count("http", 0.005, lambda: receiver.counts(content=self.content)["events"])

    def watch_count(self, sink, every, count):
        """For a target that tells how many probes are there: they arrive in the order they were sent."""
        seen = self.seen[sink]
        while self.watching.is_set():
            sent = list(self.sent)
            if len(sent) > len(seen):
                there, now = count(), time.monotonic()
                for event in sent[len(seen):there]:
                    seen[event] = now
            time.sleep(every)

    def watch_bigquery(self):
        seen = self.seen["bigquery"]
        sql = f"SELECT event_id FROM {targets.bigquery_table()} WHERE content_id = '{self.content}'"
        while self.watching.is_set():
            for (event,) in targets.bigquery(sql):
                seen.setdefault(int(event), time.monotonic())
            time.sleep(1)


def event_id(message):
    return json.loads(message.value())["event_id"]


def today():
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def percentiles(latencies):
    """p50, p95 and the maximum, as text."""
    if not latencies:
        return "–", "–", "–"
    return tuple(duration(latencies[min(len(latencies) - 1, int(len(latencies) * part))]) for part in (0.5, 0.95, 1))


def duration(seconds):
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
