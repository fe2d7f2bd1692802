"""A histogram of Prometheus' text format: its buckets' bounds and what is at or below each, from the first to infinity."""

import math
import re


def parse(metrics, name, sink):
    found = re.findall(rf'^{name}_bucket\{{sink="{sink}",le="([^"]+)"\}} (\d+)$', metrics, re.MULTILINE)
    return {math.inf if bound == "+Inf" else float(bound): int(count) for bound, count in found}


def quantile_max(before, after, share):
    """The bound that this share of what came in between is at or below; None when nothing came."""
    grown = {bound: count - before.get(bound, 0) for bound, count in after.items()}
    total = max(grown.values(), default=0)
    return next((bound for bound, count in sorted(grown.items()) if total and count >= share * total), None)
