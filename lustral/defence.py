"""A defence: a purifier, and the classifier behind it."""

from collections.abc import Collection
from typing import Literal, final, get_args

import torch
from torch import Tensor, nn

from lustral.attacks import Judged, VictimModule
from lustral.attacks.objectives import mean_over_draws
from lustral.diffusion import Context
from lustral.networks import Classifier
from lustral.noise import NoiseStream
from lustral.purifiers import GradientMode, Purifier, Variant
from lustral.rows import Runtime
from lustral.votes import votes

Merge = Literal["mean", "vote"]


@final
class Defence(nn.Module):
    """Judges images: purifies them, classifies every view, and merges the views.

    The class neither freezes parameters nor sets train or eval mode: an evaluation does both, a training neither.

    Args:
        classifier: the victim.
        purifier: applied before the classifier; `Identity` for an undefended classifier.
        merge: how the V views of a draw are merged: "mean" averages their logits; "vote" counts how many views choose
            each class (a view with a tie or NaN chooses none). Counts have no gradient, so under "vote" objectives
            differentiate the logits of the views.

    Raises:
        ValueError: if ``merge`` is neither.
    """

    def __init__(self, classifier: Classifier, purifier: Purifier, merge: Merge = "mean") -> None:
        super().__init__()
        if merge not in get_args(Merge):
            raise ValueError(f"merge is {merge!r}; it may be {', '.join(get_args(Merge))}.")
        self.classifier, self.purifier = classifier, purifier
        self.merge: Merge = merge
        purifier.bind(classifier)
        self._exchanged: dict[int, tuple[object, Defence]] = {}

    @property
    def random(self) -> bool:
        return self.purifier.random

    @property
    def ragged(self) -> bool:
        """Whether rows may need different numbers of network calls (see `Purifier`)."""
        return self.purifier.ragged

    @property
    def group_size(self) -> int:
        """m, the number of images that are judged together."""
        return self.purifier.group_size

    @property
    def runtime(self) -> Runtime:
        """How networks are called, in the purifier and the classifier."""
        return self.purifier.runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        self.purifier.runtime = runtime

    def with_purifier(self, purifier: Purifier | Variant) -> "Defence":
        """The same classifier behind another purifier, or behind a variant of this defence's own.

        This is what an attack with a surrogate differentiates. It has the same device and runtime, is in eval mode, and
        is made once for each ``purifier``.

        Raises:
            ValueError: if the surrogate judges groups of another size.
        """
        if id(purifier) not in self._exchanged:
            own = purifier.of(self.purifier) if isinstance(purifier, Variant) else purifier
            if own.group_size != self.group_size:
                raise ValueError(
                    f"The surrogate {type(own).__name__} judges groups of {own.group_size} images, the defence of "
                    f"{self.group_size}: choose one with the same."
                )
            # The purifier is kept too: an object that is freed could pass its id on to another.
            self._exchanged[id(purifier)] = (purifier, Defence(self.classifier, own, self.merge))
        exchanged = self._exchanged[id(purifier)][1]
        device = next((parameter.device for parameter in self.classifier.parameters()), None)
        exchanged.purifier.to(device).eval().runtime = self.runtime
        return exchanged

    def as_module(self, seed: int = 0, gradient: GradientMode = "exact") -> VictimModule:
        """This defence as a plain module (B, C, H, W) -> (B, K) for other libraries: fresh noise at every call,
        gradients at the input. Freezes the parameters and sets eval mode."""
        noise = NoiseStream(seed, torch.zeros(0, dtype=torch.int64)).fork("module")
        return VictimModule(self.eval().requires_grad_(False), noise, gradient)

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """The context of images ``x`` (B, C, H, W) that an attack may hand to the purifier (see `Purifier.prepare`)."""
        return self.purifier.prepared(x, noise)

    def forward(
        self,
        x: Tensor,
        noise: NoiseStream,
        gradient: GradientMode = "exact",
        context: Context | None = None,
        wants: Collection[str] = frozenset(),
    ) -> Judged:
        purified = self.purifier(x, noise, gradient, context, wants)
        views, batch = purified.images.shape[:2]
        logits: Tensor = self.runtime.call(self.classifier, purified.images.flatten(0, 1)).view(views, batch, -1)
        if self.merge == "vote":
            return Judged(votes(logits.detach()).to(logits.dtype), purified.trace, logits)
        return Judged(mean_over_draws(logits), purified.trace)
