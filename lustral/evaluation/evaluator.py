"""The evaluator: attacks and judges images, and makes a record of each."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lustral.attacks import Attack, Cases, Engine, gradient_attacks
from lustral.defence import Defence
from lustral.describe import describe
from lustral.evaluation.audit import Audited, audit_cases
from lustral.evaluation.defence_evaluator import DefenceEvaluator
from lustral.evaluation.levels import FOLLOWED, level_statistics
from lustral.evaluation.probes import Plan, make_plan
from lustral.evaluation.protocol import Protocol
from lustral.evaluation.records import Record
from lustral.noise import NoiseStream
from lustral.threat import ThreatModel


class Evaluator(DefenceEvaluator):
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
        super().__init__(defence, protocol, seed, rows, observe, graph_budget)
        self.attack, self.threat = attack, threat
        for source in self.sources():
            source.defence.eval().requires_grad_(False)  # type: ignore[attr-defined]

    @property
    def adversary(self) -> Attack:
        return self.attack

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
            "defence": self.describe_defence(),
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
        self.look_at_memory(cases, noise)
        networks = self.networks()
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

    def _describe_audit(self) -> dict[str, Any]:
        plan = self.plan()
        return plan.described() if self.protocol.audit_images else {"reach": plan.reach}

    def _verdict(self, images: Tensor, noise: NoiseStream, kind: str) -> tuple[Tensor, dict[str, Tensor]]:
        stream, task = noise.fork("verdict", kind), f"verdict on {kind} images"
        return self.engine.judge(images, stream, self.protocol.verdict_draws, self._followed, task)

    @property
    def _followed(self) -> list[str]:
        """The trace entries of the verdict draws that records keep, if the purifier offers them."""
        return [name for name in FOLLOWED if name in self.defence.purifier.offers]
