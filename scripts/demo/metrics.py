"""The live line, from walcast's own /metrics. The summary uses none of it."""

import collections
import os
import re
import time
import urllib.error
import urllib.request

from screen import bold

WEB = "http://127.0.0.1:8080"
SINKS = ("kafka", "redis", "bigquery", "http")
SAMPLE = re.compile(r"^walcast_(\w+)(?:\{(.*)\})? (\S+)", re.MULTILINE)
RATE_SECONDS = 3


def get(path):
    try:
        request = urllib.request.Request(WEB + path, headers={"Authorization": f"Bearer {os.environ.get('WEB_TOKEN', '')}"})
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def status(rate):
    text = get("/metrics")
    if text is None:
        return f"walcast does not answer on {WEB}/metrics"
    samples = [(name, labels, float(value)) for name, labels, value in SAMPLE.findall(text)]
    events = total(samples, "events_total", 'table="engagement_events"') or 0
    sinks = "   ".join(sink_status(samples, sink) for sink in SINKS)
    return f"{bold(f'{events:,.0f}')} events in  {rate.of(events):,.0f}/s   {sinks}"


def sink_status(samples, sink):
    lsn = total(samples, "sink_durable_lsn", f'sink="{sink}"')
    lag = total(samples, "sink_lag_seconds", f'sink="{sink}"')
    position = "–" if lsn is None else f"{int(lsn) >> 32:X}/{int(lsn) & 0xFFFFFFFF:X}"
    return f"{bold(sink)} {position} {'–' if lag is None else f'{lag:.1f} s'} behind"


def total(samples, metric, label):
    values = [value for name, labels, value in samples if name == metric and label in labels]
    return sum(values) if values else None


class Rate:
    """Per second, over the last few seconds."""

    def __init__(self):
        self.seen = collections.deque()

    def of(self, count):
        now = time.monotonic()
        self.seen.append((now, count))
        while now - self.seen[0][0] > RATE_SECONDS:
            self.seen.popleft()
        begun, first = self.seen[0]
        return (count - first) / (now - begun) if now > begun else 0
