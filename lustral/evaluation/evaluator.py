"""The evaluator: attacks and judges images, and makes a record of each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lustral.attacks import Attack, Cases, CrossEntropy, Engine, gradient_attacks
from lustral.defence import Defence
from lustral.describe import describe
from lustral.diffusion import Denoiser
from lustral.evaluation.audit import Audited, audit_cases
from lustral.evaluation.cost import Cost, LiveBytes
from lustral.evaluation.levels import FOLLOWED, level_statistics
from lustral.evaluation.probes import Plan, make_plan
from lustral.evaluation.protocol import Protocol
from lustral.evaluation.records import Record
from lustral.noise import NoiseStream
from lustral.threat import ThreatModel


class Evaluator:
    """Runs one attack against one defence under one protocol.

    Attack, selection, audit, and the verdicts on clean and adversarial images use separate noise streams. An image's
    record depends on nothing but the image (and, for a defence that judges groups, its group) and the arguments below.

    Args:
        defence: the defence that is judged; the attack has access to the same object.
        attack: the attack.
        threat: the threat model.
        protocol: what is measured.
        seed: the run's seed.
        rows: R, the number of rows of every network call.
        observe: called with (task, step, number of steps) to report progress.
        graph_budget: bytes that the graphs of reverse steps may take when they are kept instead of recomputed. Changes
            no result.

    Raises:
        ValueError: if the attack needs something that the defence or its surrogate does not have; or if
            ``protocol.replicates`` is above 1 for a defence that judges images alone.
    """

    def __init__(
        self,
        defence: Defence,
        attack: Attack,
        threat: ThreatModel,
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
        self.defence, self.attack, self.threat, self.protocol = defence, attack, threat, protocol
        self.seed, self.rows = seed, rows
        self.engine = Engine(defence, rows, observe, graph_budget)
        defence.runtime = self.engine.runtime
        for source in self.sources():
            source.defence.eval().requires_grad_(False)  # type: ignore[attr-defined]
        self.cost = Cost(self.engine.runtime)

    def sources(self) -> list[Engine]:
        """The engines that the attack takes gradients from, each once: of the defence, or of its surrogates."""
        found = [member.source(self.engine) for member in gradient_attacks(self.attack)]
        return list({id(source.defence): source for source in found}.values())

    def decides(self) -> dict[str, Any]:
        """Everything except the data that decides a record, as plain data. The number of replicates is left out, since
        it decides no record."""
        protocol = describe(self.protocol)
        del protocol["replicates"]
        return {
            "defence": self._describe_defence(),
            "attack": {**describe(self.attack), "target": self.attack.target},
            "threat": describe(self.threat),
            "protocol": protocol,
            "audit": self._describe_audit(),
            "seed": self.seed,
            "rows": self.rows,
        }

    def plan(self) -> Plan:
        """The probes of the audit."""
        classifier = self.defence.classifier
        return make_plan(
            self.attack,
            self.defence.purifier,
            self.defence.random,
            classifier.num_classes,
            self.threat,
            tuple(classifier.image_shape),
            self.protocol.known_noise,
        )

    def evaluate(self, cases: Cases, audited: Tensor, replicate: int = 0) -> list[Record]:
        """Attack and judge ``cases``; one record per case.

        Args:
            cases: B images; whole groups if the defence judges groups.
            audited: (B,) bool, which of them are audited as well.
            replicate: the number of the partition that the groups are from; each replicate has its own noise.
        """
        size = self.defence.group_size
        self.threat.check(tuple(cases.images.shape[1:]))
        noise = self.noise(cases.index, replicate)
        device = cases.images.device
        if device.type == "cpu" and self.cost.peak_memory == 0:
            self.engine.observe("peak memory", 0, 1)
            self._measure_memory(cases, noise)
        networks = self._networks()
        # A deterministic defence is queried once for all verdict draws.
        draws = len(cases) * (self.protocol.verdict_draws if self.defence.random else 1)
        with self.cost.measured(len(cases), networks, device):
            with self.cost.purifying(draws, device):
                clean, clean_trace = self._verdict(cases.images, noise, "clean")
            result = self.attack(self.engine, cases, self.threat, noise)
            adversarial, adversarial_trace = self._verdict(result.images, noise, "adversarial")
        audits: dict[int, Audited] = {}
        rows = audited.nonzero().flatten()
        if len(rows):
            with self.cost.measured(len(rows), networks, device, audit=True):
                found = audit_cases(
                    self.engine,
                    self.plan(),
                    self.attack,
                    result.images[rows],
                    cases.select(rows),
                    self.threat,
                    noise.select(rows),
                    self.protocol.verdict_draws,
                )
            audits = dict(zip(rows.tolist(), found, strict=True))
        told = result.statistics | level_statistics(clean_trace, adversarial_trace)
        statistics = {name: values.tolist() for name, values in told.items()}
        labels, index = cases.labels.tolist(), cases.index.tolist()
        finite = clean.isfinite().all(-1).all(0) & adversarial.isfinite().all(-1).all(0)
        distance, failed = result.distance.tolist(), result.failed | ~finite
        images, clean, adversarial = result.images.cpu(), clean.cpu(), adversarial.cpu()
        return [
            Record(
                index=index[i],
                label=labels[i],
                image=images[i],
                distance=distance[i],
                failed=bool(failed[i]),
                clean_logits=clean[:, i],
                adversarial_logits=adversarial[:, i],
                # NaN is no valid JSON, so a failed sample has no statistics.
                statistics={} if failed[i] else {name: values[i] for name, values in statistics.items()},
                audit=audits.get(i, Audited()).accuracy,
                audit_margins=audits.get(i, Audited()).margins,
                audit_steps=audits.get(i, Audited()).steps,
                replicate=replicate,
                group=None if size == 1 else index[i // size * size],
            )
            for i in range(len(cases))
        ]

    def noise(self, index: Tensor, replicate: int = 0) -> NoiseStream:
        """The run's noise stream of the images at ``index`` (B,) in a replicate."""
        stream = NoiseStream(self.seed, index)
        return stream.fork(f"replicate {replicate}") if replicate else stream

    def _describe_audit(self) -> dict[str, Any]:
        plan = self.plan()
        return plan.described() if self.protocol.audit_images else {"reach": plan.reach}

    def _describe_defence(self) -> dict[str, Any]:
        described = describe(self.defence)
        described["purifier"] |= self.defence.purifier.derived()
        return described

    def _verdict(self, images: Tensor, noise: NoiseStream, kind: str) -> tuple[Tensor, dict[str, Tensor]]:
        stream, task = noise.fork("verdict", kind), f"verdict on {kind} images"
        return self.engine.judge(images, stream, self.protocol.verdict_draws, self._followed, task)

    @property
    def _followed(self) -> list[str]:
        """The trace entries of the verdict draws that records keep, if the purifier offers them."""
        return [name for name in FOLLOWED if name in self.defence.purifier.offers]

    def _networks(self) -> Sequence[tuple[str, nn.Module]]:
        """The networks whose calls are counted: the defence's, and those of the attack's surrogates."""
        others = [source.defence.purifier for source in self.sources()]  # type: ignore[attr-defined]
        purifiers = [self.defence.purifier, *others]
        # The network inside a denoiser, if it has one: noise and score may call it without the denoiser's `forward`.
        denoisers = [getattr(m, "network", m) for p in purifiers for m in p.modules() if isinstance(m, Denoiser)]
        once = {id(network): network for network in denoisers}.values()
        return [("classifier", self.defence.classifier), *(("denoiser", network) for network in once)]

    def _measure_memory(self, cases: Cases, noise: NoiseStream) -> None:
        """Measure the peak of live bytes in one full network call with its gradient, and in one without."""
        size = self.defence.group_size
        rows = torch.arange(min(max(self.rows // size, 1) * size, len(cases)))
        few = cases.select(rows)
        with LiveBytes() as live:
            mode = self.defence.purifier.gradient_modes[0]  # "exact", or what a method without it offers
            self.engine.answer(few.images, few.labels, noise.select(rows).fork("memory"), CrossEntropy(), gradient=mode)
        self.cost.peak_memory = live.peak
        with LiveBytes() as live:
            self.engine.logits(few.images, noise.select(rows).fork("memory"))
        self.cost.defence_peak_memory = live.peak
