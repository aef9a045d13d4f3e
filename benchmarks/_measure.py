"""Interleaved timing: every contender once a round, many rounds, medians and their ratios.

Machines are noisy and drift, so a time means little alone. Contenders take turns within one process, in an order
that rotates, and what is reported is the median of each and its ratio to a baseline of the same run.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def interleaved(
    contenders: dict[str, Callable[[], Any]], *, rounds: int = 15, warmup: int = 3, timed: bool = False
) -> dict[str, float]:
    """Median seconds of each contender; each is a function that runs one unit of work and waits for it.

    With `timed` they return the seconds themselves: they know which part of their work counts.
    """
    for run in contenders.values():
        for _ in range(warmup):
            run()
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            own = contenders[name]()
            times[name].append(own if timed else time.perf_counter() - start)
    return {name: statistics.median(ts) for name, ts in times.items()}


def table(rows: list[list[str]], header: list[str]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(" --- " for _ in header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def spread(x: Any, digits: int = 3) -> list[str]:
    """The median, and from the least to the largest."""
    x = np.asarray(x, float)
    return [f"{np.median(x):.{digits}g}", f"{x.min():.{digits}g} to {x.max():.{digits}g}"]
