"""The fourth target: the sample receiver of examples/, which checks signatures and drops repeats, with a secret of this run."""

import base64
import json
import os
import pathlib
import secrets
import sys
import time
import urllib.parse
import urllib.request

from child import Child, fail

SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "http-receiver.py"
HOST, PORT = "127.0.0.1", 28090
URL = f"http://{HOST}:{PORT}/"
START_SECONDS_MAX = 10
# It takes some 2,500 requests a second: too few for one with each of the demo's events.
BATCH_ROWS = 500


def started(logs):
    """The process, once it answers. What it was given in earlier runs it has kept, as the servers have."""
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    os.environ.update(WEBHOOK_SECRETS=secret, HTTP_SIGNING_SECRETS=secret, HTTP_URL=URL)
    os.environ.setdefault("HTTP_BATCH_ROWS", str(BATCH_ROWS))
    child = Child(
        [sys.executable, str(SCRIPT), "--host", HOST, "--port", str(PORT), "--database", str(logs / "receiver.db")], logs / "receiver.log")
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        child.must_run()
        try:
            counts()
            return child
        except OSError:
            if time.monotonic() > deadline:
                fail("the sample receiver does not answer", child.log)
            time.sleep(0.05)


def counts(**narrowed):
    """What it says that it has."""
    with ask("", narrowed) as answer:
        return json.load(answer)


def events(history):
    """The id of each event that it gives back."""
    with ask("events", {"history": history}) as answer:
        for line in answer:
            yield json.loads(line)["event_id"]


def verify_url(history):
    return f"{URL}events?history={history}"


def ask(path, narrowed):
    return urllib.request.urlopen(f"{URL}{path}?{urllib.parse.urlencode(narrowed)}", timeout=60)
