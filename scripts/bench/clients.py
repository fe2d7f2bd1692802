"""The programs that drain a slot, and what each takes for it."""

import ctypes
import dataclasses
import glob
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

POLL_SECONDS = 0.02
RUN_SECONDS_MAX = 1800
END_SECONDS_MAX = 60
PR_SET_PDEATHSIG = 1
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")

LOOK = """
    SELECT slot.active_pid, slot.confirmed_flush_lsn >= %(end)s::pg_lsn, coalesce(sender.sent_lsn >= %(end)s::pg_lsn, false)
    FROM pg_replication_slots AS slot LEFT JOIN pg_stat_replication AS sender ON sender.pid = slot.active_pid
    WHERE slot.slot_name = %(slot)s"""


@dataclasses.dataclass
class Result:
    name: str
    seconds: float
    events_per_s: float
    cpu_us_per_event: float
    walsender_us_per_event: float
    rss_peak_mb: float
    load_average: float


class Client:
    """A program, and what makes it stop once it has received everything (nothing: it does so by itself)."""

    def __init__(self, command, environment=lambda fresh: {}, received=None):
        self.command, self.environment, self.received = command, environment, received

    def drain(self, slot, fresh, name, log):
        environment = {**slot.environment, **fresh, **self.environment(fresh)}
        load, cpu_before = os.getloadavg()[0], cpu_of_children()
        with log.open("wb") as out:
            process = subprocess.Popen(self.command(slot), env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                       start_new_session=True, preexec_fn=end_with_parent)
        try:
            seconds, walsender, rss = self.watch(process, slot, environment)
            failed = process.wait(END_SECONDS_MAX)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if failed:
            give_up(f"{name} ended with exit code {failed}", log)
        if seconds is None:
            give_up(f"{name} ended before it had confirmed everything", log)
        micros = 1e6 / slot.events
        return Result(name, seconds, slot.events / seconds, (cpu_of_children() - cpu_before) * micros, walsender * micros, rss, load)

    def watch(self, process, slot, environment):
        """Until all is confirmed and the process has ended: seconds, the walsender's CPU seconds, peak memory."""
        begun = ended = walsender = None
        rss, asked_to_stop, deadline = 0, False, time.monotonic() + RUN_SECONDS_MAX
        while process.poll() is None and time.monotonic() < deadline:
            active_pid, confirmed, all_sent = slot.connection.execute(LOOK, {"slot": slot.name, "end": slot.end}).fetchone()
            now = time.monotonic()
            if active_pid:
                begun = begun or now
                walsender = cpu_seconds(active_pid) or walsender
            if confirmed:
                ended = ended or now
            rss = peak_rss_mb(process.pid) or rss
            if self.received and all_sent and not asked_to_stop and self.received(environment) >= slot.received:
                process.send_signal(signal.SIGTERM)
                asked_to_stop = True
            time.sleep(POLL_SECONDS)
        _, confirmed, _ = slot.connection.execute(LOOK, {"slot": slot.name, "end": slot.end}).fetchone()
        if begun and confirmed:
            ended = ended or time.monotonic()
        return ended and ended - begun, walsender or 0, rss


def pg_recvlogical():
    program = newest_pg_recvlogical()
    options = ["proto_version=1", "publication_names=walcast", "binary=true", "messages=true"]

    def command(slot):
        env = slot.environment
        address = ["--host", env["POSTGRES_HOST"], "--port", env["POSTGRES_PORT"], "--username", env["POSTGRES_USER"]]
        return [program, *address, "--dbname", env["POSTGRES_DB"], "--slot", slot.name, "--start", "--endpos", slot.end,
                "--file", "/dev/null", "--fsync-interval", "0", "--no-loop", *(f"--option={option}" for option in options)]

    return Client(command, lambda _: {"PGPASSWORD": os.environ["POSTGRES_PASSWORD"]})


def newest_pg_recvlogical():
    """Debian's own, past its wrapper in Perl."""
    found = glob.glob("/usr/lib/postgresql/*/bin/pg_recvlogical")
    return max(found, key=lambda path: int(pathlib.Path(path).parts[4])) if found else "pg_recvlogical"


def walcast(binary, sinks):
    return Client(lambda _: [binary, "run"], lambda _: {"PIPELINE_SINKS": ",".join(sinks), "WEB_LISTEN": f"127.0.0.1:{free_port()}"},
                  events_received)


def events_received(environment):
    try:
        with urllib.request.urlopen(f"http://{environment['WEB_LISTEN']}/api/status", timeout=5) as answer:
            return json.load(answer)["source"]["events_total"]
    except (urllib.error.URLError, OSError):
        return 0


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cpu_of_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cpu_seconds(pid):
    """None once the process is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) * TICK_SECONDS


def peak_rss_mb(pid):
    """Not ru_maxrss: that of a child begins with what its parent had."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")), None)


def end_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def give_up(message, log):
    print(*log.read_text(errors="replace").splitlines()[-12:], sep="\n", file=sys.stderr)
    sys.exit(f"bench: {message}; its log: {log}")
