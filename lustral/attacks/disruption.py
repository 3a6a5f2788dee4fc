"""Consistency disruption: an attack on CMAP that searches the latents of its generator (CMAP, Algorithm 2)."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lustral.attacks.base import Attack
from lustral.attacks.engine import Engine
from lustral.attacks.selection import select
from lustral.attacks.victim import Cases
from lustral.diffusion.inner import inner_gradient
from lustral.noise import NoiseStream
from lustral.purifiers import CMAP
from lustral.threat import ThreatModel

Form = Literal["corrected", "published"]


class ConsistencyDisruption(Attack):
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
        if not 0 <= strength < math.inf or num_steps < 1 or selection_draws < 1:
            raise ValueError(
                f"strength = {strength} cannot be negative or infinite, and num_steps = {num_steps} and "
                f"selection_draws = {selection_draws} must be at least 1."
            )
        self.strength, self.num_steps, self.selection_draws = strength, num_steps, selection_draws
        self.form: Form = form

    @property
    def name(self) -> str:
        return f"{type(self).__name__} {self.form}"

    @property
    def measures(self) -> tuple[str, ...]:
        """The cross-entropy at the first and at the last step, a mean over latents."""
        return ("loss_first", "loss_last")

    def run(
        self, engine: Engine, cases: Cases, threat: ThreatModel, noise: NoiseStream
    ) -> tuple[Tensor, dict[str, Tensor]]:
        purifier = getattr(engine.defence, "purifier", None)
        if not isinstance(purifier, CMAP):
            raise ValueError(
                f"{type(self).__name__} searches the latents of CMAP, but the defence has {type(purifier).__name__}: "
                "choose another attack."
            )
        x, y = cases.images, cases.labels
        latents = engine.judge(x, noise.fork("clean"), 1, ["latents"], "latents of the clean image")[1]["latents"][0]
        state = {"latents": latents, **purifier.remembering(latents)}
        losses = []
        for step in range(self.num_steps):

            def descend(
                state: dict[str, Tensor], x: Tensor, y: Tensor, step: int = step
            ) -> tuple[dict[str, Tensor], Tensor]:
                return self._descend(engine, purifier, threat, state, x, y, step)

            state, loss = engine.runtime.call(descend, state, x, y)
            losses.append(loss)
            engine.observe(self.name, step + 1, self.num_steps)
        count = latents.shape[1]
        generated = engine.runtime.call(purifier.generator, state["latents"].flatten(0, 1)).unflatten(0, (-1, count))
        found = [cases.confined(threat.project(generated[:, k], x)) for k in range(count)]
        chosen = select(engine, found, cases, noise.fork("selection"), self.selection_draws, self.score)
        statistics = dict(zip(self.measures, (losses[0], losses[-1]), strict=True))
        return chosen.images, {k: values.masked_fill(chosen.failed, torch.nan) for k, values in statistics.items()}

    def _descend(
        self,
        engine: Engine,
        purifier: CMAP,
        threat: ThreatModel,
        state: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        step: int,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One step of all latents of some images, and (B,) their cross-entropy before it."""
        latents = state["latents"]
        count = latents.shape[1]

        def pull(latent: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            seen: list[Tensor] = []

            def loss(z: Tensor) -> Tensor:
                generated = purifier.generator(z)
                image = self._projected(generated, x, threat)
                logits = engine.defence.classifier(image)  # type: ignore[attr-defined]
                if self.form == "published":
                    logits = logits.softmax(1)
                entropy = F.cross_entropy(logits, y, reduction="none")
                seen.append(entropy.detach())
                own = purifier.scale * (
                    self._apart(image, x) - purifier.ssim_weight * purifier.distances(generated, x)[1]
                )
                return own - self.strength * count * entropy

            return inner_gradient(loss, latent), seen[0]

        repeated = (part.repeat_interleave(count, 0) for part in (x, y))
        gradient, entropy = engine.runtime.call(pull, latents.flatten(0, 1), *repeated)
        gradient = gradient.unflatten(0, (-1, count))
        if purifier.latent_weight:
            factor = purifier.scale * purifier.latent_weight
            gradient = gradient + inner_gradient(lambda z: factor * purifier.constrained(z), latents)
        memory = {name: values for name, values in state.items() if name != "latents"}
        moved, memory = purifier.moved(latents, gradient, memory, step)
        return {"latents": moved, **memory}, entropy.unflatten(0, (-1, count)).mean(1)

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
