"""What the demo prints: colours and a renewed line on a terminal, plain lines otherwise."""

import os
import re
import shutil
import sys
import time

TERMINAL = sys.stdout.isatty()
COLOURS = TERMINAL and "NO_COLOR" not in os.environ
PLAIN_LINE_SECONDS = 5
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def paint(code):
    return lambda text: f"\x1b[{code}m{text}\x1b[0m" if COLOURS else str(text)


bold, dim, red, green = paint(1), paint(2), paint(31), paint(32)


def say(text):
    print(dim(text), flush=True)


class StatusLine:
    def __init__(self):
        self.printed_at = float("-inf")
        self.last = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if TERMINAL:
            print("\r\x1b[2K", end="")
        if self.last:
            print(self.last, flush=True)

    def show(self, text):
        self.last = text
        if TERMINAL:
            print("\r\x1b[2K" + fit(text), end="", flush=True)
        elif time.monotonic() - self.printed_at >= PLAIN_LINE_SECONDS:
            self.printed_at = time.monotonic()
            self.last = ""
            print(text, flush=True)


def fit(text):
    """A line that wraps could not be renewed."""
    columns = shutil.get_terminal_size().columns - 1
    plain = ESCAPES.sub("", text)
    return text if len(plain) <= columns else plain[:columns]
