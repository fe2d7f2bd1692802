"""The second part: fixed rates, and how long a commit takes until it can be read from each sink."""

import time

import debezium
import report
from clients import Walcast, newest_event
from live import generating, streaming
from probes import Probes
from processes import cpu_seconds, peak_rss_mb

WARM_SECONDS = 20  # a JVM is slow at first


def measure(source, targets, folder, sinks, rates, minutes, class_path):
    """What goes to the report's file. Debezium takes part at the lowest rate."""
    found = []
    for rate in rates:
        found.append(at_rate(source, targets, Walcast(source.binary, sinks), "walcast", rate, minutes, folder))
        if class_path and rate == min(rates):
            found.append(at_rate(source, targets, debezium.Connect(class_path, folder), "debezium_connect", rate, minutes, folder))
    return {"minutes": minutes, "runs": found}


def at_rate(source, targets, client, name, rate, minutes, folder):
    report.say(f"{name} at {rate:,} events/s for {minutes:g} min")
    with streaming(source, targets, client, f"{name}_{rate}", folder) as (slot, child, _), generating(source, rate, folder) as generator:
        def still_well(problem):
            for process in (child, generator):
                if problem or not process.runs():
                    process.give_up(problem or "ended")

        time.sleep(WARM_SECONDS)
        with Probes(client.topic(slot), targets.redis_db if "redis" in client.sinks else None) as probes:
            begun, events, cpu = time.monotonic(), newest_event(source.connection), cpu_seconds(child.pid)
            probes.send(minutes * 60, still_well)
            events, seconds = newest_event(source.connection) - events, time.monotonic() - begun
            result = {"client": name, "rate": rate, "events_per_s": round(events / seconds),
                      "cpu_us_per_event": round((cpu_seconds(child.pid) - cpu) / events * 1e6, 1),
                      "rss_peak_mb": round(peak_rss_mb(child.pid)), "latencies": probes.latencies()}
    for place, figures in result["latencies"].items():
        report.say(f"  {place:<7} {figures}")
    return result
