"""Interleaved timing: ratios of runs that saw the same machine, never seconds alone."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import torch


def interleaved(
    tasks: Mapping[str, Callable[[], object]],
    repeats: int = 7,
    summary: Callable[[Iterable[float]], float] = statistics.median,
) -> dict[str, float]:
    """Seconds of each task, by default the median; the tasks take turns, so a busy moment hits all of them. With few
    repeats of long tasks `min` says more: what else runs on the machine can only add."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(repeats):
        for name, task in tasks.items():
            _synchronise()
            start = time.perf_counter()
            task()
            _synchronise()
            times[name].append(time.perf_counter() - start)
    return {name: summary(values) for name, values in times.items()}


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
