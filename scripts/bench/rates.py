"""The second part: fixed rates, and how long a commit takes until it can be read from each sink."""

import time

import debezium
import histogram
import report
from clients import Walcast, newest_event
from live import generating, streaming
from probes import Probes
from processes import cpu_seconds, peak_rss_mib

WARM_SECONDS = 20  # a JVM is slow at first


def measure(settings, source, targets, folder, class_path):
    """What goes to the report's file. Debezium takes part at the lowest rate."""
    found = []
    for rate in settings.rates:
        clients = {"walcast": Walcast(source.binary, settings.sinks)}
        if settings.http and rate == min(settings.rates):
            clients["walcast_http"] = Walcast(source.binary, ["http"], http_batch_rows=1)
        if class_path and rate == min(settings.rates):
            clients["debezium_connect"] = debezium.Connect(class_path, folder)
        found += [at_rate(source, targets, client, name, rate, settings.minutes, folder) for name, client in clients.items()]
    return {"minutes": settings.minutes, "runs": found}


def at_rate(source, targets, client, name, rate, minutes, folder):
    report.say(f"{name} at {rate:,} events/s for {minutes:g} min")
    with streaming(source, targets, client, f"{name}_{rate}", folder) as (slot, child, environment):
        redis_db = targets.redis_db if "redis" in client.sinks else None
        with generating(source, rate, folder) as generator:
            time.sleep(WARM_SECONDS)
            handed = client.handed(environment)
            with Probes(client.topic(slot), redis_db, client.http_url) as probes:
                result = {"client": name, "rate": rate} | probed(probes, source, [child, generator], minutes * 60)
            if handed:
                result["handed_p99_s_max"] = histogram.quantile_max(handed, client.handed(environment), 0.99)
        if any(figures.get("not_found") for figures in result["latencies"].values()):
            report.say(f"  not all probes were found; {name} says: {client.status(environment)}")
    if "handed_p99_s_max" in result:
        report.say(f"  handed to a sink that is ready: p99 at most {result['handed_p99_s_max']} s after the receipt of a batch's first row")
    for place, figures in result["latencies"].items():
        report.say(f"  {place:<7} {figures}")
    return result


def probed(probes, source, children, seconds):
    def still_well(problem):
        for child in children:
            if problem or not child.runs():
                child.give_up(problem or "ended")

    begun, first, cpu_before = time.monotonic(), newest_event(source.connection), cpu_seconds(children[0].pid)
    probes.send(seconds, still_well)
    events, taken = newest_event(source.connection) - first, time.monotonic() - begun
    cpu = (cpu_seconds(children[0].pid) or 0) - cpu_before
    return {"events_per_s": round(events / taken), "cpu_us_per_event": round(cpu / events * 1e6, 1),
            "rss_peak_mib": round(peak_rss_mib(children[0].pid) or 0), "latencies": probes.latencies()}
