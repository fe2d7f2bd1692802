"""The whole stream on this machine: walcast and its generator on the servers of scripts/services and the sample receiver of
examples/, watched from outside.

    make demo              until Ctrl-C
    make demo SECONDS=40   ends by itself

Then the generator stops, walcast drains, and a summary is printed. All its figures are read back from PostgreSQL and from
the targets by ordinary clients; none is walcast's own. It ends with what `walcast verify` says, which compares the fields
too. Exit code 0 only when every sink holds every event once, those of this run and of earlier ones.

usage: scripts/services run PYTHON scripts/demo WALCAST_BINARY LOG_FOLDER [SECONDS]
"""

import contextlib
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import metrics
import receiver
from child import Child, fail
from probes import Probes, percentiles
from screen import StatusLine, bold, dim, green, red, say
from targets import BigQueryEvents, HttpEvents, KafkaEvents, RedisEvents, Source, top_five

READY_SECONDS_MAX = 60
DRAIN_SECONDS_MAX = 180


def main():
    binary, logs, seconds = arguments()
    logs.mkdir(parents=True, exist_ok=True)
    with only_one(logs), contextlib.ExitStack() as children:
        stop = stop_on_signal()
        os.environ["PIPELINE_SINKS"] = ",".join(metrics.SINKS)
        posted_to = children.enter_context(receiver.started(logs))
        init(binary, logs)
        source = Source()
        if source.without_http():
            fail("these servers have events from a demo without HTTP, which it can never get; begin anew by `make clean-services`")
        walcast = children.enter_context(Child([binary, "run"], logs / "run.log"))
        wait_ready(walcast)
        generator = children.enter_context(Child([binary, "generate"], logs / "generate.log"))
        probes = Probes(source)
        print(f"\nThe dashboard is on {bold(metrics.WEB)}\n", flush=True)
        say(f"walcast and its generator run; logs: {logs}. Ctrl-C ends the demo.")
        say(f"HTTP posts to the sample receiver on {receiver.URL}, in batches of at most {os.environ['HTTP_BATCH_ROWS']} events")

        begun = time.monotonic()
        watch([walcast, posted_to], generator, stop, begun, seconds)
        if generator.end():
            generator.fail()
        probes.end_sending()
        seconds_taken = time.monotonic() - begun

        held = drain(walcast, source, {"kafka": KafkaEvents(), "redis": RedisEvents(), "bigquery": BigQueryEvents(),
                                       "http": HttpEvents(source.history)})
        probes.end_watching()
        board = top_five()
        os.environ["HTTP_VERIFY_URL"] = receiver.verify_url(source.history)
        verified = verify(binary, logs)
        exit_code = walcast.end()
        summary(source, seconds_taken, held, probes, board)
        sys.exit(0 if verdict(held, verified, exit_code, walcast.log) else 1)


def arguments():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    seconds = sys.argv[3] if len(sys.argv) == 4 else None
    if seconds is not None and not seconds.isdecimal():
        fail(f"SECONDS={seconds}: give a whole number, such as SECONDS=40")
    return sys.argv[1], pathlib.Path(sys.argv[2]), seconds and int(seconds)


@contextlib.contextmanager
def only_one(logs):
    with (logs / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail("another demo runs on these servers; end that one first")
        yield


def stop_on_signal():
    """The first Ctrl-C asks for the orderly end, a second one breaks it off."""
    stop = threading.Event()

    def on_signal(*_):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return stop


def init(binary, logs):
    say("walcast init: schema, publication, slot, topics, table")
    with (logs / "init.log").open("wb") as out:
        code = subprocess.run([binary, "init"], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True).returncode
    if code:
        fail(f"walcast init ended with exit code {code}", logs / "init.log")


def wait_ready(walcast):
    deadline = time.monotonic() + READY_SECONDS_MAX
    while metrics.get("/readyz") is None:
        walcast.must_run()
        if time.monotonic() > deadline:
            fail(f"walcast is not ready after {READY_SECONDS_MAX} s", walcast.log)
        time.sleep(0.1)


def watch(children, generator, stop, begun, seconds):
    """One line, renewed, until Ctrl-C, or the time is up, or the generator's burst is over."""
    with StatusLine() as line:
        rate = metrics.Rate()
        while not stop.wait(0.5):
            elapsed = time.monotonic() - begun
            line.show(f"{int(elapsed) // 60}:{int(elapsed) % 60:02}  {metrics.status(rate)}")
            for child in children:
                child.must_run()
            if generator.has_ended() or (seconds is not None and elapsed >= seconds):
                break
    stop.set()


def drain(walcast, source, targets):
    """Reads the targets back until each holds every event, or too much time has gone. Returns what each holds."""
    due = source.due()
    say(f"the generator has stopped; {due.all:,} events are due in every sink; BigQuery commits every 30 s")
    held, deadline = {}, time.monotonic() + DRAIN_SECONDS_MAX
    with StatusLine() as line:
        while True:
            for sink, target in targets.items():
                if sink not in held or not held[sink].whole:
                    held[sink] = target.read(due)
            line.show("draining  " + "   ".join(f"{bold(s)} {h.events:,} of {h.due:,}" for s, h in held.items()))
            if all(h.whole for h in held.values()) or time.monotonic() > deadline:
                return held
            walcast.must_run()
            time.sleep(1)


def verify(binary, logs):
    """walcast's own comparison, while it still runs. Its last line says what came of it."""
    say("walcast verify: every event's fields, Redis recomputed from PostgreSQL")
    verified = subprocess.run([binary, "verify"], stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True)
    (logs / "verify.log").write_text(verified.stdout + verified.stderr)
    return verified


def summary(source, seconds, held, probes, board):
    due = source.due()
    print(f"\n{bold(f'{due.this_run:,} events')} made in {seconds:.0f} s, {due.this_run / seconds:,.0f}/s; with earlier runs {due.all:,}")
    if due.refused:
        print(f"{due.refused:,} more have a negative duration: they are dead letters")
    print(f"\n{dim(f'{'read back from':<15}{'events':>13}{'missing':>10}{'twice':>8}   commit to visible {'p50':>9}{'p95':>10}{'max':>10}')}")
    for sink, h in held.items():
        p50, p95, worst = percentiles(probes.latencies(sink))
        print(f"{sink:<15}{h.events:>13,}{h.missing:>10,}{h.twice:>8,}   {'':17} {p50:>9}{p95:>10}{worst:>10}   {dim(h.note)}")
        if h.refused:
            print(red(f"{sink} has refused {h.refused:,} requests: signed by another, or not understood"))
    for problem in probes.problems:
        print(dim(f"a latency is missing; {problem}"))
    print(f"\n{bold('Top of the last ten minutes')}")
    for place, (title, engaged) in enumerate(board, 1):
        print(f"  {place}  {title:<50.50}{engaged:>12,.0f} s")
    if not board:
        print("  nobody has engaged with anything")


def verdict(held, verified, exit_code, log):
    whole = all(h.whole for h in held.values())
    print("\n" + (green("Every sink holds every event, none twice.") if whole else red("Not every sink holds every event once.")))
    agrees = verified.returncode == 0
    if agrees:
        print(green(f"walcast verify: {verified.stdout.splitlines()[-1]}."))
    else:
        print(red(f"walcast verify: exit code {verified.returncode}; it says:\n") + (verified.stdout or verified.stderr))
    if exit_code:
        print(red(f"walcast did not stop in good order: exit code {exit_code}; its log: {log}"))
    print(f"The servers stay up: {bold('scripts/services env')} says where; {bold('make clean-services')} stops and wipes them.")
    return whole and agrees and exit_code == 0


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
