"""How fast and how fresh walcast is, beside pg_recvlogical and Debezium, on the servers of scripts/services.

    make bench                                      a backlog of 1,000,000 events, three rounds; then all that follows
    make bench EVENTS=100000 ROUNDS=1 MINUTES=0.5 KILLS=2 HUGE=100000      a first look
    make bench EVENTS=0 KILLS=0 HUGE=0              the rates alone; RATES=0 is without them
    make bench EVENTS=0 RATES=0 KILLS=0 HUGE=0 HISTORY=0      the standstills alone; STANDSTILL=0 is without them
    make bench EVENTS=0 RATES=0 KILLS=0 HUGE=0 STANDSTILL=0 HISTORY=20000000 ROUNDS=1      a long history alone
    make bench SOAK_MINUTES=60                      and then an hour at 3,333 events/s
    make bench SINKS=kafka,redis                    without BigQuery
    make bench HTTP=off                             without HTTP
    make bench DEBEZIUM=off                         without Debezium, which needs Maven Central once, and a JDK
    make bench BIGQUERY=emulator                    at about 1,500 events/s: try it with few events

Backlog: every run replays the same WAL, from a copy of one template slot: pg_recvlogical to nothing, walcast to the null
sink, to each sink alone, to Kafka, Redis and BigQuery at once, Debezium (debezium.py says with which settings). The clock runs
from the start of streaming until the slot's confirmed LSN is past the last event: until every sink holds everything
(pg_recvlogical: until it ends, at the last event). walcast is asked to stop once it has received all, so that nobody waits for the next commit by time
(BigQuery: 30 s). CPU is that of the process from the start of streaming to its end, so that a JVM's start does not count;
memory is its peak. Beside it stands what the servers took of the CPU for it, and how busy all cores were. The start is from
the process's own until the server has sent it the first event. No TLS on either side. BigQuery's place is taken by a process
that counts rows, since the emulator would be all that is measured. HTTP is posted in batches of 1,000 to one that counts events.

Rates: walcast with all sinks keeps up with `walcast generate`, and outside readers look for probes (probes.py); beside it, at the
lowest rate, walcast with HTTP alone, one event a request, and Debezium. What begins is given 20 s to warm up. BigQuery shows rows
each 30 s by design and is not looked at. How long rows are in walcast's own hands only walcast can tell, by its metrics: from the
receipt of a batch's first row until a sink that is ready is given it (the one of content rows: the others collect batches, or have
the last one to write).

Restarts: walcast is killed (SIGKILL) KILLS times under load and started again at once: until its slot is read again, and until
Kafka and Redis hold all that was committed by then.

Memory: the peak for one transaction of HUGE rows, and while BigQuery's stand-in is stopped (SIGSTOP) until it has left the others,
and for 30 s more.

Standstill: Kafka, Redis, BigQuery's stand-in and the HTTP receiver in turn are stopped (SIGSTOP) for STANDSTILL seconds at 10,000
events/s, while outside readers look for probes in the others: their p99 beside that of the 30 s before; then how long it takes until
the sink holds all and is fed with the others again, beside the time that walcast with this sink alone takes for the same WAL, under
the same load.

History: HISTORY rows that were there before the slot come to Kafka, BigQuery's stand-in and HTTP by `walcast backfill`, beside the
drain of the same rows from a slot by walcast with the same sinks, ROUNDS times; the clock runs from the command until the sinks hold
all. Then, at 3,333 events/s, a backfill and a rebuild of each sink in turn, while outside readers look for probes in the others.
BigQuery commits each second in this part and the one before.

Soak: resident memory and the WAL that the slot retains, each 10 s: the medians of the first and of the last quarter must
agree. Then `walcast verify`, which must find no difference; BigQuery's stand-in keeps no rows and is left out of that.

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
import history
import memory
import rates
import report
import restarts
import soak
import standstill
from settings import Settings
from source import Source
from targets import Targets

PARTS = {"backlog": backlog, "rates": rates, "restarts": restarts, "memory": memory, "standstill": standstill, "history": history,
         "soak": soak}


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    binary, folder, path = (pathlib.Path(argument).absolute() for argument in sys.argv[1:])
    settings = Settings.read()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder.mkdir(parents=True, exist_ok=True)

    examples = binary.parent / "examples"
    stand_in, receiver = None if settings.emulator else examples / "bigquery-server", examples / "http-server" if settings.http else None
    with only_one(folder), Targets(stand_in, receiver) as targets, Source(binary, folder) as source:
        class_path, about_debezium = debezium_if_wanted(settings, folder)
        found = report.facts(binary, source, settings.emulator, about_debezium)
        for name, part in parts(settings).items():
            found[name] = part.measure(settings, source, targets, folder, class_path)
            report.write(path, found)  # the next part may be broken off
    report.show(path)
    if found.get("soak", {}).get("verify_exit_code"):
        sys.exit(f"bench: walcast verify found a difference; its log: {folder / 'verify.log'}")


def parts(settings):
    """Those asked for, by name."""
    asked_for = {"backlog": settings.events, "rates": settings.rates, "restarts": settings.kills, "memory": settings.huge_rows,
                 "standstill": settings.standstill_seconds, "history": settings.history_rows, "soak": settings.soak_minutes}
    return {name: PARTS[name] for name, wanted in asked_for.items() if wanted}


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
