"""From a commit until an outside reader finds it, by this process' clock.

Probes are events of a content of their own, each committed alone, at uneven intervals, so that they meet a sink's own rhythm at
every phase. A probe is timed when its COMMIT has returned. A read_committed consumer waits for it in Kafka; a poller of
Redis reads how many are in `engagement:<id>:<day>`, and on a board by its score: the one of all time, from which nothing
falls out; all boards are written at once. The poller looks every 2 ms, so that its figures are up to that much high.
What is posted the receiver itself looks at: how long ago the oldest event of each request was committed.
"""

import contextlib
import datetime
import random
import re
import threading
import time
import uuid

import confluent_kafka

import targets
from source import DATABASE, connect

EVERY_SECONDS = 0.1
LOOK_SECONDS = 0.002
LAST_SECONDS_MAX = 60
ENGAGEMENT_SECONDS = 10_000  # of each probe: enough to be on the board from the first
DEVICE = re.compile(rb'"device": ?"bench-probe-(\d+)"')


class Probes:
    def __init__(self, topic, redis_db, http_url):
        """None for what the client does not write to."""
        self.content = f"ffffffff-ffff-4fff-bfff-{uuid.uuid4().hex[:12]}"  # the highest: the generator takes the lowest ids
        self.day = datetime.datetime.now(datetime.timezone.utc)
        self.topic, self.redis_db, self.http_url = topic, redis_db, http_url
        self.begun = 0
        self.committed = []  # when, by the probe's number
        self.watches = {"kafka": self.watch_kafka} if topic else {}
        self.watches |= {"redis": self.watch_redis} if redis_db is not None else {}
        places = {"kafka": ["kafka"], "redis": ["redis", "board"]}
        self.seen = {place: {} for watch in self.watches for place in places[watch]}  # when, by the probe's number
        self.problem = None
        self.at_work = threading.Event()

    def __enter__(self):
        self.at_work.set()
        self.ready = threading.Barrier(1 + len(self.watches))
        self.threads = [threading.Thread(target=self.guarded, args=[watch], daemon=True) for watch in self.watches.values()]
        for thread in self.threads:
            thread.start()
        with contextlib.suppress(threading.BrokenBarrierError):  # `send` hands on the problem
            self.ready.wait(2 * LAST_SECONDS_MAX)
        if self.http_url:
            targets.received(self.http_url)  # it begins anew
        return self

    def __exit__(self, *_):
        self.at_work.clear()
        for thread in self.threads:
            thread.join()

    def guarded(self, watch):
        try:
            watch()
        except Exception as problem:
            self.problem = f"{watch.__name__.replace('_', ' ')}: {problem!r}"
            self.ready.abort()

    def send(self, seconds, still_well, over):
        """Probes for so long, or until `over` says so, then waits until all are found, or no longer to be expected."""
        draw, end = random.Random(1), time.monotonic() + seconds
        with connect(DATABASE) as connection:
            connection.execute("INSERT INTO content VALUES (%s, %s, 'A probe', 'video', 60, now())", [self.content, f"bench-{self.content}"])
            while time.monotonic() < end and not over():
                self.send_one(connection)
                still_well(self.problem)
                time.sleep(EVERY_SECONDS * draw.uniform(0.5, 1.5))
        deadline = time.monotonic() + LAST_SECONDS_MAX
        while any(len(seen) < self.begun for seen in self.seen.values()) and time.monotonic() < deadline:
            still_well(self.problem)
            time.sleep(0.05)

    def send_one(self, connection):
        self.begun += 1
        connection.execute(
            "INSERT INTO engagement_events (content_id, event_type, event_ts, duration_ms, device) VALUES (%s, 'click', %s, %s, %s)",
            [self.content, self.day, ENGAGEMENT_SECONDS * 1000, f"bench-probe-{self.begun - 1}"])
        self.committed.append(time.monotonic())

    def watch_kafka(self):
        reader, seen = reader_from_the_end(self.topic), self.seen["kafka"]
        self.ready.wait()
        while self.at_work.is_set():
            message = reader.poll(0.1)
            found = message and not message.error() and DEVICE.search(message.value() or b"")
            if found:
                seen.setdefault(int(found[1]), time.monotonic())
        reader.close()

    def watch_redis(self):
        client = targets.redis_client(self.redis_db)
        day = f"engagement:{self.content}:{self.day.date().isoformat()}"
        self.ready.wait()
        while self.at_work.is_set():
            if len(self.seen["board"]) < self.begun:
                look = client.pipeline(transaction=False)
                clicks, score = look.hget(day, "clicks").zscore("top_engagement:all", self.content).execute()
                self.all_until("redis", int(clicks or 0))
                self.all_until("board", round((score or 0) / ENGAGEMENT_SECONDS))
            time.sleep(LOOK_SECONDS)

    def all_until(self, place, count):
        """They arrive in the order in which they were sent."""
        now, seen = time.monotonic(), self.seen[place]
        for number in range(len(seen), count):
            seen[number] = now

    def latencies(self):
        """Of each place: milliseconds, and how many were not found. HTTP's are of all events, from the commit's time until they come."""
        http = {"http": targets.received(self.http_url)} if self.http_url else {}
        return http | {place: percentiles([(at - self.committed[number]) * 1000 for number, at in seen.items()])
                | {"probes": self.begun, "not_found": self.begun - len(seen)} for place, seen in self.seen.items()}


def probed(places, children, seconds, over=lambda: False):
    """What a reader of each place (a topic, a Redis database, a receiver's URL; or None) finds, while all these processes run."""
    def still_well(problem):
        for child in children:
            if problem or not child.runs():
                child.give_up(problem or "ended")

    with Probes(*places) as probes:
        probes.send(seconds, still_well, over)
        return probes.latencies()


def reader_from_the_end(topic):
    """Has its place in every partition when it is returned."""
    reader = confluent_kafka.Consumer(targets.KAFKA | targets.COMMITTED | {"group.id": topic})
    partitions, deadline = {}, time.monotonic() + LAST_SECONDS_MAX
    while not partitions and time.monotonic() < deadline:  # Kafka Connect makes it for the first event
        partitions = reader.list_topics(topic, timeout=30).topics[topic].partitions
    places = [confluent_kafka.TopicPartition(topic, partition) for partition in partitions]
    for place in places:
        place.offset = reader.get_watermark_offsets(place, timeout=30)[1]
    reader.assign(places)
    return reader


def percentiles(values):
    values = sorted(values)
    if not values:
        return {}
    return {name: round(values[min(len(values) - 1, int(len(values) * share))], 1)
            for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99), ("max_ms", 1))}
