"""The first part: every client drains a copy of the same slot, in turn, round by round."""

import dataclasses
import statistics

import debezium
import report
from clients import PgRecvlogical, Walcast
from drain import drain

BASE = "pg_recvlogical"
FIGURES = ("start_seconds", "seconds", "events_per_s", "cpu_us_per_event", "rss_peak_mib", "machine_busy", "load_average")


def clients(binary, folder, settings, class_path):
    named = {BASE: PgRecvlogical(), "null": Walcast(binary, ["null"])}
    named |= {sink: Walcast(binary, [sink]) for sink in settings.with_http()}
    named["all"] = Walcast(binary, settings.sinks)
    if class_path:
        named |= {"debezium_engine": debezium.Engine(class_path), "debezium_connect": debezium.Connect(class_path, folder)}
    return named


def measure(settings, source, targets, folder, class_path):
    """What goes to the report's file."""
    report.say(f"writing {settings.events:,} events")
    source.fill(settings.events)
    report.head()
    servers = targets.servers()
    named = clients(source.binary, folder, settings, class_path)
    results = {name: [] for name in named}
    for number in range(1, settings.rounds + 1):
        for name, client in named.items():
            with source.copied_slot(f"{name}_{number}") as slot, targets.fresh(slot.name) as fresh:
                results[name].append(drain(client, slot, fresh, servers, folder / f"{name}.log"))
                report.line(name, results[name][-1])
    source.drop_template()
    return {"events": source.events, "rounds": settings.rounds, **source.shape(), "runs": [run(name, group) for name, group in results.items()],
            **ratios(results)}


def run(name, group):
    rates = [result.events_per_s for result in group]
    return {"name": name, **{figure: middle(getattr(result, figure) for result in group) for figure in FIGURES},
            "servers_us_per_event": {server: middle(result.servers_us_per_event[server] for result in group)
                                     for server in group[0].servers_us_per_event},
            "spread": round((max(rates) - min(rates)) / statistics.median(rates), 3),  # highest less lowest
            "rounds": [dataclasses.asdict(result) for result in group]}


def ratios(results):
    """Of events/s, round by round: what disturbs the machine disturbs both."""
    found = {f"{name}_to_{BASE}": [result.events_per_s / base.events_per_s for result, base in zip(group, results[BASE])]
             for name, group in results.items() if name != BASE}
    return {"ratios": {name: middle(values) for name, values in found.items()},
            "ratio_ranges": {name: [round(min(values), 3), round(max(values), 3)] for name, values in found.items()}}


def middle(values):
    return round(statistics.median(values), 3)
