"""The programs that drain a slot: pg_recvlogical, which does nothing but receive, and walcast."""

import glob
import json
import os
import pathlib
import urllib.request

import histogram
import targets
from processes import free_port

PUBLICATION = "walcast"
HTTP_BATCH_ROWS = 1_000  # where a rate is not to be limited by requests
HANDED_TO = "content"  # takes batches as they come, neither collects them first nor writes for each of them


class Client:
    """Something that reads a slot. `command` and `environment` say how it is started."""

    exit_codes = (0,)
    ends_by_itself = False  # once it has all: its end then stops the clock, and not the confirmed LSN
    sinks = ("null",)
    http_url = None  # where it posts to

    def environment(self, slot, fresh):
        """What it needs besides the slot's and the targets' addresses."""
        return {}

    def begin(self, child, slot, environment):
        """What its start takes besides the command."""

    def has_all(self, look, slot, environment):
        """Whether it is to be asked to end."""
        return False

    def status(self, environment):
        """What it says of itself."""

    def handed(self, environment):
        """A histogram of how long rows were in its hands before a sink was given them, where it tells one."""

    def prove(self, slot, child):
        """Gives up unless it delivered every event, where that can be told from more than the slot."""


class PgRecvlogical(Client):
    # It goes without waiting for the server, which may find the connection gone before it has read the last status.
    ends_by_itself = True

    def environment(self, slot, fresh):
        return {"PGPASSWORD": os.environ["POSTGRES_PASSWORD"]}

    def command(self, slot, environment):
        env = slot.environment
        address = ["--host", env["POSTGRES_HOST"], "--port", env["POSTGRES_PORT"], "--username", env["POSTGRES_USER"]]
        options = ["proto_version=1", f"publication_names={PUBLICATION}", "binary=true", "messages=true"]
        return [newest_pg_recvlogical(), *address, "--dbname", env["POSTGRES_DB"], "--slot", slot.name, "--start", "--endpos", slot.end,
                "--file", "/dev/null", "--fsync-interval", "0", "--no-loop", *(f"--option={option}" for option in options)]


class Walcast(Client):
    def __init__(self, binary, sinks, http_batch_rows=HTTP_BATCH_ROWS):
        self.binary, self.sinks, self.http_batch_rows = binary, sinks, http_batch_rows

    def environment(self, slot, fresh):
        self.http_url = fresh["HTTP_URL"] if "http" in self.sinks else None
        if self.http_url:
            targets.received(self.http_url)  # it begins anew
        return {"PIPELINE_SINKS": ",".join(self.sinks), "WEB_LISTEN": f"127.0.0.1:{free_port()}", "HTTP_BATCH_ROWS": str(self.http_batch_rows)}

    def command(self, slot, environment):
        return [self.binary, "run"]

    def topic(self, slot):
        """Where it writes events, if to Kafka."""
        return f"{slot.name}.events" if "kafka" in self.sinks else None

    def status(self, environment):
        try:
            with urllib.request.urlopen(f"http://{environment['WEB_LISTEN']}/api/status", timeout=5) as answer:
                return json.load(answer)
        except OSError:  # what urllib raises is one; it may not serve yet, or no more
            return None

    def handed(self, environment):
        with urllib.request.urlopen(f"http://{environment['WEB_LISTEN']}/metrics", timeout=5) as answer:
            return histogram.parse(answer.read().decode(), "walcast_sink_queue_seconds", HANDED_TO)

    def has_all(self, look, slot, environment):
        said = look.all_sent and self.status(environment)
        return bool(said) and said["source"]["events_total"] >= slot.received

    def prove(self, slot, child):
        events = targets.received(self.http_url)["events"] if self.http_url else slot.events
        if events < slot.events:
            child.give_up(f"has posted {events:,} of {slot.events:,} events")


class Often(Walcast):
    """It commits to BigQuery as it goes: by its usual 30 s, times would be a multiple of that."""

    def environment(self, slot, fresh):
        return {**super().environment(slot, fresh), "BIGQUERY_COMMIT_SECONDS": "1"}


def newest_pg_recvlogical():
    """Debian's own, past its wrapper in Perl."""
    found = glob.glob("/usr/lib/postgresql/*/bin/pg_recvlogical")
    return max(found, key=lambda path: int(pathlib.Path(path).parts[4])) if found else "pg_recvlogical"


def newest_event(connection):
    """Its id; events are counted by the differences."""
    return connection.execute("SELECT coalesce(max(id), 0) FROM engagement_events").fetchone()[0]
