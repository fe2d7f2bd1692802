"""A client in live operation: it streams from a slot of its own while `walcast generate` writes at a steady rate."""

import contextlib
import time

from clients import newest_event
from processes import Child
from source import DATABASE

START_SECONDS_MAX = 120
POLL_SECONDS = 0.1


@contextlib.contextmanager
def streaming(source, targets, client, name, folder):
    """The slot and the process, once it streams. Left in good order it ends by SIGTERM, and must end well."""
    with targets.fresh(f"{DATABASE}_{name}") as fresh, source.new_slot(name, **fresh, PIPELINE_SINKS=",".join(client.sinks)) as slot:
        environment = {**slot.environment, **fresh, **client.environment(slot, fresh)}
        with Child(client.command(slot, environment), environment, folder / f"{name}.log") as child:
            client.begin(child, slot, environment)
            wait_until(slot.active_pid, child, "begun to stream")
            yield slot, child, environment
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


def wait_until(condition, child, what):
    deadline = time.monotonic() + START_SECONDS_MAX
    while not condition():
        if time.monotonic() > deadline or not child.runs():
            child.give_up(f"has not {what}")
        time.sleep(POLL_SECONDS)
