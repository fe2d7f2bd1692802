"""The fifth part: each sink in turn stands still (SIGSTOP) under load and goes on: what the others notice of it, and how soon it is back."""

import contextlib
import os
import signal
import time

import report
from clients import Often, newest_event
from live import POLL_SECONDS, end, generating, place, started, streaming, wait_until
from probes import probed
from processes import peak_rss_mib
from rates import WARM_SECONDS
from restarts import holds

RATE = 10_000
UNDISTURBED_SECONDS = 30
BACK_SECONDS_MAX = 600


def measure(settings, source, targets, folder, _):
    """What goes to the report's file."""
    client, found = Often(source.binary, settings.with_http()), {}
    for sink, pid in targets.servers().items():
        if sink.lower() in client.sinks:
            report.say(f"{sink} stands still for {settings.standstill_seconds:g} s at {RATE:,} events/s")
            found[sink] = of(sink.lower(), pid, client, settings.standstill_seconds, source, targets, folder)
            report.say(f"  {found[sink]}")
    return {"rate": RATE, "seconds": settings.standstill_seconds, "sinks": found}


def of(sink, pid, client, seconds, source, targets, folder):
    with streaming(source, targets, client, f"still_{sink}", folder) as (slot, child, environment):
        with generating(source, RATE, folder) as generator:
            time.sleep(WARM_SECONDS)
            # the other sinks' readers alone: one of the sink that stands still would stand still too
            topic = client.topic(slot) if sink != "kafka" else None
            redis_db = targets.redis_db if "redis" in client.sinks and sink != "redis" else None
            http_url = client.http_url if sink != "http" else None
            places = (topic, redis_db, http_url)
            before = probed(places, [child, generator], UNDISTURBED_SECONDS)
            with place(source, targets, Often(source.binary, [sink]), f"plain_{sink}", aside=True) as (plain_slot, plain_environment):
                first = newest_event(source.connection)
                with stopped(pid):
                    during = probed(places, [child, generator], seconds)
                    lane = line(client, environment, sink)["lane"]
                missed, let_go = newest_event(source.connection) - first, time.monotonic()
                until_back(sink, client, slot, environment, child)
                back = time.monotonic() - let_go
                plain = drained(sink, plain_slot, plain_environment, slot.wal_end(), source, folder)
        committed = slot.wal_end()
        wait_until(lambda: holds(client.status(environment), client.sinks, committed), child, "written all")
        return {"lane_after": lane and lane["state"], "back_s": round(back, 1), "plain_drain_s": round(plain, 1),
                "back_ratio": round(back / plain, 2), "events_meanwhile": missed, "rss_peak_mib": round(peak_rss_mib(child.pid)), "undisturbed": before, "during": during,
                "p99_ratio": {place: round(during[place]["p99_ms"] / before[place]["p99_ms"], 2) for place in before}}


def drained(sink, slot, environment, reached, source, folder):
    """Seconds that the sink alone takes for the same WAL, from a slot as old as its standstill, beside the same load."""
    client = Often(source.binary, [sink])
    with started(client, slot, environment, folder / f"plain_{sink}.log") as child:
        begun = time.monotonic()
        wait_until(lambda: holds(client.status(environment), [sink], reached), child, "written all")
        seconds = time.monotonic() - begun
        end(child, client)
    return seconds


def until_back(sink, client, slot, environment, child):
    """Holds what was committed when it was let go, and is fed with the others again."""
    committed, deadline = slot.wal_end(), time.monotonic() + BACK_SECONDS_MAX
    while not holds(client.status(environment), [sink], committed) or line(client, environment, sink)["lane"]:
        if time.monotonic() > deadline or not child.runs():
            child.give_up(f"has not brought {sink} back: {line(client, environment, sink)}")
        time.sleep(POLL_SECONDS)


def line(client, environment, sink):
    status = client.status(environment)
    return next(line for line in status["sinks"] if line["name"] == sink)


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
