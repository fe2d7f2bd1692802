"""The database whose slot is drained: filled once, its template slot copied for every run."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
import uuid

import psycopg

DATABASE = "walcast_bench"
TEMPLATE = f"{DATABASE}_template"
# The client's and pg_recvlogical's names for the same thing
WITHOUT_TLS = {"POSTGRES_SSLMODE": "disable", "PGSSLMODE": "disable"}
RELEASE_SECONDS_MAX = 30
PAYLOAD_BYTES = "octet_length(raw_payload::text)"


@dataclasses.dataclass
class Slot:
    name: str
    environment: dict  # for walcast
    connection: psycopg.Connection

    def active_pid(self):
        return self.fact("active_pid")

    def wal_end(self):
        return self.fact("pg_current_wal_insert_lsn()::text")

    def retained_bytes(self):
        return int(self.fact("pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)"))

    def fact(self, expression):
        query = f"SELECT {expression} FROM pg_replication_slots WHERE slot_name = %s"
        return self.connection.execute(query, [self.name]).fetchone()[0]


@dataclasses.dataclass
class Backlog(Slot):
    """A slot before a known number of events."""

    first: str  # an LSN: who was sent up to it was sent an event
    end: str  # an LSN: who has confirmed it has delivered every event
    events: int
    received: int  # events in the stream once one transaction beyond `end` is whole, see Source.fill


class Source:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.environment = {**os.environ, **WITHOUT_TLS, "POSTGRES_DB": DATABASE, "PIPELINE_SINKS": "null"}

    def __enter__(self):
        self.admin = connect("postgres")
        self.drop()  # what a killed one left
        self.admin.execute(f"CREATE DATABASE {DATABASE}")
        self.connection = connect(DATABASE)
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.drop()
        self.admin.close()

    def drop(self):
        for (slot,) in self.admin.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s", [DATABASE]).fetchall():
            drop_slot(self.admin, slot)
        self.admin.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")

    def fill(self, events):
        """The catalogue comes before the template slot, as in a database that has lived, and all events after it."""
        with self.new_slot("first"):
            self.walcast("generate", BURST_MODE="true", BURST_COUNT="0", GENERATE_SEED="1")
        self.connection.execute("TRUNCATE engagement_events")  # what an earlier part left
        self.walcast("init", POSTGRES_SLOT=TEMPLATE)
        self.add_event()
        self.first = self.one("SELECT pg_current_wal_insert_lsn()::text")
        self.walcast("generate", BURST_MODE="true", BURST_COUNT=str(events), GENERATE_SEED="1")
        self.end = self.one("SELECT pg_current_wal_insert_lsn()::text")
        # Once the second of these has been received, the first one's commit has been too, and that is beyond `end`.
        for _ in range(2):
            self.add_event()
        self.events = 1 + events
        self.connection.execute("VACUUM (ANALYZE) engagement_events")  # as of a table that has lived
        self.connection.execute("CHECKPOINT")  # now, and not during a run

    def add_event(self):
        self.connection.execute("INSERT INTO engagement_events (event_ts) VALUES (now())")

    def walcast(self, command, **environment):
        log = self.folder / f"{command}.log"
        with log.open("wb") as out:
            ended = subprocess.run([self.binary, command], env={**self.environment, **environment},
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        if ended.returncode:
            sys.exit(f"{log.read_text()}bench: walcast {command} ended with exit code {ended.returncode}")

    def drop_template(self):
        """So that it retains no WAL while others are looked at."""
        self.forget(TEMPLATE)

    def shape(self):
        return {
            "transactions": self.one("SELECT count(DISTINCT xmin::text) FROM engagement_events"),
            "payload_bytes": self.one(f"SELECT avg({PAYLOAD_BYTES})::int FROM engagement_events"),
            "payload_bytes_p50": self.one(f"SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY {PAYLOAD_BYTES}) FROM engagement_events"),
        }

    def one(self, query):
        return self.connection.execute(query).fetchone()[0]

    @contextlib.contextmanager
    def copied_slot(self, name):
        """A slot that begins where the template does, which walcast takes for one that it made itself."""
        name, history_id = f"{DATABASE}_{name}", str(uuid.uuid4())
        self.connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [TEMPLATE, name])
        self.copy_rows("walcast.slot", {"slot": name, "history_id": history_id})
        self.copy_rows("walcast.content_version", {"history_id": history_id})
        try:
            environment = {**self.environment, "POSTGRES_SLOT": name}
            yield Backlog(name, environment, self.connection, self.first, self.end, self.events, self.events + 2)
        finally:
            self.forget(name)

    @contextlib.contextmanager
    def new_slot(self, name, **environment):
        """A slot that begins now, made as users make one, with what its sinks need."""
        name = f"{DATABASE}_{name}"
        try:
            self.walcast("init", POSTGRES_SLOT=name, **environment)
            yield Slot(name, {**self.environment, "POSTGRES_SLOT": name}, self.connection)
        finally:
            self.forget(name)

    def forget(self, name):
        """The slot, if it came to be, and what walcast knows of it."""
        if self.admin.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", [name]).fetchone() is not None:
            drop_slot(self.admin, name)
        if not self.one("SELECT to_regclass('walcast.slot')"):
            return
        for table in ("content_version", "progress", "sink", "event_mark", "request", "backfill", "slot"):
            self.connection.execute(
                f"DELETE FROM walcast.{table} WHERE history_id IN (SELECT history_id FROM walcast.slot WHERE slot = %s)", [name])

    def copy_rows(self, table, changes):
        """The template's rows of a table, with other values in some columns."""
        self.connection.execute(f"""
            INSERT INTO {table} SELECT (jsonb_populate_record(row, %s)).* FROM {table} AS row
            WHERE history_id = (SELECT history_id FROM walcast.slot WHERE slot = %s)""",
            [psycopg.types.json.Jsonb(changes), TEMPLATE])


def connect(database):
    env = os.environ
    return psycopg.connect(host=env["POSTGRES_HOST"], port=env["POSTGRES_PORT"], user=env["POSTGRES_USER"],
                           password=env["POSTGRES_PASSWORD"], dbname=database, sslmode="disable", autocommit=True)


def drop_slot(connection, slot):
    """The server may need a moment to see that its reader is gone."""
    deadline = time.monotonic() + RELEASE_SECONDS_MAX
    while True:
        try:
            connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
            return
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
