"""Consistency disruption: an attack on CMAP that searches the latents of its generator (CMAP, Algorithm 2)."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks.engine import Engine
from lustral.attacks.latent_search import LatentSearch
from lustral.diffusion.inner import inner_gradient
from lustral.purifiers import CMAP
from lustral.threat import ThreatModel

Form = Literal["corrected", "published"]


class ConsistencyDisruption(LatentSearch):
    """From the latents that CMAP finds for the clean image, descends CMAP's own loss minus the classifier's
    cross-entropy, with the generated image projected into the threat set in the L1 term and before the classifier
    (equation 15). Each of the n latents ends in an adversarial image; the best of them on selection draws, purified
    with fresh latents, is returned. (The text counts a success if any of the n works. The authors' code hands all n to
    the defence at once, one to each latent, and lets these vote, which no attacker of one image can do.)

    The forms differ in what their gradients see.

    * "published": the cross-entropy takes probabilities for logits, so that it hardly varies; the projection is a clamp
      (linf), without a gradient wherever the generated image lies outside the ball, or always rescales to the sphere
      (l2), and does not keep to [0, 1]; the L1 term compares an image in [-1, 1] with one in [0, 1].
    * "corrected": logits; a projection onto the threat set, with the identity as its derivative; one unit.

    Args:
        strength: c, the factor of the cross-entropy, which is multiplied by n as well. The authors take 2e6 (linf) and
            1e9 (l2) on CIFAR-10, 2 and 5e4 on ImageNet-100, for the published form.
        num_steps: steps of the defence's own Adam from the clean image's latents; up to 1000 in the paper.
        form: "corrected" or "published".
        selection_draws: draws of the defence's noise on which the n images are compared.

    Raises:
        ValueError: if an option is out of its range; when it runs, if the defence's purifier is not CMAP.
    """

    def __init__(
        self,
        strength: float = 10.0,
        num_steps: int = 200,
        form: Form = "corrected",
        selection_draws: int = 4,
    ) -> None:
        if form not in get_args(Form):
            raise ValueError(f"form is {form!r}; it may be {', '.join(get_args(Form))}.")
        super().__init__(num_steps, selection_draws)
        if not 0 <= strength < math.inf:
            raise ValueError(f"strength = {strength} cannot be negative or infinite.")
        self.strength = strength
        self.form: Form = form

    @property
    def name(self) -> str:
        return f"{type(self).__name__} {self.form}"

    def pull(
        self, engine: Engine, purifier: CMAP, threat: ThreatModel, z: Tensor, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """CMAP's loss minus the cross-entropy, and the cross-entropy."""
        generated = purifier.generator(z)
        image = self._projected(generated, x, threat)
        logits = engine.defence.classifier(image)  # type: ignore[attr-defined]
        if self.form == "published":
            logits = logits.softmax(1)
        entropy = F.cross_entropy(logits, y, reduction="none")
        own = purifier.scale * (self._apart(image, x) - purifier.ssim_weight * purifier.distances(generated, x)[1])
        return own - self.strength * purifier.num_latents * entropy, entropy

    def coupled(self, purifier: CMAP, latents: Tensor) -> Tensor | None:
        if not purifier.latent_weight:
            return None
        factor = purifier.scale * purifier.latent_weight
        return inner_gradient(lambda z: factor * purifier.constrained(z), latents)

    def _projected(self, generated: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
        if self.form == "corrected":
            return generated + (threat.project(generated, x) - generated).detach()
        if threat.norm == "linf":
            return torch.maximum(torch.minimum(generated, x + threat.budget), x - threat.budget)
        apart = generated - x
        return x + apart * (threat.budget / apart.flatten(1).norm(dim=1).clamp_min(1e-12))[:, None, None, None]

    def _apart(self, image: Tensor, x: Tensor) -> Tensor:
        """(B,) the L1 term, in units of diffusion space."""
        target = x if self.form == "published" else 2.0 * x - 1.0
        return (2.0 * image - 1.0 - target).abs().flatten(1).sum(1)
