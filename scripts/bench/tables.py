"""The report's file as Markdown."""


def markdown(found):
    parts = [heading(found)]
    parts += [part(found[name]) for name, part in PARTS.items() if name in found]
    return "\n".join(parts)


def heading(found):
    machine, versions = found["machine"], found["versions"]
    return (f"{machine['cores']} cores {machine['cpu']}, {machine['memory_gib']} GiB, Linux {machine['kernel']}; servers, generator and "
            f"clients share them. {', '.join(f'{name} {version}' for name, version in versions.items())}.\n"
            f"{BIGQUERY[found['bigquery']]} {debezium(found['debezium'])}\n")


BIGQUERY = {
    "stand-in": "In BigQuery's place: a process that checks and counts rows, since the emulator would be the limit.",
    "emulator": "In BigQuery's place: an emulator, which is the limit.",
}


def debezium(version_or_why):
    is_version = version_or_why[:1].isdigit()
    return f"Debezium {version_or_why}." if is_version else f"Debezium is left out: {version_or_why}."


def backlog(found):
    title = (f"{found['events']:,} events in {found['transactions']:,} transactions, "
             f"payload {found['payload_bytes_p50']} bytes in the median and {found['payload_bytes']} on average, "
             f"from copies of one slot; medians, rounds: {found['rounds']}\n")
    columns = ["", "events/s", "spread", "of pg_recvlogical", "µs CPU/event", "the servers'", "machine busy", "peak RSS", "start to first event"]
    rows = [[run["name"], f"{run['events_per_s']:,.0f}", f"{run['spread']:.0%}" if found["rounds"] > 1 else "", share(found, run["name"]),
             f"{run['cpu_us_per_event']:.1f}", servers(run), f"{run['machine_busy']:.0%}", f"{run['rss_peak_mib']:,.0f} MiB",
             f"{run['start_seconds']:.2f} s"] for run in found["runs"]]
    return title + "\n" + table(columns, rows)


def servers(run):
    """Those that did something for it."""
    shown = [f"{name} {cost:.1f}" for name, cost in run["servers_us_per_event"].items() if cost >= 0.5]
    return ", ".join(shown)


def share(found, name):
    middle, ends = found["ratios"].get(f"{name}_to_pg_recvlogical"), found["ratio_ranges"].get(f"{name}_to_pg_recvlogical")
    if middle is None:
        return ""
    return f"{middle:.2f}" if ends[0] == ends[1] else f"{middle:.2f} ({ends[0]:.2f}–{ends[1]:.2f})"


def rates(found):
    title = f"Commit until readable by an outside reader, milliseconds, by one clock; {found['minutes']:g} minutes at each rate\n"
    columns = ["", "events/s", "read from", "p50", "p95", "p99", "max", "not found", "µs CPU/event", "peak RSS"]
    rows = [[run["client"], f"{run['events_per_s']:,}", PLACES[place],
             *(f"{figures[name]:,.0f}" if name in figures else "–" for name in QUANTILES),
             f"{figures['not_found']} of {figures['probes']}" if "probes" in figures else "", f"{run['cpu_us_per_event']:.1f}", f"{run['rss_peak_mib']} MiB"]
            for run in found["runs"] for place, figures in run["latencies"].items()]
    handed = [f"{run['handed_p99_s_max'] * 1000:g} ms at {run['events_per_s']:,} events/s" for run in found["runs"] if run.get("handed_p99_s_max")]
    told = f"\nFrom the receipt of a batch's first row until a sink that is ready is given it, p99 at most: {', '.join(handed)}\n" if handed else ""
    return title + "\n" + table(columns, rows) + told


PLACES = {"kafka": "Kafka, `read_committed`", "redis": "`engagement:<id>:<day>`", "board": "a board", "http": "HTTP, as the receiver sees it"}
QUANTILES = ("p50_ms", "p95_ms", "p99_ms", "max_ms")


