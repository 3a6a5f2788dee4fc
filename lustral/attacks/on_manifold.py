"""An attack on CMAP with images of its own generator: where the manifold itself leads to another class."""

import torch
from torch import Tensor

from lustral.attacks.engine import Engine
from lustral.attacks.latent_search import LatentSearch
from lustral.attacks.objectives import margin
from lustral.purifiers import CMAP
from lustral.threat import ThreatModel


class OnManifold(LatentSearch):
    """From the latents that CMAP finds for the clean image, searches generated images that the classifier takes for
    another class and that lie within the budget: each latent z descends

        max(true logit - largest other logit, -confidence) + weight * excess,

    both of G(z): what CMAP looks for is then an image that the generator can give. ``excess`` is how far it is outside
    of the threat set: the sum over pixels of max(|G(z) - x| - eps, 0) for linf (the largest pixel alone would pull at
    one pixel a step), max(|G(z) - x|_2 - eps, 0) for l2. One image is returned: the projected G(z) of one of the n
    latents.

    Args:
        weight: mu, the factor of the excess, in logits per unit of [0, 1].
        confidence: by how much the other logit shall win; beyond it only the distance counts.
        num_steps: steps of the defence's own optimiser from the clean image's latents.
        selection_draws: draws of the defence's noise on which the n images are compared.

    Raises:
        ValueError: if an option is out of its range; when it runs, if the defence's purifier is not CMAP.
    """

    def __init__(
        self, weight: float = 10.0, confidence: float = 5.0, num_steps: int = 200, selection_draws: int = 4
    ) -> None:
        super().__init__(num_steps, selection_draws)
        if weight < 0 or confidence < 0:
            raise ValueError(f"weight = {weight} and confidence = {confidence} cannot be negative.")
        self.weight, self.confidence = weight, confidence

    def pull(
        self, engine: Engine, purifier: CMAP, threat: ThreatModel, z: Tensor, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        generated = purifier.generator(z)
        won = margin(engine.defence.classifier(generated), y)  # type: ignore[attr-defined]
        return self.weight * excess(generated, x, threat) - won.clamp(max=self.confidence), won


def excess(images: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """(B,) how far ``images`` are outside of the ball around ``x`` (B, C, H, W), as `OnManifold` counts it."""
    apart = (images - x).flatten(1)
    if threat.norm == "linf":
        return (apart.abs() - threat.budget).relu().sum(1)
    return (torch.linalg.vector_norm(apart, dim=1) - threat.budget).relu()
