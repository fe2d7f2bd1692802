"""The first part: every client drains a copy of the same slot, in turn, round by round."""

import dataclasses
import statistics

import debezium
import report
from clients import PgRecvlogical, Walcast
from drain import drain

BASE = "pg_recvlogical"
FIGURES = ("start_seconds", "seconds", "events_per_s", "cpu_us_per_event", "walsender_us_per_event", "rss_peak_mb", "load_average")


def clients(binary, folder, sinks, class_path):
    named = {BASE: PgRecvlogical(), "null": Walcast(binary, ["null"])}
    named |= {sink: Walcast(binary, [sink]) for sink in sinks}
    named["all"] = Walcast(binary, sinks)
    if class_path:
        named |= {"debezium_engine": debezium.Engine(class_path), "debezium_connect": debezium.Connect(class_path, folder)}
    return named


def measure(source, targets, named, events, rounds, folder):
    """What goes to the report's file."""
    report.say(f"writing {events:,} events")
    source.fill(events)
    report.head()
    results = []
    for number in range(1, rounds + 1):
        for name, client in named.items():
            with source.copied_slot(f"{name}_{number}") as slot, targets.fresh(slot.name) as fresh:
                results.append(drain(client, slot, fresh, folder / f"{name}.log"))
                report.line(name, results[-1])
    source.drop_template()
    return summary(list(named), results) | {"events": source.events, "rounds": rounds, **source.shape()}


def summary(names, results):
    by_name = {name: results[index::len(names)] for index, name in enumerate(names)}
    base = by_name[BASE]
    # Round by round: what disturbs the machine disturbs both.
    ratios = {name: [result.events_per_s / beside.events_per_s for result, beside in zip(group, base)] for name, group in by_name.items()}
    return {
        "runs": [{"name": name} | {figure: middle(getattr(result, figure) for result in group) for figure in FIGURES}
                 | {"spread": spread(result.events_per_s for result in group), "rounds": [dataclasses.asdict(result) for result in group]}
                 for name, group in by_name.items()],
        "ratios": {f"{name}_to_{BASE}": middle(values) for name, values in ratios.items() if name != BASE},
        "ratio_ranges": {f"{name}_to_{BASE}": [round(min(values), 3), round(max(values), 3)] for name, values in ratios.items() if name != BASE},
    }


def middle(values):
    return round(statistics.median(values), 3)


def spread(values):
    """Highest less lowest, as a share of the median."""
    values = list(values)
    return round((max(values) - min(values)) / statistics.median(values), 3)
