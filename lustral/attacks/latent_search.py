"""What attacks on CMAP that search the latents of its generator share."""

from abc import abstractmethod

import torch
from torch import Tensor

from lustral.attacks.base import Attack
from lustral.attacks.engine import Engine
from lustral.attacks.selection import select
from lustral.attacks.victim import Cases
from lustral.diffusion.inner import inner_gradient
from lustral.noise import NoiseStream
from lustral.purifiers import CMAP
from lustral.threat import ThreatModel


class LatentSearch(Attack):
    """From the latents that CMAP finds for the clean image, descends a loss of them with CMAP's own steps. Each of the
    n latents ends in an image, projected onto the threat set; the best of the n on selection draws, purified with
    fresh latents, is returned. Subclasses give `pull`, and `coupled` where the loss has a term of all latents together.

    Args:
        num_steps: steps of the defence's own optimiser from the clean image's latents.
        selection_draws: draws of the defence's noise on which the n images are compared.

    Raises:
        ValueError: if a number is below 1; when it runs, if the defence's purifier is not CMAP.
    """

    def __init__(self, num_steps: int, selection_draws: int) -> None:
        if num_steps < 1 or selection_draws < 1:
            raise ValueError(f"num_steps = {num_steps} and selection_draws = {selection_draws} must be at least 1.")
        self.num_steps, self.selection_draws = num_steps, selection_draws

    @property
    def measures(self) -> tuple[str, ...]:
        """What `pull` watches, at the first and at the last step, a mean over latents."""
        return ("loss_first", "loss_last")

    @abstractmethod
    def pull(
        self, engine: Engine, purifier: CMAP, threat: ThreatModel, z: Tensor, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(N,) each: the loss of latents ``z`` (N, *latent_shape) of images ``x`` (N, C, H, W) with labels ``y`` (N,),
        row by row, and the loss of the attacker that is reported."""

    def coupled(self, purifier: CMAP, latents: Tensor) -> Tensor | None:
        """The gradient of what the loss has of all latents (B, n, ...) of an image together; None: nothing."""
        return None

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
        """One step of all latents of some images, and (B,) what is watched before it."""
        latents = state["latents"]
        count = latents.shape[1]

        def pulled(latent: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            seen: list[Tensor] = []

            def loss(z: Tensor) -> Tensor:
                value, watched = self.pull(engine, purifier, threat, z, x, y)
                seen.append(watched.detach())
                return value

            return inner_gradient(loss, latent), seen[0]

        repeated = (part.repeat_interleave(count, 0) for part in (x, y))
        gradient, watched = engine.runtime.call(pulled, latents.flatten(0, 1), *repeated)
        gradient = gradient.unflatten(0, (-1, count))
        together = self.coupled(purifier, latents)
        if together is not None:
            gradient = gradient + together
        memory = {name: values for name, values in state.items() if name != "latents"}
        moved, memory = purifier.moved(latents, gradient, memory, step)
        return {"latents": moved, **memory}, watched.unflatten(0, (-1, count)).mean(1)
