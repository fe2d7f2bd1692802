"""The last part: one rate for as long as is asked for. Memory and retained WAL must stay flat, `walcast verify` find nothing."""

import itertools
import statistics
import subprocess
import time

import report
from clients import Walcast, newest_event
from live import generating, streaming
from processes import end_with_parent, status_mib

RATE = 3_333
EVERY_SECONDS = 10


def measure(settings, source, targets, folder, _):
    """What goes to the report's file."""
    sinks, minutes = settings.sinks, settings.soak_minutes
    report.say(f"walcast at {RATE:,} events/s for {minutes:g} min, then walcast verify")
    with streaming(source, targets, Walcast(source.binary, sinks), "soak", folder) as (slot, child, environment):
        first, begun = newest_event(source.connection), time.monotonic()
        with generating(source, RATE, folder) as generator:
            samples = list(sampled(slot, child, generator, minutes * 60))
            events, seconds = newest_event(source.connection) - first, time.monotonic() - begun
        readable = [sink for sink in sinks if sink != "bigquery" or settings.emulator]  # what stands in for it keeps no rows
        code = verify(source.binary, environment | {"PIPELINE_SINKS": ",".join(readable)}, folder)
    found = {"minutes": minutes, "rate": RATE, "events": events, "events_per_s": round(events / seconds),
             "rss_mib": quarters([rss for _, rss, _ in samples]), "retained_wal_mib": quarters([wal for _, _, wal in samples]),
             "verify_exit_code": code, "verified": readable, "samples": samples}
    report.say(f"  RSS {found['rss_mib']}, retained WAL {found['retained_wal_mib']}, walcast verify: exit code {code}")
    return found


def sampled(slot, child, generator, seconds):
    """Seconds since the beginning, resident MiB, MiB of WAL that the slot retains."""
    begun = time.monotonic()
    for number in itertools.count():
        for process in (child, generator):
            if not process.runs():
                process.give_up("ended")
        yield [round(time.monotonic() - begun), round(status_mib(child.pid, "VmRSS"), 1), round(slot.retained_bytes() / 2**20, 1)]
        if (number + 1) * EVERY_SECONDS > seconds:
            break
        time.sleep(max(0, begun + (number + 1) * EVERY_SECONDS - time.monotonic()))


def verify(binary, environment, folder):
    """Its exit code, while walcast runs on."""
    log = folder / "verify.log"
    with log.open("wb") as out:
        code = subprocess.run([binary, "verify", "--temp-dir", folder], env=environment, stdin=subprocess.DEVNULL, stdout=out,
                              stderr=out, start_new_session=True, preexec_fn=end_with_parent).returncode
    report.say(log.read_text(errors="replace"))
    return code


def quarters(values):
    """The medians of the first and of the last quarter of the time, and the maximum."""
    quarter = max(1, len(values) // 4)
    first, last = (round(statistics.median(part), 1) for part in (values[:quarter], values[-quarter:]))
    return {"first": first, "last": last, "max": max(values)}
