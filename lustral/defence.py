"""A defence: the classifier after the purifier, and nothing else."""

from collections.abc import Collection
from typing import Literal, final, get_args

from torch import Tensor, nn

from lustral.attacks import Judged
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
    """Judges images: purifies, classifies every view, and merges the views.

    Nothing is frozen here and no mode is set: an evaluation does both, a training neither.

    Args:
        classifier: the victim.
        purifier: what stands before it; `Identity` for an undefended classifier.
        merge: of several views of a draw: the "mean" of their logits, or a "vote": how many views choose each class (a
            view with a tie or NaN chooses none), whose objective is differentiated through the views.
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
        """Whether rows differ in how many network calls they need (see `Purifier`)."""
        return self.purifier.ragged

    @property
    def group_size(self) -> int:
        """How many images are judged together."""
        return self.purifier.group_size

    @property
    def runtime(self) -> Runtime:
        """How networks are called, in all parts."""
        return self.purifier.runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        self.purifier.runtime = runtime

    def with_purifier(self, purifier: Purifier | Variant) -> "Defence":
        """The same classifier after another purifier, or a variant of this one's, on the same device and with the same
        runtime: what an attack with a surrogate differentiates. It is made once."""
        if id(purifier) not in self._exchanged:
            own = purifier.of(self.purifier) if isinstance(purifier, Variant) else purifier
            if own.group_size != self.group_size:
                raise ValueError(
                    f"The surrogate {type(own).__name__} judges groups of {own.group_size} images, the defence of "
                    f"{self.group_size}: choose one with the same."
                )
            # The key's owner is kept too, or another object could be given its number.
            self._exchanged[id(purifier)] = (purifier, Defence(self.classifier, own, self.merge))
        exchanged = self._exchanged[id(purifier)][1]
        device = next((parameter.device for parameter in self.classifier.parameters()), None)
        exchanged.purifier.to(device).eval().runtime = self.runtime
        return exchanged

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """What images ``x`` (B, C, H, W) decide and an attack may hand over (see `Purifier.prepare`)."""
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
