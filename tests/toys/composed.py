"""Purifiers one after another: what each of them holds and offers is known by its number."""

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from lustral.diffusion import Context
from lustral.noise import NoiseStream
from lustral.purifiers import Purified, Purifier


class Composed(Purifier):
    """Hands each purifier's image to the next. Contexts and trace entries are called "0.mask", "1.latents" ...

    Args:
        purifiers: in order; only the last may give several views.
    """

    def __init__(self, purifiers: Sequence[Purifier]) -> None:
        super().__init__()
        self.purifiers = list(purifiers)
        self._parts = nn.ModuleList(purifiers)
        self.random = any(part.random for part in purifiers)
        self.ragged = any(part.ragged for part in purifiers)
        self.gradient_modes = tuple(
            mode for mode in Purifier.gradient_modes if all(mode in part.gradient_modes for part in purifiers)
        )
        self.instead = " ".join(part.instead for part in purifiers if part.instead)
        self.holds = frozenset(f"{k}.{name}" for k, part in enumerate(purifiers) for name in part.holds)
        self.offers = {f"{k}.{name}": words for k, part in enumerate(purifiers) for name, words in part.offers.items()}

    def complete(self, x: Tensor, noise: NoiseStream, given: Context) -> Context:
        """Each part completes its own, from the image that reaches it."""
        return given

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """Every part's, which takes all purifications but the last."""
        found: Context = {}
        for k, part in enumerate(self.purifiers):
            stream = noise.fork(str(k))
            own = part.prepare(x, stream)
            found |= {f"{k}.{name}": value for name, value in own.items()}
            if k + 1 < len(self.purifiers):
                x = self._purified(part, x, stream, own, ())[0][:, 0]
        return found

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        trace: dict[str, Tensor] = {}
        for k, part in enumerate(self.purifiers):
            own = {name: context[f"{k}.{name}"] for name in part.holds if f"{k}.{name}" in context}
            wanted = [name for name in part.offers if f"{k}.{name}" in wants]
            views, found = self._purified(part, x, noise.fork(str(k)), own, wanted)
            trace |= {f"{k}.{name}": found[name] for name in wanted}
            x = views[:, 0]
        return Purified(views.transpose(0, 1), trace)

    def _purified(
        self, part: Purifier, x: Tensor, noise: NoiseStream, context: Context, wants: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, V, C, H, W), and the trace. A part that is not ragged counts on being given R rows."""

        def call(x: Tensor, noise: NoiseStream, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
            purified = part(x, noise, "exact", context, wants)
            return purified.images.transpose(0, 1), purified.trace

        return call(x, noise, context) if part.ragged else self.rows(call, x, noise, context)
