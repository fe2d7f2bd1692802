"""The sixth part: rows that were there before come to the sinks, beside the drain of the same rows from a slot; then what the readers
of a live stream notice of that, and of a sink that is filled anew."""

import subprocess
import sys
import time

import report
import targets
from clients import Often
from live import POLL_SECONDS, SHORT_POLL_SECONDS, end, generating, started, streaming, wait_until
from probes import probed
from processes import Child, cpu_seconds, peak_rss_mib
from rates import WARM_SECONDS
from restarts import holds

RATE = 3_333
UNDISTURBED_SECONDS = 30
SECONDS_MAX = 7200
CAUGHT_UP_SECONDS_MAX = 600


def measure(settings, source, targets, folder, _):
    """What goes to the report's file."""
    report.say(f"writing {settings.history_rows:,} rows of history")
    source.fill(settings.history_rows)
    sinks = settings.with_http()
    rounds = [one_round(number, Often(source.binary, takes_rows(sinks)), source, targets, folder) for number in range(1, settings.rounds + 1)]
    source.drop_template()
    beside = live(Often(source.binary, sinks), source, targets, folder)
    return {"rows": source.events, "sinks": takes_rows(sinks), "rounds": rounds, "rate": RATE, "beside": beside}


def takes_rows(sinks):
    """Redis keeps sums: it counts what was before, and is brought no rows."""
    return [sink for sink in sinks if sink != "redis"]


def one_round(number, client, source, targets, folder):
    """The same rows, from a slot and from the table, by walcast with the same sinks."""
    found = drained(number, client, source, targets, folder) | brought(client, source, targets, folder)
    found["ratio"] = round(found["rows_per_s"] / found["drain_events_per_s"], 2)
    report.say(f"  {found}")
    return found


def drained(number, client, source, targets, folder):
    """From a slot, until every sink holds all: one of them may have fallen behind."""
    with source.copied_slot(f"drain_{number}") as slot, targets.fresh(slot.name) as fresh:
        environment = {**slot.environment, **fresh, **client.environment(slot, fresh)}
        with started(client, slot, environment, folder / "history_drain.log") as child:
            cpu, begun = cpu_seconds(child.pid), time.monotonic()
            wait_until(lambda: holds(client.status(environment), client.sinks, slot.end), child, "written all", seconds_max=SECONDS_MAX)
            seconds, cpu = time.monotonic() - begun, cpu_seconds(child.pid) - cpu
            end(child, client)
    return {"drain_events_per_s": round(slot.events / seconds), "drain_cpu_us_per_event": round(cpu * 1e6 / slot.events, 1)}


def brought(client, source, targets, folder):
    with streaming(source, targets, client, "backfill", folder) as (slot, child, environment):
        wal, cpu, begun = slot.wal_end(), cpu_seconds(child.pid), time.monotonic()
        ask(source.binary, environment, "backfill")
        if client.http_url:
            wait_until(lambda: arrived(client.http_url), child, "sent a row", SHORT_POLL_SECONDS)
        first = time.monotonic() - begun
        until_sent(source, slot, child)
        committed = slot.wal_end()
        source.add_event()  # an idle stream would say how far it is with its next heartbeat
        wait_until(lambda: holds(client.status(environment), client.sinks, committed), child, "written all", seconds_max=CAUGHT_UP_SECONDS_MAX)
        seconds, rows = time.monotonic() - begun, last(source, slot)["row_count"]
        wal_bytes = int(source.one(f"SELECT pg_wal_lsn_diff('{slot.wal_end()}', '{wal}')"))
        # as many rows as were brought are compared; BigQuery's stand-in keeps none
        verified = verify(source.binary, environment, folder) if "kafka" in client.sinks else {}
        return {**verified, "rows": rows, "seconds": round(seconds, 1), "rows_per_s": round(rows / seconds), "first_row_s": round(first, 2),
                "wal_mib_per_million": round(wal_bytes / rows * 1e6 / 2**20), "cpu_us_per_row": round((cpu_seconds(child.pid) - cpu) * 1e6 / rows, 1),
                "rss_peak_mib": round(peak_rss_mib(child.pid))}


def verify(binary, environment, folder):
    begun, rss = time.monotonic(), 0
    with Child([binary, "verify", "--sinks", "kafka", "--temp-dir", folder], environment, folder / "history_verify.log") as child:
        while child.runs():
            rss = peak_rss_mib(child.pid) or rss
            time.sleep(POLL_SECONDS)
        if child.wait():
            child.give_up("found a difference")
    return {"verify_s": round(time.monotonic() - begun, 1), "verify_rss_peak_mib": round(rss)}


def live(client, source, targets, folder):
    """By what happens beside the stream: the readers' figures before and meanwhile."""
    found = {}
    with streaming(source, targets, client, "beside", folder) as (slot, child, environment), generating(source, RATE, folder) as generator:
        time.sleep(WARM_SECONDS)
        for name, arguments in works(client.sinks).items():
            report.say(f"{name} beside {RATE:,} events/s")
            watched = [sink for sink in client.sinks if name == "backfill" or sink != arguments[1]]
            places = (client.topic(slot) if "kafka" in watched else None, targets.redis_db if "redis" in watched else None,
                      client.http_url if "http" in watched else None)
            before = probed(places, [child, generator], UNDISTURBED_SECONDS)
            begun = time.monotonic()
            ask(source.binary, environment, *arguments)
            during = probed(places, [child, generator], SECONDS_MAX, lambda: last(source, slot)["state"] == "done")
            seconds, rows = time.monotonic() - begun, last(source, slot)["row_count"]
            committed = slot.wal_end()
            wait_until(lambda: holds(client.status(environment), client.sinks, committed), child, "written all", seconds_max=CAUGHT_UP_SECONDS_MAX)
            found[name] = {"rows": rows, "seconds": round(seconds, 1), "undisturbed": before, "during": during,
                           "rss_peak_mib": round(peak_rss_mib(child.pid)),
                           "p99_ratio": {place: round(during[place]["p99_ms"] / before[place]["p99_ms"], 2) for place in before}}
            report.say(f"  {found[name]}")
    return found


def works(sinks):
    """What is asked for, by name; the second word of a rebuild is the sink whose readers are not asked."""
    rebuilds = {f"rebuild {sink}": ["rebuild", sink, *(["--with-history"] if sink == "redis" else ["--yes"])] for sink in sinks}
    return {"backfill": ["backfill"], **rebuilds}


def ask(binary, environment, *arguments):
    asked = subprocess.run([binary, *arguments, "--detach"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if asked.returncode:
        sys.exit(f"{asked.stdout}{asked.stderr}bench: walcast {' '.join(arguments)} ended with exit code {asked.returncode}")


def last(source, slot):
    """The newest backfill or rebuild of the slot."""
    return source.connection.execute(
        "SELECT json_build_object('state', backfill.state, 'row_count', row_count) FROM walcast.backfill JOIN walcast.slot USING (history_id)"
        " WHERE slot.slot = %s ORDER BY backfill.created_at DESC LIMIT 1", [slot.name]).fetchone()[0]


def until_sent(source, slot, child):
    wait_until(lambda: last(source, slot)["state"] == "done", child, "sent all", seconds_max=SECONDS_MAX)


def arrived(url):
    return targets.received(url)["events"] > 0
