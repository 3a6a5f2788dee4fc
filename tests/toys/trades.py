"""TRADES (Zhang et al. 2019), small: a classifier is trained where an attack on itself leads."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from lustral.attacks import PGD, Cases, CrossEntropy, Engine, Objective
from lustral.attacks.objectives import mean_over_draws
from lustral.defence import Defence
from lustral.noise import NoiseStream
from lustral.purifiers import Identity
from lustral.threat import ThreatModel
from lustral.training import ClassifierLoss, evaluating

CLEAN = "clean logits"
_NOTHING: Mapping[str, Tensor] = {}


def divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """(..., B) Kullback-Leibler divergence of the softmax of ``logits`` from that of ``clean``, (..., B, K) each."""
    return F.kl_div(logits.log_softmax(-1), clean.log_softmax(-1), reduction="none", log_target=True).sum(-1)


class Divergence(Objective):
    """From the classifier's own answer to the clean image: no label is looked at."""

    expects = (CLEAN,)

    @property
    def plain(self) -> Objective:
        return CrossEntropy()

    def __call__(
        self, logits: Tensor, y: Tensor, trace: Mapping[str, Tensor] = _NOTHING, given: Mapping[str, Tensor] = _NOTHING
    ) -> Tensor:
        return mean_over_draws(divergence(given[CLEAN].expand_as(logits), logits))


class TradesPGD(PGD):
    """PGD on the `Divergence`.

    Args:
        num_steps: gradient steps.
    """

    gives = (CLEAN,)

    def __init__(self, num_steps: int = 3) -> None:
        super().__init__(num_steps, objective=Divergence(), selection="last")

    def told(self, source: Engine, cases: Cases, noise: NoiseStream) -> dict[str, Tensor]:
        return {CLEAN: source.logits(cases.images, noise)[0]}


class Trades(ClassifierLoss):
    """Cross-entropy of the image, and ``beta`` times the divergence of what the attack found.

    Args:
        attack: on the classifier as it stands, in evaluation mode.
        threat: within which budget.
        beta: the price of robustness.
    """

    def __init__(self, attack: TradesPGD, threat: ThreatModel, beta: float = 6.0) -> None:
        self.attack, self.threat, self.beta = attack, threat, beta

    def __call__(self, classifier: nn.Module, x: Tensor, y: Tensor, noise: NoiseStream) -> Tensor:
        with evaluating(classifier):
            engine = Engine(Defence(classifier, Identity()), rows=len(x))  # type: ignore[arg-type]
            found = self.attack(engine, Cases(x, y, noise.index), self.threat, noise.fork("trades")).images
        clean = classifier(x)
        return F.cross_entropy(clean, y, reduction="none") + self.beta * divergence(clean, classifier(found))
