"""Builds all tests once and runs them, part after part: also those behind a part that fails, so that one run tells all.

    python scripts/run_tests.py SERVERS_THREADS

While those on servers run, which wait much of the time, `make instructions` goes on beside them at the lowest priority:
it compiles walcast once more, as a release has it, for minutes on one core.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ["--lib", "--bins", "--examples", "--test", "unit", "--test", "allocations", "--test", "servers", "--test", "chaos"]
ON_SERVERS = ["servers", "chaos"]
# these hold walcast to a time: two at once, not as many as the others
OBJECTIVES = ["gaps::", "within_two_seconds", "hung_transaction", "the_rate_is_held", "short_scripts", "does_not_wait_for",
              "strangers::", "kafka::security"]
# what is told again at the end of each test that failed
LINES_OF_A_FAILURE = 8
LINE_CHARS_MAX = 600


def main(servers_threads):
    built = build()
    failed = [name for name, program in built.items() if name not in ON_SERVERS and not passes(name, program)]
    # a group and not a session of its own: Linux gives each session the same share, whatever the priorities in it
    instructions = subprocess.Popen(["nice", "-n", "19", sys.executable, ROOT / "scripts/instructions.py"], cwd=ROOT,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)
    skipped = [word for part in OBJECTIVES for word in ("--skip", part)]
    on_servers = {
        "servers": (built["servers"], "--test-threads", servers_threads, *skipped),
        "servers, held to a time": (built["servers"], "--test-threads", "2", *OBJECTIVES),
        "chaos": (built["chaos"],),
    }
    try:
        failed += [name for name, command in on_servers.items() if not passes(name, *command)]
        print(f"\n{instructions.communicate()[0]}", end="", flush=True)
        if instructions.returncode != 0:
            failed.append("instructions")
    finally:
        if instructions.poll() is None:
            os.killpg(instructions.pid, signal.SIGKILL)
    print("\n".join(WHY.said), flush=True)
    return f"\ntests have failed in: {', '.join(failed)}" if failed else 0


def build():
    """Name to program, in the order of PARTS."""
    command = ["cargo", "test", "--locked", "--features", "failpoints", "--no-run", "--message-format", "json", *PARTS]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    for message in messages:
        if message["reason"] == "compiler-message":
            print(message["message"]["rendered"], file=sys.stderr, end="")
    if done.returncode != 0:
        sys.exit(done.returncode)
    made = {}
    for message in messages:
        if message.get("profile", {}).get("test") and message.get("executable"):
            target = message["target"]
            made[f"{target['kind'][0]} {target['name']}" if target["kind"] != ["test"] else target["name"]] = message["executable"]
    return dict(sorted(made.items(), key=lambda item: item[0] in ON_SERVERS))


def passes(name, program, *arguments):
    print(f"\n{name}", flush=True)
    run = subprocess.Popen([program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, errors="replace")
    for line in run.stdout:
        print(line, end="", flush=True)
        WHY.note(line.rstrip("\n"))
    return run.wait() == 0


class Why:
    """What the tests that failed said first of it, to be read at the end, where one looks."""

    def __init__(self):
        self.test, self.lines_left, self.said = None, 0, []

    def note(self, line):
        if line.startswith("---- ") and line.endswith(" stdout ----"):
            self.test = line.split()[1]
        elif self.test and "panicked at" in line:
            self.said.append(f"\n{self.test}")
            self.test, self.lines_left = None, LINES_OF_A_FAILURE
        if self.lines_left:
            self.lines_left -= 1
            self.said.append(line[:LINE_CHARS_MAX])


WHY = Why()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
