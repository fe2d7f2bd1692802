"""The third part: walcast is killed under load and started again at once: how long until it streams, and until it has caught up."""

import random
import statistics
import time

import report
from clients import Walcast
from live import SHORT_POLL_SECONDS, end, generating, place, started, wait_until

RATE = 3_333
BETWEEN_SECONDS = 3  # on average: long enough to have caught up, uneven, so that it dies at every phase of its sinks
# these hold rows as they come; BigQuery does each 30 s
PROMPT = ("kafka", "redis")


def measure(settings, source, targets, folder, _):
    """What goes to the report's file."""
    client = Walcast(source.binary, settings.sinks)
    report.say(f"walcast at {RATE:,} events/s, killed {settings.kills} times")
    with place(source, targets, client, "restarts") as (slot, environment), generating(source, RATE, folder) as generator:
        found = list(lives(client, slot, environment, generator, settings.kills, folder))
    result = {"kills": settings.kills, "rate": RATE, "streaming_s": spread(found, 0), "caught_up_s": spread(found, 1)}
    report.say(f"  streams again after {result['streaming_s']} s, has caught up after {result['caught_up_s']} s")
    return result


def lives(client, slot, environment, generator, kills, folder):
    """Of each death: seconds from the signal until the slot is read again, and until the sinks hold what was committed by then."""
    draw, killed_at, walsender = random.Random(1), None, None
    for number in range(kills + 1):
        with started(client, slot, environment, folder / "restarts.log", walsender) as child:
            if killed_at:
                yield back(client, slot, environment, child, killed_at)
            time.sleep(BETWEEN_SECONDS * draw.uniform(0.5, 1.5))
            if not generator.runs():
                generator.give_up("ended")
            if number == kills:
                return end(child, client)
            walsender, killed_at = slot.active_pid(), time.monotonic()
            child.kill()


def back(client, slot, environment, child, killed_at):
    streaming = time.monotonic() - killed_at
    committed = slot.wal_end()
    prompt = [sink for sink in PROMPT if sink in client.sinks]
    wait_until(lambda: holds(client.status(environment), prompt, committed), child, "caught up", SHORT_POLL_SECONDS)
    return streaming, time.monotonic() - killed_at


def holds(status, sinks, lsn):
    lines = {line["name"]: line for line in status["sinks"]} if status else {}
    return all(sink in lines and number(lines[sink]["durable_lsn"]) >= number(lsn) for sink in sinks)


def number(lsn):
    high, low = lsn.split("/")
    return int(high, 16) << 32 | int(low, 16)


def spread(found, place):
    values = [seconds[place] for seconds in found]
    return {"median": round(statistics.median(values), 2), "max": round(max(values), 2)}
