"""How many instructions an event costs on its way through examples/instructions.rs, counted by callgrind, against
benches/instructions.baseline.

    python scripts/instructions.py           fails when a stage has grown by more than 5 %, and names the functions
    python scripts/instructions.py write     writes the baseline anew

Counts do not depend on the machine or its load: only Rust functions are counted. C code (librdkafka, malloc, memcpy)
is left out, since it comes from the machine's own compiler and libc, which choose by the processor; allocations are
counted in tests/allocations.rs. What is left of noise are the random keys of the hash maps, in redis alone: 0.05 %.
Counts do depend on the compiler, so the baseline has its version, and nothing is compared under another one.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASELINE = ROOT / "benches/instructions.baseline"
STAGES = ["decode", "enrich", "kafka", "redis", "bigquery"]
GROWTH_MAX = 0.05
NAMED_MAX = 5
HEAD = """\
# Instructions an event by stage, and by function where there are any, under callgrind.
# Written by `make instructions-baseline`; scripts/instructions.py says what is counted.
"""


def main(command="compare"):
    compiler = rustc()
    if command == "write":
        BASELINE.write_text(text(compiler, measure()))
        return 0
    known_compiler, known = read(BASELINE)
    if compiler != known_compiler:
        print(f"instructions: not compared, the baseline is of {known_compiler} and this is {compiler}")
        return 0
    return compare(known, measure())


def rustc():
    fields = dict(line.split(": ", 1) for line in output("rustc", "-vV").splitlines() if ": " in line)
    return f"rustc {fields['release']} ({fields['commit-hash'][:9]}) {fields['host']}"


def measure():
    """Stage to function to instructions an event."""
    with tempfile.TemporaryDirectory() as folder:
        dumps = pathlib.Path(folder) / "callgrind"
        stages = [f"instructions::stages::{stage}" for stage in STAGES]
        options = [f"--{when}={stage}" for stage in stages for when in ("zero-before", "dump-after")]
        printed = output("valgrind", "--tool=callgrind", f"--callgrind-out-file={dumps}", *options, build())
        events = int(printed.split()[0])
        counted = [parse(dump) for dump in sorted(dumps.parent.glob("callgrind.*"))]
    return {stage: {name: count / events for name, count in counts.items()} for stage, counts in counted if stage}


def build():
    """The program's path. An example: with a bench, cargo would also build walcast, where the tests have theirs with failpoints."""
    command = ["cargo", "build", "--locked", "--quiet", "--example", "instructions", "--message-format", "json"]
    messages = map(json.loads, output(*command, "--config", "benches/instructions.toml").splitlines())
    made = {message["target"]["name"]: message["executable"] for message in messages if message.get("executable")}
    return made["instructions"]


def output(*command):
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"instructions: {' '.join(command[:2])} failed:\n{done.stderr}")
    return done.stdout


def parse(dump):
    """The stage that a dump was made after, and its Rust functions' own instructions."""
    stage, names, counts = None, {}, collections.Counter()
    function, inclusive = None, False
    for line in dump.read_text().splitlines():
        if line.startswith("desc: Trigger: --dump-after="):
            stage = line.rsplit("::", 1)[1]
        elif match := re.match(r"(c?)fn=(\(\d+\))(?: (.*))?", line):
            callee, key, name = match.groups()
            # a number after a quote tells the rounds of a recursion apart
            names[key] = re.sub(r"'\d+$", "", name) if name else names[key]
            function = function if callee else names[key]
        elif line.startswith("calls="):
            inclusive = True  # the next line is what the callee cost, which stands with the callee
        elif re.match(r"[-+*\d]", line):
            counts[function] += 0 if inclusive else int(line.split()[1])
            inclusive = False
    return stage, {name: count for name, count in counts.items() if "::" in name}


def text(compiler, measured):
    lines = [HEAD + compiler]
    for stage in STAGES:
        lines += ["", f"{stage} {sum(measured[stage].values()):.0f}"]
        largest = sorted(measured[stage].items(), key=lambda item: (-round(item[1]), item[0]))
        lines += [f"{count:8.0f} {name}" for name, count in largest if round(count) > 0]
    return "\n".join(lines) + "\n"


def read(path):
    """The compiler, and stage to total and functions."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    compiler, stages = lines[0], {}
    for line in lines[1:]:
        if line.startswith(" "):
            count, name = line.split(maxsplit=1)
            functions[name] = int(count)
        else:
            stage, total = line.split()
            functions = {}
            stages[stage] = int(total), functions
    return compiler, stages


def compare(known, measured):
    if known.keys() != measured.keys():
        print("instructions: the baseline has other stages: make instructions-baseline")
        return 1
    grown = []
    for stage in STAGES:
        before, functions = known[stage]
        after = sum(measured[stage].values())
        growth = after / before - 1
        print(f"instructions an event: {stage:10} {before:6} → {after:6.0f}  {growth:+7.1%}")
        if growth > GROWTH_MAX:
            grown.append(stage)
            for line in growth_of(functions, measured[stage]):
                print(line)
        elif growth < -GROWTH_MAX:
            print("  cheaper: make instructions-baseline keeps it so")
    if grown:
        print(f"instructions: {', '.join(grown)} grew by more than {GROWTH_MAX:.0%}. Make it cheaper, or, when what it "
              "does now is worth that, write it down: make instructions-baseline")
    return 1 if grown else 0


def growth_of(before, after):
    """The functions that grew most."""
    grown = {name: count - before.get(name, 0) for name, count in after.items()}
    for name in sorted(grown, key=grown.get, reverse=True)[:NAMED_MAX]:
        if grown[name] >= 1:
            yield f"  {grown[name]:+8.0f}  {before.get(name, 0):6} → {after[name]:6.0f}  {name}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
