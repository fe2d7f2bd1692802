"""The fourth part: the most memory that walcast takes for one huge transaction, and while a sink stands still under load."""

import time

import report
from clients import Walcast
from live import generating, streaming, wait_until
from processes import peak_rss_mib
from restarts import holds
from standstill import line, stopped

RATE = 10_000
STANDSTILL_SECONDS = 30

HUGE = """
    INSERT INTO engagement_events (content_id, user_id, event_type, event_ts, duration_ms, device, raw_payload)
    SELECT (SELECT array_agg(id) FROM content)[1 + i %% (SELECT count(*) FROM content)::int], gen_random_uuid(), 'play', now(), i, 'tv',
           jsonb_build_object('number', i, 'note', repeat('x', 80))
    FROM generate_series(1, %s) AS i"""


def measure(settings, source, targets, folder, _):
    """What goes to the report's file."""
    client = Walcast(source.binary, settings.sinks)
    found = {"huge_rows": settings.huge_rows, "huge_transaction_mib": huge(client, settings.huge_rows, source, targets, folder)}
    report.say(f"  one transaction of {settings.huge_rows:,} rows: {found['huge_transaction_mib']} MiB")
    if targets.stand_in and "bigquery" in client.sinks:
        found |= {"standstill_s": STANDSTILL_SECONDS, "standstill_rate": RATE, "standstill_mib": standstill(client, source, targets, folder)}
        report.say(f"  BigQuery stands still for {STANDSTILL_SECONDS} s at {RATE:,} events/s: {found['standstill_mib']} MiB")
    return found


def huge(client, rows, source, targets, folder):
    with streaming(source, targets, client, "huge", folder) as (slot, child, environment):
        source.connection.execute(HUGE, [rows])
        until_all_hold(client, slot, child, environment)
        return round(peak_rss_mib(child.pid))


def standstill(client, source, targets, folder):
    """Until BigQuery has left the others, and for the rest of the time; then it goes on."""
    with streaming(source, targets, client, "standstill", folder) as (slot, child, environment):
        with generating(source, RATE, folder):
            with stopped(targets.servers()["BigQuery"]):
                wait_until(lambda: line(client, environment, "bigquery")["lane"], child, "left the others")
                time.sleep(STANDSTILL_SECONDS)
        until_all_hold(client, slot, child, environment)
        return round(peak_rss_mib(child.pid))


def until_all_hold(client, slot, child, environment):
    committed = slot.wal_end()
    wait_until(lambda: holds(client.status(environment), client.sinks, committed), child, "written all")