def restarts(found):
    title = f"Killed (SIGKILL) {found['kills']} times at {found['rate']:,} events/s and started again at once, seconds since the signal\n"
    rows = [[name, f"{found[figure]['median']:.2f}", f"{found[figure]['max']:.2f}"]
            for name, figure in (("the slot is read again", "streaming_s"), ("Kafka and Redis hold what was committed by then", "caught_up_s"))]
    return title + "\n" + table(["", "median", "max"], rows)


def memory(found):
    rows = [[f"one transaction of {found['huge_rows']:,} rows", f"{found['huge_transaction_mib']} MiB"]]
    if "standstill_mib" in found:
        rows.append([f"a sink stands still for {found['standstill_s']} s at {found['standstill_rate']:,} events/s", f"{found['standstill_mib']} MiB"])
    return "With all sinks\n\n" + table(["", "peak RSS"], rows)


def standstill(found):
    title = f"One sink stands still (SIGSTOP) for {found['seconds']:g} s at {found['rate']:,} events/s, and goes on; p99 in milliseconds\n"
    columns = ["stands still", "read from", "p99 before", "p99 meanwhile", "ratio", "events meanwhile", "back after", "peak RSS"]
    rows = [[sink, PLACES[place], f"{run['undisturbed'][place]['p99_ms']:,.0f}", f"{run['during'][place]['p99_ms']:,.0f}", f"{ratio:.2f}",
             f"{run['events_meanwhile']:,}", f"{run['back_s']:.1f} s", f"{run['rss_peak_mib']} MiB"]
            for sink, run in found["sinks"].items() for place, ratio in run["p99_ratio"].items()]
    return title + "\n" + table(columns, rows)


def history(found):
    rounds = found["rounds"]
    title = f"{found['rows']:,} rows that were there before come to {', '.join(found['sinks'])}, beside the drain of the same rows from a slot\n"
    columns = ["round", "rows/s", "drain, events/s", "ratio", "first row after", "µs CPU/row", "WAL per million rows", "peak RSS", "verify", "its peak RSS"]
    rows = [[str(number), f"{r['rows_per_s']:,}", f"{r['drain_events_per_s']:,}", f"{r['ratio']:.2f}", f"{r['first_row_s']:.2f} s",
             f"{r['cpu_us_per_row']:.1f}", f"{r['wal_mib_per_million']} MiB", f"{r['rss_peak_mib']} MiB",
             *((f"{r['verify_s']:.1f} s", f"{r['verify_rss_peak_mib']} MiB") if "verify_s" in r else ("", ""))] for number, r in enumerate(rounds, 1)]
    beside = [[name, PLACES[place], f"{run['undisturbed'][place]['p99_ms']:,.0f}", f"{run['during'][place]['p99_ms']:,.0f}", f"{ratio:.2f}",
               f"{run['rows']:,}", f"{run['seconds']:.1f} s", f"{run['rss_peak_mib']} MiB"]
              for name, run in found["beside"].items() for place, ratio in run["p99_ratio"].items()]
    beside_title = f"\nBeside {found['rate']:,} events/s; p99 in milliseconds\n"
    return (title + "\n" + table(columns, rows) + beside_title + "\n"
            + table(["", "read from", "p99 before", "p99 meanwhile", "ratio", "rows", "sent in", "peak RSS"], beside))


def soak(found):
    result = "clean" if found["verify_exit_code"] == 0 else f"exit code {found['verify_exit_code']}"
    title = (f"{found['minutes']:g} minutes at {found['events_per_s']:,} events/s, {found['events']:,} events; then `walcast verify` "
             f"({', '.join(found['verified'])}): {result}\n")
    rows = [[name, *(f"{found[figure][part]:,.0f} MiB" for part in ("first", "last", "max"))]
            for name, figure in (("RSS", "rss_mib"), ("retained WAL", "retained_wal_mib"))]
    return title + "\n" + table(["", "first quarter", "last quarter", "max"], rows)


def table(columns, rows):
    """Words to the left, figures to the right."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PARTS = {"backlog": backlog, "rates": rates, "restarts": restarts, "memory": memory, "standstill": standstill, "history": history,
         "soak": soak}
