"""A client in live operation: it streams from a slot of its own while `walcast generate` writes at a steady rate."""

import contextlib
import time

from clients import newest_event
from processes import Child
from source import DATABASE

START_SECONDS_MAX = 120
POLL_SECONDS = 0.1
SHORT_POLL_SECONDS = 0.005


@contextlib.contextmanager
def streaming(source, targets, client, name, folder):
    """The slot and the process, once it streams. Left in good order it ends by SIGTERM, and must end well."""
    with place(source, targets, client, name) as (slot, environment):
        with started(client, slot, environment, folder / f"{name}.log") as child:
            yield slot, child, environment
            end(child, client)


@contextlib.contextmanager
def place(source, targets, client, name, aside=False):
    """A slot and targets of its own, and what a client has in its environment there. aside: while another one has such a place."""
    with targets.fresh(f"{DATABASE}_{name}", aside) as fresh, source.new_slot(name, **fresh, PIPELINE_SINKS=",".join(client.sinks)) as slot:
        yield slot, {**slot.environment, **fresh, **client.environment(slot, fresh)}


@contextlib.contextmanager
def started(client, slot, environment, log, former=None):
    """The process, once it streams. former: the walsender of one that was killed, which the server may not have noticed yet."""
    with Child(client.command(slot, environment), environment, log) as child:
        client.begin(child, slot, environment)
        wait_until(lambda: slot.active_pid() not in (None, former), child, "begun to stream", SHORT_POLL_SECONDS)
        yield child


def end(child, client):
    child.ask_to_end()
    if child.wait() not in client.exit_codes:
        child.give_up("did not end well")


@contextlib.contextmanager
def generating(source, rate, folder):
    """At so many events a second, since its first one."""
    environment = {**source.environment, "GENERATION_RATE": str(rate * 60)}
    before = newest_event(source.connection)
    with Child([source.binary, "generate"], environment, folder / "generate.log") as child:
        wait_until(lambda: newest_event(source.connection) > before, child, "written an event")
        yield child
        child.ask_to_end()
        if child.wait():
            child.give_up("did not end well")


def wait_until(condition, child, what, every=POLL_SECONDS, seconds_max=START_SECONDS_MAX):
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline or not child.runs():
            child.give_up(f"has not {what}")
        time.sleep(every)
