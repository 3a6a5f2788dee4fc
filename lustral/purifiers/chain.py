"""Purifiers one after another, as CMAP after DiffPure (CMAP's table IV)."""

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from lustral.diffusion import Context, Denoiser
from lustral.noise import NoiseStream
from lustral.purifiers.base import Purified, Purifier


class Chain(Purifier):
    """Hands each purifier's image to the next one. Each draws from a stream of its own; an image between two of them is
    clamped to [0, 1], as an input is.

    What a part holds and offers is called by the part's number: "0.levels", "1.latents".

    Args:
        purifiers: in order, at least one; only the last may give several views.

    Raises:
        ValueError: if there is none, or parts purify groups of different sizes (a part that purifies each image by
            itself goes with any); when images are purified, if another one than the last gives several views.
    """

    def __init__(self, purifiers: Sequence[Purifier]) -> None:
        super().__init__()
        if not purifiers:
            raise ValueError("A chain of purifiers has at least one: name some, or choose Identity.")
        if len(sizes := {part.group_size for part in purifiers} - {1}) > 1:
            raise ValueError(f"The parts of a chain purify groups of {sorted(sizes)} images: they must be of one size.")
        self.purifiers = list(purifiers)
        self._parts = nn.ModuleList(purifiers).eval()
        self.group_size = max(part.group_size for part in purifiers)
        self.random = any(part.random for part in purifiers)
        self.ragged = any(part.ragged for part in purifiers)
        self.gradient_modes = tuple(
            mode for mode in Purifier.gradient_modes if all(mode in part.gradient_modes for part in purifiers)
        )
        told = [f"purifiers.{k}: {part.instead}" for k, part in enumerate(purifiers) if part.instead]
        self.instead = " ".join(told)
        self.holds = frozenset(f"{k}.{name}" for k, part in enumerate(purifiers) for name in part.holds)
        self.offers = {f"{k}.{name}": words for k, part in enumerate(purifiers) for name, words in part.offers.items()}

    def derived(self) -> dict[str, float]:
        """Every part's quantities by its number; and the sum of ``network_calls``, if every part with a network tells
        its own."""
        told = [part.derived() for part in self.purifiers]
        found = {f"{k}.{name}": value for k, own in enumerate(told) for name, value in own.items()}
        calls = [own["network_calls"] for own in told if "network_calls" in own]
        silent = any(
            "network_calls" not in own and any(isinstance(module, Denoiser) for module in part.modules())
            for own, part in zip(told, self.purifiers, strict=True)
        )
        return {**found, "network_calls": sum(calls)} if calls and not silent else found

    def complete(self, x: Tensor, noise: NoiseStream, given: Context) -> Context:
        """Each part completes its own, from the image that reaches it."""
        return given

    def prepare(self, x: Tensor, noise: NoiseStream) -> Context:
        """Every part's, which takes all purifications but the last."""
        found: Context = {}
        for k, part in enumerate(self.purifiers):
            stream = noise.fork(str(k))
            own = part.prepared(x, stream) if self._cuts(part) else self.rows(part.prepared, x, stream)
            found |= {f"{k}.{name}": value for name, value in own.items()}
            if k + 1 < len(self.purifiers):
                x = self._purified(k, x, stream, own, ())[0][:, 0]
        return found

    def run(self, x: Tensor, context: Context, noise: NoiseStream, wants: Collection[str]) -> Purified:
        trace: dict[str, Tensor] = {}
        views = x[:, None]
        for k, part in enumerate(self.purifiers):
            own = {name: context[f"{k}.{name}"] for name in part.holds if f"{k}.{name}" in context}
            wanted = [name for name in part.offers if f"{k}.{name}" in wants]
            views, found = self._purified(k, views[:, 0], noise.fork(str(k)), own, wanted)
            trace |= {f"{k}.{name}": found[name] for name in wanted}
        return Purified(views.transpose(0, 1), trace)

    def _purified(
        self, number: int, x: Tensor, noise: NoiseStream, context: Context, wants: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What part ``number`` makes of ``x``: (B, V, C, H, W), and the trace."""
        part, last = self.purifiers[number], number + 1 == len(self.purifiers)

        def call(x: Tensor, noise: NoiseStream, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
            purified = part(x, noise, "exact", context, wants)
            return purified.images.transpose(0, 1), purified.trace

        views, trace = call(x, noise, context) if self._cuts(part) else self.rows(call, x, noise, context)
        if not last and views.shape[1] > 1:
            raise ValueError(
                f"purifiers.{number}, a {type(part).__name__}, gives {views.shape[1]} views of each image, and the "
                "next purifier takes one: let it be the last of the chain."
            )
        return (views if last else views.clamp(0.0, 1.0)), trace

    @staticmethod
    def _cuts(part: Purifier) -> bool:
        """Whether a part cuts its own rows. Any other is given R rows at a time, as the engine would."""
        return part.ragged or part.group_size > 1
