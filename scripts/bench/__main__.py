"""How fast walcast drains a slot, beside pg_recvlogical on a copy of the same slot, on the servers of scripts/services.

    make bench                          1,000,000 events, each client once
    make bench EVENTS=200000 ROUNDS=3   medians of three rounds, the clients in turn
    make bench SINKS=kafka,redis        without BigQuery
    make bench BIGQUERY=emulator        at about 1,500 events/s: try it with few events

Every run replays the same WAL, from a copy of one template slot: pg_recvlogical to nothing, walcast to the null sink, to
each sink alone, to all of them. The clock runs from the start of streaming until the slot's confirmed LSN is past the last
event: until every sink holds everything. walcast is asked to stop once it has received all, so that nobody waits for the
next commit by time (BigQuery: 30 s). CPU is that of the whole process, from its start to its end; memory is its peak.
No TLS on either side. BigQuery's place is taken by a process that counts rows, since the emulator would be all that is
measured. The database, slots, topics and datasets made for this are gone afterwards.

usage: scripts/services run PYTHON scripts/bench WALCAST_BINARY FOLDER REPORT
"""

import contextlib
import fcntl
import os
import pathlib
import signal
import sys

import report
from clients import pg_recvlogical, walcast
from source import Source
from targets import Targets


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    binary, folder, path = (pathlib.Path(argument).absolute() for argument in sys.argv[1:])
    events, rounds = number("EVENTS", 1_000_000), number("ROUNDS", 1)
    sinks = [sink for sink in os.environ.get("SINKS", "kafka,redis,bigquery").split(",") if sink]
    emulator = os.environ.get("BIGQUERY") == "emulator"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder.mkdir(parents=True, exist_ok=True)

    stand_in = None if emulator else binary.parent / "examples" / "bigquery-server"
    with only_one(folder), Targets(stand_in) as targets, Source(binary, folder) as source:
        report.say(f"writing {events:,} events")
        source.fill(events)
        facts = report.facts(binary, source, events, rounds, sinks, emulator)
        report.head(facts)
        clients = {"pg_recvlogical": pg_recvlogical()}
        for name, used in {"null": ["null"], **{sink: [sink] for sink in sinks}, "all": sinks}.items():
            clients[name] = walcast(binary, used)
        results = []
        for number_of_round in range(1, rounds + 1):
            for name, client in clients.items():
                with source.copied_slot(f"{name}_{number_of_round}") as slot, targets.fresh(slot.name) as fresh:
                    results.append(client.drain(slot, fresh, name, folder / f"{name}.log"))
                    report.line(results[-1])
    report.write(path, facts, results)


def number(name, default):
    value = os.environ.get(name) or str(default)
    if not value.isdecimal() or int(value) == 0:
        sys.exit(f"bench: {name}={value}: give a whole number above 0")
    return int(value)


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
