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
import pathlib
import signal
import sys

import backlog
import debezium
import rates
import report
from settings import Settings
from source import Source
from targets import Targets


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    binary, folder, path = (pathlib.Path(argument).absolute() for argument in sys.argv[1:])
    settings = Settings.read()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder.mkdir(parents=True, exist_ok=True)

    stand_in = None if settings.emulator else binary.parent / "examples" / "bigquery-server"
    with only_one(folder), Targets(stand_in) as targets, Source(binary, folder) as source:
        class_path, about_debezium = debezium_if_wanted(settings, folder)
        found = report.facts(binary, source, settings.emulator, about_debezium)
        for name, part in parts(settings, source, targets, folder, class_path).items():
            found[name] = part()
            report.write(path, found)  # the next part may be broken off
    report.show(path)


def parts(settings, source, targets, folder, class_path):
    """Those asked for, by name."""
    sinks = settings.sinks
    clients = backlog.clients(source.binary, folder, sinks, class_path)
    asked_for = {
        "backlog": settings.events and (lambda: backlog.measure(source, targets, clients, settings.events, settings.rounds, folder)),
        "rates": settings.rates and (lambda: rates.measure(source, targets, folder, sinks, settings.rates, settings.minutes, class_path)),
    }
    return {name: part for name, part in asked_for.items() if part}


def debezium_if_wanted(settings, folder):
    """Its class path, if it takes part, and its version, or why it does not."""
    if not settings.debezium:
        return None, "not asked for"
    try:
        class_path = debezium.fetch(folder)
    except debezium.Unavailable as why:
        report.say(f"bench: without Debezium: {why}")
        return None, str(why)
    return class_path, debezium.version(class_path)


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
