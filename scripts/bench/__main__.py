"""How fast walcast is, beside pg_recvlogical and Debezium, on the servers of scripts/services.

    make bench                          1,000,000 events, three rounds
    make bench EVENTS=100000 ROUNDS=1   a first look, minutes instead of an hour
    make bench SINKS=kafka,redis        without BigQuery
    make bench DEBEZIUM=off             without Debezium, which needs Maven Central once, and a JDK
    make bench BIGQUERY=emulator        at about 1,500 events/s: try it with few events

Backlog: every run replays the same WAL, from a copy of one template slot: pg_recvlogical to nothing, walcast to the null
sink, to each sink alone, to all of them, Debezium (debezium.py says with which settings). The clock runs from the start of
streaming until the slot's confirmed LSN is past the last event: until every sink holds everything. walcast is asked to stop
once it has received all, so that nobody waits for the next commit by time (BigQuery: 30 s). CPU is that of the process from
the start of streaming to its end, so that a JVM's start does not count; memory is its peak. The start is from the
process's own until the server has sent it the first event. No TLS on either side. BigQuery's place is taken by a process that
counts rows, since the emulator would be all that is measured.

Figures are worth something on a machine that does nothing else: look at the load before each run, at the spread of the rounds,
and believe the ratios, which compare runs of one round, before the absolute figures. All servers share the machine
with what is measured: with two cores it is their CPU that runs out.

The database, slots, topics, groups and datasets made for this are gone afterwards.

usage: scripts/services run PYTHON scripts/bench WALCAST_BINARY FOLDER REPORT
"""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import sys

import backlog
import debezium
import report
import tables
from source import Source
from targets import Targets


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    binary, folder, path = (pathlib.Path(argument).absolute() for argument in sys.argv[1:])
    events, rounds = number("EVENTS", 1_000_000), number("ROUNDS", 3)
    sinks = [sink for sink in os.environ.get("SINKS", "kafka,redis,bigquery").split(",") if sink]
    emulator = os.environ.get("BIGQUERY") == "emulator"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder.mkdir(parents=True, exist_ok=True)

    stand_in = None if emulator else binary.parent / "examples" / "bigquery-server"
    with only_one(folder), Targets(stand_in) as targets, Source(binary, folder) as source:
        class_path, about_debezium = debezium_if_wanted(folder)
        found = report.facts(binary, source, emulator, about_debezium)
        found["backlog"] = backlog.measure(source, targets, backlog.clients(binary, folder, sinks, class_path), events, rounds, folder)
    write(path, found)


def debezium_if_wanted(folder):
    """Its class path, if it takes part, and its version, or why it does not."""
    if os.environ.get("DEBEZIUM") == "off":
        return None, "not asked for"
    try:
        class_path = debezium.fetch(folder)
    except debezium.Unavailable as why:
        report.say(f"bench: without Debezium: {why}")
        return None, str(why)
    return class_path, debezium.version(class_path)


def number(name, default):
    value = os.environ.get(name) or str(default)
    if not value.isdecimal() or int(value) == 0:
        sys.exit(f"bench: {name}={value}: give a whole number above 0")
    return int(value)


def write(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    text = tables.markdown(found)
    path.with_suffix(".md").write_text(text)
    print(f"\n{text}\n{path}, {path.with_suffix('.md')}")


@contextlib.contextmanager
def only_one(folder):
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("bench: another one runs on these servers")
        yield


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
