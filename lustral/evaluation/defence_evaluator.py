"""What every evaluation of a defence needs: frozen networks, calls of R rows, keyed noise, and what it costs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lustral.attacks import Attack, Cases, CrossEntropy, Engine
from lustral.defence import Defence
from lustral.describe import describe
from lustral.diffusion import Denoiser
from lustral.evaluation.cost import Cost, LiveBytes
from lustral.evaluation.protocol import Protocol
from lustral.networks import DUNet, Penultimate
from lustral.noise import NoiseStream


class DefenceEvaluator(ABC):
    """Judges images of one defence under one protocol; what becomes of an image is the child's.

    Args:
        defence: the defence that is judged.
        protocol: how many draws are judged, and in how many partitions.
        seed: the run's seed.
        rows: R, the number of rows of every network call.
        observe: called with (task, step, number of steps) to report progress.
        graph_budget: bytes that the graphs of reverse steps may take when they are kept instead of recomputed. Changes
            no result.

    Raises:
        ValueError: if ``protocol.replicates`` is above 1 for a defence that judges images alone.
    """

    def __init__(
        self,
        defence: Defence,
        protocol: Protocol,
        seed: int,
        rows: int,
        observe: Callable[[str, int, int], None] | None = None,
        graph_budget: float = 0.0,
    ) -> None:
        if protocol.replicates > 1 and defence.group_size == 1:
            raise ValueError(
                f"protocol.replicates is {protocol.replicates}, but this defence judges every image alone, in "
                "the only partition into groups of one: set it to 1 (protocol.verdict_draws are more draws)."
            )
        # The defence is not trained here: parameters need no gradient, and layers must not use batch statistics.
        defence.eval().requires_grad_(False)
        self.defence, self.protocol, self.seed, self.rows = defence, protocol, seed, rows
        self.engine = Engine(defence, rows, observe, graph_budget)
        defence.runtime = self.engine.runtime
        self.cost = Cost(self.engine.runtime)

    @abstractmethod
    def decides(self) -> dict[str, Any]:
        """Everything except the data that decides a record, as plain data: "defence", "protocol", "seed", "rows" and
        what the child adds. The number of replicates is left out, since it decides no record."""

    @property
    def adversary(self) -> Attack | None:
        """The attack that asks the defence for gradients; None where nothing is attacked."""
        return None

    def sources(self) -> list[Engine]:
        """The engines that gradients are taken from, each once; none where nothing is attacked."""
        return []

    def noise(self, index: Tensor, replicate: int = 0) -> NoiseStream:
        """The run's noise stream of the images at ``index`` (B,) in a replicate."""
        stream = NoiseStream(self.seed, index)
        return stream.fork(f"replicate {replicate}") if replicate else stream

    def describe_defence(self) -> dict[str, Any]:
        """The defence as plain data, with what its purifier derives from its options."""
        described = describe(self.defence)
        described["purifier"] |= self.defence.purifier.derived()
        return described

    def networks(self) -> Sequence[tuple[str, nn.Module]]:
        """The networks whose calls are counted: the defence's, and those of the attack's surrogates."""
        others = [source.defence.purifier for source in self.sources()]  # type: ignore[attr-defined]
        purifiers = [self.defence.purifier, *others]
        # The network inside a denoiser, if it has one: noise and score may call it without the denoiser's `forward`.
        parts = [m for p in purifiers for m in p.modules() if isinstance(m, (Denoiser, DUNet, Penultimate))]
        networks = [getattr(m, "network", m) for m in parts]
        once = {id(each): ("features" if isinstance(each, Penultimate) else "denoiser", each) for each in networks}
        return [("classifier", self.defence.classifier), *once.values()]

    def look_at_memory(self, cases: Cases, noise: NoiseStream) -> None:
        """Measure, once a process and on a CPU only, the peak of live bytes in one full network call without a
        gradient, and where there is an attack in one with it (see `lustral.evaluation.cost`)."""
        if cases.images.device.type != "cpu" or self.cost.defence_peak_memory:
            return
        self.engine.observe("peak memory", 0, 1)
        size = self.defence.group_size
        rows = torch.arange(min(max(self.rows // size, 1) * size, len(cases)))
        few, noise = cases.select(rows), noise.select(rows).fork("memory")
        if self.adversary is not None:
            with LiveBytes() as live:
                mode = self.defence.purifier.gradient_modes[0]  # "exact", or what a method without it offers
                self.engine.answer(few.images, few.labels, noise, CrossEntropy(), gradient=mode)
            self.cost.peak_memory = live.peak
        with LiveBytes() as live:
            self.engine.logits(few.images, noise)
        self.cost.defence_peak_memory = live.peak
