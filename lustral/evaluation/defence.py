"""A defence: the classifier after the purifier, and nothing else."""

from typing import final

from torch import Tensor, nn

from lustral.attacks import Judged
from lustral.networks import Classifier
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Purifier


@final
class Defence(nn.Module):
    """Judges images: purifies, classifies every view, and takes the mean of the views' logits.

    Both parts are frozen: they keep no parameter gradients, while the gradient of the input still flows.

    Args:
        classifier: the victim.
        purifier: what stands before it; `Identity` for an undefended classifier.
    """

    def __init__(self, classifier: Classifier, purifier: Purifier) -> None:
        super().__init__()
        self.classifier, self.purifier = classifier, purifier
        self.pieces = purifier.pieces
        self.eval().requires_grad_(False)
        purifier.bind(classifier)
        self._exchanged: dict[Purifier, Defence] = {}

    @property
    def random(self) -> bool:
        return self.purifier.random

    @property
    def ragged(self) -> bool:
        """Whether rows differ in how many network calls they need (see `Purifier`)."""
        return self.purifier.ragged

    def with_purifier(self, purifier: Purifier) -> "Defence":
        """The same classifier after another purifier, which shares this one's device and graph budget: what an attack
        with a surrogate differentiates."""
        if purifier not in self._exchanged:
            self._exchanged[purifier] = Defence(self.classifier, purifier)
        device = next((parameter.device for parameter in self.classifier.parameters()), None)
        purifier.to(device).graph_budget = self.purifier.graph_budget
        return self._exchanged[purifier]

    def forward(
        self, x: Tensor, noise: NoiseStream, gradient: GradientMode = "exact", anchor: Tensor | None = None
    ) -> Judged:
        purified = self.purifier(x, noise, gradient, anchor)
        views, batch = purified.images.shape[:2]
        logits = self.pieces(self.classifier, purified.images.flatten(0, 1)).view(views, batch, -1)
        return Judged(logits[0] if views == 1 else logits.mean(0), purified.trace)
