"""Contenders in turn, and how their ratio is told."""

from __future__ import annotations

import statistics
import time


def medians(contenders: dict, rounds: int) -> dict[str, float]:
    """Seconds of each, called in turn; the first round warms up."""
    took = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, call in contenders.items():
            before = time.perf_counter()
            call()
            if number:
                took[name].append(time.perf_counter() - before)
    return {name: statistics.median(times) for name, times in took.items()}


def say(what: str, ratio: float, least: float | None, told: str = "") -> None:
    mark = "" if least is None else f"  (to reach {least:.2f}: {'yes' if ratio >= least else 'NO'})"
    print(f"{what:58s} {ratio:6.2f}{mark}  {told}", flush=True)
