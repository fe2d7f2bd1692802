"""What is said while it runs, and what was measured on."""

import json
import os
import pathlib
import platform
import re
import subprocess
import sys

import tables
import targets
from clients import newest_pg_recvlogical


def say(text):
    print(text, file=sys.stderr, flush=True)


def head():
    say(f"{'':<17}{'start s':>8}{'seconds':>9}{'events/s':>10}{'µs CPU/event':>14}{'machine busy':>14}{'peak RSS':>10}{'load':>7}")


def line(name, result):
    say(f"{name:<17}{result.start_seconds:>8.2f}{result.seconds:>9.1f}{result.events_per_s:>10,.0f}{result.cpu_us_per_event:>14.2f}"
        f"{result.machine_busy:>14.0%}{result.rss_peak_mib:>7.0f} MiB{result.load_average:>7.1f}")


def write(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    path.with_suffix(".md").write_text(tables.markdown(found))


def show(path):
    table = path.with_suffix(".md")
    print(f"\n{table.read_text()}\n{path}, {table}")


def facts(binary, source, emulator, debezium):
    return {
        "bigquery": "emulator" if emulator else "stand-in",
        "debezium": debezium,
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
    cpu = model[1] if model else platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory), "kernel": platform.release()}


def version(command):
    found = re.search(r"\d+(\.\d+)+", output(command))
    return found[0] if found else "unknown"


def output(command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
