"""A process of the demo, with its log file."""

import ctypes
import signal
import subprocess
import sys

from screen import red

END_SECONDS_MAX = 60
BREAK_OFF_SECONDS_MAX = 10
LOG_LINES = 12
PR_SET_PDEATHSIG = 1


class Child:
    def __init__(self, command, log):
        self.command, self.log = command, log
        # A session of its own: Ctrl-C is for the demo, which ends its children in order.
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            start_new_session=True, preexec_fn=end_with_parent)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Reached with the process alive only when the demo fails or is broken off."""
        if self.process.poll() is None:
            self.process.terminate()
            self.wait(BREAK_OFF_SECONDS_MAX)

    def has_ended(self):
        """True once it ended well; a failure ends the demo."""
        if self.process.poll():
            self.fail()
        return self.process.returncode == 0

    def must_run(self):
        if self.process.poll() is not None:
            self.fail()

    def end(self):
        """SIGTERM: it is to finish its work. Returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def wait(self, seconds=END_SECONDS_MAX):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def fail(self):
        fail(f"'{' '.join(self.command)}' ended with exit code {self.process.returncode}", self.log)


def end_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def fail(message, log=None):
    if log is not None:
        print(*log.read_text(errors="replace").splitlines()[-LOG_LINES:], sep="\n", file=sys.stderr)
        message += f"; its log: {log}"
    sys.exit(red(f"demo: {message}"))
