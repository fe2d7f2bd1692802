"""One client, one copy of the slot: how long it takes until the slot's confirmed LSN is past every event, and at what cost."""

import dataclasses
import os
import time

from processes import Child, busy_share, cpu_of_children, cpu_seconds, machine_ticks, peak_rss_mib

POLL_SECONDS = 0.02
START_SECONDS_MAX = 120
RUN_SECONDS_MAX = 1800

LOOK = """
    SELECT slot.active_pid, coalesce(sender.sent_lsn >= %(first)s::pg_lsn, false) AS begun,
           coalesce(sender.sent_lsn >= %(end)s::pg_lsn, false) AS all_sent, slot.confirmed_flush_lsn >= %(end)s::pg_lsn AS confirmed
    FROM pg_replication_slots AS slot LEFT JOIN pg_stat_replication AS sender ON sender.pid = slot.active_pid
    WHERE slot.slot_name = %(name)s"""


@dataclasses.dataclass
class Result:
    start_seconds: float
    seconds: float
    events_per_s: float
    cpu_us_per_event: float
    servers_us_per_event: dict  # by server
    machine_busy: float  # share of all cores, from the start of streaming to the client's end
    rss_peak_mib: float
    load_average: float


@dataclasses.dataclass
class Look:
    """What the server says of the slot: who reads it, whether the first and the last event were sent, whether all is confirmed."""

    active_pid: int | None
    begun: bool
    all_sent: bool
    confirmed: bool


def drain(client, slot, fresh, servers, log):
    """servers: the processes that serve the targets, by name."""
    environment = {**slot.environment, **fresh, **client.environment(slot, fresh)}
    load, cpu_before, started = os.getloadavg()[0], cpu_of_children(), time.monotonic()
    with Child(client.command(slot, environment), environment, log) as child:
        client.begin(child, slot, environment)
        seen = Watch(client, slot, environment, servers, child)
        seen.until_it_ends()
        code = child.wait()
        if code not in client.exit_codes:
            child.give_up(f"ended with exit code {code}")
        if seen.ended is None:
            child.give_up("ended before it had confirmed everything")
    client.prove(slot, child)
    seconds, cpu = seen.ended - seen.streaming, cpu_of_children() - cpu_before - seen.cpu_before
    return Result(
        start_seconds=(seen.first or seen.ended) - started, seconds=seconds, events_per_s=slot.events / seconds,
        cpu_us_per_event=cpu * 1e6 / slot.events,
        servers_us_per_event={name: seconds * 1e6 / slot.events for name, seconds in seen.servers_cpu().items()},
        machine_busy=busy_share(seen.ticks_before, machine_ticks()), rss_peak_mib=seen.rss, load_average=load)


class Watch:
    def __init__(self, client, slot, environment, servers, child):
        self.client, self.slot, self.environment, self.servers, self.child = client, slot, environment, servers, child
        self.streaming = self.first = self.ended = None
        self.cpu_before = self.walsender = self.rss = 0
        self.asked_to_end = False

    def until_it_ends(self):
        begun = time.monotonic()
        while self.child.runs():
            self.note(self.look(), time.monotonic())
            waited = time.monotonic() - begun
            if waited > (RUN_SECONDS_MAX if self.streaming else START_SECONDS_MAX):
                self.child.give_up(f"has not {'confirmed everything' if self.streaming else 'begun to stream'} after {waited:.0f} s")
            time.sleep(POLL_SECONDS)
        self.note(self.look(), time.monotonic())
        if self.client.ends_by_itself and self.streaming:
            self.ended = time.monotonic()

    def look(self):
        return Look(*self.slot.connection.execute(LOOK, vars(self.slot)).fetchone())

    def note(self, look, now):
        if look.active_pid:
            if self.streaming is None:
                self.streaming, self.cpu_before = now, cpu_seconds(self.child.pid) or 0
                self.ticks_before, self.servers_before = machine_ticks(), self.cpu_of_servers()
            self.walsender = cpu_seconds(look.active_pid) or self.walsender
        if look.begun:
            self.first = self.first or now
        if look.confirmed and self.streaming:
            self.ended = self.ended or now
        self.rss = peak_rss_mib(self.child.pid) or self.rss
        if not self.asked_to_end and self.client.has_all(look, self.slot, self.environment):
            self.child.ask_to_end()
            self.asked_to_end = True

    def cpu_of_servers(self):
        return {name: cpu_seconds(pid) or 0 for name, pid in self.servers.items()}

    def servers_cpu(self):
        """Seconds since the start of streaming."""
        since = {name: seconds - self.servers_before[name] for name, seconds in self.cpu_of_servers().items()}
        return {"walsender": self.walsender, **since}
