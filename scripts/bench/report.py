"""The table, and the file with the same figures."""

import dataclasses
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys

import targets
from clients import newest_pg_recvlogical

FIGURES = ("seconds", "events_per_s", "cpu_us_per_event", "walsender_us_per_event", "rss_peak_mb", "load_average")


def say(text):
    print(text, file=sys.stderr, flush=True)


def facts(binary, source, events, rounds, sinks, emulator):
    return {
        "events": events,
        "transactions": source.one("SELECT count(DISTINCT xmin::text) FROM engagement_events"),
        "payload_bytes": source.one("SELECT avg(octet_length(raw_payload::text))::int FROM engagement_events"),
        "rounds": rounds,
        "sinks": sinks,
        "bigquery": "emulator" if emulator else "stand-in that counts rows",
        "machine": machine(),
        "versions": {
            "walcast": version([binary, "--version"]),
            "commit": output(["git", "describe", "--always", "--dirty"]),
            "postgresql": source.one("SHOW server_version"),
            "pg_recvlogical": version([newest_pg_recvlogical(), "--version"]),
            **targets.versions(),
        },
    }


def machine():
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model[1] if model else platform.machine(), "cores": os.cpu_count(), "memory_gib": round(memory), "kernel": platform.release()}


def version(command):
    found = re.search(r"\d+(\.\d+)+", output(command))
    return found[0] if found else "unknown"


def output(command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def head(facts):
    machine = facts["machine"]
    print(f"{machine['cores']} cores {machine['cpu']}, {machine['memory_gib']} GiB, Linux {machine['kernel']}; servers, generator and client share them")
    print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    print(f"{facts['events']:,} events in {facts['transactions']:,} transactions, payload {facts['payload_bytes']} bytes; BigQuery: {facts['bigquery']}\n")
    print(f"{'':<16}{'seconds':>9}{'events/s':>11}{'µs CPU/event':>14}{'its walsender':>15}{'peak RSS':>10}{'load':>7}", flush=True)


def line(result):
    print(f"{result.name:<16}{result.seconds:>9.1f}{result.events_per_s:>11,.0f}{result.cpu_us_per_event:>14.2f}"
          f"{result.walsender_us_per_event:>15.2f}{result.rss_peak_mb:>7.0f} MB{result.load_average:>7.1f}", flush=True)


def write(path, facts, results):
    by_name = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    rates = {name: [result.events_per_s for result in group] for name, group in by_name.items()}
    # Round by round: what disturbs the machine disturbs both.
    ratios = {name: [rate / base for rate, base in zip(rates[name], rates["pg_recvlogical"])] for name in by_name if name != "pg_recvlogical"}
    found = {
        "runs": [{"name": name} | medians(group) | {"rounds": [dataclasses.asdict(result) for result in group]} for name, group in by_name.items()],
        "ratios": {f"{name}_to_pg_recvlogical": round(statistics.median(values), 3) for name, values in ratios.items()},
        **facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    if facts["rounds"] > 1:
        print("\nmedians")
        for name, group in by_name.items():
            line(type(group[0])(name, **medians(group)))
    print("\nevents/s as a share of pg_recvlogical's in the same round")
    for name, values in ratios.items():
        spread = f"   {min(values):.2f} to {max(values):.2f}" if len(values) > 1 else ""
        print(f"{name:<16}{statistics.median(values):>9.2f}{spread}")
    print(f"\n{path}")


def medians(group):
    return {figure: round(statistics.median(getattr(result, figure) for result in group), 3) for figure in FIGURES}
