"""What the operating system says about a process, and how one ends."""

import contextlib
import ctypes
import glob
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys

END_SECONDS_MAX = 60
LOG_LINES = 12
PR_SET_PDEATHSIG = 1
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class Child:
    """A process with a log file, in a session of its own, killed when the `with` is left while it still runs."""

    def __init__(self, command, environment, log):
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            start_new_session=True, preexec_fn=end_with_parent)
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.runs():
            self.kill()

    def runs(self):
        return self.process.poll() is None

    def ask_to_end(self):
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def wait(self):
        """Its exit code."""
        try:
            return self.process.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.give_up(f"did not end within {END_SECONDS_MAX} s of being asked to")

    def give_up(self, what):
        print(*self.log.read_text(errors="replace").splitlines()[-LOG_LINES:], sep="\n", file=sys.stderr)
        sys.exit(f"bench: {self.log.stem} {what}; its log: {self.log}")


def end_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


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


def busy_share(before, after):
    """Of all cores, between two looks at `machine_ticks`."""
    busy, all_ticks = (late - early for early, late in zip(before, after))
    return busy / all_ticks if all_ticks else 0.0


def machine_ticks():
    """Busy ones and all, of all cores since the machine started."""
    user, nice, system, idle, waiting, *interrupts = map(int, pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    busy = user + nice + system + sum(interrupts)
    return busy, busy + idle + waiting


def listener(port):
    """The process that serves this port of this machine; None when it is not to be seen."""
    listening = re.compile(rf"^\s*\d+: [0-9A-F]+:{port:04X} \S+ 0A (?:\S+\s+){{5}}(\d+)", re.MULTILINE)
    tables = "".join(pathlib.Path(f"/proc/net/{table}").read_text() for table in ("tcp", "tcp6"))
    sockets = {f"socket:[{inode}]" for inode in listening.findall(tables)}
    for descriptor in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) in sockets:
                return int(descriptor.split("/")[2])
    return None


def peak_rss_mib(pid):
    """Not ru_maxrss: that of a child begins with what its parent had."""
    return status_mib(pid, "VmHWM")


def status_mib(pid, name):
    """None once the process is gone."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(f"{name}:")), None)
