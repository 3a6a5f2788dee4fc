"""What an evaluation costs: network calls, seconds and live tensor memory."""

import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lustral.rows import Runtime

MIB = 2**20
FORWARD = "_forward"
"""Ends the names of forward passes among the calls."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside it that are still alive, and their peak.

    On a CPU nothing else tells what a computation needs: the process's own size also holds caches and libraries.
    It slows every operation down, so it watches one attack step, not a run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen or storage.nbytes() == 0:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@dataclass
class Cost:
    """Sums over a process: rows of network calls by kind, seconds, images, and the peak of one attack step. The audit
    is counted apart: it is no cost of the number. What the defence itself costs is a part of the attack's and
    verdicts' sums, and is told once more: of its draws (images purified and classified once each).

    Args:
        runtime: of the calls, which tells how many of their rows only pad.
    """

    runtime: Runtime
    images: int = 0
    seconds: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    peak_memory: int = 0
    audit_images: int = 0
    audit_seconds: float = 0.0
    audit_calls: dict[str, int] = field(default_factory=dict)
    defence_draws: int = 0
    defence_seconds: float = 0.0
    defence_calls: dict[str, int] = field(default_factory=dict)
    defence_peak_memory: int = 0

    def line(self) -> dict[str, Any]:
        """As plain data, for `total_cost`."""
        return {name: value for name, value in vars(self).items() if name != "runtime"}

    @contextmanager
    def measured(
        self,
        images: int,
        networks: Iterable[tuple[str, nn.Module]],
        device: torch.device,
        audit: bool = False,
    ) -> Iterator[None]:
        """Count everything that happens inside as the cost of ``images`` images, or of their audit. Rows that only pad
        a call to R are left out: how many there are depends on the batch size, and no image needed them."""
        calls = self.audit_calls if audit else self.calls
        handles = [network.register_forward_hook(_counter(name, self.runtime)) for name, network in networks]
        before = Counter(self.runtime.calls)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        try:
            yield
        finally:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                self.peak_memory = max(self.peak_memory, torch.cuda.max_memory_allocated(device))
            seconds = time.perf_counter() - start
            if audit:
                self.audit_seconds += seconds
                self.audit_images += images
            else:
                self.seconds += seconds
                self.images += images
            for handle in handles:
                handle.remove()
            _add(calls, self.runtime.calls - before)

    @contextmanager
    def purifying(self, draws: int, device: torch.device) -> Iterator[None]:
        """Inside `measured`: what happens here is also the defence's own cost of ``draws`` purified and classified
        images. Where it fails it is the cost of nobody's draws, and not counted.

        Seconds are those of full calls. A call takes its time however many of its rows only pad, so the share of time
        that is left out is that of the rows."""
        before, padding = Counter(self.runtime.calls), self.runtime.padding
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            # The reset would make `measured` forget the peak so far.
            self.peak_memory = max(self.peak_memory, torch.cuda.max_memory_allocated(device))
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self.defence_peak_memory = max(self.defence_peak_memory, torch.cuda.max_memory_allocated(device))
        seconds = time.perf_counter() - start
        found = self.runtime.calls - before
        asked = sum(rows for name, rows in found.items() if name.endswith(FORWARD))
        self.defence_seconds += seconds * asked / (asked + self.runtime.padding - padding)
        self.defence_draws += draws
        _add(self.defence_calls, found)


def _add(total: dict[str, int], calls: Mapping[str, int]) -> None:
    for name, rows in calls.items():
        total[name] = total.get(name, 0) + rows


def _counter(name: str, runtime: Runtime) -> Any:
    def add(key: str, rows: int) -> None:
        runtime.calls[key] += rows

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        rows = round(len(inputs[0]) * runtime.filled)
        add(f"{name}{FORWARD}", rows)
        runtime.padding += len(inputs[0]) - rows
        answer = tree_leaves(output)[0]  # diffusers' networks answer with a tuple
        if answer.requires_grad:
            answer.register_hook(lambda gradient: add(f"{name}_backward", rows))

    return count


def total_cost(costs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The card's section from the cost lines of every process and start."""
    costs, calls = list(costs), dict[str, int]()
    images, seconds = (sum(cost[name] for cost in costs) for name in ("images", "seconds"))
    for cost in costs:
        _add(calls, cost["calls"])
    memory = max((cost["peak_memory"] for cost in costs), default=0)
    return {
        **_per_image(max(images, 1), calls, seconds, memory),
        "audit": _audit_cost(costs, sum(calls.values()), seconds),
        "defence": _defence_cost(costs),
    }


def _per_image(images: int, calls: Mapping[str, int], seconds: float, memory: int) -> dict[str, Any]:
    """Sums over ``images`` as the card has them; ``memory``, the peak in bytes, is no sum."""
    return {
        "network_calls_per_image": sum(calls.values()) / images,
        "calls_per_image": {name: rows / images for name, rows in sorted(calls.items())},
        "seconds_per_image": seconds / images,
        "peak_memory_mib": memory / MIB,
    }


def _defence_cost(costs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """One purification and classification of one image. None where no line tells of any: a process that judged nothing
    tells of none, and neither do lines that were written before this was measured."""
    own, calls = [cost for cost in costs if cost.get("defence_draws")], dict[str, int]()
    if not own:
        return None
    for cost in own:
        _add(calls, cost["defence_calls"])
    draws, seconds = (sum(cost[f"defence_{name}"] for cost in own) for name in ("draws", "seconds"))
    return {**_per_image(draws, calls, seconds, max(cost["defence_peak_memory"] for cost in own)), "draws": draws}


def _audit_cost(costs: list[dict[str, Any]], calls: int, seconds: float) -> dict[str, Any]:
    """What the audit took, in all and beside the evaluation of all images itself."""
    own_calls = sum(sum(cost.get("audit_calls", {}).values()) for cost in costs)
    own_seconds = sum(cost.get("audit_seconds", 0.0) for cost in costs)
    return {
        "images": sum(cost.get("audit_images", 0) for cost in costs),
        "network_calls": own_calls,
        "seconds": own_seconds,
        "calls_beside_the_attack": own_calls / max(calls, 1),
        "seconds_beside_the_attack": own_seconds / seconds if seconds else 0.0,
    }
