"""docker compose, run for real: the whole stack comes up with its generator, every service is restarted under load, all of
it is taken down and brought up again with its volumes, and at the end every event is in every sink once.

usage: scripts/engine run PYTHON scripts/compose_test.py
"""

import json
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = ["-f", ROOT / "docker-compose.yml", "-f", ROOT / "docker" / "compose.test.yml"]
SINKS = ("kafka", "redis", "bigquery", "http")
# BigQuery commits every 30 s, and whoever lost his servers waits up to a minute before he tries again
SECONDS_MAX = 240


def main():
    compose("down", "--volumes", "--remove-orphans")
    up("the stack comes up")
    page_answers()
    confined()
    flows("events reach every sink")
    board_is_read_in_redis()
    for service in ("postgres", "kafka", "redis", "bigquery", "receiver", "walcast", "generator"):
        compose("restart", service)
        flows(f"{service} restarted: events reach every sink")
    before = events()
    compose("down")
    up("taken down and up again, with its volumes")
    expect(events() >= before, "PostgreSQL has lost events")
    flows("events reach every sink")
    compose("stop", "generator")
    verified()
    compose("down", "--volumes")


def up(what):
    begun = time.monotonic()
    compose("up", "--detach")
    wait(what, lambda: walcast("status").returncode == 0, begun)


def flows(what):
    """What is in the WAL now comes to be in every sink, and the generator makes more."""
    def now():
        asked = psql("SELECT pg_current_wal_lsn(), count(*) FROM engagement_events", check=False)
        return asked.stdout.strip().split("|") if asked.returncode == 0 else None

    lsn, count = wait("PostgreSQL answers", now, tell=False)

    def passed():
        status = walcast("status", "--json")
        if not status.stdout.strip():
            return False
        held = [place(sink["durable_lsn"]) for sink in json.loads(status.stdout)["sinks"]]
        return len(held) > len(SINKS) and all(at >= place(lsn) for at in held)

    wait(what, passed)
    wait("the generator makes events", lambda: int((now() or (0, 0))[1]) > int(count), tell=False)


def place(lsn):
    high, low = lsn.split("/")
    return int(high, 16) << 32 | int(low, 16)


def page_answers():
    address = compose("port", "walcast", "8080").stdout.strip()
    expect(status_of(address, None) == 401, "the page asks nobody for the token")
    token = compose("exec", "-T", "walcast", "cat", "/run/secrets/web_token").stdout
    expect(len(token) >= 32, "the page's token is short")
    expect(status_of(address, token) == 200, "the page is not shown to whoever brings the token")
    say(f"the page answers on http://{address}, with the token only")


def confined():
    """Who breaks into a container of ours finds no rights there, and in PostgreSQL the small role."""
    for service in ("walcast", "redis", "bigquery", "receiver"):
        said = compose("exec", "-T", service, "cat", "/proc/1/status").stdout
        facts = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
        expect(facts["Uid"].split()[0] != "0", f"{service} runs as root")
        expect(facts["CapEff"] == facts["CapBnd"] == "0" * 16, f"{service} has capabilities")
        expect(facts["NoNewPrivs"] == "1", f"{service} may get new privileges")
        expect(compose("exec", "-T", service, "touch", "/etc/mine", check=False).returncode != 0, f"{service} writes its image")
    role = "SELECT rolname, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls FROM pg_roles r JOIN pg_stat_replication s ON s.usesysid = r.oid"
    expect(psql(role).stdout.split() == ["walcast|f|f|f|f"], "walcast does not stream as the small role")
    say("each container of ours is confined, and walcast streams as the small role")


def status_of(address, token):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}/", headers=headers), timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def board_is_read_in_redis():
    asked = "REDISCLI_AUTH=$(cat /run/secrets/redis) redis-cli ZREVRANGE top_engagement:10min 0 4 WITHSCORES"
    top = compose("exec", "-T", "redis", "sh", "-c", asked).stdout.split()
    expect(len(top) == 10, f"the board of ten minutes has not five places: {top}")
    say("redis-cli reads the board of ten minutes")


def events():
    return int(psql("SELECT count(*) FROM engagement_events").stdout)


def verified():
    verified = walcast("verify", "--json")
    expect(verified.returncode == 0, f"walcast verify: {verified.stdout}{verified.stderr}")
    total = json.loads(verified.stdout)["total"]
    made = events()
    expect(total["source"] == made, f"{made} events were made, verify has compared {total['source']}")
    held = {sink: total["sinks"][sink]["held"] + total["sinks"][sink]["dead_letters"] for sink in ("kafka", "bigquery", "http")}
    expect(all(count == made for count in held.values()), f"{made} events were made, and held are {held}")
    say(f"walcast verify: all {made:,} events are in every sink, once")


def psql(query, check=True):
    return compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "engagement", "-tAc", query, check=check)


def walcast(*arguments):
    return compose("exec", "-T", "walcast", "walcast", *arguments, check=False)


def compose(*arguments, check=True):
    done = subprocess.run([ROOT / "scripts" / "compose", *FILES, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"compose-test: docker compose {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def wait(what, is_so, begun=None, tell=True):
    begun = begun or time.monotonic()
    while not (found := is_so()):
        if time.monotonic() - begun > SECONDS_MAX:
            logs = compose("logs", "--tail", "40", check=False).stdout
            sys.exit(f"{logs}\ncompose-test: not within {SECONDS_MAX} s: {what}")
        time.sleep(0.5)
    if tell:
        say(f"{what} ({time.monotonic() - begun:.0f} s)")
    return found


def expect(so, otherwise):
    if not so:
        sys.exit(f"compose-test: {otherwise}")


def say(text):
    print(f"compose-test: {text}", flush=True)


if __name__ == "__main__":
    main()
